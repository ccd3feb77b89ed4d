"""What a run's numbers become: event files for TensorBoard, a CSV table, the history's table."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, TensorBoard, Trainer
from gdtrain.cli.main import main
from gdtrain.errors import DataError, MissingPackageError
from gdtrain.output import tensorboard
from gdtrain.output.metrics_csv import write_csv
from gdtrain.output.plots import curves
from gdtrain.output.run_directory import read_metrics

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [4]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 7}
optimizer: {lr: 0.1}
scheduler: {name: exponential, gamma: 0.9}
monitors: {full_loss: {every_n_steps: 4}, sample_gradients: {every_n_epochs: 2}}
log: {every_n_steps: 3, csv: true, tensorboard: true, picture: false}
epochs: 4
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(CONFIG, "utf-8")


def train(*arguments: str) -> int:
    return main(["--config", "moons.yaml", *arguments])


def events(directory) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: of each name, steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def recorded(path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl, in float32; lr from steps, or else from epochs."""
    found: dict[str, dict[int, float]] = {}
    for record in read_metrics(Path(path)):
        for name, value in record.items():
            if name in ("kind", "step", "epoch", "samples", "seconds") or isinstance(value, list):
                continue
            found.setdefault(name, {})[record["step"]] = torch.tensor(value).item()
    return {name: list(values.items()) for name, values in found.items()}


# ── TensorBoard ─────────────────────────────────────────────────────────────────────────────


def test_tensorboard_reads_what_metrics_jsonl_says(capsys):
    assert train("--output-dir", "out") == 0
    found = events("out/tensorboard")
    assert found == recorded("out/metrics.jsonl")
    assert {"loss", "lr", "train_loss", "val_loss", "val_accuracy", "full_loss"} <= found.keys()
    # 30 samples, 5 updates an epoch; every third is logged, and every fourth, of the monitor
    assert [step for step, _ in found["loss"]] == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    assert [step for step, _ in found["train_loss"]] == [5, 10, 15, 20]
    assert [step for step, _ in found["lr"]] == [3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20]


def test_after_a_crash_and_a_resume_the_numbers_are_those_of_a_run_left_alone(capsys):
    @gdtrain.register_trainer("crashing")
    class Crashing(Trainer):
        crashes = True

        def compute_loss(self, batch):
            if self.crashes and self.progress.step == 12 and torch.is_grad_enabled():
                Crashing.crashes = False
                (board,) = (c for c in self.callbacks if isinstance(c, TensorBoard))
                board.on_fit_end(self)  # what the disk has got by then
                raise RuntimeError("power cut")
            return super().compute_loss(batch)

    checkpoint = "checkpoint={every_n_steps: 10}"
    assert train("--output-dir", "whole", checkpoint) == 0
    given = ("--output-dir", "out", "trainer=crashing", checkpoint)
    with pytest.raises(RuntimeError, match="power cut"):
        train(*given)
    assert events("out/tensorboard")["loss"][-1][0] == 12
    assert train(*given, "--resume") == 0
    assert "resuming from out/checkpoints/step-0000000012" in capsys.readouterr().err
    ours, whole = events("out/tensorboard"), events("whole/tensorboard")
    # the epoch that ended at the checkpoint has ended twice, with the same numbers
    assert {tag: sorted(set(points)) for tag, points in ours.items()} == whole
    assert [step for step, _ in ours["loss"]] == [step for step, _ in whole["loss"]]
    for name in ("metrics.csv", "metrics.jsonl"):
        assert table(name, "out") == table(name, "whole")


def rows_of(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def table(name, directory):
    path = Path(directory, name)
    records = read_metrics(path) if name == "metrics.jsonl" else rows_of(path)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_the_callback_in_python_leaves_out_what_is_not_finite(tmp_path):
    class Reporting(gdtrain.Callback):
        def report(self):
            return {"infinite": float("inf"), "two": 2.0}

    trainer = small([Reporting(), TensorBoard(tmp_path / "tb", every_n_steps=2)])
    trainer.fit(1)
    trainer.fit(3)
    found = events(tmp_path / "tb")
    assert found["two"] == [(2, 2.0), (4, 2.0), (6, 2.0), (8, 2.0)]
    assert "infinite" not in found
    assert [step for step, _ in found["train_loss"]] == [3, 6, 9]
    assert [value for _, value in found["train_loss"]] == pytest.approx(trainer.history.train_loss)


def test_without_tensorboard_the_error_comes_first_and_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(
        tensorboard, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name)
    )
    with pytest.raises(MissingPackageError) as caught:
        TensorBoard("tb")
    remedy = "tensorboard is not installed; pip install 'gdtrain[tensorboard]'"
    assert str(caught.value) == remedy
    for arguments in ([], ["--dry-run"]):
        assert train(*arguments) == 2
        said = f"moons.yaml:8:49: log.tensorboard: {remedy}, or remove it\n"
        assert capsys.readouterr().err == said
    assert sorted(path.name for path in Path().iterdir()) == ["moons.yaml"]


