"""Any loss over outputs has the loss and the gradient of one pass, however its batch is cut."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from helpers.ranks import on_ranks
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Trainer
from gdtrain.data.batch import Batch
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.placement.distributed import World

N = 20
draw = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=draw, dtype=torch.float64)
OTHER = torch.randn(N, 4, generator=draw, dtype=torch.float64)
Y = torch.randn(N, 3, generator=draw, dtype=torch.float64)
LABELS = torch.randint(3, (N,), generator=draw)
TOKENS = torch.randint(3, (N, 5), generator=draw)
TOKENS[torch.rand(N, 5, generator=draw) < 0.4] = -100
WEIGHTS = torch.rand(N, generator=draw, dtype=torch.float64)


# ── losses that are not a mean over samples ─────────────────────────────────────────────────────


def info_nce(outputs, _):
    """van den Oord, Li and Vinyals (2018), equation 4, both ways."""
    one, other, temperature = outputs
    scores = F.normalize(one) @ F.normalize(other).T * temperature.exp()
    places = torch.arange(len(scores))
    return (F.cross_entropy(scores, places) + F.cross_entropy(scores.T, places)) / 2


def ranking(output, targets):
    """How often a larger target has the smaller output, smoothly, over all pairs."""
    score, wanted = output[:, 0], targets[:, 0]
    pairs = (wanted[:, None] > wanted[None, :]).double()
    return (pairs * F.softplus(score[None, :] - score[:, None])).sum() / pairs.sum()


def weighted(output, targets):
    """Σ w l / Σ w."""
    values, weights = targets["y"], targets["w"]
    return (weights * (output - values).square().mean(1)).sum() / weights.sum()


def token_mean(output, targets):
    """Over all tokens that are not ignored, of any sample."""
    scores = output[:, :, None] + torch.arange(5).double() / 3
    return F.cross_entropy(scores, targets)


def hardest(output, targets):
    return (output - targets).square().sum(1).max()


def in_place(output, targets):
    output -= output.mean(0)
    return (output - targets).pow(4).sum() / 7


FOCAL = lambda output, targets: (  # noqa: E731
    (1 - F.softmax(output, 1).gather(1, targets[:, None])[:, 0]).square()
    * F.cross_entropy(output, targets, reduction="none")
).mean()


class Pairs(nn.Module):
    """Encodes two views, and has a temperature that is of no sample."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.encoder(one), torch.tanh(self.encoder(other)), self.temperature * 2


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    inputs: object
    targets: object


CASES = {
    "info_nce": Case(Pairs, info_nce, (X, OTHER), None),
    "ranking": Case(network, ranking, X, Y),
    "weighted": Case(network, weighted, X, {"y": Y, "w": WEIGHTS}),
    "token_mean": Case(network, token_mean, X, TOKENS),
    "focal": Case(network, FOCAL, X, LABELS),
    "hardest": Case(network, hardest, X, Y),
    "in_place": Case(network, in_place, X, Y),
}


def made(name: str, **options) -> tuple[Trainer, Batch]:
    case = CASES[name]
    torch.manual_seed(1)
    model = case.model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, case.loss, optimizer, device="cpu", **options)
    return trainer, Batch(case.inputs, case.targets, torch.arange(N))


def by_hand(name: str) -> list[Tensor]:
    """Loss and gradients of one pass, by autograd alone."""
    case = CASES[name]
    torch.manual_seed(1)
    model = case.model().double()
    inputs = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
    loss = case.loss(model(*inputs), case.targets)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def gradient(trainer: Trainer, batch: Batch) -> list[Tensor]:
    loss = trainer.batch_gradient(batch)
    return [loss, *(p.grad for p in trainer.model.parameters())]


def check(got: list[Tensor], expected: list[Tensor]) -> None:
    """The loss, and the gradient as one vector: a bias may have one that is 0 but for rounding."""
    for mine, theirs in ((got[:1], expected[:1]), (got[1:], expected[1:])):
        a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (mine, theirs))
        assert (a - b).norm() <= 1e-12 * b.norm()


