"""Those whom scripts/benchmark.py compares, each in a process of its own."""