# ── metrics.csv ─────────────────────────────────────────────────────────────────────────────


def test_the_table_has_every_number_exactly(capsys):
    assert train("--output-dir", "out") == 0
    records = read_metrics(Path("out/metrics.jsonl"))
    rows = rows_of("out/metrics.csv")
    assert list(rows[0])[:3] == ["kind", "step", "epoch"]
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert {name for name, cell in row.items() if cell} == set(record)
        for name, value in record.items():
            cell = row[name]
            assert (cell if name == "kind" else json.loads(cell)) == value


def test_null_and_text_and_an_empty_log(tmp_path):
    metrics, out = tmp_path / "m.jsonl", tmp_path / "m.csv"
    metrics.write_text("")
    write_csv(metrics, out)
    assert out.read_text() == "kind,step,epoch\n"
    metrics.write_text('{"kind": "step", "step": 1, "epoch": 1, "a,b": null, "c": [1, 2.5]}\n')
    write_csv(metrics, out)
    assert out.read_text() == 'kind,step,epoch,"a,b",c\nstep,1,1,,"[1, 2.5]"\n'


def test_neither_is_written_unasked(capsys):
    assert train("--output-dir", "out", "log={every_n_steps: 3}") == 0
    assert not {"metrics.csv", "tensorboard"} & {path.name for path in Path("out").iterdir()}


# ── the history ─────────────────────────────────────────────────────────────────────────────


def small(callbacks=()) -> Trainer:
    torch.manual_seed(0)
    X = torch.randn(7, 2)
    y = X.sum(1, keepdim=True)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        MiniBatchLoader((X, y), batch_size=3),
        validation=gdtrain.Validation(BatchLoader((X, y)), every_n_epochs=2),
        callbacks=callbacks,
    )


def test_the_history_as_a_table():
    history = small().fit(3)
    loss, val_loss = history.train_loss, history.val_loss[1]
    rows = [
        ("epoch", "train_loss", "val_loss"),
        *((str(i + 1), f"{loss[i]:.6g}", f"{val_loss:.6g}" if i == 1 else "") for i in range(3)),
    ]
    lines = history.table("epoch", "train_loss", "val_loss").splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[:1] + cells[2:] == rows
    assert set("".join(cells[1])) == {"-", ":"}
    assert len(set(map(len, lines))) == 1
    assert history.table().splitlines()[0].count("|") == len(history.columns()) + 1
    with pytest.raises(AttributeError, match="history has no column 'nothing'"):
        history.table("nothing")


def test_a_notebook_shows_a_table_of_moderate_length():
    trainer = small()
    assert trainer.history._repr_html_().count("<tr>") == 1
    trainer.fit(41)
    html = trainer.history._repr_html_()
    assert html.count("<tr>") == 1 + 20 + 1 + 20
    assert f"<td>{trainer.history.train_loss[-1]:.6g}</td>" in html
    trainer.history.epochs = [{"<b>&": 1.0}]
    assert "<th>&lt;b&gt;&amp;</th>" in trainer.history._repr_html_()


def test_the_history_as_a_picture(monkeypatch):
    trainer = small()
    with pytest.raises(DataError, match=r"^history: no epoch has finished; call fit first$"):
        trainer.history.plot()
    history = trainer.fit(4)
    frames = history.plot().axes
    assert list(frames[0].lines[0].get_ydata()) == history.train_loss
    assert list(frames[0].lines[1].get_xdata()) == [2, 4]
    assert [frame.get_ylabel() for frame in frames] == ["loss", "learning rate α"]
    assert history.plot("val_loss").get_suptitle() == "Val_loss"
    with pytest.raises(DataError, match=r"^history: has not recorded 'x'; it has recorded lr, "):
        history.plot("x")
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'gdtrain\[plots\]'"):
        history.plot()
