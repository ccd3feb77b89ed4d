"""The full loss as a function of the weights: its gradient, and products with its Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gdtrain.analysis.curvature.matrix import SymmetricMatrix
from gdtrain.analysis.curvature.products import (
    OfBatch,
    Pieces,
    gauss_newton_products,
    gradient,
    hessian_products,
)
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, DataError, ModelError
from gdtrain.training.blocks import known_plan
from gdtrain.training.evaluating.evaluation import WithoutGraph, whole
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.loss_weights import adds_up, has_known_mean, weight_of
from gdtrain.training.gradients.microbatches import UNMEASURED_SIZE, bytes_per_sample
from gdtrain.training.gradients.parameter_vector import held_by
from gdtrain.training.state.keeper import as_in_fit, unchanged
from gdtrain.training.state.snapshot import parameter_names
from gdtrain.training.trainer import Trainer

T = TypeVar("T")
Products = Callable[[Trainer, list[Tensor], list[list[Tensor]]], OfBatch]


class Objective:
    """J(θ), the trainer's loss over every sample of some data, and its derivatives.

    θ is what the optimizer trains, in one flat vector [P], in the order of its groups. J is what
    :meth:`Trainer.evaluate` gives as ``loss``, also where ``evaluate_in`` is ``"batches"``: model
    and loss are in eval mode, so that dropout is off, BatchNorm uses its running statistics, and J
    is one function of θ. Where it is known what the loss is divided by, it is computed in parts of
    the trainer's microbatch size, weighted so that θ's gradient is that of a BatchLoader; of
    several processes, each computes its share. Any other loss takes all samples in one part, on
    each process. All of it is in the parameters' dtype, also under bf16.

    data: a loader, of whose samples J is, the trainer's if left out; or a batch, as a Batch or
    (inputs, targets). training: J is the loss of all samples in one batch, in the modes in which
    ``fit`` trains: what a BatchLoader's descent goes down, with BatchNorm's statistics of all
    samples. Dropout draws the same masks in each look, those of the next update. parameters: those
    of θ that are looked at; all if left out.
    Nothing of the trainer, and no random number generator, is changed by any of this.

    Raises DataError for a stream, whose samples can't be read again, ModelError for a model that
    is split over processes (``strategy: shard``), or of which a layer mixes samples that training
    would cut, and ConfigError for samples that are needed all at once and don't fit
    ``memory_limit``.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Loader | Batch | tuple[Any, Any] | None = None,
        *,
        training: bool = False,
        parameters: Sequence[Tensor] | None = None,
    ) -> None:
        self.trainer = trainer
        self.loader = rereadable(trainer, _loader_of(data))
        self.training = training
        self._only = parameters
        self._fits = False
        trained(trainer)  # raises

    @property
    def parameters(self) -> list[Tensor]:
        """What θ is made of, as of now."""
        held = trained(self.trainer)
        if self._only is None:
            return held
        only = set(self._only)
        return [parameter for parameter in held if parameter in only]

    @property
    def num_parameters(self) -> int:
        """P, the length of θ."""
        return len(Flat(self.parameters))

    @property
    def in_one(self) -> bool:
        """Whether J takes all samples, or all of a batch, at once."""
        if not has_known_mean(self.trainer, self.loader.samples):
            return True
        return self.training and self.trainer.exact_gradient.cut_by is None

    @property
    def in_batches(self) -> bool:
        """Whether J is the mean over the loader's own batches."""
        return not self.training and self.trainer.evaluate_in == "batches"

    def loss(self) -> float:
        """J(θ)."""
        without_graph = WithoutGraph()

        def once() -> float:
            total, weights = 0.0, 0.0
            with self.looked_at():
                for part, weight in self.parts(shared=True):
                    loss = without_graph(partial(self.trainer.compute_loss, part))
                    total, weights = total + weight * float(scalar(loss)), weights + weight
            if self._is_shared:
                total, weights = self.trainer.world.sum_floats([total, weights])
            return total if adds_up(self.trainer) or not weights else total / weights

        return self._look(once)

    def gradient(self) -> Tensor:
        """∂J/∂θ, [P]."""
        return self._add_up(gradient(self.trainer, self.parameters), 1)[:, 0]

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """∂²J/∂θ² · vectors exactly (Pearlmutter, 1994), of the shape of ``vectors``.

        vectors: [P], or [P, k]. One takes about as long as two gradients; of several the
        first derivative is made once. Raises ModelError if an operator of the model has no second
        derivative in PyTorch.
        """
        return self._product(hessian_products, vectors)

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """G · vectors, of their shape: the mean of Jᵀ (∂²loss/∂f²) J over the samples.

        J = ∂f/∂θ of the model's outputs f (Schraudolph, 2002, "Fast curvature matrix-vector
        products for second-order gradient descent"). What is left of the Hessian where the
        outputs' own second derivatives are left out; positive semi-definite for a loss that is
        convex in f. vectors: [P], or [P, k]. Raises ModelError for a trainer with a
        ``compute_loss`` of its own, of which the outputs are not known.
        """
        return self._product(gauss_newton_products, vectors)

    @property
    def hessian(self) -> SymmetricMatrix:
        """∂²J/∂θ², [P, P], at the present weights whenever it is asked; see
        :meth:`hessian_product`."""
        return SymmetricMatrix(self.hessian_product, self._zeros())

    @property
    def gauss_newton(self) -> SymmetricMatrix:
        """The Gauss–Newton matrix, [P, P], at the present weights whenever it is asked; see
        :meth:`gauss_newton_product`."""
        return SymmetricMatrix(self.gauss_newton_product, self._zeros())

    def check_second_derivatives(
        self, matrix: Literal["hessian", "gauss_newton"] = "hessian"
    ) -> None:
        """Raise ModelError if products with a matrix would; on the first part of the data."""
        parameters = self.parameters
        zeros = [torch.zeros_like(parameter) for parameter in parameters]
        products = hessian_products if matrix == "hessian" else gauss_newton_products
        self._once(products(self.trainer, parameters, [zeros]), 1, parts=1)

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Passes may be made, in J's mode, and what they change is put back."""
        training = None if self.training else False
        with unchanged(self.trainer, training=training), torch.enable_grad():
            if self.training:
                as_in_fit(self.trainer)
                if not self.in_one:
                    self.trainer.check_separable()
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
            if self.training and loader is trainer.loader and is_one_batch(trainer):
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

    def _zeros(self) -> Tensor:
        flat = Flat(self.parameters)
        return torch.zeros(len(flat), dtype=flat.dtype, device=flat.device)

    def _product(self, products: Products, vectors: Tensor) -> Tensor:
        parameters = self.parameters
        flat, columns = Flat(parameters), vectors.reshape(len(vectors), -1)
        pieces = [flat.split(column.to(flat.device).contiguous()) for column in columns.T]
        typed = [
            [piece.to(p.dtype) for piece, p in zip(of_one, parameters, strict=True)]
            for of_one in pieces
        ]
        work = products(self.trainer, parameters, typed)
        return self._add_up(work, len(typed)).reshape(vectors.shape)

    @property
    def _is_shared(self) -> bool:
        """Whether each of several processes computes its share alone."""
        return not (self.in_one or self.in_batches)

    def _look(self, work: Callable[[], T]) -> T:
        if self.in_one:  # no smaller size would help where memory runs out
            return work()
        return self.trainer.microbatches.look(work)

    def _add_up(self, of_batch: OfBatch, count: int) -> Tensor:
        """Σ w · of_batch(part) / Σ w over the parts of all ranks, [P, count]."""
        return self._look(lambda: self._once(of_batch, count))

    def _once(self, of_batch: OfBatch, count: int, parts: int | None = None) -> Tensor:
        trainer, parameters = self.trainer, self.parameters
        sums, weights = [[torch.zeros_like(p) for p in parameters] for _ in range(count)], 0.0
        with self.looked_at():
            for part, weight in islice(self.parts(shared=True), parts):
                weights += weight
                for held, found in zip(sums, of_batch(part), strict=True):
                    _add(held, found, weight)
        flat = Flat(parameters)
        total = torch.stack([flat.joined(of_one) for of_one in sums], dim=1)
        if self._is_shared:
            trainer.world.sum(total)
            (weights,) = trainer.world.sum_floats([weights])
        return total if adds_up(trainer) or not weights else total.div_(weights)


