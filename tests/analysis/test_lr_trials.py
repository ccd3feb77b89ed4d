"""``lr_range(epochs=)`` promises a rate for a budget: beside a grid of plain trainings."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer, lr_range
from gdtrain.config.build import build
from gdtrain.config.load import parse_config

FORMS = {
    "batch": (BatchLoader, {}, 60),
    "minibatch": (MiniBatchLoader, {"batch_size": 16}, 20),
    "sample": (SampleLoader, {}, 5),
}
GRID = np.geomspace(1e-4, 10.0, 25)


def network(inputs, targets, loss, hidden, form, lr=1e-3, seed=0, momentum=0.0):
    torch.manual_seed(seed)
    widths = [inputs.shape[1], *hidden, int(targets.max()) + 1 if targets.dim() == 1 else 1]
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    kind, options, _ = FORMS[form]
    return Trainer(model, loss, optimizer, kind((inputs, targets), **options), device="cpu")


def sine():
    x = torch.linspace(-math.pi, math.pi, 100).view(-1, 1)
    return x, x.sin()


def generated(seed, n=96, features=4, noise=0.3, spread=1.0, classes=None):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=draw) * torch.logspace(0, -spread, features)
    y = x.sum(1, keepdim=True) + noise * torch.randn(n, 1, generator=draw)
    if classes is None:
        return x, y
    return x, torch.bucketize(y[:, 0], torch.linspace(-1.0, 1.0, classes - 1))


def shipped(source, loss):
    config = {
        "data": source,
        "model": {"name": "mlp", "hidden": [4]},
        "loss": loss,
        "loader": "batch",
        "optimizer": {"lr": 0.1},
        "epochs": 1,
    }
    (batch,) = (trainer := build(parse_config(config)).trainer).read(trainer.loader)
    return batch.inputs, batch.targets


MSE, CROSS = nn.MSELoss(), nn.CrossEntropyLoss()
PROBLEMS = {
    "sine": (sine, MSE, [16]),
    "teaching": (partial(shipped, {"source": "teaching", "num_samples": 100}, "mse"), MSE, []),
    "moons": (
        partial(shipped, {"source": "two_moons", "num_samples": 100}, "cross_entropy"),
        CROSS,
        [8],
    ),
    "regression": (
        partial(shipped, {"source": "linear_regression", "num_samples": 100}, "mse"),
        MSE,
        [],
    ),
    "noisy line": (partial(generated, 1, noise=2.0), MSE, []),
    "ill conditioned": (partial(generated, 2, spread=1.5), MSE, []),
    "nearly exact": (partial(generated, 3, noise=0.05), MSE, [8]),
    "two classes": (partial(generated, 4, classes=2), CROSS, []),
    "four classes": (partial(generated, 5, classes=4), CROSS, [8]),
    "many features": (partial(generated, 6, features=20), MSE, []),
    "deep": (partial(generated, 7), MSE, [8, 8]),
    "absolute": (partial(generated, 8), nn.L1Loss(), [8]),
}


def after(make, lr, epochs):
    """The full loss at the end of a plain training; inf if it does not end."""
    trainer = make(lr=lr)
    try:
        trainer.fit(epochs)
        loss = trainer.evaluate()["loss"]
    except ArithmeticError:
        return math.inf
    return loss if math.isfinite(loss) else math.inf


def beside_the_grid(name, form, grid=GRID):
    """Of the ramp with theory and of trials of the budget: (suggestion, its loss), by what it is
    made of; and the grid's best rate, its loss, and the loss at the start.
    """
    data, loss, hidden = PROBLEMS[name]
    make = partial(network, *data(), loss, hidden, form)
    epochs = FORMS[form][2]
    start = make().evaluate()["loss"]
    suggested = {
        "ramp": lr_range(make()).suggestion,
        "trials": lr_range(make(), epochs=epochs, limit=False).suggestion,
    }
    losses = [after(make, lr, epochs) for lr in grid]
    best = int(np.argmin(losses))
    made = {
        kind: (rate, math.nan if rate is None else after(make, rate, epochs))
        for kind, rate in suggested.items()
    }
    return made, float(grid[best]), losses[best], start


@pytest.mark.few(1)
@pytest.mark.parametrize("form", ["batch", "minibatch"])
def test_on_a_sine_it_is_near_the_best_of_a_grid(form):
    made, best, least, start = beside_the_grid("sine", form, GRID[::2])
    for suggestion, own in made.values():
        assert best / 4 <= suggestion <= 4 * best
        assert least * 0.5 <= own < start


@pytest.mark.long
def test_it_is_near_the_best_in_thirty_of_thirty_six_and_never_diverges():
    near = {"ramp": 0, "trials": 0}
    for name in PROBLEMS:
        for form in FORMS:
            made, best, least, start = beside_the_grid(name, form)
            for kind, (suggestion, own) in made.items():
                close = suggestion is not None and best / 4 <= suggestion <= 4 * best
                near[kind] += close
                shown = f"{kind} {suggestion:.3g} {own:.4g}" if suggestion else f"{kind} none"
                print(f"{name} {form} {shown}, best {best:.3g} {least:.4g} {'' if close else '!'}")
                assert suggestion is None or own < start
    assert min(near.values()) >= 30, near


def test_the_trials_are_plain_trainings_and_leave_no_trace():
    data = sine()
    trainer = network(*data, MSE, [4], "minibatch", momentum=0.9)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found = lr_range(trainer, epochs=3, limit=False)
    assert all(torch.equal(before[name], v) for name, v in trainer.model.state_dict().items())
    assert trainer.lr == 1e-3
    make = partial(network, *data, MSE, [4], "minibatch", momentum=0.9)
    chosen = [t for t in found.trials if t.learning_rate == found.suggestion]
    assert chosen[0].full_loss == pytest.approx(after(make, found.suggestion, 3), rel=1e-6)
    assert f" {found.suggestion:.3g}: full loss" in str(found)
    assert "after 3 epochs at that rate" in str(found)


def test_where_no_rate_descends_it_says_so():
    x = torch.zeros(8, 1)
    trainer = network(x, x, MSE, [], "batch")
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    found = lr_range(trainer, epochs=2, limit=False)
    assert found.suggestion is None
    assert "none: no rate that was tried descends over 2 epochs, on two orders" in str(found)
