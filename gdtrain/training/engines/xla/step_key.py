"""By what trainers are known to make the same step, in this process or in a later one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.training.engines.capturing.eager_pass import EagerPass
from gdtrain.training.engines.capturing.functional_step import form_of
from gdtrain.training.engines.capturing.python_state import root_package
from gdtrain.training.engines.foreign_code import calls_known_code
from gdtrain.training.run import Run

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout)
# What torch keeps in every module. Names of parameters and buffers are those of the step.
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}


def step_key(seen: EagerPass, batch: Batch) -> str | None:
    """A digest of all that a captured step depends on; None if nobody can tell.

    That is only known where the code is PyTorch's and the project's own, whose steps differ by
    what an eager pass computes, and by the attributes of modules that it reads.
    """
    trainer = seen.step.trainer
    if not calls_known_code(trainer) or root_package(type(trainer).__module__) != "gdtrain":
        return None
    columns = [*batch.inputs] if type(batch.inputs) is tuple else [batch.inputs]
    columns += [batch.targets, batch.indices]
    if seen.read_memory or not all(isinstance(found, Tensor | None) for found in columns):
        return None
    try:
        words = [*_of_code(trainer), *seen.operators]
    except _UnknownError:
        return None
    words += [form_of(tensor) for tensor in columns if tensor is not None]
    words += [trainer.dtype, trainer.device, torch.get_default_dtype()]
    return digest(words)


def digest(words: Any) -> str:
    """Of what stands in words, as ``repr`` gives them."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


class _UnknownError(Exception):
    """What code reads can't be told in words."""


def _of_code(trainer: Run) -> Iterator[str]:
    yield _words(type(trainer))
    for root in (trainer.model, trainer.loss):
        if isinstance(root, nn.Module):
            for path, module in root.named_modules():
                yield f"{path}: {_of_object(module)}"
        else:
            yield _words(root)


def _words(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | list | set | frozenset):
        return f"{type(value).__name__} [{', '.join(map(_words, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_words(k)}: {_words(v)}' for k, v in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial {_words((value.func, value.args, value.keywords))}"
    if isinstance(value, nn.Module):  # which is one of those that are gone through
        return type(value).__qualname__
    name = getattr(value, "__qualname__", "<")
    package = root_package(str(getattr(value, "__module__", "")))
    if "<" in name or package not in ("torch", "gdtrain", "builtins", "math"):
        raise _UnknownError
    return f"{value.__module__}.{name}"


def _of_object(module: nn.Module) -> str:
    attributes = {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
    return f"{_words(type(module))} {_words(attributes)}"
