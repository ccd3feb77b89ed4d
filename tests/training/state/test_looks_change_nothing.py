"""Looks of every kind, at every moment of a run, leave model, loss, data and run as they are."""

import random
from functools import cache

import numpy as np
import pytest
import torch
from helpers.combinations import combinations
from torch import Tensor, nn

from gdtrain import (
    Averaging,
    BatchLoader,
    Callback,
    GradientNorm,
    MiniBatchLoader,
    Trainer,
    curvature,
)
from gdtrain.analysis.comparison.peak_memory import step_memory
from gdtrain.analysis.landscape import landscape
from gdtrain.analysis.lr_range import lr_range
from gdtrain.analysis.monitors.trajectory import Trajectory
from gdtrain.analysis.noise_scale import gradient_noise
from gdtrain.analysis.sample_gradients import largest_sample_gradients
from gdtrain.analysis.sharpness import largest_eigenvalue
from gdtrain.analysis.verify.gradients import verify
from gdtrain.errors import ModelError
from gdtrain.training.state.keeper import modules_of, roots_of

ROWS, COLUMNS = 12, 3


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(ROWS, COLUMNS, generator=draw)
    return x, x.sum(1, keepdim=True).tanh()


# ── kinds of models, losses and trainers ────────────────────────────────────────────────────────


def perceptron(*beside: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(COLUMNS, 4), *beside, nn.Tanh(), nn.Linear(4, 1))


class RunningScale(nn.Module):
    """A squared error over its own running mean, whose buffer is assigned again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.calls = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        error = (output - targets).square().mean()
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * error.detach()
            self.calls.data = self.calls.data + 1
        return error / self.scale


class LayerInLoss(nn.Module):
    """A loss with a layer, BatchNorm and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        return (self.layers(output).mean(1, keepdim=True) - targets).square().mean()


class InPlace(nn.Module):
    """Standardises its input where it lies, and clips its weights there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x -= 1.0
        x *= 0.5
        with torch.no_grad():
            self.layer.weight.clamp_(-0.3, 0.3)
        return self.layer(x)


class MaxNorm(nn.Module):
    """Binds weights of a bounded length to its parameter, in training and in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(COLUMNS, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data = torch.renorm(self.layer.weight.data, 2, 0, 0.5)
        return self.out(torch.tanh(self.layer(x)))


class Assigned(nn.Module):
    """Assigns one buffer, lets another grow and registers a third, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, 1)
        self.register_buffer("mean", torch.zeros(COLUMNS))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        self.seen = torch.cat([self.seen, x.detach()[:1, 0]])
        if "calls" not in self._buffers:
            self.register_buffer("calls", torch.zeros(()))
        self.calls += 1
        return self.layer(x - self.mean)


class Drawing(nn.Module):
    """Draws from the generators of Python, numpy and torch, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, 1)

    def forward(self, x: Tensor) -> Tensor:
        drawn = random.random() + np.random.random() + float(torch.rand(()))
        return self.layer(x) * (1 + 0.1 * drawn)


class FrozenNorm(nn.Module):
    """BatchNorm that stays in eval mode beside one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.layers = nn.BatchNorm1d(COLUMNS), perceptron(nn.BatchNorm1d(4))
        self.frozen.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.frozen(x))


class TwoNames(nn.Module):
    """Holds a layer under two names, and weights in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(COLUMNS, COLUMNS), nn.Linear(COLUMNS, COLUMNS)
        self.again.weight = self.first.weight
        self.one = nn.Linear(COLUMNS, COLUMNS)
        self.other = self.one
        self.head = nn.Linear(COLUMNS, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.one, self.again, self.other):
            x = layer(x).tanh()
        return self.head(x)


