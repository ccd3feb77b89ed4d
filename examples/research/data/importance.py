"""Sampling by importance, reweighted so that the gradient is that of the mean on average."""

import torch

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 10, 3


def shares(X):
    """p_i: here in proportion to how far a sample is out."""
    return X.norm(dim=1) / X.norm(dim=1).sum()


def draws(p, epoch: int):
    """As many samples as there are, drawn by p with replacement."""
    generator = torch.Generator().manual_seed(epoch)
    return torch.multinomial(p, len(p), replacement=True, generator=generator)


def reweighted(model, inputs, targets, p):
    """The mean of l_i / (n p_i), n samples in all (Zhao and Zhang, 2015). p: [b], of n."""
    return ((model(inputs) - targets).square().mean(1) / p).mean()


def with_gdtrain(model, X, y):
    p = shares(X)

    def of_drawn(trainer, batch):
        relative = len(p) * p[batch.indices]
        return reweighted(trainer.model, batch.inputs, batch.targets, relative)

    loader = MiniBatchLoader((X, y), BATCH, order=lambda epoch: draws(p, epoch))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Trainer(model, optimizer=optimizer, loader=loader, compute_loss=of_drawn).fit(EPOCHS)


def by_hand(model, X, y):
    optimizer, p = torch.optim.SGD(model.parameters(), lr=0.05), shares(X)
    for epoch in range(EPOCHS):
        for rows in draws(p, epoch).split(BATCH):
            relative = len(p) * p[rows]
            optimizer.zero_grad()
            reweighted(model, X[rows], y[rows], relative).backward()
            optimizer.step()
