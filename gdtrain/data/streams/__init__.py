"""Samples that are read once, as they arrive."""
