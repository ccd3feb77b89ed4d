"""The scripts in examples/ show what their pages say, by numpy, closed forms and other loops."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.processes import start
from torch import nn

import gdtrain

EXAMPLES = ROOT / "examples"


def example(name: str) -> SimpleNamespace:
    """What stands in a script."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name))


def test_the_three_forms_end_as_far_from_the_minimum_as_numpy_says() -> None:
    forms = example("three_forms")
    w = np.zeros((5, 1))
    for _ in range(20):
        w -= 0.3 * 2 / 400 * forms.X.T @ (forms.X @ w - forms.Y)
    steps, left = forms.distance("batch")
    assert steps == 20
    assert left == pytest.approx(np.linalg.norm(w - forms.BEST), rel=1e-6)
    assert forms.distance("mini-batch")[0] == 400
    assert 1e-3 < forms.distance("mini-batch")[1] < forms.distance("stochastic")[1] < 0.5


def test_sharpness_rises_to_the_edge_and_stays_there_while_the_loss_falls() -> None:
    ratios, losses = example("edge_of_stability").sharpness()
    assert ratios[0] < 0.6
    assert all(0.9 < ratio < 1.25 for ratio in ratios[6:])
    assert losses[-1] < losses[6] < losses[0]


def test_the_noise_is_that_of_the_closed_form_of_linear_regression() -> None:
    noise = example("noise_scale")
    trainer = noise.trainer_of(gdtrain.BatchLoader((noise.X, noise.Y)))
    error = (trainer.model(noise.X) - noise.Y).detach()
    gradients = 2 * error * torch.cat([noise.X, torch.ones(500, 1)], dim=1)
    trace = float(gradients.var(dim=0).sum())
    assert noise.gradient_noise(trainer).covariance_trace == pytest.approx(trace, rel=1e-9)
    assert noise.variance(25) == pytest.approx(trace / 25, rel=0.1)


def test_a_sweep_has_a_row_for_each_point() -> None:
    sweep = example("sweep_batch_sizes")
    rows = gdtrain.sweep(sweep.make, {"batch_size": [8, 128], "seed": range(2)}, epochs=1)
    assert [(row["batch_size"], row["seed"]) for row in rows] == [
        (8, 0),
        (8, 1),
        (128, 0),
        (128, 1),
    ]


@pytest.mark.parametrize("other", ["gdtrain", "lightning", "skorch"])
def test_other_loops_end_with_the_bits_of_the_plain_one(other: str) -> None:
    pytest.importorskip(other)
    loops = example("from_other_loops")
    X = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    y = X.sum(1, keepdim=True)

    def trained(loop) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        loop(model, X, y)
        return list(model.parameters())

    for expected, found in zip(
        trained(loops.by_hand), trained(getattr(loops, f"by_{other}")), strict=True
    ):
        assert torch.equal(expected, found)


def test_a_pipe_is_learnt_from_as_it_comes(tmp_path) -> None:
    sensor = [sys.executable, EXAMPLES / "online" / "sensor.py", "2000"]
    learner = ["-m", "gdtrain", "--config", str(EXAMPLES / "online" / "online.yaml")]
    learner += ["--output-dir", str(tmp_path / "run"), "--quiet"]
    with (
        subprocess.Popen(sensor, stdout=subprocess.PIPE) as lines,
        start(*learner, stdin=True) as program,
    ):
        for line in lines.stdout:
            program.stdin.write(line)
        program.stdin.close()
        assert program.wait() == 0, program.err
    assert lines.returncode == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["samples"] == 2000
    assert last["prequential_loss"] == pytest.approx(0.01, rel=0.15)  # the noise's variance
