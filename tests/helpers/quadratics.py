"""Descent on a quadratic of a known spectrum."""

import torch
from torch import Tensor, nn

from gdtrain import BatchLoader, Callback, Trainer
from gdtrain.data.builtin.problems import quadratic

SPECTRUM = [0.1, 1.0, 3.0, 10.0]


LARGEST = max(SPECTRUM)


class Trajectory(Callback):
    """θ before the first and after every update."""

    every_n_steps = 1

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.points.append(trainer.model.weight.detach().clone()[0])

    def on_safe_point(self, trainer: Trainer) -> None:
        self.points.append(trainer.model.weight.detach().clone()[0])


def descend(lr: float, steps: int, **sgd: object) -> list[Tensor]:
    data = quadratic(SPECTRUM, num_samples=9)
    torch.manual_seed(0)
    model = nn.Linear(len(SPECTRUM), 1, bias=False).double()
    trajectory = Trajectory()
    trainer = Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=lr, **sgd),
        BatchLoader((data.inputs, data.targets)),
        device="cpu",
        callbacks=[trajectory],
    )
    trainer.fit(steps)
    return trajectory.points


# Along an eigenvector, heavy ball is e_{t+1} = (1 + β - αλ) e_t - β e_{t-1}, stable while
# αλ < 2 (1 + β) (Polyak, 1964). PyTorch's Nesterov, v ← βv + g, θ ← θ - α (g + βv), is
# e_{t+1} = (1 + β)(1 - αλ) e_t - β (1 - αλ) e_{t-1} in the shifted sequence, stable while
# αλ < 2 (1 + β) / (1 + 2β).
THRESHOLDS = [
    ({}, 2.0),
    ({"momentum": 0.5}, 2 * 1.5),
    ({"momentum": 0.9}, 2 * 1.9),
    ({"momentum": 0.5, "nesterov": True}, 2 * 1.5 / 2),
    ({"momentum": 0.9, "nesterov": True}, 2 * 1.9 / 2.8),
]