class WithTeacher(Trainer):
    """Learns from a teacher that it holds, in training mode, and moves it along."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        torch.manual_seed(7)
        self.teachers = [perceptron(nn.BatchNorm1d(4), nn.Dropout(0.5))]

    def compute_loss(self, batch):
        with torch.no_grad():
            pairs = zip(self.teachers[0][0].parameters(), self.model[0].parameters(), strict=True)
            for theirs, ours in pairs:
                theirs.lerp_(ours, 0.1)
            taught = self.teachers[0](batch.inputs)
        wrong = nn.functional.mse_loss(self.model(batch.inputs), taught)
        return wrong + super().compute_loss(batch)


class GradientPenalty(Trainer):
    """Adds the squared gradient by the inputs."""

    def compute_loss(self, batch):
        with torch.enable_grad():
            inputs = batch.inputs.detach().requires_grad_()
            output = self.model(inputs)
            (slope,) = torch.autograd.grad(output.sum(), inputs, create_graph=True)
        return self.loss(output, batch.targets) + 0.1 * slope.square().mean()


KINDS = {
    "dropout": lambda: (Trainer, perceptron(nn.Dropout(0.3)), nn.MSELoss()),
    "batch norm": lambda: (Trainer, perceptron(nn.BatchNorm1d(4)), nn.MSELoss()),
    "frozen norm": lambda: (Trainer, FrozenNorm(), nn.MSELoss()),
    "loss with a state": lambda: (Trainer, perceptron(nn.Dropout(0.3)), RunningScale()),
    "loss with layers": lambda: (Trainer, perceptron(), LayerInLoss()),
    "in place": lambda: (Trainer, InPlace(), nn.MSELoss()),
    "max norm": lambda: (Trainer, MaxNorm(), nn.MSELoss()),
    "assigned buffers": lambda: (Trainer, Assigned(), nn.MSELoss()),
    "all generators": lambda: (Trainer, Drawing(), nn.MSELoss()),
    "two names": lambda: (Trainer, TwoNames(), nn.MSELoss()),
    "teacher": lambda: (WithTeacher, perceptron(), nn.MSELoss()),
    "gradient penalty": lambda: (GradientPenalty, perceptron(), nn.MSELoss()),
}


# ── looks ───────────────────────────────────────────────────────────────────────────────────────


def averaged(trainer: Trainer) -> None:
    average = next(c for c in trainer.callbacks if isinstance(c, Averaging))
    if average.count:
        average.weights(trainer)
        with average.applied(trainer):
            trainer.evaluate()


def along_gradient(curved) -> None:
    curved.losses(curved.gradient(), torch.tensor([0.0, 0.1]))


def slice_of(trainer: Trainer) -> None:
    path = next(c for c in trainer.callbacks if isinstance(c, Trajectory)).weight_path()
    landscape(trainer, [path], resolution=2)


LOOKS = {
    "evaluate": lambda trainer: trainer.evaluate(),
    "predict": lambda trainer: trainer.predict(data()[0]),
    "state_dict": lambda trainer: trainer.state_dict(),
    "sharpness": lambda trainer: largest_eigenvalue(trainer, max_products=2),
    "hessian in training": lambda trainer: curvature(trainer, training=True).hessian.trace(6),
    "batch": lambda trainer: curvature(trainer, next(iter(trainer.loader))).gradient(),
    "line": lambda trainer: along_gradient(curvature(trainer)),
    "cosines": lambda trainer: curvature(trainer).cosines(2),
    "gradient norm": lambda trainer: GradientNorm().measure(trainer),
    "noise of samples": lambda trainer: gradient_noise(trainer, num_samples=5),
    "noise of groups": lambda trainer: gradient_noise(trainer, batch_size=4),
    "samples": lambda trainer: largest_sample_gradients(trainer, 2),
    "landscape": slice_of,
    "lr range": lambda trainer: lr_range(trainer, start=1e-3, stop=1.0, updates=3),
    "averaged": averaged,
    "step memory": step_memory,
    "verify": lambda trainer: verify(trainer, next(trainer.read(trainer.loader)), num_processes=0),
}


# Models under which a sample has no loss of its own: the batch's is not the mean over samples.
BY_SAMPLE = ("noise of samples", "noise of groups", "samples")
NO_MEANS = ("all generators", "assigned buffers", "teacher")


def refused(look):
    def attempt(trainer: Trainer) -> None:
        with pytest.raises(ModelError, match="sample"):
            look(trainer)

    return attempt


class Looker(Callback):
    """Looks once at each moment, and sees to it that everything is then as it was before."""

    def __init__(self, look, moments: set[str]) -> None:
        super().__init__(every_n_steps=1)
        self.look, self.moments = look, moments

    def at(self, moment: str, trainer: Trainer) -> None:
        if moment not in self.moments:
            return
        self.moments.remove(moment)
        before = everything(trainer)
        self.look(trainer)
        check_same(everything(trainer), before)

    def on_epoch_start(self, trainer):
        self.at("on_epoch_start", trainer)

    def on_before_update(self, trainer):
        self.at("on_before_update", trainer)

    def on_safe_point(self, trainer):
        self.at("on_safe_point", trainer)

    def on_epoch_end(self, trainer, record):
        self.at("on_epoch_end", trainer)


class GradientLooker(Looker):
    def on_gradient(self, trainer, batch, loss):
        self.at("on_gradient", trainer)


def everything(trainer: Trainer) -> dict:
    """What a look must leave: what is the same object, and values."""
    modules = modules_of(roots_of(trainer, whole=True))
    parameters = [p for m in modules for p in m.parameters(recurse=False)]
    buffers = [(n, b) for m in modules for n, b in m._buffers.items()]
    state = trainer.optimizer.state
    twister = np.random.get_state()
    return {
        "objects": [
            *modules,
            *parameters,
            *(p.grad for p in parameters),
            *(b for _, b in buffers),
            trainer.engine,
            trainer.plan,
            trainer.outputs,
            trainer.model,
            trainer.loss,
        ],
        "numbers": [
            [m.training for m in modules],
            [p.data_ptr() for p in parameters],
            [p.requires_grad for p in parameters],
            [name for name, _ in buffers],
            trainer.lr,
            trainer.progress.state_dict(),
            random.getstate(),
            twister[1].tolist(),
            twister[2:],
            [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups],
            sorted(trainer.called_rungs),
            trainer.should_stop,
            len(trainer.history.epochs),
            len(trainer.callbacks),
        ],
        "history": [(r["step"], r["train_loss"], r["lr"]) for r in trainer.history.epochs],
        "tensors": [
            tensor.detach().clone()
            for tensor in [
                *parameters,
                *(p.grad for p in parameters),
                *(b for _, b in buffers),
                *(v for p in parameters for v in state.get(p, {}).values()),
                *trainer.loader.samples.tensors,
                torch.get_rng_state(),
            ]
            if isinstance(tensor, Tensor)
        ],
    }


def check_same(now: dict, before: dict) -> None:
    assert all(a is b for a, b in zip(now["objects"], before["objects"], strict=True))
    assert now["numbers"] == before["numbers"]
    assert now["history"] == before["history"]
    assert all(map(torch.equal, now["tensors"], before["tensors"]))


def looking_inside(kind: type[Trainer], looker: Looker) -> type[Trainer]:
    """A trainer that looks in the middle of a loss, whose graph is there."""

    class Inside(kind):
        is_inside = False

        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            if self.progress.step == 1 and torch.is_grad_enabled() and not self.is_inside:
                self.is_inside = True
                looker.at("compute_loss", self)
                self.is_inside = False
            return loss

    return Inside


def run(kind: str, full_batch: bool, looker: Looker) -> Trainer:
    """Two epochs, then a look from outside, then one more."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    make, model, loss = KINDS[kind]()
    parameters = [*model.parameters(), *(loss.parameters())]
    x, y = data()
    loader = BatchLoader((x, y)) if full_batch else MiniBatchLoader((x, y), 4, seed=3)
    trainer = looking_inside(make, looker)(
        model,
        loss,
        torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        loader,
        callbacks=[Averaging(), Trajectory(every_n_steps=1), looker],
        device="cpu",
    )
    trainer.fit(2)
    looker.at("after fit", trainer)
    trainer.model.eval()
    looker.at("in eval mode", trainer)
    trainer.model.train()
    trainer.fit(4)
    assert not looker.moments
    assert torch.equal(x, data()[0])
    return trainer


