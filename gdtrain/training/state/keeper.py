"""The one keeper of state: what a look or an undone update may change is kept, and put back."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import is_
from types import NoneType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from gdtrain.data.tree import map_tensors
from gdtrain.training.losses.terms import StepTerms
from gdtrain.training.run import Run
from gdtrain.training.state.own_state import keeps_state, taken
from gdtrain.training.state.plain_values import copied
from gdtrain.training.state.random_generators import RngState
from gdtrain.training.torch_code import (
    has_global_hooks,
    has_own_pass,
    is_in_a_mode,
    is_known_layer,
)

Part = Literal[
    "modes", "buffers", "parameters", "gradients", "optimizer", "generators", "draws", "own"
]


class Keeper:
    """Keeps parts of the state of a trainer's model and loss module, and puts them back.

    parts, each with the bits it had when :meth:`keep` was called last:

    * ``modes``: training or eval, of each module;
    * ``buffers``: by module and name, whether forward changed them in place, resized them,
      assigned others or registered new ones; and a module's extra state;
    * ``parameters``: values, and the memory that ``.data`` stood for;
    * ``gradients``: ``.grad`` of all parameters; while they are kept, there are none;
    * ``optimizer``: its state and settings, the schedule, and the counters of updates;
    * ``generators``: of Python, numpy, torch and the device, and those that modules and trainer
      hold; ``draws``: torch's on the CPU alone, which takes a microsecond;
    * ``own``: what a subclass of the trainer has registered as its state.

    whole: also of modules that a subclass holds beside them, such as a teacher, or several in a
    list or dict.
    Nothing is listed before it is kept, since a model may change at any time. A keeper that is
    used again makes no new copies where the model is still made of the same tensors.
    """

    def __init__(self, trainer: Run, *parts: Part, whole: bool = False) -> None:
        self._listing = _Listing(trainer, whole)
        self._parts = [_PARTS[part](trainer, self._listing) for part in parts]
        self.keep()

    def keep(self) -> None:
        """Keep the parts as they are now."""
        self._listing.found = None
        for part in self._parts:
            part.keep()

    def restore(self) -> None:
        """Put all parts back, bit for bit."""
        self._listing.found = None
        with torch.no_grad():
            for part in reversed(self._parts):
                part.restore()


@contextmanager
def unchanged(
    trainer: Run, training: bool | None = None, *, updates: bool = False
) -> Iterator[None]:
    """Look at model and loss: afterwards all that :class:`Keeper` keeps is as it was before.

    training: the mode of model and loss meanwhile; None leaves each module's own. updates: whether
    updates are made meanwhile, so that the optimizer's part is undone too. Parameters are copied
    only for that, or where code that is not PyTorch's might change them in a forward pass. What an
    update under way has noted, outputs for its metrics, terms and rungs used, is out of sight, and
    what passes log meanwhile is of no update, and is dropped.
    """
    modules = modules_of(roots_of(trainer, whole=True))
    parts: list[Part] = ["modes", "buffers", "gradients", "generators"]
    if trainer.own_state:
        parts.append("own")
    if updates or may_write(trainer, modules):
        parts.append("parameters")
    if updates:
        parts.append("optimizer")
    noted = trainer.outputs, trainer.called_rungs, trainer.terms
    with _same_versions(modules):
        keeper = Keeper(trainer, *parts, whole=True)
        trainer.outputs, trainer.called_rungs = None, set()
        trainer.terms = StepTerms(under_way=True)
        try:
            if training is not None:
                for root in roots_of(trainer):
                    root.train(training)
            yield
        finally:
            trainer.outputs, trainer.called_rungs, trainer.terms = noted
            keeper.restore()


def named_modules(trainer: Run) -> dict[nn.Module, str]:
    """All modules of model, loss and whatever else the trainer holds, and their paths in these."""
    found: dict[nn.Module, str] = {}
    for root in roots_of(trainer, whole=True):
        for name, module in root.named_modules():
            found.setdefault(module, name)
    return found


def as_in_fit(trainer: Run) -> None:
    """Bring the model into the mode in which it trains: layers in eval mode stay, unless all is."""
    if not trainer.model.training:
        trainer.model.train()


def may_write(trainer: Run, modules: Iterable[nn.Module]) -> bool:
    """Whether code that is not PyTorch's might change parameters in a pass: whoever sees one."""
    own = trainer.has_own("batch_loss", "compute_loss", "forward", "loss_weight")
    seen = has_global_hooks() or is_in_a_mode() or not has_own_pass()
    return own or seen or not all(map(_is_unseen, modules))


