"""Exported programs of PyTorch (``.pt2``), which need none of the model's code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gdtrain.output.export.raw_model import RawModel, captured

SUFFIX = ".pt2"


def encoded(model: RawModel, rows: Tensor, facts: dict[str, Any]) -> bytes:
    """The model as a program; facts: kept beside it, as ``gdtrain.json``."""
    file = io.BytesIO()
    extra = {"gdtrain.json": json.dumps(facts, ensure_ascii=False)}
    torch.export.save(captured(model, rows), file, extra_files=extra)
    return file.getvalue()


def reader(data: bytes) -> Callable[[Tensor], Tensor]:
    """The program as whoever loads the file gets it: outputs for raw rows."""
    run: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(data)).module()
    return run
