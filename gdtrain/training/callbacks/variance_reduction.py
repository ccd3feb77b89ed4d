"""What SVRG and SAGA have in common: a correction whose gradient has less variance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.tree import map_tensors
from gdtrain.errors import CheckpointError, ConfigError, ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.evaluating.evaluation import WithoutGraph
from gdtrain.training.gradients.loss_weights import adds_up, has_known_mean
from gdtrain.training.gradients.parameter_vector import ParameterVector
from gdtrain.training.gradients.separable import described, draws, mixes
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import Keeper, named_modules, unchanged
from gdtrain.training.state.plain_values import is_count

# Relative; what float32's rounding in sums does not reach.
_DIFFERENT = 1e-4


class VarianceReduction(Callback, ABC):
    """Base of the corrections: puts v in the place of the batch's gradient ∇f_B(θ).

    v is as ∇f_B(θ) on average, and its variance goes to 0 with the distance to a minimum, so that
    a constant learning rate reaches it. The optimizer then does with v what it does with a
    gradient: momentum, weight decay and clipping come after. Runs eagerly.

    extra_gradients: how many gradients of single samples have been computed besides those of the
    batches.
    """

    extra_gradients = 0

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] | None = None  # of what the kept vectors are made of
        self._used: list[str] = []  # of the parameters that have a gradient
        self._vector: ParameterVector | None = None
        self._loaded = False  # a state, with which no update has been made yet
        self._first_step: int | None = None  # that this fit makes, until one was corrected

    def check(self, trainer: Run) -> None:
        """Raise ConfigError if the trainer's gradients can't be corrected, saying why."""
        for reason in self._obstacles(trainer):
            raise self._refusal(reason)

    def on_fit_start(self, trainer: Run) -> None:
        self.check(trainer)
        self._vector = None  # the data may be another than in the last fit
        self._vector_of(trainer)
        self._first_step = trainer.progress.step

    def on_epoch_end(self, trainer: Run, record: dict[str, Any]) -> None:
        first, self._first_step = self._first_step, None
        if first is not None and record["step"] > first:
            raise ModelError(
                f"variance_reduction: {type(trainer).__name__}.train_step makes updates without "
                f"{type(self).__name__}; let it call super().train_step, or emit on_gradient"
            )

    def on_gradient(self, trainer: Run, batch: Batch, loss: Tensor) -> None:
        self._first_step = None
        for reason in _unlike_layers(trainer):  # modes may have changed
            raise self._refusal(reason)
        vector = self._vector_of(trainer)
        self._correct(trainer, vector, _as_read(trainer, batch), loss)

    @abstractmethod
    def _correct(self, trainer: Run, vector: ParameterVector, batch: Batch, loss: Tensor) -> None:
        """Correct ``.grad``, check it, then keep what the next updates need."""

    def _vector_of(self, trainer: Run) -> ParameterVector:
        """What the optimizer trains now; if that is not what it was, nothing is kept of before."""
        if self._vector is None or not self._vector.is_current(trainer):
            vector = ParameterVector(trainer)
            if self._names is not None and self._names != vector.names:
                if self._loaded:
                    raise CheckpointError(f"the state of {type(self).__name__} is of another model")
                self._forget()
            self._place(vector)
            self._vector, self._names, self._loaded = vector, vector.names, False
        return self._vector

    @abstractmethod
    def _place(self, vector: ParameterVector) -> None:
        """Bring what is kept to the device. Raises CheckpointError if it is of another size."""

    @abstractmethod
    def _forget(self) -> None:
        """Let go of what is kept, to begin again."""

    def _check_function(self, trainer: Run, batch: Batch) -> None:
        """Raise ConfigError if the batch's loss is another from pass to pass, or no mean.

        Of several processes, all raise what one has found.
        """
        found = _obstacle_in(trainer, batch) if len(batch) else ""
        if message := next(filter(None, trainer.world.gather_text(found)), None):
            raise self._refusal(message)

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError.of("variance_reduction", f"{type(self).__name__} {reason}")

    def _obstacles(self, trainer: Run) -> list[str]:
        loader, found = trainer.loader, []
        if loader is not None and loader.is_stream:
            found.append("needs every sample again and again, and a stream gives each once")
        if trainer.is_sharded:
            found.append("can't be used with strategy: shard; use replicate")
        if trainer.needs_closure:
            found.append("corrects one gradient per update, and L-BFGS evaluates several")
        if adds_up(trainer):
            found.append("needs a loss that averages over the samples; use reduction='mean'")
        return [*found, *_unlike_layers(trainer)]

    def _kept(self) -> dict[str, Any]:
        """What :meth:`_take_back` needs of a state."""
        return {"names": self._names or [], "used": self._used, "extra": self.extra_gradients}

    def _take_back(self, state: dict[str, Any], *tensors: Tensor | None) -> None:
        """Take back what :meth:`_kept` gave; raise ValueError for what it can't have given."""
        names, used, extra = state["names"], state["used"], state["extra"]
        words = [*names, *used]
        if not (all(isinstance(word, str) for word in words) and set(used) <= set(names)):
            raise ValueError("names: they are not those of parameters")
        if not is_count(extra):
            raise ValueError("extra: must be a number of gradients")
        if len({tensor is None for tensor in tensors}) > 1:
            raise ValueError("one of the kept vectors is missing")
        for tensor in tensors:
            if tensor is None:
                continue
            if not (tensor.is_floating_point() and bool(torch.isfinite(tensor).all())):
                raise ValueError("a kept gradient is not finite")
        self._names, self._used, self.extra_gradients = list(names) or None, list(used), extra
        self._vector, self._loaded = None, True


