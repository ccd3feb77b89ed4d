"""Theory beside measurement: closed forms, second moments by numpy, and plain trainings."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer, compare, lr_range
from gdtrain.analysis.theory import agreement, theories, theory, tried_rates

X = torch.tensor([0.5, 1.0, 1.5, 2.0, 0.8, 1.2, 0.3], dtype=torch.float64).view(-1, 1)
CURVATURES = 2 * X[:, 0].numpy() ** 2  # of (θ x)², sample by sample
N = len(X)


def parabola(kind=BatchLoader, lr=0.01, model=None, batch=None, **options):
    """J = mean of (θ x)², θ = 1: the samples' minima are all 0, and their curvatures differ."""
    if model is None:
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(model.weight)
    made = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=lr, **options)
    sizes = {} if batch is None else {"batch_size": batch}
    loader = kind((X, torch.zeros_like(X)), **sizes)
    return Trainer(model, nn.MSELoss(), made, loader, device="cpu")


def growth(lr, momentum, variance):
    """By which factor E[(θ, v)(θ, v)ᵀ] grows in an update, of curvatures of that variance."""
    mean = CURVATURES.mean()
    step = np.array([[1 - lr * mean, -lr * momentum], [mean, momentum]])
    noise = np.array([[-lr, 0.0], [1.0, 0.0]])
    moments = np.kron(step, step) + variance * np.kron(noise, noise)
    return np.abs(np.linalg.eigvals(moments)).max()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 3, N])
def test_of_a_parabola_it_is_the_limit_of_mean_square_stability(batch, momentum):
    found = theory(parabola(MiniBatchLoader, batch=batch, momentum=momentum))
    variance = CURVATURES.var(ddof=1) * (1 / batch - 1 / N)  # of a batch without replacement
    assert growth(0.999 * found.largest_rate, momentum, variance) < 1
    assert growth(1.001 * found.largest_rate, momentum, variance) > 1
    assert found.sharpness == pytest.approx(CURVATURES.mean(), rel=1e-10)
    scatter = CURVATURES.var(ddof=1) / CURVATURES.mean() ** 2
    assert found.noise_scale == pytest.approx(scatter, rel=1e-10)
    assert found.critical_batch_size == max(1, round(scatter))


def test_it_leaves_everything_as_it_is():
    trainer = parabola(SampleLoader, momentum=0.9)
    trainer.fit(1)
    weights, draw = trainer.model.weight.clone(), torch.random.get_rng_state()
    theory(trainer)
    assert torch.equal(trainer.model.weight, weights)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert trainer.step == N


def test_where_theory_has_no_number_it_has_a_reason():
    adam = theory(parabola(optimizer=torch.optim.Adam))
    assert (adam.sharpness, adam.largest_rate) == (None, None)
    assert adam.no_rate == "there is none for Adam as it is set"
    assert adam.noise_scale is not None, "the samples' gradients do not depend on the optimizer"
    nesterov = theory(parabola(SampleLoader, momentum=0.9, nesterov=True))
    assert nesterov.stability_limit == pytest.approx(2 * 1.9 / 2.8 / CURVATURES.mean())
    assert nesterov.largest_rate is None
    assert nesterov.no_rate == "it is not known for mini-batches with Nesterov's momentum"
    dropout = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    assert "draws random numbers" in theory(parabola(model=dropout)).no_rate
    still = parabola(SampleLoader)
    nn.init.zeros_(still.model.weight)
    assert theory(still).no_rate == "the gradient is not seen for noise"


def test_forms_share_what_is_the_same_and_no_more():
    trainers = {
        "batch": parabola(),
        "sample": parabola(SampleLoader),
        "heavy": parabola(SampleLoader, momentum=0.9),
        "adam": parabola(optimizer=torch.optim.Adam),
    }
    assert theories(trainers) == {name: theory(trainer) for name, trainer in trainers.items()}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], (None, None)),
        ([(0.1, True), (1.0, False)], (0.1, 1.0)),
        ([(0.1, True), (0.1, False)], (None, 0.1)),
        ([(0.1, False), (0.3, True), (1.0, True)], (1.0, None)),
        ([(3.0, False), (1.0, False), (0.3, True), (0.1, False)], (0.3, 1.0)),
    ],
)
def test_rates_that_were_tried(runs, expected):
    assert tried_rates(runs) == expected


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ((0.5, None, None), ""),
        ((0.5, 0.3, 1.0), "0.3 descends, 1 does not: as predicted"),
        ((0.5, 0.3, None), "0.3 descends: no larger one was tried"),
        ((0.5, None, 0.1), "0.1 does not: the prediction is 5 times too high"),
        ((0.5, 1.0, 3.0), "1 descends, 3 does not: the prediction is 2 times too low"),
    ],
)
def test_agreement_in_words(rates, text):
    assert agreement(*rates) == text


def test_a_comparison_shows_theory_beside_the_rates_that_it_tried():
    limit = 2 / CURVATURES.mean()
    grid = [limit * share for share in (0.05, 0.95, 1.05, 3.0)]
    forms = {
        "batch": lambda lr=0.01, budget=None: parabola(lr=lr),
        "adam": lambda lr=0.01, budget=None: parabola(lr=lr, optimizer=torch.optim.Adam),
    }
    comparison = compare(forms, updates=40, lr_grid=grid, looks=4)
    batch, adam = (form["theory"] for form in comparison.result["forms"])
    assert batch["largest_rate"] == pytest.approx(limit)
    assert (batch["descended"], batch["failed"]) == (grid[1], grid[2])
    assert batch["agreement"].endswith(": as predicted")
    assert (adam["largest_rate"], "agreement" in adam) == (None, False)
    text = str(comparison)
    assert "largest rate in theory" in text
    assert "there is none for Adam as it is set" in comparison.html()
    seeded = {"a": lambda seed: parabola(), "b": lambda seed: parabola(SampleLoader)}
    several = compare(seeded, epochs=2, looks=2, seeds=2).result["forms"]
    assert all("theory" in form for form in several)
    plain = compare(
        {"a": parabola, "b": partial(parabola, lr=0.02)}, epochs=2, looks=2, theory=False
    )
    assert "theory" not in plain.result["forms"][0]
    assert "in theory" not in str(plain)


def test_a_range_test_shows_theory_beside_its_trials():
    found = lr_range(parabola(), epochs=30)
    limit = 2 / CURVATURES.mean()
    assert found.largest_rate == pytest.approx(limit)
    fell = [t.learning_rate for t in found.trials if (t.full_loss or math.inf) < found.first_loss]
    assert max(fell) < limit
    assert f"largest rate in theory  {limit:.3g}; {max(fell):.3g} descends, " in str(found)
    assert "as predicted" in str(found)


def test_a_model_without_second_derivatives_can_still_be_compared():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return torch.from_numpy(2 * x.numpy() * gradient.numpy())

    class Model(nn.Linear):
        def forward(self, x):
            return Square.apply(super().forward(x))

    def form():
        torch.manual_seed(0)
        return parabola(model=Model(1, 1).double())

    (made,) = compare({"only": form}, epochs=2, looks=2).result["forms"]
    assert (made["status"], made["theory"]["sharpness"]) == ("done", None)
    assert "numpy" in made["theory"]["no_rate"]
