"""The full loss as a function of the weights: its gradient, and products with its Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, DataError, ModelError
from gdtrain.training.epoch_plan import known_plan
from gdtrain.training.evaluation import whole
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.loss_weights import adds_up, has_known_mean, weight_of
from gdtrain.training.gradients.microbatches import (
    UNMEASURED_SIZE,
    bytes_per_sample,
    is_out_of_memory,
)
from gdtrain.training.gradients.parameter_vector import held_by
from gdtrain.training.state.keeper import as_in_fit, unchanged
from gdtrain.training.trainer import Trainer

Derivatives = Callable[[Tensor], Sequence[Tensor | None]]


class Objective:
    """J(θ), the trainer's loss over every sample of a loader, and its derivatives.

    θ is what the optimizer trains, in one flat vector [P], in the order of its groups. J is what
    :meth:`Trainer.evaluate` gives as ``loss``, also where ``evaluate_in`` is ``"batches"``: model
    and loss are in eval mode, so that dropout is off, BatchNorm uses its running statistics, and J
    is one function of θ. Where it is known what the loss is divided by, it is computed in parts of
    the trainer's microbatch size, weighted so that θ's gradient is that of a BatchLoader; of
    several processes, each computes its share. Any other loss takes all samples in one part, on
    each process. All of it is in the parameters' dtype, also under bf16.

    loader: the trainer's if left out. training: J is the loss of all samples in one batch, in the
    modes in which ``fit`` trains: what a BatchLoader's descent goes down, with BatchNorm's
    statistics of all samples.
    Nothing of the trainer, and no random number generator, is changed by any of this.

    Raises DataError for a stream, whose samples can't be read again, ModelError for a model that
    is split over processes (``strategy: shard``), and ConfigError for samples that are needed all
    at once and don't fit ``memory_limit``.
    """

    def __init__(
        self, trainer: Trainer, loader: Loader | None = None, *, training: bool = False
    ) -> None:
        self.trainer = trainer
        self.loader = rereadable(trainer, loader)
        self.training = training
        self._fits = False
        trained(trainer)  # raises

    @property
    def parameters(self) -> list[Tensor]:
        """What θ is made of, as of now."""
        return trained(self.trainer)

    @property
    def num_parameters(self) -> int:
        """P, the length of θ."""
        return len(Flat(self.parameters))

    @property
    def in_one(self) -> bool:
        """Whether J takes all samples, or all of a batch, at once."""
        return self.training or not has_known_mean(self.trainer, self.loader.samples)

    @property
    def in_batches(self) -> bool:
        """Whether J is the mean over the loader's own batches."""
        return not self.training and self.trainer.evaluate_in == "batches"

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
        flat = Flat(self.parameters)
        zero = torch.zeros(len(flat), dtype=flat.dtype, device=flat.device)
        self._once(self._along(zero), parts=1)

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Passes may be made, in J's mode, and what they change is put back."""
        training = None if self.training else False
        with unchanged(self.trainer, training=training), torch.enable_grad():
            if self.training:
                as_in_fit(self.trainer)
            yield

    def parts(self, *, shared: bool = False) -> Iterator[tuple[Batch, float]]:
        """Batches, and weights w, of which J = Σ w J(batch) / Σ w; of sums, J is the Σ alone.

        To be read while the trainer is :meth:`looked_at`. None of them has weight 0, as one
        would of which every target is ignored, and whose mean so is 0/0. shared: of several
        processes, each has its own, if J is computed in parts.
        """
        trainer, loader, size = self.trainer, self.loader, self.trainer.microbatches.size
        if self.in_batches:
            plan = known_plan(trainer, loader, 0)
            batches = trainer.read(loader, plan, shared=False)
            if not self.in_one:
                batches = (part for b in batches for part in b.split(size or len(b)))
        elif self.in_one:
            self._check_fits()
            plan = whole(loader.num_samples, loader.num_samples)
            if self.training:
                plan = loader.plan(trainer.progress.epoch)
            batches = trainer.read(loader, plan, shared=False)
        else:
            plan = whole(loader.num_samples, size)
            batches = trainer.read(loader, plan, shared=shared)
        for batch in batches:
            weight = weight_of(trainer, batch) if len(batch) else 0.0
            if weight or (self.in_one and len(batch)):
                yield batch, weight or 1.0

    def _check_fits(self) -> None:
        """Raise ConfigError if passes over all samples at once would take too much memory.

        They fit where they are as few as in a part, or a batch of training is all of them.
        """
        trainer, count = self.trainer, self.loader.num_samples
        few = count <= (trainer.microbatches.size or UNMEASURED_SIZE)
        if self._fits or few or self.training or is_one_batch(trainer):
            return
        batch = next(trainer.read(self.loader, whole(count, 33), shared=False))
        with unchanged(trainer):
            needed = count * bytes_per_sample(trainer.compute_loss, batch)
        limit = trainer.microbatches.limit_at_once(trainer.device)
        if needed > limit:
            raise ConfigError.of(
                "memory_limit",
                "the loss, of which it is not known what its mean is over, needs all samples at "
                f"once, about {needed / 2**20:,.1f} MiB, which is over {limit / 2**20:,.1f} MiB; "
                "raise memory_limit, or use evaluate_in='batches', or override loss_weight",
            )
        self._fits = True

    def _along(self, vector: Tensor) -> Derivatives:
        """What gives ∂²loss/∂θ² · vector of a loss."""
        parameters = self.parameters
        directions = Flat(parameters).split(vector)

        def of(loss: Tensor) -> Sequence[Tensor | None]:
            first = _derivatives([loss], parameters, create_graph=True)
            pairs = [
                (g, v)
                for g, v in zip(first, directions, strict=True)
                if g is not None and g.requires_grad  # else a constant
            ]
            if not pairs:
                return [None] * len(directions)
            outputs, along = [g for g, _ in pairs], [v for _, v in pairs]
            try:
                second = _derivatives(outputs, parameters, along)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                text = str(error).partition("\n")[0]
                raise ModelError(f"model: has no second derivatives in PyTorch: {text}") from error
            if any(found is None for found in second) and _is_cut(outputs):
                raise ModelError(
                    "model: has no second derivatives: an autograd.Function in it is marked with "
                    "once_differentiable"
                )
            return second

        return of

    def _add_up(self, derivatives: Derivatives) -> Tensor:
        """Σ w · derivatives(J_p) / Σ w over the parts of all ranks, [P]."""
        if self.in_one:  # no smaller size would help where memory runs out
            return self._once(derivatives)
        return self.trainer.microbatches.look(lambda: self._once(derivatives))

    def _once(self, derivatives: Derivatives, parts: int | None = None) -> Tensor:
        trainer, parameters = self.trainer, self.parameters
        sums, weights = [torch.zeros_like(p) for p in parameters], 0.0
        with self.looked_at():
            for part, weight in islice(self.parts(shared=True), parts):
                weights += weight
                found = derivatives(scalar(trainer.compute_loss(part)))
                for held, value in zip(sums, found, strict=True):
                    if value is not None:
                        held.add_(value.detach(), alpha=weight)
        total = Flat(parameters).joined(sums)
        if not (self.in_one or self.in_batches):
            trainer.world.sum(total)
            (weights,) = trainer.world.sum_floats([weights])
        return total if adds_up(trainer) or not weights else total.div_(weights)


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[None]:
    """Let the model be looked at, in eval mode, and put back everything that this may change."""
    with unchanged(trainer, training=False), torch.enable_grad():
        yield


def is_one_batch(trainer: Trainer) -> bool:
    """Whether each batch of the trainer's is all samples once, and computed in one pass."""
    loader, cut = trainer.loader, trainer.microbatches
    if loader is None or loader.is_stream or loader.calls_order or trainer.world.size > 1:
        return False
    count, plan = loader.num_samples, loader.plan(trainer.progress.epoch)
    if len(plan) != 1 or plan.num_samples != count or (cut and (cut.size or 0) < count):
        return False
    return plan.indices is None or len(torch.unique(plan.batch_indices(0))) == count


def trained(trainer: Trainer) -> list[Tensor]:
    """What the optimizer trains, in the order of its groups.

    Raises ModelError if it is split over processes, or is nothing.
    """
    if trainer.is_sharded:
        raise ModelError(
            "strategy: shard splits the model over the processes, and this needs all of it; "
            "use strategy: replicate"
        )
    parameters = [p for p in held_by(trainer) if p.requires_grad]
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
