"""How many of gdtrain's functions a run calls, and in how many files: what a reader has to follow.

    python scripts/benchmarks/calls.py [--list]

The second run of a process is counted: two updates on a CSV file of four rows, from the command
line to the files that it leaves. Named functions are counted once each, however often they are
called; comprehensions and lambdas are left out, and so is what runs in other threads.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from types import FrameType

import gdtrain
from gdtrain.cli.main import main as gdtrain_main

PACKAGE = str(Path(gdtrain.__file__).parent)
CONFIG = """\
data: {source: csv, path: table.csv, target: y}
model: {name: mlp, hidden: [4]}
loss: mse
loader: {name: minibatch, batch_size: 2}
optimizer: {name: sgd, lr: 0.1}
epochs: 1
"""
TABLE = "a,b,y\n0,1,2\n3,4,5\n6,7,8\n9,10,11\n"


def called(arguments: list[str]) -> set[tuple[str, str]]:
    """File and qualified name of each function that a command calls."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            found.add((code.co_filename.removeprefix(PACKAGE + os.sep), code.co_qualname))

    sys.setprofile(note)
    try:
        code = gdtrain_main(arguments)
    finally:
        sys.setprofile(None)
    assert code == 0
    return found


def second_run() -> set[tuple[str, str]]:
    """What the second of two runs calls."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("table.csv").write_text(TABLE)
        Path("run.yaml").write_text(CONFIG)
        run = ["--config", "run.yaml"]
        called([*run, "--output-dir", "first"])
        return called([*run, "--output-dir", "second"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the functions, file by file")
    listed = parser.parse_args().list
    found = second_run()
    if listed:
        for file, name in sorted(found):
            print(f"{file}: {name}")
    print(f"{len(found)} functions in {len({file for file, _ in found})} files")
