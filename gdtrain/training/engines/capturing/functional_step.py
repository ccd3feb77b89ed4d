"""One update as a pure function of weights, settings and batch: what compiled engines capture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.training.descent import backward
from gdtrain.training.engines.capturing.python_state import Attribute
from gdtrain.training.engines.capturing.without_looking import without_looking
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.losses.terms import Place
from gdtrain.training.run import Run

# Of each parameter group, in a row of settings: lr, weight_decay, momentum, 1 - dampening.
SETTINGS_PER_GROUP = 4
# What decides which of the update's terms there are.
_FLAGS = ("weight_decay", "momentum", "nesterov", "maximize")


class State(NamedTuple):
    """What an update may change, as tensors: trained parameters, others, momentum buffers.

    The others are buffers, and parameters that are not trained, which forward may write to; and
    what it binds to attributes in each pass.
    Of momentum buffers there is one for each parameter of the groups with momentum; zeros stand
    for those that the optimizer has not made yet.
    """

    trained: list[Any]
    others: list[Any]
    momenta: list[Any]

    def flat(self) -> list[Any]:
        """All of them, in the order of a captured graph's arguments."""
        return [*self.trained, *self.others, *self.momenta]


class Update(NamedTuple):
    """What an update gives.

    loss: of the batch, before it. finite: whether that and ∂J/∂θ are. terms: of the loss, and
    numbers that were logged, each [] float64.
    """

    state: State
    loss: Tensor
    finite: Tensor
    terms: dict[Place, Tensor]


def form_of(tensor: Tensor) -> tuple[Any, ...]:
    """What a captured step depends on of a tensor that it is given."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.dtype, tuple(tensor.shape), strides


def update_flags(group: dict[str, Any]) -> tuple[bool, ...]:
    """Which of the terms of SGD's update a parameter group has."""
    return tuple(bool(group[key]) for key in _FLAGS)


