"""The functional step on tensors that stay where they are, so that it can be recorded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Plan
from gdtrain.data.samples import Samples, of_rows
from gdtrain.data.sources import ArrangedSamples, rows_in_memory
from gdtrain.training.engines.capturing.capture import CapturedStep, capture
from gdtrain.training.engines.capturing.eager_pass import EagerPass
from gdtrain.training.engines.capturing.functional_step import State
from gdtrain.training.run import Run


class StaticStep:
    """Makes updates in place; what differs from one to the next is read from fixed places.

    size: samples of a batch. steps: room for so many of them.
    places: [steps, size] int64, the samples of each step. rows: [steps, settings], as
    :class:`FunctionalStep` takes them. losses: [steps]. terms: [steps, terms], those of the loss.
    number: [1], the step that comes next.
    known: an earlier one of this size. Raises EngineError for a step that can't be captured.
    """

    def __init__(
        self,
        trainer: Run,
        samples: Samples,
        size: int,
        steps: int,
        known: StaticStep | None = None,
    ) -> None:
        device = trainer.device
        self.steps = steps
        first = torch.arange(size, device="cpu") % len(samples)
        batch = next(samples.read(Plan(0, size, size, first)))
        seen = EagerPass(trainer, batch)
        self.step = seen.step
        # Not to run the graph: to see that there is one, and whether it is that of another time.
        earlier = None if known is None else known.captured
        self.captured: CapturedStep = capture(seen, batch, _is_of_pytorch, earlier)
        row = torch.tensor(self.step.settings_row(), dtype=trainer.dtype, device=device)
        self.state = self.step.tensors()
        self.places = first.to(device).repeat(steps, 1)
        self.rows = row.repeat(steps, 1)
        self.losses = torch.zeros(steps, dtype=trainer.dtype, device=device)
        self.terms = self.losses.new_zeros(
            steps, len(self.captured.outline.terms), dtype=torch.float64
        )
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self._made = torch.zeros(1, dtype=torch.int64, device=device)  # before the first step
        rows = rows_in_memory(samples)
        assert rows is not None
        self._columns = rows.tensors
        self._arranged = samples.function if isinstance(samples, ArrangedSamples) else None
        self._live = self.state.flat()

    def advance(self, *, guarded: bool) -> None:
        """Make the next update; guarded: unless its loss or gradient is not finite."""
        with torch.no_grad():
            places = self.places.index_select(0, self.number)[0]
            row = self.rows.index_select(0, self.number)[0]
            columns = [column.index_select(0, places) for column in self._columns]
            batch = of_rows(columns, places)
            if self._arranged is not None:
                batch = self._arranged(batch)
            number = (self._made + self.number)[0]
            given = self.state
            if guarded:  # forward may write to what it is given
                given = State(*([tensor.clone() for tensor in part] for part in given))
            new, loss, finite, terms = self.step(given, row, number, batch, looks=guarded)
            after = new.flat()
            if guarded:
                pairs = zip(after, self._live, strict=True)
                after = [torch.where(finite, made, before) for made, before in pairs]
            written = [
                (live, made)
                for live, made in zip(self._live, after, strict=True)
                if live.data_ptr() != made.data_ptr()
            ]
            torch._foreach_copy_([live for live, _ in written], [made for _, made in written])
            self.losses.index_copy_(0, self.number, loss.reshape(1).to(self.losses.dtype))
            if terms:
                row_of_terms = torch.stack(list(terms.values()))
                self.terms.index_copy_(0, self.number, row_of_terms.unsqueeze(0))
            self.number += finite if guarded else 1

    def show(self, places: Tensor, rows: Tensor, made: int) -> None:
        """Set the samples and settings of the next ``len(places)`` steps, and begin with them.

        made: updates made before.
        """
        count = places.shape[0]
        self.places[:count].copy_(places, non_blocking=True)
        self.rows[:count].copy_(rows, non_blocking=True)
        self.number.zero_()
        self._made.fill_(made)

    def is_sound(self, steps: int) -> bool:
        """Whether the first losses and the weights are finite; waits for the device."""
        finite = torch.isfinite(self.losses[:steps]).all()
        for parameter in self.state.trained:
            finite = finite & torch.isfinite(parameter).all()
        return bool(finite)

    def copy(self) -> list[Tensor]:
        """The state in copies."""
        return [tensor.clone() for tensor in self._live]

    def put_back(self, copies: list[Tensor]) -> None:
        """Go back to a state that :meth:`copy` gave."""
        torch._foreach_copy_(self._live, copies)

    def is_live(self) -> bool:
        """Whether the state is still that of model and optimizer, whatever was loaded since."""
        return self._has(self.step.tensors(missing=self.state.momenta).flat())

    def is_same(self, other: StaticStep) -> bool:
        """Whether another one does the same in the same places."""
        state = other.step.tensors(missing=self.state.momenta)
        return self.captured is other.captured and self._has(state.flat())

    def _has(self, tensors: list[Tensor]) -> bool:
        return len(tensors) == len(self._live) and all(
            mine.data_ptr() == theirs.data_ptr()
            for mine, theirs in zip(self._live, tensors, strict=True)
        )

    def finish(self) -> None:
        """Give the optimizer the momentum buffers that it has not had, and attributes their own."""
        self.step.keep_momenta(self.state.momenta)
        self.step.places.bind_copies()


def _is_of_pytorch(target: Any) -> bool:
    """Whether a device has the operator: what stands for another in a graph runs on none."""
    return getattr(target, "namespace", "") != "gdtrain"
