"""A curriculum (Bengio and others, 2009): easy samples first, more of them in each epoch."""

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 16, 4


def difficulty(y):
    """Here: how large the target is."""
    return y.abs().flatten()


def lesson(easy_first, epoch: int):
    """The easiest sample, and as many more as the epochs so far are of all."""
    return easy_first[: 1 + (len(easy_first) - 1) * (epoch + 1) // EPOCHS]


def with_gdtrain(model, X, y):
    easy_first = difficulty(y).argsort(stable=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, y), BATCH, order=lambda epoch: lesson(easy_first, epoch))
    Trainer(model, nn.MSELoss(), optimizer, loader).fit(EPOCHS)


def by_hand(model, X, y):
    easy_first, loss_of = difficulty(y).argsort(stable=True), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(EPOCHS):
        for rows in lesson(easy_first, epoch).split(BATCH):
            optimizer.zero_grad()
            loss_of(model(X[rows]), y[rows]).backward()
            optimizer.step()
