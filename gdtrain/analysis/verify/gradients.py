"""Is a batch's gradient the same however it is cut, on the user's own model, loss and data."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from gdtrain.analysis.curvature.functional_loss import FunctionalLoss
from gdtrain.analysis.verify import dependent_layers, finite_differences, processes
from gdtrain.analysis.verify.float64_copy import Float64Copy, in_double, pick
from gdtrain.data.batch import Batch, Plan
from gdtrain.errors import GdtrainError, ModelError
from gdtrain.training.gradients.exact import add_gradient, whole_gradient
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.loss_weights import (
    adds_up,
    has_own_loss,
    in_two_passes,
    says_weight,
    weight_of,
)
from gdtrain.training.placement.distributed import World
from gdtrain.training.state.random_generators import RngState
from gdtrain.training.trainer import Trainer

# Rounding in float64 stays far below these, and what is wrong on purpose or by mistake far above.
TOLERANCE = 1e-10
DIRECTIONS, BATCHES = 3, 4
# Numbers in the per-sample gradients that are held at a time.
CHUNK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Row:
    """One comparison with the gradient in one pass.

    error: the relative error of the gradient, or of the loss where that is larger; None if the
    comparison could not be made. reason: why not, or what went wrong.
    """

    comparison: str
    error: float | None
    tolerance: float
    reason: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the identity holds; None if that is not known."""
        return None if self.error is None else self.error <= self.tolerance

    @property
    def verdict(self) -> str:
        """``ok``, ``BROKEN`` or ``not run``, with the reason."""
        word = "not run" if self.ok is None else "ok" if self.ok else "BROKEN"
        return f"{word}: {self.reason}" if self.reason else word


