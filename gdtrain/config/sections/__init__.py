"""The sections of a configuration, one file for each subject."""
