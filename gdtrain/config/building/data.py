"""From the data section to training and validation samples that fit the loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gdtrain.config import registry
from gdtrain.config.schema import Config
from gdtrain.config.sections.data import Data
from gdtrain.config.sections.losses import CLASS_LABEL_LOSSES
from gdtrain.data.arrays import as_tensor, check_finite, check_range
from gdtrain.data.builtin import digits as bundled
from gdtrain.data.builtin import problems
from gdtrain.data.files import array_files as files
from gdtrain.data.files.converted import ConvertedFolder
from gdtrain.data.tables import csv_table as table
from gdtrain.data.tables.preparation import (
    LoadedData,
    Preprocessing,
    class_labels,
    number_targets,
    prepare,
    split,
)
from gdtrain.errors import ConfigError, DataError

logger = logging.getLogger("gdtrain")

# source -> (reader, whether it draws from the seed)
READERS: dict[str, tuple[Callable[..., LoadedData | ConvertedFolder], bool]] = {
    "digits": (bundled.digits, False),
    "teaching": (problems.teaching, True),
    "linear_regression": (problems.linear_regression, True),
    "two_moons": (problems.two_moons, True),
    "quadratic": (problems.quadratic, True),
    "csv": (table.read_csv, False),
    "npz": (files.npz, False),
    "npy": (files.npy, False),
    "pt": (files.pt, False),
    "safetensors": (files.safetensors, False),
    "mapped": (ConvertedFolder, False),
}
REGRESSION = ("mse", "l1", "smooth_l1", "huber")
# loss -> (what its targets must be, a test of a tensor or array of them)
TARGET_RANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bce": ("in 0 … 1", lambda t: (t >= 0) & (t <= 1)),
    "bce_with_logits": ("in 0 … 1", lambda t: (t >= 0) & (t <= 1)),
    "multi_label_soft_margin": ("0 or 1", lambda t: (t == 0) | (t == 1)),
    "hinge_embedding": ("-1 or 1", lambda t: (t == -1) | (t == 1)),
    "soft_margin": ("-1 or 1", lambda t: (t == -1) | (t == 1)),
    "poisson_nll": (">= 0", lambda t: t >= 0),
    "kl_div": (">= 0", lambda t: t >= 0),
    "multi_label_margin": (
        "-1 or the number of a target column, from 0",
        lambda t: (t == t.round()) & (t >= -1) & (t < t.shape[1]),
    ),
}


@dataclass(frozen=True)
class PreparedData:
    """Samples for the two loaders, as (inputs, targets) or a Dataset, and what was done to them."""

    training: Any
    validation: Any | None
    preprocessing: Preprocessing


def prepare_data(config: Config) -> PreparedData:
    """Read, check, split and standardise what the data section names."""
    section = config.data
    loaded = _read(section, config.seed)
    if isinstance(loaded, Dataset):
        return _prepare_dataset(section, loaded, config)
    labels = isinstance(config.loss, CLASS_LABEL_LOSSES)
    if section.standardize_targets and config.loss.name not in REGRESSION:
        raise ConfigError.of(
            "standardize_targets",
            f"has no meaning under {config.loss.name}; it is for {', '.join(REGRESSION)}",
        )
    if isinstance(loaded, ConvertedFolder):
        return _prepare_converted(section, loaded, config, labels)
    check_finite(loaded.targets, "targets")
    targets = _fit_targets(config, loaded.targets)
    num_outputs = _num_outputs(config, [targets], loaded.class_names)
    inputs = loaded.inputs
    if config.model.name not in registry.models.parts and not inputs.is_floating_point():
        inputs = inputs.float()
    if not section.standardize and config.precision != "fp64":
        check_finite(inputs, "inputs")
        check_range(inputs, "inputs")
    training, validation, preprocessing = prepare(
        LoadedData(inputs, targets, loaded.class_names if labels else None, loaded.columns),
        validation_fraction=section.validation_fraction,
        standardize=section.standardize,
        standardize_targets=section.standardize_targets,
        shape=section.shape,
        num_outputs=num_outputs,
        seed=config.seed,
    )
    return PreparedData(training, validation, preprocessing)


def _prepare_converted(
    section: Data, folder: ConvertedFolder, config: Config, labels: bool
) -> PreparedData:
    """The same without loading the data: the targets are checked in a pass over them."""
    fit = partial(_fit_targets, config)
    outputs = _num_outputs(config, folder.fitted_targets(fit), folder.description.class_names)
    return PreparedData(
        *folder.prepare(
            fit,
            validation_fraction=section.validation_fraction,
            standardize=section.standardize,
            standardize_targets=section.standardize_targets,
            shape=section.shape,
            num_outputs=outputs,
            named_classes=labels,
            seed=config.seed,
        )
    )


def _fit_targets(config: Config, targets: Tensor, first_row: int = 0) -> Tensor:
    """Targets, [n, …] from row ``first_row`` on, as the loss takes them; DataError if it can't."""
    if isinstance(config.loss, CLASS_LABEL_LOSSES):
        return class_labels(targets, getattr(config.loss, "ignore_index", None), first_row)
    targets = number_targets(targets)
    if not config.data.standardize_targets and config.precision != "fp64":
        check_range(targets, "targets", first_row)
    if not getattr(config.loss, "log_target", False):
        _check_range(targets, config.loss.name, first_row)
    return targets.long() if config.loss.name == "multi_label_margin" else targets


