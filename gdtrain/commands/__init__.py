"""The commands: their options, their help, and the job that each of them starts."""
