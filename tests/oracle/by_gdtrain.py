"""A program run by gdtrain: its loaders, its trainer, its callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate

from gdtrain import (
    BatchLoader,
    BatchSizes,
    Callback,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    Trainer,
    Validation,
    Weighted,
)
from gdtrain.errors import GdtrainError, NonFiniteError
from oracle.by_hand import indices, rotated, sampler_of, weight_of, weights_of_rows
from oracle.changes import BREAKS, CHANGES, STRUCTURAL, change, clamp_weights, halve_gradients
from oracle.parts import GAP, make, rows
from oracle.program import DATASETS, Event, Program
from oracle.traces import Once, Trace, everything, state_of

MANY = 40  # calls of fit: more means that it does not go on


def by_gdtrain(program: Program) -> list[Trace]:
    """What the program does, and, if it takes a snapshot, what one does that takes it up."""
    first = Run(program)
    first.run()
    traces = [first.trace]
    if first.snapshot is not None and first.trace.end != "refused":
        traces.append(first.snapshot.taken_up())
    return traces


# ── data ────────────────────────────────────────────────────────────────────────────────────────


class Rows(Dataset):
    """Rows as a data set of ``(*inputs, target)``; reading one may be an event."""

    def __init__(
        self, parts: tuple[Tensor, ...], at: Callable[[str, int], Any], gaps: bool
    ) -> None:
        self.parts, self.at, self.gaps = parts, at, gaps

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, row: int) -> Any:
        self.at("item", row)
        return None if self.gaps and row == GAP else tuple(part[row] for part in self.parts)


class Dicts(Rows):
    """Rows as mappings, which have names too."""

    def __getitem__(self, row: int) -> Any:
        *inputs, target = super().__getitem__(row)
        return {"name": f"row {row}", "x": tuple(inputs), "y": target}


class Stream(IterableDataset):
    """The same, one row after the other."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        for row in range(len(self.rows)):
            yield self.rows[row]


def without_gaps(items: list[Any]) -> Any:
    return default_collate([item for item in items if item is not None])


class Order:
    """An order of the user's own, other each time that it is asked."""

    def __init__(self, run: Run) -> None:
        self.run, self.asked = run, 0

    def __call__(self, epoch: int) -> list[int]:
        self.asked += 1
        self.run.trace.notes.append(("order", epoch, "asked", self.run.step))
        self.run.at("order", epoch)
        return rotated(self.run.program.samples, self.asked)


