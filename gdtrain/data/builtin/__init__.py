"""Data sets and problems that are part of the package."""
