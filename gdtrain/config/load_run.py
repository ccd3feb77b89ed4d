"""A finished run, read back from its directory: its model, ready to predict from raw rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gdtrain import registry
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import load_weights
from gdtrain.config.build import build_model, evaluated
from gdtrain.config.data import fit_targets, read_labelled
from gdtrain.config.load import load_config
from gdtrain.config.schema import Config
from gdtrain.data.files.converted import ConvertedFolder
from gdtrain.data.tables.formats.given_rows import GivenTable
from gdtrain.data.tables.known import KnownTable, TableStyle
from gdtrain.data.tables.preparation import Column, Preprocessing, as_tensor, check_finite
from gdtrain.errors import ConfigError, DataError, OutputError
from gdtrain.output.run_directory import (
    AVERAGED,
    CHECKPOINTS,
    CONFIG,
    PREPROCESSING,
    WEIGHTS,
    no_run,
)
from gdtrain.training.placement.device import autocast, parameter_dtype
from gdtrain.training.state.random_generators import RngState
from gdtrain.wording import html_table

# Rows per forward pass: a number of passes only, never of a result.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A trained model on the CPU, with the preprocessing of its data.

    config: the run's resolved configuration. model: in eval mode. preprocessing: applied by
    :meth:`predict`, which therefore takes rows as they were in the data source.

    >>> from gdtrain.cli.main import main
    >>> main(["--config", "minibatch.yaml", "epochs=1", "--output-dir", "trained"])
    0
    >>> from gdtrain import load_run
    >>> run = load_run("trained")
    >>> run.model.training
    False
    """

    config: Config
    model: nn.Module
    preprocessing: Preprocessing

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value}" for name, value in self._rows())
        return f"TrainedRun({shown})"

    def _repr_html_(self) -> str:
        return html_table([], self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        parameters = sum(p.numel() for p in self.model.parameters())
        return [
            ("model", f"{self.config.model.name} of {parameters:,} parameters"),
            ("loss", self.config.loss.name),
            ("data", self.config.data.source),
            ("inputs", str(self.preprocessing.input_shape)),
            ("epochs", f"{self.config.epochs:,}"),
        ]

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0, 1, …, where the targets were labels of named classes."""
        return self.preprocessing.class_names

    def predict(self, inputs: Any) -> Tensor:
        """The model's outputs [n, k] for raw rows [n, …], a tensor or an array.

        Inputs are standardised and shaped as in training; outputs for standardised targets are
        converted back to the targets' original units. Raises DataError for rows that do not fit.
        """
        try:
            rows = as_tensor(inputs, "inputs")
        except DataError as error:
            if self.preprocessing.columns is None:
                raise
            raise DataError(f"{error}, or give predict_table the rows with their columns") from None
        if not len(rows):
            raise DataError("inputs: there are no rows; at least one is needed")
        ready = self._ready(rows)
        with torch.no_grad(), autocast(self.config.precision, torch.device("cpu")):
            parts = torch.split(ready, _ROWS_AT_ONCE)
            outputs = torch.cat([self.model(part) for part in parts])
        return self.preprocessing.restore_targets(outputs)

    def _ready(self, rows: Tensor) -> Tensor:
        """Raw rows as the model takes them."""
        check_finite(rows, "inputs")
        is_built_in = registry.find("model", self.config.model.name).is_built_in
        if is_built_in and not rows.is_floating_point():
            rows = rows.float()
        ready = self.preprocessing.apply(rows)
        if ready.is_floating_point():
            ready = ready.to(next(self.model.parameters()).dtype)
        return ready

    def evaluate(self, path: str | Path) -> dict[str, float]:
        """The run's loss and metrics on the labelled rows of a file, and how many ``samples``.

        path: a table with the columns of the training table and its targets; a .npz, .pt or
        .safetensors file of arrays, named as in training, or x and y; or a folder that convert
        wrote. The loss is in the same units as ``val_loss``.

        Raises DataError for what can't be read or does not fit.
        """
        loaded = read_labelled(self.config, self.preprocessing, Path(path))
        fit = partial(self._fit_targets, str(path))
        if isinstance(loaded, ConvertedFolder):
            samples: Any = loaded.samples(fit, self.preprocessing)
        else:
            targets = self.preprocessing.apply_to_targets(fit(loaded.targets, 0))
            samples = (self._ready(loaded.inputs), targets)
        return evaluated(self.config, self.model, self.preprocessing, samples)

    def _fit_targets(self, path: str, targets: Tensor, first_row: int) -> Tensor:
        fitted, outputs = (
            fit_targets(self.config, targets, first_row),
            self.preprocessing.num_outputs,
        )
        if self.config.loss.targets.classes and int(fitted.max()) >= outputs:
            raise DataError(
                f"{path}: holds label {int(fitted.max())}, but the model was trained on {outputs} "
                f"classes, 0 … {outputs - 1}"
            )
        return fitted

    def columns_of(self, outputs: Tensor) -> dict[str, list[Any]]:
        """The outputs [n, k] as named columns, as the command ``predict`` writes them.

        For classification, including two named classes with a binary loss, ``prediction``, the name
        of the most likely class, and a column for each class: its probability, or its score if the
        loss has no probabilities. Otherwise a column for each target, under its name if the data
        had names.
        """
        flat, loss = outputs.double().flatten(1), self.config.loss
        probabilities = loss.probabilities(flat)
        values = flat if probabilities is None else probabilities
        if loss.targets.binary and self.class_names and probabilities is not None:
            flat = values = torch.cat([1 - values, values], dim=1)  # the first of the classes is 0
        elif not loss.targets.classes:
            return dict(zip(self._target_names(flat.shape[1]), values.T.tolist(), strict=True))
        names = self.class_names or [str(label) for label in range(flat.shape[1])]
        likeliest = [names[label] for label in flat.argmax(1).tolist()]
        return {"prediction": likeliest} | dict(zip(names, values.T.tolist(), strict=True))

    def _target_names(self, count: int) -> list[str]:
        named = getattr(self.config.data, "target", None)
        names = [named] if isinstance(named, str) else list(named or ())
        if len(names) == count:
            return names
        return ["prediction"] if count == 1 else [f"prediction_{n}" for n in range(count)]

    def predict_csv(self, path: str | Path, delimiter: str | None = None) -> Tensor:
        """:meth:`predict` for the rows of a table in a file, with columns as in training.

        delimiter: of a CSV file; by default that of the training file. Raises DataError for a
        missing column, a row that does not fit, or a run whose data was not a table.
        """
        style = TableStyle.of(self.config.data)
        if delimiter is not None:
            style = replace(style, dialect=replace(style.dialect, delimiter=delimiter))
        table = KnownTable(str(path), self._columns(str(path)), style)
        return torch.cat([outputs for outputs, _ in self._predicted(table, "error")])

    def predict_table(self, table: Any, *, on_bad_row: OnBadRow = "error") -> dict[str, list[Any]]:
        """The columns of :meth:`columns_of` for the rows of a table, in their order.

        table: a path, a pandas, polars or Arrow table, a mapping of names to columns, or a list of
        mappings. on_bad_row: how to treat a row that can't be read: raise an error, leave it out
        (skip), or give None in all columns (empty).

        Raises DataError for a missing column, or a row that does not fit.
        """
        parts = list(self.predictions(table, on_bad_row=on_bad_row))
        return {name: [v for part in parts for v in part[name]] for name in parts[0]}

    def predictions(
        self, table: Any, *, on_bad_row: OnBadRow = "error", bad_rows: BadRows | None = None
    ) -> Iterator[dict[str, list[Any]]]:
        """The same, some rows at a time, in memory for these. bad_rows: takes notice of such."""
        is_path = isinstance(table, str | Path)
        name = str(table) if is_path else GivenTable.path
        given = None if is_path else GivenTable(table)
        known = KnownTable(name, self._columns(name), TableStyle.of(self.config.data), given)
        for outputs, bad in self._predicted(known, on_bad_row, bad_rows):
            columns = self.columns_of(outputs)
            for values in columns.values() if on_bad_row == "empty" else ():
                for row in bad:
                    values[row] = None
            if on_bad_row == "skip" and bad:
                gone = set(bad)
                columns = {
                    name: [value for row, value in enumerate(values) if row not in gone]
                    for name, values in columns.items()
                }
            yield columns

    def _columns(self, path: str) -> list[Column]:
        if self.preprocessing.columns is None:
            raise DataError(
                f"{path}: the model was not trained on a table, so its columns have no names; "
                "give predict an array"
            )
        return self.preprocessing.columns

    def _predicted(
        self, table: KnownTable, on_bad_row: OnBadRow, bad_rows: BadRows | None = None
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Outputs for consecutive rows, and which of these are bad and have outputs of zeros."""
        for inputs, faults in table.batches():
            if faults and on_bad_row == "error":
                raise DataError(f"{table.fault(faults)}; --on-bad-row skip leaves such rows out")
            if faults and bad_rows is not None:
                bad_rows.first = bad_rows.first or str(table.fault(faults))
                bad_rows.count += len(faults)
            bad = list(faults)
            inputs[bad] = 0.0
            yield self.predict(inputs), bad


OnBadRow = Literal["error", "skip", "empty"]


@dataclass
class BadRows:
    """How many rows of a table did not fit, and what was wrong with the first of them."""

    count: int = 0
    first: str = ""


def load_run(directory: str | Path, *, averaged: bool = False, best: bool = False) -> TrainedRun:
    """Read the directory of a finished run.

    averaged: use the averaged weights of a run with ``averaging`` instead of the last ones.
    best: use those of the best epoch, which a run with ``checkpoint.keep_best`` keeps; the run may
    have been killed.

    Register a model of your own before the call. Raises OutputError if the directory is
    not that of a finished run, ConfigError or DataError for damaged settings, and CheckpointError
    if the weights are not the model's.

    >>> from gdtrain.cli.main import main
    >>> main(["--config", "minibatch.yaml", "epochs=1", "--output-dir", "trained"])
    0
    >>> from gdtrain import load_run
    >>> load_run("trained").config.epochs
    1
    """
    directory = Path(directory)
    if averaged and best:
        raise ConfigError.of("best", "can't be set together with averaged; remove one of the two")
    chosen = AVERAGED if averaged else WEIGHTS
    for name in (CONFIG, PREPROCESSING, *([] if best else [chosen])):
        if not (directory / name).is_file():
            text = f"is not a finished run: it has no {name}"
            if name == WEIGHTS and (directory / CONFIG).is_file():
                text += (
                    f"; to go on with it, give its command with --output-dir {directory} --resume"
                )
            raise OutputError(no_run(directory, text))
    weights = _best_checkpoint(directory) if best else directory / chosen
    config, _ = load_config(directory / CONFIG)
    preprocessing = Preprocessing.load(directory / PREPROCESSING)
    state = RngState.take(torch.device("cpu"))
    model = build_model(config, preprocessing.input_shape, preprocessing.num_outputs)
    state.restore(torch.device("cpu"))  # initial weights were drawn, and are thrown away
    model.to(dtype=parameter_dtype(config.precision, torch.device("cpu")))
    load_weights(model, weights)
    return TrainedRun(config, model.eval(), preprocessing)


def _best_checkpoint(directory: Path) -> Path:
    found = CheckpointStore(directory / CHECKPOINTS).best()
    if found is None:
        text = "has no checkpoint of a best epoch; train with checkpoint: {keep_best: val_loss}"
        raise OutputError(f"{directory} {text}")
    return found
