"""The scan engine's windows and XLA settings, and its lowering of losses over labels."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers.combinations import combinations
from helpers.processes import run
from torch import nn
from torch.nn import functional as F

from gdtrain import Callback, MiniBatchLoader, SampleLoader, StepLosses, Trainer
from gdtrain.data.batch import Block, Plan
from gdtrain.training import models
from gdtrain.training.progress import Progress

jax = pytest.importorskip("jax")

N = 23


class Weighted(Trainer):
    """Reads which samples a batch has."""

    def compute_loss(self, batch):
        error = (self.model(batch.inputs) - batch.targets).square().mean(1)
        return (error * torch.linspace(0.5, 1.5, N, dtype=error.dtype)[batch.indices]).mean()


def trained(engine: str, order, size: int, *callbacks) -> tuple[Trainer, list[float]]:
    torch.manual_seed(0)
    X = torch.randn(N, 2, dtype=torch.float64)
    model = models.mlp([2], 1, hidden=[3]).double()
    losses = StepLosses()
    loader = MiniBatchLoader((X, X.sum(1, keepdim=True).tanh()), size, order=order, seed=4)
    trainer = Weighted(
        model,
        None,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5),
        loader,
        device="cpu",
        engine=engine,
        callbacks=[losses, *callbacks],
    )
    trainer.fit(3)
    return trainer, losses.losses


def weights(trainer: Trainer) -> torch.Tensor:
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


class Every(Callback):
    """Ends blocks, and looks at the weights there."""

    def on_safe_point(self, trainer: Trainer) -> None:
        assert weights(trainer).isfinite().all()


# A row is three numbers of 8 bytes: a window has four batches, or one, or the program gathers each
# batch from the data set.
ROOMS = {
    "four batches": lambda size: (4 * size * 24, 1 << 16),
    "one batch": lambda size: (1, 1 << 16),
    "no window": lambda size: (64, 1),
}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("drawn", "room"),
    combinations([("reshuffle", 3), ("sequential", 1), ([3, 3, 22, 0, 7], 2)], ROOMS, of=1),
)
def test_windows_of_any_length_and_blocks_that_end_anywhere(drawn, room, monkeypatch) -> None:
    order, size = drawn
    window, batch = ROOMS[room](size)
    monkeypatch.setattr("gdtrain.training.engines.xla.scan.MAX_BATCH_BYTES", batch)
    monkeypatch.setattr("gdtrain.training.engines.xla.window.MAX_BYTES", window)
    eager, eager_losses = trained("eager", order, size)
    scan, losses = trained("scan", order, size)
    assert losses == pytest.approx(eager_losses, rel=1e-10)
    assert torch.allclose(weights(scan), weights(eager), rtol=1e-10, atol=1e-14)
    cut, cut_losses = trained("scan", order, size, Every(every_n_steps=3))
    assert torch.equal(weights(cut), weights(scan))
    assert cut_losses == losses
    assert cut.history.train_loss == scan.history.train_loss


def test_data_changed_in_place_between_fits_counts() -> None:
    X = torch.randn(N, 2)
    Y = X[:, :1].clone()
    model = nn.Linear(2, 1)
    loader = SampleLoader((X, Y), order="reshuffle")
    trainer = Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        loader,
        device="cpu",
        engine="scan",
    )
    trainer.fit(30)
    assert trainer.history.train_loss[-1] < 1e-3
    Y.copy_(-3 * X[:, :1])
    trainer.fit(31)
    assert trainer.history.train_loss[-1] > 1
    trainer.fit(90)
    assert torch.allclose(model.weight, torch.tensor([[-3.0, 0.0]]), atol=1e-3)


def test_blocks_add_up_to_the_same_sum_wherever_they_end() -> None:
    draw = np.random.default_rng(3)
    losses = torch.from_numpy(draw.standard_normal(40_000) * 10.0 ** draw.integers(-8, 8, 40_000))
    plan = Plan(0, 3 * 40_000 - 1, 3, None)  # the last batch has two samples
    one_by_one = 0.0
    for loss in losses[:-1].tolist():
        one_by_one += loss * 3
    one_by_one += losses[-1].item() * 2
    for ends in (
        [40_000],
        [1, 2, 9, 31, 16_384, 39_999, 40_000],
        [39_968, 40_000],
        [39_967, 40_000],
    ):
        progress, start = Progress(), 0
        for stop in ends:
            block = Block(plan, start, stop, ())
            progress.count(len(block), int(block.sizes.sum()))
            progress.close(block, losses[start:stop])
            start = stop
        assert progress.epoch_loss_sum == one_by_one
        assert progress.samples == plan.num_samples
        assert progress.sizes.tolist() == plan.batch_sizes(ends[-2] if ends[1:] else 0, 40_000)
        assert progress.losses[-1] == losses[-1]


SETTINGS = """
import json, os, sys
import torch
from torch import nn
from gdtrain import SampleLoader, Trainer
if sys.argv[1:]:
    os.environ["XLA_FLAGS"] = sys.argv[1]
