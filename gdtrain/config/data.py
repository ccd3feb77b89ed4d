"""From the data section to samples that fit the loss; and labelled data besides, read likewise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gdtrain import registry
from gdtrain.config.schema import Config
from gdtrain.data.files.convert import DESCRIPTION
from gdtrain.data.files.converted import ConvertedFolder
from gdtrain.data.tables.known import KnownTable, TableStyle
from gdtrain.data.tables.preparation import (
    Column,
    LoadedData,
    PreparedData,
    Preprocessing,
    as_tensor,
    check_finite,
    class_labels,
    number_targets,
    prepare,
    split,
)
from gdtrain.data.tables.sparse import prepare_sparse
from gdtrain.data.tables.table import LoadedTable, MissingRules, but_numbers
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import shown
from gdtrain.settings import LossSettings, SourceSettings
from gdtrain.training.evaluating.metrics import losses_of_errors
from gdtrain.wording import is_number

logger = logging.getLogger("gdtrain")


Loaded = LoadedData | LoadedTable | ConvertedFolder | Dataset[Any] | PreparedData


def prepare_data(config: Config, read: Callable[[Config], Loaded] | None = None) -> PreparedData:
    """Read, check, split and standardise what the data section names.

    read: :func:`read_source`, or what keeps what that has given.
    """
    section = config.data
    loaded = (read or read_source)(config)
    if isinstance(loaded, PreparedData):
        return loaded
    if isinstance(loaded, Dataset):
        return _prepare_dataset(section, loaded, config)
    described = loaded.description if isinstance(loaded, ConvertedFolder) else loaded
    names = described.class_names
    if names and described.columns is not None:
        _check_names(config, names)
    names = _names_kept(config, names) if names else None
    if section.standardize_targets and not config.loss.targets.unit:
        raise ConfigError.of(
            "standardize_targets",
            f"is not defined for {config.loss.name}; it is for {', '.join(losses_of_errors())}, "
            "and for a loss of your own that is registered with targets=Targets(unit=True)",
        )
    if isinstance(loaded, ConvertedFolder):
        return _prepare_converted(section, loaded, config, names)
    parts = _parts(section, loaded, config)
    notes: tuple[str, ...] = ()
    if isinstance(loaded, LoadedTable):
        if loaded.is_sparse:
            return _prepare_sparse(section, loaded, config, parts, names)
        notes, loaded = loaded.notes, loaded.data(parts[0])
    check_finite(loaded.targets, "targets")
    targets = fit_targets(config, loaded.targets)
    num_outputs = _num_outputs(config, [targets], loaded.class_names)
    inputs = loaded.inputs
    if registry.find("model", config.model.name).is_built_in and not inputs.is_floating_point():
        inputs = inputs.float()
    training, validation, preprocessing = prepare(
        LoadedData(inputs, targets, names, loaded.columns),
        parts[:2],
        standardize=section.standardize,
        standardize_targets=section.standardize_targets,
        shape=section.shape,
        num_outputs=num_outputs,
        in_float32=not section.standardize and config.precision != "fp64",
    )
    test = None
    if len(parts[2]):
        held_out = inputs[parts[2]], targets[parts[2]]
        test = preprocessing.apply(held_out[0]), preprocessing.apply_to_targets(held_out[1])
    return PreparedData(training, validation, preprocessing, notes, test)


def _prepare_sparse(
    section: SourceSettings,
    table: LoadedTable,
    config: Config,
    parts: tuple[Tensor, Tensor, Tensor],
    names: list[str] | None,
) -> PreparedData:
    """The same of a table whose categories are made ones and zeros batch by batch."""
    check_finite(table.targets, "targets")
    targets = fit_targets(config, table.targets)
    outputs = _num_outputs(config, [targets], table.class_names)
    nothing = targets.new_zeros(len(targets), 1)  # the inputs come later
    (_, trained), held_out, done = prepare(
        LoadedData(nothing, targets, names),
        parts[:2],
        standardize=False,
        standardize_targets=section.standardize_targets,
        shape=None,
        num_outputs=outputs,
    )
    ready = trained.new_empty((len(targets), *trained.shape[1:]))
    ready[parts[0]] = trained
    if held_out is not None:
        ready[parts[1]] = held_out[1]
    ready[parts[2]] = done.apply_to_targets(targets[parts[2]])
    return prepare_sparse(
        table, ready, parts, done, standardize=section.standardize, shape=section.shape
    )


def _parts(
    section: SourceSettings, loaded: LoadedData | LoadedTable, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples train, which validate, and which are for the test at the end."""
    fraction, seed = section.validation_fraction, config.seed
    nothing = torch.arange(0, device="cpu")
    if not isinstance(loaded, LoadedTable):
        return *split(len(loaded.targets), fraction, seed), nothing
    labels = None
    if loaded.stratify:
        if not config.loss.targets.classes:
            raise ConfigError.of(
                "stratify", f"needs classes, and {config.loss.name} learns numbers; remove it"
            )
        labels = fit_targets(config, loaded.targets)

    rows, drawn = loaded.own, {"test": nothing, "validation": nothing}
    shares = {"test": loaded.test_fraction, "validation": fraction}
    own = {"test": loaded.test, "validation": loaded.validation}
    for part in ("test", "validation"):  # of what the test leaves
        if (given := own[part]) is not None:
            drawn[part] = given
        elif share := shares[part]:
            of_rows = None if labels is None else labels[rows]
            kept, taken = split(
                len(rows), share, seed, shuffle=loaded.shuffle, labels=of_rows, part=part
            )
            rows, drawn[part] = rows[kept], rows[taken]
    return rows, drawn["validation"], drawn["test"]


