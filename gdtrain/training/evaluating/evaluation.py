"""Loss and metrics on a whole data set, and predictions, without side effects on the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.rows import compact, join
from gdtrain.data.tables.preparation import as_tensor
from gdtrain.data.tree import copied, map_tensors, tensors_of
from gdtrain.errors import ConfigError, DataError, ModelError
from gdtrain.training.blocks import known_plan
from gdtrain.training.evaluating.metrics import MeanOverSamples, Streaming, streams
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.gradients.forward import forward
from gdtrain.training.gradients.loss_weights import adds_up, has_own_loss, in_two_passes, weight_of
from gdtrain.training.gradients.microbatches import UNMEASURED_SIZE, is_out_of_memory
from gdtrain.training.losses.of_model import LossOfModel, judged
from gdtrain.training.losses.terms import no_number
from gdtrain.training.placement.device import autocast
from gdtrain.training.placement.distributed import World
from gdtrain.training.run import Run
from gdtrain.training.safety.checks import check_loader
from gdtrain.training.state.keeper import unchanged
from gdtrain.wording import counted

T = TypeVar("T")


def evaluate(trainer: Run, loader: Loader, in_batches: bool) -> dict[str, float]:
    """The trainer's loss and metrics over all samples of ``loader``, each once.

    They are what one pass over all samples gives. A loss of which it is known what it is divided by
    is taken part by part, and so are metrics that stream; any other loss over outputs and any other
    metric once, on all outputs and targets. in_batches: take each of the loader's own batches, of
    its epoch 0, in the place of all samples, and the mean over them, weighted by what a batch's
    loss is divided by, or its samples.

    Raises ModelError for anything but a loader, and ConfigError where outputs and targets that are
    needed at once go over ``memory_limit``.
    """
    check_loader("loader", loader)
    count, size = loader.num_samples, trainer.microbatches.size or UNMEASURED_SIZE
    if in_batches:
        plan = known_plan(trainer, loader, 0)
        if plan.indices is None:
            plan = replace(plan, num_samples=min(plan.num_samples, count))
    else:
        plan = whole(count, _at_once(trainer, loader))
    # A forward pass of a split model takes all ranks, so there each of them sees everything.
    batches = trainer.read(loader, plan, shared=not trainer.is_sharded)
    with unchanged(trainer, training=False):
        look = _Look(trainer)
        parts = (look.alike(batch.split(size)) for batch in batches)
        if in_batches:
            for of_batch in parts:
                look.at(of_batch, None)
        else:
            look.at(chain.from_iterable(parts), count)
        return look.result()


def _at_once(trainer: Run, loader: Loader) -> int | None:
    """How many samples to read at once: a collate function gets as many as in training.

    It may drop what can't be used, and of a few samples there may be none that can.
    """
    size = trainer.microbatches.size
    if size is None or not loader.samples.has_own_collate:
        return size
    trained = trainer.loader or loader
    return max(size, min(each.outline(0).batch_size for each in (loader, trained)))


def predict(trainer: Run, inputs: Any) -> Any:
    """The model's outputs [n, …], on the CPU, for inputs [n, …] (or a tuple or dict of such)."""
    if isinstance(inputs, Loader | DataLoader | Dataset):
        kind = type(inputs).__name__
        text = f"must be tensors or arrays [n, …], got a {kind}; evaluate takes loaders"
        raise DataError(f"inputs: {text}")
    given = _as_tensors(inputs, "inputs")
    counts = {tensor.shape[0] for tensor in tensors_of(given)}
    if len(counts) != 1:
        message = " and ".join(map(str, sorted(counts))) or "none"
        raise DataError(f"inputs: different numbers of samples: {message}; each needs one of each")
    (count,) = counts
    if not count:  # the outputs' shapes are those of any row
        given = map_tensors(given, lambda t: t.new_zeros(1, *t.shape[1:]))
    size = trainer.microbatches.size or UNMEASURED_SIZE
    outputs, sizes = [], []
    with unchanged(trainer, training=False):
        without_graph = WithoutGraph()
        for start in range(0, max(1, count), size):
            rows = slice(start, start + size)
            part = map_tensors(given, partial(_placed, trainer, rows))
            output = without_graph(partial(forward, trainer, part))
            _check_rows(part, output)
            outputs.append(map_tensors(output, Tensor.cpu))
            sizes.append(min(size, max(1, count) - start))
    predicted = join(outputs, sizes, "outputs")
    return predicted if count else _no_rows(predicted)


