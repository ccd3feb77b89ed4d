"""Run the command line: ``python -m gdtrain``."""

from gdtrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
