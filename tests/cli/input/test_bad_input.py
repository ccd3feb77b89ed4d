"""Bad input: exit code 2, one line per fault with its place, no traceback, nothing written."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hostile.bad_cases import CASES, FILES, text_of
from safetensors.torch import save_file
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.load import parse_config
from gdtrain.data.tables.preparation import split
from gdtrain.data.tables.table import read_table
from gdtrain.errors import ConfigError, DataError, DeviceError, GdtrainError, ModelError

CONFIG = """\
data: {source: csv, path: data.csv, target: y}
model: linear
loss: mse
loader: {name: minibatch, batch_size: 2}
optimizer: {lr: 0.1}
epochs: 1
"""
DATA = "a,b,y\n1,2,0\n3,4,1\n5,6,2\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with a.yaml and data.csv, which train as they are."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG, "utf-8")
    Path("data.csv").write_text(DATA, "utf-8")


def faults_of(capsys, *arguments: str) -> list[str]:
    """The faults that the command line reports, having made sure that it does only that."""
    before = sorted(Path().rglob("*"))
    assert main(["--config", "a.yaml", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(Path().rglob("*")) == before
    return err.splitlines()


def test_the_table_starts_from_what_trains(capsys):
    assert main(["--config", "a.yaml", "--dry-run"]) == 0
    assert "3 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        (
            "batch_size: 2",
            "batch_sise: 2",
            [
                "a.yaml:4:9: loader.batch_size: missing; samples per update; the last batch of "
                "an epoch has the rest",
                "a.yaml:4:27: loader.batch_sise: unknown key; did you mean batch_size?",
            ],
        ),
        (
            "epochs: 1",
            "epochs: 1\nepochs: 2",
            ["a.yaml:7:1: epochs: duplicate key; it is already set at line 6"],
        ),
        ("epochs: 1", "epochs: one", ["a.yaml:6:9: epochs: must be a whole number, got 'one'"]),
        ("lr: 0.1", "lr: -0.1", ["a.yaml:5:17: optimizer.lr: must be > 0, got -0.1"]),
        (
            "path: data.csv",
            "path: dato.csv",
            [
                "a.yaml:1:7: data: dato.csv: file not found; "
                "paths are relative to the working directory"
            ],
        ),
        (
            "target: y",
            "target: yy",
            ["a.yaml:1:7: data: data.csv: has no column 'yy'; did you mean y?"],
        ),
        (
            "target: y",
            "target: y, validation_fraction: 0.99",
            [
                "a.yaml:1:7: data: no samples to train on: validation_fraction 0.99 takes 3 of 3; "
                "use a smaller fraction"
            ],
        ),
        (
            "target: y",
            "target: y, shape: [3]",
            ["a.yaml:1:7: data: shape [3] holds 3 numbers, but a sample has 2 inputs"],
        ),
        (
            "loader: {name: minibatch,",
            "loader: {name: batch,",
            [
                "a.yaml:4:23: loader.batch_size: has no effect under batch, whose batch is every "
                "sample; remove it, or use name: minibatch"
            ],
        ),
        (
            "batch_size: 2}",
            "batch_size: 4, drop_last: true}",
            [
                "a.yaml:4:53: loader.drop_last: leaves no batch: 3 samples do not fill one of 4"
            ],
        ),
        (
            "batch_size: 2}",
            "batch_size: 2, order: [0, 3]}",
            ["a.yaml:4:49: loader.order: explicit indices must be in 0 … 2, got 3"],
        ),
        (
            "loss: mse",
            "loss: {name: cross_entropy, weight: [1.0]}",
            ["a.yaml:3:37: loss.weight: must hold one number for each of the 3 outputs, got 1"],
        ),
        (
            "loss: mse",
            "loss: bce_with_logits",
            [
                "a.yaml:1:7: data: targets: row 2 is 2; "
                "under bce_with_logits targets must be in 0 … 1"
            ],
        ),
        (
            "loss: mse",
            "loss: nll",
            [
                "a.yaml:2:8: model.output_activation: must be log_softmax for the loss nll, "
                "got none"
            ],
        ),
        (
            "model: linear",
            "model: cnn",
            [
                "a.yaml:2:8: model: cnn needs inputs [channels, height, width], got [2]; "
                "set data.shape"
            ],
        ),
        (
            "model: linear",
            "model: {name: mlp, batch_norm: true}",
            [
                "a.yaml:2:32: model.batch_norm: needs batches of at least 2 samples, and this "
                "loader gives one of 1; set it to false, or change loader.batch_size or "
                "loader.drop_last"
            ],
        ),
        (
            "model: linear\nloss: mse\nloader: {name: minibatch, batch_size: 2}",
            "model: {name: mlp, batch_norm: true}\nloss: mse\nloader: batch\nmicrobatch_size: 2",
            [
                "a.yaml:5:18: microbatch_size: layer '1' (BatchNorm1d) computes its statistics "
                "over the batch in training mode, so the gradient of a batch is not the sum of its "
                "parts' gradients; use GroupNorm or LayerNorm, put the layer in eval mode, or name "
                "it in microbatch_allow to accept statistics of the parts"
            ],
        ),
        (
            "epochs: 1",
            "epochs: 1\ndevice: cuda:99",
            [
                "a.yaml:7:9: device: cuda is not available on this machine; use auto or cpu"
                if not torch.cuda.is_available()
                else f"a.yaml:7:9: device: cuda:99 does not exist; there are "
                f"{torch.cuda.device_count()} CUDA devices"
            ],
        ),
        (
            "target: y",
            "target: y, validation_fraction: 0.4}\nmetrics: [accuracy]\nlog: {every_n_steps: 1",
            ["a.yaml:2:10: metrics: accuracy is not defined for mse; use mae, rmse or r2"],
        ),
        (
            "target: y",
            "target: y, validation_fraction: 0.4}\nearly_stopping: {monitor: val_mae",
            [
                "a.yaml:2:27: early_stopping.monitor: must be one of train_loss, val_loss; "
                "got 'val_mae'"
            ],
        ),
        (
            "loss: mse",
            "loss: cross_entropy\nclip_grad_value: 1.0\ndata.path: x",
            [
                "a.yaml:5:1: data.path: unknown key; did you mean data?"
],
        ),
    ],
)  # fmt: skip
def test_configurations(capsys, old, new, faults):
    assert old in CONFIG
    Path("a.yaml").write_text(CONFIG.replace(old, new), "utf-8")
    assert faults_of(capsys) == faults


def test_there_are_at_least_120_written_cases():
    assert len(CASES) >= 120


@pytest.mark.parametrize("name", CASES)
def test_written_cases(capsys, name):
    changes, faults = CASES[name]
    for file, text in FILES.items():
        Path(file).write_text(text, "utf-8")
    np.savez("labels.npz", x=np.ones((2, 1)), y=np.array([0, 10**18]))
    Path("a.yaml").write_text(text_of(changes), "utf-8")
    assert faults_of(capsys) == faults


def test_what_the_written_cases_change_is_right(capsys):
    for file, text in FILES.items():
        Path(file).write_text(text, "utf-8")
    Path("a.yaml").write_text(text_of({}), "utf-8")
    assert main(["--config", "a.yaml", "--dry-run"]) == 0
    assert "nothing written" in capsys.readouterr().out


def test_of_very_many_faults_the_first_are_told(capsys):
    hidden = ", ".join(["0"] * 60)
    Path("a.yaml").write_text(text_of({"model": f"{{name: mlp, hidden: [{hidden}]}}"}), "utf-8")
    faults = faults_of(capsys)
    assert faults[:2] == [
        "a.yaml:1:1: has 10 faults besides these; correct these first",
        "a.yaml:2:29: model.hidden[0]: must be >= 1, got 0",
    ]
    assert faults[-1] == "a.yaml:2:176: model.hidden[49]: must be >= 1, got 0"


@pytest.mark.parametrize(
    ("model", "data", "extent"),
    [
        ("{name: mlp, hidden: [2000000000]}", "digits", "64 inputs and 10 outputs"),
        ("{name: mlp, hidden: [1000000, 1000000]}", "digits", "64 inputs and 10 outputs"),
        (
            "{name: cnn, channels: [1000000], kernel_size: 9999}",
            "{source: digits, shape: [1, 8, 8]}",
            "64 inputs and 10 outputs",
        ),
    ],
)
def test_a_model_that_this_machine_has_no_memory_for(capsys, model, data, extent):
    changes = {"model": model, "data": data, "loss": "cross_entropy"}
    Path("a.yaml").write_text(text_of(changes), "utf-8")
    (fault,) = faults_of(capsys)
    amount = r"[\d,]+\.\d GiB"
    assert re.fullmatch(
        rf"a\.yaml:2:8: model: needs {amount} of memory for {extent}, and {amount} are free; "
        "use fewer or smaller layers",
        fault,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_a_dry_run_whose_loss_is_not_a_number_says_so(capsys, optimizer):
    loss = "{name: poisson_nll, log_input: false}"  # of rates that are negative
    changes = {"seed": "1", "loss": loss, "optimizer": f"{{name: {optimizer}, lr: 0.1}}"}
    Path("a.yaml").write_text(text_of(changes), "utf-8")
    before = sorted(Path().rglob("*"))
    assert main(["--config", "a.yaml", "--dry-run"]) == 3
    assert "gdtrain: loss is nan in epoch 1, step 1, with lr 0.1, on samples 0, 1, 2; " in (
        capsys.readouterr().err
    )
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("source", ["csv", "npz", "npy", "pt", "safetensors"])
def test_a_pipe_is_no_data_file(capsys, source):
    os.mkfifo("pipe")
    more = {"csv": ", target: y", "npy": ", targets: pipe"}.get(source, "")
    Path("a.yaml").write_text(text_of({"data": f"{{source: {source}, path: pipe{more}}}"}), "utf-8")
    said = "pipe: is a pipe or a device; give a file, or read it with source: stream"
    assert faults_of(capsys) == [f"a.yaml:1:7: data: {said}"]


def test_a_configuration_that_is_not_utf_8(capsys):
    Path("a.yaml").write_bytes(CONFIG.encode().replace(b"model", b"mod\xe9l"))
    assert faults_of(capsys) == ["a.yaml:2:4: is not UTF-8 text; save it as UTF-8"]


def test_paths_with_spaces_are_shown_as_they_are(capsys):
    Path("a  b é.yaml").write_text("seed: x\n", "utf-8")
    assert main(["--config", "a  b é.yaml", "--print-config"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "a  b é.yaml:1:7: seed: must be a whole number, got 'x'"
    )


# What is wrong with the data: the file's bytes, and what both the command line and Python say.
CSV_FAULTS = {
    "empty": (b"", "data.csv: is empty; its first line must name the columns"),
    "no rows": (b"a,b,y\n", "data.csv: has no rows below its header; at least one is needed"),
    "ragged": (b"a,b,y\n1,2,0\n3,4\n", "data.csv: line 3 has 2 cells, but the header has 3"),
    "NaN": (
        b"a,b,y\n1,2,0\n3,nan,1\n",
        "data.csv: missing cells: 1 of 2 in 'b' (first in line 3); missing: drop leaves those rows "
        "out; missing: mean, median or most_frequent fills them in from the training part (of "
        "text always most_frequent), and indicator: true adds inputs that say where",
    ),
    "infinity": (
        b"a,b,y\n1,2,inf\n",
        "data.csv: column 'y': 1 cell is not finite, first in line 2; remove the rows or fill in "
        "finite numbers",
    ),
    "hole": (
        b"a,b,y\n1,,0\n",
        "data.csv: column 'b' has no values at all; leave it out: exclude: [b]",
    ),
    "no target": (b"a,b,z\n1,2,3\n", "data.csv: has no column 'y'; it has a, b, z"),
    "only a target": (
        b"y\n1\n",
        "data.csv: has no input columns besides the target; at least one is needed",
    ),
    "two alike": (
        b"a,a,y\n1,2,3\n",
        "data.csv: column 'a' occurs twice in the header; rename one",
    ),
    "not UTF-8": (
        b"a,b,y\n1,\xff,0\n",
        "data.csv: is not UTF-8 text; save it as UTF-8, or set encoding, such as encoding: latin-1",
    ),
    "a quote too many": (b'a,b,y\n1,"2"x,3\n', "data.csv: line 2: ',' expected after '\"'"),
}


@pytest.mark.parametrize("raw, message", CSV_FAULTS.values(), ids=CSV_FAULTS)  # noqa: PT006
def test_csv_files(capsys, raw, message):
    Path("data.csv").write_bytes(raw)
    assert faults_of(capsys) == [f"a.yaml:1:7: data: {message}"]
    with pytest.raises(DataError) as caught:
        read_table("data.csv", target="y")
    assert str(caught.value) == message


def test_each_fault_of_a_table_has_a_line(capsys):
    rows = [f"{n},{n},2" for n in range(1, 20)]
    Path("data.csv").write_text("\n".join(["a,b,y", *rows, "20,oops,"]), "utf-8")
    text, running, missing = faults_of(capsys)
    assert text.startswith("a.yaml:1:7: data: data.csv: column 'b': 1 of 20 cells is not a number")
    assert running.startswith("a.yaml:1:7: data: data.csv: column 'a' counts the rows, from 1 on")
    assert missing.startswith("a.yaml:1:7: data: data.csv: missing cells: 1 of 20 in 'y'")


def test_a_label_that_is_no_class(capsys):
    Path("data.csv").write_text("a,b,y\n1,2,0.5\n", "utf-8")
    assert faults_of(capsys, "loss=cross_entropy") == [
        "a.yaml:1:7: data: targets: row 0 is 0.5; class labels must be whole numbers 0, 1, …, "
        "or use a loss for numbers such as mse"
    ]


@pytest.mark.parametrize("names", [("cheap", "dear"), ("a", "b", "c")])
@pytest.mark.parametrize("is_converted", [False, True])
def test_names_are_no_numbers(capsys, names, is_converted):
    lines = [f"{n},{names[n % len(names)]}" for n in range(9)]
    Path("data.csv").write_text("\n".join(["a,y", *lines, ""]), "utf-8")
    data = "{source: csv, path: data.csv, target: y}"
    if is_converted:
        assert main(["convert", "data.csv", "folder", "--target", "y"]) == 0
        data = "{source: mapped, path: folder}"
        capsys.readouterr()
    learnt = ["model={name: mlp, hidden: [2]}", f"data={data}"]
    place = "command line:2:6: " if is_converted else "command line:2:44: "
    told = f"is text, such as {names[0]!r},"
    if not is_converted:
        told = f"'y' of data.csv holds text in 9 cells, the first {names[0]!r} in line 2,"
    assert faults_of(capsys, *learnt, "loss=mse") == [
        f"{place}data.target: {told} and mse learns numbers; use a loss over classes, such as "
        "cross_entropy, or write numbers"
    ]
    # Two names may stand for 0 and 1.
    status = main(["--config", "a.yaml", "--dry-run", *learnt, "loss=bce_with_logits"])
    assert status == (0 if len(names) == 2 else 2)


ARRAYS = {
    "lengths": (
        {"x": np.ones((3, 2)), "y": np.ones(2)},
        "different numbers of samples: inputs 3 and targets 2; each sample needs one of each",
    ),
    "empty": (
        {"x": np.ones((0, 2)), "y": np.ones(0)},
        "the data set is empty; at least one sample is needed",
    ),
    "NaN": (
        {"x": np.array([[1.0, 2], [np.nan, 3]]), "y": np.ones(2)},
        "inputs: row 1, column 0 is nan; remove the row or fill in a number before training",
    ),
    "infinity": (
        {"x": np.ones((2, 1)), "y": np.array([1.0, -np.inf])},
        "targets: row 1 is -inf; remove the row or fill in a number before training",
    ),
}


@pytest.mark.parametrize("arrays, message", ARRAYS.values(), ids=ARRAYS)  # noqa: PT006
@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "safetensors"])
def test_files_of_arrays(capsys, kind, arrays, message):
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    section = f"{{source: {kind}, path: file}}"
    if kind == "npz":
        with Path("file").open("wb") as file:
            np.savez(file, **arrays)
    elif kind == "npy":
        np.save("x.npy", arrays["x"])
        np.save("y.npy", arrays["y"])
        section = "{source: npy, path: x.npy, targets: y.npy}"
    elif kind == "pt":
        torch.save(tensors, "file")
    else:
        save_file(tensors, "file")
    assert faults_of(capsys, f"data={section}") == [f"command line:1:6: data: {message}"]
    with pytest.raises(DataError) as caught:
        BatchLoader((tensors["x"], tensors["y"]))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "content", "section", "message"),
    [
        (
            "a.npz",
            {"x": np.ones(2), "z": np.ones(2)},
            "{source: npz, path: a.npz}",
            "a.npz: has no 'y'; it holds x, z",
        ),
        (
            "a.pt",
            {"x": torch.ones(2), "y": "text"},
            "{source: pt, path: a.pt}",
            "a.pt: 'y' is a str, not a tensor",
        ),
        (
            "a.pt",
            torch.ones(2),
            "{source: pt, path: a.pt}",
            "a.pt: must hold a dict of tensors or a pair (inputs, targets)",
        ),
        (
            "a.pt",
            {"x": nn.Linear(1, 1), "y": torch.ones(2)},
            "{source: pt, path: a.pt}",
            "a.pt: holds more than tensors, or is no .pt file; refused, for it could run code",
        ),
        (
            None,
            None,
            "{source: safetensors, path: none}",
            "none: file not found; paths are relative to the working directory",
        ),
    ],
)
def test_files_that_hold_something_else(capsys, name, content, section, message):
    if name == "a.npz":
        np.savez(name, **content)
    elif name is not None:
        torch.save(content, name)
    assert faults_of(capsys, f"data={section}") == [f"command line:1:6: data: {message}"]


def linear_trainer(**changes) -> Trainer:
    model = nn.Linear(2, 1)
    given = {
        "model": model,
        "loss": nn.MSELoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": BatchLoader((torch.ones(3, 2), torch.ones(3, 1))),
        "device": "cpu",
    }
    return Trainer(**(given | changes))


def classifier_with_label(label: int) -> Trainer:
    model = nn.Linear(2, 3)
    loader = SampleLoader((torch.ones(2, 2), torch.tensor([0, label])), order="sequential")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return linear_trainer(
        model=model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, loader=loader
    )


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (
            lambda: MiniBatchLoader((torch.ones(3, 2), torch.ones(3)), batch_size=0),
            ConfigError,
            "batch_size: must be >= 1, got 0",
        ),
        (
            lambda: MiniBatchLoader((torch.ones(3, 2), torch.ones(3)), batch_size=2.5),
            ConfigError,
            "batch_size: must be a whole number, got 2.5",
        ),
        (
            lambda: MiniBatchLoader(torch.ones(3), batch_size=4, drop_last=True).plan(0),
            ConfigError,
            "drop_last: leaves no batch: 3 samples do not fill one of 4",
        ),
        (
            lambda: BatchLoader((torch.ones(3), torch.ones(3)), order=[0, 3]),
            ConfigError,
            "order: explicit indices must be in 0 … 2, got 3",
        ),
        (
            lambda: split(3, 0.99, seed=0),
            DataError,
            "no samples to train on: validation_fraction 0.99 takes 3 of 3; use a smaller fraction",
        ),
        (
            lambda: linear_trainer(model=nn.ReLU()),
            ModelError,
            "model: has no parameters to train; give it at least one with requires_grad=True",
        ),
        (
            lambda: linear_trainer(model=nn.Linear(2, 1)),
            ModelError,
            "optimizer: does not hold 2 of the model's parameters (weight, bias); "
            "give it model.parameters(), or set requires_grad_(False) on those to keep",
        ),
        (
            lambda: linear_trainer(device="tpu"),
            DeviceError,
            "device: 'tpu' is not a device; use auto, cpu, cuda, cuda:N or mps",
        ),
        (
            lambda: classifier_with_label(3).fit(1),
            ModelError,
            "targets: label 3 is out of range; the model has 3 outputs, so labels must be in 0 … 2",
        ),
        (
            lambda: linear_trainer(loader=BatchLoader((torch.ones(3, 2), torch.ones(3)))).fit(1),
            ModelError,
            "loss: output has shape [3, 1] and targets [3]; they must be the same, "
            "or the loss would be of their broadcast; reshape one of them",
        ),
    ],
)
def test_from_python_the_same_faults_are_errors(use, error, message):
    with pytest.raises(GdtrainError) as caught:
        use()
    assert (type(caught.value), str(caught.value)) == (error, message)


def test_building_a_parsed_configuration_gives_the_same_faults_without_places():
    data = {
        "data": {"source": "csv", "path": "data.csv", "target": "yy"},
        "model": "linear",
        "loss": "mse",
        "loader": "sample",
        "optimizer": {"lr": 0.1},
        "epochs": 1,
    }
    with pytest.raises(ConfigError) as caught:
        build(parse_config(data))
    assert str(caught.value) == "data: data.csv: has no column 'yy'; did you mean y?"
    assert [(fault.key, fault.path) for fault in caught.value.faults] == [("data", None)]
