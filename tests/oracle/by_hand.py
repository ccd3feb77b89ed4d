"""The reference: a program run by a plain PyTorch loop, as a careful person would write it.

Nothing here comes from gdtrain. The orders of samples are its contract, written down once more
from its documentation: torch's generator, seeded from (seed, epoch) by SplitMix64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import RandomSampler

from oracle.changes import BREAKS, CHANGES, change, clamp_weights, halve_gradients
from oracle.parts import GAP, make, rows
from oracle.program import Event, Program
from oracle.traces import Once, Trace, everything, state_of
from oracle.zoo import CLASS_WEIGHT, IGNORED, RANDOM_MODELS


class NotFinite(Exception):  # noqa: N818
    """A loss or gradient is NaN or infinite: the loop ends before the update."""


class Enough(Exception):  # noqa: N818
    """As many updates have been made as were asked for."""


def by_hand(program: Program) -> Trace:
    """What the program does."""
    hand = Hand(program)
    hand.run()
    hand.trace.final = everything(hand.parts)
    return hand.trace


def by_hand_until(program: Program, updates: int) -> Trace:
    """The same until another update would be made; ``final`` holds model and loss alone."""
    hand = Hand(program)
    hand.most = updates
    with suppress(Enough):
        hand.run()
    hand.trace.final = state_of(hand.parts)
    return hand.trace


# ── orders and batches ──────────────────────────────────────────────────────────────────────────


def generator(seed: int, key: int) -> torch.Generator:
    """torch's generator for an epoch, or for another key (Steele, Lea and Flood, 2014)."""
    bits = (1 << 64) - 1
    state = (seed + (key + 1) * 0x9E3779B97F4A7C15) & bits
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & bits
    return torch.Generator().manual_seed(state ^ (state >> 31))


def order_of(program: Program, epoch: int, asked: int) -> list[int]:
    """The samples of an epoch in their order; asked: how often a callable has been asked."""
    n, seed = program.samples, program.seed
    match program.order:
        case "reshuffle":
            return torch.randperm(n, generator=generator(seed, epoch)).tolist()
        case "shuffle_once":
            return torch.randperm(n, generator=generator(seed, 0)).tolist()
        case "replacement":
            return torch.randint(n, (n,), generator=generator(seed, epoch)).tolist()
        case "indices":
            return indices(n)
        case "callable" | "own_sampler":
            return rotated(n, asked)
        case "weighted":
            return drawn_by_weights(n, generator(seed, epoch))
        case "weighted_once":
            return drawn_by_weights_once(n, generator(seed, epoch))
    return list(range(n))


def weights_of_rows(n: int) -> list[float]:
    """Weights for an order by weights; some rows are never drawn."""
    return [float(row % 4) for row in range(n)]


def drawn_by_weights(n: int, draw: torch.Generator) -> list[int]:
    """The row in whose share of all weights a uniform number lies, n times (Devroye, 1986)."""
    weights = weights_of_rows(n)
    rows = []
    for place in torch.rand(n, dtype=torch.float64, generator=draw).tolist():
        left = place * sum(weights)
        row = 0
        while left >= weights[row]:
            left -= weights[row]
            row += 1
        rows.append(row)
    return rows


def drawn_by_weights_once(n: int, draw: torch.Generator) -> list[int]:
    """The rows by their times e / w, e ~ Exp(1) (Efraimidis and Spirakis, 2006)."""
    waits = torch.empty(n, dtype=torch.float64).exponential_(generator=draw).tolist()
    weights = weights_of_rows(n)
    return sorted(
        (row for row in range(n) if weights[row]), key=lambda row: waits[row] / weights[row]
    )


def indices(n: int) -> list[int]:
    """More draws than samples, some of them twice."""
    return [(3 * i + 1) % n for i in range(n + 2)]


def rotated(n: int, by: int) -> list[int]:
    return [(i + by) % n for i in range(n)]


