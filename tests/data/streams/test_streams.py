"""Streams: the same numbers as from memory, bounded memory, clean ends, exact resumption."""

import json
import os
import re
import signal
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import Program, start
from torch import nn
from torch.utils.data import IterableDataset

from gdtrain import (
    BatchLoader,
    Callback,
    MiniBatchLoader,
    Prequential,
    SampleLoader,
    StepLosses,
    Trainer,
)
from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.load import load_config
from gdtrain.data.batch import Plan
from gdtrain.data.streams import lines
from gdtrain.errors import ConfigError, DataError
from gdtrain.output.run_directory import read_metrics
from gdtrain.training.evaluating.metrics import accuracy

CONFIG = """\
data: {source: stream, format: csv, path: s.csv, target: y}
model: {name: mlp, hidden: [5], dropout: 0.1}
loss: mse
loader: {name: minibatch, batch_size: 3}
optimizer: {lr: 0.05, momentum: 0.9}
epochs: 1
log: {every_n_steps: 1, picture: false}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory with s.yaml; files are read in small blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lines, "READ_BYTES", 1000)
    Path("s.yaml").write_text(CONFIG)
    return tmp_path


def table(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3)).round(4)


def csv_text(rows: np.ndarray, end: str = "\n") -> str:
    cells = ["a,b,y", *(",".join(map(str, row)) for row in rows.tolist())]
    return "".join(line + end for line in cells)


def write(rows: np.ndarray, name: str = "s.csv") -> None:
    Path(name).write_bytes(csv_text(rows).encode())


class Rows(IterableDataset):
    """Pairs (x [2], y [1]) of a table, in float32."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows).float()

    def __iter__(self):
        return ((row[:2], row[2:]) for row in self.rows)


def trainer_of(loader, *callbacks: Callback) -> Trainer:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks)


def weights(trainer: Trainer) -> list:
    return [p.tolist() for p in trainer.model.parameters()]


def loader_of(*overrides: str):
    return build(load_config("s.yaml", ["device=cpu", *overrides])[0]).loader


def run(*overrides: str) -> int:
    return main(["--config", "s.yaml", "device=cpu", *overrides])


def errors(capsys, *overrides: str) -> str:
    assert run(*overrides) == 2
    return capsys.readouterr().err


# ── the same numbers as from memory ─────────────────────────────────────────────────────────


