"""Arrays in files, read as data and never as code."""
