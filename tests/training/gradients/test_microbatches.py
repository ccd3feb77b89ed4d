"""A batch cut into microbatches has the gradient and the loss of the whole batch."""

import copy
import itertools

import pytest
import torch
from helpers.processes import run
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, Trainer
from gdtrain.data.batch import Batch
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.gradients.microbatches import is_out_of_memory, parse_bytes, saved_bytes

draw = torch.Generator().manual_seed(0)
N = 23
X = torch.randn(N, 4, generator=draw, dtype=torch.float64)
LABELS = torch.randint(3, (N,), generator=draw)
IGNORED = torch.where(torch.arange(N) % 3 == 0, -100, LABELS)
HALF_IGNORED = torch.where(torch.arange(N) < 12, -100, LABELS)  # whole microbatches of nothing
W = torch.tensor([0.2, 1.0, 2.5], dtype=torch.float64)
NUMBERS = torch.randn(N, 3, generator=draw, dtype=torch.float64)
LOSSES = {
    "mse": (nn.MSELoss(), NUMBERS),
    "sum": (nn.MSELoss(reduction="sum"), NUMBERS),
    "huber": (nn.HuberLoss(), NUMBERS),
    "cross_entropy": (nn.CrossEntropyLoss(), LABELS),
    "weighted": (nn.CrossEntropyLoss(weight=W), LABELS),
    "weighted_smoothed": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), LABELS),
    "ignoring": (nn.CrossEntropyLoss(), IGNORED),
    "weighted_ignoring": (nn.CrossEntropyLoss(weight=W), HALF_IGNORED),
    "probabilities": (nn.CrossEntropyLoss(weight=W), NUMBERS.softmax(1)),
    "multi_margin": (nn.MultiMarginLoss(weight=W), LABELS),
}


@pytest.mark.parametrize(
    ("name", "size"), list(itertools.product(LOSSES, [1, 2, 5, 7, 22, 23, 100])), ids=str
)
def test_the_gradient_and_the_loss_are_those_of_a_single_pass(name: str, size: int) -> None:
    loss, targets = LOSSES[name]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    expected = loss(model(X), targets)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((X, targets))
    trainer = Trainer(model, loss, optimizer, loader, device="cpu", microbatch_size=size)
    got = trainer.batch_gradient(next(iter(loader)))
    assert abs(got - expected.detach()) <= 1e-12 * abs(expected.detach())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-12 * gradient.norm()


def make_trainer(*layers: nn.Module, **options) -> Trainer:
    model = nn.Sequential(nn.Linear(4, 3), *layers).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((X, LABELS))
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", **options)


def test_a_run_in_microbatches_follows_the_run_in_whole_batches() -> None:
    torch.manual_seed(2)
    whole = make_trainer()
    torch.manual_seed(2)
    cut = make_trainer(microbatch_size=5)
    assert torch.allclose(
        torch.tensor(whole.fit(20).train_loss),
        torch.tensor(cut.fit(20).train_loss),
        rtol=1e-12,
        atol=0,
    )


def test_layers_that_mix_samples_are_refused_unless_they_are_in_eval_mode() -> None:
    trainer = make_trainer(nn.BatchNorm1d(3).double(), microbatch_size=5)
    with pytest.raises(ModelError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "microbatch_size: layer '1' (BatchNorm1d) computes its statistics over the batch in "
        "training mode, so the gradient of a batch is not the sum of its parts' gradients; use "
        "GroupNorm or LayerNorm, put the layer in eval mode, or name it in microbatch_allow to "
        "accept statistics of the parts"
    )
    trainer.model[1].eval()
    assert len(trainer.fit(1)) == 1


def test_layers_that_mix_samples_can_be_allowed_by_name() -> None:
    trainer = make_trainer(nn.BatchNorm1d(3).double(), microbatch_size=5, microbatch_allow=["1"])
    assert len(trainer.fit(1)) == 1


def test_dropout_is_allowed_and_said_to_be_another_draw(caplog) -> None:
    trainer = make_trainer(nn.Dropout(0.5), microbatch_size=5)
    trainer.fit(1)
    trainer.fit(2)
    assert caplog.messages == [
        "microbatch_size: dropout draws its masks for each part of a batch: "
        "as good a draw as that of the whole batch, but another one"
    ]
    caplog.clear()
    make_trainer(nn.Dropout(0.0), microbatch_size=5).fit(1)
    make_trainer(nn.Dropout(0.5)).fit(1)
    assert caplog.messages == []