@pytest.mark.few(7)
@pytest.mark.parametrize(("n", "size"), [(7, 3), (7, 7), (7, 10), (1, 3), (2000, 32), (300, 1)])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "dataset"])
def test_training_has_the_bits_of_the_same_rows_in_memory(kind: str, n: int, size: int) -> None:
    rows = table(n)
    write(rows)
    records = [dict(zip("aby", row, strict=True)) for row in rows.tolist()]
    Path("s.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if kind == "dataset":
        loader = MiniBatchLoader(Rows(rows), size)
    else:
        path = f"data.path=s.{kind}"
        loader = loader_of(f"data.format={kind}", path, f"loader.batch_size={size}")
    tensor = torch.from_numpy(rows).float()
    in_memory = (tensor[:, :2], tensor[:, 2:])
    expected = StepLosses(), trainer_of(MiniBatchLoader(in_memory, size, order="sequential"))
    found = StepLosses(), trainer_of(loader)
    for losses, trainer in (expected, found):
        trainer.callbacks.append(losses)
        trainer.fit(1)
    assert found[0].losses == expected[0].losses
    assert weights(found[1]) == weights(expected[1])
    assert found[1].progress.samples == n
    assert found[1].history.train_loss == expected[1].history.train_loss


def test_a_sample_loader_takes_one_at_a_time_and_epochs_begin_anew() -> None:
    loader = SampleLoader(Rows(table(7)))
    trainer = trainer_of(loader)
    trainer.fit(2)
    assert (trainer.progress.step, trainer.progress.samples) == (14, 14)
    batches = list(loader)
    assert [tuple(batch.inputs.shape) for batch in batches] == [(1, 2)] * 7
    assert [batch.indices.tolist() for batch in batches] == [[i] for i in range(7)]


def test_a_loop_by_hand_gets_all_batches_each_time_from_the_start() -> None:
    write(table(7))
    for loader in (loader_of(), MiniBatchLoader(Rows(table(7)), 3)):
        for _ in range(2):
            batches = list(loader)
            assert [len(batch) for batch in batches] == [3, 3, 1]
            together = torch.cat([batch.inputs for batch in batches]).float()
            assert torch.equal(together, torch.from_numpy(table(7)[:, :2]).float())
        assert len(next(iter(loader))) == 3


def test_drop_last_leaves_out_the_ragged_end() -> None:
    assert [len(b) for b in MiniBatchLoader(Rows(table(7)), 3, drop_last=True)] == [3, 3]
    trainer = trainer_of(MiniBatchLoader(Rows(table(7)), 3, drop_last=True))
    trainer.fit(1)
    assert trainer.progress.samples == 6
    with pytest.raises(ConfigError) as caught:
        trainer_of(MiniBatchLoader(Rows(table(2)), 3, drop_last=True)).fit(1)
    assert str(caught.value) == "drop_last: leaves no batch: 2 samples do not fill one of 3"


def test_named_classes_and_chosen_columns() -> None:
    Path("s.csv").write_text('id,a,kind,b\nx,1,cat,2\n"y,z",3, dog ,4\nw,5,cat,"6"\n')
    chosen = ["data.target=kind", "data.features=[b, a]", "data.classes=[dog, cat]"]
    (batch,) = loader_of(*chosen, "loss=cross_entropy")
    assert batch.inputs.tolist() == [[2, 1], [4, 3], [6, 5]]
    assert batch.targets.tolist() == [1, 0, 1]
    Path("s.jsonl").write_text('{"a": 1, "k": 7, "t": "x"}\n{"k": "8", "a": 2}\n')
    of_json = ["data.format=jsonl", "data.path=s.jsonl", "data.target=k", "data.features=[a]"]
    (batch,) = loader_of(*of_json, "data.classes=[8, 7]", "loss=cross_entropy")
    assert (batch.inputs.tolist(), batch.targets.tolist()) == ([[1], [2]], [1, 0])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("cut", [0, 1])
def test_ends_of_lines_and_a_byte_order_mark(end: str, cut: int) -> None:
    text = csv_text(table(7), end)
    Path("s.csv").write_bytes(b"\xef\xbb\xbf" + (text[: -len(end)] if cut else text).encode())
    batches = list(loader_of())
    assert torch.equal(torch.cat([b.targets for b in batches]), torch.from_numpy(table(7)[:, 2:]))


# ── what can't be ───────────────────────────────────────────────────────────────────────────


def test_settings_that_a_stream_can_not_have(capsys) -> None:
    write(table(7))
    given = CONFIG.replace("{name: minibatch, batch_size: 3}", "batch").replace("1\nlog", "2\nlog")
    Path("s.yaml").write_text(f"{given}scheduler: cosine\nearly_stopping: {{}}\n")
    assert errors(capsys, "data.target=y").splitlines() == [
        "s.yaml:4:9: loader: batch needs every sample for one update, and a stream has no last "
        "one; use minibatch or sample",
        "s.yaml:6:9: epochs: must be 1 on a stream, which is read once, got 2",
        "s.yaml:8:12: scheduler: cosine needs the number of updates, which a stream does not "
        "have; use another",
        "s.yaml:9:17: early_stopping: has no effect on a stream, which is one epoch; remove it",
    ]
    Path("s.yaml").write_text(CONFIG.replace("batch_size: 3", "batch_size: 3, order: reshuffle"))
    assert errors(capsys) == (
        "s.yaml:4:9: loader: order has no effect on a stream, which comes in its own; remove it\n"
    )
    Path("s.yaml").write_text(
        "data:\n  source: stream\n  format: csv\n  path: '-'\n  target: y\n  follow: true\n"
        "  standardize: true\n  validation_fraction: 0.5\n  standardize_targets: true\n"
        "  classes: [1, '1']\n  num_classes: 2\n" + CONFIG.partition("\n")[2]
    )
    assert errors(capsys).splitlines() == [
        "s.yaml:6:11: data.follow: has no effect on standard input, which is waited for anyway",
        "s.yaml:7:16: data.standardize: needs all samples before the first, which a stream does "
        "not have; rescale the numbers before they are streamed, or give the model a layer that "
        "does",
        "s.yaml:8:24: data.validation_fraction: can't be kept from a stream, whose end nobody "
        "knows; remove it",
        "s.yaml:9:24: data.standardize_targets: needs all samples before the first, which a "
        "stream does not have; rescale the targets before they are streamed",
        "s.yaml:10:12: data.classes: must be different labels; one of them occurs twice",
    ]
    assert not Path("runs").exists()


def test_classes_are_needed_where_the_loss_needs_them_and_only_there(capsys) -> None:
    write(table(7))
    assert errors(capsys, "loss=cross_entropy") == (
        "s.yaml:1:7: data.num_classes: missing; cross_entropy needs to know the classes before "
        "the stream has shown them: set classes to their labels, or num_classes\n"
    )
    assert errors(capsys, "data.num_classes=3") == (
        "command line:2:18: data.num_classes: has no effect under mse; remove it\n"
    )
    assert errors(capsys, "data.shape=[3]") == (
        "s.yaml:1:7: data: shape [3] holds 3 numbers, but a sample has 2 inputs\n"
    )


def test_a_batch_loader_an_order_and_workers_are_refused() -> None:
    for make, said in (
        (
            lambda: BatchLoader(Rows(table(3))),
            "loader: BatchLoader needs every sample for one update, and a stream has no last one; "
            "use MiniBatchLoader or SampleLoader",
        ),
        (
            lambda: SampleLoader(Rows(table(3)), order="reshuffle"),
            "order: a stream comes in its own order; leave order out",
        ),
        (
            lambda: MiniBatchLoader(Rows(table(3)), 2, num_workers=1),
            "num_workers: has no effect on an IterableDataset, which is read as it is trained on; "
            "omit it",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == said
    loader = SampleLoader(Rows(table(3)))
    with pytest.raises(TypeError, match=r"^a stream has no length$"):
        len(loader)
    with pytest.raises(DataError) as no_number:
        trainer_of(loader).evaluate()
    assert str(no_number.value) == (
        "a stream has no number of samples, and can't be evaluated as a whole"
    )
    with pytest.raises(DataError) as not_shared:
        loader.plan(0).share(1, 2)
    assert str(not_shared.value) == (
        "a stream is read by one process; train on it without torchrun"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first line must name the columns"),
        ("a,b,z\n1,2,3\n", "has no column 'y'; it has a, b, z"),
        ("a,b,y\n", "the stream is empty; it needs a sample"),
        ("a,b,y\n\n\n", "the stream is empty; it needs a sample"),
        (
            "a,b,y\n1,2,3\n1,2\n",
            "line 3 has 2 cells, but the header has 3; correct it, or set data.on_bad_line: skip",
        ),
    ],
)
def test_a_stream_without_a_first_batch_writes_nothing(text: str, said: str, capsys) -> None:
    Path("s.csv").write_text(text)
    assert errors(capsys) == f"s.yaml:1:7: data: s.csv: {said}\n"
    assert not Path("runs").exists()


BAD_CSV = [
    ("1,2", "has 2 cells, but the header has 3"),
    ("1,2,3,4", "has 4 cells, but the header has 3"),
    ("1,x,3", "'b' is 'x', which is not a number"),
    ("1,,3", "'b' is empty"),
    ("1,2,nan", "'y' is 'nan', which is not finite"),
    ("1,1e999,3", "'b' is '1e999', which is not finite"),
    ("1_0,2,3", "'a' is '1_0', which is not a number"),
    ('"1,2,3', "unexpected end of data"),
    ("\ufffd\x00,2,3", "'a' is '\ufffd\\x00', which is not a number"),
]
BAD_JSON = [
    ("?", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ("[1]", "is not a JSON object"),
    ('{"a": 1, "b": 2}', "has no field 'y'"),
    ('{"a": 1, "b": 2, "y": 3, "z": 4}', "has 4 fields, but line 1 has 3"),
    ('{"a": 1, "b": "2", "y": 3}', "'b' is '2', which is not a number"),
    ('{"a": 1, "b": true, "y": 3}', "'b' is true, which is not a number"),
    ('{"a": 1, "b": [2], "y": 3}', "'b' is [2], which is not a number"),
    ('{"a": 1, "b": null, "y": 3}', "'b' is null, which is not a number"),
    ('{"a": 1, "b": NaN, "y": 3}', "'b' is NaN, which is not finite"),
]


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [("csv", *case) for case in BAD_CSV] + [("jsonl", *case) for case in BAD_JSON],
)
def test_a_bad_line_ends_the_run_or_is_skipped(kind: str, line: str, said: str, caplog) -> None:
    good = '{"a": 1, "b": 2, "y": 3}' if kind == "jsonl" else "1,2,3"
    head = [] if kind == "jsonl" else ["a,b,y"]
    Path("s.txt").write_text("\n".join([*head, *[good] * 4, line, *[good] * 4]), "utf-8")
    options = ["data.path=s.txt", f"data.format={kind}"]
    trainer = trainer_of(loader_of(*options))
    number = 5 + len(head)
    with pytest.raises(DataError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        f"s.txt: line {number} {said}; correct it, or set data.on_bad_line: skip"
    )
    assert trainer.progress.samples == 3  # whole batches before the line
    skipping = trainer_of(loader_of(*options, "data.on_bad_line=skip"))
    skipping.fit(1)
    assert caplog.messages == [f"s.txt: line {number} {said}; skipped"]
    assert skipping.progress.samples == 8


def test_many_bad_lines_are_counted(caplog) -> None:
    Path("s.csv").write_text("a,b,y\n" + "\n".join(["1,2,3", "?"] * 30))
    assert sum(len(b) for b in loader_of("data.on_bad_line=skip")) == 30
    said = "has 1 cell, but the header has 3; skipped"
    assert caplog.messages == [
        *(f"s.csv: line {3 + 2 * i} {said}" for i in range(10)),
        "s.csv: further bad lines are counted, and not shown",
        "s.csv: 30 bad lines were skipped in all",
    ]


def test_labels_and_targets_out_of_range() -> None:
    Path("s.csv").write_text("a,y\n1,0\n2,3\n")
    for options, said in (
        (["data.num_classes=3", "loss=cross_entropy"], "'y' is '3', but targets must be 0 … 2"),
        (
            ["data.classes=[0, 1]", "loss=cross_entropy"],
            "'y' is '3', which is none of the classes 0, 1",
        ),
        (
            ["loss=bce_with_logits"],
            "'y' is '3', but targets must be in 0 … 1 under bce_with_logits",
        ),
    ):
        with pytest.raises(DataError) as caught:
            list(loader_of(*options))
        assert str(caught.value) == (
            f"s.csv: line 3 {said}; correct it, or set data.on_bad_line: skip"
        )


def test_a_fatal_line_leaves_a_state_that_goes_on_when_it_is_corrected(capsys) -> None:
    rows = table(40)
    write(rows)
    assert run("--output-dir", "whole") == 0
    good = Path("s.csv").read_text().splitlines(keepends=True)
    Path("s.csv").write_text("".join([*good[:30], "oops\n", *good[30:]]))
    capsys.readouterr()
    assert run("--output-dir", "cut") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "gdtrain: s.csv: line 31 has 1 cell, but the header has 3; "
        "correct it, or set data.on_bad_line: skip"
    )
    assert run("--output-dir", "cut", "data.on_bad_line=skip", "--resume") == 0
    assert "note: s.csv: line 31 has 1 cell" in capsys.readouterr().err
    final = [Path(d, "model.safetensors").read_bytes() for d in ("whole", "cut")]
    assert final[0] == final[1]


# ── resuming ────────────────────────────────────────────────────────────────────────────────


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer: Trainer) -> None:
        trainer.stop("here")


