"""Several optimizers and schedules by name: the bits of the plain loop, clipped, saved, resumed."""

import copy
import math

import pytest
import torch
from helpers.ranks import on_ranks
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.errors import CheckpointError, ConfigError, ModelError, NonFiniteError

IDS = torch.randint(0, 9, (14, 3), generator=torch.Generator().manual_seed(0))
Y = IDS.float().mean(1, keepdim=True)


def net():
    torch.manual_seed(0)
    embedding = nn.EmbeddingBag(9, 4, mode="sum", sparse=True)
    return nn.Sequential(embedding, nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def optimizers(model):
    return {
        "words": torch.optim.SparseAdam(model[0].parameters(), lr=0.01),
        "rest": torch.optim.AdamW(model[1:].parameters(), lr=0.02),
    }


def schedules(of):
    return {"words": StepLR(of["words"], 2), "rest": ExponentialLR(of["rest"], 0.9)}


def make(callbacks=(), schedule=True, **options):
    model = net()
    of = optimizers(model)
    return Trainer(
        *(model, nn.MSELoss(), of, MiniBatchLoader((IDS, Y), 4)),
        scheduler=schedules(of) if schedule else None,
        callbacks=callbacks,
        device="cpu",
        **options,
    )


def by_hand(epochs, clip=lambda model: None, schedule=True):
    model, loader = net(), MiniBatchLoader((IDS, Y), 4)
    of = optimizers(model)
    rates = {"words": [], "rest": []}
    moving = schedules(of).values() if schedule else ()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            for optimizer in of.values():
                optimizer.zero_grad()
            F.mse_loss(model(batch.inputs), batch.targets).backward()
            clip(model)
            for name, optimizer in of.items():
                rates[name].append(optimizer.param_groups[0]["lr"])
                optimizer.step()
        for scheduler in moving:
            scheduler.step()
    return model, {name: row[3::4] for name, row in rates.items()}


def assert_same(mine, theirs):
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


class StopsAt(Callback):
    every_n_steps = 6

    def on_safe_point(self, trainer):
        trainer.stop("here")


def test_each_is_stepped_after_one_backward_pass_with_the_bits_of_the_plain_loop():
    trainer = make()
    history = trainer.fit(5)
    model, rates = by_hand(5)
    assert_same(trainer.model, model)
    assert history.lr_words == rates["words"]
    assert history.lr_rest == rates["rest"]
    assert trainer.step == 20


def test_two_of_sgd_have_the_bits_of_the_plain_loop():
    def sgd(model):
        return {
            "first": torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),
            "second": torch.optim.SGD(model[1].parameters(), lr=0.01, weight_decay=0.1),
        }

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    hand = copy.deepcopy(model)
    data = IDS.float(), Y
    Trainer(model, nn.MSELoss(), sgd(model), BatchLoader(data), device="cpu").fit(4)
    of = sgd(hand)
    for _ in range(4):
        for optimizer in of.values():
            optimizer.zero_grad()
        F.mse_loss(hand(data[0]), Y).backward()
        for optimizer in of.values():
            optimizer.step()
    assert_same(model, hand)