class OwnSampler(Sampler):
    """The same as a torch Sampler."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __len__(self) -> int:
        return self.order.run.program.samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.order.run.epoch))


def loader_of(run: Run) -> Any:
    program, parts = run.program, run.parts.rows
    data: Any = parts
    options: dict[str, Any] = {}
    if program.data == "arrays":
        data = tuple(part.double().numpy() if part.is_floating_point() else part for part in parts)
    elif program.data in DATASETS:
        data = (Dicts if program.data == "dicts" else Rows)(parts, run.at, program.data == "gaps")
        if program.data == "gaps":
            options["collate_fn"] = without_gaps
        if program.data == "stream":
            return _form(program, Stream(data), options)
    return _form(program, data, options | {"order": order_of(run), "seed": program.seed})


def order_of(run: Run) -> Any:
    n, order = run.program.samples, run.program.order
    match order:
        case "indices":
            return indices(n)
        case "callable":
            return run.order
        case "own_sampler":
            return OwnSampler(run.order)
        case "weighted" | "weighted_once":
            return Weighted(weights_of_rows(n), replacement=order == "weighted")
    return sampler_of(run.program) or order


def _form(program: Program, data: Any, options: dict[str, Any]) -> Any:
    size = program.batch_size
    match program.form:
        case "batch":
            return BatchLoader(data, **options)
        case "sample":
            return SampleLoader(data, **options)
        case "growing":
            sizes = BatchSizes.growing(size, factor=2.0, every_n_epochs=1, largest=2 * size)
            return MiniBatchLoader(data, sizes, **options)
        case "phased":
            return PhasedLoader(
                [
                    (1, SampleLoader(data, **options)),
                    (2, MiniBatchLoader(data, size, **options)),
                    (None, BatchLoader(data, **options)),
                ]
            )
    return MiniBatchLoader(data, size, drop_last=program.drop_last, **options)


# ── trainers of your own ───────────────────────────────────────────────────────────────────────


class Noted(Trainer):
    """Notes the number of updates that compute_loss sees."""

    run: Run

    def compute_loss(self, batch: Any) -> Any:
        self.note()
        return super().compute_loss(batch)

    def note(self) -> None:
        if self.model.training:
            self.run.trace.notes.append(("compute_loss", int(self.progress.step)))

    def loss_weight(self, batch: Any) -> float:
        targets = batch.inputs["y"] if batch.targets is None else batch.targets
        return weight_of(self.run.program, targets)


class Annealed(Noted):
    """Has a penalty that grows with the number of updates."""

    def compute_loss(self, batch: Any) -> Any:
        self.note()
        weight = min(1.0, self.progress.step / 8)
        fit = F.mse_loss(self.model(batch.inputs), batch.targets)
        return fit + weight * self.model.head.weight.square().sum()


class Perturbed(Noted):
    """Moves its inputs by the sign of a gradient that it takes by a backward pass of its own."""

    def compute_loss(self, batch: Any) -> Any:
        self.note()
        place = batch.inputs.detach().clone().requires_grad_(True)
        self.loss(self.model(place), batch.targets).backward()
        return self.loss(self.model(place.detach() + 0.1 * place.grad.sign()), batch.targets)


class OwnStep(Noted):
    """Makes two steps on each batch."""

    def train_step(self, batch: Any) -> Tensor:
        losses = []
        for _ in range(2):
            self.optimizer.zero_grad()
            loss = self.compute_loss(batch)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return losses[0]


class OfDicts(Noted):
    """Takes inputs and targets out of mappings, and sees that each row has its name."""

    def compute_loss(self, batch: Any) -> Any:
        self.note()
        rows = batch.inputs
        assert rows["name"] == [f"row {row}" for row in batch.indices.tolist()]
        return self.loss(self.model(*rows["x"]), rows["y"])


class Unweighted(Trainer):
    """Does not say what its loss is divided by."""

    def compute_loss(self, batch: Any) -> Any:
        return self.loss(self.forward(batch.inputs), batch.targets)


TRAINERS = {
    "unweighted": Unweighted,
    "plain": Trainer,
    "noted": Noted,
    "annealed": Annealed,
    "perturbed": Perturbed,
    "own_step": OwnStep,
    "of_dicts": OfDicts,
}


class LossWithMoment(nn.Module):
    """A loss in which events happen; ``inner`` is the user's."""

    def __init__(self, inner: Any, run: Run) -> None:
        super().__init__()
        self.inner, self._run = inner, [run]  # in a list, where Module does not look

    def forward(self, output: Any, targets: Any) -> Tensor:
        loss = self.inner(output, targets)
        (run,) = self._run
        if run.parts.model.training and run.at("loss", run.step):
            return loss * float("nan")
        return loss


# ── callbacks ───────────────────────────────────────────────────────────────────────────────────


class Watch(Callback):
    """Keeps the weights at each safe point."""

    def __init__(self, run: Run, every: int) -> None:
        super().__init__(every_n_steps=every or None)
        self.run = run

    def on_safe_point(self, trainer: Trainer) -> None:
        self.run.trace.points[trainer.progress.step] = state_of(self.run.parts)


