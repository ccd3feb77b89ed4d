"""The engine that records an update on a CUDA device once and replays it for each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Block, Plan
from gdtrain.data.sources import rows_in_memory
from gdtrain.training.descent import note_step
from gdtrain.training.engines.capturing.compiled_engine import CompiledEngine
from gdtrain.training.engines.capturing.eager_pass import unread
from gdtrain.training.engines.cuda.static_step import StaticStep
from gdtrain.training.engines.engine import EngineError
from gdtrain.training.losses.terms import of_row
from gdtrain.training.run import Run
from gdtrain.training.state.random_generators import RngState

# Of work, what it is to begin again with, and the device; returns what does the work again.
Record = Callable[[Callable[[], None], Callable[[], None], torch.device], Callable[[], None]]

# One replay makes so many updates where that many are left; the rest are made one by one.
STEPS_PER_GRAPH = 16
# What torch asks for before a recording, so that libraries and the allocator are set up.
WARM_UPS = 3
_POOLS: dict[torch.device, Any] = {}  # the memory of recordings


def record_graph(
    work: Callable[[], None], rewind: Callable[[], None], device: torch.device
) -> Callable[[], None]:
    """Record what ``work`` does on the device; what is returned does it again.

    rewind: lets the work begin where it began. All recordings of a device share their memory, as
    none of them runs while another does, and none leaves anything there. Other threads may use
    the device meanwhile: checkpoints are copied by one.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                rewind()
                work()
            rewind()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = _POOLS.setdefault(device, torch.cuda.graph_pool_handle())
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            work()
    replay: Callable[[], None] = graph.replay
    return replay


class CudaGraphEngine(CompiledEngine):
    """Runs blocks by replaying recorded updates; the host waits only at the end of a block.

    Weights, buffers and momentum are changed where they are, so they can be looked at at any
    safe point. record: how work is recorded; tests without a device leave that out.
    """

    name = "cuda_graph"
    max_block_steps = 4096

    def __init__(self, trainer: Run, record: Record = record_graph) -> None:
        super().__init__(trainer)
        self._record = record
        self._recorded: dict[Any, _Recorded] = {}
        self._checked: set[Any] = set()  # of these, what is of the trainer as it is now

    def prepare(self, plan: Plan) -> None:
        """Record what most steps of the plan need. Raises EngineError if it can't be."""
        self._check()
        self._for(plan, plan.batch_sizes(0, 1)[0])

    def _run_parts(self, block: Block, parts: list[Tensor]) -> None:
        plan, start = block.plan, block.start
        full = plan.num_samples // plan.batch_size
        self._check()
        while start < block.stop:
            stop = min(block.stop, full) if start < full else block.stop
            recorded = self._for(plan, plan.batch_sizes(start, start + 1)[0])
            losses = self._run_part(recorded, plan, start, stop, start - block.start)
            if places := recorded.static.captured.outline.terms:
                rows = enumerate(recorded.static.terms[: len(losses)].tolist(), start - block.start)
                block.terms |= {place: of_row(places, row) for place, row in rows}
            parts.append(losses)
            if losses.shape[0] < stop - start:
                break
            start = stop

    def _check(self) -> None:
        """Trust no recording if it may be of a step that the trainer has no more."""
        if not self._is_current():
            self._checked.clear()
            self._note_capture()
        self._may_differ = False

    def _run_part(
        self, recorded: _Recorded, plan: Plan, start: int, stop: int, made_before: int
    ) -> Tensor:
        """Steps of one size. The updates do not look at what they compute; see ScanEngine.

        made_before: the block's updates before these, which are not counted yet.
        """
        trainer, static, count = self.trainer, recorded.static, stop - start
        first, last = start * plan.batch_size, min(stop * plan.batch_size, plan.num_samples)
        back, lr = trainer.schedule.mark(), trainer.progress.lr
        try:
            rows = self._rows(static, count)
        except BaseException:  # none of these updates has been made
            back()
            trainer.progress.lr = lr
            raise
        number = trainer.progress.step + made_before
        static.show(plan.take(first, last).view(count, -1), rows, number)
        before, rng = static.copy(), RngState.take(trainer.device)

        def is_sound(steps: int) -> bool:
            """Make the first ``steps`` updates again; whether losses and weights are finite."""
            static.put_back(before)
            rng.restore(trainer.device)
            recorded.make(steps)
            return static.is_sound(steps)

        made = 0
        if trainer.clip_grad_value is None:  # which would hide what is infinite
            recorded.make(count)
            made = count if static.is_sound(count) else last_sound(is_sound, count)
        if made < count:
            is_sound(made)
            made = recorded.make_guarded(made, count)
        if made:
            static.finish()
        if made < count:
            trainer.guard.found = (float(static.losses[made]), None)
            back()
            self._rows(static, made)
        return static.losses[:made].clone()

    def _rows(self, static: StaticStep, count: int) -> Tensor:
        """The settings of the next steps, [count, settings]; the schedule moves on."""
        trainer, step = self.trainer, static.step
        note_step(trainer.optimizer)
        first = step.settings_row(step.groups_without_momenta())
        if trainer.schedule.by_step:
            with unread(trainer):
                rows = trainer.schedule.rows(count, step.settings_row)
        else:
            rows = [step.settings_row()] * count
        if rows:
            trainer.progress.lr = rows[-1][0]
        return torch.tensor([first, *rows[1:]][:count], dtype=trainer.dtype, device="cpu")

    def _for(self, plan: Plan, size: int) -> _Recorded:
        """What was recorded for batches of this size, or is to be."""
        trainer, samples = self.trainer, self._samples()
        steps = min(self.max_block_steps, len(plan))
        key = size, rows_in_memory(samples)
        known = self._recorded.get(key)
        if known is not None and known.static.steps < steps:
            known = None
        if known is None or key not in self._checked or not known.static.is_live():
            earlier = None if known is None else known.static
            static = StaticStep(trainer, samples, size, steps, earlier)
            if known is None or not known.static.is_same(static):
                known = self._recorded[key] = _Recorded(static, self._record, trainer.device)
            self._checked.add(key)
        return known


