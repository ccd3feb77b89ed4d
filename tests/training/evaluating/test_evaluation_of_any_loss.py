"""evaluate gives what one pass over all samples gives, for any loss and any metric."""

import pickle
from functools import partial

import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer, mean_over_samples
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.evaluating.metrics import accuracy, mean_absolute_error
from gdtrain.training.placement.distributed import World

N = 2100  # three parts
draw = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=draw, dtype=torch.float64)
Y = torch.randn(N, 4, generator=draw, dtype=torch.float64)
LABELS = torch.randint(4, (N,), generator=draw)
LABELS[1100:2090] = -100
W = torch.tensor([0.1, 1.0, 3.0, 0.5], dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 4)).double()


def make(loss, targets=Y, kind=Trainer, loader=BatchLoader, model=None, **options) -> Trainer:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(model, loss, optimizer, loader((X, targets)), device="cpu", **options)


def outputs(trainer: Trainer) -> Tensor:
    with torch.no_grad():
        found = trainer.model.eval()(X)
    trainer.model.train()
    return found


def info_nce(output, targets):
    scores = F.normalize(output) @ F.normalize(targets).T / 0.2
    return F.cross_entropy(scores, torch.arange(len(output)))


def over_neighbours(output, targets):
    """Depends on the order of the samples."""
    return ((output[1:] - output[:-1]) * (targets[1:] - targets[:-1])).sum(1).abs().max()


LOSSES = {
    "info_nce": (info_nce, Y),
    "neighbours": (over_neighbours, Y),
    "lambda": (lambda output, targets: F.cross_entropy(output, targets, weight=W), LABELS),
    "function": (F.cross_entropy, LABELS),
    "partial": (partial(F.cross_entropy, weight=W, label_smoothing=0.1), LABELS),
    "module": (nn.CrossEntropyLoss(weight=W), LABELS),
    "sum": (partial(F.mse_loss, reduction="sum"), Y),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", [{}, {"microbatch_size": 999}])
def test_the_loss_is_that_of_one_pass(name: str, options: dict) -> None:
    loss, targets = LOSSES[name]
    trainer = make(loss, targets, loader=partial(MiniBatchLoader, batch_size=64), **options)
    expected = float(loss(outputs(trainer), targets))
    assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.few(5)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_loss_is_that_of_one_pass_on_ranks(name: str, ranks: int) -> None:
    loss, targets = LOSSES[name]
    trainers = [make(loss, targets, metrics={"spread": spread, "f": Counted()}) for _ in range(3)]
    expected = float(loss(outputs(trainers[0]), targets))

    def work(world: World) -> dict[str, float]:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        return trainer.evaluate()

    for got in on_threads(ranks, work):
        assert got["loss"] == pytest.approx(expected, rel=1e-12)
        assert got["spread"] == pytest.approx(float(outputs(trainers[0]).std()), rel=1e-12)
        assert got["f"] == N


# ── in batches ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"microbatch_size": 30}])
@pytest.mark.parametrize("asked", ["by the trainer", "by the call"])
def test_in_batches_it_is_the_mean_over_the_loaders_own(options: dict, asked: str) -> None:
    if asked == "by the trainer":
        options = options | {"evaluate_in": "batches"}
    trainer = make(info_nce, **options)
    loader = MiniBatchLoader((X, Y), 64, seed=3)
    output, total = outputs(trainer), 0.0
    for rows in loader.plan(0).indices.split(64):
        total += float(info_nce(output[rows], Y[rows])) * len(rows)
    in_batches = None if asked == "by the trainer" else True
    got = trainer.evaluate(loader, in_batches=in_batches)["loss"]
    assert got == pytest.approx(total / N, rel=1e-12)
    whole = trainer.evaluate(loader, in_batches=False)["loss"]
    assert whole == pytest.approx(float(info_nce(output, Y)), rel=1e-12)


def test_in_batches_on_ranks_and_by_every_look() -> None:
    loader = MiniBatchLoader((X[:100], Y[:100]), 33, order="sequential")
    trainers = [make(info_nce, evaluate_in="batches", microbatch_size=10) for _ in range(3)]
    output = outputs(trainers[0])[:100]
    parts = zip(output.split(33), Y[:100].split(33), strict=True)
    expected = sum(float(info_nce(o, t)) * len(o) for o, t in parts) / 100

    def work(world: World) -> float:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        return trainer.evaluate(loader)["loss"]

    for got in [*on_threads(1, work), *on_threads(2, work), *on_threads(3, work)]:
        assert got == pytest.approx(expected, rel=1e-12)
    watched = make(info_nce, evaluate_in="batches", validation=loader, model=trainers[0].model)
    watched.optimizer.param_groups[0]["lr"] = 0.0
    assert watched.fit(1).val_loss == pytest.approx([expected], rel=1e-12)


def test_batches_are_weighted_by_what_their_loss_is_divided_by() -> None:
    class Tokens(Trainer):
        def compute_loss(self, batch):
            return F.cross_entropy(self.model(batch.inputs), batch.targets)

        def loss_weight(self, batch):
            return (batch.targets != -100).sum()

    trainer = make(None, LABELS, kind=Tokens)
    expected = float(F.cross_entropy(outputs(trainer), LABELS))
    assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-12)
    loader = MiniBatchLoader((X, LABELS), 500)
    assert trainer.evaluate(loader, in_batches=True)["loss"] == pytest.approx(expected, rel=1e-12)


