"""Several optimizers, and phases of training, from a configuration: the plain loop's bits."""

import copy

import numpy as np
import pytest
import torch
from helpers.processes import run as run_python
from helpers.ranks import on_ranks
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, StepLR

from gdtrain.checkpoint.checkpoints import Checkpoints
from gdtrain.config.build import build
from gdtrain.config.load import load_config, parse_config
from gdtrain.errors import ConfigError
from gdtrain.training.callbacks.callback import Callback

X = np.random.default_rng(0).standard_normal((40, 3))
Y = np.sin(X.sum(1, keepdims=True))

PHASES = [
    {"until_epoch": 2, "optimizer": {"lr": 0.1, "momentum": 0.9}, "frozen": ["0"]},
    {
        "until_epoch": 5,
        "optimizer": "adam",
        "scheduler": {"name": "cosine", "min_factor": 0.1, "warmup": 1},
    },
    {
        "until_epoch": 7,
        "optimizer": {"body": {"name": "adamw", "parameters": ["0"]}, "head": {"lr": 0.1}},
        "scheduler": {"head": {"name": "step", "every": 1, "gamma": 0.5}},
    },
    {"optimizer": {"name": "lbfgs", "max_iter": 3}},
]
SEVERAL = {
    "optimizer": {
        "head": {"lr": 0.1, "parameters": ["2"]},
        "body": {"name": "adam", "lr": 0.01},
    },
    "scheduler": {"body": {"name": "step", "every": 2, "gamma": 0.5, "per": "epoch"}},
    "clip_grad_norm": {"head": 0.01},
}


def run(*arguments):
    return run_python("-m", "gdtrain", *arguments)


@pytest.fixture
def settings(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    return {
        "data": {"source": "npz", "path": str(tmp_path / "data.npz")},
        "model": {"name": "mlp", "hidden": [4], "activation": "tanh"},
        "loss": "mse",
        "loader": {"name": "batch", "order": "sequential"},
        "precision": "fp64",
        "engine": "eager",
        "epochs": 9,
    }


def trainer_of(settings):
    trainer = build(parse_config(settings)).trainer
    return trainer, copy.deepcopy(trainer.model)


def update(model, optimizers, before_step=lambda: None):
    x, y = torch.from_numpy(X), torch.from_numpy(Y)

    def closure():
        model.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    if isinstance(optimizers[0], torch.optim.LBFGS):
        optimizers[0].step(closure)
        return
    closure()
    before_step()
    for optimizer in optimizers:
        optimizer.step()


def factor(t):
    """Warm-up of one update, then half a cosine over the two others of the phase."""
    return 0.5 if t == 0 else 0.1 + 0.9 * (1 + np.cos(np.pi * min(t - 1, 2) / 2)) / 2


def through_phases(model, epochs):
    """The same, by hand."""
    body, head = model[0], model[2]
    schedules = []
    for epoch in range(epochs):
        if epoch == 0:
            body.requires_grad_(False)
            optimizers = [torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)]
        elif epoch == 2:
            body.requires_grad_(True)
            optimizers = [torch.optim.Adam(model.parameters())]
            schedules = [LambdaLR(optimizers[0], factor)]
        elif epoch == 5:
            optimizers = [
                torch.optim.AdamW(body.parameters()),
                torch.optim.SGD(head.parameters(), lr=0.1),
            ]
            schedules = [StepLR(optimizers[1], 1, 0.5)]
        elif epoch == 7:
            search = {"line_search_fn": "strong_wolfe", "max_iter": 3}
            optimizers, schedules = [torch.optim.LBFGS(model.parameters(), **search)], []
        update(model, optimizers)
        for schedule in schedules:
            schedule.step()
    return model


def assert_same(mine, theirs, **tolerance):
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        if tolerance:
            assert torch.allclose(one, other, **tolerance)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("epochs", [1, 3, 5, 6, 9])
def test_phases_train_as_the_plain_loop_does(settings, epochs):
    trainer, model = trainer_of({**settings, "phases": PHASES})
    trainer.fit(epochs)
    # Rates by a cosine are computed in another order here: the last bits of a rate may differ.
    assert_same(trainer.model, through_phases(model, epochs), rtol=1e-9, atol=1e-12)