def rows(tree, cut: slice):
    if isinstance(tree, tuple):
        return tuple(part[cut] for part in tree)
    if isinstance(tree, dict):
        return {key: part[cut] for key, part in tree.items()}
    return tree if tree is None else tree[cut]


def share(batch: Batch, world: World) -> Batch:
    """This rank's: 0, 1 or more samples fewer than the others'."""
    edges = [0, 3, 11, N] if world.size == 3 else [0, 7, N]
    cut = slice(edges[world.rank], edges[world.rank + 1])
    return Batch(rows(batch.inputs, cut), rows(batch.targets, cut), batch.indices[cut])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 3, 7, 19])
def test_microbatches_have_the_gradient_of_one_pass(name: str, size: int) -> None:
    check(gradient(*made(name, microbatch_size=size)), by_hand(name))


@pytest.mark.few(14)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_ranks_have_the_gradient_of_one_pass(name: str, ranks: int, size: int | None) -> None:
    each = [made(name, microbatch_size=size) for _ in range(ranks)]

    def work(world: World) -> list[Tensor]:
        trainer, batch = each[world.rank]
        trainer.world = trainer.microbatches.world = world
        return gradient(trainer, share(batch, world))

    for got in on_threads(ranks, work):
        check(got, by_hand(name))


def on_a_rank(rank: int) -> dict[str, list[Tensor]]:
    """Of every case, on a process: loss and gradients, and those of two samples on three ranks."""
    found = {}
    for name in CASES:
        trainer, batch = made(name, microbatch_size=3)
        found[name] = gradient(trainer, share(batch, trainer.world))
    trainer, batch = made("hardest")
    empty = [0, 0, 1, 2] if trainer.world.size == 3 else [0, 0, 2]
    cut = slice(empty[rank], empty[rank + 1])
    found["empty share"] = gradient(
        trainer, Batch(batch.inputs[cut], batch.targets[cut], batch.indices[cut])
    )
    return found


@pytest.mark.few(1)
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_have_the_gradient_of_one_pass(ranks: int) -> None:
    torch.manual_seed(1)
    model = network().double()
    loss = hardest(model(X[:2]), Y[:2])
    of_two = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for found in on_ranks(on_a_rank, ranks=ranks):
        for name in CASES:
            check(found[name], by_hand(name))
        check(found["empty share"], of_two)


# ── what a pass does beside ─────────────────────────────────────────────────────────────────────


class Watched(nn.Module):
    """Has dropout, and buffers that are moved, grown and assigned by what it sees, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen = torch.cat([self.seen, x.detach()[:, 0]])
        self.total += x.detach().sum()
        return F.dropout(self.layer(x), 0.5)


def test_dropout_draws_the_same_masks_in_both_passes_and_buffers_move_once() -> None:
    torch.manual_seed(1)
    model = Watched().double()
    trainer = Trainer(
        model, hardest, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu",
        microbatch_size=6, microbatch_allow=[""],
    )  # fmt: skip
    trainer.batch_gradient(Batch(X, Y, torch.arange(N)))  # the first one is checked for buffers
    model.seen, model.total, model.passes = torch.zeros(0), torch.zeros(()).double(), 0
    torch.manual_seed(7)
    got = gradient(trainer, Batch(X, Y, torch.arange(N)))
    after = torch.get_rng_state()

    torch.manual_seed(7)
    outputs = torch.cat([F.dropout(model.layer(part), 0.5) for part in X.split(6)])
    loss = hardest(outputs, Y)
    check(got, [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(model.seen, X[:, 0])
    assert model.total == pytest.approx(float(X.sum()))
    assert model.passes == 4 + 3  # the last part once


class Moving(nn.Module):
    """A loss with a parameter, and a buffer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return (self.scale * output - targets).square().sum() / output.square().sum()


