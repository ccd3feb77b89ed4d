"""Checkpoints: complete states on disk, verified."""
