"""The list of contestants: where each is, what it takes part in and what must be installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from contestants.workload import Run, Workload


@dataclass(frozen=True)
class Contestant:
    """``place``: module and function that makes its :data:`Run` of a workload.

    needs: the module that must be installed. kinds, takes: what it takes part in. compiled: it
    needs no Python for an update.
    """

    name: str
    place: str
    needs: str = "torch"
    kinds: tuple[str, ...] = ("train",)
    options: dict[str, Any] = field(default_factory=dict)
    takes: Callable[[Workload], bool] = lambda _: True
    devices: tuple[str, ...] = ("cpu",)
    compiled: bool = False

    def missing(self) -> str | None:
        """Why it can't take part on this machine, as far as that is known before it starts."""
        root = self.needs.split(".")[0]
        return None if importlib.util.find_spec(root) else f"{root} is not installed"

    def joins(self, workload: Workload, device: str) -> bool:
        """Whether it takes part in ``workload`` on ``device``."""
        here = device in self.devices and device in workload.devices
        if workload.compiled_only and not self.compiled:
            return False
        return here and workload.kind in self.kinds and self.takes(workload)

    def start(self, workload: Workload, device: str) -> Run:
        """Make ready for ``workload``."""
        module, function = self.place.split(":")
        make = getattr(importlib.import_module(f"contestants.{module}"), function)
        run: Run = make(workload, device, **self.options)
        return run


def _linear(workload: Workload) -> bool:
    return len(workload.sizes) == 2


def _hidden(workload: Workload) -> bool:
    return len(workload.sizes) > 2


def _bound(workload: Workload) -> bool:
    return workload.name == "wide-full"


BOTH = ("cpu", "cuda")
HAND = "hand-written loop"
CONTESTANTS = [
    Contestant(HAND, "by_hand:hand", devices=BOTH),
    Contestant("DataLoader loop", "by_hand:with_data_loader", devices=BOTH),
    *(
        Contestant(
            f"gdtrain {engine}",
            "by_hand:gdtrain_engine",
            options={"engine": engine},
            devices=devices,
            compiled=engine == "scan",
        )
        for engine, devices in (("eager", BOTH), ("scan", ("cpu",)), ("cuda_graph", ("cuda",)))
    ),
    Contestant("Lightning", "frameworks:lightning", "lightning"),
    Contestant("Fabric", "frameworks:fabric", "lightning"),
    Contestant("Ignite", "frameworks:ignite", "ignite"),
    Contestant("skorch", "frameworks:skorch", "skorch"),
    Contestant("Accelerate", "frameworks:accelerate", "accelerate"),
    Contestant("HF Trainer", "trainers:hf_trainer", "transformers"),
    Contestant("Keras (torch)", "trainers:keras", "keras"),
    Contestant("Composer", "trainers:composer", "composer"),
    Contestant("JAX by hand", "compiled:jax_by_hand", "jax", compiled=True),
    Contestant("C by hand", "compiled:c_by_hand", takes=lambda w: w.size <= 500, compiled=True),
    Contestant("SGDRegressor", "compiled:sgd_regressor", "sklearn", takes=_linear),
    Contestant("sklearn MLP", "compiled:sklearn_mlp", "sklearn", takes=_hidden),
    Contestant("River", "online:river_in_memory", "river", takes=_linear),
    Contestant("matrix products", "by_hand:matrix_products", takes=_bound, devices=BOTH),
    *(
        Contestant(
            f"gdtrain {engine}", "online:gdtrain_stream", options={"engine": engine},
            kinds=("stream",),
        )
        for engine in ("eager", "scan")
    ),
    Contestant("gdtrain parsing", "online:gdtrain_parsing", kinds=("stream",)),
    Contestant("Vowpal Wabbit", "online:vowpal_wabbit", "vowpalwabbit", kinds=("stream",)),
    Contestant("River", "online:river_stream", "river", kinds=("stream",)),
    Contestant("DataLoader", "scaling:data_loader_alone", kinds=("loader",)),
    Contestant("gdtrain loader", "scaling:loader_alone", kinds=("loader", "scaling")),
    Contestant(
        "gdtrain eager", "by_hand:gdtrain_engine", kinds=("scaling",), options={"engine": "eager"},
    ),
    *(
        Contestant(
            f"gdtrain {engine}", "by_hand:first_block", kinds=("first",), options={"engine": engine}
        )
        for engine in ("eager", "scan")
    ),
]  # fmt: skip
