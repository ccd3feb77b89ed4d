"""Whether a state is one that a run of this configuration can have: compared with a new trainer.

A checkpoint by somebody who can compute digests has the form of a state, which
:mod:`gdtrain.training.state.compatibility` checks, and may hold anything. What follows from the
configuration and from the state's other parts is checked here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from gdtrain.training.placement.sharding import Part, local
from gdtrain.training.state import schedule_state, snapshot
from gdtrain.training.state.optimizer_state import state_after_update, take
from gdtrain.training.state.plain_values import demand, is_count, is_torchs, shown
from gdtrain.training.trainer import Trainer

# How far a rate may be from the one that its schedule has by now, as a share: rounding adds up.
_TOLERANCE = 1e-3
# By how much code of somebody's own may have raised a rate that no schedule decides.
_LARGEST_RISE = 1e6
# What a schedule moves, besides the rate, where it cycles.
_CYCLED = {"momentum", "betas"}
# What moves in torch's schedules as they go on; all else is how they were made.
_TURNING = {
    *("last_epoch", "_step_count", "_last_lr", "T_cur", "T_i", "_schedulers", "verbose"),
    *("best", "num_bad_epochs", "cooldown_counter", "lr_lambdas", "_scale_fn_custom"),
}


def check_consistent(state: Mapping[str, Any], trainer: Trainer) -> None:
    """Raise CheckpointError unless a run of ``trainer``, as it was built, can be in ``state``.

    state: of the right form. trainer: nothing has been put into it yet.
    """
    _check_counters(state, trainer)
    _check_phase(state, trainer)
    _check_generators(state)
    if len(trainer.optimizers) > 1:  # each of which has been compared with its own
        return
    _check_settings(state["optimizer"]["groups"], trainer)
    _check_schedule(state, trainer)
    _check_rates(state, trainer)
    _check_optimizer(state, trainer)


def _check_counters(state: Mapping[str, Any], trainer: Trainer) -> None:
    found, history = state["progress"], state["history"]
    epochs = [record["epoch"] for record in history]
    same = epochs == list(range(1, found["epoch"] + 1))
    demand(same, f"progress: epoch is {found['epoch']}, but its history has {len(history)}")
    for key in ("step", "samples"):
        skipped = [record.get("skipped", 0) if key == "step" else 0 for record in history]
        counts = [0, *(record[key] + s for record, s in zip(history, skipped, strict=True))]
        rising = all(a <= b for a, b in pairwise(counts))
        demand(rising, f"history: {key} falls from one epoch to the next")
        in_epoch = found["step_in_epoch" if key == "step" else "epoch_samples"]
        there = found[key] + (found.get("skipped", 0) if key == "step" else 0)
        demand(
            counts[-1] + in_epoch == there,
            f"progress: {key} is {there}, but history and epoch make {counts[-1] + in_epoch}",
        )
    loader = trainer.loader
    if loader is None or loader.is_stream or loader.calls_order:
        return
    updates = loader.updates(found["epoch"]) if found["epoch"] else 0
    updates += found["step_in_epoch"]
    demand(
        updates == found["step"] + found.get("skipped", 0),
        f"progress: step is {found['step']}, but {found['epoch']} epochs and step_in_epoch make "
        f"{updates}",
    )


def _check_phase(state: Mapping[str, Any], trainer: Trainer) -> None:
    """The phase must be the epoch's, or that of the epoch before, up to the first update."""
    if trainer.phases is None:
        return
    epoch, number = state["progress"]["epoch"], state["phase"]
    first = epoch - (state["progress"]["step_in_epoch"] == 0 and epoch > 0)
    may_be = {trainer.phases.number(first), trainer.phases.number(epoch)}
    demand(number in may_be, f"phase: it is {number}, which epoch {epoch} is not in")


def _check_generators(state: Mapping[str, Any]) -> None:
    processes, kept = state["made_by"].get("processes"), len(state["rng"])
    demand(
        not is_count(processes) or processes <= kept,
        f"rng: there are generators of {kept} processes, but {processes} have made it",
    )


