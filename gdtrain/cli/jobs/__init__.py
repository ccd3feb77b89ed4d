"""What the commands do, from start to exit code; imported when a command runs."""
