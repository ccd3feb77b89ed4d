"""What theory says of learning rates and batch sizes at the present weights, before any trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gdtrain.analysis.curvature.descended_function import descended
from gdtrain.analysis.curvature.full_loss import trained
from gdtrain.analysis.noise_scale import GradientNoise, gradient_noise
from gdtrain.analysis.sharpness import Sharpness, largest_eigenvalue, stability_limit
from gdtrain.errors import ConfigError, DataError, ModelError, reason_of
from gdtrain.training.trainer import Trainer

MOST_SAMPLES = 1024  # from whose gradients the noise is estimated
# RuntimeError: of a model whose own backward pass can't be differentiated. It can be trained.
_CANNOT = (ConfigError, DataError, ModelError, RuntimeError)


@dataclass(frozen=True)
class Theory:
    """Curvature, noise, and the largest learning rates that they leave.

    sharpness: λ, the largest eigenvalue of the Hessian of the loss that is descended.
    gradient_evaluations: what it cost, in gradients of the full loss. stability_limit: the rate
    above which full-batch descent can't settle, 2/λ for plain SGD; None for ``no_limit``, a reason.
    noise_scale: tr Σ / \\|G|², how much the gradients of single samples scatter, and the
    ``critical_batch_size`` that it suggests; None where the gradient is not seen for noise.
    largest_rate: the limit for the batches in use, see :func:`largest_rate`; None for
    ``no_rate``, a reason.
    """

    sharpness: float | None = None
    gradient_evaluations: float = 0.0
    stability_limit: float | None = None
    no_limit: str | None = None
    noise_scale: float | None = None
    critical_batch_size: float | None = None
    largest_rate: float | None = None
    no_rate: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        return asdict(self)


def theory(trainer: Trainer) -> Theory:
    """What theory says of a trainer at its present weights; nothing of it is changed.

    λ is :func:`~gdtrain.analysis.sharpness.largest_eigenvalue`, the noise that of at most 1,024
    samples (:func:`~gdtrain.analysis.noise_scale.gradient_noise`). What can't be computed, of a
    model without second derivatives say, is None, with the reason.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> found = theory(Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X))))
    >>> round(found.sharpness, 3), round(found.largest_rate, 3)  # all samples: no noise, 2/λ
    (2.0, 1.0)
    """
    return _theory(trainer, _sharpness(trainer), _noise(trainer))


def theories(trainers: Mapping[str, Trainer]) -> dict[str, Theory]:
    """:func:`theory` of trainers of the same weights, samples and loss, by their names.

    λ and the noise are computed once for all that descend the same function.
    """
    known: dict[Any, tuple[Sharpness | str, GradientNoise | str]] = {}
    found = {}
    for name, trainer in trainers.items():
        function = _function(trainer)
        if function not in known:
            known[function] = _sharpness(trainer), _noise(trainer)
        found[name] = _theory(trainer, *known[function])
    return found


def largest_rate(limit: float, noise_scale: float, share: float, momentum: float = 0.0) -> float:
    """The largest rate at which updates of some samples still descend, in the mean.

    A batch of B of n samples, drawn without replacement, has a gradient with the relative variance
    ν = (1/B - 1/n) · tr Σ / \\|G|². With J curved by λ at most, the mean loss falls at a rate below
    (2/λ) / (1 + ν) (the descent lemma; McCandlish and others, 2018, section 2.2, with the largest
    curvature in place of that along the gradient). With heavy-ball momentum β it is

        limit / (1 + ν (1 + β) / (1 - β)),        limit = 2 (1 + β) / λ,

    which is the limit of mean-square stability where the loss is a parabola whose samples differ in
    curvature alone. Of all samples at once ν is 0, and the rate the limit.

    limit: of full-batch descent. share: 1/B - 1/n.
    """
    return limit / (1 + share * noise_scale * (1 + momentum) / (1 - momentum))


# ── beside what was tried ───────────────────────────────────────────────────────────────────


def tried_rates(runs: Iterable[tuple[float, bool]]) -> tuple[float | None, float | None]:
    """The largest of the rates that descended, and the next one that did not.

    runs: the learning rate of each, and whether it descended.
    A rate that failed once has failed. None where there is no such rate.

    >>> tried_rates([(0.1, True), (0.3, True), (1.0, True), (1.0, False), (3.0, False)])
    (0.3, 1.0)
    """
    all_of: dict[float, bool] = {}
    for rate, descended_ in runs:
        all_of[rate] = all_of.get(rate, True) and descended_
    good = max((rate for rate, fine in all_of.items() if fine), default=None)
    bad = [rate for rate, fine in all_of.items() if not fine and (good is None or rate > good)]
    return good, min(bad, default=None)


def agreement(rate: float, descended: float | None, failed: float | None) -> str:
    """How far a largest rate in theory agrees with the rates that were tried, in words.

    descended, failed: :func:`tried_rates`. Empty where nothing was tried.

    >>> agreement(0.6, 0.3, 1.0)
    '0.3 descends, 1 does not: as predicted'
    >>> agreement(0.2, 0.5, None)
    '0.5 descends: the prediction is 2.5 times too low'
    """
    tried = [f"{descended:.3g} descends"] if descended is not None else []
    tried += [f"{failed:.3g} does not"] if failed is not None else []
    if not tried:
        return ""
    verdict = "as predicted"
    if descended is not None and rate < descended:
        verdict = f"the prediction is {descended / rate:.2g} times too low"
    elif failed is not None and rate > failed:
        verdict = f"the prediction is {rate / failed:.2g} times too high"
    elif failed is None:
        verdict = "no larger one was tried"
    return f"{', '.join(tried)}: {verdict}"


# ── parts ───────────────────────────────────────────────────────────────────────────────────


def _function(trainer: Trainer) -> object:
    """What tells the function that a trainer descends from those of the others."""
    parameters = sum(p.numel() for p in trained(trainer))
    if stability_limit(trainer.optimizer) is None:
        return parameters, type(trainer.optimizer)
    try:
        goes_down = descended(trainer)
    except _CANNOT as error:
        return parameters, reason_of(error)
    return parameters, goes_down.objective.training, goes_down.why_not


def _sharpness(trainer: Trainer) -> Sharpness | str:
    """λ, or why there is none of use."""
    if stability_limit(trainer.optimizer) is None:
        return f"there is none for {type(trainer.optimizer).__name__} as it is set"
    try:
        return largest_eigenvalue(trainer)
    except _CANNOT as error:
        return reason_of(error)


def _noise(trainer: Trainer) -> GradientNoise | str:
    """The noise of the samples' gradients, or why it is not known."""
    try:
        noise = gradient_noise(trainer, num_samples=MOST_SAMPLES)
    except _CANNOT as error:
        return reason_of(error)
    return noise if math.isfinite(noise.scale) else "the gradient is not seen for noise"


