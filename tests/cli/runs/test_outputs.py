"""What a run leaves behind: that each file says what happened, and can be used again."""

import errno
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gdtrain
from gdtrain import load_run
from gdtrain.checkpoint import durable_files
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.format import read_state, write_state, write_tensors
from gdtrain.cli.main import main
from gdtrain.cli.runs.train_job import summary_of, write_summary
from gdtrain.config.load import load_config
from gdtrain.data.builtin.digits import digits
from gdtrain.data.tables.preparation import Preprocessing, split
from gdtrain.errors import CheckpointError, DataError, OutputError
from gdtrain.output.run_directory import read_metrics

DIGITS = """\
seed: 3
data: {source: digits, validation_fraction: 0.2, standardize: true}
model: {name: mlp, hidden: [32]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 64}
optimizer: {lr: 0.1, momentum: 0.9}
log: {every_n_steps: 10}
epochs: 2
"""


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The directory of a finished run on digits: 1,438 samples, 23 updates an epoch."""
    directory = tmp_path_factory.mktemp("digits run é")
    (directory / "a b.yaml").write_text(DIGITS, "utf-8")
    arguments = ["--config", str(directory / "a b.yaml"), "--output-dir", str(directory / "out")]
    assert main(arguments) == 0
    return directory / "out"


def test_the_files_of_a_run(digits_run):
    assert sorted(path.name for path in digits_run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "loss.png",
        "metrics.jsonl",
        "model.safetensors",
        "preprocessing.json",
        "summary.json",
    ]
    assert [path.name for path in (digits_run / "checkpoints").iterdir()] == ["step-0000000046"]


def test_config_yaml_is_the_configuration(digits_run):
    config, _ = load_config(digits_run / "config.yaml")
    assert config == load_config(digits_run.parent / "a b.yaml")[0]


def test_metrics_are_steps_and_epochs_in_order(digits_run):
    records = read_metrics(digits_run / "metrics.jsonl")
    assert [(r["kind"], r["epoch"], r["step"]) for r in records] == [
        ("step", 1, 10),
        ("step", 1, 20),
        ("epoch", 1, 23),
        ("step", 2, 30),
        ("step", 2, 40),
        ("epoch", 2, 46),
    ]
    assert [r["samples"] for r in records if r["kind"] == "epoch"] == [1438, 2876]
    assert all(set(r) == {"kind", "step", "epoch", "loss", "lr", "seconds"} for r in records[:2])
    assert set(records[2]) == {
        *("kind", "epoch", "step", "samples", "train_loss", "seconds", "lr"),
        *("val_loss", "val_accuracy"),
    }


def test_summary_agrees_with_the_last_epoch(digits_run):
    summary = json.loads((digits_run / "summary.json").read_text("utf-8"))
    last = read_metrics(digits_run / "metrics.jsonl")[-1]
    assert summary["status"] == "done"
    assert summary["reason"] is None
    assert (summary["epochs"], summary["steps"], summary["samples"]) == (2, 46, 2876)
    assert summary["train"] == {"loss": last["train_loss"]}
    assert summary["validation"] == {"loss": last["val_loss"], "accuracy": last["val_accuracy"]}
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["versions"]["gdtrain"] == gdtrain.__version__


def test_weights_and_preprocessing_by_hand_give_the_validation_accuracy(digits_run):
    """The raw rows, the statistics of the JSON file, and a plain torch model: no code of ours."""
    data = digits()
    _, validation = split(1797, 0.2, seed=3)
    fields = json.loads((digits_run / "preprocessing.json").read_text("utf-8"))
    x = data.inputs[validation].double()
    x = (x - torch.tensor(fields["mean"], dtype=x.dtype)) / torch.tensor(
        fields["std"], dtype=x.dtype
    )
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model.load_state_dict(load_file(digits_run / "model.safetensors"))
    correct = model(x.float()).argmax(dim=1) == data.targets[validation]
    summary = json.loads((digits_run / "summary.json").read_text("utf-8"))
    assert summary["validation"]["accuracy"] == pytest.approx(correct.double().mean().item())
    trained = load_run(digits_run)
    assert torch.equal(trained.predict(data.inputs[validation]), model(x.float()).detach())


def test_a_loaded_run_predicts_from_arrays_of_any_shape_that_fits(digits_run):
    trained = gdtrain.load_run(str(digits_run))
    pixels = digits().inputs[:3].to(torch.int64)
    expected = trained.predict(pixels)
    assert torch.equal(trained.predict(pixels.reshape(3, 8, 8).numpy()), expected)
    assert not trained.model.training
    assert trained.class_names == [str(digit) for digit in range(10)]


def test_loading_a_run_leaves_the_random_number_generator_alone(digits_run):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    load_run(digits_run)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            torch.zeros(2, 3),
            "inputs of shape [2, 3] do not fit: the model was trained on 64 numbers per sample",
        ),
        (torch.zeros(0, 64), "inputs: there are no rows; at least one is needed"),
        (
            torch.full((1, 64), math.nan),
            "inputs: row 0, column 0 is nan (and 63 more); "
            "remove the row or fill in a number before training",
        ),
        (3.0, "inputs: a single number has no rows; give a tensor of shape [n, …]"),
    ],
)
def test_rows_that_do_not_fit_a_loaded_model(digits_run, rows, message):
    with pytest.raises(DataError) as caught:
        load_run(digits_run).predict(rows)
    assert str(caught.value) == message


def test_a_model_of_digits_has_no_columns_to_find_in_a_csv_file(digits_run):
    with pytest.raises(DataError) as caught:
        load_run(digits_run).predict_csv("x.csv")
    assert str(caught.value) == (
        "x.csv: the model was not trained on a table, so its columns have no names; "
        "give predict an array"
    )


def copied(digits_run, tmp_path):
    for name in ("config.yaml", "preprocessing.json", "model.safetensors"):
        (tmp_path / name).write_bytes((digits_run / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["config.yaml", "preprocessing.json", "model.safetensors"])
def test_a_directory_that_lacks_a_file_is_not_a_finished_run(digits_run, tmp_path, name):
    (copied(digits_run, tmp_path) / name).unlink()
    with pytest.raises(OutputError) as caught:
        load_run(tmp_path)
    way = f"; to go on with it, give its command with --output-dir {tmp_path} --resume"
    end = way if "model" in name else ""
    assert str(caught.value) == f"{tmp_path} is not a finished run: it has no {name}{end}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("0.bias"), "lacks 0.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "has, unlike the model, extra"),
        (
            lambda w: w.update({"2.bias": torch.zeros(9)}),
            "2.bias has shape [9], but the model's has [10]",
        ),
    ],
)
def test_weights_of_another_model_are_refused(digits_run, tmp_path, change, message):
    path = copied(digits_run, tmp_path) / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(CheckpointError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == f"{path}: {message}"


def test_damaged_files_of_a_run_are_said_to_be_so(digits_run, tmp_path):
    directory = copied(digits_run, tmp_path)
    (directory / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged \(its header "):
        load_run(directory)
    (directory / "preprocessing.json").write_text('{"mean": [', "utf-8")
    with pytest.raises(DataError, match=r"preprocessing.json: is not a preprocessing file; "):
        load_run(directory)


CSV = "colour,size,price\nred,1,10\nblue,2,20\nred,3,30\ngreen,4,40\nblue,5,50\n"


def test_predictions_from_a_csv_file_are_in_the_units_of_the_target(tmp_path, monkeypatch):
    """With enough full-batch steps the linear model reaches the least-squares fit."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(CSV.replace(",", ";"), "utf-8")
    (tmp_path / "new.csv").write_text("extra;size;colour\n9;6;red\n9;2.5;green\n", "utf-8")
    (tmp_path / "a.yaml").write_text(
        "data: {source: csv, path: a.csv, target: price, delimiter: ;, standardize: true, "
        "standardize_targets: true}\n"
        "model: linear\nloss: mse\nloader: batch\noptimizer: {name: lbfgs}\n"
        "precision: fp64\nepochs: 20\n",
        "utf-8",
    )
    assert main(["--config", "a.yaml", "--output-dir", "out"]) == 0
    predicted = load_run("out").predict_csv("new.csv")
    assert predicted.dtype == torch.float64
    np.testing.assert_allclose(predicted[:, 0], [60.0, 25.0], rtol=1e-5)  # price = 10 size
    (tmp_path / "bad.csv").write_text("size;colour\n1;pink\n", "utf-8")
    with pytest.raises(DataError) as caught:
        load_run("out").predict_csv(tmp_path / "bad.csv")
    assert str(caught.value).endswith(
        "line 2, column 'colour' is 'pink', a category that does not occur in the training data; "
        "train with data.unknown_category: ignore; --on-bad-row skip leaves such rows out"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_a_loaded_run_computes_in_the_precision_of_training(tmp_path, precision):
    config = tmp_path / "a.yaml"
    config.write_text(DIGITS + f"precision: {precision}\n", "utf-8")
    out = tmp_path / "out"
    assert main(["--config", str(config), "epochs=1", "--output-dir", str(out)]) == 0
    data = digits()
    _, validation = split(1797, 0.2, seed=3)
    outputs = load_run(out).predict(data.inputs[validation])
    correct = (outputs.argmax(dim=1) == data.targets[validation]).double().mean().item()
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert correct == pytest.approx(summary["validation"]["accuracy"])


def test_metrics_of_a_resumed_run_are_those_of_one_left_alone(tmp_path):
    lines = [
        {"kind": "step", "epoch": 1, "step": 10},
        {"kind": "epoch", "epoch": 1, "step": 15},
        {"kind": "step", "epoch": 2, "step": 20},
        {"kind": "epoch", "epoch": 2, "step": 30},
        {"kind": "resume", "epoch": 1, "step": 15},
        {"kind": "step", "epoch": 2, "step": 20, "again": True},
        {"kind": "resume", "epoch": 1, "step": 20},
        {"kind": "epoch", "epoch": 2, "step": 30, "again": True},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st', "utf-8")
    kept = [lines[0], lines[1], lines[5], lines[7]]
    assert read_metrics(path) == kept


def test_settings_that_a_resumed_run_could_not_write_are_written_at_its_end(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(
        DIGITS.replace("log: {every_n_steps: 10}", "log: {picture: false}"), "utf-8"
    )
    out = tmp_path / "out"
    given = ["--config", str(tmp_path / "a.yaml"), "--output-dir", str(out)]
    assert main([*given, "epochs=1"]) == 0
    write, failed = durable_files.replace_file, []

    def fails_once(path, content):
        if path.name == "config.yaml" and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error")
        write(path, content)

    monkeypatch.setattr(durable_files, "replace_file", fails_once)
    assert main([*given, "epochs=2", "--resume"]) == 0
    assert failed
    assert load_config(out / "config.yaml")[0].epochs == 2


def test_a_line_that_a_crash_cut_short_does_not_swallow_the_resume_marker(tmp_path):
    config, out = tmp_path / "a.yaml", tmp_path / "out"
    config.write_text(DIGITS, "utf-8")
    arguments = ["--config", str(config), "--output-dir", str(out)]
    assert main([*arguments, "epochs=1"]) == 0
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 30, "epoch": 2}\n{"kind": "st')
    assert main([*arguments, "--resume"]) == 0
    steps = [r["step"] for r in read_metrics(out / "metrics.jsonl")]
    assert steps == [10, 20, 23, 30, 40, 46]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    class Weird(nn.MSELoss):
        """Finite in training mode's first batch, NaN in evaluation."""

        def forward(self, output, targets):
            value = super().forward(output, targets)
            return value if torch.is_grad_enabled() else value * math.nan

    model = nn.Linear(1, 1)
    loader = gdtrain.BatchLoader((torch.ones(2, 1), torch.ones(2, 1)))
    log = gdtrain.output.metrics_log.MetricsLog(tmp_path / "metrics.jsonl", every_n_steps=1)
    trainer = gdtrain.Trainer(
        model,
        Weird(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        loader,
        validation=loader,
        callbacks=[log],
        device="cpu",
    )
    trainer.fit(1)
    summary = summary_of(trainer, "done")
    write_summary(tmp_path, summary)
    assert math.isnan(summary["validation"]["loss"])
    for name in ("summary.json", "metrics.jsonl"):
        assert "NaN" not in (tmp_path / name).read_text("utf-8")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["validation"] == {
        "loss": None
    }
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["val_loss"] is None


def test_preprocessing_survives_its_file(tmp_path):
    done = Preprocessing([2], 1, ["é", "b"], None, mean=[0.1, 1e-300], std=[1 / 3, 2.0])
    done.save(tmp_path / "p.json")
    assert Preprocessing.load(tmp_path / "p.json") == done


STATE = {
    "a": {"b": torch.arange(3.0), 3: (1, 2.5, None, True)},
    "c": [math.nan, math.inf, 1e-300, "é", torch.tensor(2)],
    "a.b": torch.zeros(1, dtype=torch.bool),
}


def test_a_state_is_read_back_as_it_was(tmp_path):
    write_state(tmp_path, STATE)
    found = read_state(tmp_path)
    assert repr(found) == repr(STATE)
    assert found["a"][3] == (1, 2.5, None, True)


def test_tensors_are_a_safetensors_file_like_any_other(tmp_path):
    """Read by the library itself: every dtype, empty and single numbers, in any mixture."""
    tensors = {
        str(dtype).removeprefix("torch."): torch.arange(5).to(dtype)
        for dtype in (torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16)
    } | {
        "bfloat16": torch.tensor(1.5, dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.empty(0, 3, dtype=torch.float64),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_what_could_run_code_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        write_state(tmp_path, {"optimizer": {"hook": print}})
    assert str(caught.value) == (
        "optimizer.hook: a builtin_function_or_method can't be saved; "
        "state_dict() may hold dicts, lists, tuples, tensors, numbers, text and None"
    )


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_the_newest_checkpoints_are_kept_and_damaged_ones_passed_over(tmp_path):
    store = CheckpointStore(tmp_path / "c", keep_last=2)
    for step in (8, 9, 10, 11):
        store.save(step, {"step": step})
    assert names(store) == ["step-0000000010", "step-0000000011"]
    (store.directory / "step-0000000011" / "state.json").write_text("{}", "utf-8")
    path, state, skipped = store.load_newest()
    assert (path.name, state) == ("step-0000000010", {"step": 10})
    damaged = f"{store.directory}/step-0000000011/state.json is damaged"
    assert skipped == [f"{damaged} (its header can't be read)"]


def test_a_checkpoint_after_a_resume_removes_the_damaged_one_ahead_and_not_itself(tmp_path):
    store = CheckpointStore(tmp_path / "c", keep_last=1)
    store.save(11, {"step": 11})
    store.save(9, {"step": 9})
    assert names(store) == ["step-0000000009"]
    store.save(9, {"step": 9, "epoch": 1})
    assert store.load_newest()[1] == {"step": 9, "epoch": 1}
    assert names(store) == ["step-0000000009-1"]


def test_the_best_is_kept_whatever_its_age_until_another_is_marked(tmp_path):
    store = CheckpointStore(tmp_path / "c", keep_last=1)
    store.mark_best(store.save(1, {"step": 1}), 0.5)
    store.save(2, {"step": 2})
    assert names(store) == ["best.json", "step-0000000001", "step-0000000002"]
    assert store.best() == store.directory / "step-0000000001"
    store.mark_best(store.save(3, {"step": 3}), 0.4)
    store.save(4, {"step": 4})
    assert names(store) == ["best.json", "step-0000000003", "step-0000000004"]


def test_unfinished_checkpoints_do_not_count(tmp_path):
    store = CheckpointStore(tmp_path / "c")
    (store.directory / ".unfinished-0000000009").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        store.load_newest()
    assert str(caught.value) == f"{store.directory}: holds no checkpoint to resume from"
    store.save(1, {})
    assert names(store) == ["step-0000000001"]
