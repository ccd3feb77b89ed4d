"""What L-BFGS keeps of all parameters together, which no update can be tried with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from gdtrain.training.state.plain_values import demand, is_count, is_number, shown

_COUNTS = ("func_evals", "n_iter")
_VECTORS = ("d", "prev_flat_grad")  # of one number for each of the parameters'
_NUMBERS = ("t", "H_diag", "prev_loss")
_HISTORY = ("old_dirs", "old_stps", "ro")
_FACTORS = "al"  # which it makes in its second iteration


def check(kept: Mapping[str, Any], optimizer: LBFGS) -> None:
    """Raise CheckpointError unless it is what this optimizer keeps after some iterations."""
    group = optimizer.param_groups[0]
    most, first = int(group["history_size"]), kept.get(_VECTORS[0])
    if not any(map(is_lazy, group["params"])):
        size = sum(p.numel() * (1 + p.is_complex()) for p in group["params"])
    else:  # not known before the model has its weights, but one size for all
        size = first.numel() if isinstance(first, Tensor) else 0

    def is_vector(value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == (size,)

    def is_row(key: str, value: Any) -> bool:
        kind = _is_single if key == "ro" else is_vector
        same = isinstance(value, list) and len(value) == len(kept["old_dirs"]) <= most
        return same and all(map(kind, value))

    for key in _COUNTS:
        demand(is_count(kept.get(key)), f"optimizer: {key} is no count")
    known = {*_COUNTS, *_VECTORS, *_NUMBERS, *_HISTORY, _FACTORS}
    for key in kept.keys() - known:
        demand(False, f"optimizer: {shown(key)} is nothing that L-BFGS keeps")
    if not kept["n_iter"]:
        return
    missing = sorted(known - kept.keys() - {_FACTORS})
    demand(not missing, f"optimizer: the state lacks {', '.join(missing)}")
    factors = kept.get(_FACTORS, [None] * most)
    right = {
        **{key: is_vector(kept[key]) for key in _VECTORS},
        **{key: _is_single(kept[key]) for key in _NUMBERS},
        **{key: is_row(key, kept[key]) for key in _HISTORY},
        _FACTORS: isinstance(factors, list)
        and len(factors) == most
        and all(factor is None or _is_single(factor) for factor in factors),
    }
    for key, holds in right.items():
        demand(holds, f"optimizer: {key} is not what L-BFGS keeps")


def newest(optimizer: Optimizer) -> list[Tensor]:
    """The last tensor of each list to whose end it adds, and to which it never writes.

    None of other optimizers, and before there is one.
    """
    if type(optimizer) is not LBFGS or "step" in vars(optimizer):
        return []
    states = optimizer.state.values()
    return [state[key][-1] for state in states for key in _HISTORY if state.get(key)]


def since(state: Mapping[str, Any], known: Sequence[Tensor]) -> list[Any]:
    """What is in its state besides the history up to what was the newest.

    The factors of that are left out, too: those of an iteration are in its direction ``d``.
    """
    made = [value for key, value in state.items() if key not in (*_HISTORY, _FACTORS)]
    for key in _HISTORY:
        for tensor in reversed(state.get(key, ())):
            if any(tensor is one for one in known):
                break
            made.append(tensor)
    return made


def _is_single(value: Any) -> bool:
    return is_number(value) or (isinstance(value, Tensor) and value.numel() == 1)
