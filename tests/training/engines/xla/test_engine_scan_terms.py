"""Terms of a loss, and numbers that a loss logs, are those of the eager engine under the others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, Loader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.data.batch import Batch
from gdtrain.errors import NonFiniteError
from gdtrain.training.callbacks.callback import Callback

pytest.importorskip("jax")

N = 10
X = torch.linspace(-1.0, 1.0, 2 * N).reshape(N, 2)
Y = X.sin().sum(1, keepdim=True)


class Terms(Trainer):
    """A penalty beside the loss, a whole number, one of Python's, and one that is logged."""

    def compute_loss(self, batch: Batch) -> Any:
        fit = (self.model(batch.inputs) - batch.targets).square().mean()
        penalty = 0.1 * sum(p.square().sum() for p in self.model.parameters())
        self.log("largest", batch.inputs.abs().max())
        large = (batch.targets.abs() > 0.5).sum()
        return {"loss": fit + penalty, "fit": fit, "penalty": penalty, "large": large, "two": 2}

    def loss_weight(self, batch: Batch) -> int:
        return len(batch)


class Steps(Callback):
    """What the log of every step would have."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_safe_point(self, trainer: Any) -> None:
        block, losses = trainer.progress.last
        self.rows += [block.terms_of(place) for place in range(len(losses))]


def fitted(
    engine: str,
    loader: Callable[[], Loader],
    dtype: torch.dtype = torch.float64,
    kind: type[Trainer] = Terms,
    epochs: int = 3,
) -> tuple[Trainer, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = Steps()
    trainer = kind(model, None, optimizer, loader(), device="cpu", engine=engine, callbacks=[steps])
    trainer.fit(epochs)
    return trainer, steps.rows


LOADERS: dict[str, Callable[[], Loader]] = {
    "ragged": lambda: MiniBatchLoader((X, Y), 4, order="reshuffle", seed=0),
    "batch": lambda: BatchLoader((X, Y)),
    "sample": lambda: SampleLoader((X, Y), order="reshuffle", seed=0),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_scan_has_the_terms_of_every_step_and_epoch(loader: Callable[[], Loader]) -> None:
    scan, of_scan = fitted("scan", loader)
    eager, of_eager = fitted("eager", loader)
    names = {"train_fit", "train_penalty", "train_large", "train_two", "largest"}
    assert names <= scan.history[0].keys()
    for one, other in zip(scan.history, eager.history, strict=True):
        for name in (*names, "train_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-10)
    assert len(of_scan) == len(of_eager) == 3 * len(scan.loader.plan(0))
    for one, other in zip(of_scan, of_eager, strict=True):
        assert one == pytest.approx(other, rel=1e-10)


def test_losses_keep_their_dtype_beside_terms() -> None:
    trainer, _ = fitted("scan", LOADERS["batch"], torch.float32)
    eager, _ = fitted("eager", LOADERS["batch"], torch.float32)
    assert trainer.progress.last is not None
    assert trainer.progress.last[1].dtype is torch.float32
    assert trainer.history.train_loss == pytest.approx(eager.history.train_loss, rel=1e-5)


def test_terms_follow_a_step_that_is_not_finite() -> None:
    """A term may be infinite; only the loss and the gradient end a run."""

    class Later(Terms):
        def compute_loss(self, batch: Batch) -> Any:
            given = super().compute_loss(batch)
            step = self.step
            bad = torch.as_tensor(step == 5) if isinstance(step, int) else step == 5
            given["loss"] = torch.where(bad, torch.nan, given["loss"])
            return given | {"infinite": torch.tensor(1.0) / 0.0}

    for engine in ("eager", "scan"):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader, steps = LOADERS["ragged"](), Steps()
        trainer = Later(model, None, optimizer, loader, device="cpu", engine=engine)
        trainer.callbacks.append(steps)
        with pytest.raises(NonFiniteError):
            trainer.fit(3)
        assert trainer.step == 5
        assert len(steps.rows) == 5
        assert steps.rows[-1]["infinite"] == float("inf")


def test_another_name_after_foreign_code_is_captured_anew() -> None:
    class Named(Terms):
        name = "first"

        def compute_loss(self, batch: Batch) -> Any:
            given = super().compute_loss(batch)
            return {"loss": given["loss"], self.name: given["fit"]}

    class Rename(Callback):
        def on_epoch_end(self, trainer: Any, record: Any) -> None:
            trainer.name = "second"

    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callbacks = [Rename()]
    trainer = Named(
        model, None, optimizer, LOADERS["batch"](), device="cpu", engine="scan", callbacks=callbacks
    )
    trainer.fit(2)
    assert "train_first" in trainer.history[0]
    assert "train_second" in trainer.history[1]
