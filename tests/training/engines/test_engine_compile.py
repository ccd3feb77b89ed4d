"""The engine compile: torch.compile on model and loss, with the weights of the eager engine."""

import copy
import logging

import pytest
import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError
from gdtrain.training import models

# PyTorch 2.14's own, while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

X = torch.randn(26, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TRACED = {"backend": "aot_eager"}  # graphs as inductor's, run by PyTorch's own operators


def build(model, engine="compile", options=TRACED, loss=None, **more):
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    y = X[:, :1].to(next(model.parameters()).dtype)
    loader = MiniBatchLoader((X.to(y.dtype), y), 4)
    compile_options = options if engine == "compile" else None
    loss = nn.MSELoss() if loss is None else loss
    return Trainer(
        *(model, loss, optimizer, loader),
        engine=engine,
        compile=compile_options,
        device="cpu",
        **more,
    )


def mlp(dtype=torch.float64, **options):
    torch.manual_seed(1)
    return models.mlp([5], 1, hidden=[6], activation="tanh", **options).to(dtype)


def difference(one: Trainer, other: Trainer) -> float:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max(float((a - b).double().norm() / (1e-12 + b.double().norm())) for a, b in pairs)


def test_weights_are_those_of_eager_and_names_stay() -> None:
    model = mlp(batch_norm=True)
    names = list(model.state_dict())
    eager, compiled = build(model, "eager"), build(model, loss=nn.SmoothL1Loss())
    eager.loss = nn.SmoothL1Loss()
    for trainer in (eager, compiled):
        trainer.fit(3)  # 26 samples: the last batch of an epoch has two
    assert compiled.engine.name == "compile"
    assert difference(compiled, eager) < 1e-10
    assert compiled.history.train_loss == pytest.approx(eager.history.train_loss, rel=1e-10)
    assert list(compiled.model.state_dict()) == names
    assert compiled.model._compiled_call_impl is None  # as it was


def test_what_changes_in_mid_run_counts() -> None:
    def freeze(trainer):
        trainer.fit(1)
        trainer.model[0].weight.requires_grad_(False)
        trainer.optimizer.param_groups[0]["lr"] = 0.1
        trainer.fit(2)
        trainer.model[2] = nn.Linear(6, 1, dtype=torch.float64)
        nn.init.ones_(trainer.model[2].weight)
        nn.init.zeros_(trainer.model[2].bias)
        trainer.optimizer.add_param_group({"params": list(trainer.model[2].parameters())})
        trainer.fit(3)

    model = mlp()
    eager, compiled = build(model, "eager"), build(model)
    for trainer in (eager, compiled):
        freeze(trainer)
    assert difference(compiled, eager) < 1e-10


class Breaking(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        torch._dynamo.graph_break()
        return y * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # by the tracer, at a break
def test_graph_breaks_are_told_once(caplog) -> None:
    model = Breaking(5, 1, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer = build(model)
        trainer.fit(1)
        trainer.fit(2)
    told = [r.message for r in caplog.records if r.name == "gdtrain"]
    assert len(told) == 1
    assert told[0].startswith("engine: compile: a graph break, which costs speed: ")


class Branching(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def test_what_can_not_be_in_one_graph_is_an_error_under_fullgraph() -> None:
    trainer = build(Branching(5, 1, dtype=torch.float64), options={**TRACED, "fullgraph": True})
    with pytest.raises(ConfigError, match=r"^engine: compile can't run this: torch\.compile: "):
        trainer.fit(1)
    assert trainer.step == 0


class Counting(nn.Linear):
    """Scales by the passes made; how: in which way forward counts them."""

    def __init__(self, how: str) -> None:
        super().__init__(5, 1, dtype=torch.float64)
        self.how = how
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.how == "in place":
            self.count += 1
        elif self.how == "without a gradient":
            with torch.no_grad():
                self.count.add_(1)
        elif self.how == "by copy":
            self.count.copy_(self.count + 1)
        else:
            self.count = self.count + 1
        return super().forward(x) * (1 + 0.1 * self.count)


@pytest.mark.parametrize("how", ["in place", "without a gradient", "by copy"])
def test_a_forward_that_writes_to_buffers_in_place_is_refused(how: str) -> None:
    """torch.compile reads the buffer once more in the backward pass, when it has the next value."""
    model = nn.Sequential(Counting(how))
    trainer = build(model)
    with pytest.raises(ConfigError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "engine: compile can't run this: torch.compile: forward writes to buffer 0.count in "
        "place, after which its gradient may be wrong; rebind it, as in "
        "self.count = self.count + 1; use eager"
    )
    assert trainer.step == 0
    assert torch.equal(trainer.model[0].weight, model[0].weight)
    assert trainer.model[0].count == 0


class Renamed(nn.BatchNorm1d):
    pass


LAYERS = {
    "bound again": lambda: Counting("again"),
    "BatchNorm of your own": lambda: nn.Sequential(
        Renamed(5, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64)
    ),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(
        nn.Linear(5, 1, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_buffers_that_a_compiled_forward_may_change(layer: str) -> None:
    torch.manual_seed(1)
    model = LAYERS[layer]()
    eager, compiled = build(model, "eager"), build(model)
    for trainer in (eager, compiled):
        trainer.fit(2)
    assert difference(compiled, eager) < 1e-10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit.script itself
def test_a_scripted_model_is_refused() -> None:
    model = torch.jit.script(nn.Linear(5, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, X[:, :1]), 4)
    options = {"engine": "compile", "compile": TRACED, "device": "cpu"}
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, **options)
    with pytest.raises(ConfigError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "engine: compile can't run this: torch.compile: a Linear that is scripted can't be "
        "compiled; use eager"
    )
    assert trainer.step == 0


def test_options_are_checked() -> None:
    for options, engine, message in (
        ({"mod": 1}, "compile", "compile.mod: unknown; the options are backend, mode, "),
        ({"mode": "reduce-overhead"}, "compile", "compile.mode: must be one of default, max-aut"),
        ({}, "eager", "compile: has no effect with engine eager; set engine: compile"),
    ):
        with pytest.raises(ConfigError) as caught:
            check(options, engine)
        assert str(caught.value).startswith(message)


def check(options, engine):
    model = mlp()
    Trainer(
        *(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)),
        engine=engine,
        compile=options,
        device="cpu",
    )


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_inductor_has_the_weights_of_eager(dtype, bound) -> None:
    model = mlp(dtype)
    eager, compiled = build(model, "eager"), build(model, options=None)
    for trainer in (eager, compiled):
        trainer.fit(1)
    assert difference(compiled, eager) < bound
