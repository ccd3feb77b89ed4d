"""Engine scan where each pass binds tensors to attributes: weights by PyTorch's hooks, features."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune, spectral_norm, weight_norm

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError

pytest.importorskip("jax")

ROWS, SIZE, EPOCHS = 22, 8, 3  # the last batch of an epoch has six
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def data(dtype):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 6, 4, generator=draw, dtype=torch.float64)
    return x.to(dtype), x.mean((1, 2)).unsqueeze(1).to(dtype)


def hooked(layer, norm, *names, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # says that parametrizations are newer
        for name in names or ("weight",):
            norm(layer, name, **options)
    return layer


def between(layer, width):
    return lambda: nn.Sequential(layer(), nn.Tanh(), nn.Flatten(), nn.Linear(width, 1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = hooked(nn.LSTM(4, 5, batch_first=True), weight_norm, "weight_hh_l0")
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def evaluated():
    model = between(lambda: hooked(nn.Linear(4, 3), spectral_norm), 18)()
    model.append(nn.Identity())
    model[0].eval()
    return model


MODELS = {
    "weight norm": between(lambda: hooked(nn.Linear(4, 3), weight_norm), 18),
    "weight norm of all": between(lambda: hooked(nn.Linear(4, 3), weight_norm, dim=None), 18),
    "weight norm of a convolution": between(
        lambda: hooked(nn.Conv1d(6, 2, 3), weight_norm, dim=1), 4
    ),
    "weight norm of an LSTM": Recurrent,
    "spectral norm": between(lambda: hooked(nn.Linear(4, 3), spectral_norm), 18),
    "spectral norm, twice": between(
        lambda: hooked(nn.Conv1d(6, 2, 3), spectral_norm, n_power_iterations=2), 4
    ),
    "spectral norm in eval mode": evaluated,
    "pruned": between(lambda: prune.random_unstructured(nn.Linear(4, 3), "weight", 0.4), 18),
    "both": lambda: nn.Sequential(
        nn.Flatten(),
        hooked(nn.Linear(24, 5), spectral_norm),
        hooked(nn.Linear(5, 1), weight_norm),
    ),
}


def make(build, dtype):
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = build().to(dtype)
    if build is evaluated:
        model[0].train(False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def mean_square(model, x, y):
    return F.mse_loss(model(x), y)


def by_hand(build, dtype, loss_of=mean_square):
    model, optimizer = make(build, dtype)
    x, y = data(dtype)
    for _ in range(EPOCHS):
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):
            optimizer.zero_grad()
            loss_of(model, inputs, targets).backward()
            optimizer.step()
    return model


class Own(Trainer):
    loss_of = staticmethod(mean_square)

    def compute_loss(self, batch):
        return self.loss_of(self.model, batch.inputs, batch.targets)

    def loss_weight(self, batch):
        return len(batch)


def scanning(build, dtype, loss_of=mean_square, kind=Own, rows=ROWS, **options):
    model, optimizer = make(build, dtype)
    x, y = data(dtype)
    loader = MiniBatchLoader((x[:rows], y[:rows]), SIZE, order="sequential")
    trainer = kind(model, None, optimizer, loader, device="cpu", engine="scan", **options)
    trainer.loss_of = loss_of
    return trainer


def attributes(model):
    """Tensors that modules have beside their parameters and buffers."""
    return {
        f"{path}.{name}": value.detach()
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }


def assert_close(got, expected, dtype):
    for mine, theirs in (
        (got.state_dict(), expected.state_dict()),
        (attributes(got), attributes(expected)),
    ):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            bound = TOLERANCE[dtype] * (theirs[name].norm() + 1e-3)
            assert (value - theirs[name]).norm() <= bound, name


# The suite of every day has those that are quickly compiled.
QUICK = ("pruned", "both")
KINDS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MODELS]


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_weights_that_hooks_of_pytorch_compute(name, dtype) -> None:
    expected = by_hand(MODELS[name], dtype)
    trainer = scanning(MODELS[name], dtype)
    trainer.fit(EPOCHS)
    assert attributes(expected)
    assert_close(trainer.model, expected, dtype)


# ── attributes of a model ─────────────────────────────────────────────────────────────────────


class Showing(nn.Module):
    """Keeps what it computes on the way, for a loss and for who looks at it."""

    def __init__(self, how="bound first"):
        super().__init__()
        self.body, self.head, self.how = nn.Linear(24, 5), nn.Linear(5, 1), how
        self.features = torch.zeros(8, 5)

    def forward(self, x):
        h = self.body(x.flatten(1)).tanh()
        if self.how == "read":
            h = h + self.features.mean().detach()
        elif self.how == "looked for":
            h = h if hasattr(self, "features") else 2 * h
        elif self.how == "deleted":
            del self.features
        elif self.how == "read by name":
            h = h + vars(self)["features"].mean().detach()
        elif self.how == "written":
            self.features.mul_(0.9)
        elif self.how == "bound twice":
            self.features = None
        self.features = h
        if self.how == "a list":
            self.all = [h]
        return self.head(h)


def with_penalty(model, x, y):
    return F.mse_loss(model(x), y) + 0.1 * model.features.square().mean()


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["bound first", "bound twice"])
def test_a_loss_may_read_what_forward_has_bound(how) -> None:
    trainer = scanning(lambda: Showing(how), torch.float64, with_penalty, rows=16)
    before = trainer.model.features
    trainer.fit(EPOCHS)
    model, optimizer = make(lambda: Showing(how), torch.float64)
    x, y = (part[:16] for part in data(torch.float64))
    for _ in range(EPOCHS):
        for inputs, targets in zip(x.split(SIZE), y.split(SIZE), strict=True):
            optimizer.zero_grad()
            with_penalty(model, inputs, targets).backward()
            optimizer.step()
    assert_close(trainer.model, model, torch.float64)
    assert not before.any()


@pytest.mark.parametrize(
    "how", ["read", "looked for", "deleted", "read by name", "written", "a list"]
)
def test_what_a_pass_reads_of_the_one_before_is_refused(how) -> None:
    trainer = scanning(lambda: Showing(how), torch.float64, with_penalty, rows=16)
    before = trainer.model.features
    with pytest.raises(ConfigError, match=r"forward or the loss changes model\.features"):
        trainer.fit(1)
    assert trainer.model.features is before
    assert type(trainer.model) is Showing
    assert trainer.step == 0


def test_what_is_left_may_not_depend_on_the_size_of_a_batch() -> None:
    trainer = scanning(Showing, torch.float64, with_penalty)
    with pytest.raises(ConfigError, match="forward leaves tensors of other shapes, in batches of"):
        trainer.fit(1)


class Keeping(Own):
    """Has the outputs of its last pass."""

    outputs_of_pass = None

    def compute_loss(self, batch):
        self.outputs_of_pass = self.model(batch.inputs)
        return F.mse_loss(self.outputs_of_pass, batch.targets)


class Collect(Callback):
    def __init__(self) -> None:
        super().__init__(every_n_epochs=1)
        self.seen = []

    def on_epoch_end(self, trainer, record):
        self.seen.append(trainer.outputs_of_pass.detach())


def test_what_a_trainer_keeps_is_that_of_the_last_update_for_a_callback() -> None:
    seen = {}
    for engine in ("eager", "scan"):
        collect = Collect()
        trainer = scanning(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 1)),
            *(torch.float64,),
            **{"kind": Keeping, "rows": 16, "callbacks": [collect]},
        )
        if engine == "eager":
            trainer = Keeping(
                *(trainer.model, None, trainer.optimizer, trainer.loader),
                **{"device": "cpu", "engine": "eager", "callbacks": [collect]},
            )
        trainer.fit(EPOCHS)
        seen[engine] = torch.stack(collect.seen)
    assert (seen["scan"] - seen["eager"]).abs().max() < 1e-12
    assert not torch.equal(seen["scan"][0], seen["scan"][1])