def _groups(found: list[dict[str, Any]], trainer: Trainer) -> Iterator[tuple[Any, Any]]:
    """Each group of the new trainer's optimizer, and the state's with the same parameters."""
    here = take(trainer.optimizer, snapshot.parameter_names(trainer))["groups"]
    by_members = {frozenset(group["params"]): group for group in found}
    for group in here:
        yield group, by_members[frozenset(group["params"])]


def _check_settings(found: list[dict[str, Any]], trainer: Trainer) -> None:
    scheduler = trainer.schedule.scheduler
    cycles = bool(getattr(scheduler, "cycle_momentum", False))
    moved = {"lr", "params", "param_names", *(_CYCLED if cycles else ())}
    for here, theirs in _groups(found, trainer):
        for key, value in here.items():
            if key not in moved:
                demand(
                    _same(theirs.get(key), value),
                    f"optimizer: {key} is {shown(theirs.get(key))} in the state, and "
                    f"{shown(value)} in this configuration",
                )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.equal(torch.as_tensor(one, device="cpu"), torch.as_tensor(other, device="cpu"))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(*pair) for pair in pairs)
    return bool(one == other)


def _check_schedule(state: Mapping[str, Any], trainer: Trainer) -> None:
    scheduler = trainer.schedule.scheduler
    if scheduler is not None and is_torchs(scheduler):
        here = schedule_state.take(scheduler) or {}
        _compare_schedules(state["scheduler"], here)
        _check_turns(state, here, trainer)


def _check_turns(state: Mapping[str, Any], here: Mapping[str, Any], trainer: Trainer) -> None:
    """A schedule must have turned as often as there were updates, or epochs."""
    found, progress = state["scheduler"], state["progress"]
    turns = found["last_epoch"] - here["last_epoch"]
    least, most = 0.0, progress["epoch"] + 1.0  # it turns before or after a state is taken
    if type(trainer) is not Trainer:
        most = math.inf  # its own code may turn it
    elif trainer.phases is not None:  # which begin with new schedules
        most = progress["step"] if trainer.schedule.by_step else most
    elif trainer.schedule.by_step:
        least, most = progress["step"], progress["step"] + progress.get("skipped", 0)
    elif not trainer.schedule.by_metric:
        least = progress["epoch"] - 1
    demand(
        is_count(turns) and least <= turns <= most,
        f"scheduler: last_epoch is {shown(found['last_epoch'])}, but progress is at epoch "
        f"{progress['epoch']} and step {progress['step']}",
    )
    for key in ("num_bad_epochs", "cooldown_counter"):
        count = found.get(key, 0)
        demand(is_count(count), f"scheduler: {key} is {shown(count)}, no count")
    if "_step_count" in found:
        right = found["last_epoch"] + here["_step_count"] - here["last_epoch"]
        demand(
            found["_step_count"] == right,
            f"scheduler: _step_count is {shown(found['_step_count'])}, but last_epoch is "
            f"{found['last_epoch']}",
        )