@pytest.mark.few(2)
@pytest.mark.parametrize("step", [1, 2, 150, 234])
def test_a_stopped_run_goes_on_from_the_byte_offset(step: int) -> None:
    write(table(700))
    whole = trainer_of(loader_of(), Prequential(100))
    whole.fit(1)
    first = trainer_of(loader_of(), Prequential(100), StopAt(step))
    first.fit(1)
    line = 1 + min(3 * step, 700)
    offset = sum(map(len, Path("s.csv").read_text().splitlines(keepends=True)[:line]))
    assert first.progress.position == [offset, line, 0]
    kept = first.state_dict()
    first.callbacks.pop()
    first.fit(1)  # in the same process, from what has been read ahead
    second = trainer_of(loader_of(), Prequential(100))
    second.load_state_dict(kept)
    second.fit(1)
    for trainer in (first, second):
        assert weights(trainer) == weights(whole)
        assert trainer.history.prequential_loss == whole.history.prequential_loss
        assert trainer.history.train_loss == whole.history.train_loss


def test_another_file_is_not_gone_on_with() -> None:
    write(table(50))
    trainer = trainer_of(loader_of(), StopAt(4))
    trainer.fit(1)
    kept = trainer.state_dict()
    offset = trainer.progress.position[0]
    Path("s.csv").write_text("a,b,y\n" + "1,2,3\n" * 2)
    other = trainer_of(loader_of())
    other.load_state_dict(kept)
    with pytest.raises(DataError) as caught:
        other.fit(1)
    assert str(caught.value) == (
        f"s.csv: is not the file that the run was reading: no line begins at byte {offset} of 18; "
        "give that file, or start a new run"
    )