def _add(sums: list[Tensor], found: Pieces, weight: float) -> None:
    for held, value in zip(sums, found, strict=True):
        if value is not None:
            held.add_(value.detach(), alpha=weight)


class _OneBatch(Loader):
    """All samples in one batch, in sequence."""

    def plan(self, epoch: int) -> Plan:
        return Plan(epoch, self.num_samples, self.num_samples, None)


def _loader_of(data: Loader | Batch | tuple[Any, Any] | None) -> Loader | None:
    if data is None or isinstance(data, Loader):
        return data
    inputs, targets = data
    return _OneBatch(inputs if targets is None else (inputs, targets))


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


def by_layer(trainer: Trainer, parameters: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The parameters by the path of the module that holds them, in their order.

    Those of the model itself, or of the loss, by their own names: ``weight``, ``loss/weight``.
    """
    names, found = parameter_names(trainer), dict[str, list[Tensor]]()
    for number, parameter in enumerate(parameters):
        name = names.get(parameter, f"other/{number}")
        found.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    return found


def rereadable(trainer: Trainer, loader: Loader | None = None) -> Loader:
    """The loader, or the trainer's, if its samples can be read at any time.

    Raises ModelError if there is none, DataError if it is a stream.
    """
    check_trainer(trainer)
    loader = loader or trainer.loader
    if loader is None:
        raise ModelError("loader: missing; give one")
    if loader.is_stream:
        raise DataError("a stream's samples are read once, and this looks at all of them again")
    return loader


def check_trainer(trainer: Any) -> None:
    """Raise ModelError for a model, or anything else, in the place of a trainer."""
    if not isinstance(trainer, Trainer):
        raise ModelError(
            f"trainer: must be a Trainer, which has the model, its loss and the data; got a "
            f"{type(trainer).__name__}"
        )


def norm(tensors: list[Tensor]) -> float:
    """The 2-norm of all of them together."""
    dense = (tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors)
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensor)) ** 2 for tensor in dense))
