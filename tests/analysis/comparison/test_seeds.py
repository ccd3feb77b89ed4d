"""``compare(seeds=)``: pairs that share data and weights, and only what the seeds support."""

from functools import partial

import numpy as np
import pytest
import scipy
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, Trainer, compare
from gdtrain.analysis.comparison.target import target_of
from gdtrain.analysis.comparison.verdicts import statistics_of
from gdtrain.errors import ConfigError, ModelError
from gdtrain.output.report.when_to_use import when_to_use


def least_squares(seed=0, lr=0.1, size=None, budget=None, shift=0.0):
    """Noisy targets and weights by the seed; what is left at the minimum is the noise."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 3, generator=draw, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(24, 1, generator=draw, dtype=torch.float64)
    torch.manual_seed(seed)
    model = nn.Linear(3, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    data = (x, y + shift)
    loader = BatchLoader(data) if size is None else MiniBatchLoader(data, size, seed=seed)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")


def by_hand(seed, lr, updates):
    """The full loss after gradient descent in numpy."""
    trainer = least_squares(seed)
    (batch,) = trainer.read(trainer.loader)
    x = np.hstack([batch.inputs.numpy(), np.ones((24, 1))])
    y = batch.targets.numpy()[:, 0]
    w = np.concatenate([p.detach().numpy().ravel() for p in trainer.model.parameters()])
    for _ in range(updates):
        w = w - lr * 2 / 24 * x.T @ (x @ w - y)
    return np.square(x @ w - y).mean()


def test_the_pairs_are_those_of_scipy_on_runs_by_hand():
    forms = {"slow": partial(least_squares, lr=0.02), "fast": partial(least_squares, lr=0.1)}
    result = compare(forms, epochs=8, seeds=6).result
    ends = {lr: [by_hand(seed, lr, 8) for seed in range(6)] for lr in (0.02, 0.1)}
    measure = result["statistics"]["measures"]["full_loss"]
    for form, lr in (("slow", 0.02), ("fast", 0.1)):
        np.testing.assert_allclose(measure["forms"][form]["values"], ends[lr], rtol=1e-10)
        logs = np.log(ends[lr])
        low, high = scipy.stats.t.interval(0.95, 5, logs.mean(), scipy.stats.sem(logs))
        own = measure["forms"][form]
        found = np.log([own["mean"], own["low"], own["high"]])
        np.testing.assert_allclose(found, [logs.mean(), low, high], rtol=1e-6, atol=1e-9)
    (pair,) = measure["pairs"]
    test = scipy.stats.ttest_rel(np.log(ends[0.1]), np.log(ends[0.02]))
    assert pair["ratio"] == pytest.approx(
        np.exp(np.log(ends[0.1]).mean() - np.log(ends[0.02]).mean())
    )
    tests = sum(len(m["pairs"]) for m in result["statistics"]["measures"].values())
    assert test.pvalue < pair["p"] <= tests * test.pvalue * (1 + 1e-9)
    assert pair["told"] == (pair["p"] <= 0.05) == (pair["high"] < 1)


def test_a_form_is_recommended_from_five_seeds_on():
    forms = {"slow": partial(least_squares, lr=0.003), "fast": partial(least_squares, lr=0.1)}
    few = compare(forms, epochs=12, seeds=4).result
    assert few["when_to_use"].startswith("In the first of the runs, the best was fast for ")
    assert few["when_to_use"].endswith("with 4 seeds this is not conclusive, use at least 5.")
    compared = compare(forms, epochs=12, seeds=8)
    enough = compared.result["when_to_use"]
    assert enough.startswith("On this problem use fast for ")
    assert "the lowest final loss (" in enough
    assert "95 % intervals of the means over 8 seeds" in compared.html()


def test_each_seed_is_the_run_alone():
    forms = {"batch": least_squares, "mini": partial(least_squares, size=5)}
    together = compare(forms, epochs=3, seeds=[4, 7]).result
    assert [run["seed"] for run in together["forms"][1]["runs"]] == [4, 7]
    for row in together["forms"][1]["runs"]:
        trainer = least_squares(row["seed"], size=5)
        trainer.fit(3)
        assert row["final"]["full_loss"] == trainer.evaluate()["loss"]
    alone = compare({"mini": partial(least_squares, seed=4, size=5)}, epochs=3).result["forms"][0]
    assert together["forms"][1]["curve"]["full_loss"] == alone["curve"]["full_loss"]


def test_the_grid_is_tried_with_the_first_seed_and_counted():
    result = compare({"a": least_squares}, epochs=2, seeds=3, lr_grid=[0.01, 0.1]).result
    (form,) = result["forms"]
    assert [run["learning_rate"] for run in form["runs"]] == [0.1] * 3
    assert form["tuning"]["updates"] == 4
    assert form["tuning"]["gradient_evaluations"] == 4 * 24


def test_forms_that_differ_within_a_seed_are_refused():
    forms = {"a": least_squares, "b": lambda seed: least_squares(seed, shift=float(seed == 2))}
    with pytest.raises(ModelError, match=r"^compare: b trains on other samples than a; give all"):
        compare(forms, epochs=1, seeds=3)
    for wrong, message in ((0, "must be >= 1, got 0"), ([1, 1], "must be different whole numbers")):
        with pytest.raises(ConfigError, match=message):
            compare(forms, epochs=1, seeds=wrong)


def test_a_stop_leaves_the_whole_seeds_to_the_statistics():
    looks = []
    compared = compare(
        {"a": least_squares, "b": partial(least_squares, lr=0.05)},
        epochs=2,
        seeds=9,
        on_look=lambda *look: looks.append(look),
        should_stop=lambda: looks.count(("a", 1.0)) == 3,
    )
    assert compared.interrupted
    assert compared.result["statistics"]["seeds"] == [0, 1]
    assert len(compared.result["forms"][0]["runs"]) == 3


# ── simulated tables, whose truth is known ──────────────────────────────────────────────────


def run(seed, seconds, loss, share, status="done"):
    """A run as measured, in plain values."""
    return {
        "seed": seed,
        "status": status,
        "seconds": 10.0,
        "final": {"full_loss": loss},
        "to_target": None if seconds is None else {"seconds": seconds},
        "stability": {"share_that_raised": share},
        "memory": None,
        "curve": {"full_loss": [1e9, loss], "updates": [0, 100]},
    }


def table(draw, seeds, factors):
    """Forms whose runs share a seed's difficulty, and have noise of their own."""
    hard = draw.lognormal(0, 1, seeds)
    forms = []
    for name, factor in factors.items():
        rows = [
            run(
                seed,
                factor * hard[seed] * draw.lognormal(0, 0.3),
                factor * hard[seed] * draw.lognormal(0, 0.3),
                min(1.0, factor * draw.uniform(0, 0.5)),
            )
            for seed in range(seeds)
        ]
        forms.append({"name": name, **rows[0], "runs": rows})
    target = {"full_loss": 1.0, "given": True}
    return {"forms": forms, "target": target, "statistics": statistics_of(forms)}


