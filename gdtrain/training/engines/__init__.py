"""How a block of steps is executed."""
