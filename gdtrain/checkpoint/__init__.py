"""Nothing lost: checkpoints."""
