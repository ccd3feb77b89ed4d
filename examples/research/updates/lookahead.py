"""A loop with two clocks (Lookahead; Zhang and others, 2019): every fifth update goes half back."""

import torch
from torch import nn

from gdtrain import Callback, MiniBatchLoader, Trainer

EVERY, BATCH, EPOCHS = 5, 8, 3


def copies(model):
    return [p.detach().clone() for p in model.parameters()]


def go_half_back(slow, model):
    """θ' ← (θ' + θ) / 2, and θ ← θ'."""
    with torch.no_grad():
        for kept, parameter in zip(slow, model.parameters(), strict=True):
            parameter.copy_(kept.lerp_(parameter, 0.5))


class Lookahead(Callback):
    every_n_steps = EVERY

    def on_safe_point(self, trainer):
        go_half_back(trainer.slow, trainer.model)


def with_gdtrain(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, callbacks=[Lookahead()])
    trainer.register_state("slow", copies(model))
    trainer.fit(EPOCHS)


def by_hand(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    slow, loss_of, made = copies(model), nn.MSELoss(), 0
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
            made += 1
            if made % EVERY == 0:
                go_half_back(slow, model)
