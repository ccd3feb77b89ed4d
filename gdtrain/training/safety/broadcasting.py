"""Finds a loss that compares outputs and targets whose shapes do not fit, or tells nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from gdtrain.data.tree import tensors_of
from gdtrain.training.losses.known_means import ELEMENTWISE

# Operations on two tensors, number by number, by their names in torch and Tensor, without the
# underscores of methods and the letters that stand for "in place" and "reflected" in operators.
_BY_NUMBER = {
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "truediv", "true_divide"),
    *("floordiv", "floor_divide", "pow", "float_power", "mod", "remainder", "fmod"),
    *("eq", "ne", "lt", "le", "gt", "ge", "less", "greater", "isclose", "maximum", "minimum"),
    *("max", "min", "fmax", "fmin", "where", "lerp", "addcmul", "addcdiv", "atan2", "arctan2"),
    *("hypot", "logaddexp", "logaddexp2", "xlogy", "copysign", "broadcast_tensors"),
    *("logical_and", "logical_or", "logical_xor", "and", "or", "xor"),
    *(function.__name__ for function in ELEMENTWISE),
}


class Watch(TorchFunctionMode):
    """Sees whether outputs and targets meet, number by number, in the shapes in which they came.

    Then nobody has brought these together, and if one has more dimensions than the other, the
    samples of one meet all samples of the other. ``met``: those two shapes, once that was seen. A
    loss that reshapes one of them knows what it does. ``over_one_class``: whether a cross-entropy
    had one class, of which targets that are no indices are the probability.
    """

    def __init__(self, outputs: Any, targets: Any) -> None:
        super().__init__()
        self.met: tuple[torch.Size, torch.Size] | None = None
        self.over_one_class = False
        # Tensors made of an output, or of a target, in the shape of that.
        self._of = ([*tensors_of(outputs)], [*tensors_of(targets)])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = list(tensors_of((args, kwargs or {})))
        sides = [[tensor for tensor in given if _is_in(tensor, side)] for side in self._of]
        if self.met is None and all(sides) and _is_by_number(func):
            self._look(*sides)
        if func is cross_entropy and all(sides):
            self.over_one_class |= is_over_one_class(sides[0][0], sides[1][0])
        found = func(*args, **(kwargs or {}))
        for side, of_side, other in zip(self._of, sides, reversed(sides), strict=True):
            if of_side and not other:
                shapes = {tensor.shape for tensor in of_side}
                side += [tensor for tensor in tensors_of(found) if tensor.shape in shapes]
        return found

    def _look(self, outputs: list[Tensor], targets: list[Tensor]) -> None:
        for output in outputs:
            for target in targets:
                if 0 < min(output.ndim, target.ndim) < max(output.ndim, target.ndim):
                    self.met = self.met or (output.shape, target.shape)


def is_over_one_class(output: Tensor, targets: Tensor) -> bool:
    """Whether cross-entropy with these probabilities as targets is 0 for any output, [B, 1, …]."""
    return output.ndim > 1 and output.shape[1] == 1 and targets.is_floating_point()


def _is_in(tensor: Tensor, tensors: list[Tensor]) -> bool:
    return any(tensor is other for other in tensors)


def _is_by_number(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "").strip("_")
    return name in _BY_NUMBER or (name[:1] in ("i", "r") and name[1:] in _BY_NUMBER)


def is_compiled(loss: Any) -> bool:
    """Whether torch.compile has made it."""
    marks = ("_torchdynamo_orig_callable", "_orig_mod")
    return any(hasattr(loss, m) for m in marks) or bool(getattr(loss, "_compiled_call_impl", None))
