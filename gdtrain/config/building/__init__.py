"""From sections of a checked configuration to objects."""
