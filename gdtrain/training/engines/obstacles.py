"""What a compiled engine can't run, in words."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from gdtrain.data.sources import rows_in_memory
from gdtrain.data.streams.stream import StreamSamples
from gdtrain.training.callbacks.callback import Listeners
from gdtrain.training.descent import has_step_hooks
from gdtrain.training.engines.capturing.python_state import PythonState
from gdtrain.training.engines.foreign_code import reads_gradients
from gdtrain.training.run import Run
from gdtrain.training.torch_code import (
    has_global_hooks,
    has_own_pass,
    has_own_update,
    is_in_a_mode,
)

INSTALL = "pip install 'gdtrain[xla]'"
UNEVEN = "the batches of an epoch are of several sizes"
# Methods of the trainer that a compiled engine does not call, or between which it has not made
# its updates visible.
_OVERRIDES = ("_run_epoch", "train_step", "batch_gradient", "finish_gradient", "after_update")


def obstacles(trainer: Run, name: str) -> Iterator[str]:
    """Why the compiled engine ``name`` can't run the trainer, each reason in words."""
    device = {"scan": "cpu", "cuda_graph": "cuda"}[name]
    if name == "cuda_graph" and not torch.cuda.is_available():
        yield "there is no CUDA device"
    elif trainer.device.type != device:
        yield f"it runs on {device}, and the device is {trainer.device}"
    if trainer.loader is not None and trainer.loader.outline(0).sizes is not None:
        yield UNEVEN
    yield from obstacles_in_step(trainer, name)
    if name == "scan" and not is_installed():  # the last: nobody installs jax in vain
        yield f"jax is not installed; {INSTALL}"


def obstacles_in_step(trainer: Run, name: str) -> Iterator[str]:
    """The same, of what may come and go in mid-run."""
    yield from _of_trainer(trainer, name)
    yield from _of_optimizer(trainer.updater)
    yield from _of_model(trainer)
    if not (has_own_pass() and has_own_update()):
        yield "others stand in the place of PyTorch's functions"
    if is_in_a_mode():
        yield "a TorchFunctionMode or a TorchDispatchMode is active, which sees every call"


def is_installed() -> bool:
    """Whether jax is there; it is not imported, which would take a second."""
    return find_spec("jax") is not None and find_spec("jaxlib") is not None


def _of_trainer(trainer: Run, name: str) -> Iterator[str]:
    for method in filter(trainer.has_own, _OVERRIDES):
        yield f"{type(trainer).__name__} overrides {method}; override compute_loss instead"
    for callback in trainer.callbacks:
        if callback.listens_to("on_gradient"):
            yield f"{type(callback).__name__} corrects the gradient of every update"
        if name == "scan" and reads_gradients(callback):
            yield f"{type(callback).__name__} reads .grad, which stays in compiled code"
    if Listeners(trainer.callbacks).of["on_before_update"]:
        yield "a callback looks at every update (on_before_update)"
    own = trainer.schedule.own_code if trainer.schedule.by_step else []
    if any(_is_model(found, trainer) for found in PythonState({"": own}).reached):
        yield "the schedule of every step may look at the model"
    if trainer.world.size > 1:
        yield "several processes exchange gradients in each update"
    if trainer.microbatches:
        yield "microbatch_size cuts each batch"
    if trainer.precision in ("bf16", "fp16"):
        yield f"precision {trainer.precision} is computed by autocast"
    if trainer.loader is not None:
        stream = trainer.loader.samples
        if isinstance(stream, StreamSamples):
            if not stream.feed.alike or name != "scan":
                yield f"the stream of {stream.feed.name} arrives batch by batch"
        elif rows_in_memory(trainer.placed(stream)) is None:
            yield "the data set is not in memory as tensors; give the loader tensors"


def _is_model(found: Any, trainer: Run) -> bool:
    return found is trainer or isinstance(found, nn.Module | nn.Parameter)


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    if type(optimizer) is not torch.optim.SGD:
        yield f"it makes the updates of torch.optim.SGD, not of {type(optimizer).__name__}"
    elif has_step_hooks(optimizer):
        yield "the optimizer has hooks, which look at every update"


def _of_model(trainer: Run) -> Iterator[str]:
    modules = [trainer.model] + ([trainer.loss] if isinstance(trainer.loss, nn.Module) else [])
    parameters = [p for module in modules for p in module.parameters()]
    if {p.dtype for p in parameters} - {trainer.dtype}:
        yield "the parameters are of several dtypes"
    elif trainer.dtype not in (torch.float32, torch.float64):
        yield f"the parameters are {trainer.dtype}"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        yield "a parameter has hooks, which look at every gradient"
    if has_global_hooks():
        yield "there are hooks on all layers, which look at every pass"
    for module in modules:
        for path, layer in module.named_modules():
            if isinstance(layer, torch.jit.ScriptModule):
                yield f"layer {path!r} is scripted"
            if _has_foreign_hooks(layer):
                yield f"layer {path!r} has hooks, which look at every pass"


def _has_foreign_hooks(layer: nn.Module) -> bool:
    """Whether code that is not PyTorch's looks at the layer's passes.

    ``torch.nn.utils`` has hooks of its own, which compute a weight from others in each pass.
    """
    before = layer._forward_pre_hooks.values()
    return (
        any(not type(hook).__module__.startswith("torch.nn.utils.") for hook in before)
        or bool(layer._forward_hooks)
        or bool(layer._backward_hooks or layer._backward_pre_hooks)
    )