@dataclass(frozen=True)
class Report:
    """What :func:`verify` has found; ``str()`` is a table of it.

    notes: what to know about how it was compared. findings: which layer or loss breaks it.
    """

    num_samples: int
    num_parameters: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    findings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every comparison that could be made came out equal."""
        return all(row.ok is not False for row in self.rows)

    def __str__(self) -> str:
        lines = [
            f"The gradient of {self.num_samples:,} samples for {self.num_parameters:,} parameters, "
            "in float64 on the CPU:",
            "",
            f"{'compared with one pass':<36}  relative error  tolerance",
        ]
        for row in self.rows:
            error = "-" if row.error is None else f"{row.error:.1e}"
            shown = f"{row.comparison:<36}  {error:>14}  {row.tolerance:>9.0e}  {row.verdict}"
            lines.append(shown)
        lines += ["", *(f"note: {note}" for note in self.notes), *self.findings]
        ran = [row for row in self.rows if row.ok is not None]
        broken = sum(not row.ok for row in ran)
        message = f"{broken} of {len(ran)} comparisons differ" if broken else "all comparisons hold"
        skipped = len(self.rows) - len(ran)
        lines.append(message + (f"; {skipped} could not be run" if skipped else ""))
        return "\n".join(lines)


def verify(trainer: Trainer, batch: Batch, *, num_processes: int = 2) -> Report:
    """Compare the gradient of ``batch`` in one pass with every other way to compute it.

    On a copy of the trainer's model and loss in float64 on the CPU, with dropout off; the
    trainer, its data and all random number generators stay as they are. The ways are:

    * microbatches of several sizes, most of them with a ragged end, in one pass or in two, as in
      training (see :class:`gdtrain.training.gradients.exact.ExactGradient`);
    * other batches of the data set, of as many samples, in eval mode, and each in parts;
    * per-sample gradients g_i of torch.func, g = Σ_i (N_i / N) g_i with N of
      :meth:`gdtrain.Trainer.loss_weight`;
    * central differences, g·v = (J(θ + hv) - J(θ - hv)) / 2h + O(h²) in random directions v;
    * ``num_processes`` processes on gloo, each with its share; none if fewer than 2.

    Errors are relative to the 2-norm. Raises ModelError if the model does not run in
    float64 on the CPU, or the loss of these samples is not finite.
    """
    copied, batch = Float64Copy(trainer), in_double(batch)
    try:
        notes = [_way(copied, batch), *_dropout_off(copied), *_randomness_off(copied, batch)]
        expected = copied.gradient(lambda: whole_gradient(copied.trainer, batch))
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"model: does not run in float64 on the CPU: {reason}") from error
    _check_finite(batch, *expected)
    size = len(batch)

    rows: list[Row] = []
    for part in sorted({1, 2, 3, 7, size // 2 + 1, size - 1} & set(range(1, size))):
        cut = partial(copied.gradient, partial(_in_parts, copied, batch, part))
        ragged = f", the last of {size % part}" if size % part else ""
        name = f"microbatches of {part}{ragged}"
        rows.append(_row(name, expected, cut, error_if_raised=math.inf))
    rows.append(_in_eval_mode(copied, size))
    rows.append(_of_samples(copied, batch, expected))
    rows.append(_differences(copied, batch, expected[0]))
    if num_processes > 1:
        counts = [stop - start for start, stop in processes.shares(size, num_processes)]
        name = f"{num_processes} processes, {' + '.join(map(str, counts))} samples"
        rows.append(_row(name, expected, lambda: processes.gradient(copied, batch, num_processes)))
    findings: list[str] = []
    if any(row.ok is False for row in rows):
        takes_parts = all(row.error != math.inf for row in rows)
        findings = dependent_layers.findings(copied, batch, expected[0], takes_parts)
    return Report(size, copied.num_parameters, tuple(rows), tuple(notes), tuple(findings))


def _check_finite(batch: Batch, gradient: Tensor, loss: Tensor) -> None:
    if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
        raise ModelError(
            f"loss: is {float(loss):g} on these {len(batch)} samples, or its gradient is not "
            "finite, so there is nothing to compare; use other samples"
        )


def _row(
    name: str,
    expected: tuple[Tensor, Tensor],
    compute: Callable[[], tuple[Tensor, Tensor]],
    error_if_raised: float | None = None,
) -> Row:
    """Compare what ``compute`` gives; an error that it raises breaks the identity, or leaves it."""
    try:
        got = compute()
    except Exception as error:  # of the user's model, of whatever type; it is told in the table
        own = isinstance(error, GdtrainError | processes.NotRunError)
        reason = str(error) if own else f"{type(error).__name__}: {error}"
        return Row(name, error_if_raised, TOLERANCE, textwrap.shorten(reason, 160))
    errors = map(finite_differences.relative_error, got, expected)
    return Row(name, max(errors), TOLERANCE)


def _way(copied: Float64Copy, batch: Batch) -> str:
    """Which way a batch that is cut goes, and what that costs."""
    trainer = copied.trainer
    name = dependent_layers.loss_name(trainer)
    if in_two_passes(trainer, batch):
        return (
            f"what loss {name} is divided by is not known, so batches are cut in two passes: right "
            "for any loss, for one more forward pass, about 1.4 times the work"
        )
    if says_weight(trainer):
        return "batches are cut in one pass, their parts weighted by loss_weight"
    if has_own_loss(trainer):
        return (
            f"{name} is taken for a mean over samples; to cut batches, training asks for "
            "`def loss_weight(self, batch): return len(batch)`"
        )
    return f"batches are cut in one pass, their parts weighted by what loss {name} is divided by"


def _in_eval_mode(copied: Float64Copy, size: int) -> Row:
    """Gradients and losses of drawn batches in eval mode, each in one pass and in parts."""
    name, loader = f"{BATCHES} batches in eval mode", copied.trainer.loader
    if loader is None or loader.is_stream:
        return Row(name, None, TOLERANCE, "there is no data set to draw batches from")
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(loader.num_samples, (BATCHES * size,), generator=draw, device="cpu")
    plan, worst = Plan(0, len(rows), size, rows), 0.0
    modes = [(module, module.training) for module in copied.modules()]
    try:
        copied.eval()
        for batch in map(in_double, loader.samples.read(plan)):
            if (layer := dependent_layers.random_layer(copied, batch)) is not None:
                text = dependent_layers.layer_name(copied, layer)
                return Row(name, None, TOLERANCE, f"cannot be checked: {text} draws random numbers")
            before = RngState.take(torch.device("cpu"))
            with copied.passing():
                copied(batch)
                moved = not before.is_current(torch.device("cpu"))
            if moved:
                return Row(
                    name, None, TOLERANCE, "cannot be checked: the loss draws random numbers"
                )
            whole = copied.gradient(partial(whole_gradient, copied.trainer, batch))
            parts = copied.gradient(partial(_in_parts, copied, batch, -(-size // 3)))
            if torch.isfinite(whole[1]):
                worst = max(worst, *map(finite_differences.relative_error, parts, whole))
    except Exception as error:  # of the user's model, of whatever type
        text = f"{type(error).__name__}: {error}"
        return Row(name, None, TOLERANCE, textwrap.shorten(text, 160))
    finally:
        for module, mode in modes:
            module.training = mode
    return Row(name, worst, TOLERANCE)


def _of_samples(copied: Float64Copy, batch: Batch, expected: tuple[Tensor, Tensor]) -> Row:
    name = "per-sample gradients (torch.func)"
    if in_two_passes(copied.trainer, batch):
        reason = "the loss is not known to be a mean over samples"
        return Row(name, None, TOLERANCE, reason)
    return _row(name, expected, lambda: _per_sample(copied, batch))


def _in_parts(copied: Float64Copy, batch: Batch, size: int) -> Tensor:
    return add_gradient(copied.trainer, batch, list(batch.split(size)), World()).loss


def _per_sample(copied: Float64Copy, batch: Batch) -> tuple[Tensor, Tensor]:
    """Σ_i (N_i / N) g_i and Σ_i (N_i / N) l_i, a chunk of samples at a time.

    Samples of weight 0, whose target is ignored, are left out: their mean loss would be 0/0.
    """
    each_weight = [weight_of(copied.trainer, one) for one in batch.split(1)]
    weights = torch.tensor(each_weight, dtype=torch.float64, device="cpu")
    total = 1.0 if adds_up(copied.trainer) else float(weights.sum())

    def loss_of(own: list[Tensor], others: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional.at(own, others, pick(batch, row[None]))

    each = vmap(grad_and_value(loss_of), in_dims=(None, None, 0), randomness="different")
    own = [parameter.detach() for parameter in copied.trained.values()]
    gradient = torch.zeros(copied.num_parameters, dtype=torch.float64, device="cpu")
    loss = torch.zeros((), dtype=torch.float64, device="cpu")
    counted = weights.nonzero()[:, 0]
    for rows in torch.split(counted, max(1, CHUNK_NUMBERS // copied.num_parameters)):
        share = weights[rows] / total
        with copied.passing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            functional = FunctionalLoss(copied.trainer, list(copied.trained.values()))
            gradients, losses = each(own, functional.others(), rows)
        summed = [torch.tensordot(share.to(g), g, 1) for g in gradients]
        gradient += Flat(own).joined(summed)
        loss += share @ losses
    return gradient, loss


def _differences(copied: Float64Copy, batch: Batch, gradient: Tensor) -> Row:
    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(DIRECTIONS):
        direction = finite_differences.half_random(gradient, draw)
        error = finite_differences.differences_error(copied, batch, gradient, direction)
        worst = max(worst, error)
    name = f"finite differences, {DIRECTIONS} directions"
    return Row(name, worst, finite_differences.TOLERANCE)


def _dropout_off(copied: Float64Copy) -> list[str]:
    if not copied.silenced:
        return []
    layers = ("layer " if len(copied.silenced) == 1 else "layers ") + ", ".join(
        repr(name) for name in copied.silenced
    )
    return [f"dropout is off here ({layers}); microbatches draw other masks than one pass"]


def _randomness_off(copied: Float64Copy, batch: Batch) -> list[str]:
    """Put layers that still draw random numbers into eval mode, and say so."""
    notes: list[str] = []
    while (name := dependent_layers.random_layer(copied, batch)) is not None:
        layer = copied.model.get_submodule(name)
        if not layer.training:
            break  # a finding, if it makes a difference
        layer.training = False
        message = dependent_layers.layer_name(copied, name)
        notes.append(
            f"{message} draws random numbers, so it is in eval mode here; microbatches draw others "
            "than one pass"
        )
    return notes