def _prepare_converted(
    section: SourceSettings, folder: ConvertedFolder, config: Config, kept: list[str] | None
) -> PreparedData:
    """The same without loading the data: the targets are checked in a pass over them."""
    fit = partial(fit_targets, config)
    names = folder.description.class_names
    outputs = _num_outputs(config, folder.fitted_targets(fit), names)
    return PreparedData(
        *folder.prepare(
            fit,
            validation_fraction=section.validation_fraction,
            standardize=section.standardize,
            standardize_targets=section.standardize_targets,
            shape=section.shape,
            num_outputs=outputs,
            named_classes=kept is not None,
            seed=config.seed,
        ),
        folder.notes,
    )


def _names_kept(config: Config, names: list[str]) -> list[str] | None:
    """The names of classes under a loss over classes, or under one for which two are 0 and 1."""
    targets = config.loss.targets
    two = targets.binary and len(names) == 2
    return names if targets.classes or two else None


def _check_names(config: Config, names: list[str]) -> None:
    """Refuse a table's text as targets of a loss for numbers: places in the alphabet mean nothing.

    Built-in classes are 0 and 1 to begin with, and only bear names.
    """
    if all(map(is_number, names)) or _names_kept(config, names) is not None:
        return
    raise ConfigError.of(
        "target",
        f"is text, such as {shown(names[0])}, {but_numbers(config.loss)}",
    )


def fit_targets(config: Config, targets: Tensor, first_row: int = 0) -> Tensor:
    """Targets, [n, …] from row ``first_row`` on, as the loss takes them; DataError if it can't."""
    if config.loss.targets.classes:
        return class_labels(targets, getattr(config.loss, "ignore_index", None), first_row)
    targets = number_targets(targets)
    in_float32 = not config.data.standardize_targets and config.precision != "fp64"
    if in_float32 and targets.dtype == torch.float64:
        check_finite(targets, "targets", first_row, in_float32=True)
    if config.loss.targets.holds is not None:
        _check_range(targets, config.loss, first_row)
    return targets.long() if config.loss.targets.whole else targets


def _num_outputs(config: Config, fitted: Iterable[Tensor], names: list[str] | None) -> int:
    """What the model must give for targets that :func:`fit_targets` made: classes, or columns."""
    if not config.loss.targets.classes:
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


def read_source(config: Config) -> Loaded:
    """What the source of the data gives, before it is split."""
    section = config.data
    given = registry.find("source", section.source).make(
        section,
        seed=config.seed,
        shape=section.shape,
        loss=config.loss,
        in_float32=config.precision != "fp64",
    )
    if isinstance(given, LoadedData | LoadedTable | ConvertedFolder | Dataset | PreparedData):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"source {section.source!r} must give (inputs, targets) or a Dataset")
    return LoadedData(as_tensor(given[0], "inputs"), as_tensor(given[1], "targets"))


