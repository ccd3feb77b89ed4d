"""The engine scan: whole blocks as XLA programs."""
