"""The exact gradient of any loss over outputs, of a batch that is cut, in two passes over it.

With o_p = m(x_p; θ) the outputs of part p and J = L(o_1, …, o_P; t) any loss of all of them,

    ∂J/∂θ = Σ_p (∂o_p/∂θ)ᵀ g_p,        g_p = ∂L/∂o_p.

The first pass gives the outputs, on which L and all g_p are computed at once, whatever L makes of
them; the second computes each part once more and carries its g_p back ("gradient caching": Gao,
Zhang, Han and Callan, 2021, section 3). It takes the memory of one part, all outputs, and the loss.

We keep the graph of the last part, which is so computed once only. The second pass starts from the
generators and buffers of the first: random layers draw the same numbers in both, and buffers end as
after one pass over the parts. Forward hooks run twice. Gradients are enabled in the first pass too,
since a model may differentiate in ``forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch
from gdtrain.data.rows import compact, join
from gdtrain.data.tree import copied, map_tensors, tensors_of
from gdtrain.errors import ModelError
from gdtrain.training.descent import backward
from gdtrain.training.gradients.accumulation import Accumulator, Added, scalar
from gdtrain.training.gradients.forward import forward
from gdtrain.training.placement.device import autocast
from gdtrain.training.placement.distributed import World
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import Keeper
from gdtrain.training.state.random_generators import RngState


def add_two_passes(
    trainer: Run,
    share: Batch,
    parts: Sequence[Batch],
    world: World,
    accumulator: Accumulator | None = None,
) -> Added:
    """Add what is this process's share of a batch's gradient to ``.grad``.

    parts: of the share, none if it is empty. The gradient is the sum over the processes; that of
    the loss's own parameters is in one of them. The loss that is returned is that of the whole
    batch in that one, and 0 in the others.
    """
    attempt = trainer.microbatches.attempt
    start = Keeper(trainer, "buffers", "generators", "own")
    outputs = attempt(lambda: _first_pass(trainer, parts))
    if trainer.outputs is not None:
        for part, output in zip(parts, outputs, strict=True):
            trainer.outputs.append((map_tensors(output.tree, Tensor.detach), part.targets))
    whole = _Whole(trainer, share, parts, outputs, world)
    added = attempt(whole.differentiate)
    del whole  # the outputs at once, and what the loss was computed on

    def second_pass() -> None:
        if accumulator is not None:
            accumulator.take()  # of the loss's own parameters
        for output in outputs[-1:]:
            output.carry_back(accumulator)
        if len(parts) > 1:
            end = Keeper(trainer, "buffers", "generators", "own")
            start.restore()
            for part, output in zip(parts[:-1], outputs[:-1], strict=True):
                output.graph = forward(trainer, _own(trainer, part, part.inputs))
                output.carry_back(accumulator)
            end.restore()

    attempt(second_pass)
    return added


class _Output:
    """What the model made of a part.

    tree: cut off from the graph, to take in ∂L/∂o. graph: the same with its graph, if it is there.
    """

    def __init__(self, graph: Any) -> None:
        self.graph: Any = graph
        self.tree = map_tensors(graph, _cut_off)

    def leaves(self) -> list[Tensor]:
        """The tensors by which the loss is to be differentiated."""
        return [tensor for tensor in tensors_of(self.tree) if tensor.requires_grad]

    def carry_back(self, accumulator: Accumulator | None) -> None:
        """Add (∂o/∂θ)ᵀ ∂L/∂o to ``.grad``, and let go of the graph."""
        graph, self.graph = list(tensors_of(self.graph)), None
        pairs = [
            (output, cut.grad)
            for output, cut in zip(graph, tensors_of(self.tree), strict=True)
            if output.requires_grad and cut.grad is not None
        ]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [g for _, g in pairs])
        if accumulator is not None:
            accumulator.take()


def _first_pass(trainer: Run, parts: Sequence[Batch]) -> list[_Output]:
    """The outputs of all parts, the last one's with its graph."""
    outputs = []
    for part in parts[:-1]:
        # A copy, since a model that works in place would otherwise be given its own work again.
        output = _Output(forward(trainer, copied(part.inputs)))
        output.graph = None
        outputs.append(output)
    return outputs + [_Output(forward(trainer, _own(trainer, p, p.inputs))) for p in parts[-1:]]


def _own(trainer: Run, batch: Batch, tree: Any) -> Any:
    """Inputs or targets of a batch that a model, or a loss, may work on in place.

    Whether or not memory runs out meanwhile.
    """
    return copied(tree) if batch.is_view or trainer.microbatches.is_auto else tree


def _cut_off(tensor: Tensor) -> Tensor:
    return compact(tensor).requires_grad_(tensor.requires_grad)


class _Whole:
    """Outputs and targets of a whole batch, of all processes, and the loss on them."""

    def __init__(
        self,
        trainer: Run,
        share: Batch,
        parts: Sequence[Batch],
        outputs: list[_Output],
        world: World,
    ) -> None:
        self.trainer = trainer
        self.world = world
        self.leaves = [leaf for output in outputs for leaf in output.leaves()]
        trees, sizes = [output.tree for output in outputs], [len(part) for part in parts]
        self.outputs = join(trees, sizes, "outputs") if trees else None
        self.targets = _own(trainer, share, share.targets) if trees else None
        self.is_first = True
        if world.size > 1:
            self._gather(sum(sizes))

    def _gather(self, size: int) -> None:
        world = self.world
        own = map_tensors((self.outputs, self.targets), lambda t: t.detach().cpu())
        shares = world.gather_objects((size, *own) if size else None)
        present = [rank for rank, share in enumerate(shares) if share is not None]
        self.is_first = world.rank == present[0]
        trees = [
            (self.outputs, self.targets)
            if rank == world.rank
            else map_tensors(shares[rank][1:], lambda t: t.to(self.trainer.device))
            for rank in present
        ]
        sizes = [shares[rank][0] for rank in present]
        self.outputs = join([outputs for outputs, _ in trees], sizes, "outputs")
        self.targets = join([targets for _, targets in trees], sizes, "targets")

    def differentiate(self) -> Added:
        """Set ∂L/∂o of this process's outputs, and return the loss as it is to be added up."""
        trainer = self.trainer
        before = RngState.take(trainer.device) if self.world.size > 1 else None
        with autocast(trainer.precision, trainer.device):
            loss = trainer.terms.loss_of(trainer.output_loss(self.outputs, self.targets))
            loss = scalar(loss)
        if before is not None and not before.is_current(trainer.device):
            raise ModelError(
                "loss: draws random numbers, which are others on each of several processes; "
                "give it a generator with a fixed seed, or use one process"
            )
        scaled = loss if trainer.loss_scale is None else trainer.loss_scale.of(loss)
        if self.is_first and (loss.requires_grad or self.world.size == 1):
            backward(scaled)
        elif self.leaves and loss.requires_grad:
            scaled.backward(inputs=self.leaves)  # type: ignore[no-untyped-call]
        own = loss.detach() if self.is_first else torch.zeros_like(loss)
        return Added(own, has_graph=loss.requires_grad)
