"""The cuda_graph engine: recorded on a device where there is one, its static step anywhere."""

import copy

import pytest
import torch
from helpers.combinations import combinations
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.errors import ConfigError, NonFiniteError
from gdtrain.training import models
from gdtrain.training.engines.cuda.graph import WARM_UPS, CudaGraphEngine
from gdtrain.training.optimizing import schedules

N = 131
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "clip_value": {"clip_grad_value": 0.02},
    "schedule": {"schedule": True, "scheduler_per": "step"},
}
ENGINES = ("eager", "cuda_graph")
LOADERS = {
    "batch": BatchLoader,
    "sample": SampleLoader,
    "minibatch": lambda d: MiniBatchLoader(d, 4),
}


def data(bad_row: int | None = None):
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(N, 5, generator=draw, dtype=torch.float64)
    y = torch.rand(N, 3, generator=draw, dtype=torch.float64)
    if bad_row is not None:
        X[bad_row] = 1e300  # its square is infinite
    return X, y


def build(engine: str, device: str, model: nn.Module, loader, **options) -> Trainer:
    model = copy.deepcopy(model)
    sgd = {k: options.pop(k) for k in list(options) if not k.startswith(("clip", "schedul"))}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **sgd)
    if options.pop("schedule", False):
        options["scheduler"] = schedules.scheduler(optimizer, schedules.inverse_time(50))
    wanted = "cuda_graph" if (engine, device) == ("cuda_graph", "cuda") else "eager"
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, loader, device=device, engine=wanted, **options
    )
    if engine == "cuda_graph" and device == "cpu":  # the static step, each time executed again
        trainer.choice.settle(1)
        trainer.engine = CudaGraphEngine(trainer, record=record)
        trainer.choice.of_run = trainer.engine.name
        trainer.choice.settle = lambda epochs: None
    return trainer


def record(work, rewind, device):
    """Warms up as a device wants it, and does the work again each time."""
    for _ in range(WARM_UPS):
        rewind()
        work()
    rewind()
    return work


def assert_close(left: Trainer, right: Trainer) -> None:
    pairs = zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True)
    for a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.few(2)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("form", "setting"), combinations(LOADERS, SETTINGS, of=1))
def test_agrees_with_the_eager_engine(form: str, setting: str, device: str) -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="tanh", batch_norm=form == "batch").double()
    trained = []
    for engine in ENGINES:
        trainer = build(engine, device, model, LOADERS[form](data()), **SETTINGS[setting])
        trainer.fit(2)
        trainer.fit(3)
        assert trainer.engine.name == engine
        trained.append(trainer)
    assert_close(*trained)
    eager, graph = trained
    assert graph.history.train_loss == pytest.approx(eager.history.train_loss, rel=1e-10)
    for p, q in zip(eager.model.parameters(), graph.model.parameters(), strict=True):
        assert eager.optimizer.state[p].keys() == graph.optimizer.state[q].keys()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("device", DEVICES)
def test_a_weight_that_a_hook_binds_is_that_of_the_last_update(device: str) -> None:
    trained = []
    for engine in ENGINES:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        loader = MiniBatchLoader(data(), 4, order="sequential")  # the last batch has three samples
        trainer = build(engine, device, model, loader)
        nn.utils.weight_norm(trainer.model[0])
        trainer.optimizer.param_groups[0]["params"] = list(trainer.model.parameters())
        trainer.fit(2)
        assert trainer.engine.name == engine
        trained.append(trainer)
    assert_close(*trained)
    eager, graph = (trainer.model[0].weight.detach() for trainer in trained)
    assert torch.allclose(eager, graph, rtol=1e-10, atol=1e-12)


