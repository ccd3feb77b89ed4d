"""The average of the weights over the updates, which stands still where the last ones do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.orders.order import generator
from gdtrain.errors import CheckpointError, ConfigError, ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.validation import Validation
from gdtrain.training.evaluating.evaluation import WithoutGraph
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.microbatches import UNMEASURED_SIZE
from gdtrain.training.gradients.parameter_vector import with_values
from gdtrain.training.run import Run
from gdtrain.training.state import snapshot
from gdtrain.training.state.keeper import Keeper, as_in_fit, modules_of, roots_of
from gdtrain.training.state.plain_values import is_count
from gdtrain.training.state.snapshot import parameter_names


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
    every_n_steps: k. Weights differ little over some 1/(αλ) updates, with λ the curvature, so that
    a k well below that loses next to nothing. Under an engine that runs blocks, a block ends at
    every k-th update once averaging has begun.

    θ are all parameters of the model, and of the loss, by their names: frozen ones too, since they
    may be unfrozen later. The average of one that comes in mid-run is that since it came. θ̄ is
    kept in float64, or rounding would add up to more than averaging takes away. It changes
    nothing about training. After epochs that a :class:`Validation` looks at, θ̄ is evaluated too,
    as ``val_loss_averaged`` and so on.

    Running statistics, of BatchNorm and its like, are not averaged: where θ̄ is used they are
    estimated again, in a pass over the training data with all other layers in eval mode (after
    Izmailov et al., 2018, section 3.2). Those of layers that are in eval mode while the model
    trains are left as they are, and so are other buffers.

    count: how many weights have been averaged.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Averaging, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> averaging = Averaging()
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[averaging]
    ... )
    >>> history = trainer.fit(10)
    >>> averaging.count
    10
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
        self._means: dict[str, Tensor] = {}  # float64; of what has not moved, the values themselves
        self._before: dict[str, int] = {}  # of those that came later, the count until then
        self._loaded: tuple[Tensor, list[str]] | None = None  # all means, until there is a model
        self._frozen: list[nn.Module] = []  # layers that were in eval mode when a fit ended

    def check(self, trainer: Run) -> None:
        """Raise ConfigError if the trainer's weights can't be averaged, saying why."""
        if trainer.is_sharded:
            message = "can't be used with strategy: shard, where no process has all weights"
            raise ConfigError.of("averaging", message)
        loader = trainer.loader
        if loader is not None and loader.is_stream and _with_statistics(trainer):
            message = (
                "needs a pass over the training data for the statistics of BatchNorm, and a "
                "stream is read once; use GroupNorm or LayerNorm"
            )
            raise ConfigError.of("averaging", message)

    def on_fit_start(self, trainer: Run) -> None:
        self.check(trainer)
        self._unpack(trainer)
        self._set_pace(trainer)

    def on_epoch_start(self, trainer: Run) -> None:
        self._set_pace(trainer)

    def is_due(self, step: int) -> bool:
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def on_safe_point(self, trainer: Run) -> None:
        self._set_pace(trainer)
        if not self.is_due(trainer.progress.step):
            return  # added in mid-run, before the first that counts
        self._unpack(trainer)
        parameters = _parameters(trainer)
        means = {name: self._means.get(name) for name in parameters}  # others have gone
        self._means = {n: self._with(n, means[n], p.detach()) for n, p in parameters.items()}
        self.count += 1

    def on_epoch_end(self, trainer: Run, record: dict[str, Any]) -> None:
        judge = next((c for c in trainer.callbacks if isinstance(c, Validation)), None)
        if judge is None or not self.count or record["epoch"] % (judge.every_n_epochs or 1):
            return
        with self.applied(trainer):
            metrics = trainer.evaluate(judge.loader)
        record.update({f"val_{name}_averaged": value for name, value in metrics.items()})

    @contextmanager
    def applied(self, trainer: Run) -> Iterator[None]:
        """Give the trainer's model the averaged weights: to evaluate, to predict, to copy.

        Afterwards it has its own again, and modes, buffers, gradients and random number
        generators are as before. Raises ModelError if nothing has been averaged yet.
        """
        self._unpack(trainer)
        if not self.count:
            raise ModelError("averaging: no weights have been averaged yet; train on")
        known = [(p, self._means[n]) for n, p in _parameters(trainer).items() if n in self._means]
        with with_values(trainer, dict(known)):
            _estimate_statistics(trainer, self._frozen)
            yield

    def on_fit_end(self, trainer: Run) -> None:
        if trainer.model.training:
            self._frozen = [m for m in modules_of(roots_of(trainer)) if not m.training]

    def weights(self, trainer: Run) -> dict[str, Any]:
        """The averaged weights under the names of ``model.state_dict()``, which loads them."""
        with self.applied(trainer):
            return snapshot.weights(trainer)

    def state_dict(self) -> dict[str, Any]:
        mean, names = self._loaded or (None, None)
        if self._means:
            names, flat = list(self._means), Flat(list(self._means.values()))
            flat.dtype = flat.wide
            mean = flat.joined()
        return {"count": self.count, "mean": mean, "names": names, "before": dict(self._before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        count, mean, names = state["count"], state["mean"], state["names"]
        before = dict(state.get("before", {}))
        if not is_count(count) or (count > 0) != (mean is not None):
            raise ValueError("count: is not that of an average")
        if mean is not None and not (mean.ndim == 1 and bool(torch.isfinite(mean).all())):
            raise ValueError("mean: is no vector of finite numbers")
        if not all(is_count(at) and at < count for at in before.values()):
            raise ValueError("before: is not of parameters that came later")
        self.count, self._means, self._before = count, {}, before
        self._loaded = None if mean is None else (mean, list(names))

    def _with(self, name: str, mean: Tensor | None, theta: Tensor) -> Tensor:
        """The mean, of ``count`` weights so far, with one more taken in."""
        if mean is None or mean.shape != theta.shape:
            self._before[name] = self.count
            return theta.clone()
        if mean.dtype == theta.dtype and torch.equal(mean, theta):
            return mean
        weight = 1 / (self.count - self._before.get(name, 0) + 1)
        wide = torch.promote_types(theta.dtype, Flat([theta]).wide)
        return mean.to(wide).lerp_(theta.to(wide), weight if self.decay is None else 1 - self.decay)

    def _unpack(self, trainer: Run) -> None:
        """Give each parameter its part of a state that was loaded. Raises CheckpointError."""
        if self._loaded is None:
            return
        (mean, names), parameters = self._loaded, _parameters(trainer)
        if set(names) <= set(parameters):
            flat = Flat([parameters[name] for name in names])
            if mean.shape == (len(flat),) and mean.dtype == flat.wide:
                parts = flat.split(mean.to(flat.device))
                self._means = dict(zip(names, (part.clone() for part in parts), strict=True))
                self._loaded = None
                return
        raise CheckpointError("the state of Averaging is of another model")

    def _set_pace(self, trainer: Run) -> None:
        """Ask for blocks that end at the cadence, from the first update that counts on."""
        progress, first = trainer.progress, -(-self.start_step // self.cadence) * self.cadence
        begun = progress.epoch + 1 >= self.start_epoch
        every = self.cadence if progress.step >= first else first
        self.every_n_steps = every if begun else None


def _parameters(trainer: Run) -> dict[str, Tensor]:
    """All parameters of the model and the loss, by their names in a run's state."""
    return {name: parameter for parameter, name in parameter_names(trainer).items()}


