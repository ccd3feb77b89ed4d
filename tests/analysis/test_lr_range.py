"""The learning-rate range test: closed forms, the rule of its end, and that it leaves no trace."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer, lr_range
from gdtrain.cli.main import main
from gdtrain.errors import ConfigError, DataError

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [4], dropout: 0.1}
loss: cross_entropy
loader: {name: minibatch, batch_size: 7}
optimizer: {lr: 0.1, momentum: 0.9}
monitors: gradient_norm
epochs: 2
log: {picture: false}
"""


def parabola(weight=1.0, optimizer=torch.optim.SGD, **options) -> Trainer:
    """J(w) = w², whose Hessian is 2."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    data = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    made = optimizer(model.parameters(), **({"lr": 0.5} | options))
    return Trainer(model, nn.MSELoss(), made, BatchLoader(data))


def network(loader, optimizer=torch.optim.SGD, **options) -> Trainer:
    """Two layers with running statistics and dropout, 8 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 2)
    )
    made = optimizer(model.parameters(), lr=0.05, **options)
    return Trainer(model, nn.CrossEntropyLoss(), made, loader, clip_grad_norm=1.0)


def samples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 2, generator=generator), torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])


# ── what it finds ───────────────────────────────────────────────────────────────────────────


def test_losses_are_those_of_the_closed_form():
    found = lr_range(parabola(), start=1e-3, stop=0.4, updates=20)
    lrs = [1e-3 * 400 ** (i / 19) for i in range(20)]
    assert found.lrs == pytest.approx(lrs, rel=1e-12)
    assert found.losses == pytest.approx(np.cumprod([(1 - 2 * lr) ** 2 for lr in lrs]), rel=1e-12)
    assert (found.first_loss, found.updates, found.diverged) == (1.0, 20, False)
    assert found.sharpness == pytest.approx(2.0, rel=1e-10)
    assert found.stability_limit == pytest.approx(1.0, rel=1e-10)
    # β = 0.8: m_1 = J_1, m_2 = (0.8 · J_1 + J_2) / 1.8
    assert found.smoothed[:2] == pytest.approx(
        [found.losses[0], (0.8 * found.losses[0] + found.losses[1]) / 1.8]
    )


def test_the_suggestion_follows_its_rule():
    found = lr_range(parabola(), start=1e-4, stop=100, updates=60)
    at = int(np.argmin(found.smoothed))
    slopes = np.gradient(found.smoothed, np.log(found.lrs))
    assert found.diverged
    assert found.lowest == found.lrs[at]
    assert found.steepest == found.lrs[int(np.argmin(slopes[: at + 1]))]
    assert found.suggestion == min(found.largest_rate, found.lowest) / 2
    assert found.largest_rate == pytest.approx(1.0)  # 2 / λ
    assert found.losses[-1] > 4.0
    assert max(found.losses[:-1]) <= 4.0, "it ends with the first look at more than four times J_0"


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"momentum": 0.9}, 1.9),
        ({"momentum": 0.9, "nesterov": True}, 1.9 / 2.8),
        ({"weight_decay": 2.0}, 0.5),
    ],
)
def test_the_stability_limit_is_that_of_the_momentum_in_use(options, limit):
    found = lr_range(parabola(**options), updates=3)
    assert found.stability_limit == pytest.approx(limit, rel=1e-10)


def test_where_there_is_no_limit_it_says_so():
    found = lr_range(parabola(optimizer=torch.optim.Adam), updates=3)
    assert (found.stability_limit, found.sharpness) == (None, None)
    assert "there is none for Adam as it is set" in str(found)
    assert "none: this test alone is inconclusive; for a whole training, pass --epochs N" in str(
        found
    )
    unasked = lr_range(parabola(), updates=3, limit=False)
    assert "not asked for" in str(unasked)
    assert unasked.suggestion is None


