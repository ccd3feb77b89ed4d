"""Training in float16, with a scaled loss (Micikevicius and others, 2018)."""

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 8, 3


def with_gdtrain(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    Trainer(model, nn.MSELoss(), optimizer, loader, precision="fp16").fit(EPOCHS)


def by_hand(model, X, y):
    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=0.01), nn.MSELoss()
    scaler = torch.amp.GradScaler(X.device.type)
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            with torch.autocast(X.device.type, torch.float16):
                loss = loss_of(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
