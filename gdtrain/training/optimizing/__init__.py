"""What steps the weights: optimizers, schedules, several of them, and phases."""