def sampler_of(program: Program) -> RandomSampler | None:
    """torch's sampler, with a generator of its own or the global one."""
    match program.order:
        case "sampler":
            own = torch.Generator().manual_seed(program.seed)
            return RandomSampler(range(program.samples), generator=own)
        case "sampler_of_all":
            return RandomSampler(range(program.samples))
    return None


def batch_size_of(program: Program, epoch: int) -> int:
    """Samples of a batch; as many as there are draws for a whole epoch in one."""
    everything = program.samples + 2
    match program.form:
        case "batch":
            return everything
        case "sample":
            return 1
        case "growing":
            return min(2 * program.batch_size, program.batch_size * 2**epoch)
        case "phased":
            return (1, program.batch_size, everything)[min(epoch, 2)]
    return program.batch_size


def cut(program: Program, order: list[int], epoch: int) -> list[list[int]]:
    """The order in batches."""
    size = batch_size_of(program, epoch)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    whole = [part for part in parts if len(part) == size]
    return whole if program.drop_last and program.form == "minibatch" else parts


def sizes_of(program: Program) -> list[int]:
    """The samples of each update."""
    epochs = range(program.fits[-1])
    return [len(b) for e in epochs for b in cut(program, order_of(program, e, 0), e)]


def updates_of(program: Program) -> int:
    """How many there are, in all epochs."""
    return len(sizes_of(program))


def smallest_batch(program: Program) -> int:
    return min(sizes_of(program))


# ── what a batch's loss is divided by ───────────────────────────────────────────────────────────


def is_known(program: Program) -> bool:
    """Whether it is known what the loss is divided by: not of a loss that wraps another."""
    wrapped = any(event.when == "loss" for event in program.events)
    return not wrapped and program.trainer != "annealed"


def is_sum(program: Program) -> bool:
    """Whether the loss is a sum over samples, and known to be one: no compute_loss of your own."""
    return is_known(program) and program.trainer == "plain" and "sum" in program.loss


def weight_of(program: Program, targets: Tensor) -> float:
    """What the mean over a batch runs over: samples, targets that count, or class weights."""
    if is_sum(program):
        return 1.0
    counted = targets[targets != IGNORED] if not targets.is_floating_point() else targets
    own_weight = program.trainer not in ("plain", "unweighted", "annealed")
    match program.loss if is_known(program) or own_weight else "":
        case "entropy_ignored" | "entropy_ignored_function":
            return float(len(counted))
        case "entropy_weighted" | "entropy_weighted_partial" | "smoothed":
            weights = torch.tensor(CLASS_WEIGHT, dtype=getattr(torch, program.dtype))
            return float(weights[counted].double().sum())
    return float(len(targets))


# ── the loop ────────────────────────────────────────────────────────────────────────────────────