def test_what_can_not_be_wound_on_says_so(caplog) -> None:
    trainer = trainer_of(MiniBatchLoader(Rows(table(7)), 3), StopAt(1))
    trainer.fit(1)
    other = trainer_of(MiniBatchLoader(Rows(table(7)), 3))
    other.load_state_dict(trainer.state_dict())
    other.fit(1)
    assert caplog.messages == [
        "Rows can't be wound on to where the run stopped: it goes on with what comes now"
    ]
    assert other.progress.samples == 10
    trainer.callbacks.clear()
    trainer.fit(1)  # the same object goes on where it is
    assert trainer.progress.samples == 7


# ── pipes, growing files and signals, in processes ──────────────────────────────────────────


def started(directory: str, *overrides: str, stdin: bool = False) -> Program:
    command = ["-m", "gdtrain", "--config", "s.yaml", "--output-dir", directory, "device=cpu"]
    return start(*command, *overrides, stdin=stdin)


def has_steps(directory: str, count: int) -> bool:
    log = Path(directory, "metrics.jsonl")
    return log.exists() and sum(r["kind"] == "step" for r in read_metrics(log)) >= count


def test_standard_input_and_an_idle_pipe_that_a_signal_ends(capsys) -> None:
    write(table(7))
    assert run("--output-dir", "whole") == 0
    fed = started("fed", 'data.path="-"', stdin=True)
    idle = started("idle", 'data.path="-"', stdin=True)
    fed.stdin.write(csv_text(table(7)).encode())
    fed.stdin.close()
    assert fed.wait() == 0, fed.err
    final = [Path(d, "model.safetensors").read_bytes() for d in ("whole", "fed")]
    assert final[0] == final[1]

    idle.stdin.write(csv_text(table(7)).encode())
    idle.wait_for(lambda: has_steps("idle", 2))
    idle.send_signal(signal.SIGTERM)
    assert idle.wait() == 143  # at once, and not with the next sample
    assert json.loads(Path("idle/summary.json").read_text())["samples"] == 6
    assert [p.name for p in Path("idle/checkpoints").iterdir()] == ["step-0000000002"]


