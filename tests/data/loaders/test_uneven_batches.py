"""Batches of several sizes in one epoch: a loader form of your own, against the loop by hand."""

import math
from pathlib import Path

import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from gdtrain import Callback, Loader, PhasedLoader, Plan, Trainer
from gdtrain.cli.main import main
from gdtrain.config.load_run import load_run
from gdtrain.errors import ConfigError
from gdtrain.training.engines.obstacles import is_installed

draw = torch.Generator().manual_seed(0)
X = torch.randn(23, 3, generator=draw, dtype=torch.float64)
Y = torch.randn(23, 1, generator=draw, dtype=torch.float64)


class Poisson(Loader):
    """Each sample is in each batch with the same probability (Poisson sampling)."""

    def __init__(self, data, rate: float = 0.2, batches: int = 9, seed: int = 0) -> None:
        super().__init__(data, seed=seed)
        self.rate, self.batches = rate, batches

    def plan(self, epoch: int) -> Plan:
        return Plan.of_batches(epoch, self.drawn(epoch))

    def drawn(self, epoch: int) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(1_000 * self.seed + epoch)
        chosen = [torch.rand(23, generator=draw) < self.rate for _ in range(self.batches)]
        return [row.nonzero()[:, 0] for row in chosen if row.any()]


class TokenBudget(Loader):
    """As many neighbours as have so many tokens together, at most."""

    def __init__(self, data, lengths: list[int], budget: int) -> None:
        super().__init__(data)
        self.lengths, self.budget = lengths, budget

    def plan(self, epoch: int) -> Plan:
        batches, tokens = [[0]], self.lengths[0]
        for sample, length in list(enumerate(self.lengths))[1:]:
            if tokens + length > self.budget:
                batches.append([])
                tokens = 0
            batches[-1].append(sample)
            tokens += length
        return Plan.of_batches(epoch, batches)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def trainer(loader: Loader, **settings) -> Trainer:
    net = model()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return Trainer(net, nn.MSELoss(), sgd, loader, precision="fp64", device="cpu", **settings)


def by_hand(loader: Poisson, epochs: int) -> tuple[nn.Module, list[float]]:
    """The plain loop; its weights, and the mean loss over samples of each epoch."""
    net = model()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    means = []
    for epoch in range(epochs):
        losses, sizes = [], []
        for rows in loader.drawn(epoch):
            sgd.zero_grad()
            loss = F.mse_loss(net(X[rows]), Y[rows])
            loss.backward()
            sgd.step()
            losses.append(loss.item() * len(rows))
            sizes.append(len(rows))
        means.append(math.fsum(losses) / sum(sizes))
    return net, means


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y), list(zip(X, Y, strict=True))])
def test_training_has_the_bits_of_the_loop_by_hand(data):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 23

        def __getitem__(self, number):
            return data[number]

    loader = Poisson(Pairs() if isinstance(data, list) else data)
    sizes = {len(batch) for batch in loader}
    assert len(sizes) > 2
    ours = trainer(loader)
    history = ours.fit(4)
    net, means = by_hand(loader, 4)
    assert same_bits(ours.model, net)
    assert history.train_loss == pytest.approx(means, rel=1e-12)
    assert ours.step == sum(len(loader.drawn(epoch)) for epoch in range(4)) == loader.updates(4)
    assert (loader.smallest_batch(4), loader.largest_batch(4)) == (
        min(len(b) for e in range(4) for b in loader.drawn(e)),
        max(len(b) for e in range(4) for b in loader.drawn(e)),
    )