def _with_statistics(trainer: Run) -> list[_NormBase]:
    """The layers, of model and loss, whose running statistics belong to the weights."""
    layers = [m for m in modules_of(roots_of(trainer)) if isinstance(m, _NormBase)]
    return [m for m in layers if m.track_running_stats and m.running_mean is not None]


def _estimate_statistics(trainer: Run, frozen: Sequence[nn.Module]) -> None:
    """Estimate the running statistics for the present weights, as the mean over large batches.

    Not of layers in eval mode, or, if all of the model is, of those that were when it trained last.
    The batches are drawn, since data may be sorted, and as alike in size as can be.
    """
    modes, left = Keeper(trainer, "modes"), () if trainer.model.training else frozen
    as_in_fit(trainer)
    layers = [m for m in _with_statistics(trainer) if m.training and m not in left]
    momenta, without_graph = [layer.momentum for layer in layers], WithoutGraph()
    try:
        for root in roots_of(trainer):
            root.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for number, batch in enumerate(_large_batches(trainer) if layers else (), 1):
            for layer in layers:
                layer.momentum = 1 / number  # the mean over the batches
            without_graph(partial(trainer.compute_loss, batch))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        modes.restore()


def _large_batches(trainer: Run) -> Iterator[Batch]:
    loader = trainer.loader
    assert loader is not None
    count = loader.num_samples
    parts = -(-count // max(2, trainer.microbatches.size or UNMEASURED_SIZE))
    size = -(-count // parts)
    while count % size == 1 < count:  # a last one of one sample has no variance
        size += 1
    plan = Plan(0, count, size, torch.randperm(count, generator=generator(0), device="cpu"))
    return trainer.read(loader, plan, shared=False)
