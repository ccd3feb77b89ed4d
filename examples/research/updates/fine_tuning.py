"""Fine-tuning in phases: the new head alone, then all layers at rates of their own."""

from functools import partial

from torch import nn
from torch.optim import SGD, Adam

from gdtrain import MiniBatchLoader, Phases, Trainer

BATCH, EPOCHS, HEAD_ALONE = 16, 4, 2


def by_layer(model):
    """The body learns at a tenth of the head's rate."""
    body = {"params": model[0].parameters(), "lr": 0.001}
    return [body, {"params": model[2].parameters(), "lr": 0.01}]


def with_gdtrain(model, X, y):
    head_alone = (HEAD_ALONE, partial(SGD, lr=0.1, momentum=0.9), None, ["0"])
    phases = Phases([head_alone, (None, lambda _: Adam(by_layer(model)))])
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    Trainer(model, nn.MSELoss(), phases, loader).fit(EPOCHS)


def by_hand(model, X, y):
    model[0].requires_grad_(False)
    optimizer, loss_of = SGD(model[2].parameters(), lr=0.1, momentum=0.9), nn.MSELoss()
    for epoch in range(EPOCHS):
        if epoch == HEAD_ALONE:
            model[0].requires_grad_(True)
            optimizer = Adam(by_layer(model))
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
