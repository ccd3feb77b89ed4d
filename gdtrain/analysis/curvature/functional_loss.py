"""A trainer's loss as a function of the tensors that its modules are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gdtrain.data.batch import Batch
from gdtrain.data.tree import map_tensors
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.safety.checks import explain
from gdtrain.training.state.keeper import Keeper, roots_of
from gdtrain.training.trainer import Trainer

# What torch.func raises for models that it can't take.
UNMAPPABLE = (RuntimeError, ValueError, NotImplementedError, TypeError)


def called_with(module: nn.Module, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """``module(batch)`` with other tensors in the place of its parameters and buffers, by name.

    Wherever one of these stands, its value does, and afterwards it stands there again. PyTorch
    itself goes by names: in a layer that has two of them, the last value would stay.
    """
    first: dict[Tensor, str] = {}
    values: dict[str, Tensor] = {}
    for path, layer in module.named_modules():  # each once
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                place = f"{path}.{name}" if path else name
                known = first.setdefault(tensor, place)
                if known in tensors:
                    values[place] = tensors[known]
    called: Tensor = functional_call(module, values, (batch,), tie_weights=False)
    return called


class FunctionalLoss(nn.Module):
    """A trainer's ``compute_loss`` of a batch, with other values of some parameters.

    To be used while the trainer is looked at (see
    :func:`~gdtrain.training.state.keeper.unchanged`). Every call starts from the buffers that there
    were when this was made, and leaves the batch.

    For ``torch.func``, all parameters and buffers of all modules that the trainer holds are
    arguments: what a forward pass assigns, or changes in place, is of no use outside of the
    transformation, and must be in none of them afterwards.

    parameters: those that get other values. names: theirs.
    """

    def __init__(self, trainer: Trainer, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self._trainer = trainer
        self._start = Keeper(trainer, "buffers", "own", whole=True)
        self.roots = nn.ModuleList(roots_of(trainer, whole=True))
        named: dict[Tensor, str] = {p: name for name, p in self.named_parameters()}
        self.replaced = list(parameters)
        self.names = [named.get(parameter) for parameter in parameters]

    def forward(self, batch: Batch) -> Tensor:
        inputs, targets = map_tensors((batch.inputs, batch.targets), torch.clone)
        try:
            return scalar(self._trainer.compute_loss(batch.with_trees(inputs, targets)))
        except ValueError as error:
            explain(error, batch.inputs)
            raise

    @property
    def is_mappable(self) -> bool:
        """Whether all parameters are those of modules, so that :meth:`at` can replace them."""
        return None not in self.names

    def others(self) -> dict[str, Tensor]:
        """The tensors of all modules that keep their values, by name; the buffers in copies."""
        kept = {n: p.detach() for n, p in self.named_parameters() if n not in self.names}
        return kept | {name: buffer.clone() for name, buffer in self.named_buffers()}

    def at(self, values: Sequence[Tensor], others: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss of the batch, [], for ``torch.func``: within :meth:`restored`."""
        named = zip(self.names, values, strict=True)
        replaced = {name: value for name, value in named if name is not None}
        tensors = {**others, **replaced}
        return called_with(self, tensors, batch)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Passes may be made; afterwards buffers are as they were at the start."""
        try:
            yield
        finally:
            self._start.restore()

    def once(self, batch: Batch) -> Tensor:
        """The loss of the batch, [], with its graph to the parameters as they are."""
        with self.restored():
            loss: Tensor = self(batch)
            return loss

    def with_values(self, values: Sequence[Tensor], batch: Batch) -> Tensor:
        """The loss of the batch, [], detached, of a model that torch.func can't take."""
        own = [parameter.data for parameter in self.replaced]
        try:
            for parameter, value in zip(self.replaced, values, strict=True):
                parameter.data = value.clone()
            return self.once(batch).detach()
        finally:
            for parameter, data in zip(self.replaced, own, strict=True):
                parameter.data = data