class Starts(Callback):
    """Counts starts and ends of fit, of which there are as many."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_fit_start(self, trainer: Trainer) -> None:
        self.run.started += 1
        self.run.at("fit_start", self.run.fit_number)
        self.run.note_start()  # what a callback of the user's own has changed, no refusal puts back

    def on_fit_end(self, trainer: Trainer) -> None:
        self.run.started -= 1


class AtEpochStart(Callback):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.run.at("epoch_start", trainer.progress.epoch)


class AtGradient(Callback):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_gradient(self, trainer: Trainer, batch: Any, loss: Tensor) -> None:
        self.run.at("gradient", trainer.progress.step)


class AtUpdate(Callback):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_before_update(self, trainer: Trainer) -> None:
        self.run.at("before_update", trainer.progress.step)


class AtSafePoint(Callback):
    def __init__(self, run: Run, step: int) -> None:
        super().__init__(every_n_steps=step)
        self.run = run

    def on_safe_point(self, trainer: Trainer) -> None:
        self.run.at("safe_point", trainer.progress.step)


class AtEpochEnd(Callback):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self.run.at("epoch_end", record["epoch"])


class Halve(Callback):
    def on_before_update(self, trainer: Trainer) -> None:
        halve_gradients(trainer.optimizer)


class Count(Callback):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_before_update(self, trainer: Trainer) -> None:
        self.run.trace.notes.append(("counted", trainer.progress.step))


class Clamp(Callback):
    every_n_steps = 2

    def on_safe_point(self, trainer: Trainer) -> None:
        clamp_weights(trainer.model)


def callbacks_of(run: Run) -> list[Callback]:
    """One for each moment at which there are events, and who watches."""
    program = run.program
    whens = {event.when for event in program.events}
    found: list[Callback] = []
    if program.watch is not None:
        found.append(Watch(run, program.watch))
    if "fit_start" in whens:
        found.append(Starts(run))
    for when, kind in (
        ("epoch_start", AtEpochStart), ("gradient", AtGradient), ("before_update", AtUpdate),
        ("epoch_end", AtEpochEnd),
    ):  # fmt: skip
        if when in whens:
            found.append(kind(run))
    steps = {event.number for event in program.events if event.when == "safe_point"}
    return [*found, *(AtSafePoint(run, step) for step in sorted(steps))]


# ── the run ─────────────────────────────────────────────────────────────────────────────────────


class Snapshot:
    """A trainer's state, and what of the program had been done by then."""

    def __init__(self, run: Run) -> None:
        self.state = copy.deepcopy(run.trainer.state_dict())
        self.left, self.fit_number = list(run.left), run.fit_number
        self.done = list(run.done)
        self.asked, self.program = run.order.asked, run.program

    def taken_up(self) -> Trace:
        """What a fresh trainer makes of the rest."""
        run = Run(self.program)
        for event in self.done:
            if event.what in STRUCTURAL:
                run.do(event)
        run.left, run.done = list(self.left), list(self.done)
        run.order.asked, run.trace = self.asked, Trace()
        run.trainer.load_state_dict(self.state)
        run.run(start=self.fit_number, resumed=True)
        return run.trace


