"""What ranks exchange is looked up when it is used: new layers, sparse gradients, looks, memory."""

import copy

import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Batch, BatchLoader, Callback, MiniBatchLoader, Prequential, Trainer
from gdtrain.analysis.noise_scale import gradient_noise
from gdtrain.analysis.sharpness import largest_eigenvalue
from gdtrain.errors import DeviceError, NonFiniteError
from gdtrain.training.descent import gathered
from gdtrain.training.evaluating.metrics import accuracy
from gdtrain.training.placement import exchange
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.exchange import Total
from gdtrain.training.safety.finite_guard import NotFinite

draw = torch.Generator().manual_seed(3)
X = torch.randn(12, 3, generator=draw, dtype=torch.float64)
Y = torch.randn(12, 1, generator=draw, dtype=torch.float64)


class Net(nn.Module):
    """Two layers, of which the loss may not use one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body = nn.Linear(3, 1).double(), nn.Linear(3, 3).double()
        self.unused = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class AtEpochEnd(Callback):
    def __init__(self, change) -> None:
        super().__init__(every_n_epochs=1)
        self.change = change

    def on_epoch_end(self, trainer: Trainer, record: dict) -> None:
        self.change(record["epoch"], trainer.model, trainer.optimizer)


def unfreeze(epoch: int, model: nn.Module, optimizer) -> None:
    model.body.requires_grad_(epoch == 1)  # and frozen again


def join(epoch: int, model: nn.Module, optimizer) -> None:
    if epoch == 1:
        model.body.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.05})


def replace(epoch: int, model: nn.Module, optimizer) -> None:
    """A layer in the place of another."""
    if epoch == 2:
        model.head = nn.Linear(3, 1).double()
        nn.init.constant_(model.head.weight, 0.3)
        nn.init.zeros_(model.head.bias)
        optimizer.param_groups[0]["params"] = [*model.parameters()]


@pytest.mark.parametrize("change", [unfreeze, join, replace])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_is_trained_may_change_in_mid_run(change, optimizer: str, ranks: int) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Net()
        model.body.requires_grad_(False)
        held = model.head.parameters() if change is join else model.parameters()
        return model, getattr(torch.optim, optimizer)(held, lr=0.1)

    hand, its_optimizer = made()
    hand.unused.requires_grad_(False)
    for epoch in range(1, 5):
        its_optimizer.zero_grad()
        F.mse_loss(hand(X), Y).backward()
        its_optimizer.step()
        change(epoch, hand, its_optimizer)
    trainers = []
    for _ in range(ranks):
        model, its = made()
        model.unused.requires_grad_(False)
        trainers.append(
            Trainer(
                model, nn.MSELoss(), its, BatchLoader((X, Y)), callbacks=[AtEpochEnd(change)],
                device="cpu",
            )
        )  # fmt: skip

    def work(world: World) -> nn.Module:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.fit(4)
        return trainer.model

    for got in on_threads(ranks, work):
        for mine, theirs in zip(got.parameters(), hand.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
            assert (mine.grad is None) == (theirs.grad is None)


# ── sparse gradients ────────────────────────────────────────────────────────────────────────────


class Bag(nn.Module):
    """Sums embeddings; the same table, used densely too, if asked to."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4, sparse=True).double()
        self.head, self.tied = nn.Linear(4, 1).double(), tied

    def forward(self, words: Tensor) -> Tensor:
        output = self.head(self.table(words).sum(1))
        return output + self.table.weight.square().mean() if self.tied else output