@pytest.mark.long
def test_sums_in_float64_lose_less_than_sums_in_float32() -> None:
    """2,000 equal gradients of 0.1: float32 drifts, float64 gives the one rounding of the end."""
    ones, targets = torch.ones(2_000, 1), torch.full((2_000, 1), -0.05)
    errors = {}
    for kind in (None, "fp64"):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loader = BatchLoader((ones, targets))
        options = {"device": "cpu", "microbatch_size": 1, "accumulate_in": kind}
        trainer = Trainer(model, nn.MSELoss(), optimizer, loader, **options)
        trainer.batch_gradient(next(trainer.read(loader)))
        exact = -2 * float(targets[0].double())
        errors[kind] = abs(float(model.weight.grad) - exact) / exact
    assert errors["fp64"] < 1e-7 < errors[None]


def wide_trainer(**options) -> Trainer:
    """A model whose activations take 8 · (64 + 64 + 3) bytes a sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (X.repeat(100, 1), LABELS.repeat(100))
    return Trainer(
        model, nn.CrossEntropyLoss(), optimizer, BatchLoader(data), device="cpu", **options
    )


def test_auto_keeps_to_the_memory_limit_and_leaves_training_as_it_is() -> None:
    plain = wide_trainer()
    auto = wide_trainer(microbatch_size="auto", memory_limit="256KiB")
    state = torch.get_rng_state()
    auto.batch_gradient(next(auto.read(auto.loader)))
    plain.batch_gradient(next(plain.read(plain.loader)))
    assert torch.equal(torch.get_rng_state(), state)
    # A backward pass needs the tanh's output (512 bytes) and a little for the loss, twice.
    assert 100 <= auto.microbatches.size <= 256
    size = auto.microbatches.size
    part = Batch(X.repeat(20, 1)[:size].clone(), LABELS.repeat(20)[:size], torch.arange(size))
    assert saved_bytes(lambda: auto.batch_loss(part)) <= 1.15 * 256 * 1024 / 2
    for mine, theirs in zip(auto.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-11, atol=1e-14)


class Shifted(nn.Module):
    """Shifts its input where it lies, and counts the samples that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x -= 1.0
        if self.training:
            self.seen += len(x)
        return self.layer(x)


@pytest.mark.parametrize("size", ["auto", 5])
def test_a_batch_is_used_as_it_came_after_it_was_measured(size) -> None:
    """What is tried on a batch's first samples leaves them to a model that works in place."""
    torch.manual_seed(1)
    model = Shifted()
    expected = nn.functional.cross_entropy(model.layer(X - 1.0), LABELS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = BatchLoader((X, LABELS))
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", microbatch_size=size
    )
    history = trainer.fit(1)
    assert history.train_loss[0] == pytest.approx(float(expected.detach()), rel=1e-12)
    assert model.seen == N


class RunsOut(nn.Module):
    """Shifts its input where it lies, and then may have no memory left for so many samples."""

    room = N

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 1.0
        if len(x) > self.room:
            raise MemoryError("can't allocate memory")
        return self.layer(x)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), lambda o, t: nn.functional.cross_entropy(o, t)]
)
def test_another_try_finds_the_batch_as_it_was(loss) -> None:
    torch.manual_seed(1)
    model = RunsOut()
    expected = nn.functional.cross_entropy(model.layer(X - 1.0), LABELS)
    loader = BatchLoader((X, LABELS), order="reshuffle")  # which gives copies of the rows
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(
        model, loss, optimizer, loader, device="cpu", microbatch_size="auto", memory_limit=4000
    )
    trainer.fit(1)
    model.room = 4
    history = trainer.fit(2)
    assert history.train_loss == pytest.approx([float(expected.detach())] * 2, rel=1e-12)
    assert trainer.microbatches.size <= 4