class SharedSources:
    """Data that several runs of one process read once: the newest, since others may be large.

    A generated source draws again for each seed; what is split and standardised is each run's own.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._loaded: Loaded | None = None

    def read(self, config: Config) -> Loaded:
        """The same as :func:`read_source`."""
        source = registry.find("source", config.data.source)
        seed = config.seed if source.takes("seed") else None
        key = (config.data, config.loss, config.precision == "fp64", seed)
        if self._loaded is None or key != self._key or config.data.source == "stream":
            self._key, self._loaded = key, read_source(config)
        return self._loaded


def _check_range(targets: Tensor, loss: LossSettings, first_row: int) -> None:
    assert loss.targets.holds is not None
    held = loss.targets.holds(targets)
    if getattr(held, "shape", None) != targets.shape:
        message = "its test of targets must say of each number whether it holds, as y >= 0 does"
        raise DataError(f"{loss.name}: {message}")
    wrong = (~held).nonzero()
    if len(wrong):
        row = int(wrong[0][0])
        value = targets[tuple(wrong[0].tolist())].item()
        raise DataError(
            f"targets: row {first_row + row} is {value:g}; under {loss.name} targets must be "
            f"{loss.targets.must_be}"
        )


def _prepare_dataset(
    section: SourceSettings, dataset: Dataset[Any], config: Config
) -> PreparedData:
    """Split a map-style Dataset; what it gives is taken as it is."""
    for key in ("standardize", "standardize_targets", "shape"):
        if getattr(section, key):
            raise ConfigError.of(key, "has no effect on a Dataset, whose samples are its own")
    if not hasattr(dataset, "__len__"):
        raise DataError(f"the dataset {type(dataset).__name__} has no __len__; give it one")
    if len(dataset) == 0:
        raise DataError("the data set is empty; at least one sample is needed")
    item = dataset[0]
    train, validation = split(len(dataset), section.validation_fraction, config.seed)
    held_out = Subset(dataset, validation.tolist()) if len(validation) else None
    if config.loss.name == "model" and isinstance(item, Mapping):  # its items are named inputs
        return PreparedData(Subset(dataset, train.tolist()), held_out, Preprocessing([], 0))
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError("a Dataset must give pairs (input, target)")
    x, y = torch.as_tensor(item[0], device="cpu"), torch.as_tensor(item[1], device="cpu")
    labels = config.loss.targets.classes
    done = Preprocessing(list(x.shape), 0 if labels else max(1, y.numel()))
    return PreparedData(Subset(dataset, train.tolist()), held_out, done)


# ── labelled data besides those of training ─────────────────────────────────────────────────────

# Files of arrays that say themselves what they are, and their sources.
_ARRAYS = {".npz": "npz", ".pt": "pt", ".pth": "pt", ".safetensors": "safetensors"}


def read_labelled(
    config: Config, preprocessing: Preprocessing, path: Path
) -> LoadedData | ConvertedFolder:
    """Inputs and targets of a file, neither of them standardised.

    A folder is one that convert wrote, or of tables where the run's own was a table; arrays are
    found by the names that the run's own had; anything else is a table with the run's columns.
    Raises DataError if it can't be read.
    """
    if path.is_dir() and (preprocessing.columns is None or (path / DESCRIPTION).exists()):
        return ConvertedFolder(str(path))
    kind = _ARRAYS.get(path.suffix.lower())
    if kind is None:
        return _read_table(config, preprocessing, path)
    names = {}
    if config.data.source == kind:
        names = config.data.model_dump(include={"inputs", "targets"})
    loaded: LoadedData = registry.find("source", kind).make({"path": str(path)} | names)
    return loaded


def _read_table(config: Config, preprocessing: Preprocessing, path: Path) -> LoadedData:
    columns, target = preprocessing.columns, getattr(config.data, "target", None)
    if columns is None or target is None:
        raise DataError(
            f"{path}: the model was not trained on a table, so its columns have no names; give "
            f"arrays in a file that ends in {', '.join(_ARRAYS)}"
        )
    classes = preprocessing.class_names
    names = [target] if isinstance(target, str) else target
    numbered = classes is not None and all(map(is_number, classes))
    wanted = [Column(name, None if numbered else classes) for name in names]
    rules = MissingRules(getattr(config.data, "missing", "error"))
    dropped = [column.name for column in (*columns, *wanted) if rules.of(column.name) == "drop"]
    style = TableStyle.of(config.data)
    table = KnownTable(str(path), [*columns, *wanted], style, dropped=dropped)
    parts = []
    for inputs, faults in table.batches():
        if faults:
            raise table.fault(faults)
        parts.append(inputs)
    both = torch.cat(parts)
    if not len(both):
        raise DataError(f"{path}: no row is left where those with missing cells are left out")
    width = sum(column.width for column in wanted)
    inputs, targets = torch.split(both, [both.shape[1] - width, width], dim=1)
    if classes is None:
        return LoadedData(inputs, targets)
    labels = _places(path, targets[:, 0], classes) if numbered else targets.argmax(1)
    return LoadedData(inputs, labels)


def _places(path: Path, numbers: Tensor, classes: list[str]) -> Tensor:
    """The places of numbers among those that are the names of classes."""
    places = {float(name): place for place, name in enumerate(classes)}
    found = [places.get(number, -1) for number in numbers.tolist()]
    if -1 in found:
        number = float(numbers[found.index(-1)])
        raise DataError(f"{path}: row {found.index(-1)} has the class {number:g}, a new one")
    return torch.tensor(found, device="cpu")
