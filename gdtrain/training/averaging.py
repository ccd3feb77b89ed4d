"""The average of the weights over the updates, which stands still where the last ones do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Plan
from gdtrain.data.order import generator
from gdtrain.data.settings import whole_number
from gdtrain.errors import CheckpointError, ConfigError, ModelError
from gdtrain.training import state
from gdtrain.training.callbacks import Callback
from gdtrain.training.microbatches import UNMEASURED_SIZE
from gdtrain.training.parameter_vector import ParameterVector
from gdtrain.training.plain import is_count
from gdtrain.training.validation import Validation

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class Averaging(Callback):
    """Averages the weights after every k-th update, beside training (Ruppert, 1988; Polyak and
    Juditsky, 1992, equation 2).

        θ̄ ← θ̄ + (θ - θ̄) / t      the mean of the t weights so far, or, with ``decay`` d,
        θ̄ ← d θ̄ + (1 - d) θ      an exponential average, whose first value is θ.

    At a constant learning rate θ ends in a cloud around the minimum, of a variance that goes by α.
    Its mean over t updates comes as near as the best use of t samples allows: on ½(θ - x)² with
    one sample per update, E(θ̄ - θ*)² = σ² Σ_{k=1}^{t} (1 - (1-α)^k)² / t² plus a start that is
    forgotten as 1/t², so σ²/t for long runs, against ασ²/(2 - α) for θ. To average from a later
    epoch on (tail averaging) forgets the start at once.

    start_epoch: the first epoch that counts, from 1; or start_step: the first update, from 1.
    every_n_steps: k. Neighbours are alike over some 1/(αλ) updates, with λ the curvature, so that
    a k well below that loses next to nothing. Under an engine that runs blocks, a block ends at
    every k-th update once averaging has begun.

    θ̄ is kept in float64, or rounding would add up to more than averaging takes away. It changes
    nothing about training. After epochs that a :class:`Validation` looks at, θ̄ is evaluated too,
    as ``val_loss_averaged`` and so on. Running statistics of BatchNorm are not averaged: where θ̄ is
    used they are estimated anew, in a pass over the training data with all other layers in eval
    mode (after Izmailov et al., 2018, section 3.2); other buffers are the present ones.

    count: how many weights have been averaged.
    """

    def __init__(
        self,
        *,
        start_epoch: int | None = None,
        start_step: int | None = None,
        every_n_steps: int = 1,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        if start_epoch is not None and start_step is not None:
            raise ConfigError.of("start_step", "can't be set together with start_epoch")
        if decay is not None and not 0 < decay < 1:
            raise ConfigError.of("decay", f"must be > 0 and < 1, got {decay}")
        self.start_epoch = whole_number(
            "start_epoch", 1 if start_epoch is None else start_epoch, minimum=1
        )
        self.start_step = whole_number(
            "start_step", 1 if start_step is None else start_step, minimum=1
        )
        self.cadence = whole_number("every_n_steps", every_n_steps, minimum=1)
        self.every_n_steps = self.cadence  # until a fit sets the pace
        self.decay = decay
        self.count = 0
        self._mean: Tensor | None = None  # θ̄ [P], float64
        self._names: list[str] | None = None
        self._vector: ParameterVector | None = None

    def check(self, trainer: Trainer) -> None:
        """Raise ConfigError if the trainer's weights can't be averaged, saying why."""
        if trainer.is_sharded:
            said = "can't be used with strategy: shard, where no process has all weights"
            raise ConfigError.of("averaging", said)
        loader = trainer.loader
        if loader is not None and loader.is_stream and _with_statistics(trainer.model):
            said = (
                "needs a pass over the training data for the statistics of BatchNorm, and a "
                "stream is read once; use GroupNorm or LayerNorm"
            )
            raise ConfigError.of("averaging", said)

    def on_fit_start(self, trainer: Trainer) -> None:
        self.check(trainer)
        self._vector_of(trainer)
        self._set_pace(trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._set_pace(trainer)

    def is_due(self, step: int) -> bool:
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def on_safe_point(self, trainer: Trainer) -> None:
        self._set_pace(trainer)
        vector = self._vector_of(trainer)
        theta = vector.weights().to(vector.wide)
        self.count += 1
        if self._mean is None:
            self._mean = theta
        else:
            self._mean.lerp_(theta, 1 / self.count if self.decay is None else 1 - self.decay)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        judge = next((c for c in trainer.callbacks if isinstance(c, Validation)), None)
        if judge is None or not self.count or record["epoch"] % (judge.every_n_epochs or 1):
            return
        with self.applied(trainer):
            metrics = trainer.evaluate(judge.loader)
        record.update({f"val_{name}_averaged": value for name, value in metrics.items()})

    @contextmanager
    def applied(self, trainer: Trainer) -> Iterator[None]:
        """Give the trainer's model the averaged weights: to evaluate, to predict, to copy.

        Afterwards it has its own again, and modes, buffers, gradients and random number
        generators are as before. Raises ModelError if nothing has been averaged yet.
        """
        vector = self._vector_of(trainer)
        if self._mean is None:
            raise ModelError("averaging: no weights have been averaged yet; train on")
        with vector.at(self._mean.to(vector.dtype)):
            _estimate_statistics(trainer)
            yield

    def weights(self, trainer: Trainer) -> dict[str, Tensor]:
        """The averaged weights under the names of ``model.state_dict()``, which loads them."""
        with self.applied(trainer):
            return state.weights(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self._mean, "names": self._names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        count, mean, names = state["count"], state["mean"], state["names"]
        if not is_count(count) or (count > 0) != (mean is not None):
            raise ValueError("count: is not that of an average")
        if mean is not None and not (mean.ndim == 1 and bool(torch.isfinite(mean).all())):
            raise ValueError("mean: is no vector of finite numbers")
        self.count, self._mean, self._vector = count, mean, None
        self._names = None if names is None else list(names)

    def _set_pace(self, trainer: Trainer) -> None:
        """Ask for blocks that end at the cadence, from the first update that counts on."""
        progress, first = trainer.progress, -(-self.start_step // self.cadence) * self.cadence
        begun = progress.epoch + 1 >= self.start_epoch
        every = self.cadence if progress.step >= first else first
        self.every_n_steps = every if begun else None

    def _vector_of(self, trainer: Trainer) -> ParameterVector:
        if self._vector is None or self._vector.trainer is not trainer:
            self._vector = vector = ParameterVector(trainer)
            if self._mean is not None:
                fits = self._mean.shape == (len(vector),) and self._mean.dtype == vector.wide
                if not fits or self._names != vector.names:
                    raise CheckpointError("the state of Averaging is of another model")
                self._mean = self._mean.to(vector.device)
            self._names = vector.names
        return self._vector


def _with_statistics(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers whose running statistics belong to the weights."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in layers if layer.running_mean is not None]


def _estimate_statistics(trainer: Trainer) -> None:
    """Estimate the running statistics for the present weights, as the mean over large batches.

    The batches are drawn, since data may be sorted, and as alike in size as can be.
    """
    layers = _with_statistics(trainer.model)
    if not layers:
        return
    loader = trainer.loader
    assert loader is not None
    count = loader.num_samples
    parts = -(-count // max(2, trainer.microbatches.size or UNMEASURED_SIZE))
    size = -(-count // parts)
    while count % size == 1 < count:  # a last one of one sample has no variance
        size += 1
    plan = Plan(0, count, size, torch.randperm(count, generator=generator(0)))
    momenta = [layer.momentum for layer in layers]
    trainer.model.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            layer.momentum = None  # the mean over the batches
        with torch.no_grad():
            for batch in trainer.read(loader, plan, shared=False):
                trainer.forward(batch.inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