@pytest.mark.parametrize("steps", [1, 7, 11])
def test_a_run_that_stops_in_mid_epoch_goes_on_to_the_same_bits(steps):
    class StopAt(Callback):
        def __init__(self):
            super().__init__(every_n_steps=1)

        def on_safe_point(self, trainer):
            if trainer.progress.step == steps:
                states.append(trainer.state_dict())
                trainer.stop("enough")

    states: list = []
    first = trainer(Poisson((X, Y)), callbacks=[StopAt()])
    first.fit(4)
    assert first.step == steps
    second = trainer(Poisson((X, Y)))
    second.load_state_dict(states[0])
    second.fit(4)
    assert same_bits(second.model, by_hand(Poisson((X, Y)), 4)[0])
    other = trainer(Poisson((X, Y), rate=0.3))
    with pytest.raises(Exception, match=r"the data or loader is another: rate 0\.2 in the state"):
        other.load_state_dict(states[0])


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_each_batch_and_end_with_the_weights_of_one(ranks):
    loader = Poisson((X, Y))
    plan = loader.plan(0)
    for number, rows in enumerate(loader.drawn(0)):
        shares = [plan.share(rank, ranks).batch_indices(number) for rank in range(ranks)]
        assert torch.equal(torch.cat(shares), rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    trainers = [trainer(Poisson((X, Y))) for _ in range(ranks)]  # draws, which threads must not

    def job(world):
        ours = trainers[world.rank]
        ours.world = ours.microbatches.world = world
        ours.fit(3)
        return [p.detach() for p in ours.model.parameters()]

    net, _ = by_hand(loader, 3)
    for weights in on_threads(ranks, job):
        for ours, theirs in zip(weights, net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("settings", [{"microbatch_size": 2}, {"microbatch_size": 4}])
def test_microbatches_cut_each_batch(settings):
    ours = trainer(Poisson((X, Y)), **settings)
    ours.fit(3)
    net, _ = by_hand(Poisson((X, Y)), 3)
    for mine, theirs in zip(ours.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_token_budget_is_kept():
    lengths = [1 + 7 * i % 5 for i in range(23)]
    plan = TokenBudget((X, Y), lengths, 8).plan(0)
    tokens = [sum(lengths[i] for i in plan.batch_indices(k).tolist()) for k in range(len(plan))]
    assert max(tokens) <= 8
    assert plan.take(0, 23).tolist() == list(range(23))
    assert [plan.first_draw(k) for k in (0, len(plan))] == [0, 23]
    assert [plan.batches_with(draws) for draws in (1, plan.sizes[0], plan.sizes[0] + 1, 23)] == [
        *(1, 1, 2, len(plan)),
    ]


@pytest.mark.skipif(not is_installed(), reason="engine scan needs jax")
def test_scan_refuses_batches_of_several_sizes_by_name():
    with pytest.raises(ConfigError) as caught:
        trainer(Poisson((X, Y)), engine="scan")
    assert str(caught.value) == (
        "engine: scan can't run this: the batches of an epoch are of several sizes; use eager"
    )


@pytest.mark.skipif(not is_installed(), reason="engine scan needs jax")
def test_scan_refuses_them_in_a_later_epoch_too_and_auto_goes_on_eagerly():
    class Later(Poisson):
        def plan(self, epoch: int) -> Plan:
            return super().plan(epoch) if epoch else Plan(0, 23, 4, None)

    with pytest.raises(ConfigError, match="the batches of an epoch are of several sizes"):
        trainer(Later((X, Y)), engine="scan").fit(2)
    ours = trainer(Later((X, Y)), engine="auto")
    ours.fit(2)
    assert ours.choice.name == "eager"


def test_phases_may_have_such_a_loader():
    loader = PhasedLoader([(2, Poisson((X, Y))), (None, Poisson((X, Y), rate=0.5))])
    assert loader.extent == "23 samples, 9 updates in the first epoch"
    ours = trainer(loader)
    ours.fit(3)
    assert ours.step == loader.updates(3)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "gave no batch in epoch 2; give at least one"),
        (
            [[1], []],
            "gave as batch 1 of epoch 2 no row of indices, but torch.float32 of shape [0]; "
            "leave out batches without samples",
        ),
        (
            [[0.5]],
            "gave as batch 0 of epoch 2 no row of indices, but torch.float32 of shape [1]; "
            "leave out batches without samples",
        ),
    ],
)
def test_batches_that_are_no_rows_of_indices_are_refused(batches, said):
    with pytest.raises(ConfigError) as caught:
        Plan.of_batches(2, batches)
    assert str(caught.value) == f"loader: {said}"


MODULE = '''
import torch
from gdtrain import Loader, Plan, register_loader


@register_loader("poisson")
class Poisson(Loader):
    """Each sample is in each batch with the same probability."""

    def __init__(self, data, rate: float, batches: int = 6, seed: int = 0):
        super().__init__(data, seed=seed)
        self.rate, self.batches = rate, batches

    def plan(self, epoch):
        draw = torch.Generator().manual_seed(1_000 * self.seed + epoch)
        draws = torch.rand(self.batches, self.num_samples, generator=draw)
        chosen = list(draws < self.rate)
        return Plan.of_batches(epoch, [row.nonzero()[:, 0] for row in chosen if row.any()])
'''
CONFIG = """\
seed: 3
data: {source: two_moons, num_samples: 40}
model: mlp
loss: cross_entropy
loader: {name: poisson, rate: 0.2}
optimizer: {lr: 0.1}
epochs: 3
log: {picture: false}
"""


def test_a_configuration_names_one_and_its_run_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("uneven.py").write_text(MODULE, "utf-8")
    Path("a.yaml").write_text(CONFIG, "utf-8")
    command = ["--config", "a.yaml", "--import", "uneven", "--output-dir"]
    assert main([*command, "whole"]) == 0
    assert main([*command, "parts", "epochs=1"]) == 0
    assert main([*command, "parts", "--resume"]) == 0
    assert "resuming from parts/checkpoints/" in capsys.readouterr().err
    assert same_bits(load_run("whole").model, load_run("parts").model)
    assert main([*command, "bad", "loader.rate=much"]) == 2
    said = "command line:1:13: loader.rate: must be a number, got 'much'\n"
    assert capsys.readouterr().err == said
