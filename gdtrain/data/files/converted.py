"""A folder that convert wrote, as samples: checked, split and standardised without loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.files.convert import INPUTS, TARGETS, Converted
from gdtrain.data.files.mapped import MappedSamples, RowArray, held_out
from gdtrain.data.files.shards import ShardedArray
from gdtrain.data.samples import Samples, TransformedSamples
from gdtrain.data.tables.preparation import (
    Column,
    Preprocessing,
    check_finite,
    sample_shape,
    usable_statistics,
)
from gdtrain.errors import DataError
from gdtrain.registry import register_source
from gdtrain.settings import FilePath, SourceSettings

# Rows of one piece of a pass over the data.
PASS_ROWS = 4096

FitTargets = Callable[[Tensor, int], Tensor]


class Mapped(SourceSettings):
    """A folder written by `python -m gdtrain convert`, of any size, read as it is needed."""

    path: FilePath
    """The folder, relative to the working directory."""


@register_source("mapped", Mapped)
class ConvertedFolder:
    """The arrays of a converted folder and their description.

    notes: what is to be said of them before training.

    Raises DataError if ``path`` is no such folder, or its parts do not fit each other.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.description = Converted.load(path)
        self.arrays: list[RowArray] = [ShardedArray(f"{path}/{each}") for each in (INPUTS, TARGETS)]
        for array in self.arrays:
            if len(array) != self.description.num_samples:
                raise DataError(
                    f"{array.path}: holds {len(array)} rows, but {self.description.num_samples} "
                    "were converted; convert again"
                )

    def fitted_targets(self, fit: FitTargets) -> Iterator[Tensor]:
        """One pass over all targets, as ``fit(targets, number of the first row)`` makes them."""
        for batch in _in_sequence(MappedSamples(self.arrays[1:])):
            first = int(batch.indices[0])
            check_finite(batch.inputs, "targets", first)
            yield fit(batch.inputs, first)

    def prepare(
        self,
        fit: FitTargets,
        *,
        validation_fraction: float,
        standardize: bool,
        standardize_targets: bool,
        shape: list[int] | None,
        num_outputs: int,
        named_classes: bool,
        seed: int,
    ) -> tuple[Samples, Samples | None, Preprocessing]:
        """Training samples, validation samples or None, and what is done to both as they are read.

        The statistics are those of the training part, from one pass over it; see
        :func:`gdtrain.data.tables.preparation.prepare`, which does the same in memory.
        """
        held = held_out(self.description.num_samples, validation_fraction, seed)
        arrays, columns = self.learnt(held)
        training: Samples = MappedSamples(arrays, without=held)
        done = Preprocessing(
            sample_shape(arrays[0].shape[1:], shape),
            num_outputs,
            self.description.class_names if named_classes else None,
            columns,
        )
        if standardize or standardize_targets:
            moments = {"inputs": Moments("inputs"), "targets": Moments("targets")}
            for batch in _in_sequence(training):
                if standardize:
                    moments["inputs"].add(batch.inputs)
                if standardize_targets:
                    moments["targets"].add(fit(batch.targets, 0))
            if standardize:
                mean, std = moments["inputs"].usable()
                done = replace(done, mean=mean, std=std)
            if standardize_targets:
                mean, std = moments["targets"].usable()
                done = replace(done, target_mean=mean, target_std=std)

        validation = MappedSamples(arrays, only=held) if len(held) else None
        return _ready(training, fit, done), validation and _ready(validation, fit, done), done

    def learnt(self, held: Tensor) -> tuple[list[RowArray], list[Column]]:
        """The arrays and their columns, missing cells filled in by the rows that are not held."""
        return self.arrays, self.description.columns

    def samples(self, fit: FitTargets, done: Preprocessing) -> Samples:
        """All samples, with that done to them as they are read."""
        return _ready(MappedSamples(self.arrays), fit, done)


def _ready(samples: Samples, fit: FitTargets, done: Preprocessing) -> Samples:
    """The samples as a model takes them."""

    def ready(batch: Batch) -> Batch:
        inputs = None if batch.inputs is None else done.apply(batch.inputs)
        targets = done.apply_to_targets(fit(batch.targets, 0))
        return Batch(inputs, targets, batch.indices)

    return TransformedSamples(samples, ready)


class Moments:
    """Mean, deviation and extremes of columns, in one pass and in float64.

    Parts are joined by the rule of Chan, Golub and LeVeque (1983), eq. 2.1, which does not
    subtract large sums of squares.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Take in further rows, [k, …]."""
        flat = rows.reshape(len(rows), -1).double()
        mean, low, high = flat.mean(dim=0), flat.amin(dim=0), flat.amax(dim=0)
        squares = ((flat - mean) ** 2).sum(dim=0)
        if self.count == 0:
            self.mean, self._squares, self.low, self.high = mean, squares, low, high
        else:
            apart, total = mean - self.mean, self.count + len(flat)
            self._squares += squares + apart**2 * (self.count * len(flat) / total)
            self.mean = self.mean + apart * (len(flat) / total)
            self.low, self.high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.count += len(flat)

    def usable(self) -> tuple[list[float], list[float]]:
        """Mean and deviation (over n) to standardise by. Raises DataError if there are none."""
        std = (self._squares / self.count).sqrt()
        return usable_statistics(self.mean, std, self.low, self.high, self.name)


def _in_sequence(samples: Samples) -> Iterator[Batch]:
    return samples.read(Plan(0, len(samples), min(len(samples), PASS_ROWS), None))
