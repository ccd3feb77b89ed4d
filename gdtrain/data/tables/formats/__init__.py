"""Files that hold tables, each read as what its bytes say it is."""
