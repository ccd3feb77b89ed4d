"""SVRG: the stochastic gradient corrected by a full gradient that is computed now and then."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.data.checks import whole_number
from gdtrain.errors import CheckpointError
from gdtrain.registry import register_variance_reduction
from gdtrain.settings import NamedSettings, Positive
from gdtrain.training.callbacks.variance_reduction import VarianceReduction
from gdtrain.training.gradients.parameter_vector import ParameterVector
from gdtrain.training.run import Run
from gdtrain.training.state.plain_values import is_count


class Svrg(NamedSettings):
    """An occasional full gradient corrects the batch gradients (Johnson and Zhang, 2013)."""

    every_n_steps: Positive | None = None
    """Updates between two full gradients; two passes over the data if left out."""


@register_variance_reduction("svrg", Svrg)
class SVRG(VarianceReduction):
    """Stochastic variance-reduced gradient (Johnson and Zhang, 2013, figure 1).

    Every m updates a snapshot θ̃ of the weights is taken, and the gradient of the whole data set
    there, μ̃ = ∇f(θ̃). In between

        v = ∇f_B(θ) - ∇f_B(θ̃) + μ̃,    θ ← θ - α v

    which is unbiased, and whose variance goes to 0 as θ and θ̃ go to the minimum: on smooth
    and strongly convex f the expected gap shrinks by a constant factor from snapshot to snapshot.
    θ̃ is the newest θ (option I of the paper). f_B may be a mini-batch's loss. An update costs two
    gradients of its batch, and a snapshot n. The data set is all that the loader holds: under an
    order of your own that draws a part of it, the run still goes to the minimum over all.

    every_n_steps: m. If left out, a snapshot is taken when the samples of two passes over the
    data have been used since the last, m = 2n for one sample per update, as the paper does for
    convex problems.

    Several processes share the work as in any update. The full gradient is evaluated in the mode
    of training; layers that draw random numbers or mix samples (dropout, BatchNorm) are refused,
    since f_B would be another function at θ̃ than at θ (Defazio and Bottou, 2019), and so are losses
    that are not a mean over samples.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, SVRG, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> svrg = SVRG()
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[svrg]
    ... )
    >>> history = trainer.fit(10)
    >>> history.train_loss[-1] < history.train_loss[0]
    True
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__()
        if every_n_steps is not None:
            whole_number("every_n_steps", every_n_steps, minimum=1)
        self.steps_between = every_n_steps
        self._snapshot: Tensor | None = None  # θ̃ [P]
        self._mean: Tensor | None = None  # μ̃ [P]
        self._since = (0, 0)  # updates and samples since it was taken

    def _correct(self, trainer: Run, vector: ParameterVector, batch: Batch, loss: Tensor) -> None:
        assert trainer.loader is not None
        gradient, (updates, samples) = vector.gradient(), self._since
        is_new = not set(vector.with_gradient()) <= set(self._used)  # such as a layer unfrozen
        size = int(trainer.world.sum_floats([len(batch)])[0])
        snapshot, mean, used, extra = self._snapshot, self._mean, self._used, size
        is_due = is_new or self._is_due(trainer.loader.num_samples)
        if snapshot is None or mean is None or is_due:
            self._check_function(trainer, batch)
            snapshot, updates, samples = vector.weights(), 0, 0
            mean, used = vector.full_gradient()
            extra = trainer.loader.num_samples
            corrected = gradient - gradient + mean  # θ̃ is θ; and NaN stays NaN
        else:
            with vector.at(snapshot):
                trainer.batch_gradient(batch)
                corrected = gradient - vector.gradient() + mean
        vector.set_gradient(corrected, used)
        trainer.guard.check(loss)
        self._snapshot, self._mean, self._used = snapshot, mean, used
        self._since = (updates + 1, samples + size)
        self.extra_gradients += extra

    def _is_due(self, num_samples: int) -> bool:
        updates, samples = self._since
        if self.steps_between is not None:
            return updates >= self.steps_between
        return samples >= 2 * num_samples

    def _place(self, vector: ParameterVector) -> None:
        if self._snapshot is None or self._mean is None:
            return
        for kept in (self._snapshot, self._mean):
            if kept.shape != (len(vector),) or kept.dtype != vector.dtype:
                raise CheckpointError("the state of SVRG is of a model of another size")
        self._snapshot = self._snapshot.to(vector.device)
        self._mean = self._mean.to(vector.device)

    def _forget(self) -> None:
        self._snapshot = self._mean = None

    def state_dict(self) -> dict[str, Any]:
        kept = {"snapshot": self._snapshot, "mean": self._mean, "since": list(self._since)}
        return kept | self._kept()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        snapshot, mean, (updates, samples) = state["snapshot"], state["mean"], state["since"]
        if not (is_count(updates) and is_count(samples)):
            raise ValueError("since: must be two whole numbers, of updates and of samples")
        self._take_back(state, snapshot, mean)
        self._snapshot, self._mean, self._since = snapshot, mean, (updates, samples)