def test_out_of_memory_halves_the_size_and_applies_nothing_twice() -> None:
    """The allocator really fails: the address space of a child process is limited."""
    child = """
import resource, torch
from torch import nn
from gdtrain import BatchLoader, Trainer

torch.set_num_threads(1)
torch.manual_seed(0)
X, y = torch.randn(20_000, 8), torch.randn(20_000, 1)
def trainer(size):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 1024), nn.Tanh(), nn.Linear(1024, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    limit = {"memory_limit": "100GB"} if size == "auto" else {}
    return Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, y)), device="cpu",
                   microbatch_size=size, **limit)
small = trainer(1000)
small.fit(2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
auto = trainer("auto")
auto.fit(2)
assert auto.progress.step == 2
assert 1000 < auto.microbatches.size < 20_000, auto.microbatches.size
for p, q in zip(auto.model.parameters(), small.model.parameters(), strict=True):
    assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)

print("halved to", auto.microbatches.size)
"""
    done = run("-c", child)
    assert done.returncode == 0, done.err
    assert done.out.startswith("halved to ")


@pytest.mark.parametrize("look", ["evaluate", "predict", "batch_gradient"])
def test_every_pass_halves_its_slices_until_they_fit(look: str) -> None:
    """The allocator really fails: 2^50 bytes are more than an address space of 47 bits holds."""

    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3).double()
            self.sizes: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.empty(2**50 if len(x) > 100 else 1, dtype=torch.uint8)
            self.sizes.append(len(x))
            return self.layer(x)

    torch.manual_seed(0)
    model = Hungry()
    data = (X.repeat(100, 1), LABELS.repeat(100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss()
    trainer = Trainer(
        model, loss, optimizer, BatchLoader(data), device="cpu", microbatch_size="auto"
    )
    if look == "evaluate":
        expected = loss(model.layer(data[0]), data[1]).item()
        assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-12)
    elif look == "predict":
        assert torch.allclose(trainer.predict(data[0]), model.layer(data[0]).detach())
    else:
        expected = torch.autograd.grad(loss(model.layer(data[0]), data[1]), model.layer.weight)[0]
        trainer.batch_gradient(next(trainer.read(trainer.loader)))
        assert torch.allclose(model.layer.weight.grad, expected, rtol=1e-11, atol=1e-14)
    if look == "batch_gradient":
        assert 50 < trainer.microbatches.size <= 100
    else:  # a look teaches training nothing
        assert 50 < model.sizes[0] <= 100
        assert trainer.microbatches.size is None


def test_evaluation_and_prediction_go_in_microbatches_too() -> None:
    trainer = make_trainer(microbatch_size=5)
    sizes = []
    trainer.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    trainer.evaluate()
    trainer.predict(X)
    assert sizes == 2 * [5, 5, 5, 5, 3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(4096, 4096), ("512MB", 512_000_000), ("2GiB", 2**31), ("1.5 KiB", 1536), ("7b", 7)],
)
def test_memory_limits(given, expected) -> None:
    assert parse_bytes(given) == expected


@pytest.mark.parametrize("given", ["", "lots", "-1MB", "0", 0, True, "10 parsecs"])
def test_memory_limits_that_are_none(given) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(given)
    assert str(caught.value) == (
        f"memory_limit: must be a number of bytes such as 512MB or 2GiB, got {given!r}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)",
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_what_backends_say_when_memory_is_out(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


class TwoWays(nn.Module):
    """Samples go one way or the other; a way that no sample of a pass takes is not computed."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ways = [(x[:, 0] < 0, self.left), (x[:, 0] >= 0, self.right)]
        outputs = x.new_zeros(len(x), 3)
        for chosen, layer in ways:
            if chosen.any():
                outputs = outputs.masked_scatter(chosen[:, None], layer(x[chosen]))
        return outputs


@pytest.mark.parametrize("accumulate_in", [None, "fp64"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_without_a_target_that_counts_give_zeros_and_not_no_gradient(
    size, accumulate_in
) -> None:
    """Momentum and weight decay go on under zeros: the right way has a gradient in no update."""
    draws = torch.Generator().manual_seed(0)
    X = torch.randn(12, 2, generator=draws, dtype=torch.float64)
    labels = torch.where(X[:, 0] < 0, torch.arange(12) % 3, -100)
    torch.manual_seed(0)
    expected = TwoWays().double()
    model = copy.deepcopy(expected)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = torch.optim.SGD(expected.parameters(), **options)
    for _ in range(3):
        for rows in torch.arange(12).split(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(expected(X[rows]), labels[rows]).backward()
            optimizer.step()
    Trainer(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), **options),
        MiniBatchLoader((X, labels), 6, order="sequential"),
        device="cpu",
        microbatch_size=size,
        accumulate_in=accumulate_in,
    ).fit(3)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
