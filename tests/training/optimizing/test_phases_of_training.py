"""Phases of training: other optimizers and frozen layers in mid-run, with the plain loop's bits."""

import copy

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from torch import nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR

from gdtrain import BatchLoader, Callback, Checkpoints, MiniBatchLoader, Phases, Trainer, Trajectory
from gdtrain.errors import CheckpointError, ConfigError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()


def net():
    torch.manual_seed(0)
    layers = {"backbone": nn.Linear(3, 5), "act": nn.Tanh(), "head": nn.Linear(5, 1)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.double()


def head_first(parameters):
    return SGD(parameters, lr=0.1, momentum=0.9)


def all_of_it(parameters):
    return Adam(parameters, lr=0.01)


def decay(optimizer):
    return ExponentialLR(optimizer, 0.5)


PLAN = [(2, head_first, None, ["backbone"]), (4, all_of_it, decay), (None, LBFGS)]


def make(*callbacks, plan=PLAN, **options):
    options = {"device": "cpu", "callbacks": callbacks, **options}
    return Trainer(net(), nn.MSELoss(), Phases(plan), MiniBatchLoader((X, Y), 8), **options)


def by_hand(epochs):
    model, loader, losses = net(), MiniBatchLoader((X, Y), 8), []
    for epoch in range(epochs):
        if epoch == 0:
            model.backbone.requires_grad_(False)
            optimizer, scheduler = head_first(model.head.parameters()), None
        elif epoch == 2:
            model.backbone.requires_grad_(True)
            optimizer = all_of_it(model.parameters())
            scheduler = decay(optimizer)
        elif epoch == 4:
            optimizer, scheduler = LBFGS(model.parameters()), None
        loader.set_epoch(epoch)
        total = 0.0
        for batch in loader:

            def closure(batch=batch, optimizer=optimizer):
                optimizer.zero_grad()
                loss = F.mse_loss(model(batch.inputs), batch.targets)
                loss.backward()
                return loss

            if isinstance(optimizer, LBFGS):
                loss = optimizer.step(closure)
            else:
                loss = closure()
                optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / 20)
        if scheduler is not None:
            scheduler.step()
    return model, losses


def assert_same(mine, theirs):
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("epochs", [1, 2, 3, 6])
def test_a_run_through_phases_has_the_bits_of_the_plain_loop(epochs):
    trainer = make()
    history = trainer.fit(epochs)
    model, losses = by_hand(epochs)
    assert_same(trainer.model, model)
    assert history.train_loss == pytest.approx(losses, rel=1e-13)
    assert trainer.step == 3 * epochs


def test_it_does_not_matter_in_how_many_fits():
    trainer = make()
    for epochs in range(1, 7):
        trainer.fit(epochs)
    assert_same(trainer.model, by_hand(6)[0])


class StopsAt(Callback):
    def __init__(self, step):
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer):
        trainer.stop("here")


@pytest.mark.few(2)
@pytest.mark.parametrize("step", [2, 6, 7, 12, 14])
def test_a_run_that_is_resumed_in_any_phase_ends_with_the_same_bits(step, tmp_path):
    first = make(StopsAt(step), Checkpoints(tmp_path))
    first.fit(6)
    assert first.step == step
    second = make()
    second.fit(6, resume=tmp_path)
    assert_same(second.model, by_hand(6)[0])


@pytest.mark.few(1)
@pytest.mark.parametrize("stopped", [2, 5])
def test_a_path_of_the_weights_goes_on_in_another_phase(stopped):
    """It has the same weights at each point, those of the first phase's optimizer: the head's."""
    whole, parts = Trajectory(every_n_epochs=1), [Trajectory(every_n_epochs=1) for _ in range(2)]
    make(whole).fit(6)
    first, second = map(make, parts)
    first.fit(stopped)
    second.load_state_dict(first.state_dict())
    second.fit(6)
    path = parts[1].weight_path()
    expected = whole.weight_path()
    assert path.steps.tolist() == expected.steps.tolist()
    assert path.points.shape == (7, 6)
    np.testing.assert_array_equal(path.points, expected.points)
    head = by_hand(6)[0].head
    assert path.points[-1].tolist() == [*head.weight[0].tolist(), head.bias.item()]


