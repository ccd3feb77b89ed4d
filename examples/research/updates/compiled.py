"""Model and loss by torch.compile."""

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

BACKEND, BATCH, EPOCHS = "aot_eager", 10, 2  # leave the backend out for inductor


def with_gdtrain(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    how = {"engine": "compile", "compile": {"backend": BACKEND}}
    Trainer(model, nn.MSELoss(), optimizer, loader, **how).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss()
    for part in (model, loss_of):
        part.compile(backend=BACKEND)
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
