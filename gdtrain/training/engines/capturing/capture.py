"""Captures the functional step as a graph of PyTorch's operators, and says what can't be."""

from __future__ import annotations

import hashlib
import operator
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from gdtrain.data.batch import Batch
from gdtrain.data.tree import map_tensors, tensors_of
from gdtrain.errors import GdtrainError
from gdtrain.training.engines.capturing.eager_pass import EagerPass, is_drawing, reached, unread
from gdtrain.training.engines.capturing.functional_step import (
    SETTINGS_PER_GROUP,
    FunctionalStep,
    State,
    form_of,
)
from gdtrain.training.engines.capturing.python_state import root_package
from gdtrain.training.engines.capturing.transposes import kept_transposed
from gdtrain.training.engines.capturing.without_looking import plain_operators
from gdtrain.training.engines.capturing.writes import without_writes
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.losses.terms import Place
from gdtrain.training.run import Run

_KEPT = ("detach", "alias", "clone", "lift_fresh_copy")  # operators that change no number
# Tracing patches nn.Module, and the filters of warnings, for all threads of the process.
_one_at_a_time = threading.Lock()


@dataclass
class StepOutline:
    """What is to be known of a captured step besides its graph.

    changes: for each tensor of the state, whether the step changes it.
    reads_indices: whether the step looks at which samples its batch has.
    draws: whether it draws random numbers.
    transposed: for each tensor of the state, whether the step needs its transpose alone.
    loss_dtype: ``float32``, for instance. terms: of the loss, and what is logged, in order.
    digest: of the graph in words, with everything that a program which runs it depends on.
    """

    changes: list[bool]
    reads_indices: bool
    draws: bool
    transposed: list[bool]
    loss_dtype: str
    terms: list[Place]
    digest: str


