"""The largest eigenvalues of a small ResNet's Hessian, over all samples."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from gdtrain import BatchLoader, Trainer, curvature

LARGEST = 3


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.two = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.tanh(x + self.two(torch.tanh(self.one(x))))


def resnet(channels: int, classes: int) -> nn.Sequential:
    first, last = nn.Conv2d(1, channels, 3, bias=False), nn.Linear(channels, classes)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, Block(channels), Block(channels), pool, last)


def with_gdtrain(model, X, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hessian = curvature(Trainer(model, "cross_entropy", optimizer, BatchLoader((X, y)))).hessian
    return hessian.top(LARGEST).values


def by_hand(model, X, y):
    """The whole matrix, which must fit into memory."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def loss_of(vector):
        pieces = vector.split([shape.numel() for shape in shapes])
        weights = {n: v.view(s) for n, v, s in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, X), y)

    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    hessian = torch.autograd.functional.hessian(loss_of, start)
    return torch.linalg.eigvalsh(hessian).flip(0)[:LARGEST]
