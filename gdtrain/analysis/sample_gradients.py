"""Each sample's own gradient: its norm, and the samples that pull hardest."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from gdtrain.analysis.curvature.full_loss import rereadable, trained, undisturbed
from gdtrain.analysis.curvature.functional_loss import UNMAPPABLE, FunctionalLoss
from gdtrain.analysis.curvature.products import derivatives
from gdtrain.analysis.verify.float64_copy import pick
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.samples import Samples
from gdtrain.data.tree import map_tensors
from gdtrain.errors import ModelError
from gdtrain.training.evaluating.evaluation import whole
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.loss_weights import has_known_mean, says_weight, weight_of
from gdtrain.training.losses.known_means import MeanOfTargets, mean_of
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

# Numbers in the per-sample gradients that are held at a time: 16 MB of float32.
CHUNK_NUMBERS = 1 << 22
# Relative; what float32's rounding in sums does not reach.
_DIFFERENT = 1e-4


@dataclass(frozen=True)
class SampleNorms:
    """The samples with the largest gradients, the largest first.

    indices: [k] int64, places in the loader's data set (of a run from a configuration, in its
    training part). norms: [k] float64, their gradients' 2-norms. mean: of all samples.
    """

    indices: Tensor
    norms: Tensor
    mean: float


def sample_gradient_norms(trainer: Trainer, loader: Loader | None = None) -> Tensor:
    """The 2-norm of every sample's own gradient ∂f_i/∂θ, [n] float64, by its place in the data set.

    f_i is sample i's part of the full loss J = (1/n) Σ f_i at the present weights: its loss, times
    its weight over the mean weight where a loss weights classes or ignores targets. The model is
    in eval mode, also where it trains with BatchNorm, under which a sample has no gradient of its
    own. By ``torch.func``, in chunks; one sample at a time, with a note, where that can't take the
    model. Nothing of the trainer is changed. Raises DataError for a stream, and ModelError for a
    loss that is not a mean over samples.
    """
    loader = rereadable(trainer, loader)
    each = PerSample(trainer)
    plan = whole(loader.num_samples, trainer.microbatches.size)
    norms = []
    with undisturbed(trainer):
        weigh = mean_weight(trainer, loader)
        for part in trainer.read(loader, plan, shared=False):
            for gradients in each.of(part, weigh):
                squares = [g.flatten(1).square().sum(1) for g in gradients]
                norms.append(torch.stack(squares).cpu().double().sum(0).sqrt())
    return torch.cat(norms)


def largest_sample_gradients(
    trainer: Trainer, count: int = 10, loader: Loader | None = None
) -> SampleNorms:
    """The ``count`` samples, or all if there are fewer, with the largest gradients.

    See :func:`sample_gradient_norms`.
    """
    whole_number("count", count, minimum=1)
    norms = sample_gradient_norms(trainer, loader)
    largest = torch.sort(norms, descending=True, stable=True)
    kept = min(count, len(norms))
    return SampleNorms(largest.indices[:kept], largest.values[:kept], float(norms.mean()))


class PerSample:
    """The gradients of a trainer's ``compute_loss`` for one sample at a time.

    To be used while the trainer is :func:`~gdtrain.analysis.curvature.full_loss.undisturbed`. Each
    sample's pass starts from the same buffers. parameters: what the gradients are of; all that is
    trained if left out.
    """

    def __init__(self, trainer: Trainer, parameters: Sequence[Tensor] | None = None) -> None:
        self.trainer = trainer
        self.loss = FunctionalLoss(trainer, parameters or trained(trainer))
        self.num_parameters = len(Flat(self.loss.replaced))
        self._vectorised = self.loss.is_mappable

    def of(self, batch: Batch, mean: float = 1.0) -> Iterator[list[Tensor]]:
        """The gradients of the batch's samples in order; see :meth:`with_losses`."""
        return (gradients for gradients, _ in self.with_losses(batch, mean))

    def with_losses(
        self, batch: Batch, mean: float | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """∂f_i/∂θ and f_i of the batch's samples in order, in chunks of b samples.

        The gradients are a tensor [b, …] a parameter, of a complex one [b, …, 2], real and
        imaginary parts; the f_i are [b]. mean: of the samples' weights, see :func:`mean_weight`;
        that of the batch's if left out. Raises ModelError if the batch's loss turns out not to be
        the mean of its samples' losses, where it is not known to be.
        """
        weights = sample_weights(self.trainer, batch)
        if mean is None:
            mean = 1.0 if weights is None else float(weights.mean()) or 1.0
        rows = torch.arange(len(batch), device=_device(batch))
        values = []
        for chunk in torch.split(rows, max(1, CHUNK_NUMBERS // self.num_parameters)):
            found, losses = self._chunk(batch, chunk)
            values.append(losses)
            found = [torch.view_as_real(g) if g.is_complex() else g for g in found]
            if weights is None:
                yield found, losses
                continue
            share = (weights[chunk.to(weights.device)] / mean).to(found[0])
            yield [_weighed(g, share) for g in found], _weighed(losses, share)
        check_is_mean(self.trainer, batch, self.loss.once, torch.cat(values))

    def _chunk(self, batch: Batch, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        if self._vectorised:
            try:
                return self._by_vmap(batch, rows)
            except UNMAPPABLE as error:
                self._vectorised = False
                found = self._one_by_one(batch, rows)  # if the fault is the model's, it says so
                message = " ".join(str(error).split())[:100]
                logger.warning(
                    "per-sample gradients are computed one by one, which is slow: torch.func "
                    "can't take this model (%s)",
                    message,
                )
                return found
        return self._one_by_one(batch, rows)

    def _by_vmap(self, batch: Batch, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        def loss_of(own: list[Tensor], others: dict[str, Tensor], row: Tensor) -> Tensor:
            return self.loss.at(own, others, pick(batch, row[None]))

        each = vmap(grad_and_value(loss_of), in_dims=(None, None, 0), randomness="different")
        own = [parameter.detach() for parameter in self.loss.replaced]
        with self.loss.restored(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            gradients, losses = each(own, self.loss.others(), rows)
        return gradients, losses

    def _one_by_one(self, batch: Batch, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        parameters = self.loss.replaced
        found, losses = [], []
        for row in rows:
            loss = self.loss.once(pick(batch, row[None]))
            pairs = zip(derivatives([loss], parameters), parameters, strict=True)
            found.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
            losses.append(loss.detach())
        return [torch.stack(of_one) for of_one in zip(*found, strict=True)], torch.stack(losses)


def check_is_mean(
    trainer: Trainer, batch: Batch, loss_of: Callable[[Batch], Tensor], values: Tensor
) -> None:
    """Raise ModelError if a batch's loss is not the mean of its parts'.

    Only of losses of which it is not known. values: [k], the losses of k parts of one size.
    """
    if has_known_mean(trainer, batch) or len(values) < 2:
        return
    whole, mean = float(loss_of(batch).detach()), float(values.double().mean())
    if not math.isclose(whole, mean, rel_tol=_DIFFERENT, abs_tol=_DIFFERENT * 1e-3):
        raise ModelError(
            f"loss: is {whole:.6g} for {len(batch):,} samples together, and {mean:.6g} as the mean "
            "of what it is for each, so that no sample has a gradient of its own; if it is "
            "divided by something else than their number, say so by overriding loss_weight"
        )


def sample_weights(trainer: Trainer, batch: Batch) -> Tensor | None:
    """Each sample's weight in the mean of the loss, [B] float64; None where all are 1."""
    if not _weighs(trainer, batch):
        return None
    each = [weight_of(trainer, one) for one in batch.split(1)]
    return torch.tensor(each, dtype=torch.float64, device="cpu")


def mean_weight(trainer: Trainer, loader: Loader) -> float:
    """The mean over the data set of what :func:`sample_weights` gives; 1 if it is 0.

    It makes J = (1/n) Σ f_i of J = Σ w_i l_i / Σ w_i, with f_i = w_i l_i / mean.
    """
    if not _weighs(trainer, loader.samples):
        return 1.0
    plan = whole(loader.num_samples, trainer.microbatches.size)
    parts = trainer.read(loader, plan, shared=False)
    return sum(weight_of(trainer, part) for part in parts) / loader.num_samples or 1.0


def take(trainer: Trainer, loader: Loader, indices: Tensor) -> Batch:
    """The samples at ``indices``, [N] int64, as one batch on the trainer's device."""
    plan = Plan(0, len(indices), len(indices), indices)
    return next(trainer.read(loader, plan, shared=False))


def _weighs(trainer: Trainer, data: Batch | Samples) -> bool:
    """Whether the loss's mean may weigh one sample more than another."""
    return says_weight(trainer) or isinstance(mean_of(trainer.loss, data), MeanOfTargets)


def _weighed(values: Tensor, share: Tensor) -> Tensor:
    """Each sample's values times its share; 0 of an ignored target, whose own are 0/0."""
    beside = share.view(-1, *[1] * (values.ndim - 1))
    return torch.where(beside != 0, values * beside.to(values), torch.zeros_like(values))


def _device(batch: Batch) -> torch.device:
    found = [torch.device("cpu")]

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor.device)
        return tensor

    map_tensors(batch.inputs, note)
    return found[-1]