def test_looks_can_be_rarer_and_the_last_update_is_always_looked_at():
    every = lr_range(parabola(), start=1e-3, stop=0.4, updates=11)
    third = lr_range(parabola(), start=1e-3, stop=0.4, updates=11, every=3)
    kept = [2, 5, 8, 10]
    assert third.lrs == [every.lrs[i] for i in kept]
    assert third.losses == [every.losses[i] for i in kept]


def test_at_the_minimum_nothing_falls_and_nothing_is_suggested():
    found = lr_range(parabola(weight=0.0), updates=10)
    assert (found.suggestion, found.steepest, found.lowest) == (None, None, None)
    assert "none: the full loss never fell" in str(found)


def test_a_loss_that_is_not_finite_ends_it():
    found = lr_range(parabola(weight=1e150), start=1e300, stop=1e305, updates=5, limit=False)
    assert (found.diverged, found.lrs, found.suggestion) == (True, [], None)
    assert "loss diverged at once" in str(found)


# ── that nothing of it stays ────────────────────────────────────────────────────────────────

FORMS = {
    "batch": lambda: BatchLoader(samples()),
    "sample": lambda: MiniBatchLoader(samples(), batch_size=2),  # BatchNorm can't take one
    "minibatch": lambda: MiniBatchLoader(samples(), batch_size=3, drop_last=True, seed=1),
}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "lbfgs": (torch.optim.LBFGS, {"max_iter": 3}),
}


def bits(trainer: Trainer) -> list[object]:
    state = trainer.state_dict()
    held: list[object] = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            held.append((value.dtype, value.numpy().tobytes()))
        elif isinstance(value, dict):
            for key in [key for key in value if key != "seconds"]:
                held.append(key)
                walk(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        else:
            held.append(value)

    walk(state)
    walk([None if p.grad is None else p.grad for p in trainer.model.parameters()])
    return [*held, trainer.model.training, trainer.optimizer.param_groups[0]["lr"]]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("form", "optimizer"),
    [(f, o) for f in FORMS for o in OPTIMIZERS if f == "batch" or o != "lbfgs"],
)
def test_everything_is_put_back_bit_for_bit(form, optimizer):
    kind, options = OPTIMIZERS[optimizer]
    trainer, twin = (network(FORMS[form](), kind, **options) for _ in range(2))
    for one in (trainer, twin):
        torch.manual_seed(5)
        one.fit(2)
        torch.manual_seed(6)
    before, gradients = bits(trainer), [p.grad for p in trainer.model.parameters()]
    found = lr_range(trainer, start=1e-3, stop=1e4, updates=25)
    assert found.updates > 3
    assert bits(trainer) == before
    assert all(p.grad is g for p, g in zip(trainer.model.parameters(), gradients, strict=True))
    after = torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(torch.get_rng_state(), after)
    for one in (trainer, twin):
        torch.manual_seed(7)
        one.fit(4)
    assert bits(trainer) == bits(twin)


def test_one_sample_per_update_and_schedules_and_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[2].parameters(), "lr": 0.3},
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, SampleLoader(samples()),
        scheduler=schedule, scheduler_per="step",
    )  # fmt: skip
    before = bits(trainer)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append([g["lr"] for g in o.param_groups]))
    lr_range(trainer, start=1e-2, stop=1.0, updates=5)
    assert [lr for lr, _ in seen] == pytest.approx([10 ** (i / 2 - 2) for i in range(5)])
    assert [other / lr for lr, other in seen] == pytest.approx([3.0] * 5)
    assert bits(trainer) == before
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.3]


def test_an_error_in_the_middle_leaves_no_trace():
    class Failing(Trainer):
        def compute_loss(self, batch):
            if torch.is_grad_enabled() and float(self.optimizer.param_groups[0]["lr"]) > 0.1:
                raise KeyboardInterrupt
            return super().compute_loss(batch)

    trainer = network(FORMS["minibatch"]())
    trainer = Failing(trainer.model, trainer.loss, trainer.optimizer, trainer.loader)
    before = bits(trainer)
    with pytest.raises(KeyboardInterrupt):
        lr_range(trainer, limit=False)
    assert bits(trainer) == before


