"""metrics.csv: the records of metrics.jsonl as a table, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.durable_files import Attempt
from gdtrain.output.run_directory import read_metrics
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer

_FIRST = ("kind", "step", "epoch")


class MetricsCsv(Callback):
    """Keeps ``path`` a table of the records in ``metrics``, a metrics.jsonl.

    The table is rewritten at the end of a fit, and of the epochs 1, 2, 4, 8, …, which costs no more
    than writing every record twice. List it after the callback that writes ``metrics``.
    Raises StorageError if the disk fails; attempt: a function that handles this instead.

    >>> import torch
    >>> from pathlib import Path
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, MetricsCsv, MetricsLog, Trainer
    >>> data = torch.ones(4, 1), torch.ones(4, 1)
    >>> logs = [MetricsLog("metrics.jsonl"), MetricsCsv("metrics.jsonl", "metrics.csv")]
    >>> history = Trainer(nn.Linear(1, 1), "mse", "adam", BatchLoader(data), callbacks=logs).fit(3)
    >>> Path("metrics.csv").read_text().splitlines()[0].split(",")[:3]
    ['kind', 'step', 'epoch']
    """

    def __init__(
        self, metrics: str | Path, path: str | Path, attempt: Attempt = disk.required
    ) -> None:
        super().__init__()
        self.attempt = attempt
        self.metrics = Path(metrics)
        self.path = Path(path)
        self._leads = True

    def on_fit_start(self, trainer: Trainer) -> None:
        self._leads = trainer.world.rank == 0

    def on_records(self, records: list[dict[str, Any]]) -> None:
        epochs = [record["epoch"] for record in records]
        if self._leads and any(epoch & (epoch - 1) == 0 for epoch in epochs):
            self._write()

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._leads:
            self._write()

    def _write(self) -> None:
        self.attempt(self.path.name, lambda: write_csv(self.metrics, self.path))


def write_csv(metrics: Path, path: Path) -> None:
    """Write the records of a metrics.jsonl to ``path``, one a row, in the place of what is there.

    The columns are the names in the order of their first use, after kind, step and epoch; a cell
    is empty where a record has no such number. Reading a number gives the same float again. Lists
    are written as JSON. Raises StorageError if the disk fails.
    """
    records = read_metrics(metrics)
    names = dict.fromkeys((*_FIRST, *(name for record in records for name in record)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    for record in records:
        table.writerow([_cell(record.get(name)) for name in names])
    with disk.needed(path.name):
        disk.replace_file(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