class Hand:
    """One run of a program."""

    def __init__(self, program: Program) -> None:
        self.program, self.parts, self.trace = program, make(program), Trace()
        self.left = list(program.events)
        self.model, self.loss, self.optimizer = (
            self.parts.model, self.parts.loss, self.parts.optimizer,
        )  # fmt: skip
        self.step = self.epoch = self.place = self.asked = 0
        self.most: int | None = None  # updates
        self.again = 0  # 1 in the second step that an own train_step makes on a batch
        self.sampler = sampler_of(program)
        self.batches: list[list[int]] | None = None  # of the epoch that is under way
        self.added: list[str] = []  # callbacks that came in mid-run
        self.stopping = self.halted = False
        self.sums: list[tuple[float, float]] = []  # loss and weight of the epoch's batches
        self.lr = math.nan
        if any(event.when == "forward" for event in program.events):
            self.model.moment = self.moment

    # ── the user's own code in mid-run ──────────────────────────────────────────────────────

    def at(self, when: str, number: int) -> bool:
        """Do what is to be done at a moment, in its order; whether a NaN is asked for."""
        nan = False
        for event in [e for e in self.left if (e.when, e.number) == (when, number)]:
            self.left.remove(event)
            if event.what not in BREAKS:
                self.trace.notes.append((when, number, event.what, self.step + self.again))
            if event.what in CHANGES:
                change(event, self.parts)
            else:
                nan |= bool(getattr(self, "do_" + event.what)(event))
        return nan

    def moment(self, when: str) -> bool:
        return self.at(when, self.step + self.again)

    def do_lr_of_trainer(self, event: Event) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = event.value

    def do_raise(self, event: Event) -> None:
        raise Once

    def do_out_of_memory(self, event: Event) -> None:
        """Whole batches need no second try."""

    def do_nan(self, event: Event) -> bool:
        return True

    def do_stop(self, event: Event) -> None:
        self.stopping = True

    def do_state_dict(self, event: Event) -> None:
        """A look."""

    def do_snapshot(self, event: Event) -> None:
        """A look."""

    def do_add_callback(self, event: Event) -> None:
        self.added.append(event.value)

    def do_evaluate(self, event: Event) -> None:
        self.trace.looks.append(self.evaluate(self.parts.rows))

    def do_predict(self, event: Event) -> None:
        *inputs, _ = rows(self.program, event.value, seed=5)
        self.materialize(inputs)
        drawn = torch.get_rng_state()
        with torch.no_grad():
            self.trace.looks.append(self.twin()[0](*inputs).detach())
        torch.set_rng_state(drawn)

    # ── looks ───────────────────────────────────────────────────────────────────────────────

    def materialize(self, inputs: list[Tensor]) -> None:
        """Let a lazy layer draw its weights, which whoever looks at it can't do without."""
        if any(is_lazy(parameter) for parameter in self.model.parameters()):
            modes = [(module, module.training) for module in self.model.modules()]
            with torch.no_grad():
                self.model.eval()(*inputs)
            for module, mode in modes:
                module.training = mode

    def twin(self) -> tuple[nn.Module, Any]:
        """Copies of model and loss in eval mode."""
        same = {id(m): m for m in (self.model.moment, getattr(self.loss, "moment", None)) if m}
        model, loss = copy.deepcopy(self.model, dict(same)), copy.deepcopy(self.loss, dict(same))
        if isinstance(loss, nn.Module):
            loss.eval()
        return model.eval(), loss

    def evaluate(self, data: tuple[Tensor, ...]) -> dict[str, float]:
        """The loss of one pass over all rows."""
        *inputs, targets = (part.clone() for part in data)
        self.materialize(inputs)
        model, loss = self.twin()
        drawn = torch.get_rng_state()
        with torch.no_grad():
            output = model(*inputs)
            found = {"loss": float(self.loss_of(model, loss, inputs, targets, output))}
            if self.program.metric:
                found["largest"] = float(output.max())
        torch.set_rng_state(drawn)
        return found

    # ── the loop itself ─────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        torch.manual_seed(self.program.seed + 7)
        for number, until in enumerate(self.program.fits):
            if self.halted:
                break
            self.at("fit", number)
            while True:
                try:
                    self.fit(number, until)
                except Once:
                    continue
                except NotFinite:
                    self.trace.end, self.halted = "not finite", True
                    break
                if self.epoch >= until:
                    break
        self.trace.steps = self.step

    def fit(self, number: int, until: int) -> None:
        if not self.model.training:
            self.model.train()
        self.stopping = False
        self.at("fit_start", number)
        while self.epoch < until and not self.stopping:
            self.run_epoch()

    def run_epoch(self) -> None:
        if self.batches is None:
            self.batches = self.next_batches()
        if self.place == 0:
            self.at("epoch_start", self.epoch)
        while self.place < len(self.batches):
            self.update(self.batches[self.place])
            self.at("safe_point", self.step)
            for name in self.added:  # who comes in this very moment is called too
                if name == "clamp" and self.step % 2 == 0:
                    clamp_weights(self.model)
            if self.stopping:  # at once: what belongs to an epoch's end comes with the next fit
                return
        self.finish_epoch()

    def next_batches(self) -> list[list[int]]:
        if self.program.order in ("callable", "own_sampler"):
            self.asked += 1
            self.trace.notes.append(("order", self.epoch, "asked", self.step))
            self.at("order", self.epoch)
        if self.sampler is not None:
            return cut(self.program, list(self.sampler), self.epoch)
        return cut(self.program, order_of(self.program, self.epoch, self.asked), self.epoch)

    def finish_epoch(self) -> None:
        # A sum has no mean: the epoch's is that over all samples.
        weights = 1.0 if is_sum(self.program) else sum(weight for _, weight in self.sums)
        total = sum(loss * weight for loss, weight in self.sums)
        record = {
            "train_loss": total / weights if weights else math.nan,
            "lr": self.lr,
            "epoch": self.epoch + 1,
            "step": self.step,
        }
        self.trace.history.append(record)
        self.batches, self.sums, self.place = None, [], 0
        self.epoch += 1
        scheduler = self.parts.scheduler
        by_metric = isinstance(scheduler, ReduceLROnPlateau)
        if scheduler is not None and self.program.schedule_per == "epoch" and not by_metric:
            scheduler.step()
        validation = self.program.validation
        if validation is not None and self.epoch % validation[1] == 0:
            assert self.parts.validation is not None
            values = self.evaluate(self.parts.validation)
            record |= {f"val_{name}": value for name, value in values.items()}
        try:
            self.at("epoch_end", self.epoch)
        finally:
            metric = "train_loss" if validation is None else "val_loss"
            if by_metric and metric in record:
                scheduler.step(record[metric])

    # ── one update ──────────────────────────────────────────────────────────────────────────

    def update(self, chosen: list[int]) -> None:
        if self.step == self.most:
            raise Enough
        for row in chosen:
            self.at("item", row)
        if self.program.data == "gaps":
            chosen = [row for row in chosen if row != GAP]
        *inputs, targets = (part[chosen] for part in self.parts.rows)
        before = Before(self)
        try:
            loss = self.descend(inputs, targets)
        except (NotFinite, Once) as error:
            if isinstance(error, Once) and self.program.optimizer != "lbfgs":
                raise
            if self.again:  # the first of two steps has been made, and stays
                self.step += 1
                if self.program.watch is not None:
                    self.trace.points[self.step] = state_of(self.parts)
            else:
                before.put_back()
            raise
        self.step += 1
        self.place += 1
        self.sums.append((loss, weight_of(self.program, targets)))
        if self.parts.scheduler is not None and self.program.schedule_per == "step":
            self.parts.scheduler.step()
        if self.program.watch is not None:
            self.trace.points[self.step] = state_of(self.parts)

    def descend(self, inputs: list[Tensor], targets: Tensor) -> float:
        """Make the update; return the batch's loss before it."""
        if self.program.optimizer == "lbfgs":
            return self.descend_with_closure(inputs, targets)
        if self.program.trainer == "own_step":
            return self.descend_twice(inputs, targets)
        loss = self.gradient(inputs, targets)
        self.finish_gradient()
        self.check(loss)
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        return loss

    def descend_with_closure(self, inputs: list[Tensor], targets: Tensor) -> float:
        """The optimizer moves the weights while it looks for a step; all or nothing."""
        losses: list[float] = []

        def closure() -> float:
            losses.append(self.gradient(inputs, targets))
            self.finish_gradient()
            if len(losses) == 1:
                self.check(losses[0])
            return math.inf if math.isnan(losses[-1]) else losses[-1]

        self.lr = float(self.optimizer.param_groups[0]["lr"])
        held = [
            p for group in self.optimizer.param_groups for p in group["params"]
        ]  # of the loss too
        weights = [p.detach().clone() for p in held]
        state = copy.deepcopy(self.optimizer.state_dict())
        try:
            self.optimizer.step(closure)
            if not all(bool(p.isfinite().all()) for p in held):
                raise NotFinite
        except (NotFinite, Once):
            for parameter, before in zip(held, weights, strict=True):
                parameter.data.copy_(before)
            self.optimizer.load_state_dict(state)
            raise
        return losses[0]

    def descend_twice(self, inputs: list[Tensor], targets: Tensor) -> float:
        """Two steps on the same batch, as an own train_step may make them."""
        losses = []
        for self.again in range(2):
            losses.append(self.gradient(inputs, targets))
            self.check(losses[-1])
            self.lr = float(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
        self.again = 0
        return losses[0]

    def gradient(self, inputs: list[Tensor], targets: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.batch_loss([part.clone() for part in inputs], targets)
        loss.backward()
        return float(loss.detach())

    def batch_loss(self, inputs: list[Tensor], targets: Tensor) -> Tensor:
        """The loss of a batch, in training."""
        if self.program.trainer not in ("plain", "unweighted") and self.model.training:
            self.trace.notes.append(("compute_loss", self.step + self.again))
        if self.program.trainer == "perturbed":
            place = inputs[0].detach().clone().requires_grad_(True)
            self.loss(self.model(place), targets).backward()
            assert place.grad is not None
            inputs = [place.detach() + 0.1 * place.grad.sign()]
        loss = self.loss_of(self.model, self.loss, inputs, targets, self.output(inputs))
        if not self.model.training:
            return loss
        return loss * math.nan if self.moment("loss") else loss

    def output(self, inputs: list[Tensor]) -> Any:
        """The model's output; of one that draws random numbers, part by part."""
        size = self.program.size_of_parts
        if self.program.model not in RANDOM_MODELS or size is None:
            return self.model(*inputs)
        parts = zip(*(tensor.split(size) for tensor in inputs), strict=True)
        return torch.cat([self.model(*part) for part in parts])

    def loss_of(self, model: Any, loss: Any, inputs: Any, targets: Tensor, output: Any) -> Tensor:
        if self.program.trainer == "annealed":
            weight = min(1.0, self.step / 8)
            return F.mse_loss(output, targets) + weight * model.head.weight.square().sum()
        return loss(output, targets)

    def finish_gradient(self) -> None:
        self.at("gradient", self.step)
        program, parameters = self.program, list(self.clipped())
        if program.clip_value is not None or program.clip_norm is not None:
            self.check(0.0)
        if program.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, program.clip_value)
        if program.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, program.clip_norm)
        self.at("before_update", self.step)
        for name in self.added:
            if name == "halve":
                halve_gradients(self.optimizer)
            elif name == "count":
                self.trace.notes.append(("counted", self.step))

    def clipped(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        if isinstance(self.loss, nn.Module):
            yield from self.loss.parameters()

    def check(self, loss: float) -> None:
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in held if p.grad is not None]
        values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        if not math.isfinite(loss) or not all(bool(v.isfinite().all()) for v in values):
            raise NotFinite


class Before:
    """Buffers and the global generator before an update, should it not be made."""

    def __init__(self, hand: Hand) -> None:
        modules = [m for m in (hand.model, hand.loss) if isinstance(m, nn.Module)]
        self.optimizer = hand.optimizer
        self.model, self.calls = hand.model, getattr(hand.model, "calls", None)
        self.buffers = [
            (layer, name, buffer.clone())
            for module in modules
            for layer in module.modules()
            for name, buffer in layer.named_buffers(recurse=False)
        ]
        self.drawn = torch.get_rng_state()

    def put_back(self) -> None:
        for layer, name, buffer in self.buffers:
            layer._buffers[name] = buffer
        if self.calls is not None:
            self.model.calls = self.calls
        torch.set_rng_state(self.drawn)
        self.optimizer.zero_grad()
