"""The page of a sweep says what the rows say, draws what can be drawn, and runs nothing foreign."""

import json
import re

import numpy as np
import pytest

from gdtrain.analysis.sweep.result import Sweep

RATES, SIZES = [0.01, 0.02, 0.04, 0.08], [8, 16, 32]


def sweep(loss, rates=RATES, sizes=SIZES, seeds=3, by="val_loss"):
    rows = [
        {"lr": rate, "batch_size": size, "seed": seed, "run": 0, "status": "done"}
        | {by: loss(rate, size) * (1 + 0.01 * seed)}
        for rate in rates
        for size in sizes
        for seed in range(seeds)
    ]
    return Sweep(rows, ["lr", "batch_size", "seed"], by, interrupted=False)


def linear(rate, size):
    """Least where the rate is in proportion to the size: 0.01 at 8, 0.02 at 16, 0.04 at 32."""
    return 1 + np.log(rate / (0.01 * size / 8)) ** 2


def lines(page, kind):
    """The corners of the lines of a class."""
    found = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', page)
    return [[tuple(map(float, at.split(","))) for at in line.split()] for line in found]


def test_where_the_best_rate_grows_with_the_size_the_ridge_is_the_line_of_linear_scaling():
    page = sweep(linear).html()
    (ridge,), (scaling,) = lines(page, "ridge"), lines(page, "scaling")
    assert ridge == scaling
    assert len(ridge) == 3
    steps = np.diff(ridge, axis=0)
    assert np.allclose(steps, steps[0]), "a rate more for each size more"
    assert page.count("★ ") == len(SIZES) + 1, "one a size, and the note"


def test_where_the_best_rate_does_not_depend_on_the_size_the_ridge_is_upright():
    page = sweep(lambda rate, size: 1 + np.log(rate / 0.02) ** 2).html()
    (ridge,), (scaling,) = lines(page, "ridge"), lines(page, "scaling")
    assert len({x for x, _ in ridge}) == 1
    assert ridge[0] == scaling[0], "both begin at the best rate of the smallest size"
    assert len({x for x, _ in scaling}) == 3


def test_an_accuracy_is_best_where_it_is_highest():
    by = "val_accuracy"
    page = sweep(lambda rate, size: 0.5 / linear(rate, size), by=by).html()
    (ridge,), (scaling,) = lines(page, "ridge"), lines(page, "scaling")
    assert ridge == scaling


def test_pictures_that_would_say_nothing_are_left_out():
    heads = re.compile(r"<h2>(.*?)</h2>")
    every = sweep(linear).html()
    assert heads.findall(every) == [
        "What to use",
        "Learning rate and batch size",
        "Against the learning rate",
        "All settings at once",
        "Performance profiles",
        "The table",
    ]
    single = sweep(linear, rates=[0.1], sizes=[8], seeds=1).html()
    assert heads.findall(single) == ["What to use", "The table"]
    assert "only one setting" in single


def test_what_is_written_in_settings_is_shown_and_not_run():
    hostile = "</script><img src=x onerror=\"document.title='owned'\">'\"&<b>"
    rows = [
        {hostile: f"{hostile}{n}", "lr": lr, "seed": 0, "run": 0, "status": "done", "val_loss": lr}
        for n in range(2)
        for lr in (0.1, 0.2)
    ]
    page = Sweep(rows, [hostile, "lr", "seed"], None, interrupted=True).html()
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img" in page
    assert "default-src 'none'" in page
    assert "Runs are missing." in page


def test_as_plain_values_it_is_json():
    found = json.loads(json.dumps(sweep(linear).as_dict(), allow_nan=False))
    best = found["groups"][0]
    assert best["setting"] in [{"lr": 0.01 * s / 8, "batch_size": s} for s in SIZES]
    assert best["mean"] == pytest.approx((1 * 1.01 * 1.02) ** (1 / 3))
    assert found["profiles"]["groups"]["lr=0.02 batch_size=16"][0] > 0
