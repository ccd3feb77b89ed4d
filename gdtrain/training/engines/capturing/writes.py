"""What a graph writes to tensors that it has made itself, as values: ``copy_`` taken out of it.

Tracing does so where numbers of the batch or the state are written. What is made of constants
alone, such as ``zeros_like(mask).masked_fill_(mask, -inf)``, it leaves as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_COPY = torch.ops.aten.copy_.default


def without_writes(graph: fx.Graph) -> None:
    """Let whatever comes after a write read what was written.

    Writes to what earlier nodes have views of, or to what the graph has not made, stay.
    """
    now: dict[fx.Node, Any] = {}  # what a tensor has from here on
    viewed: set[fx.Node] = set()
    written = []

    def value(of: fx.Node) -> Any:
        return now.get(_written_to(of), of)

    for node in list(graph.nodes):
        place = _written_to(node)
        if node.target is _COPY and place not in viewed and _is_own(place, node.args[1]):
            now[place] = value(node.args[1])
            written.append(node)
            continue
        if _is_view(node):
            viewed.update(map(_written_to, node.all_input_nodes))
        node.args = fx.node.map_arg(node.args, value)
        node.kwargs = fx.node.map_arg(node.kwargs, value)
    for node in reversed(written):
        graph.erase_node(node)


def _written_to(node: fx.Node) -> Any:
    """The tensor that a write gives back; what is no write is its own."""
    while node.target is _COPY:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_own(place: fx.Node, source: Any) -> bool:
    """Whether a write is to the whole of a tensor that the graph has made."""
    if place.op != "call_function" or _is_view(place) or not isinstance(source, fx.Node):
        return False
    was, now = place.meta["val"], source.meta["val"]
    return bool(was.shape == now.shape and was.dtype == now.dtype)


def _is_view(node: fx.Node) -> bool:
    """Whether a node may give memory that it is given."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function"
    if node.target is _COPY:
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)