def _is_unseen(module: nn.Module) -> bool:
    """Whether PyTorch's code alone runs in a module's passes."""
    held = (p for p in module._parameters.values() if p is not None)
    watched = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in held)
    return is_stock(module) and not watched


def _same_versions(modules: Iterable[nn.Module]) -> ExitStack:
    """Let autograd take tensors for unchanged, as they are once they have their bits again.

    Else a look in the middle of an update would spoil the graph of its forward pass.
    """
    stack = ExitStack()
    held = [t for m in modules for d in (m._parameters, m._buffers) for t in d.values()]
    for tensor in held:
        if tensor is not None and type(tensor) in _PLAIN and not tensor.is_inference():
            stack.enter_context(_unsafe_preserve_version_counter(tensor))
    return stack


_PLAIN = (Tensor, nn.Parameter)


def roots_of(trainer: Run, whole: bool = False) -> list[nn.Module]:
    """The model, and the loss where it is a module; whole: and all that the trainer holds."""
    found: list[Any] = [trainer.model, trainer.loss]
    if whole:
        for name, value in vars(trainer).items():
            if name != "metrics":  # some are modules, and keep a state of their own
                found += within(value)
    return list(dict.fromkeys(m for m in found if isinstance(m, nn.Module)))


def within(value: Any) -> list[Any]:
    """A value, or what is in it if it is a list, tuple or dict."""
    if isinstance(value, list | tuple):
        return list(value)
    return list(value.values()) if isinstance(value, dict) else [value]