def with_moving_loss(
    model: nn.Module, world: World, size: int | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    model, loss = copy.deepcopy(model), Moving()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    trainer = Trainer(model, loss, optimizer, device="cpu", microbatch_size=size)
    trainer.world = trainer.microbatches.world = world
    batch = Batch(X, Y, torch.arange(N))
    value = trainer.batch_gradient(batch if world.size == 1 else share(batch, world))
    return value, loss.scale.grad, model[0].weight.grad, int(loss.calls)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_loss_with_parameters_and_state_is_called_once(ranks: int) -> None:
    torch.manual_seed(1)
    model, loss = network().double(), Moving()
    value = loss(model(X), Y)
    expected = torch.autograd.grad(value, [loss.scale, model[0].weight])
    for size in (4, 7):
        work = partial(with_moving_loss, model, size=size)
        for got in on_threads(ranks, work):
            check([*got[:3]], [value.detach(), *expected])
            assert got[3] == 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_loss_that_looks_at_the_weights_counts_them_once(ranks: int) -> None:
    def made() -> Trainer:
        torch.manual_seed(1)
        model = network().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(
            model, lambda o, t: hardest(o, t) + model[0].weight.square().sum(), optimizer,
            device="cpu", microbatch_size=3,
        )  # fmt: skip

    trainers, hand = [made() for _ in range(ranks)], made()
    value = hand.loss(hand.model(X), Y)
    expected = torch.autograd.grad(value, list(hand.model.parameters()))

    def work(world: World) -> list[Tensor]:
        trainer, batch = trainers[world.rank], Batch(X, Y, torch.arange(N))
        trainer.world = trainer.microbatches.world = world
        return gradient(trainer, batch if ranks == 1 else share(batch, world))

    for got in on_threads(ranks, work):
        check(got, [value.detach(), *expected])


class Potential(nn.Module):
    """A force: the derivative of an energy, taken in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -force


def test_a_model_that_differentiates_in_forward() -> None:
    torch.manual_seed(1)
    model = Potential().double()
    value = (model(X) - OTHER).square().sum(1).max()
    weights = [model.energy[0].weight, model.energy[2].weight]
    expected = torch.autograd.grad(value, weights)
    trainer = Trainer(
        model, hardest, torch.optim.SGD(model.parameters(), lr=0.0), BatchLoader((X, OTHER)),
        device="cpu", microbatch_size=7,
    )  # fmt: skip
    trainer.fit(1)
    check([value.detach(), *(p.grad for p in weights)], [value.detach(), *expected])
    assert trainer.history.train_loss == pytest.approx([float(value.detach())], rel=1e-12)
    assert trainer.evaluate()["loss"] == pytest.approx(float(value.detach()), rel=1e-12)
    assert torch.allclose(trainer.predict(X), model(X).detach(), rtol=1e-12)


class Dictionary(nn.Module):
    """A dict with a tensor of rows, one that the loss does not use, and whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        scores = self.layer(x)
        return {"scores": scores, "unused": self.unused(x), "best": scores.argmax(1), "name": "x"}


def test_outputs_may_be_a_dict() -> None:
    def loss(output, targets):
        assert output["name"] == "x"
        right = output["best"] == targets
        return F.cross_entropy(output["scores"], targets, reduction="none")[right].sum() / len(
            right
        )

    torch.manual_seed(1)
    model = Dictionary().double()
    expected = torch.autograd.grad(loss(model(X), LABELS), [model.layer.weight])
    trainer = Trainer(
        model, loss, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu", microbatch_size=6
    )
    trainer.batch_gradient(Batch(X, LABELS, torch.arange(N)))
    check([model.layer.weight.grad] * 2, [*expected] * 2)
    assert model.unused.weight.grad is None


class InPlace(nn.Module):
    """Standardises its input where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x -= 1.0
        x /= 2.0
        return self.layer(x)


def test_a_model_that_works_in_place_sees_each_sample_once() -> None:
    torch.manual_seed(1)
    model = InPlace().double()
    expected = torch.autograd.grad(hardest(model.layer((X - 1) / 2), Y), [model.layer.weight])
    trainer = Trainer(
        model, hardest, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu", microbatch_size=6
    )
    trainer.batch_gradient(Batch(X.clone(), Y, torch.arange(N)))
    check([model.layer.weight.grad] * 2, [*expected] * 2)


def test_sums_in_float64_and_frozen_layers() -> None:
    trainer, batch = made("hardest", microbatch_size=3, accumulate_in="fp64")
    trainer.model[0].requires_grad_(False)
    loss = trainer.batch_gradient(batch)
    assert trainer.model[0].weight.grad is None
    expected = by_hand("hardest")
    check([loss, *(p.grad for p in trainer.model[2].parameters())], [expected[0], *expected[3:]])


# ── what is refused, and the way out ────────────────────────────────────────────────────────────


class OfTheBatch(nn.Module):
    """Beside its outputs, gives a number that is another one for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x.mean()


def test_outputs_without_a_row_for_each_sample_are_refused() -> None:
    model = OfTheBatch().double()
    trainer = Trainer(
        model, lambda output, targets: output[0].square().max() + output[1],
        torch.optim.SGD(model.parameters(), lr=0.1), device="cpu", microbatch_size=6,
    )  # fmt: skip
    with pytest.raises(ModelError) as caught:
        trainer.batch_gradient(Batch(X, Y, torch.arange(N)))
    assert str(caught.value) == (
        "outputs[1] have shapes [], [], … for parts of 6, 6, … samples, and no row for each "
        "sample, so those of a whole batch can't be made of them"
    )


def test_an_own_loss_weight_takes_one_pass() -> None:
    """A lambda that is known to its user to be a mean over samples need not be computed twice."""

    class Mean(Trainer):
        def loss_weight(self, batch: Batch) -> int:
            return len(batch)

    torch.manual_seed(1)
    model, passes = network().double(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    loss = lambda output, targets: (output - targets).square().mean()  # noqa: E731
    trainer = Mean(
        model, loss, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu", microbatch_size=6
    )
    got = gradient(trainer, Batch(X, Y, torch.arange(N)))
    assert len(passes) == 4
    value = loss(model(X), Y)
    check(got, [value.detach(), *torch.autograd.grad(value, list(model.parameters()))])


class Own(Trainer):
    def compute_loss(self, batch: Batch) -> Tensor:
        return F.mse_loss(self.model(batch.inputs), batch.targets)


def test_an_own_compute_loss_that_is_to_be_cut_must_say_its_weight() -> None:
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"device": "cpu", "microbatch_size": 6}
    trainer = Own(model, None, optimizer, BatchLoader((X, Y)), **options)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "loss_weight: missing: batches are cut (microbatch_size), and it is not known what the "
        "loss of Own.compute_loss is divided by; for a mean over samples, give the class "
        "`def loss_weight(self, batch): return len(batch)`"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    Own(model, None, optimizer, BatchLoader((X, Y)), device="cpu").fit(1)


def test_a_loss_weight_may_be_a_tensor_and_weighs_parts() -> None:
    class Weighted(Trainer):
        def compute_loss(self, batch: Batch) -> Tensor:
            each = (self.model(batch.inputs) - batch.targets).square().mean(1)
            weights = 1.0 + batch.indices
            return (weights * each).sum() / weights.sum()

        def loss_weight(self, batch: Batch) -> Tensor:
            return (1.0 + batch.indices).sum()

    start = network().double()

    def work(world: World, size: int | None) -> list[Tensor]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Weighted(model, None, optimizer, device="cpu", microbatch_size=size)
        trainer.world = trainer.microbatches.world = world
        batch = Batch(X, Y, torch.arange(N))
        return gradient(trainer, batch if world.size == 1 else share(batch, world))

    (expected,) = on_threads(1, lambda world: work(world, None))
    for ranks, size in [(1, 7), (1, 1), (2, None), (3, 4)]:
        for got in on_threads(ranks, lambda world, size=size: work(world, size)):
            check(got, expected)
