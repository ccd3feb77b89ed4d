"""Contrastive learning (van den Oord, Li and Vinyals, 2018) with batches larger than memory."""

import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

HEAT, BATCH, EPOCHS = 0.2, 32, 3


class Pairs(nn.Module):
    """An encoder of two views of each sample."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, one, two):
        return self.encoder(one), self.encoder(two)


def info_nce(views, _):
    """The cross-entropy of each sample's own second view among all of the batch."""
    one, two = (F.normalize(view, dim=1) for view in views)
    alike = one @ two.T / HEAT
    return F.cross_entropy(alike, torch.arange(len(alike)))


def with_gdtrain(encoder, one, two, microbatch_size=None):
    """In microbatches the loss still is of the whole batch: exact, in two passes."""
    model, labels = Pairs(encoder), torch.zeros(len(one), 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = MiniBatchLoader(((one, two), labels), BATCH, order="sequential")
    Trainer(model, info_nce, optimizer, loader, microbatch_size=microbatch_size).fit(EPOCHS)


def by_hand(encoder, one, two):
    """What a batch needs must fit into memory."""
    model = Pairs(encoder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for views in zip(one.split(BATCH), two.split(BATCH), strict=True):
            optimizer.zero_grad()
            info_nce(model(*views), None).backward()
            optimizer.step()
