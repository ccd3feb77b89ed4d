"""A physics-informed loss (Raissi and others, 2019): u'' = -u with u(0) = 0, u'(0) = 1."""

import torch
from torch import nn

from gdtrain import BatchLoader, Trainer

STEPS = 20


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def derivative(u, x):
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def residual(model, x):
    """Mean squares of what is left of the equation at x [n, 1], and of its start."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        u = model(x)
        curve = derivative(derivative(u, x), x)
        zero = torch.zeros(1, 1, dtype=x.dtype, requires_grad=True)
        start = model(zero)
        slope = derivative(start, zero)
    return (curve + u).square().mean() + start.square().sum() + (slope - 1).square().sum()


class PhysicsInformed(Trainer):
    def compute_loss(self, batch):
        return residual(self.model, batch.inputs)


def with_gdtrain(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    PhysicsInformed(model, None, optimizer, BatchLoader(x), device="cpu").fit(STEPS)


def by_hand(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        residual(model, x).backward()
        optimizer.step()
