"""Lowerings to XLA: the values and gradients of PyTorch's operators, subject by subject.

Each function has a parameter of its own, so that one update of all of a subject, compiled at once,
shows the gradient of each; what each gives is in a buffer.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Trainer
from gdtrain.data.batch import Batch
from gdtrain.training.engines.capturing.capture import capture
from gdtrain.training.engines.capturing.eager_pass import EagerPass

jax = pytest.importorskip("jax")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
# Compiling takes most of the time of these tests; what is compiled runs once.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
INDEX = torch.tensor([[2, 0, 1, 2, 0]])


def positive(x: Tensor) -> Tensor:
    return x.abs() + 0.6


def inner(x: Tensor) -> Tensor:
    """Between -0.9 and 0.9."""
    return 0.9 * x.tanh()


def definite(x: Tensor) -> Tensor:
    return x @ x.mT + torch.eye(x.shape[-2], dtype=x.dtype)


def apart(x: Tensor) -> Tensor:
    """Singular values that are apart, on whose distances the error of a gradient depends."""
    return x / 4 + torch.diag(torch.arange(1.0, 6)).to(x)[: x.shape[-2], : x.shape[-1]]


def dominated(x: Tensor) -> Tensor:
    """Square, by its diagonal; it lies row by row in memory."""
    return (inner(x[..., :4]) + 4 * torch.eye(4, dtype=x.dtype)).contiguous()


def picture(x: Tensor, *shape: int) -> Tensor:
    """As many of the elements as a picture of this shape has."""
    return x.flatten()[: math.prod(shape)].reshape(shape)


def row(*values: float):
    return lambda x: torch.tensor(values, dtype=x.dtype)


def called(names: str, of=lambda x: x):
    def call(name):
        return lambda x: getattr(torch, name)(of(x))

    return {name: call(name) for name in names.split()}


def with_other(names: str):
    def call(name):
        return lambda x: getattr(torch, name)(x, positive(x.flip(1)))

    return {name: call(name) for name in names.split()}


def activations(names: str):
    return {name: getattr(F, name) for name in names.split()}


def scattered(how: str):
    index, own = INDEX.expand(3, 4, 5), how != "mean"
    return lambda x: x.scatter_reduce(1, index, x * 2, how, include_self=own)


def resized(mode: str):
    return lambda x: F.interpolate(picture(x, 1, 2, 5, 6), (7, 3), mode=mode)


def sampled(mode: str, padding: str, corners: bool):
    def sample(x):
        grid = 1.5 * picture(x.flip(1), 1, 4, 3, 2)
        return F.grid_sample(picture(x, 1, 2, 5, 6), grid, mode, padding, corners)

    return sample


def distance(p: float):
    return lambda x: torch.cdist(x, x.flip(1) + 1, p=p)


POINTWISE = {
    **called(
        "sin cos tan sinh cosh tanh atan asinh exp exp2 expm1 abs neg square sigmoid erf erfc"
    ),
    **called("sign floor ceil trunc round frac isfinite isnan sinc i0 deg2rad"),
    **called("asin acos atanh erfinv", inner),
    **called("log log2 log10 log1p sqrt rsqrt reciprocal lgamma digamma", positive),
    **with_other("atan2 hypot fmod remainder maximum minimum fmax fmin copysign logaddexp"),
    **with_other("logaddexp2 xlogy mul add sub div lt ge"),
    **activations("elu hardshrink hardsigmoid hardtanh hardswish leaky_relu logsigmoid relu relu6"),
    **activations("selu celu gelu silu mish softplus softshrink softsign tanhshrink"),
    "acosh": lambda x: torch.acosh(positive(x) + 1),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "ndtri": lambda x: torch.special.ndtri(0.05 + 0.9 * x.sigmoid()),
    "i1": torch.special.i1,
    "i0e": torch.special.i0e,
    "polygamma": lambda x: (
        torch.polygamma(2, positive(x)) + torch.polygamma(1, 3 * x) + torch.polygamma(3, 3 * x)
    ),
    "erfcx": lambda x: torch.special.erfcx(4 * x) + torch.special.erfcx(20 * positive(x)),
    "log_ndtr": lambda x: torch.special.log_ndtr(4 * x) + torch.special.log_ndtr(-4 * positive(x)),
    "modified_bessel": lambda x: (
        x
        * torch.special.modified_bessel_i0(x.detach())
        * torch.special.modified_bessel_i1(x.detach())
    ),
    "logit": lambda x: torch.logit(0.1 + 0.8 * x.sigmoid()),
    "pow": lambda x: x**3 + 2**x + positive(x) ** x + positive(x) ** -0.5 + x**2.0,
    "div_modes": lambda x: (
        x * torch.div(x, 0.3, rounding_mode="floor") + x * torch.div(x, 0.3, rounding_mode="trunc")
    ),
    "sgn": lambda x: x * torch.sgn(x),
    "floor_divide": lambda x: x * torch.floor_divide(x.detach(), 0.3),
    "round_decimals": lambda x: x * torch.round(x, decimals=1),
    "lerp": lambda x: torch.lerp(x, x.flip(1), x.sigmoid()),
    "addc": lambda x: torch.addcdiv(torch.addcmul(x, x, x, value=0.5), x, positive(x)),
    "clamp": lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=x.flip(1)) + x.clamp_max(0.3),
    "nan_to_num": lambda x: (
        x * torch.nan_to_num((x / x.round()).detach(), nan=1.0, posinf=2.0, neginf=-3.0)
    ),
    "where": lambda x: torch.where(x > 0, x.sin(), 0.0),
    "whole_numbers": lambda x: x * ((((x * 8).long() ^ 3) << 1) // 3) * (~(x > 0) | (x < 1)),
    "complex": lambda x: (torch.complex(x, x.flip(1)).exp() * torch.complex(x, x).conj()).abs(),
    "angle": lambda x: (
        torch.view_as_real(torch.polar(positive(x), x)).sum(-1) + torch.complex(x, x + 1).angle()
    ),
}
REDUCTIONS = {
    "sum": lambda x: x.sum(1) + x.sum((0, 2), keepdim=True).flatten()[0] + x.sum(),
    "mean": lambda x: x.mean(-1, keepdim=True) + x.mean(),
    "prod": lambda x: x.prod(1) + positive(x).prod(),
    "extremes": lambda x: x.amax((0, 2)) + x.amin(2).sum(0) + torch.aminmax(x, dim=1)[0].sum(),
    "any_all": lambda x: x * (x > 1).any(1, keepdim=True) * (x > -9).all(),
    "std": lambda x: x.std(1) + x.var((0, 2), correction=0).sum() + x.std(),
    "var_mean": lambda x: (
        sum(torch.var_mean(x, 1, correction=2)) + sum(torch.std_mean(x, (0, 1)))[0]
    ),
    "logsumexp": lambda x: x.logsumexp(1) + x.logsumexp((0, 2)).sum(),
    "norms": lambda x: sum(x.norm(p=p, dim=1) for p in (0, 1, 2, 3, math.inf, -math.inf)),
    "renorm": lambda x: x.renorm(2, 1, 1.0),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(2) + F.softmin(x, 0),
    "cumulative": lambda x: x.cumsum(1) + x.cumprod(2) + x.logcumsumexp(0),
    "cumulative_best": lambda x: x.round().cummax(1)[0] * x + x.cummin(2)[0],
    "count_nonzero": lambda x: x * (x > 0).count_nonzero(1).unsqueeze(1),
    "layer_norm": lambda x: F.layer_norm(x, (5,), x[0, 0], x[0, 1]),
    "group_norm": lambda x: F.group_norm(picture(x, 2, 6, 2), 3),
    "instance_norm": F.instance_norm,
    "rms_norm": lambda x: F.rms_norm(x, (5,)),
    "batch_norm": lambda x: F.batch_norm(x, None, None, x[0, :, 0], training=True),
    "local_response_norm": lambda x: F.local_response_norm(x, 2),
    "normalize": lambda x: F.normalize(x) + F.cosine_similarity(x, x.flip(1) + 1, -1).sum(),
    "trace": lambda x: x[0].trace() * x,
    "cov": lambda x: (
        torch.cov(x[0])
        + torch.cov(x[1], correction=0, fweights=INDEX[0] + 1, aweights=positive(x[2, 0]).detach())
        + x[0, 0].cov()
    ),
    "corrcoef": lambda x: torch.corrcoef(x[0]) * x[1].corrcoef() + torch.corrcoef(x[0, 0]),
    "diff": lambda x: x.diff(dim=1).sum(1) + torch.trapezoid(x, dim=1),
}
ORDERING = {
    "sort": lambda x: x.sort(-1)[0] * torch.arange(5) + x.sort(1, descending=True)[0].sum(1, True),
    "stable": lambda x: x * x.round().sort(dim=1, stable=True)[1],
    "argsort": lambda x: x.gather(1, x.argsort(1)) * torch.arange(5),
    "topk": lambda x: x.topk(3, 1)[0].sum(1) + x.topk(2, -1, largest=False)[0].sum(-1).sum(1, True),
    "kthvalue": lambda x: x.kthvalue(2, 1)[0] + x.kthvalue(1, -1, keepdim=True)[0].sum(1),
    "median": lambda x: x.median(1)[0] + x.median() + x.nanmedian(2)[0].sum(1, True),
    "quantile": lambda x: x.quantile(0.3, 1),
    "mode": lambda x: x.round().mode(1)[0] * x[:, 0],
    "max_min": lambda x: x.max(1)[0] + x.min(2)[0].sum(1, True) + x.max() - x.min(),
    "arg": lambda x: x * (x.argmax(1, keepdim=True) + x.argmin() + x.argmax(-1).sum()),
    "histc": lambda x: (
        x.detach().histc(3, -1, 1) * x[0, :3, 0] + (torch.histc(x.detach(), 60) * x.flatten()).sum()
    ),
    "searchsorted": lambda x: (
        x * torch.searchsorted(x.detach().sort(-1)[0], x.detach(), right=True)
    ),
    "bucketize": lambda x: x * torch.bucketize(x.detach(), row(-1, 0, 0.5)(x)),
}
SHAPES = {
    "views": lambda x: x.transpose(1, 2).mT.permute(2, 0, 1).flatten(1).t().unflatten(0, (4, 3)),
    "squeeze": lambda x: x.unsqueeze(1).squeeze().squeeze(0).expand(2, -1, -1, -1).movedim(0, 3),
    "select": lambda x: x.select(1, -1) + x[:, 1] + x[..., ::2].narrow(1, 0, 2).sum(),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1] + x.split(2, 1), 1),
    "chunk": lambda x: (
        torch.stack([part * (i + 1) for i, part in enumerate(x.unbind(1))])
        + torch.cat(x.chunk(3, 2)[::-1], 2).transpose(0, 1)
    ),
    "diagonal": lambda x: x.diagonal(1, 1, 2) + torch.diag_embed(x[:, 0], 1).sum(-1)[:, :4],
    "unfold": lambda x: x.unfold(1, 3, 1) * x.unfold(1, 3, 1).flip(0),
    "as_strided": lambda x: x.contiguous().as_strided((3, 4, 2), (20, 3, 2), 1) ** 2,
    "moves": lambda x: x.flip(1, 2) + x.roll((1, 2), (1, 2)) + x.roll(7),
    "repeat": lambda x: x.repeat(1, 2, 1) * x.repeat_interleave(2, 1),
    "triangles": lambda x: x.tril(1) + x.triu(-1) * 2,
    "pad": lambda x: F.pad(x, (1, -1, 2, 0), value=3.0) * F.pad(x, (0, 0, 1, 1)),
    "pad_modes": lambda x: (
        F.pad(x, (2, 1), mode="reflect") * F.pad(x, (2, 1), mode="replicate")
        + F.pad(x, (1, 2), mode="circular")
    ),
    "pad_modes_2d": lambda x: (
        F.pad(picture(x, 1, 2, 4, 5), (2, 1, 1, 2), mode="reflect")
        * F.pad(picture(x, 1, 2, 4, 5), (2, 1, 1, 2), mode="replicate")
    ),
    "new": lambda x: (
        x * torch.linspace(0, 1, 5) * torch.eye(4, 5)
        + x.new_full((5,), 2.0)
        + torch.arange(5) * torch.ones_like(x)
    ),
    "written": lambda x: (
        torch.zeros_like(x).copy_(x).index_fill_(1, INDEX[0, :1], 2.0)
        * torch.empty_like(x).fill_(1.5).slice_scatter(x[:, :2], 1, 0, 2)
    ),
    "written to what is made of constants": lambda x: (
        x * torch.zeros_like(INDEX, dtype=x.dtype).masked_fill_(INDEX == 0, 2.0).add_(INDEX).sub_(1)
        + torch.ones(5, dtype=x.dtype).mul_(3.0)
    ),
    "setitem": lambda x: (lambda y: (y.__setitem__((slice(None), 0), 1.0), y * x)[1])(x.clone()),
    "diagonal_scatter": lambda x: x.diagonal_scatter(x[:, 0, :4], 0, 1, 2) * x,
}


def set_where(x: Tensor, place: Any, value: Any) -> Tensor:
    written = x.clone()
    written[place] = value
    return written


INDEXING = {
    "index": lambda x: x[:, INDEX[0]] * x[:, [-1, 0, 1, 1, 2]] + x[INDEX[0], INDEX[0]].sum(),
    "index_put": lambda x: torch.zeros_like(x).index_put((INDEX[0],), x[INDEX[0]], accumulate=True),
    "gather": lambda x: x.gather(1, INDEX.expand(2, 2, 5)) + x.take(INDEX),
    "index_select": lambda x: x.index_select(1, INDEX[0]),
    "index_add": lambda x: x.index_add(2, INDEX[0], x * 2, alpha=0.5),
    "index_copy": lambda x: x.index_copy(1, INDEX[0, :2], x[:, 2:] * 2),
    "index_reduce": lambda x: x.detach().index_reduce(1, INDEX[0, :4], x.detach(), "amax") * x,
    "scatter": lambda x: x.scatter(1, INDEX.expand(3, 1, 5), x[:, :1] * 2).scatter(
        1, INDEX.expand(3, 1, 5), 3.0
    ),
    "index_reduce of one": lambda x: (
        x[0, 0, 0].detach().index_reduce(0, INDEX[0, 1:2], x[0, 0, 1].detach(), "mean") * x
    ),
    "scatter_add": lambda x: x.scatter_add(1, INDEX.expand(3, 4, 5), x * 2),
    **{f"scatter_{how}": scattered(how) for how in ("sum", "prod", "mean", "amax", "amin")},
    "masked": lambda x: (
        x.masked_fill(x > 0.5, 0.1) + x.masked_scatter(torch.arange(5) % 2 == 0, x * 2)
    ),
    "put by a mask": lambda x: (
        set_where(x, x > 0.5, 0.1)
        + set_where(x, x[:, 0, 0] > 0, x[0].detach())
        + set_where(x, x[..., 0] > 0, x[0, 0].detach())
        + set_where(x, (slice(None), x[0, :, 1] > 0), x[:, :1].detach())
        + x.index_put((x[..., 0] < 0,), x[:1, 0].detach(), accumulate=True)
    ),
    "put": lambda x: x.put(INDEX, x.flatten()[:5] * 3),
    "repeated": lambda x: (
        x.repeat_interleave(INDEX[0, :4], 1, output_size=5).mT * x[:, 0].unsqueeze(2)
    ),
    "nonzero_static": lambda x: (
        x * torch.nonzero_static(x > 0.2, size=20).sum(1).reshape(4, 5)
        + torch.nonzero_static(x[0] > 0.2, size=30, fill_value=7).sum()
    ),
    "combinations": lambda x: (
        torch.combinations(x[0, 0]).sum(1) * torch.combinations(x[0, :, 0], 2, True)[:, 0]
    ),
    "embedding": lambda x: F.embedding(INDEX, x[0], padding_idx=1),
    "embedding_by_frequency": lambda x: F.embedding(INDEX, x[0], scale_grad_by_freq=True),
    "embedding_bag": lambda x: F.embedding_bag(
        INDEX[0], x[0], torch.tensor([0, 2, 2]), mode="sum", per_sample_weights=x[1, 0]
    ),
    "embedding_bag_mean": lambda x: F.embedding_bag(
        INDEX.expand(2, 5), x[0], mode="mean", padding_idx=0
    ),
    "embedding_bag_max": lambda x: F.embedding_bag(
        INDEX[0], x[0], torch.tensor([0, 2, 2]), mode="max"
    ),
    "one_hot": lambda x: F.one_hot(INDEX, 4).to(x.dtype) @ x,
}
POOLING = {
    "avg1d": lambda x: F.avg_pool1d(x, 3, 2, 1) + F.avg_pool1d(x, 2, ceil_mode=True),
    "avg2d": lambda x: (
        F.avg_pool2d(picture(x, 1, 2, 5, 5), 3, 2, 1, True, False)
        + F.avg_pool2d(picture(x, 1, 2, 5, 5), (2, 3), (2, 2), (0, 1), divisor_override=5).sum()
    ),
    "avg3d": lambda x: F.avg_pool3d(picture(x, 1, 3, 4, 5), 2, 1, 1, True),
    "max1d": lambda x: F.max_pool1d(x, 3, 2, 1, ceil_mode=True),
    "max2d": lambda x: (
        F.max_pool2d(picture(x, 1, 2, 5, 5), (3, 2), 2, 1, ceil_mode=True)
        + F.max_pool2d(picture(x, 1, 2, 5, 5), 2, 1, dilation=2).sum()
    ),
    "max3d": lambda x: F.max_pool3d(picture(x, 1, 3, 4, 5), 2, 1, 1),
    "adaptive": lambda x: F.adaptive_avg_pool1d(x, 3) + F.adaptive_max_pool1d(x, 3),
    "adaptive2d": lambda x: (
        F.adaptive_avg_pool2d(picture(x, 1, 2, 5, 5), (3, 2))
        * F.adaptive_max_pool2d(picture(x, 1, 2, 5, 5), (3, 2))
    ),
    "adaptive3d": lambda x: (
        F.adaptive_avg_pool3d(picture(x, 1, 3, 4, 5), (2, 3, 2))
        * F.adaptive_max_pool3d(picture(x, 1, 3, 4, 5), (2, 3, 2))
    ),
    "fractional2d": lambda x: F.fractional_max_pool2d(
        picture(x, 2, 1, 5, 6),
        (2, 3),
        (3, 2),
        _random_samples=picture(x.detach(), 2, 1, 2).sigmoid(),
    ),
    "fractional3d": lambda x: F.fractional_max_pool3d(
        picture(x, 1, 1, 3, 4, 5),
        2,
        output_ratio=(0.4, 0.5, 0.6),
        _random_samples=picture(x.detach(), 1, 1, 3).sigmoid(),
    ),
    "lp": lambda x: F.lp_pool1d(positive(x), 2, 2),
    "unpool": lambda x: F.max_unpool2d(
        *F.max_pool2d(picture(x, 1, 3, 4, 4), 2, return_indices=True), 2
    ),
}
RESAMPLING = {
    **{mode: resized(mode) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")},
    "linear": lambda x: F.interpolate(x, 8, mode="linear", align_corners=True),
    "scaled": lambda x: (
        F.interpolate(picture(x, 1, 2, 5, 6), scale_factor=(1.7, 0.6), mode="bilinear")
        + F.interpolate(picture(x, 1, 2, 5, 6), scale_factor=(1.7, 0.6), mode="nearest")
    ),
    "corners": lambda x: F.interpolate(
        picture(x, 1, 2, 5, 6), (3, 9), mode="bicubic", align_corners=True
    ),
    "trilinear": lambda x: F.interpolate(picture(x, 1, 1, 3, 4, 5), (3, 5, 2), mode="trilinear"),
    "antialias": lambda x: (
        F.interpolate(picture(x, 1, 2, 5, 6), (3, 8), mode="bilinear", antialias=True)
        + F.interpolate(picture(x, 1, 2, 5, 6), (3, 8), mode="bicubic", antialias=True)
    ),
    "grid_zeros": sampled("bilinear", "zeros", False),
    "grid_border": sampled("bilinear", "border", True),
    "grid_nearest": sampled("nearest", "border", False),
    "grid_reflection": sampled("bilinear", "reflection", True),
    "grid_cubic": sampled("bicubic", "zeros", True),
    "grid_cubic_reflection": sampled("bicubic", "reflection", False),
    "grid_3d": lambda x: F.grid_sample(
        picture(x, 1, 1, 3, 4, 5), picture(x.flip(1), 1, 2, 2, 2, 3), align_corners=False
    ),
    "pixel_shuffle": lambda x: F.pixel_shuffle(picture(x, 1, 4, 3, 5), 2),
    "fold": lambda x: F.fold(F.unfold(picture(x, 1, 2, 5, 6), 2), (5, 6), 2) ** 2,
}
CONVOLUTION = {
    "1d": lambda x: F.conv1d(x, x[:2, :, :3], x[0, 0, :2], padding="same"),
    "2d": lambda x: F.conv2d(
        picture(x, 1, 4, 5, 3), picture(x.flip(1), 6, 2, 2, 2), None, (2, 1), (1, 0), (1, 2), 2
    ),
    "3d": lambda x: F.conv3d(picture(x, 1, 2, 3, 2, 5), picture(x.flip(1), 2, 2, 2, 1, 3)),
    "transposed1d": lambda x: F.conv_transpose1d(x, picture(x, 4, 2, 3), None, 3, 2, 1, 1, 2),
    "transposed2d": lambda x: F.conv_transpose2d(
        picture(x, 1, 4, 5, 3), picture(x.flip(1), 4, 3, 2, 2), x[0, 0, :3].repeat(2), 2, 1, 1, 2, 2
    ),
    "transposed3d": lambda x: F.conv_transpose3d(
        picture(x, 1, 2, 3, 2, 5), picture(x.flip(1), 2, 2, 2, 1, 2), stride=2
    ),
}
LINEAR_ALGEBRA = {
    "products": lambda x: (
        x @ x.mT + torch.einsum("bij,bkj->bik", x, x) + x[0] @ x[1, 0] @ x[0, :, 0]
    ),
    "baddbmm": lambda x: torch.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2.0),
    "addbmm": lambda x: torch.addbmm(x[0] @ x[0].T, x, x.mT, beta=0.5, alpha=2.0),
    "addmm": lambda x: (
        torch.addmm(x[0] @ x[0].T, x[1], x[2].T, alpha=3.0) + torch.addmv(x[0, :, 0], x[0], x[0, 0])
    ),
    "kron": lambda x: torch.kron(x[0], x[1]) + torch.outer(x[0, 0], x[0, 1]).sum(),
    "bilinear": lambda x: F.bilinear(x[0], x[1], x[:, 0, :, None] * x[:, 1, None], x[0, 0, :3]),
    "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 1:4]),
    "solve": lambda x: (
        torch.linalg.solve(definite(x), x)
        + torch.linalg.solve(definite(x).mT, x, left=True)
        + torch.linalg.solve(definite(x.mT), x, left=False)
    ),
    "inverse": lambda x: torch.linalg.inv(definite(x) + x[..., :4]),
    "determinant": lambda x: torch.linalg.det(x[..., :4]) + torch.linalg.slogdet(x[..., 1:])[1],
    "cholesky": lambda x: (
        torch.linalg.cholesky(definite(x)) + torch.linalg.cholesky(definite(x), upper=True)
    ),
    "cholesky_inverse": lambda x: (
        torch.cholesky_inverse(torch.linalg.cholesky(definite(x)))
        + torch.cholesky_inverse(torch.linalg.cholesky(definite(x), upper=True), upper=True)
    ),
    "cholesky_solve": lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(definite(x))),
    "triangular": lambda x: (
        torch.linalg.solve_triangular(definite(x), x, upper=False)
        + torch.linalg.solve_triangular(definite(x.mT), x, upper=True, left=False)
    ),
    "qr": lambda x: torch.linalg.qr(x.mT)[1] + torch.linalg.qr(x.mT)[0][..., :4, :],
    "ormqr": lambda x: (
        torch.ormqr(x[..., :2], inner(x[:, 0, :2]), x)
        + torch.ormqr(x[..., :2], inner(x[:, 0, :2]), x.mT, left=False, transpose=True).mT
    ),
    "eigh": lambda x: (
        torch.linalg.eigvalsh(definite(apart(x)))
        + torch.linalg.eigh(definite(apart(x)))[1].abs().sum()
    ),
    "eig": lambda x: (
        torch.view_as_real(torch.linalg.eigvals(dominated(x) + apart(x)[..., :4])).sum(-1)
        + 0.1 * torch.linalg.eig(dominated(x) + apart(x)[..., :4])[1].abs().sum(-1)
        + torch.linalg.eigvals(apart(x)[..., :4].detach()).abs()
    ),
    "lstsq": lambda x: (
        torch.linalg.lstsq(apart(x.mT), x.mT).solution.sum()
        + torch.linalg.lstsq(apart(x.mT), x.mT, driver="gels").residuals
        + torch.linalg.lstsq(apart(x), x[..., 0]).solution.sum(-1, keepdim=True)
    ),
    "svd": lambda x: (
        torch.linalg.svdvals(x) + torch.linalg.svd(apart(x), full_matrices=False)[0].abs().sum()
    ),
    "pinv": lambda x: (
        torch.linalg.pinv(apart(x)).mT
        + torch.linalg.pinv(apart(x)[..., :4] / 4, hermitian=True).mean()
    ),
    "matrix_exp": lambda x: torch.matrix_exp(definite(x) / 5),
    "matrix_power": lambda x: torch.linalg.matrix_power(definite(x), 3),
    "lu": lambda x: torch.linalg.lu(x[..., :4])[2] + torch.linalg.lu(x[..., :4])[1],
    **{f"cdist_{p}": distance(p) for p in (1.0, 2.0, 3.0, math.inf)},
    "pdist": lambda x: F.pdist(x[0]) + F.pdist(x[1], 1.0),
    "weight_norm": lambda x: torch._weight_norm(x, positive(x[:, :1, :1]), 0),
    "fft": lambda x: torch.fft.fft(x).abs() + torch.fft.fftn(x, norm="ortho").real,
    "rfft": lambda x: torch.view_as_real(torch.fft.rfft(x, n=7)).sum(-1),
    "irfft": lambda x: (
        torch.fft.irfft(torch.fft.rfft(x) ** 2, n=5)
        + torch.fft.irfft2(torch.fft.rfft2(x), s=(4, 5), norm="forward")
    ),
    "ifft": lambda x: torch.fft.ifft2(torch.fft.fft2(x) * torch.complex(x, x)).imag,
}
# PyTorch keeps other factors of a matrix that lies row by row.
LAYOUTS = {
    "solve_by_layout": lambda x: (
        torch.linalg.solve(dominated(x), x)
        + torch.linalg.solve(dominated(x).mT, x)
        + torch.linalg.solve(dominated(x), x.mT, left=False).mT
    ),
    "determinant_by_layout": lambda x: (
        torch.linalg.det(dominated(x))
        + torch.linalg.slogdet(dominated(x))[1]
        + torch.linalg.det(dominated(x).mT)
        + torch.linalg.slogdet(dominated(x).mT)[1]
        + torch.logdet(dominated(x))
    ),
}


def alignments(shape, targets, *lengths):
    """CTC's loss over labels of which blank is the first, and another is; each way to reduce it."""

    def loss(x):
        log_probs, labels = picture(x, *shape), torch.tensor(targets)
        for_all = {"zero_infinity": True}
        return (
            F.ctc_loss(log_probs.log_softmax(-1), labels, *lengths, **for_all)
            + F.ctc_loss(log_probs.tanh(), labels, *lengths, reduction="none", **for_all)
            + F.ctc_loss(log_probs, labels, *lengths, reduction="sum", **for_all)
        )

    return loss