def _compare_schedules(found: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key in sorted(here.keys() - _TURNING):
        value, theirs = here[key], found[key]
        if isinstance(value, list) and isinstance(theirs, list):  # groups may have been added
            theirs = theirs[: len(value)]
        message = f"{shown(theirs)} in the state, and {shown(value)} in this configuration"
        demand(_same(theirs, value), f"scheduler: {key} is {message}")
    for one, other in zip(found.get("_schedulers", ()), here.get("_schedulers", ()), strict=True):
        _compare_schedules(one, other)


def _check_rates(state: Mapping[str, Any], trainer: Trainer) -> None:
    scheduler, held = trainer.schedule.scheduler, state["scheduler"]
    groups = list(_groups(state["optimizer"]["groups"], trainer))
    expected = None if scheduler is None or held is None else _rates(scheduler, held["last_epoch"])
    highest = 0.0
    for number, (here, theirs) in enumerate(groups):
        rate, start = float(theirs["lr"]), float(here.get("initial_lr", here["lr"]))
        most = max(start, *(float(here.get(key, 0)) for key in ("lr", "max_lr")))
        if expected is not None:
            least, most = expected[number], max(most, expected[number])
            right = abs(rate - least) <= _TOLERANCE * most
        elif scheduler is None and type(trainer) is Trainer:
            right = rate == start
        elif scheduler is None:
            most *= _LARGEST_RISE
            right = rate <= most
        else:
            right = rate <= most * (1 + _TOLERANCE) or not is_torchs(scheduler)
        demand(right, f"optimizer: lr is {rate:g}, which this configuration does not lead to")
        highest = max(highest, most)
    last = float(state["lr"])
    demand(
        last <= highest * (1 + _TOLERANCE) or not _is_bounded(scheduler) or len(groups) == 0,
        f"lr is {last:g}, which this configuration does not lead to",
    )


def _is_bounded(scheduler: Any) -> bool:
    return scheduler is None or is_torchs(scheduler)


def _rates(scheduler: Any, turn: int) -> list[float] | None:
    """The rates of a new scheduler's groups after so many turns, if there is a formula for them."""
    if isinstance(scheduler, LambdaLR):
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [float(base) * float(factor(turn)) for base, factor in pairs]
    if not isinstance(scheduler, LRScheduler) or not hasattr(scheduler, "_get_closed_form_lr"):
        return None
    later: Any = copy.copy(scheduler)
    later.last_epoch = turn
    return [float(rate) for rate in later._get_closed_form_lr()]


def _check_optimizer(state: Mapping[str, Any], trainer: Trainer) -> None:
    """What updates leave behind must be there for each parameter that updates have moved."""
    kept, same_torch = state["optimizer"]["state"], state["made_by"].get("torch")
    steps = state["progress"]["step"]
    if not is_torchs(trainer.optimizer) or same_torch != str(torch.__version__) or not steps:
        return
    parameters = {name: p for p, name in snapshot.parameter_names(trainer).items()}
    at_most = math.inf if trainer.has_own("train_step") or trainer.needs_closure else steps
    for group in state["optimizer"]["groups"]:
        for name in group["params"]:
            there = {key: v for key, v in kept.get(name, {}).items() if v is not None}
            moved = _has_moved(state, name, parameters[name])
            usual = state_after_update(trainer.optimizer, group, parameters[name])
            _check_count(there, name, moved, at_most)
            _check_form(there, name, moved, usual)
            for key, value in there.items():
                bad = isinstance(value, Tensor | Part) and bool(local(value).isnan().any())
                demand(not bad, f"optimizer: {shown(key)} of {name} has NaN in it")


def _check_count(there: Mapping[str, Any], name: str, moved: bool, at_most: float) -> None:
    """The optimizer's own count of the updates of a parameter, if it has one."""
    if "step" not in there:
        return
    count = float(there["step"])
    whole = count == int(count) and count >= moved
    demand(whole, f"optimizer: step of {name} is {count:g}, which no number of updates leaves")
    demand(count <= at_most, f"optimizer: step of {name} is {count:g}, of {at_most} updates")


def _check_form(there: Mapping[str, Any], name: str, moved: bool, usual: Mapping[str, Any]) -> None:
    """What is kept of a parameter must be what updates leave, in names, shapes and dtypes."""
    missing = sorted(usual.keys() - there.keys()) if moved else []
    demand(
        not missing,
        f"optimizer: the state lacks {', '.join(missing)} of {shown(name)}, which updates "
        "have changed",
    )
    for key, value in there.items() if usual else ():
        demand(key in usual, f"optimizer: {shown(key)} of {name} is nothing that updates leave")
        if isinstance(usual[key], Tensor):
            like, is_tensor = usual[key], isinstance(value, Tensor | Part)
            same = is_tensor and (value.shape, value.dtype) == (like.shape, like.dtype)
            demand(same, f"optimizer: {key} of {name} is not a tensor such as updates leave")


def _has_moved(state: Mapping[str, Any], name: str, parameter: Tensor) -> bool:
    part, _, of_loss = name.partition("/")
    theirs = state["loss"].get(of_loss) if part == "loss" and of_loss else state["model"].get(name)
    if not (isinstance(theirs, Tensor | Part) and theirs.shape == parameter.shape):
        return False
    mine, here = local(theirs), local(parameter.detach())
    return mine.numel() > 0 and not torch.equal(mine.cpu(), here.cpu())