X = torch.randn(64, 2)
model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
trainer = Trainer(model, nn.MSELoss(), optimizer, SampleLoader((X, X[:, :1])), device="cpu",
                  engine="scan")
trainer.fit(1)
import jax
(program,) = trainer.engine._step._programs._programs.values()
small = "xla_cpu_small_call" in program._compiled.as_text()
handed_over = jax.config.values["jax_cpu_enable_async_dispatch"]
print(json.dumps([small, os.environ.get("XLA_FLAGS"), handed_over]))
"""


THREADS = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from gdtrain import BatchLoader, Trainer
threads, *given = sys.argv[1:]
torch.set_num_threads(int(threads))
os.environ.update({"PJRT_NPROC": number for number in given})
X, model = torch.randn(8, 2), nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, X[:, :1])), device="cpu",
        engine="scan").fit(2)
names = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
print(sum("XLAEigen" in name for name in names), os.environ.get("PJRT_NPROC"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no names in files")
@pytest.mark.parametrize(
    ("arguments", "threads", "left"),
    [(["1"], 1, None), pytest.param(["1", "3"], 3, "3", marks=pytest.mark.long)],
)
def test_xla_computes_with_as_many_threads_as_torch_or_as_the_user_says(
    arguments, threads, left, monkeypatch
) -> None:
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    done = run("-c", THREADS, *arguments)
    assert done.returncode == 0, done.err
    assert done.out.split() == [str(threads), str(left)]


@pytest.mark.long
@pytest.mark.parametrize("flags", [None, "--xla_backend_extra_options=xla_cpu_optimize_for_size"])
def test_loops_of_small_steps_are_one_function_unless_the_user_says_otherwise(
    flags, monkeypatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    done = run("-c", SETTINGS, *([flags] if flags else []))
    assert done.returncode == 0, done.err
    assert json.loads(done.out) == [flags is None, flags, True]


@pytest.mark.parametrize("size", [8, 64])
def test_small_products_are_part_of_the_loop(size) -> None:
    X, model = torch.randn(2 * size, 16), nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, X[:, :10]), size)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine="scan")
    trainer.fit(1)
    (program,) = trainer.engine._step._programs._programs.values()
    assert "ynn" not in program._compiled.as_text()


# ── losses over labels ──────────────────────────────────────────────────────────────────────


@pytest.mark.few(4)
@pytest.mark.parametrize("shape", [(4,), (6, 4), (5, 4, 2), (3, 4, 2, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss_and_its_gradient_are_those_of_torch(shape, reduction, weighted) -> None:
    from gdtrain.training.engines.xla.lowering import losses as lowered

    draw = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (shape[0], *shape[2:]) if shape[1:] else (), generator=draw)
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64) if weighted else None
    ignored = int(labels.flatten()[0]) if shape[1:] else -100
    code = {"none": 0, "mean": 1, "sum": 2}[reduction]
    expected = F.nll_loss(x, labels, weight, ignore_index=ignored, reduction=reduction)
    seed = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(expected, x, seed)
    with jax.enable_x64(True):
        arrays = [jax.numpy.asarray(t.detach().numpy()) for t in (x, labels)]
        scale = None if weight is None else jax.numpy.asarray(weight.numpy())
        of_targets = jax.numpy.asarray(seed.numpy())

        @jax.jit
        def both() -> tuple[jax.Array, jax.Array]:
            loss, total = lowered._nll(*arrays, scale, code, ignored)
            return loss, lowered._nll_backward(of_targets, *arrays, scale, code, ignored, total)

        loss, ours = both()
    np.testing.assert_allclose(np.asarray(loss), expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(ours), gradient, rtol=1e-12)


def test_a_label_that_does_not_exist_is_no_number() -> None:
    from gdtrain.training.engines.xla.lowering import losses as lowered

    ones = np.ones((2, 3), np.float32)
    loss_of = jax.jit(lambda labels: lowered._nll(ones, labels, None, 1, -100)[0])
    assert np.isfinite(loss_of(np.array([0, 2], np.int32)))
    for label in (-1, 3):
        assert np.isnan(loss_of(np.array([0, label], np.int32)))
