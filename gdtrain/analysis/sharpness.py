"""Sharpness, the largest eigenvalue of the full loss's Hessian, and the limit of stability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gdtrain.analysis.curvature.descended_function import descended
from gdtrain.data.loaders.loader import Loader
from gdtrain.training.trainer import Trainer

# A product with the Hessian differentiates a gradient: forward and backward passes, twice.
GRADIENTS_PER_PRODUCT = 2.0


@dataclass(frozen=True)
class Sharpness:
    """The largest eigenvalue of a Hessian.

    value: λ, the largest in the algebraic sense: of -5 and 2 it is 2.
    vector: its eigenvector, [P], of length 1, in the order of the optimizer's parameters.
    products: Hessian-vector products made. gradient_evaluations: what they cost, in gradients
    of the full loss: two each. residual: |H·vector - λ·vector|; large beside ``tolerance`` · |λ|
    if ``max_products`` ended the search. training: whether J is the loss in training mode.
    no_limit: why no limit of stability is to be compared with λ, in words: descent does not go
    down this J. None if one may be.
    """

    value: float
    vector: Tensor
    products: int
    gradient_evaluations: float
    residual: float
    training: bool = False
    no_limit: str | None = None

    def __repr__(self) -> str:
        return (
            f"Sharpness({self.value:.4g}, residual {self.residual:.2g}; vector of "
            f"{len(self.vector):,}, {self.products} products)"
        )


def largest_eigenvalue(
    trainer: Trainer,
    loader: Loader | None = None,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
    max_products: int = 100,
) -> Sharpness:
    """The largest (algebraic) eigenvalue of H = ∂²J/∂θ² at the trainer's present weights.

    J is the full loss of :class:`~gdtrain.analysis.curvature.full_loss.Objective`, over all samples
    of ``loader`` (the trainer's if left out), in the mode in which descent goes down it, where
    there is one (:func:`~gdtrain.analysis.curvature.descended_function.descended`): in training
    mode under a BatchLoader with BatchNorm, over all samples at once; else in eval mode, in
    microbatches. H is never formed: the method of Lanczos asks for products with it,
    ``max_products`` at most, each of which costs two gradient evaluations; the memory is that of as
    many vectors as products.

    start: [P], such as the vector of the last time while the weights have moved little, which
    saves products; a random one (always the same) if left out.
    tolerance: the residual, relative to \\|λ|, at which to stop. λ's own error is far smaller,
    about its square over the distance to the next eigenvalue.

    Leaves the trainer, gradients, modes, buffers and random number generators as they are.
    Raises DataError for a stream, ModelError if the model has no second derivatives.
    """
    goes_down = descended(trainer, loader)
    found = goes_down.objective.hessian.top(
        tolerance=tolerance, max_products=max_products, start=start
    )
    return Sharpness(
        float(found.values[0]),
        found.vectors[:, 0],
        found.products,
        GRADIENTS_PER_PRODUCT * found.products,
        float(found.residuals[0]),
        goes_down.objective.training,
        goes_down.why_not,
    )


def stability_limit(optimizer: torch.optim.Optimizer) -> float | None:
    """The λ · lr below which full-batch descent by ``torch.optim.SGD`` is stable.

    Along an eigenvector of a quadratic with eigenvalue λ, with weight decay counted to λ:

    * plain: e ← (1 - lr λ) e, stable below 2;
    * heavy ball, v ← β v + (1 - d) g with dampening d: below 2 (1 + β) / (1 - d)
      (Polyak, 1964, with d = 0);
    * Nesterov's momentum as PyTorch has it: below 2 (1 + β) / (1 + 2 β).

    None for other optimizers, for dampening 1, and where parameter groups differ in lr, momentum
    or weight decay: there is no such number then.
    """
    if type(optimizer) is not torch.optim.SGD:
        return None
    keys = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
    settings = {tuple(float(group[key]) for key in keys) for group in optimizer.param_groups}
    if len(settings) != 1:
        return None
    ((_, momentum, dampening, nesterov, _, maximize),) = settings
    if maximize or dampening == 1:
        return None
    if nesterov:
        return 2 * (1 + momentum) / (1 + 2 * momentum)
    return 2 * (1 + momentum) / (1 - dampening if momentum else 1)