@pytest.mark.few(2)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clip", [{}, {"clip_grad_value": 1.0}])
@pytest.mark.parametrize("row", [0, 57, 130])
def test_a_bad_batch_is_not_used(row: int, clip, device: str) -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="identity").double()
    loader = SampleLoader(data(row), order="sequential")
    trained = []
    for engine in ENGINES:
        trainer = build(
            engine, device, model, loader, momentum=0.5, schedule=True, scheduler_per="step", **clip
        )
        with pytest.raises(NonFiniteError, match=rf"step {row + 1}, .*on sample {row}"):
            trainer.fit(1)
        trained.append(trainer)
    assert_close(*trained)
    eager, graph = trained
    assert eager.progress.step == graph.progress.step == row
    assert eager.lr == graph.lr
    for p, q in zip(eager.model.parameters(), graph.model.parameters(), strict=True):
        assert eager.optimizer.state.get(p, {}).keys() == graph.optimizer.state.get(q, {}).keys()


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_that_is_loaded_is_the_one_that_goes_on(device: str) -> None:
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="tanh").double()
    trainer = build("cuda_graph", device, model, LOADERS["minibatch"](data()), momentum=0.5)
    trainer.fit(1)
    snapshot = trainer.state_dict()
    trainer.fit(3)
    expected = copy.deepcopy(trainer.model.state_dict())
    trainer.load_state_dict(snapshot)
    trainer.fit(3)
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("refused", [0, 1])
def test_under_auto_a_recording_that_fails_leaves_the_rest_to_the_eager_engine(refused) -> None:
    """The device refuses a recording, the first or a later one, after its warm-up."""
    torch.manual_seed(2)
    model = models.mlp([5], 3, hidden=[4], activation="tanh").double()
    recorded = []

    def fails(work, rewind, device):
        recorded.append(record(work, rewind, device))
        if len(recorded) > refused:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
        return recorded[-1]

    eager, graph = (build(name, "cpu", model, LOADERS["minibatch"](data())) for name in ENGINES)
    graph.choice.wanted = "auto"
    graph.engine = CudaGraphEngine(graph, record=fails)
    for trainer in (eager, graph):
        trainer.fit(2)
    assert graph.engine.name == "eager"
    assert graph.progress.step == eager.progress.step
    assert_close(eager, graph)


def test_the_table_of_samples_has_no_more_rows_than_an_epoch_has_updates() -> None:
    trainer = build("cuda_graph", "cpu", nn.Linear(5, 3).double(), BatchLoader(data()))
    trainer.fit(3)
    (recorded,) = trainer.engine._recorded.values()
    assert recorded.static.places.shape == (1, N)


class Counted(TorchDispatchMode):
    """Counts operators that a device would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_an_update_that_is_not_guarded_does_not_look_at_its_gradient() -> None:
    model = models.mlp([5], 3, hidden=[4], activation="tanh").double()
    trainer = build("cuda_graph", "cpu", model, LOADERS["minibatch"](data()))
    trainer.fit(1)
    static = next(iter(trainer.engine._recorded.values())).static
    counts = []
    for guarded in (False, True):
        static.number.zero_()
        with Counted() as counted:
            static.advance(guarded=guarded)
        counts.append(sum("isfinite" in n or "aten.all" in n or "eq." in n for n in counted.names))
    alone, looking = counts
    assert alone < looking
    assert looking - alone >= 2 * len(list(model.parameters()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_is_refused() -> None:
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError) as caught:
        Trainer(model, nn.MSELoss(), optimizer, SampleLoader(data()), engine="cuda_graph")
    assert str(caught.value) == (
        "engine: cuda_graph can't run this: there is no CUDA device; use eager"
    )


class Terms(Trainer):
    def compute_loss(self, batch):
        fit = (self.model(batch.inputs) - batch.targets).square().mean()
        self.log("largest", batch.inputs.abs().max())
        return {"loss": 2 * fit, "fit": fit}


def test_terms_of_a_loss_are_those_of_the_eager_engine() -> None:
    def fitted(engine: str) -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(5, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        loader = MiniBatchLoader(data(), 4, order="reshuffle", seed=0)
        trainer = Terms(model, None, optimizer, loader, device="cpu", engine="eager")
        if engine == "cuda_graph":
            trainer.engine = CudaGraphEngine(trainer, record=record)
            trainer.choice.settle = lambda epochs: None
        trainer.fit(2)
        return trainer

    graph, eager = fitted("cuda_graph"), fitted("eager")
    for one, other in zip(graph.history, eager.history, strict=True):
        for name in ("train_loss", "train_fit", "largest"):
            assert one[name] == pytest.approx(other[name], rel=1e-10)


class OfDicts(nn.Module):
    """Takes its inputs out of a dict by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 3)

    def forward(self, inputs):
        return self.body(inputs.pop("x")) * inputs.pop("scale")


@pytest.mark.parametrize("device", DEVICES)
def test_data_in_dicts_keep_their_names(device: str) -> None:
    X, y = data()
    torch.manual_seed(2)
    model, trained = OfDicts().double(), []
    for engine in ENGINES:
        loader = MiniBatchLoader(({"scale": y[:, :1] + 1, "x": X}, y), 4)
        trainer = build(engine, device, model, loader)
        trainer.fit(2)
        assert trainer.engine.name == engine
        trained.append(trainer)
    assert_close(*trained)