def test_another_way_to_evaluate_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make(info_nce, evaluate_in="parts")
    assert str(caught.value) == "evaluate_in: must be one of whole, batches; got 'parts'"


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


def test_what_is_needed_at_once_must_fit_the_memory_limit() -> None:
    """2,100 · (4 + 4) numbers of 8 bytes are 134,400."""
    assert make(info_nce, memory_limit=134_400).evaluate()["loss"] > 0
    with pytest.raises(ConfigError) as caught:
        make(info_nce, memory_limit=134_399).evaluate()
    assert str(caught.value) == (
        "memory_limit: the loss, of which it is not known what its mean is over, needs outputs and "
        "targets of all samples at once, 0.1 MiB, which is over 0.1 MiB; raise memory_limit, or "
        "use evaluate_in='batches', or override loss_weight"
    )
    with pytest.raises(ConfigError) as caught:
        make(nn.MSELoss(), metrics={"spread": spread}, memory_limit="100kB").evaluate()
    assert str(caught.value) == (
        "memory_limit: metric 'spread', a function of all of them, needs outputs and targets of "
        "all samples at once, 0.1 MiB, which is over 0.1 MiB; raise memory_limit, or use "
        "mean_over_samples, or an object with update, compute and reset"
    )
    trainer = make(info_nce, memory_limit="100kB", evaluate_in="batches")
    assert trainer.evaluate(MiniBatchLoader((X, Y), 100))["loss"] > 0
    streams = {"mae": mean_absolute_error, "count": Counted()}
    assert make(nn.MSELoss(), metrics=streams, memory_limit="1kB").evaluate()["count"] == N


def test_ranks_refuse_together() -> None:
    trainers = [make(info_nce, memory_limit=limit) for limit in ("1GB", "1kB")]

    def work(world: World) -> str:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        with pytest.raises(ConfigError) as caught:
            trainer.evaluate()
        return str(caught.value)

    first, second = on_threads(2, work)
    assert first == second
    assert first.startswith("memory_limit: the loss, ")


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────


def spread(output: Tensor, targets: Tensor) -> Tensor:
    return output.std()


class Counted:
    """A metric in the style of torchmetrics: it has a state, and streams."""

    def __init__(self) -> None:
        self.count = 7

    def update(self, output: Tensor, targets: Tensor) -> None:
        assert len(output) == len(targets)
        self.count += len(output)

    def compute(self) -> int:
        return self.count

    def reset(self) -> None:
        self.count = 0


def test_a_function_is_called_once_and_means_and_objects_stream() -> None:
    calls = []

    def median(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(output))
        return (output - targets).abs().median()

    counted = Counted()
    metrics = {
        "median": median,
        "mae": mean_over_samples(lambda output, targets: (output - targets).abs().mean()),
        "counted": counted,
    }
    trainer = make(nn.MSELoss(), metrics=metrics)
    found, error = trainer.evaluate(), (outputs(trainer) - Y).abs()
    assert calls == [N]
    assert found["median"] == float(error.median())
    assert found["mae"] == pytest.approx(float(error.mean()), rel=1e-13)
    assert found["counted"] == N
    assert counted.count == 0
    assert list(found) == ["loss", "median", "mae", "counted"]
    assert trainer.evaluate() == found


def test_mean_over_samples_is_a_decorator_and_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(accuracy)) is accuracy
    again = pickle.loads(pickle.dumps(mean_over_samples(spread)))
    assert float(again(Y, Y)) == float(Y.std())
    assert accuracy.__doc__.startswith("Share of samples")


@pytest.mark.parametrize("metrics", [3, [3], {"mae": 3}])
def test_metrics_that_are_none_are_refused(metrics) -> None:
    with pytest.raises(ConfigError) as caught:
        make(nn.MSELoss(), metrics=metrics)
    assert str(caught.value).startswith(
        "metrics: must be a list of names, such as ['mae'], or a mapping of names to functions "
        "(output, targets) -> number, or to objects with update, compute and reset; "
    )


@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("form", ["module", "partial"])
def test_accuracy_leaves_out_what_the_loss_ignores(ignore_index: int, form: str) -> None:
    targets = LABELS.clamp(min=0) if ignore_index == 2 else LABELS
    loss = nn.CrossEntropyLoss(ignore_index=ignore_index)
    if form == "partial":
        loss = partial(F.cross_entropy, ignore_index=ignore_index)
    trainer = make(loss, targets, metrics={"accuracy": accuracy})
    counted = targets != ignore_index
    right = outputs(trainer).argmax(1)[counted] == targets[counted]
    assert trainer.evaluate()["accuracy"] == pytest.approx(float(right.double().mean()), rel=1e-13)


