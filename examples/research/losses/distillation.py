"""Distillation (Hinton, Vinyals and Dean, 2015): learn the soft outputs of a larger model."""

import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

HEAT, BATCH, EPOCHS = 2.0, 16, 3


def teacher_of(X) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(X.shape[1], 32), nn.Tanh(), nn.Linear(32, 3)).to(X.dtype).eval()


def soft_loss(output, taught, labels):
    """Cross-entropy to the labels, and T² KL to the teacher's probabilities at heat T."""
    pair = F.log_softmax(output / HEAT, 1), F.log_softmax(taught / HEAT, 1)
    soft = F.kl_div(*pair, reduction="batchmean", log_target=True)
    return 0.5 * F.cross_entropy(output, labels) + 0.5 * HEAT**2 * soft


def with_gdtrain(model, X, y):
    teacher = teacher_of(X)

    def of_pupil(trainer, batch):
        with torch.no_grad():
            taught = teacher(batch.inputs)
        return soft_loss(trainer.model(batch.inputs), taught, batch.targets)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    Trainer(model, optimizer=optimizer, loader=loader, compute_loss=of_pupil).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer, teacher = torch.optim.Adam(model.parameters(), lr=0.01), teacher_of(X)
    for _ in range(EPOCHS):
        for inputs, labels in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            with torch.no_grad():
                taught = teacher(inputs)
            soft_loss(model(inputs), taught, labels).backward()
            optimizer.step()
