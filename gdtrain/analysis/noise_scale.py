"""The gradient noise scale: how large a batch may be before it stops helping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gdtrain.analysis.curvature.full_loss import by_layer, rereadable, trained, undisturbed
from gdtrain.analysis.curvature.functional_loss import FunctionalLoss
from gdtrain.analysis.curvature.products import derivatives
from gdtrain.analysis.sample_gradients import PerSample, check_is_mean, mean_weight, take
from gdtrain.data.batch import Batch
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.orders.order import generator
from gdtrain.errors import DataError
from gdtrain.training.gradients.loss_weights import adds_up, weight_of
from gdtrain.training.trainer import Trainer

_DRAW_KEY = 0x401E  # keeps these draws apart from those of orders


@dataclass(frozen=True)
class GradientNoise:
    """How the gradients of samples scatter about that of the data set.

    covariance_trace: tr Σ, the variance of a sample's gradient summed over its components.
    gradient_square: |G|², of the full loss's gradient. Being unbiased, it may come out below 0
    where the noise of the samples looked at is larger than the gradient.
    num_samples: that were looked at. layers: the same of each layer's gradient alone, by the path
    of the module that holds its parameters.
    """

    covariance_trace: float
    gradient_square: float
    num_samples: int
    layers: dict[str, GradientNoise] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """B_simple = tr Σ / |G|²; infinite where |G|² is not seen for noise."""
        if not self.gradient_square > 0:
            return math.inf if self.covariance_trace > 0 else math.nan
        return self.covariance_trace / self.gradient_square

    @property
    def critical_batch_size(self) -> float:
        """The batch size that the noise scale suggests, an int >= 1, or infinite.

        At B = B_simple an update gains half of what a noiseless one would, and twice the samples
        for the same progress are used (McCandlish et al., 2018, sections 2.2 and 2.3): a
        larger batch wastes samples, a smaller one updates.
        """
        return max(1, round(self.scale)) if math.isfinite(self.scale) else self.scale


def gradient_noise(
    trainer: Trainer,
    loader: Loader | None = None,
    *,
    num_samples: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    parameters: Sequence[Tensor] | None = None,
) -> GradientNoise:
    """tr Σ and |G|² at the present weights, estimated without bias (McCandlish, Kaplan, Amodei
    and others, 2018, "An empirical model of large-batch training", section 2.2, appendix A.1).

    From N samples, drawn without replacement, in K random groups of B with mean gradients g_k, and
    ḡ = (1/N) Σ B g_k:

        tr Σ = 1/(K - 1) Σ_k B |g_k - ḡ|²,       |G|² = |ḡ|² - (1/N - 1/n) tr Σ.

    With B = 1 the first is the trace of the samples' covariance (with N - 1), from per-sample
    gradients of torch.func; larger groups take one pass each and are for models that it can't
    take, or too large for it. McCandlish's two-batch form is K groups against one of N; we take
    all groups, and, with 1/n, the data set rather than a world behind it as the whole: from all
    n samples |G|² is exact. The model is in eval mode: dropout's noise is not counted, nor that of
    BatchNorm's statistics.

    num_samples: N, all n of the loader's data set if left out or more; B < N. seed: of the draw.
    parameters: what the gradients are of; all that is trained if left out.
    Nothing of the trainer is changed. Raises DataError for a stream or fewer than two groups, and
    ModelError for a loss that is not a mean over samples.
    """
    loader = rereadable(trainer, loader)
    whole_number("batch_size", batch_size, minimum=1)
    n = loader.num_samples
    wanted = n if num_samples is None else min(n, whole_number("num_samples", num_samples, 2))
    if wanted <= batch_size:
        raise DataError(
            f"the gradient noise needs two batches of {batch_size} at least, "
            f"and there are {wanted} samples"
        )
    draw = generator(seed, _DRAW_KEY)
    chosen = torch.randperm(n, generator=draw, device="cpu")[:wanted]
    with undisturbed(trainer):
        held = list(parameters or trained(trainer))
        scatter = _scatter(trainer, loader, chosen, batch_size, held)
    numbers = {parameter: number for number, parameter in enumerate(held)}
    layers = {
        name: scatter.noise_of([numbers[parameter] for parameter in of_layer], n)
        for name, of_layer in by_layer(trainer, held).items()
    }
    return replace(scatter.noise(n), layers=layers)


def _scatter(
    trainer: Trainer, loader: Loader, chosen: Tensor, batch_size: int, held: list[Tensor]
) -> Scatter:
    """The gradients of the chosen samples, [N] int64, in groups of ``batch_size``, summed up."""
    scatter = Scatter()
    each = PerSample(trainer, held) if batch_size == 1 else None
    loss = FunctionalLoss(trainer, held)
    mean = mean_weight(trainer, loader)
    for indices in torch.split(chosen, max(1024 // batch_size, 1) * batch_size):
        batch = take(trainer, loader, indices)
        if each is not None:
            for gradients in each.of(batch, mean):
                scatter.add(gradients)
            continue
        values = []
        for group in batch.split(batch_size):
            gradient, value = _group_gradient(trainer, loss, group, mean)
            scatter.add([g[None] for g in gradient], size=len(group))
            values += [value] * len(group)
        check_is_mean(trainer, batch, loss.once, torch.stack(values))
    return scatter


class Scatter:
    """Sums up the mean of gradients and their squared distance from it, a chunk at a time.

    Chunks are joined by the formula of Chan, Golub and LeVeque (1979), which does not cancel.
    """

    def __init__(self) -> None:
        self.groups = 0
        self.samples = 0
        self.between: list[float] = []  # Σ_k B_k |g_k - ḡ|², of each parameter
        self.mean: list[Tensor] = []

    def add(self, gradients: Sequence[Tensor], size: int = 1) -> None:
        """Take in k groups of ``size`` samples, by their mean gradients: [k, …] a parameter.

        The tensors are used up: in place, since they are large.
        """
        count = len(gradients[0])
        samples = count * size
        wide = [g if g.dtype == torch.float64 else g.float() for g in gradients]
        # Of a parameter that the loss does not use, vmap gives one zero for all of them.
        wide = [g.contiguous() for g in wide]
        means = [g.mean(0) for g in wide]
        between = [size * _square(g.sub_(m)) for g, m in zip(wide, means, strict=True)]
        if self.mean:
            joint = self.samples + samples
            steps = [new - old for new, old in zip(means, self.mean, strict=True)]
            share = self.samples * samples / joint
            for number, step in enumerate(steps):
                self.between[number] += between[number] + share * _square(step)
                self.mean[number].add_(step, alpha=samples / joint)
        else:
            self.between, self.mean = between, means
        self.groups += count
        self.samples += samples

    def noise(self, population: int | None = None) -> GradientNoise:
        """The estimates; population: n, how many samples there are in all; None: no end of them."""
        return self.noise_of(range(len(self.mean)), population)

    def noise_of(self, numbers: Sequence[int], population: int | None = None) -> GradientNoise:
        """The same of the parameters with these numbers alone."""
        trace = sum(self.between[number] for number in numbers) / (self.groups - 1)
        square = sum(_square(self.mean[number]) for number in numbers)
        left_out = 1 / self.samples - (1 / population if population else 0.0)
        return GradientNoise(trace, square - left_out * trace, self.samples)


def _group_gradient(
    trainer: Trainer, loss_of: FunctionalLoss, group: Batch, mean: float
) -> tuple[list[Tensor], Tensor]:
    """The mean of the group's ∂f_i/∂θ, see :func:`mean_weight`, a tensor a parameter; its loss."""
    parameters = loss_of.replaced
    weight = 1.0 if adds_up(trainer) else weight_of(trainer, group)
    loss = loss_of.once(group)
    found = derivatives([loss * (weight / (len(group) * mean))], parameters)
    pairs = zip(found, parameters, strict=True)
    gradients = [torch.zeros_like(p) if g is None or not weight else g for g, p in pairs]
    reals = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    return reals, loss.detach()


def _square(tensor: Tensor) -> float:
    """The squared 2-norm."""
    flat = tensor.flatten()
    return float(torch.dot(flat, flat))
