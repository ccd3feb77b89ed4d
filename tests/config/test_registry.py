"""A user's own models, losses, sources and trainers: registered in Python, named in YAML."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gdtrain import load_run, registry
from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.json_schema import json_schema
from gdtrain.config.load import check, dump, parse_config
from gdtrain.config.yaml_source import read_text
from gdtrain.errors import ConfigError, ModelError
from gdtrain.settings import NamedSettings, Targets

MODULE = '''
from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from gdtrain import Trainer
from gdtrain.registry import (
    register_loss, register_model, register_source, register_trainer
)


@register_model("scaled")
class Scaled(nn.Module):
    """A linear map whose output is scaled."""

    def __init__(self, in_features: int, out_features: int, factors: tuple[float, ...] = (1, 2),
                 bias: bool = True, init=nn.init.zeros_):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features, bias=bias)
        self.factors = factors

    def forward(self, x):
        return self.layer(x) * self.factors[0]


@register_model("shaped")
def shaped(input_shape, out_features, width: int = 4):
    assert input_shape == [1, 2]
    return nn.Sequential(nn.Flatten(), nn.Linear(2, width), nn.Linear(width, out_features))


@register_model("empty")
class Empty(nn.Module):
    def forward(self, x):
        return x


@register_model("normalised")
def normalised(in_features):
    return nn.Sequential(nn.BatchNorm1d(in_features), nn.Linear(in_features, 1))


@register_model("wrong")
def wrong():
    return 3


@register_loss("power")
def power(output, targets, exponent: float = 4.0):
    """mean |output - target|^exponent."""
    return (output - targets).abs().pow(exponent).mean()


@register_loss("half_mse")
class HalfMse(nn.MSELoss):
    def forward(self, output, targets):
        return super().forward(output, targets) / 2


@register_source("ramp")
def ramp(rows: int, slope: float = 2.0):
    """y = slope x."""
    x = torch.arange(rows, dtype=torch.float32)[:, None] / rows
    return torch.cat([x, -x], dim=1), slope * x


class Pairs(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        return torch.tensor([float(i), 1.0]), torch.tensor([2.0 * i])


@register_source("pairs")
def pairs(rows: int = 6):
    return Pairs(rows)


@register_source("triple")
def triple():
    return 1, 2, 3


@register_trainer("penalised")
class Penalised(Trainer):
    def compute_loss(self, batch):
        return super().compute_loss(batch) + 100.0
'''

CONFIG = """\
data: {source: ramp, rows: 8}
model: {name: scaled, factors: [0.5, 3]}
loss: power
loader: {name: minibatch, batch_size: 3}
optimizer: {lr: 0.01}
epochs: 1
log: {picture: false}
"""


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    """A working directory with own_parts.py and a.yaml."""
    (tmp_path / "own_parts.py").write_text(MODULE, "utf-8")
    (tmp_path / "a.yaml").write_text(CONFIG, "utf-8")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def run(*arguments: str) -> int:
    return main(["--config", "a.yaml", "--import", "own_parts", *arguments])


def test_a_configuration_of_own_parts_trains_resumes_and_is_loaded_again(own_parts, capsys):
    assert run("--output-dir", "out") == 0
    assert run("--output-dir", "out", "--resume", "epochs=2") == 0
    assert "resuming from out/checkpoints/step-0000000003" in capsys.readouterr().err
    trained = load_run("out")
    assert trained.model.factors == (0.5, 3.0)
    weights = trained.model.layer.weight, trained.model.layer.bias
    rows = torch.tensor([[1.0, 2.0], [0.0, -3.0]])
    assert torch.equal(trained.predict(rows), nn.functional.linear(rows, *weights) * 0.5)


def test_options_are_checked_by_signature_and_annotations(own_parts, capsys):
    code = run(
        *("model.factor=[1]", "model.bias=3", "model.factors=[a]", "loss.exponent=x"),
        *("data.rows=null", "data.slop=1", "model.init=3"),
    )
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "a.yaml:1:7: data.rows: missing; it is required",
        "command line:1:1: model.factor: unknown key; did you mean factors?",
        "command line:2:12: model.bias: must be true or false, got 3",
        "command line:3:16: model.factors[0]: must be a number, got 'a'",
        "command line:4:15: loss.exponent: must be a number, got 'x'",
        "command line:6:1: data.slop: unknown key; did you mean slope?",
        "command line:7:1: model.init: unknown key; the keys here are name, in_features, "
        "out_features, factors, bias",
    ]


def test_features_and_shapes_are_supplied_from_the_data_unless_set(own_parts, capsys):
    assert run("--dry-run", "model=shaped", "data.shape=[1, 2]", "model.width=5") == 0
    assert "21 parameters" in capsys.readouterr().out  # 2·5 + 5 + 5·1 + 1
    assert run("--dry-run", "model=scaled", "model.out_features=1") == 0
    assert "3 parameters" in capsys.readouterr().out  # 2·1 + 1


def test_the_loss_is_the_registered_one(own_parts, capsys):
    assert run("--dry-run", "loss=half_mse", "model.bias=false", "loader=batch", "seed=1") == 0
    assert run("--dry-run", "loss=half_mse", "metrics=[mae]", "data.validation_fraction=0.5") == 0
    half = capsys.readouterr().out
    assert run("--dry-run", "loss=mse", "model.bias=false", "loader=batch", "seed=1") == 0
    whole = capsys.readouterr().out
    losses = [float(said.split("loss ")[1].split(";")[0]) for said in (half, whole)]
    assert losses[0] == pytest.approx(losses[1] / 2, rel=1e-3)


def test_a_dataset_source_and_an_own_trainer(own_parts, capsys):
    assert run("data=pairs", "loss=mse", "model=linear", "--output-dir", "out") == 0
    assert load_run("out").predict(torch.zeros(3, 2)).shape == (3, 1)
    capsys.readouterr()
    assert run("--dry-run", "trainer=penalised", "loss=mse", "loader=batch") == 0
    assert float(capsys.readouterr().out.split("loss ")[1].split(";")[0]) > 100


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["model=empty"],
            "command line:1:7: model: has no parameters to train; "
            "give it at least one with requires_grad=True",
        ),
        (
            ["model=wrong"],
            "command line:1:7: model.name: 'wrong' gave a int, not an nn.Module",
        ),
        (
            ["data=triple"],
            "command line:1:6: data: source 'triple' must give (inputs, targets) or a Dataset",
        ),
        (
            ["data={source: pairs, rows: 0}"],
            "command line:1:6: data: the data set is empty; at least one sample is needed",
        ),
        (
            ["data={source: pairs, standardize: true}"],
            "command line:1:35: data.standardize: has no effect on a Dataset, "
            "whose samples are its own",
        ),
        (
            ["model=normalised", "loader=sample"],
            "a.yaml:1:1: model: a batch of one sample reached BatchNorm, which has no statistics "
            "of one; use GroupNorm or LayerNorm, another batch_size, or drop_last",
        ),
        (
            ["model=normalised", "loader.batch_size=7"],  # 8 samples: the last batch has one
            "a.yaml:1:1: model: a batch of one sample reached BatchNorm, which has no statistics "
            "of one; use GroupNorm or LayerNorm, another batch_size, or drop_last",
        ),
        (
            ["trainer=penalized"],
            "command line:1:9: trainer: 'penalized' is not registered (registered: penalised); "
            "use --import",
        ),
        (
            ["--import", "no_such_module"],
            "command line:1:1: --import: module 'no_such_module' not found; "
            "run from its directory, or add that to PYTHONPATH",
        ),
        (
            ["--import", "own_parts.py"],
            "command line:1:1: --import: module 'own_parts.py' not found; "
            "name the module, not its file: own_parts",
        ),
        (
            ["--import", "../own_parts"],
            "command line:1:1: --import: module '../own_parts' not found; "
            "run from its directory, or add that to PYTHONPATH",
        ),
    ],
)
def test_what_is_wrong_with_own_parts_is_said_before_anything_is_written(
    own_parts, capsys, arguments, fault
):
    assert run(*arguments) == 2
    expected = fault.replace("a.yaml:1:1: model", "a.yaml:2:8: model")
    if "model=normalised" in arguments:
        expected = fault.replace("a.yaml:1:1", "command line:1:7")
    assert capsys.readouterr().err.splitlines() == [expected]
    assert sorted(path.name for path in own_parts.iterdir() if path.name != "__pycache__") == [
        "a.yaml",
        "own_parts.py",
    ]


def test_an_error_inside_an_imported_module_is_not_hidden(own_parts):
    Path("broken_parts.py").write_text("import no_such_module_at_all\n", "utf-8")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        main(["--config", "a.yaml", "--import", "broken_parts"])


def test_own_parts_are_in_the_schema_and_round_trip(own_parts):
    assert main(["schema", "--import", "own_parts"]) == 0
    schema = json_schema()
    described = schema["$defs"]["scaled_model"]
    assert described["description"] == "A linear map whose output is scaled."
    assert set(described["properties"]) == {
        *("name", "in_features", "out_features", "factors", "bias"),
    }
    data = {
        "data": {"source": "ramp", "rows": 8, "validation_fraction": 0.5},
        "model": "scaled",
        "loss": {"name": "power", "exponent": 3.0},
        "loader": "sample",
        "optimizer": {"lr": 0.1},
        "epochs": 1,
    }
    config = parse_config(data)
    assert config.model.factors == (1, 2)
    again = check(read_text(dump(config), "config.yaml"))
    assert again.model_dump() == config.model_dump()


VALID = {
    "data": "digits",
    "model": "mlp",
    "loss": "mse",
    "loader": "sample",
    "optimizer": {"lr": 0.1},
    "epochs": 1,
}


def test_a_part_is_registered_under_a_name() -> None:
    with pytest.raises(ConfigError) as error:

        @registry.register_loss  # type: ignore[arg-type]
        def squared(outputs, targets):
            return (outputs - targets).square().mean()

    said = "loss: squared is registered under a name: @register_loss('name')"
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("register", "name", "part", "fault"),
    [
        (
            registry.register_model,
            "not a name",
            lambda: None,
            "model: 'not a name' is not a name; use letters, digits, _",
        ),
        (
            registry.register_model,
            "mlp",
            lambda: None,
            "model: 'mlp' is built in; register yours under another name",
        ),
        (
            registry.register_model,
            "mine",
            lambda name: None,
            "model: 'mine' has an argument 'name', which is a setting of every model; "
            "give it another name",
        ),
        (
            registry.register_source,
            "mine",
            lambda shape: None,
            "source: 'mine' has an argument 'shape', which is a setting of every source; "
            "give it another name",
        ),
    ],
)
def test_parts_that_cannot_be_registered(register, name, part, fault):
    def use() -> None:
        register(name)(part)
        parse_config(VALID)

    with pytest.raises(ConfigError) as caught:
        use()
    assert str(caught.value) == fault


def test_settings_of_another_kind_and_unknown_facts_are_refused():
    class Own(NamedSettings):
        """Without what a loss says of itself."""

    with pytest.raises(ConfigError) as caught:
        registry.register_loss("mine", Own)(lambda outputs, targets: outputs.mean())
    assert str(caught.value) == (
        "loss: 'mine' has settings that are no LossSettings; derive their class from it"
    )
    with pytest.raises(ConfigError) as caught:
        registry.register_loss("mine", target="classes")(lambda outputs, targets: outputs.mean())
    assert str(caught.value) == (
        "loss: 'mine' is given 'target'; what can be said of a loss: metrics, "
        "output_activations, per_output, targets"
    )


def test_facts_of_a_loss_by_its_signature_make_its_targets_labels():
    registry.register_loss("own_nll", targets=Targets(classes=True), metrics=("accuracy",))(
        lambda outputs, targets, scale=2.0: scale * nn.functional.cross_entropy(outputs, targets)
    )
    data = {"source": "digits", "validation_fraction": 0.5}
    run = build(parse_config(VALID | {"loss": "own_nll", "data": data, "loader": "batch"}))
    history = run.trainer.fit(1)
    assert run.trainer.model[-1].out_features == 10
    assert 0 <= history.val_accuracy[-1] <= 1


@pytest.mark.parametrize("source", ["digits", "two_moons"])
def test_a_loss_over_classes_that_does_not_say_so_is_refused(source):
    """It gets labels as numbers, and so one output, over which it is 0 for any weights."""
    registry.register_loss("undeclared")(
        lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)
    )
    run = build(parse_config(VALID | {"data": source, "loss": "undeclared"}))
    with pytest.raises(ModelError) as caught:
        run.trainer.fit(1)
    assert str(caught.value) == (
        "loss: cross_entropy is over one class here, and so 0 whatever the model gives; give the "
        "model an output for each class, and int64 labels as targets (a loss that is registered "
        "says so by targets=Targets(classes=True))"
    )


def test_named_classes_under_an_own_loss_over_numbers_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + "0,cat\n1,dog\n2,hen\n" * 4)
    data = {"source": "csv", "path": str(tmp_path / "t.csv"), "target": "y"}
    registry.register_loss("unsaid")(nn.functional.cross_entropy)
    with pytest.raises(ConfigError, match=r"or register it with targets=Targets\(classes=True\)$"):
        build(parse_config(VALID | {"data": data, "loss": "unsaid"}))


def test_a_test_of_targets_is_one_of_each_number():
    targets = Targets(must_be="counts", holds=lambda y: (y >= 0).all(), unit=True)
    registry.register_loss("own_counts", targets=targets)(
        lambda outputs, targets: nn.functional.mse_loss(outputs, targets)
    )
    with pytest.raises(ConfigError) as caught:
        build(parse_config(VALID | {"data": "digits", "loss": "own_counts"}))
    assert str(caught.value) == (
        "data: own_counts: its test of targets must say of each number whether it holds, "
        "as y >= 0 does"
    )


def test_a_name_is_registered_once():
    def first() -> nn.Module:
        return nn.Linear(1, 1)

    assert registry.register_model("mine")(first) is first
    registry.register_model("mine")(first)  # the same again, as a reloaded notebook does
    with pytest.raises(ConfigError) as caught:
        registry.register_model("mine")(lambda: first())
    assert str(caught.value) == "model: 'mine' is already registered; choose another"


def test_an_option_that_is_null_is_told_from_one_that_is_left_out(tmp_path, monkeypatch, capsys):
    @registry.register_model("noted")
    def noted(in_features: int, out_features: int, notes: dict[str, int | None]) -> nn.Module:
        return nn.Linear(in_features, out_features)

    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "data: digits\nmodel: {name: noted, notes: {x: null}}\nloss: cross_entropy\n"
        "loader: batch\noptimizer: {lr: 0.1}\nepochs: 1\n",
        "utf-8",
    )
    assert main(["--config", "a.yaml", "--output-dir", "run"]) == 0
    assert main(["--config", "a.yaml", "--output-dir", "run", "--resume", "model.notes={}"]) == 2
    said = "model.notes is {'x': None} there and {} here; "
    assert said in capsys.readouterr().err


EVERY_KIND = '''
import torch
from torch import nn

from gdtrain import (
    BatchLoader, Callback, GradientNorm, MiniBatchLoader, register_callback, register_loader,
    register_metric, register_monitor, register_optimizer, register_order, register_schedule,
    register_variance_reduction,
)
from gdtrain.settings import NamedSettings, Positive
from gdtrain.training.callbacks.svrg import SVRG


class Halves(NamedSettings):
    """SGD whose rate is divided."""

    parts: Positive = 2
    """By how much."""


@register_optimizer("halves", Halves)
def halves(parameters, parts):
    return torch.optim.SGD(parameters, lr=0.1 / parts)


@register_schedule("fall")
def fall(total: int, last: float = 0.0):
    return lambda t: 1 - (1 - last) * t / total


@register_metric("worst")
def worst(outputs, targets, power: int = 1):
    return (outputs - targets).abs().max() ** power


@register_monitor("twice")
class Twice(GradientNorm):
    name = "twice"

    def __init__(self, every: int):
        super().__init__(every_n_steps=every)

    def measure(self, trainer):
        return {"twice": 2 * super().measure(trainer)["gradient_norm"]}


@register_order("spaced")
def spaced(num_samples, seed, epoch, gap: int):
    """Every so manieth sample."""
    return torch.arange(epoch % gap, num_samples, gap)


@register_loader("pairs")
class Pairs(MiniBatchLoader):
    """Two samples per update."""

    def __init__(self, data, seed: int, order: str = "spaced"):
        super().__init__(data, 2, order=order, seed=seed)


@register_callback("noted")
class Noted(Callback):
    """Writes what it is told."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def on_fit_start(self, trainer):
        print("noted", self.text, trainer.loader.seed)


