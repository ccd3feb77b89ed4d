"""The plan of the epoch that runs: an order that is asked gives it once, whatever comes between."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gdtrain.data.batch import Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.orders.explicit_order import check_indices
from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.training.run import Run
from gdtrain.training.state.plain_values import demand


def present_plan(trainer: Run) -> Plan:
    """The plan of the epoch that runs, or runs next; the trainer's ``plan`` from now on.

    A callable order, or a sampler, is asked for it if it has not been: on every process, of which
    the first one's answer counts. What it gave holds until the epoch has ended, over stops,
    errors and resumes.
    """
    loader, epoch, plan = trainer.loader, trainer.progress.epoch, trainer.plan
    assert loader is not None
    asked = loader.asked_order(epoch)
    if asked is None:
        plan = loader.plan(epoch)
    elif plan is None or plan.epoch != epoch or plan.asked is not asked:
        plan = loader.plan(epoch)
        if trainer.world.size > 1 and isinstance(plan.indices, Tensor):
            plan = loader.cut(epoch, trainer.world.first_row(plan.indices))
    trainer.plan = plan
    return plan


def known_plan(trainer: Run, loader: Loader, epoch: int) -> Plan:
    """The plan of an epoch for whoever only looks: of an order that is asked, never asks.

    Then it is what the order gave for the epoch that runs or ran last, or else has its sizes alone.
    """
    asked, running = loader.asked_order(epoch), trainer.plan
    if asked is None:
        return loader.plan(epoch)
    if running is not None and running.asked is asked:
        return running
    return loader.outline(epoch)


def order_state(trainer: Run) -> dict[str, Any] | None:
    """What an order that is asked has given for the epoch that runs, and what it keeps itself.

    None for other orders, which are functions of the epoch.
    """
    loader, epoch, plan = trainer.loader, trainer.progress.epoch, trainer.plan
    asked = loader.asked_order(epoch) if loader is not None else None
    if asked is None:
        return None
    running = plan is not None and plan.epoch == epoch and plan.asked is asked
    # Draws are functions of a position, and whoever gave them gives them again.
    indices = plan.indices if running and plan is not None else None
    return {
        "epoch": epoch,
        "indices": indices if isinstance(indices, Tensor) else None,
        "source": asked.state_dict(),
    }


def kept_plan(state: Any, loader: Loader | None, epoch: int) -> Plan | None:
    """The plan that :func:`order_state` has kept, if any.

    Raises CheckpointError for anything that it does not give, or that does not fit the loader.
    """
    asked = loader.asked_order(epoch) if loader is not None else None
    if state is None or asked is None or loader is None:
        return None
    parts = {"epoch", "indices", "source"}
    demand(isinstance(state, dict) and set(state) == parts, "order: it is not what one has given")
    demand(isinstance(state["source"], dict), "order: source is not a mapping")
    demand(state["epoch"] == epoch, "order: it is of another epoch than the progress")
    if state["indices"] is None:
        return None
    try:
        return loader.cut(epoch, check_indices(state["indices"], loader.num_samples))
    except ConfigError as error:
        raise CheckpointError(f"the state's {error}") from error


def restore_source(state: Any, loader: Loader | None) -> None:
    """Give an order that is asked what it kept itself; raises CheckpointError if it can't be."""
    asked = loader.asked_order(state["epoch"]) if loader is not None and state else None
    if asked is None:
        return
    try:
        asked.load_state_dict(state["source"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the state of the order does not fit it: {error}") from error
