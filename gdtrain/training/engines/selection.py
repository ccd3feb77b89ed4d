"""Which engine runs a trainer's blocks: what was asked for, or a fixed rule that asks no clock."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gdtrain.data.batch import Plan
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.blocks import known_plan, may_go_on
from gdtrain.training.engines.compile import CompileEngine, check_options
from gdtrain.training.engines.eager import EagerEngine
from gdtrain.training.engines.engine import Engine, EngineError
from gdtrain.training.engines.foreign_code import calls_known_code
from gdtrain.training.engines.obstacles import INSTALL, obstacles
from gdtrain.training.placement.compiler_import import import_ahead
from gdtrain.training.run import Run
from gdtrain.training.safety.checks import check_arguments

logger = logging.getLogger("gdtrain")

ENGINES = ("auto", "eager", "compile", "scan", "cuda_graph")
# Those that capture a step, and can't run every trainer; ``auto`` chooses among them and eager.
_CAPTURING = ("scan", "cuda_graph")

# Under auto, a compiled engine must save more than it takes to start: 2 s for jax and compiling, on
# the machine of docs/explanation/benchmarks.md, where eager updates are the fastest seen …
MIN_UPDATES = 25_000
# … and the work of an update, in parameters times samples, be small beside PyTorch's overhead.
MAX_WORK = 1 << 24
# … and nobody may look more often than this, in updates: each block has a start of its own, and
# one over many epochs has no more than another.
MIN_BLOCK = 4
# For the estimate, in seconds: what an update of a small model takes, and what jax and compiling.
_EAGER_SECONDS, _SCAN_SECONDS, _SCAN_START = 84e-6, 5e-6, 2.0


class EngineChoice:
    """Settles which engine a trainer has.

    wanted: one of :data:`ENGINES`. options: of torch.compile, for ``compile``.
    A choice under ``auto`` is kept: by further calls of ``fit``,
    and in snapshots, so that a run that is taken up ends with the bits of one left alone.
    Raises ConfigError if an engine is wanted that can't run the trainer.
    """

    def __init__(self, trainer: Run, wanted: str, options: Mapping[str, Any] | None = None) -> None:
        self.trainer = trainer
        self.wanted = wanted
        self.of_run: str | None = None  # the name of the engine that was settled on
        check_arguments(engine=(wanted, ENGINES))
        self.options = {} if options is None else check_options(options, wanted)
        if wanted in _CAPTURING:
            check(trainer, wanted)

    @property
    def name(self) -> str:
        """The engine of the run, or what is wanted while none has been settled on."""
        return self.of_run or self.wanted

    def keep(self, name: str | None) -> None:
        """Under ``auto``, go on with the engine of the run that is taken up."""
        if self.wanted == "auto" and name in ("eager", *_CAPTURING):
            self.of_run = name

    def settle(self, num_epochs: int) -> None:
        """Give the trainer the engine for ``fit(num_epochs)``, if it has not got it yet.

        Raises ConfigError if one was asked for by name that can't run this.
        """
        trainer, present = self.trainer, self.trainer.engine.name
        assert trainer.loader is not None
        blocked = present in _CAPTURING and any(obstacles(trainer, present))
        if self.of_run == present and not blocked:
            return
        wanted = self.of_run if self.wanted == "auto" and self.of_run else self.wanted
        if wanted == "auto":
            stream = trainer.loader.is_stream
            updates = None if stream else trainer.loader.updates(num_epochs)
            wanted = _by_rule(trainer, updates, num_epochs)
        try:
            if wanted != "eager" or present != "eager":
                trainer.engine = _made(trainer, wanted)
        except ModelError as error:
            self.instead(wanted, error)
        self.of_run = trainer.engine.name
        if self.of_run == "eager":
            import_ahead(trainer.updater, steps_itself=trainer.has_own("train_step"))

    def instead(self, name: str, error: ModelError) -> Engine:
        """The engine that goes on where the one of this name can't, from now on the trainer's.

        That is eager under ``auto``. If an engine was asked for by name, raises ConfigError, or
        the error itself where eager would raise it too.
        """
        if self.wanted != "auto":
            if not isinstance(error, EngineError):
                raise error
            raise _refusal(name, str(error)) from error
        if self.trainer.world.rank == 0:
            logger.warning("engine: eager, since %s can't run this: %s", name, error)
        self.trainer.engine = EagerEngine(self.trainer)
        self.of_run = self.trainer.engine.name
        return self.trainer.engine


def check(trainer: Run, name: str) -> None:
    """Raise ConfigError if the engine of this name can't run the trainer as it is set up."""
    for reason in obstacles(trainer, name):
        raise _refusal(name, reason)


