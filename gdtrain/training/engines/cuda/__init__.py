"""The engine cuda_graph: an update recorded once on a CUDA device."""