def test_a_growing_file_is_followed_and_resumed_after_a_signal() -> None:
    rows = table(300)
    write(rows)
    assert run("--output-dir", "whole") == 0
    text = Path("s.csv").read_text().splitlines(keepends=True)
    Path("s.csv").write_text("".join(text[:100]) + text[100][:4])
    program = started("grown", "data.follow=true")
    program.wait_for(lambda: has_steps("grown", 33))
    with Path("s.csv").open("a") as file:
        file.write(text[100][4:] + "".join(text[101:200]))
    program.wait_for(lambda: has_steps("grown", 66))
    program.send_signal(signal.SIGTERM)
    assert program.wait() == 143
    with Path("s.csv").open("a") as file:
        file.write("".join(text[200:]))
    assert run("--output-dir", "grown", "--resume") == 0
    final = [Path(d, "model.safetensors").read_bytes() for d in ("whole", "grown")]
    assert final[0] == final[1]
    logs = [read_metrics(Path(d, "metrics.jsonl")) for d in ("whole", "grown")]
    kept = [[{k: v for k, v in r.items() if k != "seconds"} for r in log] for log in logs]
    assert kept[0] == kept[1]


def test_a_named_pipe_hands_over_batches_as_they_arrive() -> None:
    os.mkfifo("s.fifo")
    text = csv_text(table(7)).encode()
    arrived = []

    def feed() -> None:
        with Path("s.fifo").open("wb", buffering=0) as pipe:
            pipe.write(text[:40])
            pipe.write(text[40:])

    thread = threading.Thread(target=feed)
    thread.start()
    for batch in loader_of("data.path=s.fifo"):
        arrived.append(len(batch))
    thread.join()
    assert arrived == [3, 3, 1]


