"""Labelled data besides those of training: read as the run's own were."""

from __future__ import annotations

from pathlib import Path

import torch

from gdtrain import registry
from gdtrain.config.schema import Config
from gdtrain.data.files.converted import ConvertedFolder
from gdtrain.data.tables.csv_table import read_inputs
from gdtrain.data.tables.preparation import Column, LoadedData, Preprocessing
from gdtrain.errors import DataError

# Files of arrays that say themselves what they are, and their sources.
_ARRAYS = {".npz": "npz", ".pt": "pt", ".pth": "pt", ".safetensors": "safetensors"}


def read_labelled(
    config: Config, preprocessing: Preprocessing, path: Path
) -> LoadedData | ConvertedFolder:
    """Inputs and targets of a file, neither of them standardised.

    A folder is one that convert wrote; arrays are found by the names that the run's own had;
    anything else is a table with the run's columns. Raises DataError if it can't be read.
    """
    if path.is_dir():
        return ConvertedFolder(str(path))
    kind = _ARRAYS.get(path.suffix.lower())
    if kind is None:
        return _read_table(config, preprocessing, path)
    names = {}
    if config.data.source == kind:
        names = config.data.model_dump(include={"inputs", "targets"})
    loaded: LoadedData = registry.find("source", kind).call({"path": str(path)} | names)
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
    wanted = [Column(name, classes) for name in names]
    both = read_inputs(str(path), [*columns, *wanted], getattr(config.data, "delimiter", ","))
    width = len(names) if classes is None else len(classes)
    inputs, targets = torch.split(both, [both.shape[1] - width, width], dim=1)
    return LoadedData(inputs, targets if classes is None else targets.argmax(1))