def test_callbacks_are_not_called():
    class Watching(gdtrain.Callback):
        calls = 0

        def on_before_update(self, trainer):
            Watching.calls += 1

    trainer = network(FORMS["batch"]())
    trainer.callbacks.append(Watching())
    lr_range(trainer, updates=3, limit=False)
    assert Watching.calls == 0
    trainer.fit(1)
    assert Watching.calls == 1


def test_bad_ranges_and_streams_are_refused():
    for options, said in (
        ({"start": 0.0}, "from: must be > 0, got 0.0"),
        ({"start": 1.0, "stop": 0.5}, "to: must be > the 1 to start from, got 0.5"),
        ({"stop": math.inf}, "to: must be > the 1e-06 to start from, got inf"),
        ({"updates": 2}, "updates: must be >= 3, got 2"),
        ({"every": 0}, "every: must be >= 1, got 0"),
    ):
        with pytest.raises(ConfigError) as caught:
            lr_range(parabola(), **options)
        assert str(caught.value) == said

    class Pairs(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.ones(1), torch.ones(1))] * 3)

    model = nn.Linear(1, 1)
    trainer = Trainer(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), SampleLoader(Pairs())
    )
    with pytest.raises(DataError, match="a stream's samples are read once"):
        lr_range(trainer)


# ── the command ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(CONFIG, "utf-8")


def test_the_command_prints_and_draws(here, capsys):
    assert (
        main(["lr-range", "--config", "moons.yaml", "--updates", "40", "optimizer.momentum=0"]) == 0
    )
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        *("tested", "full loss before", "steepest descent at", "lowest loss at"),
        *("stability limit", "sharpness λ", "noise scale", "suggestion"),  # dropout has no limit
    ]
    assert err == "drawn: lr-range-moons.png\n"
    assert Path("lr-range-moons.png").read_bytes()[:4] == b"\x89PNG"


def test_as_json_it_says_what_python_says(here, capsys):
    given = ["lr-range", "--config", "moons.yaml", "--updates", "9", "--json", "--out", "a.svg"]
    assert main(given) == 0
    said = json.loads(capsys.readouterr().out)
    config, _ = gdtrain.config.load.load_config("moons.yaml")
    trainer = gdtrain.config.build.build(config).trainer
    assert said == copy.deepcopy(lr_range(trainer, updates=9).as_dict())
    assert Path("a.svg").is_file()


def test_bad_input(here, capsys):
    Path("stream.yaml").write_text(
        "data: {source: stream, path: x.csv, format: csv, target: y}\nmodel: linear\nloss: mse\n"
        "loader: sample\noptimizer: {lr: 0.1}\nepochs: 1\n"
    )
    option, stream = "command line:1:1: --", "stream.yaml:1:7: data: a stream's samples are read "
    for arguments, said in (
        (["moons.yaml", "--to", "0"], option + "to: must be > the 1e-06 to start from, got 0.0"),
        (["moons.yaml", "--updates", "1"], option + "updates: must be >= 3, got 1"),
        (["moons.yaml", "--out", "a.gif"], option + "out: must end in .png or .svg, got 'a.gif'"),
        (
            ["stream.yaml"],
            stream + "once, and the test looks at all of them again; give a data set, such as "
            "source: csv",
        ),
        (
            ["moons.yaml", "variance_reduction=svrg", "optimizer.momentum=0", "model.dropout=0"],
            "command line:1:20: variance_reduction: SVRG changes gradients by what it has seen "
            "before, and the range test makes plain updates; test without it",
        ),
    ):
        assert main(["lr-range", "--config", *arguments]) == 2
        assert capsys.readouterr().err == f"{said}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["moons.yaml", "stream.yaml"]