def test_a_state_of_no_phase_is_refused_and_leaves_everything():
    later, trainer = make(), make()
    later.fit(5)
    before = copy.deepcopy(trainer.state_dict())
    state = later.state_dict()
    for wrong in (7, None):
        with pytest.raises(CheckpointError, match="phase: it is none of the phases that this"):
            trainer.load_state_dict({**state, "phase": wrong})
    with pytest.raises(CheckpointError):  # the optimizer of another phase
        trainer.load_state_dict({**state, "phase": 0})
    assert trainer.phase == 0
    assert trainer.state_dict()["flags"] == before["flags"]
    trainer.fit(6)
    assert_same(trainer.model, by_hand(6)[0])


def test_what_was_frozen_before_stays_so():
    model = net()
    model.backbone.bias.requires_grad_(False)
    bias = model.backbone.bias.clone()
    phases = Phases([(1, Adam, None, ["head"]), (None, Adam, None, ["head.bias"])])
    Trainer(model, nn.MSELoss(), phases, BatchLoader((X, Y)), device="cpu").fit(3)
    assert torch.equal(model.backbone.bias, bias)
    assert not model.backbone.bias.requires_grad
    assert not model.head.bias.requires_grad
    assert model.head.weight.requires_grad


def test_the_engine_is_chosen_for_each_phase():
    pytest.importorskip("jax")
    from functools import partial

    plan = [(1, partial(SGD, lr=0.1)), (None, partial(Adam, lr=0.1))]
    trainer = make(plan=plan, engine="scan")
    trainer.fit(1)
    assert trainer.engine.name == "scan"
    with pytest.raises(ConfigError, match="engine: scan can't run this: it makes the updates of"):
        trainer.fit(2)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "phases: is empty; at least one phase is needed"),
        ([(None, Adam), (None, Adam)], r"phases\[0\].until_epoch: missing; every phase but the la"),
        ([(3, Adam)], r"phases\[0\].until_epoch: must be left out in the last phase"),
        ([(3, Adam), (2, Adam), (None, Adam)], r"phases\[1\].until_epoch: must be > 3, where the"),
        ([(None, "adam")], r"phases\[0\]: must be \(until, optimizer, schedule, frozen\), the opt"),
        ([(None, Adam, None, "head")], r"phases\[0\]: frozen must be a list: \['head'\]"),
        ([(None, Adam, None, ["neck"])], r"phases\[0\].frozen: the model has no 'neck'; give"),
    ],
)
def test_what_are_no_phases(plan, message):
    with pytest.raises(ConfigError, match=message):
        make(plan=plan)


def test_phases_are_one_list():
    with pytest.raises(
        ConfigError, match=r"phases: is one list: Phases\(\[\(5, torch.optim.Adam\)"
    ):
        Phases((3, Adam), (None, LBFGS))


def test_a_schedule_of_another_optimizer_than_the_phase_s_is_refused():
    other = ExponentialLR(SGD(net().parameters(), lr=0.1), 0.5)
    message = "scheduler: sets the rate of another optimizer than the one given"
    with pytest.raises(ConfigError, match=message):
        make(plan=[(None, head_first, lambda optimizer: other)])
    later = make(plan=[(1, head_first), (None, all_of_it, lambda optimizer: other)])
    with pytest.raises(ConfigError, match=message):
        later.fit(2)


def on_a_rank(rank):
    trainer = make()
    trainer.fit(4)  # rounding grows fast under L-BFGS without a line search
    return [p.detach() for p in trainer.model.parameters()]


def test_processes_go_through_them_together():
    alone = list(by_hand(4)[0].parameters())
    for weights in on_ranks(on_a_rank):
        for mine, theirs in zip(weights, alone, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9)
