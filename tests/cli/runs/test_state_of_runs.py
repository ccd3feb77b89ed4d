"""Runs of the command line with models that keep more than weights: resumed, and read back."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gdtrain import MiniBatchLoader, Trainer, load_run, registry
from gdtrain.checkpoint import json_values as values
from gdtrain.checkpoint.format import read_state, read_weights, write_state, write_weights
from gdtrain.cli.main import main
from gdtrain.errors import CheckpointError

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25, standardize: false}
model: remembers
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1, momentum: 0.9}
averaging: {every_n_steps: 2}
checkpoint: {every_n_steps: 1, keep_last: 99}
log: {picture: false}
epochs: 2
"""


class Remembers(nn.Module):
    """Keeps buffers that grow, come and go, and extra state with a tensor in it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        self.register_buffer("grown", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("gone", torch.ones(2))
        self.calls, self.largest = 0, torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            self.grown = torch.cat([self.grown, x[:1, 0].detach()])
            self.largest = torch.maximum(self.largest, x.detach().max())
            if self.calls == 3:
                self.late, self.gone = x.detach().clone(), None
        scale = 1 + 0.01 * self.calls + self.grown.mean() + self.largest
        if self.late is not None:
            scale = scale + self.late.mean()
        return self.layer(x) / (scale if self.gone is None else scale + self.gone.mean())

    def get_extra_state(self):
        return {"calls": self.calls, "largest": self.largest}

    def set_extra_state(self, state) -> None:
        self.calls, self.largest = state["calls"], state["largest"]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """The directory of a finished run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    registry.register_model("remembers")(Remembers)
    Path("a.yaml").write_text(CONFIG, "utf-8")
    assert main(["--config", "a.yaml", "--output-dir", "out"]) == 0
    return Path("out")


def test_it_is_resumed_from_each_checkpoint(run, tmp_path) -> None:
    kept = sorted(path.name for path in run.glob("checkpoints/step-*"))
    assert len(kept) == 8
    for name in kept:
        other = tmp_path / name
        shutil.copytree(run, other)
        for path in other.glob("checkpoints/step-*"):
            if path.name != name:
                shutil.rmtree(path)
        assert main(["--config", "a.yaml", "--output-dir", str(other), "--resume"]) == 0
        for file in ("model.safetensors", "averaged.safetensors"):
            assert (other / file).read_bytes() == (run / file).read_bytes()


@pytest.mark.parametrize("averaged", [False, True])
def test_it_is_read_back(run, averaged) -> None:
    """With the state of the last checkpoint; the weights are in the file as others read it."""
    model = load_run(run, averaged=averaged).model
    last = sorted(run.glob("checkpoints/step-*"))[-1]
    state = read_state(last)["model"]
    assert (model.calls, model.gone) == (8, None) == (state["_extra_state"]["calls"], None)
    assert torch.equal(model.largest, state["_extra_state"]["largest"])
    assert torch.equal(model.grown, state["grown"])
    assert model.grown.shape == (9,)
    assert torch.equal(model.late, state["late"])
    file = run / ("averaged.safetensors" if averaged else "model.safetensors")
    weights = load_file(file)
    assert torch.equal(model.layer.weight, weights["layer.weight"])
    assert torch.equal(weights["layer.weight"], state["layer.weight"]) is not averaged


def _raised(path: Path) -> str:
    model = Remembers(2, 2)
    from gdtrain.checkpoint.expected_tensors import load_weights

    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    assert model.calls == 0
    return str(caught.value)


@pytest.mark.parametrize(
    "remark",
    [
        "[", "3", '["dict", ["_extra_state", ["object", "os.system"]]]', '["dict"]' * 2,
        '["dict", ["_extra_state", ["dict", ["calls", ["tensor", "none"]]]]]', "[" * 5000,
    ],
)  # fmt: skip
def test_a_header_that_holds_something_else_is_refused(remark, tmp_path) -> None:
    from gdtrain.checkpoint.format import write_tensors

    path = tmp_path / "w"
    taken = {k: v for k, v in Remembers(2, 2).state_dict().items() if k != "_extra_state"}
    write_tensors(path, taken, remark)
    assert _raised(path) == f"{path} is damaged (its header holds no state)"


def test_weights_without_their_extra_state_are_refused(tmp_path) -> None:
    path = tmp_path / "w"
    taken = {k: v for k, v in Remembers(2, 2).state_dict().items() if k != "_extra_state"}
    write_weights(path, taken)
    assert _raised(path) == f"{path}: model: the state lacks _extra_state"


