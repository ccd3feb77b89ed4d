"""PyTorch's own code that looks at numbers in Python, made to compute the same without looking.

What is captured or recorded runs for batches that Python code never sees. Most such looks only
check what is given, and raise an error; what is wrong then becomes NaN here, and the guard ends the
run. The eager pass before a capture has made the checks for its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.simple_registry import singleton
from torch.distributions import Distribution
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm

from gdtrain.training.engines.capturing.rewritten import Rewritten


@contextmanager
def without_looking(roots: Iterable[Any]) -> Iterator[None]:
    """Let the modules, and all under them, and PyTorch's functions look at no numbers meanwhile."""
    with ExitStack() as stack:
        stack.enter_context(Rewritten())
        stack.enter_context(_averaging_by_tensors(roots))
        stack.enter_context(_unchecked_distributions())
        stack.enter_context(_masks_as_given())
        yield


@contextmanager
def plain_operators() -> Iterator[None]:
    """Let PyTorch compute by operators that have decompositions, and not by fused ones."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(_unordered("aten::_linalg_check_errors"))
        yield


# ── batch normalisation with a plain mean over batches ──────────────────────────────────────


@contextmanager
def _averaging_by_tensors(roots: Iterable[Any]) -> Iterator[None]:
    layers = [
        layer
        for root in roots
        if isinstance(root, nn.Module)
        for layer in root.modules()
        if isinstance(layer, _BatchNorm) and layer.momentum is None and not _is_own(layer)
    ]
    try:
        for layer in layers:
            layer.forward = partial(_batch_norm, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_own(layer: nn.Module) -> bool:
    return type(layer).forward is not _BatchNorm.forward or "forward" in vars(layer)


def _batch_norm(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Batch n counts 1/n in the running statistics; n is a tensor."""
    means, count = layer.running_mean, layer.num_batches_tracked
    if not layer.training or means is None or count is None:
        return _BatchNorm.forward(layer, x)
    layer._check_input_dim(x)  # type: ignore[no-untyped-call]
    variances = layer.running_var
    assert variances is not None
    count.add_(1)
    mean, variance = torch.zeros_like(means), torch.zeros_like(variances)
    result = functional.batch_norm(
        x, mean, variance, layer.weight, layer.bias, training=True, momentum=1.0, eps=layer.eps
    )
    share = 1 / count.to(means.dtype)
    means.copy_(share * mean + (1 - share) * means)
    variances.copy_(share * variance + (1 - share) * variances)
    return result


@contextmanager
def _masks_as_given() -> Iterator[None]:
    """Let Transformers not look whether a mask is the causal one, which computes the same."""
    looks = transformer._detect_is_causal_mask

    def said(*given: Any, **named: Any) -> bool:
        return signature(looks).bind(*given, **named).arguments.get("is_causal") is True

    transformer._detect_is_causal_mask = said
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = looks


# ── checks ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


@contextmanager
def _unordered(operator: str) -> Iterator[None]:
    """Let an operator that only raises errors be left out of graphs."""
    holder = getattr(singleton.find(operator), "effect", None)
    if holder is None or holder.effect is None:  # a PyTorch that does not order it
        yield
        return
    effect = holder.effect
    holder.register(None)
    try:
        yield
    finally:
        holder.register(effect)
