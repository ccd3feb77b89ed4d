"""From PyTorch's operators to jax: a table, and the interpreter of captured graphs over it.

A captured graph is decomposed until it holds only what the table knows, so the table is small.
To teach it another operator, add its name (``aten.NAME.overload`` or ``prims.NAME.default``) with
a function of the same arguments over jax arrays; arguments on memory (``layout``, ``device``, …)
have been removed, dtypes are jax's. Results are cast to the dtype that PyTorch gives them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import fx

from gdtrain.training.engines.xla.lowering_layers import LAYERS
from gdtrain.training.engines.xla.lowering_losses import LOSSES

Lowering = Callable[..., Any]

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
    torch.int64: np.dtype("int64"),
    torch.int32: np.dtype("int32"),
    torch.int16: np.dtype("int16"),
    torch.int8: np.dtype("int8"),
    torch.uint8: np.dtype("uint8"),
    torch.bool: np.dtype("bool"),
}
_ON_MEMORY = ("layout", "device", "pin_memory", "memory_format", "non_blocking", "requires_grad")


def _add(x: Any, y: Any, alpha: float = 1) -> Any:
    return x + (y if alpha == 1 else alpha * y)


def _sub(x: Any, y: Any, alpha: float = 1) -> Any:
    return x - (y if alpha == 1 else alpha * y)


def _axes(dims: Any) -> Any:
    """A reduction's dimensions as jax wants them; none given means all."""
    if dims is None or isinstance(dims, int):
        return dims
    return tuple(dims) or None


def _reduce(function: Lowering) -> Lowering:
    def lowered(x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        options = {} if dtype is None else {"dtype": dtype}
        return function(x, axis=_axes(dims), keepdims=keepdim, **options)

    return lowered


def _norm(x: Any, order: float = 2, dims: Any = None, keepdim: bool = False) -> Any:
    if order != 2:
        raise NotImplementedError(f"norm of order {order}")
    return jnp.sqrt(jnp.sum(x * x, axis=_axes(dims), keepdims=keepdim))


def _expand(x: Any, shape: Sequence[int]) -> Any:
    lead = len(shape) - x.ndim
    sizes = [x.shape[i - lead] if size == -1 else size for i, size in enumerate(shape)]
    return jnp.broadcast_to(x, sizes)


def _squeeze(x: Any, dims: Any = None) -> Any:
    chosen = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return jnp.squeeze(x, tuple(d for d in chosen if x.shape[d] == 1))


def _slice(x: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    cut = [slice(None)] * x.ndim
    cut[dim] = slice(start, stop, step)
    return x[tuple(cut)]


def _slice_scatter(
    x: Any, source: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Any:
    cut = [slice(None)] * x.ndim
    cut[dim] = slice(start, stop, step)
    return x.at[tuple(cut)].set(source)


def _index(x: Any, indices: Sequence[Any]) -> Any:
    return x[tuple(slice(None) if i is None else i for i in indices)]


def _index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    place = x.at[tuple(slice(None) if i is None else i for i in indices)]
    return place.add(values) if accumulate else place.set(values)


def _scatter(x: Any, dim: int, index: Any, values: Any) -> Any:
    source = jnp.broadcast_to(jnp.asarray(values, x.dtype), index.shape)
    return jnp.put_along_axis(x, index, source, axis=dim, inplace=False)


def _scatter_add(x: Any, dim: int, index: Any, values: Any) -> Any:
    grid = list(jnp.indices(index.shape, sparse=True))
    grid[dim] = index
    return x.at[tuple(grid)].add(values[tuple(slice(size) for size in index.shape)])


def _var(x: Any, dims: Any = None, correction: float = 1, **_: Any) -> Any:
    return jnp.var(x, axis=_axes(dims), ddof=int(correction))


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    return jnp.clip(x, low, high)


def _arange(*bounds: Any, dtype: Any = None) -> Any:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    return jnp.arange(start, stop, step, dtype)


def _full(shape: Sequence[int], value: Any, dtype: Any = None) -> Any:
    return jnp.full(shape, value, dtype)


def _zeros(shape: Sequence[int], *_: Any, dtype: Any = None) -> Any:
    return jnp.zeros(shape, dtype)


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _softmax(function: Lowering) -> Lowering:
    return lambda x, dim, _: function(x, axis=dim)


_ELEMENTWISE: dict[str, Lowering] = {
    **{name: getattr(jnp, name) for name in ("abs", "sin", "cos", "exp", "expm1", "log", "log1p")},
    **{name: getattr(jnp, name) for name in ("sqrt", "tanh", "sign", "floor", "ceil", "isnan")},
    **{name: getattr(jnp, name) for name in ("maximum", "minimum", "isfinite", "logical_and")},
    **{name: getattr(jnp, name) for name in ("logical_or", "logical_not", "isinf")},
    **{name: getattr(operator, name) for name in ("mul", "neg", "eq", "ne", "lt", "le", "gt")},
    "add": _add,
    "sub": _sub,
    "rsub": lambda x, y, alpha=1: _sub(y, x, alpha),
    "div": lambda x, y: x / y,
    "ge": operator.ge,
    "pow": jnp.power,
    "rsqrt": lax.rsqrt,
    "reciprocal": lambda x: 1 / x,
    "remainder": jnp.remainder,
    "fmod": jnp.fmod,
    "floor_divide": jnp.floor_divide,
    "erf": lax.erf,
    "sigmoid": jax.nn.sigmoid,
    "relu": lambda x: jnp.maximum(x, 0),
    "where": jnp.where,
    "clamp": _clamp,
    "clamp_min": lambda x, low: jnp.maximum(x, low),
    "clamp_max": lambda x, high: jnp.minimum(x, high),
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_not": operator.invert,
}
_SHAPES: dict[str, Lowering] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), lambda x, shape: x.reshape(shape)),
    **dict.fromkeys(("permute", "transpose"), lambda x, dims: jnp.transpose(x, dims)),
    **dict.fromkeys(("clone", "alias", "detach", "lift_fresh_copy", "view_of"), _same),
    **dict.fromkeys(("_to_copy", "convert_element_type"), _same),  # results are cast anyway
    "t": jnp.transpose,
    "expand": _expand,
    "squeeze": _squeeze,
    "unsqueeze": jnp.expand_dims,
    "select": lambda x, dim, index: lax.index_in_dim(x, index, dim, keepdims=False),
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "cat": lambda tensors, dim=0: jnp.concatenate(tensors, dim),
    "stack": lambda tensors, dim=0: jnp.stack(tensors, dim),
    "unbind": lambda x, dim=0: list(jnp.moveaxis(x, dim, 0)),
    "flip": jnp.flip,
    "broadcast_in_dim": lambda x, shape, dims: lax.broadcast_in_dim(x, shape, tuple(dims)),
}
_MAKING: dict[str, Lowering] = {
    "full": _full,
    "full_like": lambda x, value, dtype=None: jnp.full_like(x, value, dtype),
    **dict.fromkeys(("empty", "empty_permuted", "empty_strided", "zeros"), _zeros),
    **dict.fromkeys(("zeros_like", "empty_like"), lambda x, dtype=None: jnp.zeros_like(x, dtype)),
    "ones_like": lambda x, dtype=None: jnp.ones_like(x, dtype),
    "scalar_tensor": lambda value, dtype=None: jnp.asarray(value, dtype),
    "arange": _arange,
    "copy": lambda x, source, *_: jnp.broadcast_to(source, x.shape),
}
_REDUCTIONS: dict[str, Lowering] = {
    **{name: _reduce(getattr(jnp, name)) for name in ("sum", "mean", "prod", "any", "all")},
    **{name: _reduce(getattr(jnp, name)) for name in ("amax", "amin")},
    "linalg_vector_norm": _norm,
    "var": _var,
    "_softmax": _softmax(jax.nn.softmax),
    "_log_softmax": _softmax(jax.nn.log_softmax),
}
_PLACES: dict[str, Lowering] = {
    "gather": lambda x, dim, index: jnp.take_along_axis(x, index, axis=dim),
    "index_select": lambda x, dim, index: jnp.take(x, index, axis=dim),
    "embedding": lambda weight, index, *_: weight[index],
    "index": _index,
    "index_put": _index_put,
    "scatter": _scatter,
    "scatter_add": _scatter_add,
}
LOWERINGS: dict[str, Lowering] = {
    **_ELEMENTWISE,
    **_SHAPES,
    **_MAKING,
    **_REDUCTIONS,
    **_PLACES,
    **LAYERS,
    **LOSSES,
}