def test_remarks_of_other_programs_are_no_matter(tmp_path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w"
    save_file({"x": torch.ones(2)}, path, {"format": "pt", "by": "someone"})
    assert list(read_weights(path, lambda found: None)) == ["x"]


def test_a_file_with_holes_is_refused_before_it_is_read(tmp_path) -> None:
    """It asks for memory that it does not take of the disk, by a part that may be of any size."""
    (tmp_path / "c").mkdir()
    write_state(tmp_path / "c", {"x": torch.ones(2)})
    path = tmp_path / "c" / "tensors.safetensors"
    size = 1 << 40
    header = json.dumps(
        {"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    there = path.stat().st_blocks * 512
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / "c", lambda found: None)
    assert str(caught.value) == (
        f"{path} is damaged ({8 + len(header) + size:,} bytes, of which {there:,} are on the disk)"
    )


def test_extra_state_that_can_not_be_saved_ends_the_run_before_its_first_update(
    tmp_path, monkeypatch, capsys
) -> None:
    class Odd(Remembers):
        def get_extra_state(self):
            return {**super().get_extra_state(), "held": {1, 2}}

    monkeypatch.chdir(tmp_path)
    registry.register_model("remembers")(Odd)
    steps = []
    monkeypatch.setattr(Trainer, "train_step", lambda *_: steps.append(1))
    Path("a.yaml").write_text(CONFIG, "utf-8")
    assert main(["--config", "a.yaml", "--output-dir", "out"]) in (1, 2)
    assert "model._extra_state.held: a set can't be saved" in capsys.readouterr().err
    assert steps == []


# ── values ──────────────────────────────────────────────────────────────────────────────────

TENSORS = {
    str(dtype).removeprefix("torch."): torch.tensor([1, 0, 3]).to(dtype)
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
} | {
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "transposed": torch.arange(6.0).view(2, 3).T,
    "empty": torch.zeros(3, 0),
    "scalar": torch.tensor(2.5),
}
NUMBERS = {
    **{f"float{w}": getattr(np, f"float{w}")(0.1) for w in (16, 32, 64)},
    **{f"int{w}": getattr(np, f"int{w}")(-7) for w in (8, 16, 32, 64)},
    **{f"uint{w}": getattr(np, f"uint{w}")(200) for w in (8, 16, 32, 64)},
    "bool": np.bool_(True),
    "nan": np.float32("nan"),
    "inf": np.float64("-inf"),
}


def written(value, tmp_path: Path):
    (tmp_path / "c").mkdir()
    write_state(tmp_path / "c", {"held": value})
    return read_state(tmp_path / "c")["held"]


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_every_dtype_come_back(name, tmp_path) -> None:
    value, back = TENSORS[name], written(TENSORS[name], tmp_path)
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    bits = [t.resolve_conj().resolve_neg().contiguous().view(-1) for t in (back, value)]
    assert torch.equal(*(b.view(torch.uint8) if b.numel() else b for b in bits))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_come_back(name, tmp_path) -> None:
    value, back = NUMBERS[name], written([NUMBERS[name]], tmp_path)[0]
    assert type(back) is type(value)
    assert back.tobytes() == value.tobytes()


def test_counters_come_back(tmp_path) -> None:
    value = Counter({3: 2, 7: 1})
    back = written({"milestones": value}, tmp_path)["milestones"]
    assert type(back) is Counter
    assert back == value


@pytest.mark.parametrize("coalesced", [False, True])
def test_sparse_tensors_come_back(coalesced, tmp_path) -> None:
    value = torch.sparse_coo_tensor([[4, 0, 0]], torch.randn(3, 2), (5, 2), check_invariants=True)
    value = value.coalesce() if coalesced else value
    back = written(value, tmp_path)
    assert back.is_coalesced() is coalesced
    assert torch.equal(back._indices(), value._indices())
    assert torch.equal(back._values(), value._values())
    assert back.shape == value.shape


@pytest.mark.parametrize(
    "wrong",
    [
        ["sparse", True, [5, 2], 1, 2],
        ["sparse", True, [5, 2], ["tensor", "i"], ["tensor", "v"]],  # twice the same index
        ["sparse", False, [1, 2], ["tensor", "i"], ["tensor", "v"]],  # beyond the shape
        ["sparse", False, [5], ["tensor", "i"], ["tensor", "v"]],
        ["sparse", False, [1 << 62, 1 << 62], ["tensor", "i"], ["tensor", "v"]],
        ["sparse", False, "xy", ["tensor", "i"], ["tensor", "v"]],
        ["sparse", 3, [5, 2], ["tensor", "v"], ["tensor", "i"]],
        ["sparse"],
        ["numpy", "float64", "00"],
        ["numpy", "object", "00"],
        ["numpy", "float64", 5],
        ["numpy", ["float64"], "00" * 8],
        ["numpy", "U9999999999", "00"],
        ["counter", [["list"], 1]],
        ["counter", 3],
    ],
)
def test_values_of_a_stranger_are_refused(wrong, tmp_path) -> None:
    tensors = {"i": torch.tensor([[4, 4, 0]]), "v": torch.ones(3, 2)}
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError, OverflowError)):
        values.restore(values.parse(json.dumps(wrong).encode()), tensors)


class Looked(nn.Module):
    """Looks its rows up: their gradients are sparse, and so is the momentum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding((x[:, 0] > 0) * 2 + (x[:, 1] > 0), self.w, sparse=True)


def test_sparse_momentum_goes_on(tmp_path) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=draw)
    y = x.sum(1, keepdim=True)

    def make():
        model = Looked()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = MiniBatchLoader((x, y), 4, order="sequential")
        return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")

    hand = Looked()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        for inputs, targets in zip(x.split(4), y.split(4), strict=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(hand(inputs), targets).backward()
            optimizer.step()
    trainer, other = make(), make()
    trainer.fit(2)
    assert trainer.optimizer.state[trainer.model.w]["momentum_buffer"].is_sparse
    other.load_state_dict(written(trainer.state_dict(), tmp_path))
    other.fit(4)
    assert torch.equal(other.model.w, hand.w)
