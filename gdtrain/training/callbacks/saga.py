"""SAGA: the stochastic gradient corrected by a table of the last gradient of every sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.registry import register_variance_reduction
from gdtrain.settings import NamedSettings, Positive
from gdtrain.training.callbacks.variance_reduction import VarianceReduction
from gdtrain.training.evaluating.evaluation import whole
from gdtrain.training.gradients.loss_weights import weight_of
from gdtrain.training.gradients.microbatches import parse_bytes
from gdtrain.training.gradients.parameter_vector import ParameterVector
from gdtrain.training.run import Run

_ALIKE = "needs a loss that weighs every sample alike; use svrg"


class Saga(NamedSettings):
    """A table of every sample's last gradient corrects the batch gradients (Defazio et al., 2014).
    For small data sets and models."""

    memory_limit: Positive | str = "1GiB"
    """Limit on the table, one number per sample and parameter: bytes, or 512MB, 2GiB."""


@register_variance_reduction("saga", Saga)
class SAGA(VarianceReduction):
    """SAGA (Defazio, Bach and Lacoste-Julien, 2014, equation 1), for small data sets.

    A table holds for each sample i the gradient g_i = ∇f_i(φ_i) at the weights φ_i at which it
    was last used. With a batch B of samples

        v = (1/|B|) Σ_{j ∈ B} (∇f_j(θ) - g_j) + (1/n) Σ_i g_i,    θ ← θ - α v,
        g_j ← ∇f_j(θ) for j ∈ B.

    v is unbiased where batches are drawn with replacement, and its variance goes to 0 at the
    minimum, without the full gradients that SVRG computes again and again. The table is filled at
    the first update (φ_i = θ_0, as in the paper), by n gradients of single samples; after that an
    update of one sample costs one gradient, and one of B samples the gradient of the batch and
    those of its B samples one by one. The mean of the table is kept in float64 from update to
    update. Samples that an order of your own never draws stay in it.

    memory_limit: bytes that the table of n · P numbers may take, or text such as ``512MB``. It
    is a part of every checkpoint.

    One process only. Refused are layers that draw random numbers or mix samples, and losses that
    weigh samples differently (class weights, ignored targets).

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, SAGA, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> saga = SAGA()
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[saga]
    ... )
    >>> history = trainer.fit(10)
    >>> history.train_loss[-1] < history.train_loss[0]
    True
    """

    def __init__(self, memory_limit: int | str = "1GiB") -> None:
        super().__init__()
        self.memory_limit = memory_limit
        self._limit = parse_bytes(memory_limit)
        self._table: Tensor | None = None  # [n, P]
        self._mean: Tensor | None = None  # of its rows, [P] float64

    def _obstacles(self, trainer: Run) -> list[str]:
        found = super()._obstacles(trainer)
        if trainer.world.size > 1:
            found.append("keeps its table in one process, and there are several; use svrg")
        if found or trainer.loader is None:
            return found
        needed, samples = self.state_bytes(trainer), trainer.loader.num_samples
        if needed > self._limit:
            found.append(
                f"needs a table of {samples:,} samples · {len(ParameterVector(trainer)):,} "
                f"parameters, {needed / 2**20:,.1f} MiB, over the memory_limit of "
                f"{self._limit / 2**20:,.1f} MiB; raise it, or use svrg"
            )
        if not _weighs_alike(trainer):
            found.append(_ALIKE)
        return found

    def state_bytes(self, trainer: Run) -> int:
        assert trainer.loader is not None
        vector = ParameterVector(trainer)
        return trainer.loader.num_samples * len(vector) * vector.dtype.itemsize

    def _correct(self, trainer: Run, vector: ParameterVector, batch: Batch, loss: Tensor) -> None:
        gradient, extra = vector.gradient(), 0
        if self._table is None or self._mean is None:
            self._check_function(trainer, batch)
            table, used = _gradients_of_all(trainer, vector)
            mean, extra = table.mean(dim=0, dtype=vector.wide), len(table)
        else:
            table, mean = self._table, self._mean
            with_gradient = {*self._used, *vector.with_gradient()}  # a layer may be unfrozen
            used = [name for name in vector.names if name in with_gradient]
        fresh = gradient[None]
        if len(batch) > 1:
            with vector.at():
                fresh = torch.stack([_gradient_of(trainer, vector, s) for s in batch.split(1)])
            extra += len(batch)
        rows = batch.indices.to(vector.device)
        corrected = gradient - table[rows].mean(dim=0) + mean.to(vector.dtype)
        vector.set_gradient(corrected, used)
        trainer.guard.check(loss)
        once = torch.unique(rows) if len(rows) > 1 else rows  # a sample may be in a batch twice
        before = table[once].to(vector.wide)
        table[rows] = fresh
        mean = mean + (table[once].to(vector.wide) - before).sum(dim=0) / len(table)
        self._table, self._mean, self._used = table, mean, used
        self.extra_gradients += extra

    def _place(self, vector: ParameterVector) -> None:
        if self._table is None or self._mean is None:
            return
        assert vector.trainer.loader is not None
        expected = (vector.trainer.loader.num_samples, len(vector))
        if self._table.shape != expected or self._mean.shape != expected[1:]:
            raise CheckpointError("the state of SAGA is of another number of samples or parameters")
        if self._table.dtype != vector.dtype or self._mean.dtype != vector.wide:
            raise CheckpointError("the state of SAGA is of another precision")
        self._table = self._table.to(vector.device)
        self._mean = self._mean.to(vector.device)

    def _forget(self) -> None:
        self._table = self._mean = None

    def state_dict(self) -> dict[str, Any]:
        return {"table": self._table, "mean": self._mean} | self._kept()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        table, mean = state["table"], state["mean"]
        self._take_back(state, table, mean)
        self._table, self._mean = table, mean


def _gradient_of(trainer: Run, vector: ParameterVector, sample: Batch) -> Tensor:
    trainer.batch_gradient(sample)
    return vector.gradient()


def _gradients_of_all(trainer: Run, vector: ParameterVector) -> tuple[Tensor, list[str]]:
    """The gradient of each sample, one per row, [n, P], and which parameters have a gradient.

    Raises ConfigError if the loss weighs samples differently, as may show only when a Dataset is
    read.
    """
    assert trainer.loader is not None
    count, names, weights = trainer.loader.num_samples, set(), set()
    table = torch.empty(count, len(vector), dtype=vector.dtype, device=vector.device)
    with vector.at():
        for batch in trainer.read(trainer.loader, whole(count)):
            for row, sample in zip(batch.indices.tolist(), batch.split(1), strict=True):
                table[row] = _gradient_of(trainer, vector, sample)
                weights.add(weight_of(trainer, sample))
                names |= set(vector.with_gradient())
    if len(weights) > 1:
        raise ConfigError.of("variance_reduction", f"SAGA {_ALIKE}")
    return table, [name for name in vector.names if name in names]


def _weighs_alike(trainer: Run) -> bool:
    """Whether each sample's share of a batch's normaliser is the same, as far as it is known."""
    if getattr(trainer.loss, "weight", None) is not None:
        return not isinstance(trainer.loss, nn.CrossEntropyLoss | nn.NLLLoss)
    assert trainer.loader is not None
    targets = trainer.loader.samples.targets
    if targets is None or targets.is_floating_point():
        return True
    rows = torch.arange(len(targets), device="cpu")
    each = weight_of(trainer, Batch(None, targets[:1], rows[:1]))
    all_of_them = Batch(None, targets, rows)
    return weight_of(trainer, all_of_them) == len(targets) * each > 0
