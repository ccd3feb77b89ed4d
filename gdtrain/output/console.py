"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, TextIO

from tqdm import tqdm

from gdtrain.output.terminal import DroppingStream, printable
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer
from gdtrain.wording import counted


class ProgressBar(Callback):
    """Shows loss, its terms, learning rate and samples per second on ``stream`` (standard error).

    On a terminal and in a notebook, a bar over the steps of the whole run, with a line for each
    epoch above it; elsewhere only the lines, at most ``max_lines`` evenly spaced ones and
    the last; 0: no lines. Output that can't be printed is dropped.

    ``fit`` shows such a bar, without lines, on terminals and in notebooks; see its ``progress``.

    >>> import io
    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, ProgressBar, Trainer
    >>> stream = io.StringIO()
    >>> model, data = nn.Linear(1, 1), (torch.ones(4, 1), torch.ones(4, 1))
    >>> bar = ProgressBar(stream, max_lines=2)
    >>> history = Trainer(model, "mse", "adam", BatchLoader(data), callbacks=[bar]).fit(10)
    >>> [line.split()[1] for line in stream.getvalue().splitlines()]
    ['5/10', '10/10']
    """

    def __init__(self, stream: TextIO | None = None, max_lines: int = 50) -> None:
        super().__init__(every_seconds=0.2)
        stream = stream or sys.stderr
        self.stream = stream if type(stream) is DroppingStream else DroppingStream(stream)
        self.max_lines = max_lines
        self._bar: tqdm[Any] | None = None
        self._start = (0, 0.0)
        self._next_line = 1024
        self._trainer: Trainer | None = None

    @staticmethod
    def can_be_seen() -> bool:
        """Whether standard error is a terminal, or this is a notebook."""
        return (sys.stderr is not None and sys.stderr.isatty()) or in_notebook()

    def on_fit_start(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._start = (trainer.progress.samples, trainer.progress.seconds)

    def on_safe_point(self, trainer: Trainer) -> None:
        if self._bar is None and (self.stream.isatty() or in_notebook()):
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
        if not self.max_lines:
            return
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
        shown_too = ("train_", "val_", "prequ")
        of_epoch = {k: v for k, v in record.items() if k.startswith(shown_too)}
        del of_epoch["train_loss"]
        for callback in trainer.callbacks:
            of_epoch |= callback.report()
        shown += readings(of_epoch)
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
            shown = [counted(samples, "sample"), f"loss {trainer.progress.losses[-1]:.4g}"]
            line = "  ".join([*shown, *_reported(trainer), self._speed(trainer)])
            print(printable(line), file=self.stream, flush=True)

    def _open(self, trainer: Trainer) -> None:
        if trainer.plan is None:
            return
        loader = trainer.loader
        assert loader is not None
        self._bar = _kind_of_bar()(
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


def in_notebook() -> bool:
    """Whether this code runs in a cell of a notebook."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _kind_of_bar() -> Any:
    """tqdm's for notebooks, where what it needs is installed; else its text."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook

        return notebook
    return tqdm


def _reported(trainer: Trainer) -> list[str]:
    """The last update's terms and what the callbacks report, in words."""
    block, losses = trainer.progress.last or (None, ())
    terms = block.terms_of(len(losses) - 1) if block is not None else {}
    for callback in trainer.callbacks:
        terms = terms | callback.report()
    return readings(terms)


def readings(values: Mapping[str, Any]) -> list[str]:
    """Numbers by name, each as a person reads it."""
    return [f"{name} {_reading(name, value)}" for name, value in values.items()]


def _reading(name: str, value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2%}" if "accuracy" in name else f"{value:.4g}"
