"""Two tasks of one model, a class and a number, on inputs that are augmented."""

import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

BATCH, EPOCHS = 16, 3


class TwoHeads(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 16), nn.Tanh())
        self.label, self.number = nn.Linear(16, classes), nn.Linear(16, 1)

    def forward(self, x):
        return self.label(self.body(x)), self.number(self.body(x))


def augmented(x):
    """Each sample mirrored or not, and a little noise."""
    return x * (1 - 2.0 * torch.randint(0, 2, (len(x), 1))) + 0.01 * torch.randn_like(x)


def losses(outputs, targets):
    label, number = F.cross_entropy(outputs[0], targets[0]), F.mse_loss(outputs[1], targets[1])
    return {"loss": label + 0.1 * number, "label": label, "number": number}


def with_gdtrain(model, X, labels, numbers):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, (labels, numbers)), BATCH, order="sequential")

    def of_augmented(trainer, batch):
        return losses(trainer.model(augmented(batch.inputs)), batch.targets)

    trainer = Trainer(model, None, optimizer, loader, compute_loss=of_augmented)
    return {"label": trainer.fit(EPOCHS)["train_label"][-1]}


def by_hand(model, X, labels, numbers):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        mean = 0.0
        for rows in torch.arange(len(X)).split(BATCH):
            found = losses(model(augmented(X[rows])), (labels[rows], numbers[rows]))
            optimizer.zero_grad()
            found["loss"].backward()
            optimizer.step()
            mean += found["label"].item() * len(rows) / len(X)
    return {"label": mean}
