"""The eager engine with model and loss compiled by torch.compile, for models that are larger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch, Block
from gdtrain.data.samples import map_batch
from gdtrain.errors import ConfigError
from gdtrain.training.engines.capturing.eager_pass import reached
from gdtrain.training.engines.capturing.functional_step import Places
from gdtrain.training.engines.eager import EagerEngine
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import unchanged
from gdtrain.training.state.plain_values import is_torchs

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
            self.trainer.choice.instead(self.name, EngineError(f"torch.compile: {reason}"))
            raise
        finally:
            self._tell_of_breaks()

    def _steps(self, block: Block, batches: Iterable[Batch]) -> bool:
        """Make the updates, once the first batch has shown what forward writes to."""
        return super()._steps(block, self._looked_at(batches))

    def _looked_at(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if not number:
                self._check_writes(batch)
            yield batch

    def _check_writes(self, batch: Batch) -> None:
        """Refuse a forward that writes to buffers in place, unless layers of PyTorch do.

        torch.compile may lose what is written, or read it in the place of what was there before
        (pytorch/pytorch#197039). An eager pass shows it; nothing is changed by that.
        """
        roots = [m for m in (self.trainer.model, self.trainer.loss) if isinstance(m, nn.Module)]
        held = [found for root in roots for found in _own_buffers(root)]
        if not held:
            return
        versions = [buffer._version for _, buffer in held]
        before = reached(self.trainer, Places(self.trainer))
        compiled = [root._compiled_call_impl for root in roots]
        with unchanged(self.trainer), self.trainer.terms.apart():
            try:
                for root in roots:
                    root._compiled_call_impl = None
                self.trainer.batch_loss(map_batch(batch, torch.clone))
                now = [buffer._version for _, buffer in held]
            finally:
                before.restore()
                for root, call in zip(roots, compiled, strict=True):
                    root._compiled_call_impl = call
        for (name, _), was, version in zip(held, versions, now, strict=True):
            if was != version:
                reason = (
                    f"torch.compile: forward writes to buffer {name} in place, after which "
                    "its gradient may be wrong; rebind it, as in self.count = self.count + 1"
                )
                self.trainer.choice.instead(self.name, EngineError(reason))

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
            self.trainer.choice.instead(self.name, EngineError(reason))
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


def _own_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers, by name, of layers of somebody's own, but for running statistics."""
    return [
        (f"{path}.{key}" if path else key, buffer)
        for path, layer in module.named_modules()
        if not is_torchs(layer) and not isinstance(layer, nn.modules.batchnorm._NormBase)
        for key, buffer in layer._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]


def check_options(options: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """The options for ``module.compile()``. Raises ConfigError for what it does not take."""
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