@pytest.mark.few(1)
@pytest.mark.parametrize("seeds", [5, 10])
def test_tables_of_three_equal_forms_name_a_winner_in_at_most_5_percent(seeds):
    draw = np.random.default_rng(seeds)
    said = [when_to_use(table(draw, seeds, dict.fromkeys("abc", 1.0))) for _ in range(200)]
    assert sum(" use " in sentence for sentence in said) <= 10
    assert sum("these seeds do not distinguish" in sentence for sentence in said) == 200


def test_a_form_that_is_better_by_far_is_named():
    draw = np.random.default_rng(1)
    factors = {"a": 1.0, "b": 4.0, "c": 5.0}
    said = [when_to_use(table(draw, 10, factors)) for _ in range(100)]
    assert sum(s.startswith("On this problem use a for speed (") for s in said) >= 95


def test_runs_that_never_reach_the_target_count_as_such():
    rows = [run(seed, None if seed % 2 else 3.0, 1.0, 0.1) for seed in range(8)]
    fast = [run(seed, 1.0 + 0.01 * seed, 1.0, 0.1) for seed in range(8)]
    forms = [{"name": "half", **rows[0], "runs": rows}, {"name": "all", **fast[0], "runs": fast}]
    found = statistics_of(forms)
    reached = found["reached"]["half"]
    assert (reached["runs"], reached["of"], reached["median"]) == (4, 8, 3.0)
    assert (reached["seconds"], reached["share"]) == ([3.0], [0.5])
    (pair,) = found["measures"]["seconds_to_target"]["pairs"]
    assert pair["p"] == pytest.approx(scipy.stats.binomtest(0, 8).pvalue)
    assert found["profiles"]["forms"]["all"][0] == 1.0
    assert found["profiles"]["forms"]["half"][-1] == 0.5


def test_a_target_reached_at_once_is_not_one_to_be_fast_to():
    def curve(losses):
        return {
            "status": "done",
            "final": {"full_loss": losses[-1]},
            "curve": {
                "updates": list(range(len(losses))),
                **dict.fromkeys(("samples", "gradient_evaluations", "seconds"), range(len(losses))),
                "full_loss": losses,
            },
        }

    jump = curve([10.0, 1.0, 1.0, 1.0, 1.0])
    late = curve([10.0, 5.0, 0.9, 0.5, 0.4])
    found = target_of([jump, late], None)
    assert found["full_loss"] == 0.5  # of the best run after three quarters
    assert "is reached by every form within 2 updates" in found["chosen"]
    tiny = [curve([10.0, 9.99]), curve([10.0, 9.95])]
    none = target_of(tiny, None)
    assert none["full_loss"] is None
    assert none["note"] == (
        "there is no target: the largest final loss, 9.99, is less than 10% below the start, 10"
    )
    given = target_of([jump, late], 9.5)
    assert given["note"] == "9.5, is less than 10% below the start, 10"
    assert target_of([jump, late], 0.45) == {"full_loss": 0.45, "given": True}
