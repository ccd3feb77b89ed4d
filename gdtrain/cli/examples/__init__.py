"""Configurations that are part of the package, as they stand in the repository."""
