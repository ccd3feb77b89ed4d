"""Those whom scripts/benchmarks/speed.py compares, each in a process of its own."""