# ── predictions ─────────────────────────────────────────────────────────────────────────────────


class Two(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(3, 2), form

    def forward(self, x: Tensor):
        return self.form(self.layer(x), self.layer(x).argmax(1))


@pytest.mark.parametrize("rows", [0, 1, N])
def test_predictions_keep_the_structure_of_the_outputs(rows: int) -> None:
    torch.manual_seed(0)
    for form in (lambda a, b: (a, b), lambda a, b: {"a": a, "b": [b]}):
        model = Two(form).double()
        trainer = make(lambda output, targets: output[0].sum(), model=model, microbatch_size=999)
        got = trainer.predict(X[:rows])
        scores = model.layer(X[:rows]).detach()
        a, (b, *_) = (got["a"], got["b"]) if isinstance(got, dict) else (got[0], [got[1]])
        assert torch.allclose(a, scores, rtol=1e-13)
        assert torch.equal(b, scores.argmax(1))
        assert b.dtype == torch.int64


def test_predictions_of_inputs_in_a_dict_and_of_uneven_ones() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, given):
            return self.layer(given["x"]) + given["shift"]

    model = Named().double()
    trainer = make(lambda output, targets: output.sum(), model=model)
    got = trainer.predict({"x": X.numpy(), "shift": Y[:, :1]})
    assert torch.allclose(got, (model.layer(X) + Y[:, :1]).detach(), rtol=1e-13)
    with pytest.raises(ValueError, match="inputs: different numbers of samples: 3 and 2100"):
        trainer.predict({"x": X, "shift": Y[:3]})


def test_outputs_that_are_not_of_the_samples_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean(0)

    trainer = make(nn.MSELoss(), model=Mean().double(), microbatch_size=999)
    with pytest.raises(ModelError, match="outputs have shapes"):
        trainer.predict(X)


# ── what an epoch reports ───────────────────────────────────────────────────────────────────────

EPOCH_LOSSES = {
    "module": nn.CrossEntropyLoss(weight=W),
    "function": F.cross_entropy,
    "partial": partial(F.cross_entropy, weight=W),
    "mse": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", EPOCH_LOSSES)
@pytest.mark.parametrize("engine", ["eager", "scan"])
@pytest.mark.parametrize("kind", [BatchLoader, SampleLoader, MiniBatchLoader])
def test_train_loss_is_the_mean_over_what_counts(name: str, engine: str, kind) -> None:
    """With lr 0 it is the loss of the data set, whatever targets are ignored."""
    if engine == "scan":
        pytest.importorskip("jax")
    loss = EPOCH_LOSSES[name]
    rows = torch.cat([torch.arange(1090, 1100), torch.arange(2080, 2095)])
    rows = rows[LABELS[rows] != -100] if kind is SampleLoader else rows
    inputs, targets = X[rows], (Y if name in ("mse", "sum") else LABELS)[rows]
    if kind is MiniBatchLoader:
        loader = MiniBatchLoader((inputs, targets), 12, order="sequential")
    else:
        loader = kind((inputs, targets))
    torch.manual_seed(1)
    model = nn.Linear(3, 4).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, loss, optimizer, loader, device="cpu", engine=engine)
    expected = float(loss(model(inputs), targets).detach())
    assert trainer.fit(1).train_loss == pytest.approx([expected], rel=1e-10)


def test_an_own_compute_loss_is_a_mean_whatever_the_loss_it_uses_is() -> None:
    class Own(Trainer):
        def compute_loss(self, batch):
            return self.loss(self.model(batch.inputs), batch.targets) / len(batch)

    trainer = make(
        nn.MSELoss(reduction="sum"), kind=Own, loader=partial(MiniBatchLoader, batch_size=9)
    )
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.model[1].p = 0.0
    expected = float((outputs(trainer) - Y).square().sum(1).mean())
    assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-12)
    assert trainer.fit(1).train_loss == pytest.approx([expected], rel=1e-12)


def test_train_loss_on_ranks_counts_the_targets_of_all() -> None:
    trainers = []
    for _ in range(2):
        torch.manual_seed(1)
        model = nn.Linear(3, 4).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loader = MiniBatchLoader((X[1090:1130], LABELS[1090:1130].clone()), 12, order="sequential")
        loader.samples.targets[20::9] = 1
        trainers.append(
            Trainer(model, nn.CrossEntropyLoss(weight=W), optimizer, loader, device="cpu")
        )
    targets = trainers[0].loader.samples.targets
    expected = F.cross_entropy(trainers[0].model(X[1090:1130]), targets, weight=W)

    def work(world: World) -> float:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        return trainer.fit(1).train_loss[0]

    for got in on_threads(2, work):
        assert got == pytest.approx(float(expected.detach()), rel=1e-12)
