"""The eager pass before a capture: what model and loss do in one, and a captured step could not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gdtrain.data.batch import Batch
from gdtrain.data.samples import map_batch
from gdtrain.data.tree import tensors_of
from gdtrain.training.descent import backward
from gdtrain.training.engines.capturing.functional_step import FunctionalStep, Places, step_number
from gdtrain.training.engines.capturing.python_state import Attribute, PythonState
from gdtrain.training.engines.capturing.temporaries import FirstUses
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.placement.compiler_import import leave_compiler_out
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import unchanged

# The generators of random.random() and numpy.random.rand().
_GENERATORS = {
    "Python's generator": random._inst,
    "numpy's generator": np.random.mtrand._rand,
}
# Tensors from elsewhere that have no more elements are told apart by their values.
_SMALL = 1024


class EagerPass:
    """Loss and gradient of a batch, computed eagerly once; nothing is changed by it.

    step: the functional step of the trainer as it is. operators: all that PyTorch was asked to
    compute, and with what; where that and the step's settings are those of an earlier pass, what
    was captured then is the step still. read_memory: whether a tensor from elsewhere is told by its
    memory alone.

    Whatever model, loss and data do not fit is said as it is said without an engine. Raises
    EngineError if the pass changes what a captured step has as constants. What it makes once and
    keeps, such as a mask, stays: a second pass changes nothing then, and gives the same. So do
    attributes that each pass binds before it reads them; a third pass has them in places.
    """

    def __init__(self, trainer: Run, batch: Batch) -> None:
        places = Places(trainer)
        places.check_apart()
        seen = first = _Pass(trainer, places, batch)
        if seen.changed:
            uses = FirstUses(first.before.rebound())
            seen = _Pass(trainer, places, batch, uses)
            if seen.changed and uses.bound and seen.gives_as(first):
                places = Places(trainer, _of_own_memory(uses.bound))
                seen = _Pass(trainer, places, batch)
            if seen.changed or not seen.gives_as(first):
                first.before.restore()
                raise EngineError(
                    f"forward or the loss changes {', '.join(first.changed[:3])} in each pass; a "
                    "captured step changes parameters and buffers alone (trainer.step counts the "
                    "updates)"
                )
        unused = [name for name, gradient in seen.gradients.items() if gradient is None]
        self.step = FunctionalStep(trainer, places, unused)
        self.operators = [*self.step.settings, *seen.operators]
        self.read_memory = seen.read_memory

    def recurs(self, batch: Batch) -> bool:
        """Whether another pass over the batch shows the same, for certain; nothing stays of it."""
        again = _Pass(self.step.trainer, self.step.places, batch)
        again.before.restore()
        if again.changed or again.read_memory or self.read_memory:
            return False
        return self.operators == [*self.step.settings, *again.operators]


def _of_own_memory(attributes: list[Attribute]) -> list[Attribute]:
    """Let attributes hold copies, which nobody else has."""
    for found in attributes:
        found.hold(found.tensor.detach().clone())
    return attributes


class _Pass:
    """What one pass gives: loss, gradients, what forward leaves in the modules, what it changes.

    uses: notes those of attributes.
    """

    def __init__(
        self, trainer: Run, places: Places, batch: Batch, uses: FirstUses | None = None
    ) -> None:
        like = {name: tensor.detach().clone() for name, tensor in places.tensors.items()}
        batch = map_batch(batch, torch.clone)  # a model may work in place
        number = torch.tensor(trainer.progress.step, device=trainer.device)
        operators = Operators({"step": number, "batch": batch, **places.tensors})
        with unchanged(trainer), torch.enable_grad():
            self.before = reached(trainer, places)
            try:
                with (
                    operators,
                    unread(trainer),
                    step_number(trainer, number),
                    trainer.terms.apart(),
                    (uses or FirstUses()).watched(),
                ):
                    loss = scalar(trainer.batch_loss(batch))
                    backward(loss)
                    terms = trainer.terms.of_pass()
                left = {"": loss.detach(), **places.left(places.tensors, like)}
                left |= {str(p): term for p, term in terms.items() if isinstance(term, Tensor)}
            except BaseException:
                self.before.restore()
                raise
            places.put_back()
            self.changed = self.before.changes()
            self.gradients = {n: t.grad for n, t in places.tensors.items() if t.is_leaf}
            self.operators = [*operators.lines, *map(operators.label, left.values()), *terms]
            self.operators += [term for term in terms.values() if not isinstance(term, Tensor)]
            self.read_memory = operators.read_memory
            self._left = {name: tensor.clone() for name, tensor in left.items()}
        for name, gradient in self.gradients.items():
            if gradient is not None and gradient.layout is not torch.strided:
                raise EngineError(f"the gradient of {name} is sparse")

    def gives_as(self, other: _Pass) -> bool:
        """Whether another pass, of places that are among those of this one, gave the same bits."""
        return all(_equal(self._left[name], left) for name, left in other._left.items()) and all(
            _equal(self.gradients[name], gradient) for name, gradient in other.gradients.items()
        )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def reached(trainer: Run, places: Places) -> PythonState:
    """What a step reads that is not in its place in a module, and takes for constant."""
    roots = {"model": trainer.model, "loss": trainer.loss, "trainer": trainer}
    groups = {"optimizer.param_groups": trainer.updater.param_groups}
    return PythonState(roots | groups | _GENERATORS, places.tensors.values(), opened=trainer)


@contextmanager
def unread(trainer: Run) -> Iterator[None]:
    """Raise EngineError meanwhile if code reads what an engine changes while it makes updates."""
    watched: dict[str, Any] = {"progress": trainer.progress, "history": trainer.history}
    classes: dict[str, Any] = {name: type(found) for name, found in watched.items()}
    for name, found in watched.items():
        found.__class__ = _unreadable(name, classes[name])
    try:
        yield
    finally:
        for name, found in watched.items():
            found.__class__ = classes[name]


@cache
def _unreadable(name: str, kind: type) -> Any:
    def refuse(found: Any, attribute: str) -> Any:
        if attribute.startswith("__"):
            return object.__getattribute__(found, attribute)
        raise EngineError(
            f"trainer.{name}.{attribute} is read, which moves while a block is computed; "
            "trainer.step has the updates made, as a tensor"
        )

    return type(kind.__name__, (kind,), {"__getattribute__": refuse, "__slots__": ()})


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what PyTorch is asked to compute, in words that are the same for the same step.

    given: tensors by name, or batches. Tensors from elsewhere are told by their values or, if they
    are large, by their memory, in which whoever has captured them sees what is written there.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[Any] = []
        self.read_memory = False  # of tensors from elsewhere
        self._labels: dict[Any, str] = {}
        self._held: list[Tensor] = []  # so that no memory is used twice
        for name, tree in given.items():
            parts = (tree.inputs, tree.targets, tree.indices) if isinstance(tree, Batch) else tree
            for tensor in tensors_of(parts):
                self._name(tensor, name)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        read = [self._words(value) for value in (*arguments, *options.items())]
        result = function(*arguments, **options)
        made = result if isinstance(result, tuple | list) else (result,)
        if is_drawing(function):
            self.lines.append(("seed", torch.initial_seed()))
        self.lines.append((str(function), read, [self._name(tensor, "") for tensor in made]))
        return result

    def _words(self, value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(self._words, value))}]"
        return self.label(value) if isinstance(value, Tensor) else repr(value)

    def label(self, tensor: Tensor) -> str:
        """What a tensor is called."""
        if (key := _memory(tensor)) in self._labels:
            return self._labels[key]
        if tensor.numel() <= _SMALL and tensor.layout is torch.strided:
            return f"{tensor.dtype} {list(tensor.shape)} {tensor.detach().tolist()}"
        self.read_memory = True
        return str(key)

    def _name(self, tensor: Any, name: str) -> str:
        if not isinstance(tensor, Tensor):
            return self._words(tensor)
        self._held.append(tensor)
        form = f"{tensor.dtype} {list(tensor.shape)} {tensor.requires_grad}"
        return self._labels.setdefault(_memory(tensor), f"{name}{len(self._labels)}: {form}")


leave_compiler_out(Operators, ("__torch_dispatch__",))


def is_drawing(function: Any) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())


def _memory(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
