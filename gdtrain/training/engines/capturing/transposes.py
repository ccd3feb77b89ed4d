"""Matrices of a captured step that may be kept transposed: weights of layers that read the batch.

Such a layer computes x Wᵀ and the gradient dᵀ x; as nobody asks for that of x, W itself is in no
product. Wᵀ lies in memory as x Wᵀ reads it, and is updated as W is, by xᵀ d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

_KEPT = ("detach", "alias", "clone")
_ARITHMETIC = ("add", "sub", "mul", "neg")
_PRODUCTS = ("mm", "addmm")
_FINITE = ("abs", "eq")  # by which a gradient is seen to be finite


def kept_transposed(state: Sequence[fx.Node], results: Sequence[fx.Node]) -> list[bool]:
    """For each tensor of the state, whether the step needs its transpose alone.

    state, results: the placeholders of the state, and what the step makes of them.
    """
    chosen: set[fx.Node] = set()
    pairs = dict(zip(state, results, strict=True))
    for before, after in pairs.items():
        if _is_matrix(before) and before not in chosen:
            together = {node: pairs[node] for node in _computed_from(after) if node in pairs}
            if before in together and _needs_transposes_alone(together):
                chosen |= together.keys()
    return [node in chosen for node in state]


def computed_transposed(updated: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """What may be computed from transposes, element by element, in an update of matrices.

    updated: what the update makes of each of them.
    """
    left = list(updated)
    found = set(left)
    while left:
        for user in left.pop().users:
            if _name(user) in (*_KEPT, *_ARITHMETIC) and user not in found and _is_even(user):
                found.add(user)
                left.append(user)
    for after in updated.values():  # and what is made of a gradient before that
        found |= {node for node in _computed_from(after) if _name(node) in _ARITHMETIC}
    return found


def _needs_transposes_alone(updated: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether products with transposes are all that a step needs of matrices updated together."""
    found = computed_transposed(updated)
    if not found.issuperset(updated.values()):
        return False
    users = {user for node in found for user in node.users} - found
    transposes = [user for user in users if _name(user) == "t"]
    operands = {operand for node in found for operand in node.all_input_nodes} - found
    return (
        bool(transposes)
        and all(user.op == "output" or _name(user) == "t" for user in users)
        and all(_is_right_factor(node) for node in transposes)
        and all(_is_plain_gradient(node, found) for node in operands if _shape(node))
    )


def _is_right_factor(node: fx.Node) -> bool:
    return all(_name(user) in _PRODUCTS and user.args[-1] is node for user in node.users)


def _is_plain_gradient(node: fx.Node, users: set[fx.Node]) -> bool:
    """Whether a node is a product that the update alone reads, and whoever asks if it is finite."""
    while _name(node) in (*_KEPT, "t"):
        if not all(user in users or _name(user) in _FINITE for user in node.users):
            return False
        node, users = node.all_input_nodes[0], {node}
    return _name(node) == "mm" and set(node.users) <= users


def _computed_from(after: fx.Node) -> Iterator[fx.Node]:
    """What a node is computed from, element by element, and itself."""
    left, seen = [after], set()
    while left:
        node = left.pop()
        if node not in seen and _shape(node) == _shape(after):
            seen.add(node)
            yield node
            if _name(node) in (*_KEPT, *_ARITHMETIC) and _is_even(node):
                left += node.all_input_nodes


def _is_even(node: fx.Node) -> bool:
    """Whether all operands are numbers or of the node's own shape."""
    return all(_shape(operand) in ((), _shape(node)) for operand in node.all_input_nodes)


def _is_matrix(node: fx.Node) -> bool:
    return len(_shape(node)) == 2


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else (-1,)


def _name(node: fx.Node) -> str:
    """Of an operator of PyTorch, without its overload."""
    return node.target._schema.name[6:] if isinstance(node.target, torch._ops.OpOverload) else ""
