"""The edge of stability (Cohen and others, 2021), in some seconds.

Under full-batch descent at a fixed learning rate the sharpness λ, the largest eigenvalue of the
loss's Hessian, rises until λ = 2 / lr, and stays there while the loss goes on falling.
"""

import torch
from torch import nn

from gdtrain import BatchLoader, SharpnessMonitor, Trainer

LR = 0.1


def sharpness() -> tuple[list[float], list[float]]:
    """λ · lr / 2 and the loss, after every 100th of 1,500 updates."""
    torch.manual_seed(0)
    X = torch.linspace(-2, 2, 40)[:, None]
    y = torch.sin(4 * X)
    hidden = [nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()]
    model = nn.Sequential(*hidden, nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    watch = SharpnessMonitor(every_n_steps=100)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, BatchLoader((X, y)), callbacks=[watch], device="cpu"
    )
    history = trainer.fit(1500, progress=False)
    looks = [record["sharpness"] * LR / 2 for record in watch.records]
    return looks, history.train_loss[99::100]


if __name__ == "__main__":
    for look, (ratio, loss) in enumerate(zip(*sharpness(), strict=True), 1):
        if look % 3 == 1:
            print(f"update {100 * look:5}  loss {loss:.5f}  λ · lr / 2 = {ratio:.2f}")