def _num_outputs(config: Config, fitted: Iterable[Tensor], names: list[str] | None) -> int:
    """What the model must give for targets that :func:`_fit_targets` made: classes, or columns."""
    if not isinstance(config.loss, CLASS_LABEL_LOSSES):
        return max(int(targets[0].numel()) for targets in fitted)
    highest = samples = 0
    for labels in fitted:
        highest, samples = max(highest, int(labels.max())), samples + len(labels)
    if highest >= samples:
        logger.warning(
            "the largest label, %s, makes more classes than there are samples (%s); if the "
            "targets are no labels, use a loss for numbers, such as mse",
            *(f"{highest:,}", f"{samples:,}"),
        )
    return max(highest + 1, len(names or ()))


def _read(section: Data, seed: int) -> LoadedData | ConvertedFolder | Dataset[Any]:
    name: str = section.source  # type: ignore[attr-defined]
    options = section.model_dump(exclude={"source", *Data.model_fields})
    if name in READERS:
        reader, draws = READERS[name]
        return reader(**options, **({"seed": seed} if draws else {}))
    given = registry.sources.parts[name](**options)
    if isinstance(given, LoadedData | Dataset):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"source {name!r} must give (inputs, targets) or a Dataset")
    return LoadedData(as_tensor(given[0], "inputs"), as_tensor(given[1], "targets"))


def _check_range(targets: Tensor, loss: str, first_row: int) -> None:
    if loss not in TARGET_RANGES:
        return
    said, holds = TARGET_RANGES[loss]
    wrong = (~holds(targets)).nonzero()
    if len(wrong):
        row = int(wrong[0][0])
        value = targets[tuple(wrong[0].tolist())].item()
        raise DataError(
            f"targets: row {first_row + row} is {value:g}; under {loss} targets must be {said}"
        )


def _prepare_dataset(section: Data, dataset: Dataset[Any], config: Config) -> PreparedData:
    """Split a map-style Dataset; what it gives is taken as it is."""
    for key in ("standardize", "standardize_targets", "shape"):
        if getattr(section, key):
            raise ConfigError.of(key, "has no effect on a Dataset, whose samples are its own")
    if not hasattr(dataset, "__len__"):
        raise DataError(f"the dataset {type(dataset).__name__} has no __len__; give it one")
    if len(dataset) == 0:
        raise DataError("the data set is empty; at least one sample is needed")
    item = dataset[0]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError("a Dataset must give pairs (input, target)")
    x, y = torch.as_tensor(item[0]), torch.as_tensor(item[1])
    labels = isinstance(config.loss, CLASS_LABEL_LOSSES)
    done = Preprocessing(list(x.shape), 0 if labels else max(1, y.numel()))
    train, validation = split(len(dataset), section.validation_fraction, config.seed)
    held_out = Subset(dataset, validation.tolist()) if len(validation) else None
    return PreparedData(Subset(dataset, train.tolist()), held_out, done)
