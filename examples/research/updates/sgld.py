"""Stochastic gradient Langevin dynamics (Welling and Teh, 2011): noise that samples."""

import math

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

LR, TEMPERATURE, BATCH, EPOCHS = 0.05, 1e-3, 16, 3


def shake(model: nn.Module) -> None:
    """θ ← θ + √(2 α T) ξ with normal ξ."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(noise, alpha=math.sqrt(2 * LR * TEMPERATURE))


def with_gdtrain(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    optimizer.register_step_post_hook(lambda *_: shake(model))
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    Trainer(model, nn.MSELoss(), optimizer, loader).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=LR), nn.MSELoss()
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
            shake(model)
