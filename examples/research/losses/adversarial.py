"""Adversarial training (Goodfellow, Shlens and Szegedy, 2015): learn from inputs made worse."""

import torch
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

REACH, BATCH, EPOCHS = 0.1, 16, 3


def worse(model, inputs, labels):
    """x + ε sign ∂loss/∂x."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    return (inputs + REACH * slope.sign()).detach()


def with_gdtrain(model, X, y):
    def of_worse(trainer, batch):
        inputs = worse(trainer.model, batch.inputs, batch.targets)
        return F.cross_entropy(trainer.model(inputs), batch.targets)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    Trainer(model, optimizer=optimizer, loader=loader, compute_loss=of_worse).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for inputs, labels in zip(X.split(BATCH), y.split(BATCH), strict=True):
            inputs = worse(model, inputs, labels)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
