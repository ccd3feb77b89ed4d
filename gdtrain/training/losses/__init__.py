"""Losses: what their means are divided by, and those that a configuration can name."""