def test_many_updates_without_a_callback_between_them():
    """The engine looks once for all of them whether it knows what they do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    hand = copy.deepcopy(model)
    X, y = IDS.float(), Y
    assert len(X) == len(y)
    optimizers = {f"of_{n}": torch.optim.SGD(model[n].parameters(), lr=0.01) for n in range(2)}
    Trainer(model, nn.MSELoss(), optimizers, BatchLoader((X, y)), device="cpu").fit(30)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(hand(X), y).backward()
        optimizer.step()
    assert_same(model, hand)


class Snapshots(Callback):
    """Of each safe point, that before an epoch is closed among them."""

    every_n_steps = 1

    def __init__(self):
        super().__init__()
        self.taken = []

    def on_safe_point(self, trainer):
        self.taken.append(trainer.state_dict())


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_each_snapshot_has_the_rates_of_the_last_update(per):
    """The record of an epoch that ends right after a resume has the rate of each optimizer."""

    def run(callbacks=()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        optimizers = {
            "first": torch.optim.SGD(model[0].parameters(), lr=0.1),
            "second": torch.optim.Adam(model[1].parameters(), lr=0.01),
        }
        data = IDS.float(), Y
        return Trainer(
            model,
            nn.MSELoss(),
            optimizers,
            MiniBatchLoader(data, len(Y) // 2),
            scheduler={"first": ExponentialLR(optimizers["first"], 0.5)},
            scheduler_per=per,
            callbacks=callbacks,
            device="cpu",
        )

    snapshots = Snapshots()
    whole = run([snapshots]).fit(3)
    per_epoch = [0.1, 0.05, 0.025] if per == "epoch" else [0.05, 0.0125, 0.003125]
    assert whole.lr_first == pytest.approx(per_epoch)
    assert whole.lr_second == [0.01] * 3
    for snapshot in snapshots.taken:
        resumed = run()
        resumed.load_state_dict(snapshot)
        history = resumed.fit(3)
        assert history.lr_first == whole.lr_first
        assert history.lr_second == whole.lr_second


@pytest.mark.parametrize("rates", [None, [0.1], {"words": "fast"}, {"words": math.inf}, {"x": 0.1}])
def test_rates_of_a_damaged_state_are_refused(rates):
    trainer = make()
    trainer.fit(1)
    with pytest.raises(CheckpointError, match="rates"):
        make().load_state_dict(trainer.state_dict() | {"rates": rates})


def test_a_run_that_is_resumed_from_a_file_ends_with_the_same_bits(tmp_path):
    first, second, whole = make([StopsAt()]), make(), make()
    first.fit(5)
    store = CheckpointStore(tmp_path)
    store.save(6, first.state_dict())
    _, state, _ = store.load_newest(tensor_check(second))
    second.load_state_dict(state)
    assert second.fit(5).epochs[-1]["lr_words"] == whole.fit(5).epochs[-1]["lr_words"]
    assert_same(second.model, whole.model)


def test_a_state_of_others_is_refused_and_leaves_everything():
    trainer, other = make(), make()
    other.updater.of["new"] = other.updater.of.pop("words")
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(CheckpointError, match="optimizer: the state's are not those here, rest, w"):
        trainer.load_state_dict(other.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def dense(model):
    return list(model[1:].parameters())


def test_gradients_are_bounded_by_optimizer():
    trainer = make(schedule=False, clip_grad_norm={"rest": 0.01}, clip_grad_value={"rest": 0.005})
    trainer.fit(3)

    def clip(model):
        nn.utils.clip_grad_value_(dense(model), 0.005)
        nn.utils.clip_grad_norm_(dense(model), 0.01)

    model, _ = by_hand(3, clip, schedule=False)
    assert_same(trainer.model, model)


def test_gradients_are_bounded_together():
    def two(model):
        return {n: torch.optim.Adam(model[i].parameters()) for i, n in enumerate("ab")}

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    hand = copy.deepcopy(model)
    data, of = (IDS.float(), Y), two(hand)
    loader = BatchLoader(data)
    Trainer(model, nn.MSELoss(), two(model), loader, clip_grad_norm=0.1, device="cpu").fit(3)
    for _ in range(3):
        hand.zero_grad()
        F.mse_loss(hand(data[0]), Y).backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
        for optimizer in of.values():
            optimizer.step()
    assert_same(model, hand)


def test_a_gradient_that_is_not_finite_changes_nothing():
    class Breaks(Trainer):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            return loss / 0 if self.step == 5 else loss

    model = net()
    loader = MiniBatchLoader((IDS, Y), 4)
    trainer = Breaks(model, nn.MSELoss(), optimizers(model), loader, device="cpu")
    with pytest.raises(NonFiniteError, match="weights and optimizer are as they were before"):
        trainer.fit(3)
    good = make([StopsAt(every_n_steps=5)], schedule=False)
    good.fit(3)
    assert_same(trainer.model, good.model)
    assert trainer.step == 5


# ── a train_step of your own ───────────────────────────────────────────────────────────────

REAL = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))


def players():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)),
            "critic": nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)),
        }
    )


def of_players(model):
    return {name: torch.optim.Adam(part.parameters(), lr=0.01) for name, part in model.items()}


def critic_loss(model, real):
    fake = model["generator"](torch.randn(len(real), 3)).detach()
    return F.softplus(-model["critic"](real)).mean() + F.softplus(model["critic"](fake)).mean()


def generator_loss(model, count):
    return F.softplus(-model["critic"](model["generator"](torch.randn(count, 3)))).mean()


class Gan(Trainer):
    """Two players in turn (Goodfellow and others, 2014)."""

    breaks_at = None

    def train_step(self, batch):
        for name, loss_of in (
            ("critic", lambda: critic_loss(self.model, batch.inputs)),
            ("generator", lambda: generator_loss(self.model, len(batch))),
        ):
            self.optimizers[name].zero_grad()
            loss = loss_of() / (0 if (self.step, name) == self.breaks_at else 1)
            loss.backward()
            self.optimizers[name].step()
            self.log(name, loss)
        return loss.detach()


def gan(callbacks=()):
    model = players()
    loader = MiniBatchLoader(REAL, 8)
    return Gan(model, None, of_players(model), loader, device="cpu", callbacks=callbacks)


def test_two_players_have_the_bits_of_the_plain_loop():
    trainer = gan()
    torch.manual_seed(5)
    history = trainer.fit(3)
    model, loader = players(), MiniBatchLoader(REAL, 8)
    of = of_players(model)
    torch.manual_seed(5)
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            of["critic"].zero_grad()
            loss = critic_loss(model, batch.inputs)
            seen.append(loss.item())
            loss.backward()
            of["critic"].step()
            of["generator"].zero_grad()
            generator_loss(model, len(batch)).backward()
            of["generator"].step()
    assert_same(trainer.model, model)
    assert trainer.step == 12
    assert history.critic[-1] == pytest.approx(sum(seen[-4:]) / 4, rel=1e-6)


def test_two_players_that_are_resumed_end_with_the_same_bits():
    torch.manual_seed(5)
    whole = gan()
    whole.fit(3)
    torch.manual_seed(5)
    first, second = gan([StopsAt()]), gan()
    first.fit(3)
    second.load_state_dict(first.state_dict())
    second.fit(3)
    assert_same(second.model, whole.model)


def test_a_stop_in_the_middle_of_a_step_says_what_was_kept():
    trainer = gan()
    trainer.breaks_at = (5, "critic")  # nothing has been stepped
    with pytest.raises(NonFiniteError, match="weights and optimizer are as they were before"):
        trainer.fit(3)
    assert trainer.step == 5
    trainer.breaks_at = (6, "generator")  # the critic has, and so the update is counted
    with pytest.raises(NonFiniteError, match="train_step had stepped critic before that was se"):
        trainer.fit(3)
    assert trainer.step == 6


# ── what is refused ─────────────────────────────────────────────────────────────────────────


def test_a_single_ones_names_are_told_apart():
    trainer = make()
    for what in ("optimizer", "lr"):
        with pytest.raises(ModelError, match=rf"trainer.{what}: there are several \(words, rest\)"):
            getattr(trainer, what)
    with pytest.raises(ModelError, match=r"trainer.lr: there are several \(words, rest\); use"):
        trainer.lr = 0.1
    assert list(trainer.optimizers) == ["words", "rest"]
    assert "SparseAdam and AdamW" in repr(trainer)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda m: {}, ModelError, "optimizer: a mapping must have a name for each"),
        (lambda m: {"a": "adam"}, ModelError, "optimizer: a must be a torch.optim optimizer, got"),
        (
            lambda m: {n: torch.optim.SGD(m.parameters(), lr=0.1) for n in "ab"},
            ModelError,
            r"optimizer: a and b hold the same parameter, \[9, 4\]; give each to one of them",
        ),
        (
            lambda m: {"a": torch.optim.LBFGS(m.parameters())},
            ModelError,
            "optimizer: a is LBFGS, which works alone; give it no others",
        ),
        (
            lambda m: {"a": torch.optim.SGD(m[0].parameters(), lr=0.1)},
            ModelError,
            "optimizer: does not hold 4 of the model's parameters",
        ),
    ],
)
def test_what_is_no_mapping_of_optimizers(given, error, message):
    model = net()
    with pytest.raises(error, match=message):
        Trainer(model, nn.MSELoss(), given(model), BatchLoader((IDS, Y)), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"clip_grad_norm": {"word": 1.0}},
            "clip_grad_norm: 'word' is no optimizer's name; it mus",
        ),
        ({"clip_grad_norm": {"words": 0.0}}, "clip_grad_norm: must be > 0, got 0.0"),
        ({"clip_grad_value": "much"}, "clip_grad_value: must be > 0, got 'much'"),
        ({"engine": "scan"}, "engine: scan can't run this: it makes the updates of torch.optim.SG"),
    ],
)
def test_settings_of_none(options, message):
    if "engine" in options:
        pytest.importorskip("jax")
    with pytest.raises(ConfigError, match=message):
        make(schedule=False, **options)


def test_a_schedule_of_none_is_refused_and_one_by_a_metric_is_told_it():
    model = net()
    of = optimizers(model)
    plateau = ReduceLROnPlateau(of["rest"], patience=0, threshold=10.0)
    loader = BatchLoader((IDS, Y))
    with pytest.raises(
        ConfigError, match="scheduler: 'all' is no optimizer's name; it must be one"
    ):
        Trainer(model, nn.MSELoss(), of, loader, scheduler={"all": plateau}, device="cpu")
    trainer = Trainer(model, nn.MSELoss(), of, loader, scheduler={"rest": plateau}, device="cpu")
    history = trainer.fit(4)
    assert history.lr_words == [0.01] * 4
    assert history.lr_rest[-1] < 0.02


def on_a_rank(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    of = {n: torch.optim.Adam(model[i].parameters(), lr=0.1) for i, n in enumerate("ab")}
    loader = MiniBatchLoader((IDS.double(), Y.double()), 4)
    Trainer(model, nn.MSELoss(), of, loader, device="cpu", microbatch_size=2).fit(3)
    return [p.detach() for p in model.parameters()]


def test_processes_and_microbatches_end_with_the_same_weights():
    alone = on_a_rank(0)
    for weights in on_ranks(on_a_rank):
        for mine, theirs in zip(weights, alone, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9)
