"""Input that attacks: damaged files, configurations and checkpoints."""
