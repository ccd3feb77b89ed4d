"""What a run of a program leaves to be compared, and how two of them differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from oracle.parts import Parts

State = dict[str, Any]


class Once(Exception):  # noqa: N818
    """What an event raises in model, loss, data or callback."""


@dataclass
class Trace:
    """What a run has shown.

    end: done, not finite, or refused, and why. steps: updates made, as counted by the loop.
    points: by the number of updates, model and loss after them. notes: what the user's code was
    called for, and the number of updates it saw then. looks: what was evaluated and predicted.
    history: one row per epoch. final: all that is left at the end.
    """

    end: str = "done"
    steps: int = 0
    points: dict[int, State] = field(default_factory=dict)
    notes: list[tuple[Any, ...]] = field(default_factory=list)
    looks: list[Any] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    final: State = field(default_factory=dict)


def state_of(parts: Parts) -> State:
    """Copies of what model and loss hold: parameters, buffers, extra state."""
    found = {f"model.{name}": _copy(value) for name, value in parts.model.state_dict().items()}
    if isinstance(parts.loss, nn.Module):
        found |= {f"loss.{name}": _copy(value) for name, value in parts.loss.state_dict().items()}
    return found


# Of a group; torch adds "differentiable" to those of any optimizer that has been copied.
_NO_SETTINGS = ("params", "param_names", "differentiable")


def everything(parts: Parts) -> State:
    """State, gradients, optimizer and schedule, modes and the global generator."""
    found = state_of(parts)
    for kind, module in (("model", parts.model), ("loss", parts.loss)):
        if isinstance(module, nn.Module):
            found |= {f"{kind}.{n}.grad": _copy(p.grad) for n, p in module.named_parameters()}
            modes = {n: m.training for n, m in module.named_modules() if n != "inner"}
            found[f"{kind} modes"] = modes
    for g, group in enumerate(parts.optimizer.param_groups):
        settings = {k: _copy(v) for k, v in group.items() if k not in _NO_SETTINGS}
        found |= {f"group {g} {key}": value for key, value in settings.items()}
        for p, parameter in enumerate(group["params"]):
            for key, value in sorted(parts.optimizer.state.get(parameter, {}).items()):
                found[f"optimizer {g} {p} {key}"] = _copy(value)
    if parts.scheduler is not None:
        found["schedule"] = getattr(parts.scheduler, "last_epoch", None)
        found["schedule lr"] = [float(lr) for lr in parts.scheduler.get_last_lr()]
    found["generator"] = torch.get_rng_state()
    return found


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy.to_dense() if copy.is_sparse else copy
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


# ── comparison ──────────────────────────────────────────────────────────────────────────────────


def difference(got: Trace, expected: Trace, tolerance: float | None) -> str | None:
    """The first thing in which ``got`` is not as ``expected``, in words; None if there is none.

    tolerance: relative, of each tensor's norm; None for the same bits.
    """
    if got.end != expected.end:
        return f"end: {got.end!r}, expected {expected.end!r}"
    for step in sorted(got.points):
        if step not in expected.points:
            return f"a safe point after {step} updates, which were not made by hand"
        text = _of_states(got.points[step], expected.points[step], tolerance)
        if text is not None:
            return f"after {step} updates, {text}"
    for name in ("notes", "looks", "history"):
        text = _of_lists(getattr(got, name), getattr(expected, name), tolerance)
        if text is not None:
            return f"{name}: {text}"
    if got.steps != expected.steps:
        return f"{got.steps} updates, expected {expected.steps}"
    text = _of_states(got.final, expected.final, tolerance)
    return None if text is None else f"at the end, {text}"


def _of_states(got: State, expected: State, tolerance: float | None) -> str | None:
    for name, value in expected.items():
        if name not in got:
            return f"{name} is missing"
        if not _same(got[name], value, tolerance):
            return f"{name} is {_shown(got[name])}, expected {_shown(value)}"
    extra = set(got) - set(expected)
    return f"there is {min(extra)}" if extra else None


def _of_lists(got: list[Any], expected: list[Any], tolerance: float | None) -> str | None:
    for place, (mine, theirs) in enumerate(zip(got, expected, strict=False)):
        if not _same(mine, theirs, _NUMBERS if tolerance is None else tolerance):
            return f"number {place} is {_shown(mine)}, expected {_shown(theirs)}"
    if len(got) != len(expected):
        longer = got if len(got) > len(expected) else expected
        first = _shown(longer[min(len(got), len(expected))])
        return f"{len(got)} of them, expected {len(expected)}; the first without a partner: {first}"
    return None


_NUMBERS = 1e-12  # relative, for means, which may be added up in another order


def _same(got: Any, expected: Any, tolerance: float | None) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(got, Tensor) and _same_tensors(got, expected, tolerance)
    if isinstance(expected, list | tuple):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(expected)
            and all(_same(g, e, tolerance) for g, e in zip(got, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(got, dict)
            and got.keys() == expected.keys()
            and all(_same(got[key], value, tolerance) for key, value in expected.items())
        )
    if isinstance(expected, float) and isinstance(got, float):
        if math.isnan(expected):
            return math.isnan(got)
        return math.isclose(got, expected, rel_tol=tolerance or 0.0, abs_tol=tolerance or 0.0)
    return bool(got == expected)


def _same_tensors(got: Tensor, expected: Tensor, tolerance: float | None) -> bool:
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    if torch.equal(got, expected):
        return True
    if tolerance is None or not expected.dtype.is_floating_point:
        return bool((got.isnan() & expected.isnan() | (got == expected)).all())
    apart, size = (got - expected).double().norm(), expected.double().norm()
    return bool(apart <= tolerance * (size + 1e-2))


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = ", ".join(f"{number:.9g}" for number in value.flatten()[:6].tolist())
        more = ", …" if value.numel() > 6 else ""
        return f"[{numbers}{more}] of shape {list(value.shape)}"
    return repr(value)