def test_several_optimizers_have_the_bits_of_the_plain_loop(settings):
    trainer, model = trainer_of(settings | SEVERAL)
    history = trainer.fit(6)
    head = torch.optim.SGD(model[2].parameters(), lr=0.1)
    body = torch.optim.Adam(model[0].parameters(), lr=0.01)
    schedule = StepLR(body, 2, 0.5)
    for _ in range(6):
        update(model, [head, body], lambda: nn.utils.clip_grad_norm_(model[2].parameters(), 0.01))
        schedule.step()
    assert_same(trainer.model, model)
    assert history.lr_body == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]
    assert history.lr_head == [0.1] * 6


class StopsAt(Callback):
    def __init__(self, step):
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer):
        trainer.stop("here")


@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 8])
@pytest.mark.parametrize("more", [{"phases": PHASES}, SEVERAL], ids=["phases", "several"])
def test_a_run_goes_on_in_any_phase(settings, step, more, tmp_path):
    config = parse_config(settings | more)
    whole = build(config).trainer
    whole.fit(9)
    build(config, [StopsAt(step), Checkpoints(tmp_path / "kept")]).trainer.fit(9)
    second = build(config).trainer
    second.fit(9, resume=tmp_path / "kept")
    assert_same(second.model, whole.model)


@pytest.mark.few(1)
@pytest.mark.parametrize("more", [{"phases": PHASES}, SEVERAL], ids=["phases", "several"])
def test_the_command_trains_prints_and_resumes(settings, more, tmp_path):
    import yaml

    file, out = tmp_path / "config.yaml", tmp_path / "run"
    settings |= {"log": {"picture": False}}
    file.write_text(yaml.safe_dump(settings | more))
    whole, part = (("--config", str(file), "--quiet", "--output-dir", str(out / n)) for n in "ab")
    ended = run(*whole)
    assert ended.returncode == 0, ended.err
    assert run(*part, "epochs=6").returncode == 0
    ended = run(*part, "epochs=9", "--resume")
    if more is not SEVERAL:  # a cosine is of another length in a shorter run
        assert "epochs is 6 there and 9 here" in ended.err
        assert run(*part, "epochs=6", "--resume").returncode == 0
    else:
        assert ended.returncode == 0, ended.err
        ends = [load_file(out / name / "model.safetensors") for name in "ab"]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    again, _ = load_config(out / "a" / "config.yaml")  # what a run keeps is what it was given
    assert again == parse_config(settings | more)
    verified = run("verify", "--config", str(file))
    assert verified.returncode == 0
    assert "have the same bits" in verified.out


def on_a_rank(rank, settings):
    trainer = build(parse_config(settings)).trainer
    trainer.fit(8)
    return [p.detach() for p in trainer.model.parameters()]


@pytest.mark.parametrize("more", [{"phases": PHASES}, SEVERAL], ids=["phases", "several"])
def test_processes_train_alike(settings, more):
    trainer, _ = trainer_of(settings | more)
    trainer.fit(8)
    for weights in on_ranks(on_a_rank, settings | more):
        for mine, theirs in zip(weights, trainer.model.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9)


def test_the_engine_is_chosen_for_each_phase(settings):
    pytest.importorskip("jax")
    phases = [{"until_epoch": 2, "optimizer": {"lr": 0.1}}, {"optimizer": "adam"}]
    trainer, _ = trainer_of({**settings, "phases": phases, "engine": "scan"})
    trainer.fit(2)
    assert trainer.engine.name == "scan"
    with pytest.raises(ConfigError, match="engine: scan can't run this: it makes the updates of"):
        trainer.fit(3)


def test_a_phase_that_is_never_reached_is_told(settings, caplog):
    trainer_of({**settings, "phases": PHASES, "epochs": 5})
    assert "phases[2] is never reached: training ends with epoch 5" in caplog.text


def test_a_schedule_by_a_metric_may_stand_beside_others(settings):
    plateau = {"name": "plateau", "patience": 0, "monitor": "train_loss", "min_delta": 10.0}
    several = {**SEVERAL, "scheduler": {**SEVERAL["scheduler"], "head": plateau}}
    trainer, _ = trainer_of(settings | several)
    assert trainer.fit(4).lr_head == pytest.approx([0.1, 0.1, 0.01, 0.001])
    phases = [
        {"until_epoch": 2, "optimizer": {"lr": 0.1}, "scheduler": "constant"},
        {"optimizer": {"lr": 0.1}, "scheduler": plateau},
    ]
    trainer, _ = trainer_of({**settings, "phases": phases})
    assert trainer.fit(5).lr == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01])


