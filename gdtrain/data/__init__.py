"""Samples in, batches out."""
