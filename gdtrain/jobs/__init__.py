"""The jobs behind the commands: each does what one command asks for, from start to exit code."""
