"""Which batch size? Ten seeds of each answer, or say that they can't.

Every run makes the same number of passes over the data, so small batches make more updates. The
learning rate goes with the batch size, as far as a rule of thumb allows (Goyal and others, 2017).
"""

import torch
from torch import nn

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, Trainer

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=DRAW)
Y = torch.sin(X).sum(1, keepdim=True) + 0.3 * torch.randn(300, 1, generator=DRAW)


def make(batch_size: int, seed: int) -> Trainer:
    """A fresh trainer of one point of the grid."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002 * batch_size)
    loader = MiniBatchLoader((X[:200], Y[:200]), batch_size, seed=seed)
    validation = BatchLoader((X[200:], Y[200:]))
    return Trainer(model, nn.MSELoss(), optimizer, loader, validation=validation, device="cpu")


if __name__ == "__main__":
    print(gdtrain.sweep(make, {"batch_size": [8, 32, 128], "seed": range(10)}, epochs=15))
