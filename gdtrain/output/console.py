"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from gdtrain.output.terminal import DroppingStream, printable
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer


class Console(Callback):
    """Shows loss, learning rate and samples per second on ``stream`` (standard error).

    On a terminal, a bar over the steps of the whole run, with a line for each epoch above it;
    elsewhere only the lines, at most ``max_lines`` of them in equal distances and the last.
    What can't be printed is dropped.
    """

    def __init__(self, stream: TextIO | None = None, max_lines: int = 50) -> None:
        super().__init__(every_seconds=0.2)
        self.stream = DroppingStream(stream or sys.stderr)
        self.max_lines = max_lines
        self._bar: tqdm[Any] | None = None
        self._start = (0, 0.0)
        self._next_line = 1024
        self._trainer: Trainer | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._start = (trainer.progress.samples, trainer.progress.seconds)

    def on_safe_point(self, trainer: Trainer) -> None:
        self._open(trainer)
        if self._bar is not None:
            self._advance(trainer)
            shown = [f"loss {trainer.progress.losses[-1]:.4g}", *_reported(trainer)]
            shown += [f"lr {float(trainer.progress.lr):.3g}", self._speed(trainer)]
            self._bar.set_postfix_str(printable(", ".join(shown)), refresh=True)
        elif trainer.plan is not None and trainer.plan.num_batches is None:
            self._tell(trainer)

    def on_records(self, records: list[dict[str, Any]]) -> None:
        assert self._trainer is not None
        last = self._trainer.num_epochs
        between = -(-last // self.max_lines)
        for record in records:
            is_end = record["epoch"] == last or (
                self._trainer.should_stop and record is records[-1]
            )
            if is_end or record["epoch"] % between == 0:
                self._tell_of_epoch(self._trainer, record)

    def on_fit_end(self, trainer: Trainer) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen; also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tell_of_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        epoch, last = record["epoch"], trainer.num_epochs
        shown = [
            f"epoch {epoch:>{len(str(last))}}/{last}",
            f"train_loss {record['train_loss']:.4g}",
        ]
        of_epoch = {k: v for k, v in record.items() if k.startswith(("val_", "prequ"))}
        shown += readings(of_epoch | _numbers(trainer))
        shown += [f"lr {record['lr']:.3g}", self._speed(trainer)]
        line = printable("  ".join(shown))
        if self._bar is None:
            print(line, file=self.stream, flush=True)
        else:
            self._advance(trainer)
            self._bar.write(line, file=self.stream)

    def _tell(self, trainer: Trainer) -> None:
        """A line each time that twice as many samples of a stream have passed, at first 1,024."""
        samples = trainer.progress.samples
        if samples >= self._next_line:
            self._next_line = 2 * max(samples, 512)
            shown = [f"{samples:,} samples", f"loss {trainer.progress.losses[-1]:.4g}"]
            line = "  ".join([*shown, *_reported(trainer), self._speed(trainer)])
            print(printable(line), file=self.stream, flush=True)

    def _open(self, trainer: Trainer) -> None:
        if self._bar is not None or not self.stream.isatty() or trainer.plan is None:
            return
        loader = trainer.loader
        assert loader is not None
        self._bar = tqdm(
            total=None if loader.is_stream else loader.updates(trainer.num_epochs),
            initial=trainer.progress.step,
            unit="step",
            file=self.stream,
            leave=False,
            dynamic_ncols=True,
        )

    def _advance(self, trainer: Trainer) -> None:
        assert self._bar is not None
        self._bar.update(trainer.progress.step - self._bar.n)

    def _speed(self, trainer: Trainer) -> str:
        samples, seconds = self._start
        elapsed = trainer.progress.seconds - seconds
        rate = (trainer.progress.samples - samples) / elapsed if elapsed else 0.0
        return f"{rate:,.0f} samples/s"


def _reported(trainer: Trainer) -> list[str]:
    """What the callbacks report, in words."""
    return readings(_numbers(trainer))


def _numbers(trainer: Trainer) -> dict[str, float]:
    return {k: v for callback in trainer.callbacks for k, v in callback.report().items()}


def readings(values: Mapping[str, Any]) -> list[str]:
    """Numbers by name, each as a person reads it."""
    return [f"{name} {_reading(name, value)}" for name, value in values.items()]


def _reading(name: str, value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2%}" if "accuracy" in name else f"{value:.4g}"
