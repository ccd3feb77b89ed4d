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


class Distillation(Trainer):
    def compute_loss(self, batch):
        with torch.no_grad():
            taught = self.teacher(batch.inputs)
        return soft_loss(self.model(batch.inputs), taught, batch.targets)

    def loss_weight(self, batch):
        return len(batch)  # a mean over samples: batches may be cut


def with_gdtrain(model, X, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    trainer = Distillation(model, None, optimizer, loader, device="cpu")
    trainer.teacher = teacher_of(X)
    trainer.fit(EPOCHS)


def by_hand(model, X, y):
    optimizer, teacher = torch.optim.Adam(model.parameters(), lr=0.01), teacher_of(X)
    for _ in range(EPOCHS):
        for inputs, labels in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            with torch.no_grad():
                taught = teacher(inputs)
            soft_loss(model(inputs), taught, labels).backward()
            optimizer.step()
