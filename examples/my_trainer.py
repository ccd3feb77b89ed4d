"""A Trainer of your own: an absolute error that forgives small ones, and a penalty on weights."""

import torch
from torch import nn

from gdtrain import Batch, Trainer


class PenalizedTrainer(Trainer):
    """J = mean |f(x) - y| + penalty · Σ |θ|, the mean over the samples of a batch."""

    penalty = 1e-3

    def compute_loss(self, batch: Batch) -> torch.Tensor:
        error: torch.Tensor = (self.model(batch.inputs) - batch.targets).abs().mean()
        return error + self.penalty * sum(p.abs().sum() for p in self.model.parameters())

    def loss_weight(self, batch: Batch) -> int:
        return len(batch)  # the loss is a mean over samples: batches may be cut into microbatches


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
