"""What all monitors are: callbacks that measure at their cadence and leave no trace."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Annotated, Any

from gdtrain.analysis.curvature.full_loss import rereadable
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, DataError
from gdtrain.settings import OptionsOnly, Positive, instead_of
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.state.plain_values import is_count, is_number
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

# Of a run's time, what a monitor may take whose default cadence goes by its cost: under 5 %.
SHARE = 0.04
# In seconds: what an update takes however small it is; what a look takes, putting everything back
# included; and a pass forward and backward in it. They err on the careful side: short updates, long
# looks.
UPDATE_SECONDS = {"eager": 50e-6, "compile": 50e-6, "scan": 0.2e-6, "cuda_graph": 10e-6}
LOOK_SECONDS = 400e-6
PASS_SECONDS = 500e-6
# Of a compiled engine, to bring the weights out, and to go on from them.
HANDOVER_SECONDS = {"eager": 0.0, "compile": 0.0, "scan": 1e-3, "cuda_graph": 100e-6}
# A sample's gradient takes 6 operations a parameter at least; a CPU's core makes no more of them.
OPERATIONS_PER_SECOND = 1e11
LOOKS = 10  # in a run, of monitors that cost many passes over the data


@dataclass(frozen=True)
class Cost:
    """What one look takes: seconds that no size changes, and gradients of so many samples."""

    seconds: float
    samples: float


class MonitorSettings(OptionsOnly):
    """What a monitor with a cadence in steps or epochs takes."""

    every_n_steps: Positive | None = None
    """Measure after every k-th update; if neither is given, at the monitor's default cadence."""
    every_n_epochs: Annotated[Positive | None, instead_of("every_n_steps")] = None
    """Measure at the end of every k-th epoch."""


