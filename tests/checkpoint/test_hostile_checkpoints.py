"""A checkpoint from a stranger runs no code, opens nothing elsewhere, and asks for no memory."""

import json
from pathlib import Path

import pytest
from helpers.faults.fake_disk import fast_directory
from helpers.hostile.hostile_checkpoints import in_a_process_of_its_own
from helpers.processes import run


def test_hostile_checkpoints_with_valid_digests_do_no_harm() -> None:
    assert_harmless(6, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(11))
def test_many_hostile_checkpoints_do_no_harm(seed: int, scaled) -> None:
    assert_harmless(scaled(100), seed)


def assert_harmless(count: int, seed: int) -> None:
    with fast_directory() as place:
        figures = in_a_process_of_its_own(Path(place), count, seed)
    assert figures.problems == []
    assert figures.cases == count
    assert set(figures.codes) <= {"0", "2", "3"}
    assert figures.codes["2"] > count / 2


CLAIM = """
import json, resource, sys
from pathlib import Path
from gdtrain.checkpoint.format import read_state, read_weights, write_state
from gdtrain.errors import CheckpointError
import torch

size = 1 << 42
header = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
text = json.dumps(header).encode()

def check(found):
    if found["x"] != ("F32", [3]):
        raise CheckpointError(f"x is {found['x']}")

said = []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind in ("said", "sparse", "header"):
    directory = Path(sys.argv[1]) / kind
    directory.mkdir()
    write_state(directory, {"x": torch.zeros(3)})
    path = directory / "tensors.safetensors"
    length, whole = len(text), 0
    if kind == "sparse":
        whole = 8 + length + size
    elif kind == "header":
        length, whole = 1 << 31, 1 << 32
    path.write_bytes(length.to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(max(whole, 8 + len(text)))
    for read in (lambda: read_state(directory, check), lambda: read_weights(path, check)):
        try:
            read()
        except CheckpointError as error:
            said.append(str(error).removeprefix(str(path)))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([said, (after - before) / 1024]))
"""


def test_four_terabytes_are_refused_before_they_are_asked_for(tmp_path: Path) -> None:
    """Of a file that only says so, of one that is sparse, and of a header of 2 GiB."""
    done = run("-c", CLAIM, str(tmp_path))
    assert done.returncode == 0, done.err
    said, megabytes = json.loads(done.out)
    assert said == [
        *[" is damaged (92 bytes instead of 4,398,046,511,196)"] * 2,
        *[": x is ('U8', [4398046511104])"] * 2,
        *[" is damaged (its header is said to take 2,147,483,648 bytes)"] * 2,
    ]
    assert megabytes < 64