@register_variance_reduction("own_svrg")
class OwnSvrg(SVRG):
    def __init__(self, often: int = 3):
        super().__init__(every_n_steps=often)
'''
ALL_KINDS = """\
seed: 5
data: {source: linear_regression, num_samples: 12, num_features: 1, validation_fraction: 0.25}
model: linear
loss: mse
loader: {name: minibatch, batch_size: 2, order: {name: spaced, gap: 2}}
optimizer: {name: halves, parts: 4}
scheduler: {name: fall, last: 0.5}
variance_reduction: own_svrg
metrics: {worst: {power: 2}, mae: {}}
monitors: {twice: {every: 2}}
callbacks: {noted: {text: hello}}
epochs: 2
log: {picture: false}
"""


@pytest.fixture
def all_kinds(tmp_path, monkeypatch):
    """A working directory with all_kinds.py and all.yaml."""
    (tmp_path / "all_kinds.py").write_text(EVERY_KIND, "utf-8")
    (tmp_path / "all.yaml").write_text(ALL_KINDS, "utf-8")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()


def run_all(*arguments: str) -> int:
    return main(["--config", "all.yaml", "--import", "all_kinds", *arguments])


def test_parts_of_all_kinds_train_are_evaluated_and_resume_to_the_same_bits(all_kinds, capsys):
    assert run_all("--output-dir", "all") == 0
    assert "noted hello 5" in capsys.readouterr().out
    # A schedule that falls to the end of training is another one for another number of epochs.
    assert run_all("--output-dir", "whole", "epochs=4", "scheduler=null") == 0
    assert run_all("--output-dir", "parts", "epochs=2", "scheduler=null") == 0
    assert run_all("--output-dir", "parts", "--resume", "epochs=4", "scheduler=null") == 0
    whole, parts = (load_run(name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = Path("parts/metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["val_worst"] >= records[-1]["val_mae"] ** 2
    assert any("twice" in record for record in records)
    changed = ["epochs=5", "scheduler=null", "loader.order.gap=3"]
    assert run_all("--output-dir", "parts", "--resume", *changed) == 2
    assert "loader.order.gap is 2 there and 3 here" in capsys.readouterr().err


SUPPLIED = """
import torch

from gdtrain import register_metric, register_source


@register_source("drawn")
def drawn(seed: int, rows: int = 6):
    x = torch.randn(rows, 1, generator=torch.Generator().manual_seed(seed))
    return x, x * seed


@register_metric("excess")
class Excess:
    def __init__(self, loss, factor: float = 1.0):
        self.factor = factor * (2 if loss.name == "mse" else 1)

    def __call__(self, outputs, targets):
        return self.factor * (outputs - targets).square().mean()
"""


def test_a_source_is_given_the_seed_and_a_metric_the_loss(tmp_path, monkeypatch):
    (tmp_path / "supplied.py").write_text(SUPPLIED, "utf-8")
    Path(tmp_path / "a.yaml").write_text(
        "seed: 7\ndata: {source: drawn, rows: 8, validation_fraction: 0.5}\nmodel: linear\n"
        "loss: mse\nloader: batch\noptimizer: {lr: 0.1}\nepochs: 1\n"
        "metrics: {excess: {factor: 2}}\nlog: {picture: false}\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    command = ["--config", "a.yaml", "--import", "supplied", "--output-dir", "out"]
    assert main(command) == 0
    (record,) = map(json.loads, Path("out/metrics.jsonl").read_text("utf-8").splitlines()[-1:])
    assert record["val_excess"] == pytest.approx(4 * record["val_loss"])


@pytest.mark.parametrize("section", ["callbacks=noted", "callbacks=[noted]"])
def test_an_option_that_a_part_named_alone_lacks_is_told(all_kinds, capsys, section):
    assert run_all(section, "--dry-run") == 2
    assert capsys.readouterr().err.splitlines() == [
        "command line:1:11: callbacks.noted.text: missing; it is required"
    ]


def test_faults_of_parts_of_all_kinds_are_told_with_their_places(all_kinds, capsys):
    assert (
        run_all(
            *(
                "loader.order.gap=x",
                "optimizer.parts=0",
                "scheduler.lst=1",
                "metrics.worst.power=a",
            ),
            *("monitors.twice={}", "callbacks.noted.text=3", "variance_reduction.often=1.5"),
        )
        == 2
    )
    assert capsys.readouterr().err.splitlines() == [
        "command line:1:18: loader.order.gap: must be a whole number, got 'x'",
        "command line:2:17: optimizer.parts: must be >= 1, got 0",
        "command line:3:1: scheduler.lst: unknown key; did you mean last?",
        "command line:4:21: metrics.worst.power: must be a whole number, got 'a'",
        "command line:5:16: monitors.twice.every: missing; it is required",
        "command line:6:22: callbacks.noted.text: must be text, got 3; put it in quotes: '3'",
        "command line:7:26: variance_reduction.often: must be a whole number, got 1.5",
    ]
    assert run_all("callbacks=[other]") == 2
    assert run_all("callbacks=early_stopping") == 2
    assert run_all("callbacks={averaging: {}}") == 2
    assert run_all("callbacks={noted: {}}", "loader.order=gaps") == 2
    assert run_all("callbacks=[]") == 2
    assert capsys.readouterr().err.splitlines() == [
        "command line:1:11: callbacks: must be among noted, each with options or alone; "
        "got 'other'; did you mean noted?",
        "command line:1:11: callbacks: early_stopping is no callback, but a section beside "
        "callbacks: early_stopping: {…}",
        "command line:1:12: callbacks.averaging: unknown key; averaging is a section beside "
        "callbacks",
        "command line:1:19: callbacks.noted.text: missing; it is required",
        f"command line:2:14: loader.order: must be one of {', '.join(registry.names('order'))}; "
        "got 'gaps'; for a part of your own, give --import MODULE (in Python, import it first)",
        "command line:1:11: callbacks: names no callback; name some of noted, or remove it",
    ]


def test_parts_of_all_kinds_are_listed_and_stand_in_the_schema(all_kinds, capsys):
    assert main(["list", "loader", "--import", "all_kinds"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "pairs             Two samples per update. [order=spaced]"
    properties = json_schema()["$defs"]["halves_optimizer"]["properties"]
    assert properties["parts"]["description"] == "By how much."
    orders = json_schema()["$defs"]["minibatch_loader"]["properties"]["order"]["anyOf"]
    assert {"$ref": "#/$defs/spaced_order"} in orders
    assert run_all("loader={name: pairs, order: shuffle_once}", "--dry-run") == 0


def test_a_name_that_is_no_kind_is_refused_by_list(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["list", "engine"])
    assert caught.value.code == 2
    assert "argument KIND: invalid choice: 'engine'" in capsys.readouterr().err
