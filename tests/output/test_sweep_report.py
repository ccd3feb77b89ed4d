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
    assert page.count('class="star"') == len(SIZES), "one a size"
    cells = re.findall(
        r'<rect class="shade-\d" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', page
    )
    middles = {(int(x) + int(w) / 2, int(y) + int(h) / 2) for x, y, w, h in cells}
    assert set(ridge) <= middles


def test_the_best_cells_are_told_apart_beside_some_that_are_far_worse():
    losses = [0.018, 0.02, 0.022, 0.03, 0.05, 0.4, 3.0, 50.0, 900.0]
    page = sweep(
        lambda rate, size: losses[3 * RATES.index(rate) + SIZES.index(size)],
        rates=RATES[:3],
        seeds=1,
    ).html()
    shades = {
        text: shade
        for shade, text in re.findall(r'<text class="in shade-(\d)"[^>]*>([^<]+)<', page)
    }
    assert len({shades["0.018"], shades["0.02"], shades["0.022"]}) >= 2
    assert [shades[f"{loss:.2g}"] for loss in losses] == sorted(shades.values())
    legend = re.findall(r'<li class="shade-(\d)">([^<]+)</li>', page)
    assert [shade for shade, _ in legend] == sorted(set(shades.values()))
    assert legend[0][1].startswith("0.018")
    assert legend[-1][1].endswith("9e+02")


def test_panels_are_in_the_order_of_their_sizes_and_have_the_same_axes():
    page = sweep(lambda rate, size: size * linear(rate, 32), sizes=[128, 16, 32]).html()
    panels = page.split('<div class="dotted">')[1].split("<h2>")[0].split("<figure")[1:]
    assert [re.search(r"batch_size=(\d+)", panel)[1] for panel in panels] == ["16", "32", "128"]
    ticks = [re.findall(r'<text class="tick"[^>]*>[^<]+<', panel) for panel in panels]
    assert ticks[0] == ticks[1] == ticks[2]


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
    rows = [row for row in sweep(linear, sizes=[8]) if row.pop("batch_size")]
    rates = heads.findall(Sweep(rows, ["lr", "seed"], "val_loss", interrupted=False).html())
    assert rates == [
        "What to use",
        "Against the learning rate",
        "Performance profiles",
        "The table",
    ], "of rates alone, coordinates would show no more than the panel"
    single = sweep(linear, rates=[0.1], sizes=[8], seeds=1).html()
    assert heads.findall(single) == ["What to use", "The table"]
    assert "Only one setting was run" in single


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