def _obstacle_in(trainer: Run, batch: Batch) -> str:
    """What keeps the batch's loss from being a mean of functions of single samples, or ""."""
    with unchanged(trainer):
        start, without_graph = Keeper(trainer, "buffers", "own", whole=True), WithoutGraph()

        def value(part: Batch) -> float:
            loss = without_graph(partial(trainer.batch_loss, part.copy()))
            start.restore()
            return float(loss)

        whole, again = value(batch), value(batch)
        if not (whole == again or math.isnan(whole)):
            return (
                f"compares gradients of the same function, and two passes give {whole:.6g} and "
                f"{again:.6g}: something draws random numbers in each; leave it out"
            )
        if len(batch) < 2 or has_known_mean(trainer, batch):
            return ""
        mean = sum(value(part) for part in batch.split(1)) / len(batch)
    if math.isclose(whole, mean, rel_tol=_DIFFERENT, abs_tol=_DIFFERENT * 1e-3):
        return ""
    return (
        f"needs a loss that averages over the samples, and this one is {whole:.6g} for a batch and "
        f"{mean:.6g} as the mean over its samples"
    )


def _as_read(trainer: Run, batch: Batch) -> Batch:
    """The batch as it was before its own pass, which may have worked in place on its tensors."""
    touched = []

    def note(tensor: Tensor) -> Tensor:
        touched.append(tensor._version > 0)
        return tensor

    map_tensors((batch.inputs, batch.targets), note)
    if not any(touched):
        return batch
    assert trainer.loader is not None
    plan = Plan(0, len(batch), len(batch), batch.indices.cpu())
    return next(trainer.read(trainer.loader, plan, shared=False))


def _unlike_layers(trainer: Run) -> Iterator[str]:
    """Why a layer is another function in another pass, a text for each that is."""
    for layer, name in named_modules(trainer).items():
        if message := _changes(layer):
            yield (
                f"compares gradients of the same function, and layer {described(name, layer)} "
                f"{message}; leave it out"
            )


def _changes(layer: nn.Module) -> str | None:
    if draws(layer):
        return "draws random numbers in each pass"
    if not mixes(layer):
        return None
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return "makes a sample's output depend on its batch"
    return "is another function in each pass"
