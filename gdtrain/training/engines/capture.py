"""Captures the functional step as a graph of PyTorch's operators, and says what can't be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten

from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError
from gdtrain.training.engines.functional import FunctionalStep, State

_RANDOM = ("bernoulli", "native_dropout", "rand", "randn", "normal", "multinomial", "uniform")


@dataclass
class CapturedStep:
    """A step as a graph.

    graph: takes ``[*state, *fixed, row, *batch]`` flat; returns ``[*state, loss, finite]`` flat.
    constants: the tensors that the code reads from elsewhere, in the order of their nodes.
    """

    graph: fx.GraphModule
    constants: list[Tensor]

    @property
    def reads_indices(self) -> bool:
        """Whether the step looks at which samples its batch has."""
        *_, indices = (node for node in self.graph.graph.nodes if node.op == "placeholder")
        return bool(indices.users)


def capture(
    step: FunctionalStep,
    state: State,
    fixed: list[Tensor],
    row: Tensor,
    batch: Batch,
    is_lowered: Callable[[Any], bool],
) -> CapturedStep:
    """Capture ``step`` for tensors of these shapes; none of them is computed with or changed.

    is_lowered: whether an operator may stay in the graph as it is; others are decomposed.
    Raises ModelError, naming the operator, for a step that can't be captured.
    """
    table: Any = {
        target: decomposition
        for target, decomposition in decomposition_table.items()
        if not is_lowered(target)
    }

    def flat(state: State, fixed: list[Tensor], row: Tensor, inputs: Any, rest: Any) -> list[Any]:
        new, loss, finite = step(state, fixed, row, Batch(inputs, *rest))
        return [*new.trained, *new.buffers, *new.momenta, loss, finite]

    rest = (batch.targets, batch.indices)
    tracer = make_fx(
        functionalize(flat),
        decomposition_table=table,
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    with warnings.catch_warnings():  # the eager pass before this one has given them
        warnings.simplefilter("ignore")
        try:
            graph = tracer(state, fixed, row, batch.inputs, rest)
        except ModelError:
            raise
        except Exception as error:  # whatever a model's own code or the tracer may raise
            said = str(error).strip().split("\n")[0]
            raise ModelError(
                f"the step can't be captured as a graph: {type(error).__name__}: {said}"
            ) from error
    graph.graph.eliminate_dead_code()
    _check(graph, is_lowered)
    constants = [
        _attribute(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"
    ]
    return CapturedStep(graph, constants)


def _check(graph: fx.GraphModule, is_lowered: Callable[[Any], bool]) -> None:
    unknown = sorted(
        {
            str(node.target)
            for node in graph.graph.nodes
            if node.op.startswith("call") and not is_lowered(node.target)
        }
    )
    if unknown:
        drawing = [name for name in unknown if name.split(".")[1] in _RANDOM]
        if drawing:
            raise ModelError(f"{', '.join(drawing)} draws random numbers in each step")
        raise ModelError(f"there is no lowering of {', '.join(unknown)}")


def _attribute(graph: fx.GraphModule, target: Any) -> Tensor:
    found: Any = graph
    for part in str(target).split("."):
        found = getattr(found, part)
    assert isinstance(found, torch.Tensor)
    return found


def flat(*trees: Any) -> list[Any]:
    """The tensors of nested lists and tuples in the order of a captured graph's arguments."""
    return tree_flatten(trees)[0]
