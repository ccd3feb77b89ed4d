"""Derivatives of a batch's loss: its gradient, and Hessian and Gauss–Newton products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.data.tree import map_tensors, tensors_of
from gdtrain.errors import ModelError
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.gradients.loss_weights import has_own_loss
from gdtrain.training.gradients.microbatches import is_out_of_memory
from gdtrain.training.trainer import Trainer

# A tensor, or None for zeros, for each parameter.
Pieces = Sequence[Tensor | None]
# What is added up over batches: of each, as many vectors in pieces as are asked for.
OfBatch = Callable[[Batch], list[Pieces]]


def gradient(trainer: Trainer, parameters: list[Tensor]) -> OfBatch:
    """What gives ∂loss/∂θ of a batch."""
    return lambda batch: [derivatives([scalar(trainer.compute_loss(batch))], parameters)]


def hessian_products(
    trainer: Trainer, parameters: list[Tensor], vectors: list[list[Tensor]]
) -> OfBatch:
    """What gives ∂²loss/∂θ² · v of a batch for each v, by differentiating ∂loss/∂θ · v.

    The graph of the gradient is made once for all of them. Raises ModelError if an operator of the
    model has no second derivative in PyTorch.
    """

    def of(batch: Batch) -> list[Pieces]:
        loss = scalar(trainer.compute_loss(batch))
        first = derivatives([loss], parameters, create_graph=True)
        return [_along(first, parameters, v, keep=v is not vectors[-1]) for v in vectors]

    return of


def gauss_newton_products(
    trainer: Trainer, parameters: list[Tensor], vectors: list[list[Tensor]]
) -> OfBatch:
    """What gives Jᵀ (∂²loss/∂f²) J · v of a batch for each v, where J = ∂f/∂θ of the outputs f.

    J v is the derivative of Jᵀ u by u, which is linear in it (Schraudolph, 2002; the "double
    backward" form). Raises ModelError where the loss is not one of outputs alone: then there is
    no such matrix.
    """
    if has_own_loss(trainer):
        raise ModelError(
            "gauss_newton: needs loss(model(inputs), targets), and this trainer has a compute_loss "
            "of its own, of which the outputs are not known; use hessian"
        )

    def of(batch: Batch) -> list[Pieces]:
        output = trainer.forward(batch.inputs)
        connected = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
        cut = map_tensors(output, lambda t: t.detach().requires_grad_(t.requires_grad))
        loss = scalar(trainer.output_loss(cut, batch.targets))
        if any(found is not None for found in derivatives([loss], parameters, keep=True)):
            raise ModelError(
                "gauss_newton: some of what is trained is the loss's own, and no part of the "
                "outputs; use hessian, or the block of a layer of the model"
            )
        if not connected:
            return [[None] * len(parameters) for _ in vectors]
        outputs = [tensor for tensor in tensors_of(cut) if tensor.requires_grad]
        slopes = derivatives([loss], outputs, create_graph=True)
        # Of Jᵀ u any u will do, for the derivative by u does not depend on it.
        cotangents = [torch.zeros_like(tensor, requires_grad=True) for tensor in connected]
        back = derivatives(connected, parameters, cotangents, create_graph=True)
        found = []
        for v in vectors:
            forward = _along(back, cotangents, v, keep=True)
            curved = _along(
                slopes, outputs, [_dense(t, o) for t, o in zip(forward, outputs, strict=True)], True
            )
            weights = [_dense(t, o) for t, o in zip(curved, outputs, strict=True)]
            found.append(derivatives(connected, parameters, weights, keep=v is not vectors[-1]))
        return found

    return of


def derivatives(
    outputs: list[Tensor],
    inputs: list[Tensor],
    along: list[Tensor] | None = None,
    *,
    create_graph: bool = False,
    keep: bool = False,
) -> Pieces:
    """∂ Σ along · outputs / ∂ inputs; None where that is 0 for want of a connection.

    keep: whether the graph is to be used again.
    """
    if not any(output.requires_grad for output in outputs):
        return [None] * len(inputs)
    found: Pieces = torch.autograd.grad(
        outputs,
        inputs,
        along,
        retain_graph=keep or create_graph,
        create_graph=create_graph,
        allow_unused=True,
    )
    return found


def _along(first: Pieces, inputs: list[Tensor], vector: Sequence[Tensor], keep: bool) -> Pieces:
    """∂ (first · vector) / ∂ inputs of first derivatives."""
    pairs = [
        (g, v)
        for g, v in zip(first, vector, strict=True)
        if g is not None and g.requires_grad  # else a constant
    ]
    if not pairs:
        return [None] * len(inputs)
    outputs = [g for g, _ in pairs]
    try:
        second = derivatives(outputs, inputs, [v for _, v in pairs], keep=keep)
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


def _dense(piece: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if piece is None else piece


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
