"""Data that are a dict: tokens padded to one length, and how many of them count."""

import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

IGNORED, BATCH, EPOCHS = -100, 8, 3


class Tagger(nn.Module):
    """A class of each token, which sees the mean of its sentence too."""

    def __init__(self, tokens: int, classes: int) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(tokens, 8), nn.Linear(16, classes)

    def forward(self, inputs):
        x = self.tokens(inputs["tokens"])
        there = torch.arange(x.shape[1]) < inputs["length"][:, None]
        mean = (x * there[..., None]).sum(1) / inputs["length"][:, None]
        return self.head(torch.cat([x, mean[:, None].expand_as(x)], dim=2))


def per_token(logits, tags):
    """The mean over all tokens of the batch that are no padding."""
    return F.cross_entropy(logits.transpose(1, 2), tags, ignore_index=IGNORED)


def with_gdtrain(model, data, tags):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((data, tags), BATCH, order="sequential")
    Trainer(model, per_token, optimizer, loader).fit(EPOCHS)


def by_hand(model, data, tags):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for rows in torch.arange(len(tags)).split(BATCH):
            optimizer.zero_grad()
            inputs = {name: column[rows] for name, column in data.items()}
            per_token(model(inputs), tags[rows]).backward()
            optimizer.step()
