"""Tables of numbers and categories, and what is done to them before training."""
