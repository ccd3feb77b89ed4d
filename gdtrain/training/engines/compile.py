"""The eager engine with model and loss compiled by torch.compile, for models that are larger."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Block
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.engines.eager import EagerEngine
from gdtrain.training.run import Run

logger = logging.getLogger("gdtrain")

# Modes that record CUDA graphs are not among them: their outputs last until the next update only.
MODES = ("default", "max-autotune-no-cudagraphs")
_OPTIONS = ("backend", "mode", "fullgraph", "dynamic", "options")


class CompileEngine(EagerEngine):
    """Runs blocks step by step, by a model and a loss module that torch.compile has compiled.

    The names of parameters stay, as ``module.compile()`` leaves the module in its place. It is
    compiled while blocks run; looks in between call it as it is. The weights are those of the
    eager engine up to rounding, and random layers draw as the compiler has them draw.

    Raises ConfigError where the compiler can't do what was asked for.
    """

    name = "compile"

    def __init__(self, trainer: Run, options: Mapping[str, Any]) -> None:
        super().__init__(trainer)
        self._options = dict(options)
        self._compiled: list[tuple[nn.Module, Any]] = []  # with what calls it
        self._breaks = _graph_breaks()

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return their losses. See :meth:`EagerEngine.run`."""
        from torch._dynamo.exc import TorchDynamoException

        try:
            with self._in_place():
                return super().run(block)
        except TorchDynamoException as error:
            reason = str(error).strip().split("\n")[0]
            self.trainer.choice.instead(self.name, ModelError(f"torch.compile: {reason}"))
            raise
        finally:
            self._tell_of_breaks()

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Let the modules of the trainer be called in their compiled form meanwhile."""
        roots = (self.trainer.model, self.trainer.loss)
        modules = [root for root in roots if isinstance(root, nn.Module)]
        own = [(module, module._compiled_call_impl) for module in modules]
        try:
            for module in modules:
                module._compiled_call_impl = self._compiled_call(module)
            yield
        finally:
            for module, call in own:
                module._compiled_call_impl = call

    def _compiled_call(self, module: nn.Module) -> Any:
        for known, call in self._compiled:
            if known is module:
                return call
        if isinstance(module, torch.jit.ScriptModule):
            reason = f"torch.compile: a {module.original_name} that is scripted can't be compiled"
            self.trainer.choice.instead(self.name, ModelError(reason))
        module.compile(**self._options)
        self._compiled.append((module, module._compiled_call_impl))
        return module._compiled_call_impl

    def _tell_of_breaks(self) -> None:
        """Say where the compiler has fallen back to Python, each reason once."""
        now = _graph_breaks()
        for reason in now.keys() - self._breaks.keys():
            first = " ".join(reason.strip().split("\n")[0].split())
            logger.warning("engine: compile: a graph break, which costs speed: %s", first)
        self._breaks = now


def check_options(options: Mapping[str, Any] | None, engine: str) -> dict[str, Any]:
    """The options for ``module.compile()``. Raises ConfigError for what it does not take."""
    if options is None:
        return {}
    if engine != "compile":
        raise ConfigError.of("compile", f"has no effect with engine {engine}; set engine: compile")
    for key in options.keys() - set(_OPTIONS):
        raise ConfigError.of(f"compile.{key}", f"unknown; the options are {', '.join(_OPTIONS)}")
    if (mode := options.get("mode")) not in (None, *MODES):
        raise ConfigError.of("compile.mode", f"must be one of {', '.join(MODES)}; got {mode!r}")
    return {key: value for key, value in options.items() if value is not None}


def _graph_breaks() -> dict[str, int]:
    """How often the compiler had to leave a graph in this process, by reason."""
    from torch._dynamo.utils import counters

    return dict(counters["graph_break"])
