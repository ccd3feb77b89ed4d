"""The full loss as a function of the weights: its gradient, and products with its Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from gdtrain.data.loaders import Loader
from gdtrain.errors import DataError, ModelError
from gdtrain.training.evaluation import whole
from gdtrain.training.gradient import scalar
from gdtrain.training.keeper import unchanged
from gdtrain.training.losses import adds_up, weight_of
from gdtrain.training.microbatches import is_out_of_memory
from gdtrain.training.trainer import Trainer

Derivatives = Callable[[Tensor], Sequence[Tensor | None]]


class Objective:
    """J(θ), the trainer's loss over every sample of a loader, and its derivatives.

    θ is what the optimizer trains, in one flat vector [P], in the order of its groups. J is what
    :meth:`Trainer.evaluate` gives as ``loss``: each sample once, the parts weighted by their
    normalisers (θ's exact gradient is then that of a BatchLoader), the model in eval mode, so
    that dropout is off, BatchNorm uses its running statistics, and J is one function of θ. It is
    computed in the parameters' dtype, also under bf16, in parts of the trainer's microbatch size.

    loader: the trainer's if left out. Of several processes, each computes its share.
    Nothing of the trainer, and no random number generator, is changed by any of this.

    Raises DataError for a stream, whose samples can't be read again, and ModelError for a model
    that is split over processes (``strategy: shard``).
    """

    def __init__(self, trainer: Trainer, loader: Loader | None = None) -> None:
        self.trainer = trainer
        self.loader = rereadable(trainer, loader)
        self.parameters = trained(trainer)
        self.num_parameters = sum(p.numel() for p in self.parameters)

    def gradient(self) -> Tensor:
        """∂J/∂θ, [P]."""
        return self._add_up(lambda loss: _derivatives([loss], self.parameters))

    def hessian_product(self, vector: Tensor) -> Tensor:
        """∂²J/∂θ² · vector, [P], exactly, by differentiating ∂J/∂θ · vector (Pearlmutter, 1994).

        vector: [P]. Takes about as long as two gradients. Raises ModelError if an operator of
        the model has no second derivative in PyTorch.
        """
        return self._add_up(self._along(vector))

    def check_second_derivatives(self) -> None:
        """Raise ModelError if :meth:`hessian_product` would; on the first part of the data."""
        self._once(self._along(torch.zeros_like(self._flat())), parts=1)

    def _along(self, vector: Tensor) -> Derivatives:
        """What gives ∂²loss/∂θ² · vector of a loss."""
        directions = self.unflatten(vector)

        def of(loss: Tensor) -> Sequence[Tensor | None]:
            first = _derivatives([loss], self.parameters, create_graph=True)
            pairs = [
                (g, v)
                for g, v in zip(first, directions, strict=True)
                if g is not None and g.requires_grad  # else a constant
            ]
            if not pairs:
                return [None] * len(directions)
            outputs, along = [g for g, _ in pairs], [v for _, v in pairs]
            try:
                second = _derivatives(outputs, self.parameters, along)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                said = str(error).partition("\n")[0]
                raise ModelError(f"model: has no second derivatives in PyTorch: {said}") from error
            if any(found is None for found in second) and _is_cut(outputs):
                raise ModelError(
                    "model: has no second derivatives: an autograd.Function in it is marked with "
                    "once_differentiable"
                )
            return second

        return of

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """A vector [P] in the shapes of the parameters."""
        parts = torch.split(vector, [p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def _add_up(self, derivatives: Derivatives) -> Tensor:
        """Σ_p N_p · derivatives(J_p) / Σ_p N_p over the parts p of all ranks, [P]."""
        return self.trainer.microbatches.retry(lambda: self._once(derivatives))

    def _flat(self) -> Tensor:
        first = self.parameters[0]
        return torch.zeros(self.num_parameters, dtype=first.dtype, device=first.device)

    def _once(self, derivatives: Derivatives, parts: int | None = None) -> Tensor:
        trainer, total = self.trainer, self._flat()
        sums, weights = self.unflatten(total), 0.0
        plan = whole(self.loader.num_samples, trainer.microbatches.size)
        with undisturbed(trainer):
            for part in islice(trainer.read(self.loader, plan), parts):
                weight = weight_of(trainer, part) if len(part) else 0.0
                if not weight:  # every target ignored: its mean would be 0/0
                    continue
                weights += weight
                found = derivatives(scalar(trainer.compute_loss(part)))
                for held, value in zip(sums, found, strict=True):
                    if value is not None:
                        held.add_(value.detach(), alpha=weight)
        trainer.world.sum(total)
        (weights,) = trainer.world.sum_floats([weights])
        return total if adds_up(trainer) or not weights else total.div_(weights)


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[None]:
    """Let the model be looked at, in eval mode, and put back everything that this may change."""
    with unchanged(trainer, training=False), torch.enable_grad():
        yield


def trained(trainer: Trainer) -> list[Tensor]:
    """What the optimizer trains, in the order of its groups.

    Raises ModelError if it is split over processes, or is nothing.
    """
    if trainer.is_sharded:
        raise ModelError(
            "strategy: shard splits the model over the processes, and this needs all of it; "
            "use strategy: replicate"
        )
    held = (p for group in trainer.optimizer.param_groups for p in group["params"])
    parameters = [p for p in held if p.requires_grad]
    if not parameters:
        raise ModelError("optimizer: trains no parameter that requires a gradient")
    return parameters


def rereadable(trainer: Trainer, loader: Loader | None = None) -> Loader:
    """The loader, or the trainer's, if its samples can be read at any time.

    Raises ModelError if there is none, DataError if it is a stream.
    """
    loader = loader or trainer.loader
    if loader is None:
        raise ModelError("loader: missing; give one")
    if loader.is_stream:
        raise DataError("a stream's samples are read once, and this looks at all of them again")
    return loader


def norm(tensors: list[Tensor]) -> float:
    """The 2-norm of all of them together."""
    dense = (tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors)
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensor)) ** 2 for tensor in dense))


def _derivatives(
    outputs: list[Tensor],
    parameters: list[Tensor],
    along: list[Tensor] | None = None,
    create_graph: bool = False,
) -> Sequence[Tensor | None]:
    """∂ Σ along · outputs / ∂ parameters; None where that is 0 for want of a connection."""
    if not any(output.requires_grad for output in outputs):
        return [None] * len(parameters)
    found: Sequence[Tensor | None] = torch.autograd.grad(
        outputs, parameters, along, create_graph=create_graph, allow_unused=True
    )
    return found


def _is_cut(gradients: list[Tensor]) -> bool:
    """Whether some gradient was computed by what can't be differentiated again.

    PyTorch puts an error in its place in the graph, and leaves it unconnected with what the
    gradient depends on, so that its derivative would silently be none.
    """
    todo = [gradient.grad_fn for gradient in gradients]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
    return False
