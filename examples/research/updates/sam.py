"""Sharpness-aware minimisation (Foret and others, 2021): the gradient a step uphill from here."""

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

RHO, BATCH, EPOCHS = 0.05, 16, 3


def uphill(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """ρ g / |g|, of the gradients that there are."""
    length = torch.stack([p.grad.norm() for p in parameters]).norm()
    return [p.grad * (RHO / length) for p in parameters]


class Sam(Trainer):
    def train_step(self, batch):
        loss, weights = self.batch_gradient(batch), self.optimizer.param_groups[0]["params"]
        steps = uphill(weights)
        with torch.no_grad():
            torch._foreach_add_(weights, steps)
        self.batch_gradient(batch)
        with torch.no_grad():
            torch._foreach_sub_(weights, steps)
        self.finish_gradient()
        self.optimizer.step()
        return loss


def with_gdtrain(model, X, y):
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    Sam(model, nn.MSELoss(), sgd, MiniBatchLoader((X, y), BATCH, order="sequential")).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weights, loss_of = list(model.parameters()), nn.MSELoss()
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            steps = uphill(weights)
            with torch.no_grad():
                torch._foreach_add_(weights, steps)
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            with torch.no_grad():
                torch._foreach_sub_(weights, steps)
            optimizer.step()