def modules_of(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Every module in these, each once."""
    found: dict[nn.Module, None] = {}
    waiting = list(roots)[::-1]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            if module._modules:
                waiting += [m for m in reversed(module._modules.values()) if m is not None]
    return list(found)


def is_stock(module: nn.Module) -> bool:
    """Whether its passes are PyTorch's own, seen by nobody, and leave parameters alone."""
    if getattr(module, "max_norm", None) is not None:  # an Embedding that bounds its rows
        return False
    return is_known_layer(module)


# ── the parts ───────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class _Listing:
    """The modules at one moment, listed once for all parts, if one of them asks."""

    trainer: Run
    whole: bool
    found: list[nn.Module] | None = None  # until they may be others

    def modules(self) -> list[nn.Module]:
        if self.found is None:
            self.found = modules_of(roots_of(self.trainer, self.whole))
        return self.found


@dataclass(eq=False)
class _Part:
    """One part of the state."""

    trainer: Run
    listing: _Listing

    def parameters(self) -> list[Tensor]:
        """Every parameter of modules and optimizer, each once."""
        held = [p for m in self.listing.modules() for p in m._parameters.values()]
        optimizer = self.trainer.updater
        if optimizer is not None:  # as in a copy that is sent to another process
            held += [p for group in optimizer.param_groups for p in group["params"]]
        return list(dict.fromkeys(p for p in held if p is not None and not is_lazy(p)))

    def keep(self) -> None:
        raise NotImplementedError

    def restore(self) -> None:
        raise NotImplementedError


class _Modes(_Part):
    def keep(self) -> None:
        self._modes = [(module, module.training) for module in self.listing.modules()]

    def restore(self) -> None:
        for module, mode in self._modes:
            module.training = mode


class _Memory:
    """A tensor's values, and the memory in which it holds them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Of a tensor split over processes, or a sparse one, .data can't be rebound.
        bound = tensor.layout is torch.strided and not hasattr(tensor, "full_tensor")
        self._memory = tensor.data if bound else None
        self.values = tensor.detach().clone()

    def is_as_before(self) -> bool:
        """Whether the tensor still has the memory and the shape of which the copy was made."""
        return self._memory is None or self.tensor.is_set_to(self._memory)

    def restore(self) -> None:
        if self._memory is None:
            self.tensor.copy_(self.values)
            return
        if self._memory.shape != self.values.shape:  # resized where it lay
            self._memory.resize_(self.values.shape)
        # An expanded tensor has one element in many places, to all of which nothing is written.
        each = tuple(slice(None) if step else slice(1) for step in self._memory.stride())
        self._memory[each].copy_(self.values[each])
        if not self.is_as_before():
            self.tensor.data = self._memory


class _Memories:
    """The values of several tensors; :meth:`keep` again makes no new copies of them."""

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        found = (t for t in dict.fromkeys(tensors) if t is not None and not is_lazy(t))
        self.kept = [_Memory(tensor) for tensor in found]
        self._live = [kept.tensor.data for kept in self.kept]
        self._values = [kept.values for kept in self.kept]

    def keep(self) -> bool:
        """Keep the values as they are now; False if some tensor has another memory by now."""
        if not all(kept.is_as_before() for kept in self.kept):
            return False
        torch._foreach_copy_(self._values, self._live)
        return True

    def restore(self) -> None:
        for kept in self.kept:
            kept.restore()


class _Parameters(_Part):
    _tensors: Sequence[Tensor] = ()
    _memories: _Memories

    def keep(self) -> None:
        tensors = self.parameters()
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        if not (tensors and same and self._memories.keep()):
            self._tensors, self._memories = tensors, _Memories(tensors)

    def restore(self) -> None:
        self._memories.restore()


class _Gradients(_Part):
    def keep(self) -> None:
        self._kept = [(p, p.grad) for p in self.parameters()]
        for parameter, _ in self._kept:
            parameter.grad = None

    def restore(self) -> None:
        for parameter in self.parameters():  # some may be new
            parameter.grad = None
        for parameter, gradient in self._kept:
            parameter.grad = gradient


class _Slots:
    """Which tensors stand under the names of modules, their values, and the modules' extra state.

    modules: gives all modules of concern. kinds: the dictionaries of each that are kept. All are
    listed again only where they are not as they were. To see that takes a look at each module's
    dictionaries, and so no walk of the model.
    """

    _roots: tuple[Any, ...] | None = None
    _extra: Sequence[tuple[nn.Module, Any]] = ()
    embeddings: Sequence[nn.Embedding | nn.EmbeddingBag] = ()

    def __init__(
        self, modules: Callable[[], list[nn.Module]], *kinds: Literal["_parameters", "_buffers"]
    ) -> None:
        self._modules, self._kinds = modules, kinds

    def keep(self, *roots: Any) -> None:
        """Keep them as they are now; roots: what holds the modules. Of others all is new."""
        current = roots == self._roots and not any(self._empty)
        for present, before in self._filled if current else ():
            if len(present) != len(before) or not all(map(is_, present.values(), before)):
                current = False
        if not (current and (self._none or self._memories.keep())):
            self._roots = roots
            self._list()
        if self._with_extra:
            self._extra = [(module, _extra_state(module)) for module in self._with_extra]

    def restore(self) -> None:
        for now, then in self._then:
            if list(then) != list(now.keys()) or not all(map(is_, then.values(), now.values())):
                now.clear()  # and filled in the order that they had
                now.update(then)
        self._memories.restore()
        for module, state in self._extra:
            module.set_extra_state(state)

    def _list(self) -> None:
        modules = self._modules()
        slots = [getattr(module, kind) for module in modules for kind in self._kinds]
        self._then = [(held, dict(held.items())) for held in slots]
        looked_at = [*slots, *(module._modules for module in modules)]
        self._empty = [held for held in looked_at if not held]  # dictionaries in which nothing was
        self._filled = [(held, tuple(held.values())) for held in looked_at if held]
        self._memories = _Memories(t for _, then in self._then for t in then.values())
        self._none = not self._memories.kept
        self._with_extra = [m for m in modules if has_extra_state(m)]
        self.embeddings = [m for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)]


class _Buffers(_Part):
    """What forward keeps in modules; the weights of embeddings of which it shortens rows, too."""

    _weights: Sequence[_Memory] = ()

    def __init__(self, trainer: Run, listing: _Listing) -> None:
        super().__init__(trainer, listing)
        self._slots = _Slots(listing.modules, "_buffers")

    def keep(self) -> None:
        self._slots.keep(self.trainer.model, self.trainer.loss)
        if self._slots.embeddings:
            bounded = (m for m in self._slots.embeddings if m.max_norm is not None)
            self._weights = [_Memory(m.weight) for m in bounded]

    def restore(self) -> None:
        self._slots.restore()
        for kept in self._weights:
            kept.restore()


class _Optimizer(_Part):
    def keep(self) -> None:
        trainer = self.trainer
        self._of = [_OneOptimizer(optimizer) for optimizer in trainer.optimizers.values()]
        schedules = trainer.schedule.schedulers.values()
        self._schedules = [(one, copy.deepcopy(one.state_dict())) for one in schedules]
        self._progress = trainer.progress.state_dict()
        self._lr, self._rates = trainer.progress.lr, trainer.rates
        scale = trainer.loss_scale
        self._scale = None if scale is None else scale.state_dict()

    def restore(self) -> None:
        for kept in self._of:
            kept.restore()
        for schedule, state in self._schedules:
            schedule.load_state_dict(state)
        self.trainer.progress.load_state_dict(self._progress)
        self.trainer.progress.lr, self.trainer.rates = self._lr, self._rates
        if self._scale is not None and self.trainer.loss_scale is not None:
            self.trainer.loss_scale.load_state_dict(self._scale)


class _OneOptimizer:
    """Settings and state of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._state = {p: self._copy(s) for p, s in optimizer.state.items()}
        self._groups = [
            (group, {k: v for k, v in group.items() if k != "params"}, list(group["params"]))
            for group in optimizer.param_groups
        ]
        # A schedule writes to a rate that is a tensor.
        held = (v for _, settings, _ in self._groups for v in settings.values())
        self._written = [(v, v.clone()) for v in held if isinstance(v, Tensor)]

    def restore(self) -> None:
        for tensor, then in self._written:
            tensor.copy_(then)
        state, groups = self.optimizer.state, self.optimizer.param_groups
        state.clear()
        state.update({p: self._copy(kept) for p, kept in self._state.items()})
        for group, settings, parameters in self._groups:
            group.clear()
            group.update(params=parameters, **settings)
        groups[:] = [group for group, _, _ in self._groups]

    def _copy(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What one parameter has, apart from what the optimizer will write to."""
        if type(self.optimizer) is not LBFGS or "step" in vars(self.optimizer):
            whole: dict[str, Any] = map_tensors(dict(state), torch.clone)
            return whole
        # The lists are its history: hundreds of tensors that it makes again and never writes to.
        return {
            key: list(value) if type(value) is list else map_tensors(value, torch.clone)
            for key, value in state.items()
        }


class _Generators(_Part):
    """Those of torch, and others that modules and the trainer hold.

    What a lazy layer has drawn its weights with stays drawn, for the weights stay.
    """

    def keep(self) -> None:
        self._lazy = self._are_lazy()
        self._kept = RngState.take(self.trainer.device)
        holders: list[Any] = [self.trainer, *self.listing.modules()]
        held = list(chain.from_iterable(vars(one).values() for one in holders))
        # To ask each value takes long, and most are of the same few types.
        kinds = [kind for kind in set(map(type, held)) - _OTHERS if issubclass(kind, _GENERATORS)]
        self._own = [(v, _state_of(v)) for v in held if type(v) in kinds] if kinds else []

    def restore(self) -> None:
        if not self._lazy or self._are_lazy():
            self._kept.restore(self.trainer.device)
        for own, state in self._own:
            _set_state(own, state)

    def _are_lazy(self) -> bool:
        held = (p for m in self.listing.modules() for p in m._parameters.values())
        return any(p is not None and is_lazy(p) for p in held)


class _Draws(_Part):
    def keep(self) -> None:
        self._kept = torch.default_generator.get_state()

    def restore(self) -> None:
        torch.default_generator.set_state(self._kept)


class _Tree:
    """A tensor, or nested lists, tuples and dicts of tensors and plain values: what these hold.

    Each is put back where it is, since somebody may hold a part of it.
    """

    def __init__(self, value: Any) -> None:
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        tensors: list[Tensor] = []
        self._walk(value, tensors)
        self._memories = _Memories(tensors)

    def _walk(self, value: Any, tensors: list[Tensor]) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            self._dicts.append((value, dict(value)))
        elif isinstance(value, list):
            self._lists.append((value, list(value)))
        if isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                self._walk(item, tensors)

    def keep(self) -> bool:
        """Keep the values as they are now; False if it is made of other parts by now."""
        for held, before in self._lists:
            if len(held) != len(before) or not all(map(is_, held, before)):
                return False
        for now, then in self._dicts:
            same = list(now) == list(then) and all(map(is_, now.values(), then.values()))
            if not same:
                return False
        return self._memories.keep()

    def restore(self) -> None:
        for held, before in self._lists:
            held[:] = before
        for now, then in self._dicts:
            now.clear()
            now.update(then)
        self._memories.restore()


_TREES = (Tensor, list, tuple, dict)


class _Own(_Part):
    """What is registered by name; its value, and which object that was."""

    _kept: Sequence[tuple[str, Any, Any]] = ()

    def keep(self) -> None:
        if not (self.trainer.own_state or self._kept):
            return
        held = vars(self.trainer)
        before = {name: (value, kept) for name, value, kept in self._kept}
        self._kept = [
            (name, value := held[name], self._keeping(value, *before.get(name, (None, None))))
            for name in self.trainer.own_state
        ]

    @staticmethod
    def _keeping(value: Any, before: Any, kept: Any) -> Any:
        """What keeps a value. before, kept: the value last time, and what has kept it."""
        if isinstance(value, nn.Module):
            if value is not before:
                kept = _Slots(partial(modules_of, [value]), "_parameters", "_buffers")
            kept.keep()
            return kept
        if isinstance(value, _TREES):
            is_same = isinstance(kept, _Tree) and value is before and kept.keep()
            return kept if is_same else _Tree(value)
        return taken(value, "")

    def restore(self) -> None:
        for name, value, kept in self._kept:
            if isinstance(kept, _Tree | _Slots):
                kept.restore()
            elif isinstance(value, torch.Generator):
                value.set_state(kept)
            elif keeps_state(value):
                value.load_state_dict(copied(kept, name))
            else:
                value = copied(kept, name)
            setattr(self.trainer, name, value)
        self.listing.found = None  # some are modules


_PARTS: dict[Part, type[_Part]] = {
    "modes": _Modes,
    "buffers": _Buffers,
    "parameters": _Parameters,
    "gradients": _Gradients,
    "optimizer": _Optimizer,
    "generators": _Generators,
    "draws": _Draws,
    "own": _Own,
}


_OTHERS = {bool, int, float, str, dict, list, tuple, set, OrderedDict, NoneType, Tensor}
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _state_of(own: Any) -> Any:
    if isinstance(own, torch.Generator | np.random.RandomState):
        return own.get_state()
    return own.getstate() if isinstance(own, random.Random) else own.bit_generator.state


def _set_state(own: Any, state: Any) -> None:
    if isinstance(own, torch.Generator | np.random.RandomState):
        own.set_state(state)
    elif isinstance(own, random.Random):
        own.setstate(state)
    else:
        own.bit_generator.state = state


def has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _extra_state(module: nn.Module) -> Any:
    return copy.deepcopy(module.get_extra_state())