class Run:
    """One run of a program, or of the rest of it."""

    def __init__(self, program: Program) -> None:
        self.program, self.parts, self.trace = program, make(program), Trace()
        self.left, self.done = list(program.events), []
        self.started = self.fit_number = 0
        self.snapshot: Snapshot | None = None
        self.order = Order(self)
        self.refusal: GdtrainError | None = None
        whens = {event.when for event in program.events}
        if "forward" in whens:
            self.parts.model.moment = self.moment
        self.trainer: Any = None
        self.before: dict[str, Any] = {}
        self.note_start()
        try:
            self.trainer = self.make_trainer("loss" in whens)
        except GdtrainError as error:
            self.refusal = error

    def make_trainer(self, loss_has_moments: bool) -> Trainer:
        program, parts = self.program, self.parts
        loss = LossWithMoment(parts.loss, self) if loss_has_moments else parts.loss
        validation = None
        if program.validation is not None:
            data = BatchLoader(parts.validation)
            validation = Validation(data, every_n_epochs=program.validation[1])
        largest = {"largest": lambda output, targets: output.max()}
        trainer = TRAINERS[program.trainer](
            parts.model,
            None if program.trainer == "annealed" else loss,
            parts.optimizer,
            loader_of(self),
            device="cpu",
            scheduler=parts.scheduler,
            scheduler_per=program.schedule_per,  # type: ignore[arg-type]
            validation=validation,
            metrics=largest if program.metric else None,
            callbacks=callbacks_of(self),
            clip_grad_norm=program.clip_norm,
            clip_grad_value=program.clip_value,
            microbatch_size=program.microbatch,  # type: ignore[arg-type]
            memory_limit=program.memory_limit,
            accumulate_in="fp64" if program.in_float64 else None,
            engine=program.engine,  # type: ignore[arg-type]
        )
        trainer.run = self  # type: ignore[attr-defined]
        return trainer

    @property
    def epoch(self) -> int:
        return int(self.trainer.progress.epoch)

    @property
    def step(self) -> int:
        return int(self.trainer.progress.step)

    # ── the user's own code in mid-run ──────────────────────────────────────────────────────

    def at(self, when: str, number: int) -> bool:
        """Do what is to be done at a moment, in its order; whether a NaN is asked for."""
        nan = False
        for event in [e for e in self.left if (e.when, e.number) == (when, number)]:
            if event.what in BREAKS and event.value > 0:
                self.left[self.left.index(event)] = replace(event, value=event.value - 1)
                continue
            self.left.remove(event)
            self.done.append(event)
            if event.what not in BREAKS:
                self.trace.notes.append((when, number, event.what, self.step))
            nan |= bool(self.do(event))
        return nan

    def do(self, event: Event) -> Any:
        if event.what in CHANGES:
            return change(event, self.parts)
        return getattr(self, "do_" + event.what)(event)

    def moment(self, when: str) -> bool:
        return self.at(when, self.step)

    def do_lr_of_trainer(self, event: Event) -> None:
        self.trainer.lr = event.value

    def do_raise(self, event: Event) -> None:
        raise Once

    def do_out_of_memory(self, event: Event) -> None:
        if self.trainer.microbatches.size != 1:  # there is memory for one sample
            raise MemoryError("can't allocate memory")

    def do_nan(self, event: Event) -> bool:
        return True

    def do_stop(self, event: Event) -> None:
        self.trainer.stop("an event")

    def do_state_dict(self, event: Event) -> None:
        self.trainer.state_dict()

    def do_snapshot(self, event: Event) -> None:
        self.snapshot = Snapshot(self)

    def do_add_callback(self, event: Event) -> None:
        kinds = {"halve": Halve, "count": lambda: Count(self), "clamp": Clamp}
        self.trainer.callbacks.append(kinds[event.value]())

    def do_evaluate(self, event: Event) -> None:
        self.trace.looks.append(self.trainer.evaluate())

    def do_predict(self, event: Event) -> None:
        *inputs, _ = rows(self.program, event.value, seed=5)
        self.trace.looks.append(self.trainer.predict(tuple(inputs) if inputs[1:] else inputs[0]))

    # ── calls of fit ────────────────────────────────────────────────────────────────────────

    def run(self, start: int = 0, *, resumed: bool = False) -> None:
        if not resumed:
            torch.manual_seed(self.program.seed + 7)
        if self.refusal is None:
            try:
                self.fit_all(start)
            except NonFiniteError:
                self.trace.end = "not finite"
            except GdtrainError as error:
                self.refusal = error
        if self.started:
            self.trace.end = f"{self.started} calls of on_fit_end are missing"
        if self.refusal is not None:
            self.end_refused(self.refusal)
            return
        self.note_history()
        self.trace.final = everything(self.parts)

    def note_history(self) -> None:
        self.trace.steps = self.step
        names = ("train_loss", "lr", "epoch", "step")
        self.trace.history = [
            {key: row[key] for key in row if key in names or key.startswith("val_")}
            for row in self.trainer.history.epochs
        ]

    def fit_all(self, start: int) -> None:
        for number, until in enumerate(self.program.fits[start:], start):
            self.fit_number = number
            self.at("fit", number)
            self.note_start()
            for _ in range(MANY):
                try:
                    self.trainer.fit(until)
                except Once:
                    continue
                if self.trainer.progress.epoch >= until:
                    break
            else:
                self.trace.end = f"fit({until}) does not end"
                return

    def note_start(self) -> None:
        """Keep what a refusal has to leave as it is."""
        if self.program.model != "lazy":
            self.before = everything(self.parts)

    def end_refused(self, error: GdtrainError) -> None:
        """A refusal has to come before any update, and to leave everything as it was."""
        self.trace.end = f"refused: {type(error).__name__}: {error}"
        if self.trainer is not None and self.step:
            self.trace.end = f"refused after {self.step} updates: {error}"
            self.note_history()
            self.trace.final = state_of(self.parts)
        elif any(
            isinstance(value, Tensor) and not torch.equal(value, everything(self.parts)[name])
            for name, value in self.before.items()
            if name != "generator"
        ):
            self.trace.end = f"refused, with weights that have changed: {error}"


@contextmanager
def default_dtype(name: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)