BAD = [
    ({}, "optimizer: missing; add optimizer: the optimizer, by name; sgd if no name is given"),
    (
        {"phases": PHASES, "optimizer": "adam"},
        "optimizer: has no place beside phases, each of which has its own; remove it",
    ),
    ({"phases": []}, "phases: must hold at least 1, got []"),
    (
        {"phases": [{"optimizer": "adam"}, {"optimizer": "adam"}]},
        "phases[0].until_epoch: missing; every phase but the last says with which epoch it ends",
    ),
    (
        {"phases": [{"until_epch": 4, "optimizer": "adam"}]},
        "phases[0].until_epch: unknown key; did you mean until_epoch?",
    ),
    (
        {"phases": [{"optimizer": {"name": "adam", "beta": 1}}]},
        "phases[0].optimizer.beta: unknown key; the keys here are name, lr, weight_decay",
    ),
    (
        {"phases": [{"optimizer": "adam", "frozen": ["7"]}]},
        "phases[0].frozen: the model has no '7'; give names of model.named_modules()",
    ),
    (
        {"phases": [{"optimizer": "adam", "frozen": ["0", "2"]}]},
        "phases[0].frozen: leaves nothing to train; leave some layer out",
    ),
    (
        {"phases": [{"optimizer": {"a": {"name": "adam", "parameters": ["0", "9"]}}}]},
        "phases[0].optimizer.a.parameters[1]: the model has no parameters in '9'; it has 0, 1, 2",
    ),
    (
        {"optimizer": {"name": "adam", "parameters": ["0"]}},
        "optimizer.parameters: has no effect for a single optimizer, which steps all there are; "
        "remove it",
    ),
    (
        {"optimizer": {"a": {"name": "adam"}, "b": "adam"}},
        "optimizer.b.parameters: missing; a steps all that is left already",
    ),
    (
        {"optimizer": {"a": {"name": "adam", "parameters": ["0"]}}},
        "optimizer.a.parameters: leave out 2 of the model's (2.weight, 2.bias); name them, or "
        "leave out parameters",
    ),
    (
        {"optimizer": {"a": {"name": "adam", "parameters": ["0", "2"]}, "b": {"lr": 0.1}}},
        "optimizer.b: has no parameters: the others step all there are; remove it",
    ),
    (
        {
            "optimizer": {
                "a": {"name": "adam", "parameters": ["0"]},
                "b": {"lr": 0.1, "parameters": ["0.bias"]},
                "c": "adam",
            }
        },
        "optimizer.b.parameters: name nothing that is trained and that no optimizer before has",
    ),
    (
        {"optimizer": {"a": {"name": "lbfgs", "parameters": ["0"]}, "b": "adam"}},
        "optimizer: a is LBFGS, which works alone; give it no others",
    ),
    (
        {"optimizer": {"a-b": {"name": "adam"}}},
        "optimizer.a-b: is not a name; use letters, digits, _",
    ),
    (
        {**SEVERAL, "scheduler": {"haed": "constant", "body": {"name": "constant"}}},
        "scheduler.haed: is no optimizer's name; it must be one of head, body",
    ),
    (
        {**SEVERAL, "scheduler": "constant"},
        "scheduler: must name one of the optimizers, head, body, and its schedule",
    ),
    (
        {
            **SEVERAL,
            "scheduler": {
                "head": {"name": "constant"},
                "body": {"name": "constant", "per": "epoch"},
            },
        },
        "scheduler.body.per: must be step, as in the schedule before it; got epoch",
    ),
    (
        {**SEVERAL, "clip_grad_norm": {"tail": 1.0}},
        "clip_grad_norm: 'tail' is no optimizer's name; it must be one of head, body",
    ),
    (
        {"phases": PHASES, "loader": "sample", "variance_reduction": "svrg"},
        "variance_reduction: corrects one gradient per update, and lbfgs evaluates several; "
        "remove it",
    ),
]


@pytest.mark.parametrize(("more", "message"), BAD)
def test_what_is_wrong_is_told(settings, more, message):
    with pytest.raises(ConfigError) as error:
        build(parse_config(settings | more))
    assert str(error.value).splitlines() == [message]


def test_commands_that_look_for_one_rate_say_so(settings, tmp_path):
    import yaml

    file = tmp_path / "config.yaml"
    for more, key in (({"phases": PHASES}, "phases"), (SEVERAL, "optimizer")):
        file.write_text(yaml.safe_dump(settings | more))
        for command in (
            ("compare", str(file), "--loaders", "batch,sample"),
            ("lr-range", "--config", str(file)),
        ):
            ended = run(*command)
            assert ended.returncode == 2, ended.err
            assert f" {key}: ha" in ended.err