WORDS = torch.randint(8, (11, 3), generator=draw)  # the last row is never used
TARGETS = torch.randn(11, 1, generator=draw, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("optimizer", ["SGD", "SparseAdam", "Adagrad"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_sparse_gradients_are_added_up(optimizer: str, ranks: int) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Bag(tied=False)
        model.head.requires_grad_(False)
        return model, getattr(torch.optim, optimizer)(model.table.parameters(), lr=0.1)

    hand, its_optimizer = made()
    for words, targets in [*zip(WORDS.split(2), TARGETS.split(2), strict=True)] * 2:
        its_optimizer.zero_grad()
        F.mse_loss(hand(words), targets).backward()
        its_optimizer.step()
    loader = MiniBatchLoader((WORDS, TARGETS), 2, order="sequential")
    trainers = [
        Trainer(model, nn.MSELoss(), its, loader, device="cpu")
        for model, its in (made() for _ in range(ranks))
    ]

    def work(world: World) -> tuple[nn.Module, bool]:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.fit(2)
        return trainer.model, trainer.model.table.weight.grad.is_sparse

    for got, is_sparse in on_threads(ranks, work):  # of the last batch, of one, some have no share
        assert is_sparse
        assert torch.allclose(got.table.weight, hand.table.weight, rtol=1e-9, atol=1e-12)


def test_a_gradient_that_is_sparse_here_and_dense_there() -> None:
    model = Bag(tied=True)
    F.mse_loss(model(WORDS), TARGETS).backward()
    trainers = []
    for _ in range(2):
        same = Bag(tied=True)
        optimizer = torch.optim.SGD(same.parameters(), lr=0.1)
        loader = BatchLoader((WORDS, TARGETS))
        trainers.append(Trainer(same, nn.MSELoss(), optimizer, loader, device="cpu"))

    def work(world: World) -> Tensor:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.model.tied = world.rank == 0
        trainer.batch_gradient(next(trainer.read(trainer.loader)))
        return trainer.model.table.weight.grad

    trainers[1].model.tied = False
    # The term of the table alone is in rank 0's loss, which is 5 samples' of 11.
    plain = Bag(tied=False)
    both = F.mse_loss(trainers[0].model(WORDS[:5]), TARGETS[:5]) * 5 / 11
    both = both + F.mse_loss(plain(WORDS[5:]), TARGETS[5:]) * 6 / 11
    table, other = torch.autograd.grad(both, [trainers[0].model.table.weight, plain.table.weight])
    for got in on_threads(2, work):
        assert torch.allclose(got, (table + other).to_dense(), rtol=1e-9, atol=1e-12)


def test_a_complex_parameter() -> None:
    class Spiral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.tensor([1.0 + 2.0j, 0.5j, -1.0], dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.turn).sum(1, keepdim=True).abs()

    alone = Spiral()
    F.mse_loss(alone(X), Y).backward()
    trainers = []
    for _ in range(2):
        model = Spiral()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainers.append(Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu"))

    def work(world: World) -> Tensor:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.batch_gradient(next(trainer.read(trainer.loader)))
        return trainer.model.turn.grad

    for got in on_threads(2, work):
        assert torch.allclose(got, alone.turn.grad, rtol=1e-12)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t)])
def test_a_batch_whose_targets_are_all_ignored_stops_all_ranks(loss, size: int | None) -> None:
    """As it stops one process: its loss is 0/0."""
    labels = (Y[:, 0] > 0).long()
    labels[4:8] = -100

    def made() -> Trainer:
        torch.manual_seed(1)
        model = nn.Linear(3, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = MiniBatchLoader((X, labels), 4, order="sequential")
        return Trainer(model, loss, optimizer, loader, device="cpu", microbatch_size=size)

    alone, trainers = made(), [made() for _ in range(3)]
    with pytest.raises(NonFiniteError, match="loss is nan in epoch 1, step 2"):
        alone.fit(1)

    def work(world: World) -> nn.Module:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        with pytest.raises(NonFiniteError, match="loss is nan in epoch 1, step 2"):
            trainer.fit(1)
        return trainer.model

    for got in on_threads(3, work):
        assert torch.allclose(got.weight, alone.model.weight, rtol=1e-12)


# ── gradients that are not finite ───────────────────────────────────────────────────────────────


class Roots(Trainer):
    """The mean of √|outputs|, which is 0 at 0, where its gradient is NaN."""

    def compute_loss(self, batch: Batch) -> Tensor:
        return self.model(batch.inputs).abs().sqrt().mean()

    def loss_weight(self, batch: Batch) -> int:
        return len(batch)


class Spoil(Callback):
    """Puts a NaN into the gradient where autograd does not see it."""

    def on_before_update(self, trainer: Trainer) -> None:
        trainer.model.weight.grad.data[-1, -1] = float("nan")


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_large_gradient_that_is_not_finite_stops_all_ranks(
    spoiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 1 << 10)
    trainers = []
    for _ in range(2):
        model = nn.Linear(3, 6000, bias=False).double()
        nn.init.constant_(model.weight, float(spoiled))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callbacks = [Spoil()] if spoiled else []
        trainers.append(
            Roots(model, None, optimizer, BatchLoader(X), callbacks=callbacks, device="cpu")
        )

    def work(world: World) -> Tensor:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        with pytest.raises(NonFiniteError, match="gradient"):
            trainer.fit(1)
        return trainer.model.weight

    for weight in on_threads(2, work):
        assert torch.equal(weight, torch.full_like(weight, float(spoiled)))


# ── looks ───────────────────────────────────────────────────────────────────────────────────────


def full_gradient(trainer: Trainer) -> None:
    """Ask for the gradient of other samples, and put the update's own back."""
    own = [parameter.grad for parameter in trainer.model.parameters()]
    for parameter in trainer.model.parameters():
        parameter.grad = None
    trainer.batch_gradient(next(iter(trainer.read(BatchLoader((-X, Y))))))
    for parameter, gradient in zip(trainer.model.parameters(), own, strict=True):
        parameter.grad = gradient


LOOKS = {
    "full gradient": full_gradient,
    "sharpness": largest_eigenvalue,
    "noise": gradient_noise,
    "evaluate": lambda trainer: trainer.evaluate(),
}


class Look(Callback):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def on_before_update(self, trainer: Trainer) -> None:
        LOOKS[self.what](trainer)


@pytest.mark.parametrize("what", LOOKS)
def test_a_look_before_an_update_does_not_change_it(what: str) -> None:
    hand = Net()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for inputs, targets in zip(X.split(5), Y.split(5), strict=True):
        optimizer.zero_grad()
        F.mse_loss(hand(inputs), targets).backward()
        optimizer.step()
    trainers = []
    for _ in range(2):
        model = Net()
        loader = MiniBatchLoader((X, Y), 5, order="sequential")
        its = torch.optim.SGD(model.parameters(), lr=0.1)
        trainers.append(
            Trainer(model, nn.MSELoss(), its, loader, callbacks=[Look(what)], device="cpu")
        )

    def work(world: World) -> nn.Module:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.fit(1)
        return trainer.model

    for got in on_threads(2, work):
        for mine, theirs in zip(got.parameters(), hand.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_prequential_metrics_are_of_all_ranks() -> None:
    labels = (Y[:, 0] > 0).long()

    def spread(output: Tensor, targets: Tensor) -> Tensor:
        return output.std() + targets.double().std()

    def made() -> Trainer:
        model = nn.Linear(3, 2).double()
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        watch = Prequential(12, {"accuracy": accuracy, "spread": spread})
        loader = MiniBatchLoader((X, labels), 5, order="sequential")
        return Trainer(
            model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.5), loader,
            callbacks=[watch], device="cpu", microbatch_size=2,
        )  # fmt: skip

    expected, trainers = made().fit(1).epochs[-1], [made() for _ in range(3)]

    def work(world: World) -> dict:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.fit(1)
        return trainer.history.epochs[-1]

    for got in on_threads(3, work):
        for name in ("prequential_loss", "prequential_accuracy", "prequential_spread"):
            assert got[name] == pytest.approx(expected[name], rel=1e-12)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


class Hungry(nn.Module):
    """Has memory for a few samples at a time, of which it keeps a running mean and the count."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.most = nn.Linear(3, 1).double(), most
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        if len(x) > self.most:
            raise MemoryError
        return self.layer(x)


def greatest(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().max()


@pytest.mark.parametrize("loss", [nn.MSELoss(), greatest])
@pytest.mark.parametrize("in_float64", [None, "fp64"])
def test_a_failed_attempt_leaves_nothing_behind(loss, in_float64) -> None:
    model = Hungry(2)
    expected = torch.autograd.grad(loss(model.layer(X), Y), [model.layer.weight])[0]
    trainer = Trainer(
        model, loss, torch.optim.SGD(model.parameters(), lr=0.0), BatchLoader((X, Y)), device="cpu",
        microbatch_size="auto", memory_limit="1GB", accumulate_in=in_float64,
    )  # fmt: skip
    trainer.microbatches.size = 9
    state = torch.get_rng_state()
    trainer.fit(1)
    assert torch.allclose(model.layer.weight.grad, expected, rtol=1e-12)
    assert float(model.seen) == 12
    assert trainer.microbatches.size == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("loss", [nn.MSELoss(), greatest])
@pytest.mark.parametrize("look", ["train", "evaluate"])
def test_ranks_halve_their_parts_together(loss, look: str) -> None:
    alone = Hungry(12)
    value = loss(alone.layer(X), Y)
    expected = torch.autograd.grad(value, [alone.layer.weight])[0]
    trainers = []
    for most in (4, 1, 12):
        model = Hungry(most)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainers.append(
            Trainer(
                model, loss, optimizer, BatchLoader((X, Y)), device="cpu",
                microbatch_size="auto", memory_limit="1GB", microbatch_allow=[""],
            )
        )  # fmt: skip
        trainers[-1].microbatches.size = 4 if look == "train" else 12

    def work(world: World) -> tuple[float, Tensor | None, int]:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        if look == "evaluate":
            return trainer.evaluate()["loss"], None, trainer.microbatches.size
        trainer.fit(1)
        gradient = trainer.model.layer.weight.grad
        return trainer.history.train_loss[0], gradient, trainer.microbatches.size

    for found, gradient, size in on_threads(3, work):
        assert found == pytest.approx(float(value.detach()), rel=1e-12)
        assert size == (1 if look == "train" else 12)  # which a look leaves
        assert gradient is None or torch.allclose(gradient, expected, rtol=1e-12)


def test_sizes_are_those_of_the_rank_with_the_least_memory() -> None:
    rows = X.repeat(40, 1)
    trainers = []
    for limit in ("1MB", "20kB"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainers.append(
            Trainer(
                model, nn.MSELoss(), optimizer, BatchLoader((rows, Y.repeat(40, 1))),
                device="cpu", microbatch_size="auto", memory_limit=limit,
            )
        )  # fmt: skip
    model = copy.deepcopy(trainers[0].model)
    expected = float(F.mse_loss(model(rows), Y.repeat(40, 1)).detach())

    def work(world: World) -> tuple[float, float, int]:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.fit(1)
        loss = trainer.history.train_loss[0]
        return loss, trainer.evaluate()["loss"], trainer.microbatches.size

    first, second = on_threads(2, work)
    assert first == pytest.approx(second, rel=1e-12)
    assert first[:2] == pytest.approx((expected, expected), rel=1e-12)
    assert 1 < first[2] < 100


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    model = Hungry(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu", microbatch_size="auto"
    )
    trainer.microbatches.size = 4
    with pytest.raises(DeviceError, match="out of memory with one sample at a time"):
        trainer.fit(1)
    assert float(model.seen) == 0


def test_a_known_total_of_a_gradient_that_has_changed_since_is_not_used() -> None:
    model = nn.Linear(200, 200)  # of so many numbers that their total is taken
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((torch.ones(4, 200), torch.ones(4, 200)))
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
    loss = trainer.batch_gradient(next(iter(loader)))
    gradient = model.weight.grad
    for change in (lambda: None, lambda: gradient.fill_(torch.nan)):
        trainer.guard.totals = [Total(gradient, gradient._version, gradient.sum())]
        change()
        if gradient.isfinite().all():
            trainer.guard.check(loss, gathered(optimizer))
        else:
            with pytest.raises(NotFinite):
                trainer.guard.check(loss, gathered(optimizer))