def test_a_followed_file_that_shrinks_is_a_fault() -> None:
    write(table(7))
    batches = iter(loader_of("data.follow=true"))
    assert len(next(batches)) == 3
    Path("s.csv").write_text("a,b,y\n")
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(caught.value) == "s.csv: has become shorter while it was read"


# ── test, then train ────────────────────────────────────────────────────────────────────────


def test_prequential_means_against_hand_computation() -> None:
    rows = table(23)
    labels = torch.from_numpy(rows[:, 2] > 0).long()
    x = torch.from_numpy(rows[:, :2]).float()

    class Labelled(IterableDataset):
        def __iter__(self):
            return zip(x, labels, strict=True)

    torch.manual_seed(1)
    model = nn.Linear(2, 2)
    start_weights = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for microbatch in (None, 2):
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start_weights, strict=True):
                parameter.copy_(value)
        watcher = Prequential(6, {"accuracy": accuracy})
        trainer = Trainer(
            model,
            nn.CrossEntropyLoss(),
            optimizer,
            MiniBatchLoader(Labelled(), 5),
            device="cpu",
            callbacks=[watcher],
            microbatch_size=microbatch,
        )
        assert watcher.report() == {}
        trainer.fit(1)

        by_hand = nn.Linear(2, 2)
        by_hand.load_state_dict(dict(zip(["weight", "bias"], start_weights, strict=True)))
        losses, hits = [], []
        for low in range(0, 23, 5):
            part, target = x[low : low + 5], labels[low : low + 5]
            output = by_hand(part)
            loss = nn.functional.cross_entropy(output, target)
            each = nn.functional.cross_entropy(output, target, reduction="none")
            losses.append(each.detach())
            hits.append((output.argmax(1) == target).double())
            grads = torch.autograd.grad(loss, list(by_hand.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(by_hand.parameters(), grads, strict=True):
                    parameter.sub_(0.5 * grad)
        # The newest batches of 3 and 5 hold 8 samples, the fewest that are at least 6.
        report = watcher.report()
        assert list(report) == ["prequential_loss", "prequential_accuracy"]
        assert report["prequential_loss"] == pytest.approx(float(torch.cat(losses)[-8:].mean()))
        assert report["prequential_accuracy"] == float(torch.cat(hits)[-8:].mean())
        assert trainer.history.prequential_accuracy == [report["prequential_accuracy"]]


def test_prequential_readings_are_logged_and_shown(capsys) -> None:
    Path("s.csv").write_text("a,y\n" + "".join(f"{i % 5},{i % 2}\n" for i in range(30)))
    options = ["data.num_classes=2", "loss=cross_entropy", "data.window=9", "log.every_n_steps=4"]
    assert run(*options) == 0
    records = read_metrics(Path("runs/s/1/metrics.jsonl"))
    assert [r["step"] for r in records] == [4, 8, 10]
    for record in records:
        assert 0 <= record["prequential_accuracy"] <= 1
        assert record["prequential_loss"] > 0
    shown = capsys.readouterr().err
    assert re.search(
        r"^training on cpu with engine eager, a stream; results go to runs/s/1$", shown, re.M
    )
    assert re.search(r"^epoch 1/1 .*prequential_loss [\d.]+  prequential_accuracy ", shown, re.M)


# ── bounded memory ──────────────────────────────────────────────────────────────────────────


def test_memory_stays_flat() -> None:
    seen = []

    class Endless(IterableDataset):
        def __iter__(self):
            x, y = torch.ones(2), torch.zeros(1)
            return ((x, y) for _ in range(120_000))

    class Watch(Callback):
        every_n_steps = 50

        def on_safe_point(self, trainer: Trainer) -> None:
            seen.append(tracemalloc.get_traced_memory()[0])

    trainer = trainer_of(MiniBatchLoader(Endless(), 400), Prequential(500), Watch())
    tracemalloc.start()
    try:
        trainer.fit(1)
    finally:
        tracemalloc.stop()
    assert len(seen) == 6
    assert max(seen[2:]) < 1.2 * seen[1] + 200_000


def test_a_plan_in_memory_says_what_a_stream_would() -> None:
    plan = Plan(0, 7, 3, None)
    assert (plan.remaining(1), plan.is_over(2), plan.is_over(3)) == (2, False, True)
    assert (plan.ends(), plan.smallest_batch, plan.num_batches) == ([0, 2], 1, 3)
    assert plan.release(2) is None
