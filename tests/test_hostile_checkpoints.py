"""A checkpoint from a stranger runs no code, opens nothing elsewhere, and asks for no memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_disk import fast_directory
from hostile_checkpoints import in_a_process_of_its_own

# The long form, with 1,000 checkpoints: scripts/torture_store.py.


def test_hostile_checkpoints_with_valid_digests_do_no_harm() -> None:
    with fast_directory() as place:
        figures = in_a_process_of_its_own(Path(place), 60, seed=0)
    assert figures.problems == []
    assert figures.cases == 60
    assert set(figures.codes) <= {"0", "2", "3"}
    assert figures.codes["2"] > 30


CLAIM = """
import json, resource, sys
from pathlib import Path
from gdtrain.checkpoint.format import read_state, read_weights, write_state
from gdtrain.errors import CheckpointError
import torch

directory, kind = Path(sys.argv[1]), sys.argv[2]
directory.mkdir()
write_state(directory, {"x": torch.zeros(3)})
path = directory / "tensors.safetensors"
size = 1 << 42
header = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
text = json.dumps(header).encode()
if kind == "header":
    path.write_bytes((1 << 31).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(1 << 32)
else:
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    if kind == "sparse":
        with path.open("r+b") as file:
            file.truncate(8 + len(text) + size)

def check(found):
    if found["x"] != ("F32", [3]):
        raise CheckpointError(f"x is {found['x']}")

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = []
for read in (lambda: read_state(directory, check), lambda: read_weights(path, check)):
    try:
        read()
    except CheckpointError as error:
        said.append(str(error))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([said, (after - before) / 1024]))
"""


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("said", "is damaged ("),
        ("sparse", ": x is ('U8', [4398046511104])"),
        ("header", "is damaged (its header is said to take 2,147,483,648 bytes)"),
    ],
)
def test_four_terabytes_are_refused_before_they_are_asked_for(
    tmp_path: Path, kind: str, why: str
) -> None:
    given = [sys.executable, "-c", CLAIM, str(tmp_path / "c"), kind]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    said, megabytes = json.loads(done.stdout)
    assert len(said) == 2
    assert all(str(tmp_path / "c" / "tensors.safetensors") in one and why in one for one in said)
    assert megabytes < 5