def _check_rows(inputs: Any, output: Any) -> None:
    """Raise ModelError where one sample without its batch dimension was taken for several."""
    if not (isinstance(inputs, Tensor) and inputs.ndim == 1 and isinstance(output, Tensor)):
        return
    n = inputs.shape[0]
    if output.ndim and output.shape[0] != n:
        raise ModelError(
            f"model: gave {list(output.shape)} for inputs of shape [{n}], taken as "
            f"{counted(n, 'sample')}; give one sample as [1, {n}], by inputs[None]"
        )


def whole(num_samples: int, at_most: int | None = None) -> Plan:
    """The plan that reads every sample once, in sequence, in parts of moderate size."""
    return Plan(0, num_samples, min(num_samples, at_most or UNMEASURED_SIZE), None)


class WithoutGraph:
    """Makes passes without a graph; with one, if the model differentiates in ``forward``."""

    def __init__(self) -> None:
        self._needs_graph = False

    def __call__(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, its tensors without a graph."""
        if not self._needs_graph:
            try:
                with torch.no_grad():
                    return work()
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                self._needs_graph = True
        with torch.enable_grad():
            found: T = map_tensors(work(), Tensor.detach)
            return found


class _Look:
    """Adds up what is found in sets of samples: all samples in one, or a batch in each.

    Sums are kept in float64, so that neither the parts nor the ranks show in the result.
    """

    def __init__(self, trainer: Run) -> None:
        self.trainer = trainer
        self.world = World() if trainer.is_sharded else trainer.world
        self.without_graph = WithoutGraph()
        self.own_loss = has_own_loss(trainer)
        self.metrics = dict(trainer.metrics)
        self.streaming = {n: m for n, m in self.metrics.items() if isinstance(m, Streaming)}
        self.functions = {n: m for n, m in self.metrics.items() if not streams(m)}
        # Of each, Σ w · value and Σ w.
        self.sums = {name: [0.0, 0.0] for name in ("loss", *self.metrics)}
        limit = trainer.microbatches.limit_at_once(trainer.device)
        self.limit = min(limit for (limit,) in self.world.gather([limit]))
        for metric in self.streaming.values():
            metric.reset()

    def alike(self, parts: Iterable[Batch]) -> list[Batch]:
        """A batch's parts, and empty ones where another process has more."""
        found = [part for part in parts if len(part)]
        most = max(count for (count,) in self.world.gather([len(found)]))
        return found + [Batch(None, None, torch.arange(0, device="cpu"))] * (most - len(found))

    def at(self, parts: Iterable[Batch], num_samples: int | None) -> None:
        """Take in a set of samples, given in parts; ``num_samples``: if it is all of them."""
        kept = _Kept(self, num_samples)
        for part in parts:
            output, loss = self.trainer.microbatches.attempt(partial(self._pass, part))
            if self.metrics and isinstance(self.trainer.loss, LossOfModel):
                output, labels = judged(output, part.inputs)
                part = part.with_trees(part.inputs, labels)
            if len(part):
                if loss is not None:
                    self._add("loss", loss, weight_of(self.trainer, part))
                for name, metric in self.metrics.items():
                    if isinstance(metric, MeanOverSamples):
                        self._add(name, *self._mean(metric, output, part))
                if self.functions or loss is None:
                    kept.keep(output, part, for_loss=loss is None)
            self._update(output, part)
        if self.world.any(kept.wanted):
            self._at_once(*kept.joined())

    def _mean(self, metric: MeanOverSamples, output: Any, part: Batch) -> tuple[Any, Any]:
        return metric.part(output, part.targets, len(part), self.trainer.loss)

    def result(self) -> dict[str, float]:
        """The loss, its terms and each metric."""
        if self.own_loss and self.world.size > 1:  # some processes may have had no samples
            for name in sorted(set().union(*self.world.gather_objects(list(self.sums)))):
                self.sums.setdefault(name, [0.0, 0.0])
        numbers = self.world.sum_floats([number for pair in self.sums.values() for number in pair])
        found: dict[str, float] = {}
        for name, total, weight in zip(self.sums, numbers[::2], numbers[1::2], strict=True):
            if name == "loss" and adds_up(self.trainer):
                weight = 1.0
            found[name] = total / weight if weight else math.nan
            if name in self.streaming:
                del found[name]
                found.update(_named(name, self.streaming[name].compute()))
                self.streaming[name].reset()
        return found

    def _add(self, name: str, value: Any, weight: Any) -> None:
        weight = float(weight)
        if weight:  # else the value may be 0/0: no target counts
            self.sums[name][0] += _number(name, value) * weight
            self.sums[name][1] += weight

    def _add_terms(self, weight: float) -> None:
        for name, value in self.trainer.terms.passed.items():
            if name in self.metrics:
                raise ModelError(f"compute_loss: {name!r} is a metric's name too; choose another")
            self.sums.setdefault(name, [0.0, 0.0])
            self._add(name, value, weight)
        self.trainer.terms.passed = {}

    def _pass(self, part: Batch) -> tuple[Any, Tensor | None]:
        """The outputs for a part, and its loss, if the part's loss says something of the whole."""
        if not len(part):
            return None, None
        trainer, output = self.trainer, None
        if self.own_loss:
            again = copied(part.inputs) if self.metrics else None  # the model may work in place
            loss = self.without_graph(lambda: trainer.batch_loss(part))
            self._add_terms(weight_of(trainer, part))
            if self.metrics:
                output = self.without_graph(lambda: forward(trainer, again))
            return output, scalar(loss)
        output = self.without_graph(lambda: forward(trainer, part.inputs))
        if in_two_passes(trainer, part):
            return output, None
        return output, self._loss(output, part.targets)

    def _loss(self, output: Any, targets: Any) -> Tensor:
        trainer = self.trainer

        def work() -> Tensor:
            with autocast(trainer.precision, trainer.device):
                return trainer.output_loss(output, targets)

        return scalar(self.without_graph(work))

    def _update(self, output: Any, part: Batch) -> None:
        """Give a part to the metrics that stream."""
        own = (output, part.targets) if len(part) else None
        for metric in self.streaming.values():
            shares = [own]
            if self.world.size > 1 and not hasattr(metric, "sync_on_compute"):  # torchmetrics' do
                shares = self.world.gather_objects(map_tensors(own, Tensor.cpu))
            for share in shares:
                if share is not None:
                    metric.update(*map_tensors(share, lambda t: t.to(self.trainer.device)))

    def _at_once(self, outputs: Any, targets: Any, size: int, for_loss: bool, is_all: bool) -> None:
        """Take in the outputs and targets of a whole set, on all processes the same."""
        counts_for = (1.0 if is_all else float(size)) if self.world.rank == 0 else 0.0
        if for_loss:
            try:
                loss = self._loss(outputs, targets)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ConfigError.of(
                    "evaluate_in",
                    f"the loss on all {size:,} samples at once takes more memory than there is; "
                    "use evaluate_in='batches', or evaluate fewer samples",
                ) from error
            self._add("loss", loss, counts_for)
        for name, metric in self.functions.items():
            self._add(name, metric(outputs, targets), counts_for)  # type: ignore[operator]


class _Kept:
    """The outputs and targets of a set's parts, until all are there."""

    def __init__(self, look: _Look, num_samples: int | None) -> None:
        self.look = look
        self.num_samples = num_samples
        self.outputs: list[Any] = []
        self.targets: list[Any] = []
        self.sizes: list[int] = []
        self.places: list[Tensor] = []
        self.nbytes = 0
        self.for_loss = False
        self.refusal = ""

    @property
    def wanted(self) -> bool:
        return bool(self.sizes)

    def keep(self, output: Any, part: Batch, for_loss: bool) -> None:
        """Keep a part's; no more than fits, and what does not is refused."""
        self.for_loss = for_loss
        self.sizes.append(len(part))
        if self.look.world.size > 1:
            self.places.append(part.indices)
        if self.refusal:
            return
        tensors = tensors_of((output, part.targets))
        self.nbytes += sum(tensor.nbytes for tensor in tensors)
        of_all = self.nbytes * max(1.0, (self.num_samples or 0) / sum(self.sizes))
        if of_all > self.look.limit:
            self.refusal = self._refusal(of_all)
            self.outputs, self.targets = [], []
            if self.look.world.size == 1:  # others would wait for this one
                raise ConfigError.of("memory_limit", self.refusal)
            return
        self.outputs.append(map_tensors(output, compact))
        self.targets.append(part.targets)

    def _refusal(self, nbytes: float) -> str:
        look, limit = self.look, self.look.limit
        if self.for_loss:
            what = "the loss, of which it is not known what its mean is over,"
            remedy = "evaluate_in='batches', or override loss_weight"
        else:
            what = f"metric {next(iter(look.functions))!r}, a function of all of them,"
            remedy = "mean_over_samples, or an object with update, compute and reset"
        return (
            f"{what} needs outputs and targets of all samples at once, "
            f"{nbytes / 2**20:,.1f} MiB, which is over {limit / 2**20:,.1f} MiB; "
            f"raise memory_limit, or use {remedy}"
        )

    def joined(self) -> tuple[Any, Any, int, bool, bool]:
        """Outputs and targets of all processes in the order of the data set, and how many."""
        world, device = self.look.world, self.look.trainer.device
        if world.size > 1:
            for refusal in world.gather_text(self.refusal):
                if refusal:
                    raise ConfigError.of("memory_limit", refusal)
        is_all, sizes = self.num_samples is not None, self.sizes
        own = None
        if sizes:
            own = join(self.outputs, sizes, "outputs"), join(self.targets, sizes, "targets")
        if world.size == 1:
            assert own is not None
            return *own, sum(sizes), self.for_loss, is_all
        if own is not None:
            own = *map_tensors(own, Tensor.cpu), torch.cat(self.places)
        shares = [s for s in world.gather_objects((own, self.for_loss)) if s[0] is not None]
        sizes = [len(places) for (_, _, places), _ in shares]
        places = torch.cat([places for (_, _, places), _ in shares])
        order = places.argsort(stable=True) if is_all else torch.arange(len(places), device="cpu")

        def all_of(number: int, what: str) -> Any:
            tree = join([share[number] for share, _ in shares], sizes, what)
            return map_tensors(tree, lambda t: _in_order(t, order).to(device))

        return all_of(0, "outputs"), all_of(1, "targets"), sum(sizes), shares[0][1], is_all


def _in_order(tensor: Tensor, order: Tensor) -> Tensor:
    return tensor[order] if tensor.ndim and tensor.shape[0] == len(order) else tensor


def _named(name: str, value: Any) -> dict[str, float]:
    """A metric's value, or the values of a collection of metrics; "" is its own."""
    if isinstance(value, Mapping):
        names = {f"{name}_{key}" if key else name: item for key, item in value.items()}
        return {one: _number(one, item) for one, item in names.items()}
    return {name: _number(name, value)}


def _number(name: str, value: Any) -> float:
    """What a metric has given. Raises ModelError unless it is one number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise no_number(f"metrics.{name}", value) from error


def _as_tensors(inputs: Any, name: str) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _as_tensors(item, f"{name}[{key!r}]") for key, item in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_as_tensors(item, f"{name}[{i}]") for i, item in enumerate(inputs))
    return as_tensor(inputs, name)


def _placed(trainer: Run, rows: slice, tensor: Tensor) -> Tensor:
    """Rows of the inputs on the device and in the dtype of the model, in a copy."""
    dtype = trainer.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor[rows].to(trainer.device, dtype, copy=True)


def _no_rows(predicted: Any) -> Any:
    return map_tensors(predicted, lambda t: t[:0] if t.ndim else t)
