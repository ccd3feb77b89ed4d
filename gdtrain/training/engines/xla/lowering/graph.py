"""The table of all lowerings, and the interpreter of captured graphs over it.

A captured graph is decomposed until it holds only what the table knows. To teach it another
operator, add its name to the file of its subject (``NAME``, or ``NAME.OVERLOAD`` where one overload
differs from the others) with a function of the same arguments over jax arrays; arguments on memory
(``layout``, ``device``, …) have been removed, dtypes are jax's. Results are cast to the dtype that
PyTorch gives them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import fx

from gdtrain.training.engines.capturing.capture import CapturedStep
from gdtrain.training.engines.capturing.transposes import computed_transposed
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.engines.xla.lowering import reductions, shapes
from gdtrain.training.engines.xla.lowering.convolution import CONVOLUTION
from gdtrain.training.engines.xla.lowering.indexing import INDEXING
from gdtrain.training.engines.xla.lowering.linear_algebra import LINEAR_ALGEBRA
from gdtrain.training.engines.xla.lowering.losses import LOSSES
from gdtrain.training.engines.xla.lowering.ordering import ORDERING
from gdtrain.training.engines.xla.lowering.pointwise import POINTWISE
from gdtrain.training.engines.xla.lowering.pooling import POOLING
from gdtrain.training.engines.xla.lowering.random_numbers import RANDOM
from gdtrain.training.engines.xla.lowering.resampling import RESAMPLING

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
    torch.complex64: np.dtype("complex64"),
    torch.complex128: np.dtype("complex128"),
}
_ON_MEMORY = (
    *("layout", "device", "pin_memory", "memory_format", "non_blocking", "requires_grad"),
    *("generator", "implicit", "physical_layout"),
)
LOWERINGS: dict[str, Lowering] = {
    **POINTWISE,
    **shapes.SHAPES,
    **reductions.REDUCTIONS,
    **ORDERING,
    **INDEXING,
    **CONVOLUTION,
    **POOLING,
    **RESAMPLING,
    **LINEAR_ALGEBRA,
    **LOSSES,
    **RANDOM,
    **{f"prims.{name}": lowering for name, lowering in shapes.PRIMS.items()},
    **{f"prims.{name}": lowering for name, lowering in reductions.PRIMS.items()},
}


def table_name(target: Any) -> str | None:
    """What the table calls an operator; None if it does not have it.

    Of ``aten.NAME.OVERLOAD`` and ``prims.NAME``, NAME; or more of it, if that is in the table.
    The project's own operators stand there with their namespace.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return None
    namespace, _, name = target._schema.name.partition("::")
    if namespace not in ("aten", "prims", "gdtrain"):
        return None
    for known in (f"{namespace}.{name}", f"{name}.{target._overloadname}", name):
        if known in LOWERINGS:
            return known
    return None


def is_lowered(target: Any) -> bool:
    """Whether the table has the operator."""
    return target is operator.getitem or table_name(target) is not None


def run_graph(
    module: fx.GraphModule,
    arguments: Sequence[Any],
    constants: Sequence[Any],
    keys: Iterator[Any] | None = None,
    transposed: Set[fx.Node] = frozenset(),
) -> Any:
    """The results of a captured graph over jax arrays.

    arguments: of its placeholders, in order. constants: of its ``get_attr`` nodes, in order.
    keys: one for each operator that draws random numbers, in order.
    transposed: nodes to compute so, element by element. XLA leaves out what is transposed twice.
    """
    given, held = iter(arguments), iter(constants)
    values: dict[fx.Node, Any] = {}

    def lowered(tree: Any, turns: bool = False) -> Any:
        found = fx.node.map_arg(tree, lambda of: _turned(values[of], turns != (of in transposed)))
        return _dtype(found) if isinstance(found, torch.dtype) else found

    for node in module.graph.nodes:
        turns = node in transposed
        if node.op == "placeholder":
            values[node] = _turned(next(given), turns)
        elif node.op == "get_attr":
            values[node] = next(held)
        elif node.op == "output":
            return lowered(node.args[0])
        elif node.target is operator.getitem:
            values[node] = lowered(node.args[0])[node.args[1]]
        else:
            name = table_name(node.target)
            assert name is not None
            options = {k: lowered(v) for k, v in node.kwargs.items() if k not in _ON_MEMORY}
            operands = [lowered(argument, turns) for argument in node.args]
            if name in RANDOM:
                assert keys is not None
                operands.insert(0, next(keys))
            if name in shapes.READS_MEMORY:
                options["memory"] = node.args[0].meta["val"]
            values[node] = _as_torch(LOWERINGS[name](*operands, **options), node.meta.get("val"))
    raise AssertionError("a graph ends with its output")


def run_step(
    captured: CapturedStep,
    state: Sequence[Any],
    row: Any,
    number: Any,
    batch: Sequence[Any],
    constants: Sequence[Any],
    transposed: Sequence[bool] = (),
) -> Any:
    """``[*state, loss, finite]`` after a captured step, over jax arrays.

    transposed: for each tensor of the state, whether to compute with its transpose.
    """
    keys = None
    *_, last = captured.graph.graph.nodes
    pairs = zip(captured.graph.graph.nodes, last.args[0], transposed, strict=False)
    nodes = computed_transposed({before: after for before, after, is_so in pairs if is_so})
    if captured.outline.draws:
        *constants, seed = constants
        keys = keys_of(seed, number)
    return run_graph(captured.graph, [*state, row, number, *batch], constants, keys, nodes)


def keys_of(seed: Any, number: Any) -> Iterator[Any]:
    """The keys of a step: functions of the seed, the updates made before it, and the place."""
    of_step = jax.random.fold_in(jax.random.key(seed), number)
    return (jax.random.fold_in(of_step, place) for place in count())


def _turned(value: Any, turns: bool) -> Any:
    return value.T if turns else value


def _dtype(of: torch.dtype) -> np.dtype[Any]:
    if of not in DTYPES:
        raise EngineError(f"it computes with numbers of {of}")
    return DTYPES[of]


def _as_torch(result: Any, expected: Any) -> Any:
    """The result in the dtype that PyTorch gave it, which promotes otherwise than jax."""
    if isinstance(expected, torch.Tensor):
        return jnp.asarray(result, _dtype(expected.dtype))
    if isinstance(expected, tuple | list):
        pairs = zip(result, expected, strict=True)
        return [part if like is None else _as_torch(part, like) for part, like in pairs]
    return result
