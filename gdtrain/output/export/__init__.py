"""A trained model in files of other programs, with what was done to its data."""
