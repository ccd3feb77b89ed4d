"""Configurations: defaults, every fault at once with its place, and the way back to YAML."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gdtrain.config.load import check, dump, load_config, parse_config
from gdtrain.config.yaml_source import read_text
from gdtrain.errors import ConfigError
from gdtrain.registry import names

LOADERS = ", ".join(names("loader"))
SMALLEST = {
    "data": "digits",
    "model": "mlp",
    "loss": "cross_entropy",
    "loader": {"name": "minibatch", "batch_size": 64},
    "optimizer": {"lr": 0.1},
    "epochs": 20,
}
FULL = {
    "seed": 1,
    "device": "cuda:1",
    "data": {"source": "digits", "validation_fraction": 0.2, "shape": [1, 8, 8]},
    "model": {"name": "cnn", "channels": [4, 8], "activation": "silu"},
    "loss": {"name": "cross_entropy", "weight": [1.0, 2], "label_smoothing": 0.1},
    "loader": {"name": "minibatch", "batch_size": 4, "order": [0, 2, 1], "drop_last": True},
    "optimizer": {"name": "sgd", "lr": 1e-8, "momentum": 0.9, "nesterov": True},
    "scheduler": {"name": "cosine", "warmup": 3, "per": "epoch"},
    "clip_grad_norm": 1e22,
    "microbatch_size": 2,
    "precision": "bf16",
    "epochs": 2,
    "validation": {"every_n_steps": 5},
    "metrics": ["accuracy"],
    "early_stopping": {"monitor": "val_accuracy", "patience": 2},
    "log": {"every_n_steps": 7},
    "checkpoint": {"every_n_epochs": 1, "every_seconds": 60, "keep_last": 1},
}


def faults_of(changes: dict[str, object], base: dict[str, object] = SMALLEST) -> list[str]:
    """The faults of a configuration with some sections replaced (or taken out, by None)."""
    data = {key: value for key, value in (base | changes).items() if value is not None}
    try:
        parse_config(data)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_defaults_of_the_smallest_configuration():
    config = parse_config(SMALLEST)
    assert (config.seed, config.device, config.precision, config.engine) == (
        0,
        "auto",
        "fp32",
        "auto",
    )
    assert config.data.model_dump() == {
        "source": "digits",
        "validation_fraction": 0.0,
        "standardize": False,
        "standardize_targets": False,
        "shape": None,
    }
    assert config.model.hidden == [64]
    assert config.loader.order == "reshuffle"
    assert config.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "parameters": None,
    }
    assert (config.scheduler, config.early_stopping, config.metrics) == (None, None, None)


@pytest.mark.parametrize(("loader", "order"), [("batch", "sequential"), ("sample", "reshuffle")])
def test_each_loader_has_its_own_default_order(loader, order):
    assert parse_config(SMALLEST | {"loader": loader}).loader.order == order


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(SMALLEST).epochs = 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        FULL,
        {"data": {"source": "csv", "path": "1e3", "target": ["08", "null"], "features": ["~"]}},
        {"data": {"source": "csv", "path": "a: #b", "target": "é\t\x07\u2028", "delimiter": "\t"}},
        {"data": {"source": "npz", "path": ".5", "inputs": "true", "targets": "2024-01-01"}},
        {"data": {"source": "linear_regression", "bias": -1e-300, "num_features": 2,
                  "weights": [0.1, 3]}},
        {"loss": {"name": "multi_margin", "p": 2, "margin": -0.5}},
        {"optimizer": "lbfgs", "loader": "batch"},
        {"scheduler": {"name": "inverse_time", "b": 1e5}},
    ],
)  # fmt: skip
def test_a_dumped_configuration_reads_back_the_same(changes):
    config = parse_config(SMALLEST | changes)
    assert check(read_text(dump(config), "config.yaml")) == config


def test_a_dump_names_the_form_of_a_section_first_and_fills_in_defaults():
    lines = dump(parse_config(SMALLEST)).splitlines()
    assert lines[2:8] == [
        "data:",
        "  source: digits",
        "  validation_fraction: 0.0",
        "  standardize: false",
        "  standardize_targets: false",
        "model:",
    ]
    assert "  hidden: [64]" in lines


BAD = """\
seed: -1
data: {source: digit, validation_fraction: 0.2}
model:
  name: mlp
  hiden: [64]
  activation: rellu