def _refusal(name: str, reason: str) -> ConfigError:
    return ConfigError.of("engine", f"{name} can't run this: {reason}; use eager")


def _made(trainer: Run, name: str) -> Engine:
    """The engine of this name, with what it has to capture. Raises EngineError if it can't be."""
    if name == "eager":
        return EagerEngine(trainer)
    if name == "compile":
        return CompileEngine(trainer, trainer.choice.options)
    for reason in obstacles(trainer, name):
        raise EngineError(reason)
    plan = _expected_plan(trainer)
    # Their imports take a second, which only those who use them should spend.
    if name == "scan":
        from gdtrain.training.engines.xla.usable import check_jax

        check_jax()
        from gdtrain.training.engines.xla.scan import ScanEngine

        scan = ScanEngine(trainer)
        scan.prepare(plan)
        return scan
    from gdtrain.training.engines.cuda.graph import CudaGraphEngine

    graph = CudaGraphEngine(trainer)
    graph.prepare(plan)
    return graph


def _expected_plan(trainer: Run) -> Plan:
    """The plan of the epoch that runs, or one of its sizes: its order is not asked yet.

    It is asked in the epoch, behind whatever callbacks do when a fit starts.
    """
    loader = trainer.loader
    assert loader is not None
    plan = known_plan(trainer, loader, trainer.progress.epoch)
    if plan.indices is None and loader.asked_order(trainer.progress.epoch) is not None:
        return replace(plan, indices=torch.arange(plan.num_samples, device="cpu"))
    return plan


# ── auto ────────────────────────────────────────────────────────────────────────────────────


def _by_rule(trainer: Run, updates: int | None, num_epochs: int) -> str:
    """The engine that suits the run, by its settings and what is installed alone.

    A compiled engine runs a model's Python code once, so it is taken unasked only for models,
    losses and ``compute_loss`` that are known to do the same in every step: PyTorch's layers and
    the project's own. Others may ask for it by name.

    updates: of the whole run; None if nobody knows.
    """
    name = "cuda_graph" if trainer.device.type == "cuda" else "scan"
    if updates is None or updates < MIN_UPDATES or not _is_plain(trainer):
        return "eager"
    if name == "scan" and _work(trainer, num_epochs) > MAX_WORK:
        return "eager"
    if _between_looks(trainer, updates, num_epochs) < MIN_BLOCK:
        return "eager"
    reasons = list(obstacles(trainer, name))
    if len(reasons) == 1 and INSTALL in reasons[0]:
        _tell_what_jax_would_gain(updates)
        return "eager"
    return name


def _tell_what_jax_would_gain(updates: int) -> None:
    """Say how long the run would take with jax, if that is at most half as long."""
    eager, scan = updates * _EAGER_SECONDS, _SCAN_START + updates * _SCAN_SECONDS
    if 2 * scan <= eager:
        logger.warning(
            "engine: eager; %s, and engine scan makes these %s updates in about %.0f s instead "
            "of %.0f s, to rounding the same",
            *(INSTALL, f"{updates:,}", scan, eager),
        )


def _is_plain(trainer: Run) -> bool:
    return calls_known_code(trainer) and not any(
        isinstance(layer, nn.modules.conv._ConvNd) or _draws(layer)
        for layer in trainer.model.modules()
    )


def _draws(layer: nn.Module) -> bool:
    """Whether a layer of PyTorch draws random numbers."""
    if not layer.training:
        return False
    share = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else 0.0
    inner = getattr(layer, "dropout", 0.0)  # of recurrent layers and attention
    kinds = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return bool(share or (isinstance(inner, float) and inner)) or isinstance(layer, kinds)


def _between_looks(trainer: Run, updates: int, num_epochs: int) -> float:
    """How many updates a block has at the most: where it ends, somebody looks.

    Blocks that end with each epoch, or each k-th one, have the updates of so many epochs.
    """
    callbacks, listeners = trainer.callbacks, trainer.listeners
    steps = [float(c.every_n_steps) for c in callbacks if c.every_n_steps is not None]
    ends = [c.next_epoch_end(0) for c in listeners.of["on_epoch_end"]]
    if listeners.of["on_epoch_start"] or not may_go_on(trainer):
        ends.append(1)
    return min([*steps, *(end * updates / num_epochs for end in ends if end)], default=math.inf)


def _work(trainer: Run, num_epochs: int) -> int:
    assert trainer.loader is not None
    size = trainer.loader.largest_batch(num_epochs)
    return size * sum(p.numel() for p in trainer.model.parameters())
