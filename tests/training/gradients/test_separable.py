"""Layers that a batch's parts would leave, or be left by, otherwise than the whole batch."""

import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from gdtrain import BatchLoader, Callback, PhasedLoader, SampleLoader, Trainer
from gdtrain.errors import ModelError
from gdtrain.training.placement.distributed import World

draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(10, 4, generator=draw), torch.randn(10, 3, generator=draw)


class Rows(nn.Module):
    """[B, 4] as [B, 2, 2], and back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.view(-1, 2, 2)).reshape(-1, 4)


class Average(nn.Module):
    """Takes off a running mean of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean.lerp(x.detach().mean(0), 0.1)
        return x - self.mean


class Calls(nn.Module):
    """Counts how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x


class Samples(nn.Module):
    """Counts the samples that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x) if self.training else 0
        return x


class Cache(nn.Module):
    """Keeps something that is the same for all samples, made at its first use."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.table.numel():
            self.table = torch.arange(4.0)
        return x + self.table


def make(layer: nn.Module, size: int | None = 4, **options) -> Trainer:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((X, Y))
    return Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", microbatch_size=size, **options
    )


class Adds(Callback):
    """Puts a layer into the model after an epoch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def on_epoch_end(self, trainer: Trainer, record: object) -> None:
        if trainer.progress.epoch == 1:
            trainer.model[1] = self.layer


def test_a_layer_that_comes_in_mid_run_is_looked_at_too() -> None:
    trainer = make(Cache(), callbacks=[Adds(Calls())])
    with pytest.raises(ModelError) as caught:
        trainer.fit(3)
    assert "moves its buffer 'calls' in every pass" in str(caught.value)
    assert trainer.step == 1


OF_THE_BATCH = "computes its statistics over the batch"
REFUSED = {
    "batch norm": (lambda: nn.BatchNorm1d(4), "BatchNorm1d", OF_THE_BATCH),
    "scripted": (lambda: torch.jit.script(nn.BatchNorm1d(4)), "BatchNorm1d", OF_THE_BATCH),
    "instance norm": (
        lambda: Rows(nn.InstanceNorm1d(2, track_running_stats=True)),
        "InstanceNorm1d",
        "moves its running statistics in every pass",
    ),
    "spectral norm": (
        lambda: spectral_norm(nn.Linear(4, 4)),
        "Linear",
        "estimates a norm again in every pass",
    ),
    "parametrized": (
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
        "_SpectralNorm",
        "estimates a norm again in every pass",
    ),
    "average": (Average, "Average", "moves its buffer 'mean' in every pass"),
    "calls": (Calls, "Calls", "moves its buffer 'calls' in every pass"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_they_are_refused_in_training_mode_under_microbatches(name: str) -> None:
    make_layer, kind, said = REFUSED[name]
    trainer = make(make_layer())
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ModelError, match=rf"microbatch_size: layer '1[^']*' \({kind}\) {said}"):
        trainer.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.progress.step == 0
    trainer.model[1].eval()
    assert len(trainer.fit(1)) == 1
    assert make(make_layer(), None).fit(1).train_loss


def test_a_layer_is_looked_at_in_the_first_batch_that_has_parts() -> None:
    """Single samples show nothing of it, and it is refused before the first batch that is cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Average(), nn.Linear(4, 3))
    loader = PhasedLoader([(1, SampleLoader((X, Y))), (None, BatchLoader((X, Y)))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", microbatch_size=5)
    with pytest.raises(ModelError, match=r"^microbatch_size: layer '1' \(Average\) moves its"):
        trainer.fit(2)
    assert trainer.progress.step == len(X)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_they_are_allowed_by_name(name: str) -> None:
    trainer = make(REFUSED[name][0]())
    names = [path for path, _ in trainer.model[1].named_modules(prefix="1")]
    trainer = make(trainer.model[1], microbatch_allow=names)
    assert len(trainer.fit(1)) == 1


def test_batch_norm_without_running_statistics_is_refused_in_eval_mode_too() -> None:
    trainer = make(nn.BatchNorm1d(4, track_running_stats=False))
    trainer.model[1].eval()
    with pytest.raises(ModelError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "microbatch_size: layer '1' (BatchNorm1d) computes its statistics over the batch, so "
        "the gradient of a batch is not the sum of its parts' gradients; use GroupNorm or "
        "LayerNorm, or name it in microbatch_allow to accept statistics of the parts"
    )


@pytest.mark.parametrize("layer", [Samples, Cache])
def test_buffers_that_parts_leave_as_the_whole_does_are_right(layer) -> None:
    whole, parts = make(layer(), None), make(layer())
    whole.fit(3)
    parts.fit(3)
    for mine, theirs in zip(whole.model.buffers(), parts.model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("layer", "said"),
    [(Samples, "moves its buffer 'seen'"), (Average, "moves its buffer 'mean'"), (Calls, None)],
)
def test_ranks_see_their_share_alone(layer, said: str | None) -> None:
    trainers = [make(layer(), None) for _ in range(2)]

    def work(world: World) -> str | None:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        try:
            trainer.fit(1)
        except ModelError as error:
            return str(error)
        return None

    for got in on_threads(2, work):
        if said is None:
            assert got is None
        else:
            assert got.startswith(f"several processes: layer '1' ({layer.__name__}) {said}")


def test_a_layer_that_is_put_into_training_mode_in_mid_run_is_found() -> None:
    trainer = make(nn.BatchNorm1d(4))
    trainer.model[1].eval()
    trainer.fit(1)
    trainer.model[1].train()
    with pytest.raises(ModelError, match=r"layer '1' \(BatchNorm1d\)"):
        trainer.batch_gradient(next(trainer.read(trainer.loader)))