class FunctionalStep:
    """θ, v, buffers ← one update of torch.optim.SGD on the trainer's own ``compute_loss``.

    With g the gradient of the batch's mean loss, clipped, λ the weight decay, μ the momentum
    and τ the dampening, as in torch.optim.SGD:

        g ← g + λ θ;  v ← μ v + (1 - τ) g, the first time v ← g;  θ ← θ - α (g + μ v | v | g)

    for Nesterov's momentum, momentum, and none.

    places: of the state. unused: names of parameters that the loss does not depend on. SGD leaves
    them alone.
    A step is of model, loss and optimizer as they are when it is made, and no longer.
    """

    def __init__(self, trainer: Run, places: Places, unused: Iterable[str] = ()) -> None:
        self.trainer = trainer
        self.places = places
        groups = trainer.optimizer.param_groups
        self.groups = [
            [
                name
                for parameter in group["params"]
                if parameter.requires_grad and (name := self._name_of(parameter)) not in unused
            ]
            for group in groups
        ]
        self.trained = [name for names in self.groups for name in names]
        self.with_momentum = [
            name
            for group, names in zip(groups, self.groups, strict=True)
            for name in names
            if group["momentum"]
        ]
        self.others = [name for name in self.places.tensors if name not in set(self.trained)]
        self.flags = [update_flags(group) for group in groups]

    @property
    def settings(self) -> list[Any]:
        """What makes this step another one than that of the same model and loss at another time."""
        forms = [(name, *form_of(t)) for name, t in self.places.tensors.items()]
        clip = self.trainer.clip_grad_norm, self.trainer.clip_grad_value
        return [self.groups, self.with_momentum, self.flags, clip, forms]

    def _name_of(self, parameter: Tensor) -> str:
        name = self.places.name_of(parameter)
        if name is None:
            raise EngineError(
                f"the optimizer holds a parameter {list(parameter.shape)} that is neither the "
                "model's nor the loss's"
            )
        return name

    def tensors(self, missing: Sequence[Tensor] = ()) -> State:
        """The live tensors that make up the state.

        Momentum buffers that the optimizer lacks are zeros, and not given to it; they are made,
        or taken from among ``missing``.
        """
        places = self.places.tensors
        momenta = []
        for number, name in enumerate(self.with_momentum):
            held = self.trainer.optimizer.state.get(places[name], {}).get("momentum_buffer")
            if held is None:
                held = missing[number].zero_() if missing else torch.zeros_like(places[name])
            momenta.append(held)
        return State(
            [places[name].detach() for name in self.trained],
            [places[name].detach() for name in self.others],
            [momentum.detach() for momentum in momenta],
        )

    def keep_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Give the optimizer the momentum buffers that :meth:`tensors` made."""
        for name, momentum in zip(self.with_momentum, momenta, strict=True):
            state = self.trainer.optimizer.state[self.places.tensors[name]]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = momentum

    def groups_without_momenta(self) -> tuple[int, ...]:
        """Groups whose momentum buffers the optimizer has yet to make, if that makes a difference.

        The first update takes the gradient whole, whatever the dampening.
        """
        found = []
        for number, group in enumerate(self.trainer.optimizer.param_groups):
            held = [self.places.tensors[name] for name in self.groups[number]]
            if group["momentum"] and group["dampening"]:
                states = [self.trainer.optimizer.state.get(parameter, {}) for parameter in held]
                missing = [state.get("momentum_buffer") is None for state in states]
                if any(missing) and not all(missing):
                    raise EngineError("some parameters of a group with dampening are new to it")
                if any(missing):
                    found.append(number)
        return tuple(found)

    def settings_row(self, fresh_groups: Sequence[int] = ()) -> list[float]:
        """The optimizer's present settings, as :meth:`__call__` takes them.

        Raises EngineError if they make another step, with a term that this one lacks.
        """
        row: list[float] = []
        for number, group in enumerate(self.trainer.optimizer.param_groups):
            if update_flags(group) != self.flags[number]:
                raise EngineError("a schedule switches weight_decay or momentum on or off")
            kept = 1.0 if number in fresh_groups else 1.0 - group["dampening"]
            row += [float(group["lr"]), group["weight_decay"], group["momentum"], kept]
        return row

    def __call__(
        self, state: State, row: Tensor, number: Tensor, batch: Batch, *, looks: bool = True
    ) -> Update:
        """One update.

        row: [groups · SETTINGS_PER_GROUP], in the parameters' dtype. number: updates made before,
        shape [], int64: the trainer's ``step`` meanwhile. looks: at the gradient, too.
        Forward may write to the tensors of the state, or bind others in their places.
        """
        given = dict(zip(self.trained + self.others, state.trained + state.others, strict=True))
        after: dict[str, Tensor] = {}
        numbered = step_number(self.trainer, number)
        unseen = without_looking((self.trainer.model, self.trainer.loss))
        noted = self.trainer.terms
        with (
            torch.enable_grad(),
            numbered,
            unseen,
            noted.apart(),
            self.places.hold(given, after) as placed,
        ):
            loss = scalar(self.trainer.batch_loss(batch))
            backward(loss)
            terms = noted.of_pass()
        with torch.no_grad():
            gradients = {n: t.grad for n, t in placed.items() if t.grad is not None}
            finite = torch.isfinite(loss.detach())
            for gradient in gradients.values() if looks else ():
                finite = finite & torch.isfinite(gradient).all()
            if missing := [name for name in self.trained if name not in gradients]:
                raise EngineError(f"the loss depends on {missing[0]} in some batches only")
            gradients = self._clip(gradients)
            trained, momenta = self._descend(after, state.momenta, gradients, row)
        others = [after[name] for name in self.others]
        exact = {place: _float64(term, loss) for place, term in terms.items()}
        return Update(State(trained, others, momenta), loss.detach(), finite, exact)

    def _clip(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bound each element, then the 2-norm of all, as torch.nn.utils does."""
        norm, value = self.trainer.clip_grad_norm, self.trainer.clip_grad_value
        if value is not None:
            gradients = {name: g.clamp(-value, value) for name, g in gradients.items()}
        if norm is not None:
            squares = [gradient.square().sum() for gradient in gradients.values()]
            total = torch.stack(squares).sum().sqrt()
            scale = (norm / (total + 1e-6)).clamp(max=1.0)
            gradients = {name: gradient * scale for name, gradient in gradients.items()}
        return gradients

    def _descend(
        self,
        parameters: dict[str, Tensor],
        momenta: list[Tensor],
        gradients: dict[str, Tensor],
        row: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        given = iter(momenta)
        trained: list[Tensor] = []
        velocities: list[Tensor] = []
        for number, (names, present) in enumerate(zip(self.groups, self.flags, strict=True)):
            lr, decay, momentum, kept = row[SETTINGS_PER_GROUP * number :][:SETTINGS_PER_GROUP]
            flags = dict(zip(_FLAGS, present, strict=True))
            for name in names:
                parameter, gradient = parameters[name], gradients[name]
                if flags["maximize"]:
                    gradient = -gradient
                if flags["weight_decay"]:
                    gradient = gradient + decay * parameter
                if flags["momentum"]:
                    velocity = momentum * next(given) + kept * gradient
                    velocities.append(velocity)
                    gradient = gradient + momentum * velocity if flags["nesterov"] else velocity
                trained.append(parameter - lr * gradient)
        return trained, velocities


def _float64(term: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(term, dtype=torch.float64, device=like.device)


class Places:
    """Where model and loss hold their parameters and buffers.

    tensors: each once, by the name of its first place. temporaries: attributes that each pass binds
    before it reads them; a step leaves its own there.
    """

    def __init__(self, trainer: Run, temporaries: Sequence[Attribute] = ()) -> None:
        self.temporaries = temporaries
        self._places: list[tuple[str, dict[str, Any], str]] = []
        self._names: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        seen: set[nn.Module] = set()
        for root, suffix in ((trainer.model, ""), (trainer.loss, " of the loss")):
            if isinstance(root, nn.Module):
                for path, module in root.named_modules(seen):
                    for held in (module._parameters, module._buffers):
                        for key, tensor in held.items():
                            if tensor is not None:
                                name = (f"{path}.{key}" if path else key) + suffix
                                self._add(name, held, key, tensor)
        for found in temporaries:
            self._add(_named(found), vars(found.owner), found.key, found.tensor)

    def _add(self, name: str, held: dict[str, Any], key: str, tensor: Tensor) -> None:
        if id(tensor) not in self._names:
            self._names[id(tensor)] = name
            self.tensors[name] = tensor
        self._places.append((self._names[id(tensor)], held, key))

    def hold_what(self, others: Places) -> bool:
        """Whether other places hold the same tensors, by the same names."""
        mine, theirs = self.tensors, others.tensors
        return mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)

    def check_apart(self) -> None:
        """Raise EngineError if two tensors share memory, and so what is written to one of them."""
        strided = [
            (n, t) for n, t in self.tensors.items() if t.layout is torch.strided and t.numel()
        ]
        spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t), name) for name, t in strided)
        for (_, stop, name), (start, _, other) in pairwise(spans):
            if start < stop:
                raise EngineError(f"{name} and {other} share memory")

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a parameter or buffer; None for others."""
        return self._names.get(id(tensor))

    @contextmanager
    def hold(
        self, given: dict[str, Tensor], after: dict[str, Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        """Let the modules hold these tensors meanwhile, in the place of all that they hold.

        Yields what they hold. after: gets what forward leaves in the places, detached. Raises
        EngineError if that is of another shape, or another parameter.
        """
        placed = {
            name: tensor.detach().requires_grad_(self.tensors[name].requires_grad)
            for name, tensor in given.items()
        }
        try:
            for name, places, key in self._places:
                places[key] = placed[name]
            yield placed
            after |= self.left(placed, given)
        finally:
            for name, places, key in self._places:
                places[key] = self.tensors[name]

    def put_back(self) -> None:
        """Let the attributes hold what they held."""
        for name, places, key in self._places[len(self._places) - len(self.temporaries) :]:
            places[key] = self.tensors[name]

    def bind_copies(self) -> None:
        """Let the attributes hold what a step has left, in tensors that no other step writes to."""
        for found in self.temporaries:
            found.hold(self.tensors[_named(found)].clone())

    def left(self, placed: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """What forward has left in the places, detached.

        placed: what was there before. Raises EngineError for another parameter, and for what is
        not of the shape and dtype of ``like``.
        """
        left = [(name, places.get(key)) for name, places, key in self._places]
        ends: dict[str, Any] = dict(left)
        for name, tensor in left:
            if tensor is not ends[name]:
                raise EngineError(f"forward rebinds {name} in one of its places")
            if tensor is not placed[name] and isinstance(self.tensors[name], nn.Parameter):
                raise EngineError(f"forward rebinds parameter {name}")
            _check_form(name, like[name], tensor)
        return {name: tensor.detach() for name, tensor in ends.items()}


def _named(attribute: Attribute) -> str:
    return f"attribute {attribute.name}"


def _extent(tensor: Tensor) -> int:
    """The bytes from a tensor's first element to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((size - 1) * stride for size, stride in steps) + 1) * tensor.element_size()


def _check_form(name: str, before: Tensor, after: Any) -> None:
    """Raise EngineError if forward has left a tensor of another shape or dtype, or none."""
    if not isinstance(after, Tensor):
        raise EngineError(f"forward takes {name} away")
    for kind, was, now in (
        ("shape", list(before.shape), list(after.shape)),
        ("dtype", before.dtype, after.dtype),
    ):
        if was != now:
            raise EngineError(f"forward changes the {kind} of {name} from {was} to {now}")


@contextmanager
def step_number(trainer: Run, number: Tensor) -> Iterator[None]:
    """Let the trainer's ``step`` be this tensor of shape [], int64."""
    trainer.captured_step = number
    try:
        yield
    finally:
        trainer.captured_step = None