@dataclass
class CapturedStep:
    """A step as a graph.

    graph: takes ``[*state, row, number, *columns, indices]`` flat, the columns in the order of a
    batch's trees; returns ``[*state, loss, finite, *terms]``.
    constants: the tensors that the code reads from elsewhere, in the order of their nodes; of a
    step that draws random numbers, the last one is the seed, int64.
    operators: of the eager pass before it.
    text: the graph in words, with everything that a program which runs it depends on.
    """

    graph: fx.GraphModule
    constants: list[Tensor]
    terms: InitVar[list[Place]]
    operators: list[Any] = field(default_factory=list)
    outline: StepOutline = field(init=False)
    text: str = field(init=False)

    def __post_init__(self, terms: list[Place]) -> None:
        nodes = list(self.graph.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        results = nodes[-1].args[0]
        ends = len(results) - len(terms) - 2
        pairs = zip(inputs, results[:ends], strict=False)
        given = [node.meta["val"] for node in inputs]
        forms = [form_of(tensor) for tensor in (*self.constants, *given)]
        self.text = f"{self.graph.code}\n{forms}"
        self.outline = StepOutline(
            changes=[_source(after) is not before for before, after in pairs],
            reads_indices=bool(inputs[-1].users),
            draws=any(is_drawing(node.target) for node in nodes),
            transposed=kept_transposed(inputs[:ends], results[:ends]),
            loss_dtype=str(results[ends].meta["val"].dtype).removeprefix("torch."),
            terms=terms,
            digest=hashlib.sha256(self.text.encode()).hexdigest(),
        )

    def differs(self, other: CapturedStep) -> str | None:
        """What is not the same in another capture, in words; None if the two are one step."""
        mine, theirs = (captured.text.splitlines() for captured in (self, other))
        for one, another in zip(mine, theirs, strict=False):
            if one != another:
                return f"{_shown(one)}, and then {_shown(another)}"
        if len(mine) != len(theirs):
            return f"{len(mine)} operations, and then {len(theirs)}"
        for held, now in zip(self.constants, other.constants, strict=True):
            if held is not now and not _equal(held, now):
                return f"the values of a tensor {list(held.shape)}"
        return None


def capture(
    seen: EagerPass,
    batch: Batch,
    is_lowered: Callable[[Any], bool],
    known: CapturedStep | None = None,
) -> CapturedStep:
    """Capture the step that a pass over ``batch`` has shown; nothing is computed or changed.

    is_lowered: whether an operator may stay in the graph as it is; others are decomposed.
    known: an earlier capture, which is returned if the pass was as the one before it.
    Another pass is made as if an update lay between, to see that the step does not change from one
    to the next; where a pass can't tell, it is captured twice. Raises EngineError, naming the
    reason, for a step that can't be captured.
    """
    if known is not None and known.operators == seen.operators:
        return known
    step = seen.step
    captured = _trace(step, batch, is_lowered)
    _check_operators(captured.graph, is_lowered)
    _check_constants(step, captured)
    with _moved_on(step.trainer):
        again = captured if _stays(seen, batch) else _trace(step, batch, is_lowered)
    if (difference := captured.differs(again)) is not None:
        raise EngineError(
            "what it computes changes from one step to the next by something else than tensors, "
            f"such as a clock, a counter or the learning rate: {difference}"
        )
    captured.operators = seen.operators
    if captured.outline.draws:
        captured.constants.append(present_seed())
    return captured


def _stays(seen: EagerPass, batch: Batch) -> bool:
    """Whether another pass shows for certain that the step is the same still."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pass before has given them
        try:
            return seen.recurs(batch)
        except Exception:  # whatever a model's own code may raise; a capture says what that is
            return False


def present_seed() -> Tensor:
    """The seed of PyTorch's generator as a tensor [] int64, which has its bits."""
    seed = torch.initial_seed()
    return torch.tensor(seed - (seed >> 63 << 64), device="cpu")


def _trace(step: FunctionalStep, batch: Batch, is_lowered: Callable[[Any], bool]) -> CapturedStep:
    table: Any = {
        target: decomposition
        for target, decomposition in decomposition_table.items()
        if not is_lowered(target)
    }

    terms: list[Place] = []

    def flat(
        state: State, row: Tensor, number: Tensor, columns: list[Tensor], indices: Tensor
    ) -> list[Any]:
        rows = iter(columns)
        inputs, targets = map_tensors((batch.inputs, batch.targets), lambda _: next(rows))
        with _Reads(number):
            made = step(state, row, number, Batch(inputs, targets, indices))
        terms[:] = made.terms
        return [*made.state.flat(), made.loss, made.finite, *made.terms.values()]

    columns = tensors_of((batch.inputs, batch.targets))
    settings = [0.0] * (SETTINGS_PER_GROUP * len(step.groups))
    row = torch.tensor(settings, dtype=step.trainer.dtype, device=step.trainer.device)
    number = torch.zeros((), dtype=torch.int64, device=step.trainer.device)
    tracer = make_fx(
        dispatch_functionalize(flat, FunctionalTensorMode()),
        decomposition_table=table,
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    before = reached(step.trainer, step.places)
    # The eager pass before this one has given its warnings.
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with unread(step.trainer), plain_operators(), _seeding() as seeded:
                graph = tracer(step.tensors(), row, number, columns, batch.indices)
        except GdtrainError:
            raise
        except Exception as error:  # whatever a model's own code or the tracer may raise
            raise EngineError(_reason(error)) from error
        finally:
            before.restore()
    without_writes(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    names = [node.target for node in graph.graph.nodes if node.op == "get_attr"]
    captured = CapturedStep(graph, [_attribute(graph, name) for name in names], terms)
    if captured.outline.draws and seeded:
        raise EngineError(
            "forward draws random numbers and sets PyTorch's generator, as "
            "torch.utils.checkpoint does; give that preserve_rng_state=False, or no random layers"
        )
    return captured


def _reason(error: Exception) -> str:
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # 0.3 s

    place = _place(error)
    dependent = DataDependentOutputException, DynamicOutputShapeException
    if isinstance(error, (*dependent, GuardOnDataDependentSymNode)):
        return (
            f"Python code depends on values of tensors{place}; use torch.where in the place of "
            "a branch (trainer.step is a tensor of shape [] here)"
        )
    message = str(error).strip().split("\n")[0]
    return f"the step can't be captured as a graph: {type(error).__name__}: {message}{place}"


def _place(error: Exception) -> str:
    """Where somebody's own code was, in words."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", ""))
        if root_package(module) not in ("torch", "gdtrain", "contextlib"):
            return f", in {frame.f_code.co_name}, line {line} of {module}"
    return ""


# ── what a step must not do ─────────────────────────────────────────────────────────────────


def _check_operators(graph: fx.GraphModule, is_lowered: Callable[[Any], bool]) -> None:
    nodes = [node for node in graph.graph.nodes if node.op.startswith("call")]
    symbolic = [node for node in nodes if _is_symbolic(node.meta.get("val"))]
    if dependent := {_whole(node).target for node in symbolic}:
        raise EngineError(
            f"what {_listed(dependent)} gives has a shape, or is a number in Python code, that "
            "depends on values of tensors; use torch.where or a mask"
        )
    unknown = {node.target for node in nodes if not is_lowered(node.target)}
    if unknown:
        raise EngineError(f"there is no lowering of {_listed(unknown)}")


def _whole(node: Any) -> Any:
    """The node that gives what a node takes one part of."""
    return node.args[0] if node.target is operator.getitem else node


def _is_symbolic(value: Any) -> bool:
    """Whether only a run can say what a node gives, or of what shape."""
    if isinstance(value, Tensor):
        return any(isinstance(size, torch.SymInt) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def _listed(targets: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, targets)))


def _check_constants(step: FunctionalStep, captured: CapturedStep) -> None:
    """Raise EngineError if the step reads a part of the state as if it were a constant."""
    live = {t.untyped_storage().data_ptr(): name for name, t in step.places.tensors.items()}
    for state in step.trainer.optimizer.state.values():
        for tensor in state.values():
            if isinstance(tensor, Tensor):
                live[tensor.untyped_storage().data_ptr()] = "the optimizer's state"
    for constant in captured.constants:
        name = live.get(constant.untyped_storage().data_ptr())
        if name is not None and constant.numel():
            raise EngineError(
                f"{name} is read through a list or variable of somebody's own; read it where the "
                "module has it"
            )


@contextmanager
def _moved_on(trainer: Run) -> Iterator[None]:
    """Let settings and the schedule look meanwhile as if updates had been made."""
    groups, scheduler = trainer.optimizer.param_groups, trainer.schedule.scheduler
    kept = [dict(group) for group in groups]
    attributes = {} if scheduler is None else dict(vars(scheduler))
    try:
        for group in groups:
            group.update({k: 0.75 * v for k, v in group.items() if type(v) is float})
        for name, value in attributes.items():
            if type(value) in (int, float):
                setattr(scheduler, name, value + 1)
        if "_last_lr" in attributes:
            vars(scheduler)["_last_lr"] = [0.75 * lr for lr in attributes["_last_lr"]]
        yield
    finally:
        for group, settings in zip(groups, kept, strict=True):
            group.update(settings)
        if scheduler is not None:
            vars(scheduler).update(attributes)


@contextmanager
def _seeding() -> Iterator[list[str]]:
    """Yields a list that gets the names of the functions by which code sets PyTorch's generator."""
    called: list[str] = []
    functions = {name: getattr(torch, name) for name in ("manual_seed", "set_rng_state")}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            called.append(name)
            return function(*arguments)

        return noted

    try:
        for name, function in functions.items():
            setattr(torch, name, noting(name, function))
        yield called
    finally:
        for name, function in functions.items():
            setattr(torch, name, function)


class _Reads(TorchFunctionMode):
    """What tracing does not see by itself: that ``.data`` is rebound, and ``trainer.step``.

    The step is an int outside of a capture, and Python computes with it in float64. So do
    numbers that are computed from nothing but it here, whatever the default dtype is.
    """

    def __init__(self, number: Tensor) -> None:
        super().__init__()
        self._steps = {id(number): number}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function == _SET_DATA:
            return _write(*args)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if not tensors or not all(id(tensor) in self._steps for tensor in tensors):
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, Tensor):
            if result.dtype is torch.float32 and all(not t.is_floating_point() for t in tensors):
                exact = [
                    t.double() if isinstance(t, Tensor) and t.dtype is not torch.bool else t
                    for t in args
                ]
                result = function(*exact, **kwargs)
            self._steps[id(result)] = result
        return result


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def _write(tensor: Tensor, values: Tensor) -> None:
    """``tensor.data = values``, for who sees values alone and not the memory that has them."""
    if tensor.shape != values.shape or tensor.dtype != values.dtype:
        raise EngineError("forward gives .data another shape or dtype")
    with torch.no_grad():
        tensor.copy_(values)


# ── graphs ──────────────────────────────────────────────────────────────────────────────────


def _source(node: Any) -> Any:
    """The node that a node has its numbers from."""
    while (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.name.rpartition("::")[2] in _KEPT
    ):
        node = node.args[0]
    return node


def _attribute(graph: fx.GraphModule, target: Any) -> Tensor:
    found: Any = graph
    for part in str(target).split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):  # the tracer keeps generators so
        raise EngineError("forward or the loss draws from a generator of somebody's own")
    return found


def _shown(line: str) -> str:
    return " ".join(line.partition(";")[0].split())[:120]


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) and torch.equal(
        one.isnan(), other.isnan()
    )