MOMENTS = {
    "on_epoch_start", "on_before_update", "on_safe_point", "on_epoch_end", "compute_loss",
    "after fit", "in eval mode",
}  # fmt: skip


@cache
def unwatched(kind: str, full_batch: bool) -> dict:
    return everything(run(kind, full_batch, GradientLooker(None, set())))


@pytest.mark.parametrize("look", ["noise of samples", "line", "verify", "samples"])
def test_a_layer_with_two_names_stays_what_it_was(look: str) -> None:
    """PyTorch's functional_call leaves what it was called with in one of them."""
    model = TwoNames()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader(data()), device="cpu")
    before = everything(trainer)
    LOOKS[look](trainer)
    check_same(everything(trainer), before)


@pytest.mark.few(24)
@pytest.mark.parametrize(("look", "kind", "full_batch"), combinations(LOOKS, KINDS, [False, True]))
def test_a_look_changes_nothing(look: str, kind: str, full_batch: bool) -> None:
    alone = unwatched(kind, full_batch)
    moments = set(MOMENTS)
    # The range test refuses callbacks that change gradients, as those of on_gradient may.
    with_gradient = look != "lr range"
    if with_gradient:
        moments.add("on_gradient")
    is_refused = look in BY_SAMPLE and kind in NO_MEANS
    made = refused(LOOKS[look]) if is_refused else LOOKS[look]
    looker = (GradientLooker if with_gradient else Looker)(made, moments)
    watched = everything(run(kind, full_batch, looker))
    assert all(map(torch.equal, watched["tensors"], alone["tensors"]))
    assert watched["history"] == alone["history"]


