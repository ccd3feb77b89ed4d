"""What looks at a run and steers it."""
