"""Fine-tuning in phases: the new head alone, then all layers at a lower rate."""

import torch
from torch import nn

from gdtrain import Callback, MiniBatchLoader, Trainer

BATCH, EPOCHS, HEAD_ALONE = 16, 4, 2


class Unfreeze(Callback):
    """From the third epoch on the body learns too, at a tenth of the head's rate."""

    def on_epoch_start(self, trainer):
        if trainer.progress.epoch == HEAD_ALONE:
            trainer.model[0].requires_grad_(True)
            body = {"params": list(trainer.model[0].parameters()), "lr": 0.01}
            trainer.optimizer.add_param_group(body)


def with_gdtrain(model, X, y):
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[Unfreeze()]).fit(
        EPOCHS
    )


def by_hand(model, X, y):
    model[0].requires_grad_(False)
    optimizer, loss_of = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9), nn.MSELoss()
    for epoch in range(EPOCHS):
        if epoch == HEAD_ALONE:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
