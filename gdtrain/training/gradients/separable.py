"""Whether a batch may be cut: layers whose work depends on which samples they see together."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError
from gdtrain.training.gradients.microbatches import is_out_of_memory
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import Keeper, is_stock, unchanged

_OF_THE_BATCH = (
    "computes its statistics over the batch{mode}, so the gradient of a batch is not the sum of "
    "its parts' gradients; use GroupNorm or LayerNorm, {remedy}name it in microbatch_allow to "
    "accept statistics of the parts"
)
_OF_THE_PASS = (
    "{does} in every pass in training mode, and so as often as a batch has parts; put the layer in "
    "eval mode, or name it in microbatch_allow to accept that"
)
# Samples on which buffers are looked at, and by how much of its own movement one may differ.
_FEW, _DIFFERENT = 4, 1e-3

Buffers = dict[tuple[str, str], Tensor]


def check_separable(model: nn.Module, allowed: Collection[str], cut_by: str) -> None:
    """Raise ModelError if a layer is known to mix the samples of a batch, so that it can't be cut.

    allowed: names of layers to pass over. cut_by: the setting that cuts the batch.
    """
    for name, layer in model.named_modules():
        reason = mixes(layer)
        if reason is not None and name not in allowed:
            raise ModelError(f"{cut_by}: layer {described(name, layer)} {reason}")


def check_buffers(
    trainer: Run,
    batch: Batch,
    allowed: Collection[str],
    cut_by: str,
    run: Callable[[Batch], object],
) -> bool:
    """Raise ModelError if a pass over parts of a batch leaves a buffer otherwise than one over all.

    On a few samples of this process's share of a batch, if there is memory for them, and if layers
    that are not PyTorch's have buffers: of PyTorch's it is known. ``run``: a pass over samples.
    Nothing is changed by it. All processes raise the error that one has found. Returns whether
    that is settled: a single sample, as the first batches may have, has no parts.
    """
    found = ""
    if len(batch) > 1 and with_own_buffers(trainer.model):
        few = next(batch.split(min(_FEW, len(batch))))
        try:
            found = _other_buffer(trainer, few, allowed, run) or ""
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
    if message := next(filter(None, trainer.world.gather_text(found)), None):
        raise ModelError(f"{cut_by}: layer {message}")
    return trainer.world.any(len(batch) > 1)


def with_own_buffers(model: nn.Module) -> list[nn.Module]:
    """The layers with buffers that are not PyTorch's, so that nothing is known of them."""
    return [module for module in model.modules() if module._buffers and not is_stock(module)]


def _other_buffer(
    trainer: Run, few: Batch, allowed: Collection[str], run: Callable[[Batch], object]
) -> str | None:
    halves = list(few.split(-(-len(few) // 2)))
    with unchanged(trainer):
        start = Keeper(trainer, "buffers", "generators", "own")
        before = _buffers(trainer.model, allowed)
        run(few)
        whole = _buffers(trainer.model, allowed)
        if _first_other(before, whole, before) is None:  # none has moved
            return None
        start.restore()
        run(halves[0])
        first = _buffers(trainer.model, allowed)
        for half in halves[1:]:
            run(half)
        both = _buffers(trainer.model, allowed)
    other = _first_other(whole, both, before) if trainer.microbatches else None
    if other is None and trainer.world.size > 1:  # each process sees its share alone
        other = _first_other(whole, first, before)
    if other is None:
        return None
    name, buffer = other
    layer = trainer.model.get_submodule(name)
    return f"{described(name, layer)} " + _OF_THE_PASS.format(does=f"moves its buffer {buffer!r}")


def _buffers(model: nn.Module, allowed: Collection[str]) -> Buffers:
    return {
        (name, key): buffer.detach().clone()
        for name, module in model.named_modules()
        if name not in allowed
        for key, buffer in module._buffers.items()
        if buffer is not None
    }


def _first_other(one: Buffers, other: Buffers, before: Buffers) -> tuple[str, str] | None:
    """The first buffer of which these two differ, by more than a share of its movement."""
    for place in {**one, **other}:
        a, b, old = one.get(place), other.get(place), before.get(place)
        if a is None or b is None or a.shape != b.shape:
            return place
        if torch.equal(a, b):
            continue
        if not a.is_floating_point() or old is None or old.shape != a.shape:
            return place
        bound = _DIFFERENT * (a - old).double().norm()
        if not (a - b).double().norm() <= bound:
            return place
    return None


def mixes(layer: nn.Module) -> str | None:
    """What a layer does that depends on the samples it sees together, if it does."""
    tracks = getattr(layer, "running_mean", None) is not None
    if _is(layer, nn.modules.batchnorm._BatchNorm, "BatchNorm"):
        if not tracks:  # in eval mode too
            return _OF_THE_BATCH.format(mode="", remedy="or ")
        if layer.training:
            remedy = "put the layer in eval mode, or "
            return _OF_THE_BATCH.format(mode=" in training mode", remedy=remedy)
    if not layer.training:
        return None
    if tracks and _is(layer, nn.modules.instancenorm._InstanceNorm, "InstanceNorm"):
        return _OF_THE_PASS.format(does="moves its running statistics")
    hooks = layer._forward_pre_hooks.values()
    if isinstance(layer, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
        return _OF_THE_PASS.format(does="estimates a norm again")
    return None


def _is(layer: nn.Module, kind: type[nn.Module], word: str) -> bool:
    """Whether a layer is of this kind, or was when it was scripted or traced."""
    scripted = isinstance(layer, torch.jit.ScriptModule)
    return isinstance(layer, kind) or (scripted and word in getattr(layer, "original_name", ""))


def draws(layer: nn.Module) -> bool:
    """Whether a layer is known to draw random numbers in each pass."""
    if not layer.training:
        return False
    rate = getattr(layer, "dropout", None)  # of attention and recurrent layers
    drops = layer.p > 0 if isinstance(layer, nn.modules.dropout._DropoutNd) else False
    return drops or isinstance(layer, nn.RReLU) or (isinstance(rate, float) and rate > 0)


def described(name: str, layer: nn.Module) -> str:
    """A layer's path and its type."""
    kind = getattr(layer, "original_name", type(layer).__name__)
    return f"{name or 'model'!r} ({kind})"
