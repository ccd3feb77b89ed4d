"""Reports in real Chromium: texts are inside of their pictures, apart, and large enough."""

import math

import numpy as np
import pytest
import torch
from helpers.chromium import CHROMIUM, MEASURE_SWEEP, faults_of
from torch import nn

from gdtrain import BatchLoader, SampleLoader, Trainer, compare
from gdtrain.analysis.sweep.result import Sweep

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def form(lr, loader=BatchLoader):
    def make():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        return Trainer(model, nn.MSELoss(), optimizer, loader((X, Y)), device="cpu")

    return make


CASES = {
    "three": {"batch": form(0.1), "sample": form(0.01, SampleLoader), "minibatch": form(0.05)},
    "forty": {f"runs/today/a-long-name/lr 0.0{n}/and more": form(0.002 * n) for n in range(1, 41)},
    "one": {"only": form(0.1)},
    "all diverged": {"a": form(1e30), "b": form(1e25)},
}


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.mark.few(1)
@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("case", CASES)
def test_texts_are_inside_apart_and_large_enough(case, width, tmp_path):
    assert faults_of(compare(CASES[case], epochs=3, looks=2).html(), width, tmp_path) == []


# ── sweeps ──────────────────────────────────────────────────────────────────────────────────


def rows(settings, values, by="val_loss"):
    """A sweep of rows with these settings, one a dict, and what each of its seeds has given."""
    made = [
        {**setting, "seed": seed, "run": 0, by: value}
        | {"status": "done" if value is not None and math.isfinite(value) else "diverged"}
        for setting, own in zip(settings, values, strict=True)
        for seed, value in enumerate(own)
    ]
    return Sweep(made, [*settings[0], "seed"], by, interrupted=False)


def bowl(rates, sizes, seeds=5, loader=lambda size: size, **more):
    """A loss with its best rate in proportion to the square root of the batch size."""
    draw = np.random.default_rng(0)
    settings, values = [], []
    for size in sizes:
        for rate in rates:
            loss = 0.1 + 0.05 * math.log(rate / (0.02 * math.sqrt(size))) ** 2
            settings.append({"optimizer.lr": rate, "loader": loader(size), **more})
            values.append([loss * draw.lognormal(0, 0.1) if rate < 0.9 else None] * seeds)
    return rows(settings, values)


RATES = [0.001 * 3**n for n in range(7)]
LONG = "a-setting-with-a-name-that-goes-on/and-on.of-the-layer-that-comes-first"
SWEEPS = {
    "a grid": bowl(RATES, [1, 4, 16, 64, 256], loader=lambda size: f"minibatch:{size}"),
    "many": bowl([1e-5 * 1.5**n for n in range(25)], [2**n for n in range(13)]),
    "forty others": rows(
        [{LONG: f"{LONG}-{n}", "model.hidden": f"[{n}, {n}]"} for n in range(40)],
        [[1 + 0.01 * n, 1.1] for n in range(40)],
    ),
    "panels": rows(
        [{"lr": lr, LONG: f"{LONG}-{n}"} for n in range(45) for lr in (0.1, 0.2)],
        [[0.01 * n] for n in range(90)],
        by="val_accuracy",
    ),
    "one": rows([{"lr": 0.1}], [[0.5]]),
    "all diverged": rows([{"lr": lr, "b": 1} for lr in (1.0, 9.0)], [[None] * 3] * 2),
    "nan and zero": rows(
        [{"lr": lr, "batch_size": b} for lr in (0.0, 0.1, 0.3) for b in (1, 2)],
        [[0.0, math.nan], [0.0, 0.0], [1e-45, 3e38], [-1.0, 2.0], [0.5], [0.5, 0.5]],
        by="train_loss",
    ),
    "no runs": Sweep([], ["lr", "seed"], None, interrupted=True),
}


@pytest.mark.few(1)
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("case", SWEEPS)
def test_so_are_those_of_a_sweep(case, width, dark, tmp_path):
    assert faults_of(SWEEPS[case].html(), width, tmp_path, dark=dark) == []


@pytest.mark.few(1)
@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_a_sweep_of_six_rates_and_three_sizes_fits_a_phone_and_fills_its_cards(width, tmp_path):
    sweep = bowl([0.003, 0.01, 0.03, 0.1, 0.3, 1.0], [16, 32, 128])
    assert faults_of(sweep.html(), width, tmp_path, measure=MEASURE_SWEEP) == []