def operator_name(target: Any) -> str:
    """``sum`` of ``aten.sum.dim_IntList``; what is no operator of PyTorch by its Python name."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.rpartition("::")[2]
    return str(getattr(target, "__name__", target))


def is_lowered(target: Any) -> bool:
    """Whether the table has the operator."""
    return target is operator.getitem or operator_name(target) in LOWERINGS


def run_graph(module: fx.GraphModule, arguments: Sequence[Any], constants: Sequence[Any]) -> Any:
    """The results of a captured graph over jax arrays.

    arguments: of its placeholders, in order. constants: of its ``get_attr`` nodes, in order.
    """
    given, held = iter(arguments), iter(constants)
    values: dict[fx.Node, Any] = {}

    def lowered(tree: Any) -> Any:
        found = fx.node.map_arg(tree, values.__getitem__)
        return DTYPES[found] if isinstance(found, torch.dtype) else found

    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = next(held)
        elif node.op == "output":
            return lowered(node.args[0])
        elif node.target is operator.getitem:
            values[node] = lowered(node.args[0])[node.args[1]]
        else:
            name = operator_name(node.target)
            options = {k: lowered(v) for k, v in node.kwargs.items() if k not in _ON_MEMORY}
            arguments_of = [lowered(argument) for argument in node.args]
            values[node] = _as_torch(LOWERINGS[name](*arguments_of, **options), node)
    raise AssertionError("a graph ends with its output")


def _as_torch(result: Any, node: fx.Node) -> Any:
    """The result in the dtype that PyTorch gave it, which promotes otherwise than jax."""
    expected = node.meta["val"]
    if isinstance(expected, torch.Tensor):
        return jnp.asarray(result, DTYPES[expected.dtype])
    return result
