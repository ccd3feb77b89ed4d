"""Labelled data besides those of training: read as the run's own were."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gdtrain import registry
from gdtrain.config.schema import Config
from gdtrain.data.files.convert import DESCRIPTION
from gdtrain.data.files.converted import ConvertedFolder
from gdtrain.data.tables.known import KnownTable, TableStyle
from gdtrain.data.tables.preparation import Column, LoadedData, Preprocessing
from gdtrain.data.tables.table import MissingRules
from gdtrain.errors import DataError
from gdtrain.wording import is_number

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
    return torch.tensor(found)