class Hungry(nn.Module):
    """Has memory for five samples in eval mode, and for nine in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, 1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > (9 if self.training else 5):
            raise torch.OutOfMemoryError("out of memory")
        return self.layer(x)


@pytest.mark.parametrize("look", ["evaluate", "predict", "sharpness"])
def test_a_look_that_runs_out_of_memory_leaves_the_size_of_microbatches(look: str) -> None:
    def weights(*callbacks: Callback) -> list[Tensor]:
        torch.manual_seed(0)
        model = Hungry()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(
            model, nn.MSELoss(), optimizer, BatchLoader(data()), callbacks=callbacks, device="cpu",
            microbatch_size="auto", memory_limit="1GB",
        )  # fmt: skip
        if callbacks:
            LOOKS[look](trainer)
        trainer.fit(3)
        return [p.detach() for p in model.parameters()]

    moments = {"on_before_update", "on_safe_point", "on_epoch_end"}
    assert all(map(torch.equal, weights(Looker(LOOKS[look], moments)), weights()))
    assert not moments


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("look", ["evaluate", "predict"])
def test_a_look_at_a_lazy_layer_draws_its_weights_as_a_first_batch_does(look) -> None:
    """Once: the run goes on from the same numbers, and behind them."""

    def built() -> Trainer:
        torch.manual_seed(3)
        model = nn.Sequential(nn.LazyLinear(4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(
            model, nn.MSELoss(), optimizer, MiniBatchLoader(data(), 4, seed=0), device="cpu"
        )

    alone = built()
    alone.fit(2)
    expected = torch.get_rng_state()
    looked_at = built()
    looked_at.evaluate() if look == "evaluate" else looked_at.predict(data()[0])
    looked_at.fit(2)
    assert torch.equal(torch.get_rng_state(), expected)
    for one, other in zip(looked_at.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)