def _theory(trainer: Trainer, sharpness: Sharpness | str, noise: GradientNoise | str) -> Theory:
    found = Theory()
    if isinstance(noise, GradientNoise):
        found = replace(
            found, noise_scale=noise.scale, critical_batch_size=noise.critical_batch_size
        )
    if isinstance(sharpness, str):
        return replace(found, no_limit=sharpness, no_rate=sharpness)
    found = replace(
        found, sharpness=sharpness.value, gradient_evaluations=sharpness.gradient_evaluations
    )
    group = trainer.optimizer.param_groups[0]
    per_lr, curvature = stability_limit(trainer.optimizer), sharpness.value + group["weight_decay"]
    why_not = sharpness.no_limit
    if why_not is None and not curvature > 0:
        why_not = "the loss curves nowhere upwards here"
    if why_not is not None or per_lr is None:
        return replace(found, no_limit=why_not, no_rate=why_not)
    return _with_rate(trainer, replace(found, stability_limit=per_lr / curvature), noise)


def _with_rate(trainer: Trainer, found: Theory, noise: GradientNoise | str) -> Theory:
    """With the largest rate for the trainer's own batches."""
    assert trainer.loader is not None
    assert found.stability_limit is not None
    size, total = trainer.loader.outline(0).batch_size, trainer.loader.num_samples
    share = max(0.0, 1 / size - 1 / total)
    group = trainer.optimizer.param_groups[0]
    if not share:
        return replace(found, largest_rate=found.stability_limit)
    if isinstance(noise, str):
        return replace(found, no_rate=noise)
    if group["nesterov"]:
        return replace(found, no_rate="it is not known for mini-batches with Nesterov's momentum")
    rate = largest_rate(found.stability_limit, noise.scale, share, group["momentum"])
    return replace(found, largest_rate=rate)
