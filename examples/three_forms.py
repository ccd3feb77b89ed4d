"""Batch, stochastic and mini-batch gradient descent on one problem whose answer is known.

Least squares: J(θ) = mean (xᵢ·θ − yᵢ)², whose minimum numpy finds directly. Each form has the same
initial weights and looks at each sample 20 times.
"""

import numpy as np
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((400, 5))
Y = X @ DRAW.standard_normal((5, 1)) + DRAW.standard_normal((400, 1))
BEST = np.linalg.lstsq(X, Y, rcond=None)[0]

FORMS = {
    "batch": (BatchLoader((X, Y)), 0.3),
    "stochastic": (SampleLoader((X, Y), seed=0), 0.005),
    "mini-batch": (MiniBatchLoader((X, Y), batch_size=20, seed=0), 0.05),
}


def distance(form: str) -> tuple[int, float]:
    """How many updates a form has made, and how far from the minimum it ended."""
    loader, lr = FORMS[form]
    model = nn.Linear(5, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
    trainer.fit(20, progress=False)
    return trainer.step, float(np.linalg.norm(model.weight.detach().numpy().T - BEST))


if __name__ == "__main__":
    for form in FORMS:
        steps, left = distance(form)
        print(f"{form:10}  {steps:5} updates  {left:.1e} from the minimum")
