"""Copies of a trainer, by pickle or by deepcopy: what these leave out by themselves."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any
from weakref import ref

from torch.optim import Optimizer

from gdtrain.training.engines.eager import EagerEngine
from gdtrain.training.run import Run

# What an optimizer takes along by itself, and the wrapper that schedulers put around its step.
_OWN = ("defaults", "state", "param_groups", "step")


def contents(trainer: Run) -> dict[str, Any]:
    """What a copy of the trainer is made of.

    Besides the trainer's attributes, that is what optimizers hold: torch leaves out all but
    settings and state, and with it the parameters of L-BFGS, hooks, and what an optimizer of your
    own is made of. A compiled program is left out; the copy makes one of the same engine.
    """
    if trainer.engine is None:  # a copy that computes losses alone
        return dict(vars(trainer))
    trainer.engine.publish()
    held = {}
    for name, optimizer in trainer.optimizers.items():
        own = {key: v for key, v in vars(optimizer).items() if key not in _OWN}
        held[name] = own, "step" in vars(optimizer)
    left_out = {"engine": None, "running": None, "_ahead": None}
    return {**vars(trainer), **left_out, "_of_optimizers": held}


def fill(trainer: Run, contents: dict[str, Any]) -> None:
    """Make a trainer of copies of what :func:`contents` gives."""
    held = contents.pop("_of_optimizers", {})
    vars(trainer).update(contents)
    given = contents.get("compute_loss")
    if isinstance(given, partial) and given.args and type(given.args[0]) is type(trainer):
        vars(trainer)["compute_loss"] = partial(given.func, trainer)  # and not the copied one
    if trainer.updater is None:
        return
    for name, (own, wrapped) in held.items():
        optimizer = trainer.optimizers[name]
        vars(optimizer).update(own)
        if wrapped:
            _wrap_step(optimizer)
    trainer.engine = EagerEngine(trainer)


def _wrap_step(optimizer: Optimizer) -> None:
    """Wrap ``optimizer.step`` as schedulers of torch do, to see that it is called before theirs."""
    step, reference = type(optimizer).step, ref(optimizer)

    @wraps(step)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        here = reference()
        here._opt_called = True  # type: ignore[union-attr]
        return step.__get__(here, type(here))(*arguments, **options)

    wrapper._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = wrapper  # type: ignore[method-assign]