loss: cross_entropi
loader: {name: minibatch, batch_sise: 64}
optimizer: {lr: fast, momentum: 1.5}
epochs: 2.5
epochs: 3
precision: fp8
"""


def test_every_fault_of_a_file_and_the_command_line_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["log.every_n_steps=0", "nonsense", "modle=x"])
    sources = (
        "digits, teaching, linear_regression, two_moons, quadratic, csv, npz, npy, pt, "
        "safetensors, mapped, stream, table, parquet"
    )
    activations = "relu, tanh, sigmoid, gelu, silu, elu, leaky_relu, softplus, identity"
    losses = ", ".join(names("loss"))
    assert str(caught.value).splitlines() == [
        f"{path}:1:7: seed: must be >= 0, got -1",
        f"{path}:2:16: data.source: must be one of {sources}; got 'digit'; did you mean digits?",
        f"{path}:5:3: model.hiden: unknown key; did you mean hidden?",
        f"{path}:6:15: model.activation: must be one of {activations}; got 'rellu'; "
        "did you mean relu?",
        f"{path}:7:7: loss.name: must be one of {losses}; got 'cross_entropi'; "
        "did you mean cross_entropy?",
        f"{path}:8:9: loader.batch_size: missing; samples per update; the last batch of an "
        "epoch has the rest",
        f"{path}:8:27: loader.batch_sise: unknown key; did you mean batch_size?",
        f"{path}:9:17: optimizer.lr: must be a number, got 'fast'",
        f"{path}:9:33: optimizer.momentum: must be < 1, got 1.5",
        f"{path}:11:1: epochs: duplicate key; it is already set at line 10",
        f"{path}:12:12: precision: must be one of fp32, bf16, fp16, fp64; got 'fp8'",
        "command line:1:19: log.every_n_steps: must be >= 1, got 0",
        "command line:2:1: 'nonsense' is not a setting; write section.key=value",
        "command line:3:1: modle: unknown key; did you mean model?",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"data": None},
            "data: missing; add data: where the samples come from, by source",
        ),
        (
            {"epochs": None},
            "epochs: missing; add epochs: number of passes over the training part, in total",
        ),
        ({"epochs": 2.0}, "epochs: must be a whole number, got 2.0"),
        ({"epochs": True}, "epochs: must be a whole number, got true"),
        ({"epochs": "3"}, "epochs: must be a whole number, got '3'"),
        ({"epochs": 2**31}, "epochs: must be < 2147483648, got 2147483648"),
        ({"seed": 2**63}, f"seed: must be < {2**63}, got {2**63}"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
        ({"model": 3}, "model: must be a name or a mapping of settings, got 3"),
        ({"model": {}}, "model.name: missing; it must be one of linear, mlp, cnn"),
        ({"model": {"name": True}}, "model.name: must be one of linear, mlp, cnn; got true"),
        (
            {"loader": "minibatch"},
            "loader.batch_size: missing; samples per update; the last batch of an epoch has "
            "the rest",
        ),
        ({"validation": 3}, "validation: must be a mapping of settings, got 3"),
        ({"clip_grad_norm": 0}, "clip_grad_norm: must be > 0, got 0"),
        (
            {"clip_grad_norm": float("nan")},
            "clip_grad_norm: must be a finite number, got nan",
        ),
        (
            {"model": {"name": "mlp", "hidden": [8, 0]}},
            "model.hidden[1]: must be >= 1, got 0",
        ),
        (
            {"model": {"name": "cnn", "channels": []}},
            "model.channels: must hold at least 1, got []",
        ),
        ({"model": {"name": "cnn", "kernel_size": 4}}, "model.kernel_size: must be odd, got 4"),
        (
            {"data": {"source": "csv", "path": "a\0b", "target": "y"}},
            "data.path: must not contain a NUL character; give a path",
        ),
        (
            {"data": {"source": "csv", "path": "a", "target": "y", "delimiter": "::"}},
            "data.delimiter: must be one character, got '::'",
        ),
        (
            {"data": {"source": "linear_regression", "num_features": 2, "weights": [1.0]}},
            "data.weights: must hold num_features = 2 numbers, got 1",
        ),
        (
            {"data": {"source": "quadratic", "spectrum": [1.0, 2], "num_samples": 1}},
            "data.num_samples: must be >= 2, one per eigenvalue, got 1",
        ),
        (
            {"optimizer": {"lr": 0.1, "nesterov": True}},
            "optimizer.nesterov: has no effect without momentum; set momentum, or remove it",
        ),
        (
            {"optimizer": {"lr": 0.1, "dampening": 0.5}},
            "optimizer.dampening: has no effect without momentum; set momentum, or remove it",
        ),
        (
            {"optimizer": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": True}},
            "optimizer.nesterov: needs dampening 0; remove one of the two",
        ),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "optimizer.momentum: unknown key; "
         "the keys here are name, lr, weight_decay"),
        (
            {"loader": {"name": "batch", "batch_size": 64}},
            "loader.batch_size: has no effect under batch, whose batch is every sample; "
            "remove it, or use name: minibatch",
        ),
        (
            {"loader": {"name": "batch", "drop_last": True}},
            "loader.drop_last: has no effect under batch, which has no last batch; remove it",
        ),
        (
            {"loader": {"name": "sample", "batch_size": 1}},
            "loader.batch_size: has no effect under sample, whose batches are of one; "
            "remove it, or use name: minibatch",
        ),
        (
            {"loader": {"name": "sample", "drop_last": False}},
            "loader.drop_last: has no effect under sample, whose batches are all full; remove it",
        ),
        (
            {"validation": {"every_n_epochs": 2}},
            "validation: has no effect without data.validation_fraction; set it",
        ),
        (
            {"metrics": ["accuracy"]},
            "metrics: have no effect without data.validation_fraction; set it",
        ),
        (
            {"early_stopping": {}},
            "early_stopping: monitors val_loss but data.validation_fraction is 0; set it",
        ),
        (
            {"validation": {"every_n_steps": 1, "every_n_epochs": 1},
             "data": {"source": "digits", "validation_fraction": 0.5}},
            "validation.every_n_epochs: can't be set together with every_n_steps; "
            "remove one of the two",
        ),
        (
            {"trainer": "mine"},
            "trainer: 'mine' is not registered (registered: none); use --import",
        ),
    ],
)  # fmt: skip
def test_one_fault_in_whole_words(changes, fault):
    assert faults_of(changes) == [fault]


WRONG = [
    None, True, -1, 0, 3, 10**39, 0.5, float("nan"), float("inf"), "", "mse", "digits",
    "minibatch", "\ud800", [], [1], ["a"], [None], [[1]], {}, {"name": "mlp"}, {"name": ["a"]},
    {"source": None}, {"a": {"b": 1}},
]  # fmt: skip


def paths_in(data: object, path: tuple = ()) -> list[tuple]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += paths_in(value, (*path, key))
    return found


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    base=st.sampled_from([SMALLEST, FULL]),
    edits=st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from(WRONG), st.booleans()), min_size=1, max_size=3
    ),
)
def test_wrong_values_anywhere_give_a_configuration_or_a_config_error(base, edits):
    data = copy.deepcopy(base)
    for number, value, as_new_key in edits:
        paths = paths_in(data)
        *above, last = paths[number % len(paths)]
        target = data
        for key in above:
            target = target[key]
        target["extra" if as_new_key and isinstance(target, dict) else last] = copy.deepcopy(value)
    try:
        config = parse_config(data)
    except ConfigError as error:
        said = [str(fault) for fault in error.faults]
    else:
        said = ["none"]
        assert check(read_text(dump(config), "config.yaml")) == config
    assert said
    assert all(line and "\n" not in line for line in said)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*FULL, "x"]), st.sampled_from(WRONG), max_size=5))
def test_the_places_of_faults_lie_in_the_file(changes):
    text = yaml.safe_dump(FULL | changes)
    faults = []
    try:
        check(read_text(text, "a.yaml"))
    except ConfigError as error:
        faults = error.faults
    lines = text.splitlines()
    assert all(fault.column <= len(lines[fault.line - 1]) for fault in faults)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("lr=0.1", "lr: unknown key; did you mean optimizer.lr?"),
        ("batch_size=8", "batch_size: unknown key; did you mean loader.batch_size?"),
        ("hidden=[8]", "hidden: unknown key; did you mean model.hidden?"),
        ("patience=2", "patience: unknown key; did you mean early_stopping.patience?"),
        ("epoch=2", "epoch: unknown key; did you mean epochs?"),
        ("loader=stochastic", f"loader.name: must be one of {LOADERS}; got "
         "'stochastic'; did you mean sample?"),
        ("loader=mini-batch", f"loader.name: must be one of {LOADERS}; got "
         "'mini-batch'; did you mean minibatch?"),
        ("data={source: npz, path: 5}", "data.path: must be text, got 5; put it in quotes: '5'"),
    ],
)  # fmt: skip
def test_what_may_be_meant(settings: str, message: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(
        "data: digits\nmodel: mlp\nloss: mse\nloader: {name: minibatch, batch_size: 4}\n"
        "optimizer: {lr: 0.1}\nepochs: 1\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config("base.yaml", [settings])
    assert [f"{fault.key}: {fault.message}" for fault in error.value.faults] == [message]


@pytest.mark.parametrize(
    ("loss", "meant"), [("mae", "l1"), ("L2", "mse"), ("crossentropy", "cross_entropy")]
)
def test_other_names_of_losses(loss: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"got '{loss}'; did you mean {meant}\?$"):
        parse_config({**SMALLEST, "loss": loss})