ALIGNMENTS = {  # T, B and C; labels; lengths of inputs and of labels
    "by tuples": ((6, 2, 4), [[1, 2], [3, 3]], (6, 5), (2, 2)),
    "by tensors": (
        (5, 3, 4),
        [[1, 2], [3, 9], [2, 2]],
        torch.tensor([5, 3, 4]),
        torch.tensor([2, 1, 0]),
    ),
    "in a row": ((7, 2, 4), [1, 1, 2, 3], (7, 4), (3, 1)),
    "in a row by tensors": ((7, 2, 4), [1, 1, 2, 3], torch.tensor([7, 3]), torch.tensor([3, 1])),
    "of one": ((6, 5), [4, 1, 1], torch.tensor(6), torch.tensor(3)),
    "impossible": ((4, 3, 5), [[1, 1, 1], [1, 2, 3], [4, 4, 0]], (4, 2, 4), (3, 3, 2)),
    "nothing": ((4, 3, 5), [[1], [1], [1]], (4, 0, 0), (0, 0, 1)),
}
LOSSES = {
    "gaussian_nll": lambda x: (
        F.gaussian_nll_loss(x, x.flip(1).detach(), positive(x), full=True)
        + F.gaussian_nll_loss(x, x.flip(1), positive(x[..., 0]), reduction="sum")
    ),
    "cross_entropy": lambda x: (
        F.cross_entropy(x, INDEX.expand(3, 5), label_smoothing=0.1)
        + F.cross_entropy(x, x.detach().softmax(1))
    ),
    **{f"ctc_{name}": alignments(*given) for name, given in ALIGNMENTS.items()},
    "margins": lambda x: (
        F.triplet_margin_loss(x[0], x[1], x[2])
        + F.cosine_embedding_loss(x[0], x[1], torch.tensor([1, -1, 1, 1]), margin=0.1)
        + F.margin_ranking_loss(x[0], x[1], x[2].sign().detach())
    ),
}
SUBJECTS = {
    "pointwise": POINTWISE,
    "reductions": REDUCTIONS,
    "ordering": ORDERING,
    "shapes": SHAPES,
    "indexing": INDEXING,
    "pooling": POOLING,
    "resampling": RESAMPLING,
    "convolution": CONVOLUTION,
    "linear_algebra": LINEAR_ALGEBRA,
    "layouts": LAYOUTS,
    "losses": LOSSES,
}
# Models of the engine's own tests have most of the others.
AT_ALL_TIMES = {(subject, torch.float64) for subject in ("convolution", "layouts")}
LONG = pytest.mark.long