class Monitor(Callback):
    """A callback that measures something at its cadence, records it, and changes nothing.

    every_n_steps: measure after each k-th update, at a safe point. every_n_epochs: measure at the
    end of each k-th epoch; the numbers also go into the epoch's record, and so into the history.
    With neither, the monitor has a default cadence, set when ``fit`` begins by a rule that uses no
    clock: monitors with a cadence in steps take at most :data:`SHARE` of the run's time, others
    measure :data:`LOOKS` times in a run.

    ``records``: a dict for each measurement, with ``step``, ``epoch`` (from 1) and the numbers.
    :meth:`report` gives the newest numbers, for the log and the console. Both survive a resume.
    Raises ConfigError if both cadences are given.
    """

    name = "monitor"
    looks_by_steps = True
    """Whether the default cadence counts updates, to stay within a share of the time, or epochs."""

    def __init__(
        self, *, every_n_steps: int | None = None, every_n_epochs: int | None = None
    ) -> None:
        if every_n_steps is not None and every_n_epochs is not None:
            raise ConfigError.of(
                "every_n_epochs", "can't be set together with every_n_steps; remove one of the two"
            )
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self._by_default = every_n_steps is None and every_n_epochs is None
        self._by_steps = every_n_steps is not None or (self._by_default and self.looks_by_steps)
        self.records: list[dict[str, Any]] = []
        self._is_settled = False  # until a fit starts

    # ── what a monitor says of itself ───────────────────────────────────────────────────────

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        """Numbers by name, and lists of numbers. The trainer is to be left as it is."""
        raise NotImplementedError

    def cost(self, trainer: Trainer) -> Cost:
        """What a look costs; of monitors that look by steps, for their default cadence."""
        raise NotImplementedError

    def check(self, trainer: Trainer) -> None:
        """Raise a GdtrainError if this can't be measured on the trainer; before a run begins."""
        try:
            rereadable(trainer)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error

    # ── when it looks ───────────────────────────────────────────────────────────────────────

    def on_fit_start(self, trainer: Trainer) -> None:
        self.check(trainer)
        if self._by_default:
            self.settle_cadence(trainer)
        self._is_settled = True

    def _is_due_now(self, trainer: Trainer) -> bool:
        """Whether to look now; of one that was added in mid-run, once its cadence is known."""
        if not self._is_settled:
            Monitor.on_fit_start(self, trainer)
        if self._by_steps:
            return self.is_due(trainer.progress.step)
        return not trainer.progress.epoch % (self.every_n_epochs or 1)

    def settle_cadence(self, trainer: Trainer) -> None:
        """Choose the default cadence for this call of ``fit``."""
        if not self._by_steps:
            self.every_n_epochs = max(1, trainer.num_epochs // LOOKS)
            return
        self.every_n_steps = steps_between(trainer, self.cost(trainer))
        self.warn_of_no_look(trainer, self.every_n_steps)

    def warn_of_no_look(self, trainer: Trainer, every: int) -> None:
        """Say so where a run is too short for a look at a default cadence of ``every`` updates."""
        updates = rereadable(trainer).updates(trainer.num_epochs)
        if updates < every and trainer.world.rank == 0:
            logger.warning(
                "%s measures every %s updates by default, to cost little, and this run has %s; "
                "set every_n_steps or every_n_epochs to measure more often",
                *(self.name, f"{every:,}", f"{updates:,}"),
            )

    def listens_to(self, event: str) -> bool:
        # Whoever listens makes a compiled engine bring the weights out of XLA.
        if event in ("on_safe_point", "on_epoch_end"):
            return self._by_steps == (event == "on_safe_point")
        return super().listens_to(event)

    def on_safe_point(self, trainer: Trainer) -> None:
        if self._is_due_now(trainer):
            self.look(trainer, trainer.progress.epoch + 1)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if self._is_due_now(trainer):
            self.look(trainer, record["epoch"])
            record.update(_measured(self.records[-1]))

    def look(self, trainer: Trainer, epoch: int) -> None:
        """Measure now, and keep it as of this step and epoch (from 1)."""
        step = trainer.progress.step
        self.records.append({"step": step, "epoch": epoch, **self.measure(trainer)})
        self.reported_at = step

    # ── what it has seen ────────────────────────────────────────────────────────────────────

    def report(self) -> dict[str, float]:
        """The newest numbers by name; lists of numbers are in ``records`` alone."""
        newest = self.records[-1] if self.records else {}
        return {k: v for k, v in _measured(newest).items() if is_number(v)}

    def state_dict(self) -> dict[str, Any]:
        return {"records": [dict(record) for record in self.records]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for record in state["records"]:
            numbers = [v for value in record.values() for v in _listed(value)]
            counts = is_count(record["step"]) and is_count(record["epoch"])
            if not (counts and all(map(is_number, numbers))) or not all(map(_is_text, record)):
                raise ValueError("records: one is not of a look")
        self.records = [dict(record) for record in state["records"]]
        self.reported_at = self.records[-1]["step"] if self.records else None


def steps_between(trainer: Trainer, cost: Cost) -> int:
    """The fewest updates between two looks that keep the looks to :data:`SHARE` of the time.

    A look takes l + m s seconds and an update of B samples u + B s, where l and u are fixed and s
    is what a sample's gradient takes, which nobody knows before. But their ratio is monotonic in s,
    so it is never more than the larger of its values at the least s that there can be, 6
    operations a parameter, and at s → ∞, which is m / B. That over ``SHARE``, rounded up to 1, 2 or
    5 times a power of 10. It depends on sizes and the engine alone.
    """
    loader = rereadable(trainer)
    batch_size = first_batch_size(loader)
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    on_cpu = trainer.device.type == "cpu"
    least = 6 * parameters / OPERATIONS_PER_SECOND if on_cpu else 0.0
    engine = trainer.engine.name
    look = HANDOVER_SECONDS[engine] + cost.seconds + cost.samples * least
    update = UPDATE_SECONDS[engine] + batch_size * least
    return _rounded_up(max(look / update, cost.samples / batch_size) / SHARE)


def first_batch_size(loader: Loader) -> int:
    """Samples of an update in the first epoch; a loader may change that later."""
    outline = loader.outline(0)
    return min(outline.batch_size, outline.num_samples)


def _rounded_up(number: float) -> int:
    power: int = 10 ** math.floor(math.log10(max(1.0, number)))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= number)


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("step", "epoch")}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
