"""A data set is told from another by all that it holds, and files by their size and time too."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gdtrain import MiniBatchLoader, PhasedLoader, Trainer
from gdtrain.data.files.mapped import mapped
from gdtrain.data.samples import DIGEST_SAMPLES, Samples
from gdtrain.data.sources import as_samples
from gdtrain.errors import CheckpointError

N = 2 * DIGEST_SAMPLES - 1  # of which every ⌊n / 4096⌋-th up to 4,096 are the first half
PLACES = [0, 1, DIGEST_SAMPLES // 2, DIGEST_SAMPLES, N - 1]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(N, 2, generator=draw), torch.randn(N, 1, generator=draw)


def trainer_on(data: object) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(data, 1000)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine="eager")


KINDS = {
    "tensors": lambda x, y: as_samples((x, y)),
    "slices": lambda x, y: as_samples((torch.stack([x, x], -1)[..., 0], y.T.contiguous().T)),
    "dict": lambda x, y: as_samples(({"a": x, "b": x[:, :1]}, y)),
    "bfloat16": lambda x, y: as_samples((x, y.bfloat16())),
    "complex": lambda x, y: as_samples((x, torch.complex(y, y).conj())),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_one_other_target_anywhere_is_another_data_set(kind: str, place: int) -> None:
    x, y = rows()
    before = KINDS[kind](x, y).fingerprint()
    assert KINDS[kind](x.clone(), y.clone()).fingerprint() == before
    y[place] += 1.0
    assert KINDS[kind](x, y).fingerprint() != before


def test_states_of_0_1_0_are_compared_by_the_digest_of_0_1_0() -> None:
    """CRC-32 of the bytes of every ⌊n / 4096⌋-th row, up to 4,096: the inputs, then the targets."""
    x, y = rows()
    x, y = torch.cat([x, x, x[:5]]), torch.cat([y, y, y[:5]])
    some = slice(0, DIGEST_SAMPLES * (len(x) // DIGEST_SAMPLES), len(x) // DIGEST_SAMPLES)
    expected = zlib.crc32(y[some].numpy().tobytes(), zlib.crc32(x[some].numpy().tobytes()))
    assert as_samples((x, y)).fingerprint(1) == expected


def test_data_changed_in_place_is_seen_when_a_state_is_put_back() -> None:
    x, y = rows()
    trainer = trainer_on((x, y))
    trainer.fit(1)
    state = trainer.state_dict()
    y[-1] += 1.0
    with pytest.raises(CheckpointError, match=r"^the data or loader is another: data "):
        trainer.load_state_dict(state)
    y[-1] = rows()[1][-1]
    trainer.load_state_dict(state)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def save(folder: Path) -> None:
    x, y = rows()
    (folder / "x").mkdir()
    for number, part in enumerate(torch.split(x, 3000)):
        np.save(folder / "x" / f"{number}.npy", part.numpy())
    np.save(folder / "y.npy", y.numpy())


def files(folder: Path) -> Samples:
    return mapped(folder / "x", folder / "y.npy")


def spoil(path: Path, keep_time: bool) -> None:
    """Change the last byte but one, and with keep_time leave size and time as they were."""
    found = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    else:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["x/0.npy", "x/2.npy", "y.npy"])
def test_mapped_files_that_changed_are_another_data_set(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    trainer = trainer_on(files(tmp_path))
    trainer.fit(1)
    state = trainer.state_dict()
    spoil(tmp_path / name, keep_time=False)
    with pytest.raises(CheckpointError, match=r"^the data or loader is another: data "):
        trainer_on(files(tmp_path)).load_state_dict(state)


def test_mapped_files_with_another_time_and_the_same_bytes_are_the_same(tmp_path: Path) -> None:
    save(tmp_path)
    state = trainer_on(files(tmp_path)).state_dict()
    os.utime(tmp_path / "y.npy", ns=(1, 1))
    other = trainer_on(files(tmp_path))
    other.load_state_dict(state)
    again = other.state_dict()["data"]
    assert again["data"] == state["data"]["data"]
    assert again["files"] != state["data"]["files"]


def test_mapped_files_are_not_read_while_size_and_time_are_the_same(tmp_path: Path) -> None:
    """So a change that hides both is seen by a comparison of bytes alone, as --verify-data asks."""
    save(tmp_path)
    state = trainer_on(files(tmp_path)).state_dict()
    spoil(tmp_path / "y.npy", keep_time=True)
    trainer_on(files(tmp_path)).load_state_dict(state)
    asked = state | {"data": {k: v for k, v in state["data"].items() if k != "files"}}
    with pytest.raises(CheckpointError, match=r"^the data or loader is another: data "):
        trainer_on(files(tmp_path)).load_state_dict(asked)


def test_the_phases_of_a_loader_tell_of_their_files(tmp_path: Path) -> None:
    save(tmp_path)
    samples = files(tmp_path)
    loader = PhasedLoader([(1, MiniBatchLoader(samples, 10)), (None, MiniBatchLoader(samples, 20))])
    assert loader.fingerprint()["files"] == samples.marks()
    assert [name for name, _, _ in samples.marks() or []] == ["0.npy", "1.npy", "2.npy", "y.npy"]