class _Recorded:
    """A static step with its recordings: of one update, and, where needed, many or a guarded one.

    Raises EngineError where the device does not let an update be recorded.
    """

    def __init__(self, static: StaticStep, record: Record, device: torch.device) -> None:
        self.static = static
        self._record = record
        self._device = device
        self._one = self._recording(1)
        self._many: Callable[[], None] | None = None
        self._guarded: Callable[[], None] | None = None

    def _recording(self, steps: int, guarded: bool = False) -> Callable[[], None]:
        def rewind() -> None:
            self.static.number.zero_()

        def work() -> None:
            for _ in range(steps):
                self.static.advance(guarded=guarded)

        before, rng = self.static.copy(), RngState.take(self._device)
        try:
            return self._record(work, rewind, self._device)  # which does it a few times
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise EngineError(f"the update can't be recorded: {reason}") from error
        finally:
            self.static.put_back(before)
            rng.restore(self._device)

    def make(self, steps: int) -> None:
        """Make the first ``steps`` of the updates that the static step shows."""
        many, rest = divmod(steps, STEPS_PER_GRAPH)
        if many and self._many is None:
            self._many = self._recording(STEPS_PER_GRAPH)
        self.static.number.zero_()
        for _ in range(many):
            assert self._many is not None
            self._many()
        for _ in range(rest):
            self._one()

    def make_guarded(self, start: int, stop: int) -> int:
        """Make the updates from ``start`` on up to the first bad one; return where that is.

        A bad one does not move on, and what is replayed after it is the same once more.
        """
        if self._guarded is None:
            self._guarded = self._recording(1, guarded=True)
        self.static.number.fill_(start)
        for _ in range(start, stop):
            self._guarded()
        return int(self.static.number)


def last_sound(is_sound: Callable[[int], bool], count: int) -> int:
    """The largest number of steps, from 0 to ``count``, after which all is finite still."""
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_sound(middle) else (good, middle)
    return good
