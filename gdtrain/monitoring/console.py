"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

from gdtrain.training.callbacks import Callback
from gdtrain.training.trainer import Trainer


class Console(Callback):
    """Shows loss, learning rate and samples per second on ``stream`` (standard error).

    On a terminal, a bar over the steps of the whole run, with a line for each epoch above it;
    elsewhere only the lines, at most ``max_lines`` of them in equal distances and the last.
    """

    def __init__(self, stream: TextIO | None = None, max_lines: int = 50) -> None:
        super().__init__(every_seconds=0.2)
        self.stream = stream or sys.stderr
        self.max_lines = max_lines
        self._bar: tqdm[Any] | None = None
        self._start = (0, 0.0)

    def on_fit_start(self, trainer: Trainer) -> None:
        self._start = (trainer.progress.samples, trainer.progress.seconds)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._open(trainer)

    def on_safe_point(self, trainer: Trainer) -> None:
        self._open(trainer)
        if self._bar is not None:
            self._advance(trainer)
            loss = trainer.progress.losses[-1]
            self._bar.set_postfix_str(
                f"loss {loss:.4g}, lr {trainer.lr:.3g}, {self._speed(trainer)}", refresh=True
            )

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        epoch, last = record["epoch"], trainer.num_epochs
        between = -(-last // self.max_lines)
        if epoch % between and epoch != last and not trainer.should_stop:
            return
        shown = [
            f"epoch {epoch:>{len(str(last))}}/{last}",
            f"train_loss {record['train_loss']:.4g}",
        ]
        for key, value in record.items():
            if key.startswith("val_"):
                is_share = key.endswith("accuracy")
                shown.append(f"{key} {value:.2%}" if is_share else f"{key} {value:.4g}")
        shown += [f"lr {record['lr']:.3g}", self._speed(trainer)]
        line = "  ".join(shown)
        if self._bar is None:
            print(line, file=self.stream, flush=True)
        else:
            self._advance(trainer)
            self._bar.write(line, file=self.stream)

    def on_fit_end(self, trainer: Trainer) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen; also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open(self, trainer: Trainer) -> None:
        if self._bar is not None or not self.stream.isatty() or trainer.plan is None:
            return
        self._bar = tqdm(
            total=trainer.num_epochs * len(trainer.plan),
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