class Functions(nn.Module):
    """Σ of each function of a parameter [3, 4, 5] of its own, by fixed weights."""

    def __init__(self, functions, dtype) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        x = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64).to(dtype)
        self.functions = functions
        self.of = nn.ParameterList([x.clone() for _ in functions])
        self.register_buffer("values", torch.zeros(len(functions), dtype=dtype))

    def forward(self, scale: Tensor) -> Tensor:
        given = []
        for function, x in zip(self.functions.values(), self.of, strict=True):
            y = function(x)
            y = y.to(x.dtype)
            given.append(
                (y * torch.linspace(1, 2, y.numel(), dtype=x.dtype).reshape(y.shape)).sum()
            )
        self.values = torch.stack(given).detach()
        return torch.stack(given) * scale


class Summing(Trainer):
    def compute_loss(self, batch):
        return self.model(batch.inputs.mean()).sum()


@pytest.mark.filterwarnings("ignore:index_reduce")  # is in beta
@pytest.mark.parametrize(
    ("subject", "dtype"),
    [
        pytest.param(subject, dtype, marks=[] if (subject, dtype) in AT_ALL_TIMES else LONG)
        for subject in SUBJECTS
        for dtype in TOLERANCE
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_pytorch(subject: str, dtype: torch.dtype) -> None:
    from gdtrain.training.engines.xla.lowering.graph import is_lowered, run_step

    model = Functions(SUBJECTS[subject], dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Summing(model, None, optimizer, None, device="cpu", engine="eager")
    batch = Batch(torch.ones(2, dtype=dtype), None, torch.arange(2))
    seen = EagerPass(trainer, batch)
    captured = capture(seen, batch, is_lowered)
    state = [tensor.clone().numpy() for tensor in seen.step.tensors().flat()]
    row = np.array(seen.step.settings_row(), state[0].dtype)
    inputs = [batch.inputs.numpy(), None, batch.indices.numpy()]
    constants = [constant.numpy() for constant in captured.constants]
    with jax.enable_x64(True):
        step = jax.jit(lambda *of: list(run_step(captured, *of)))
        compiled = step.lower(state, row, np.int64(0), inputs, constants).compile(QUICKLY)
        *after, _, _ = compiled(state, row, np.int64(0), inputs, constants)
    trainer.train_step(batch)
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    wrong = {}
    for name, ours in zip([*seen.step.trained, *seen.step.others], after, strict=True):
        theirs = expected[name].detach().numpy()
        difference = np.abs(np.asarray(ours) - theirs) / (1 + np.abs(theirs))
        of = [*model.functions] if name == "values" else [list(model.functions)[int(name[3:])]]
        bad = ~(difference < TOLERANCE[dtype])
        wrong |= {(name, of[i % len(of)]): difference.max() for i in np.flatnonzero(bad)}
    assert not wrong


def test_what_is_read_outside_of_a_table_is_no_number() -> None:
    """PyTorch raises an error there; the guard ends the run at what is not finite."""
    from gdtrain.training.engines.xla.lowering.indexing import INDEXING as LOWERED

    weight, index = np.ones((3, 2), np.float32), np.array([1, 3])
    for read in (
        LOWERED["embedding"](weight * jax.numpy.ones(()), index),
        LOWERED["index_select"](weight * jax.numpy.ones(()), 0, index),
        LOWERED["index"](weight * jax.numpy.ones(()), [index]),
    ):
        assert np.isnan(read).any(1).tolist() == [False, True]
