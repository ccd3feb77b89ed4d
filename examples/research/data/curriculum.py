"""A curriculum (Bengio and others, 2009): easy samples first, more of them in each epoch."""

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 16, 4


def difficulty(y):
    """Here: how large the target is."""
    return y.abs().flatten()


def with_gdtrain(model, X, y):
    easy_first = difficulty(y).argsort(stable=True)

    def order(epoch: int) -> torch.Tensor:
        return easy_first[: len(X) * (epoch + 1) // EPOCHS]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, y), BATCH, order=order)
    Trainer(model, nn.MSELoss(), optimizer, loader).fit(EPOCHS)


def by_hand(model, X, y):
    easy_first, loss_of = difficulty(y).argsort(stable=True), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(EPOCHS):
        for rows in easy_first[: len(X) * (epoch + 1) // EPOCHS].split(BATCH):
            optimizer.zero_grad()
            loss_of(model(X[rows]), y[rows]).backward()
            optimizer.step()
