"""A physics-informed loss (Raissi and others, 2019), by Adam and then L-BFGS.

The equation is u'' = -u with u(0) = 0 and u'(0) = 1.
"""

from functools import partial

import torch
from torch.optim import LBFGS, Adam

from gdtrain import BatchLoader, Phases, Trainer

STEPS = 5


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


def with_gdtrain(model, x):
    adam, lbfgs = partial(Adam, lr=0.01), partial(LBFGS, line_search_fn="strong_wolfe")
    Trainer(
        model,
        optimizer=Phases([(STEPS, adam), (None, lbfgs)]),
        loader=BatchLoader(x),
        compute_loss=lambda trainer, batch: residual(trainer.model, batch.inputs),
    ).fit(2 * STEPS)


def by_hand(model, x):
    optimizer = Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        residual(model, x).backward()
        optimizer.step()
    optimizer = LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = residual(model, x)
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
