"""From the loss section to a loss: torch.nn's, or what a user has registered."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.config import registry
from gdtrain.config.schema import Config
from gdtrain.errors import ConfigError
from gdtrain.training.losses import same_loss_as


@same_loss_as(nn.BCELoss)
class BCELoss(nn.BCELoss):
    """torch.nn's, but of outputs that are NaN it is NaN.

    torch's raises an error there, and on a GPU ends the process's use of the device. Elsewhere
    the two have the same bits.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        bad = output.detach().isnan()
        loss = super().forward(output.masked_fill(bad, 0.5), target)
        return loss.masked_fill(bad.any(), float("nan"))


@same_loss_as(nn.KLDivLoss)
class MeanKLDivLoss(nn.KLDivLoss):
    """torch.nn's with reduction mean, without its advice to take another one at each use."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = nn.functional.kl_div(output, target, reduction="none", log_target=self.log_target)
        return each.mean()


LOSSES: dict[str, type[nn.Module]] = {
    "l1": nn.L1Loss,
    "mse": nn.MSELoss,
    "smooth_l1": nn.SmoothL1Loss,
    "huber": nn.HuberLoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "nll": nn.NLLLoss,
    "multi_margin": nn.MultiMarginLoss,
    "bce": nn.BCELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
    "poisson_nll": nn.PoissonNLLLoss,
    "kl_div": nn.KLDivLoss,
    "hinge_embedding": nn.HingeEmbeddingLoss,
    "soft_margin": nn.SoftMarginLoss,
    "multi_label_margin": nn.MultiLabelMarginLoss,
    "multi_label_soft_margin": nn.MultiLabelSoftMarginLoss,
}


def build_loss(config: Config, num_outputs: int) -> Any:
    """The loss of a configuration, ``(output, targets) -> loss``.

    Raises ConfigError for weights that are not one for each of the ``num_outputs`` outputs.
    """
    options = config.loss.model_dump(exclude={"name"})
    if config.loss.name in registry.losses.parts:
        part = registry.losses.parts[config.loss.name]
        return part(**options) if isinstance(part, type) else partial(part, **options)
    for key in ("weight", "pos_weight"):
        if options.get(key) is not None:
            if len(options[key]) != num_outputs:
                raise ConfigError.of(
                    key,
                    f"must hold one number for each of the {num_outputs} outputs, "
                    f"got {len(options[key])}",
                )
            options[key] = torch.tensor(options[key])
    if config.loss.name == "bce":
        return BCELoss(**options)
    if options.get("reduction") == "mean":
        return MeanKLDivLoss(**options)
    return LOSSES[config.loss.name](**options)
