"""Curves of runs: the plot command, and the loss.png that every finished run has."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.processes import run

import gdtrain
from gdtrain.cli.main import main
from gdtrain.cli.runs import train_job
from gdtrain.cli.trained.plot_job import read_runs
from gdtrain.errors import DataError
from gdtrain.output.plots import curves
from gdtrain.output.plots.curves import RunLog, labels, picture, smoothed
from gdtrain.output.run_directory import read_metrics

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [4]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1}
log: {every_n_steps: 1}
epochs: 2
"""
GIVE = "give the directory of a run"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory with moons.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(CONFIG, "utf-8")
    return tmp_path


def train(*arguments: str) -> int:
    return main(["--config", "moons.yaml", *arguments])


def step(number, epoch, loss, **more):
    return {
        "kind": "step",
        "step": number,
        "epoch": epoch,
        "loss": loss,
        "lr": 0.1,
        "seconds": number / 8,
    } | more


def epoch(number, steps, samples, **more):
    record = {"kind": "epoch", "epoch": number, "step": steps, "samples": samples, "lr": 0.1}
    return record | {"train_loss": 1 / number, "seconds": steps / 8} | more


def lines_of(figure, panel=0):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[panel].lines
    }


# ── what is drawn ───────────────────────────────────────────────────────────────────────────


def test_smoothing_is_an_average_without_bias_towards_its_start():
    values = [4.0, 2.0, None, 6.0, float("nan")]
    # β = 1/2: weights 1; 1/2, 1 over 3/2; 1/4, 1/2, 1 over 7/4
    expected = [4.0, (4 / 2 + 2) / 1.5, None, (4 / 4 + 2 / 2 + 6) / 1.75, None]
    assert smoothed(values, 2) == pytest.approx(expected)
    assert smoothed([3.0] * 50, 7) == pytest.approx([3.0] * 50)
    assert smoothed([1.0, 5.0], 1) == [1.0, 5.0]


def test_every_axis_counts_what_it_says():
    # 10 updates of 3 samples, the last of 1, an epoch; the third epoch is not over
    log = RunLog.of(
        "run",
        [step(5, 1, 1.0), epoch(1, 10, 28), step(15, 2, 1.0), epoch(2, 20, 56), step(25, 3, 1.0)],
    )
    assert log.x(log.steps, "step") == [5, 15, 25]
    assert log.x(log.steps, "seconds") == [5 / 8, 15 / 8, 25 / 8]
    assert log.x(log.steps, "epoch") == [0.5, 1.5, 2.5]
    assert log.x(log.steps, "samples") == [14, 42, 70]
    assert log.x(log.epochs, "samples") == [28, 56]
    with pytest.raises(DataError, match=r"^new: no epoch has ended, so samples is not known"):
        RunLog.of("new", [step(5, 1, 1.0)]).x([step(5, 1, 1.0)], "samples")


def test_losses_of_few_epochs_are_those_of_batches_thin_and_smoothed():
    log = RunLog.of(
        "run", [*(step(i, 1, float(i % 2)) for i in range(1, 91)), epoch(1, 90, 90, val_loss=0.5)]
    )
    lines = lines_of(picture([log]))
    label = "training, losses of batches: smoothed over 3 (thin: each)"
    assert set(lines) == {"_child0", label, "validation"}
    x = list(range(1, 91))
    raw = [float(i % 2) for i in range(1, 91)]
    assert lines["_child0"] == (pytest.approx(x), raw)
    assert lines[label] == (pytest.approx(x), pytest.approx(smoothed(raw, 3)))
    assert lines["validation"] == ([90], [0.5])
    assert set(lines_of(picture([log], smooth=1))) == {
        "training, losses of single batches",
        "validation",
    }


def test_the_axis_counts_epochs_from_the_second_on():
    records = [epoch(1, 2, 14), epoch(2, 4, 28)]
    for ended, label in ((1, "step (updates)"), (2, "epoch (passes over the training part)")):
        made = picture([RunLog.of("run", records[:ended])])
        assert made.axes[1].get_xlabel() == label


def test_losses_of_many_epochs_are_their_means():
    log = RunLog.of("run", [epoch(i, 2 * i, 14 * i) for i in range(1, 8)], "mse")
    made = picture([log], axis="samples")
    assert lines_of(made) == {
        "training, mean of each epoch": (
            [14 * i for i in range(1, 8)],
            [1 / i for i in range(1, 8)],
        )
    }
    assert made.axes[0].get_ylabel() == "mean squared error (target units²)"
    assert made.axes[1].get_ylabel() == "learning rate α"
    assert made.axes[1].get_xlabel() == "samples used (draws)"
    assert lines_of(made, 1)["run"][1] == [0.1] * 7


def test_prequential_and_full_losses_are_drawn_too():
    log = RunLog.of(
        "run", [step(i, 1, 1.0, prequential_loss=2.0, full_loss=3.0) for i in range(1, 5)]
    )
    lines = lines_of(picture([log]))
    assert lines["full loss"] == ([1, 2, 3, 4], [3.0] * 4)
    assert lines["prequential, each sample before it is learnt from"] == ([1, 2, 3, 4], [2.0] * 4)


def test_other_numbers_have_units_too():
    records = [epoch(1, 2, 3, val_loss=1.0, val_accuracy=0.5, noise_scale=3.0)]
    log, other = RunLog.of("a", records, "nll"), RunLog.of("b", records, "mse")
    names = ["val_loss", "val_accuracy", "noise_scale"]
    labels_of = [frame.get_ylabel() for frame in picture([log], metrics=names).axes]
    assert labels_of == [
        "val_loss: negative log-likelihood (nats)",
        "val_accuracy: share of samples",
        "noise_scale",
    ]
    assert picture([log, other], metrics=names[:1]).axes[0].get_ylabel() == "val_loss"
    assert picture([log, other]).axes[0].get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        ("mse", "mean squared error (standard deviations²)"),
        ("l1", "mean absolute error (standard deviations)"),
        ("huber", "loss: huber"),
    ],
)
def test_a_loss_of_standardised_targets_is_in_standard_deviations(loss, label):
    records = [epoch(n, n, n, val_loss=1.0) for n in (1, 2)]
    log = RunLog.of("a", records, loss, standardized=True)
    assert picture([log]).axes[0].get_ylabel() == label
    assert picture([log], metrics=["val_loss"]).axes[0].get_ylabel() == f"val_loss: {label}"
    both = picture([log, RunLog.of("b", records, loss)]).axes[0]
    assert both.get_ylabel() == "loss", "the two can't be compared"
    labels_of = [line.get_label() for line in both.lines]
    assert f"a ({loss}, standardised targets): validation" in labels_of


def test_labels_of_low_frames_do_not_meet():
    records = [epoch(n, n, n, val_loss=1.0, full_loss=2.0) for n in (1, 2)]
    log = RunLog.of("a", records, "mse", standardized=True)
    made = picture([log], metrics=["val_loss", "train_loss", "full_loss"])
    made.draw_without_rendering()
    labels_of = [frame.yaxis.label.get_window_extent() for frame in made.axes]
    assert all(high.y0 > low.y1 for high, low in pairwise(labels_of))


def test_rates_are_lines_without_markers():
    few = [epoch(n, 10 * n, n) for n in (1, 2, 3)]
    many = [step(n, 1, 1.0) for n in range(1, 31)]
    logs = [RunLog.of("batch", few), RunLog.of("sample", [*many, *few])]
    for lines in (picture(logs).axes[1].lines, picture(logs).axes[0].lines):
        assert {line.get_marker() for line in lines} == {"None"}
    alone = picture([RunLog.of("one", few[:1])]).axes[1].lines
    assert [line.get_marker() for line in alone] == ["o"], "a line of one point is not seen"


@pytest.mark.few(2)
@pytest.mark.parametrize("lr", [0.01, 0.0105, 1e-5, 3e-12, 0.123456789])
def test_a_constant_rate_has_plain_ticks_and_labels_that_are_seen(lr):
    made = picture([RunLog.of("run", [epoch(n, n, n, lr=lr) for n in range(1, 30)], "mse")])
    made.draw_without_rendering()
    low, high = made.axes[1].get_ylim()
    assert (low, high) == (0, 2 * lr)
    for frame in made.axes:
        assert frame.yaxis.label.get_window_extent().x0 >= 0
        assert frame.bbox.x1 <= made.bbox.x1


def test_many_runs_have_one_legend_above_and_a_title_that_fits():
    runs = [RunLog.of(f"run {i}", [epoch(1, 2, 3)]) for i in range(9)]
    made = picture(runs)
    first, second = made.axes
    assert len(first.get_legend().get_texts()) == 9
    assert second.get_legend() is None
    names = "run 0, run 1, run 2, run 3, 5 more"
    assert made.get_suptitle() == f"Loss and learning rate: {names}"
    made.draw_without_rendering()
    corners = first.get_legend().get_window_extent()
    assert first.get_window_extent().y1 <= corners.y0 + 8
    assert corners.y1 <= made.bbox.y1 - 20, "below the title"


def test_several_runs_differ_in_colours_and_all_curves_in_dashes():
    runs = [RunLog.of(n, [epoch(i, i, i, val_loss=1.0) for i in (1, 2, 3)], "mse") for n in "abc"]
    lines = picture(runs).axes[0].lines
    assert [line.get_label() for line in lines][:2] == [
        "a: training, mean of each epoch",
        "a: validation",
    ]
    colours = [line.get_color() for line in lines]
    assert colours[::2] == colours[1::2]
    assert len(set(colours)) == 3
    assert len({(line.get_marker()) for line in lines}) == 6


def test_runs_are_called_by_what_tells_them_apart():
    assert labels([Path("runs/a/1"), Path("runs/b/1")]) == ["a/1", "b/1"]
    assert labels([Path("out")]) == ["out"]
    assert labels([Path("x/out"), Path("y/out"), Path("x/z")]) == ["x/out", "y/out", "x/z"]
    assert labels([Path("out"), Path("out")]) == ["out", "out"]


# ── the command ─────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_has_its_picture_and_plot_draws_the_same(capsys):
    assert train("--output-dir", "out") == 0
    drawn = Path("out/loss.png").read_bytes()
    Path("out/loss.png").unlink()
    assert main(["plot", "out"]) == 0
    assert Path("out/loss.png").read_bytes() == drawn
    assert capsys.readouterr().err.splitlines()[-1] == "drawn: out/loss.png"


def test_several_runs_and_other_numbers(capsys):
    assert train() == train("seed=1") == 0
    runs = ["runs/moons/1", "runs/moons/2"]
    assert main(["plot", *runs, "--x", "seconds"]) == 0
    assert main(["plot", *runs, "--metric", "val_accuracy", "--metric", "loss"]) == 0
    assert main(["plot", *runs, "--out", "both.svg", "--smooth", "3"]) == 0
    assert Path("runs/moons/1/losses.png").is_file()
    assert Path("runs/moons/1/val_accuracy-loss.png").is_file()
    assert Path("both.svg").read_text().startswith("<?xml")


def test_a_killed_run_with_a_torn_line_is_drawn_and_its_resumption_only_once(capsys):
    assert train("--output-dir", "out") == 0
    metrics = Path("out/metrics.jsonl")
    whole = read_metrics(metrics)
    lines = metrics.read_text().splitlines(keepends=True)
    # Killed in step 4, resumed after step 2; the lines made again say what those before said.
    again = [line for line in lines if json.loads(line)["step"] > 2]
    torn = [*lines[:3], lines[3][:20], "\n", '{"kind": "resume", "epoch": 0, "step": 2}\n', *again]
    metrics.write_text("".join([*torn, "[1]\n", '{"kind": "step"}\n', '"text', "\xff"]))
    assert read_metrics(metrics) == whole
    drawn = Path("out/loss.png").read_bytes()
    assert main(["plot", "out"]) == 0
    assert Path("out/loss.png").read_bytes() == drawn
    metrics.write_text("".join([*lines[:3], lines[3][:20]]))
    assert main(["plot", "out", "--out", "killed.png"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no"], "RUN: no does not exist"),
        (["moons.yaml"], "RUN: moons.yaml is a file; give a run's directory"),
        (
            ["empty"],
            "RUN: empty: no loss has been recorded yet; a run records one every "
            "log.every_n_steps updates and at the end of every epoch",
        ),
        (
            ["one", "--metric", "lose"],
            "RUN: one: has not recorded 'lose'; it has recorded loss, lr, seconds",
        ),
        (
            ["one", "--x", "epoch"],
            "RUN: one: no epoch has ended, so epoch is not known; use step",
        ),
        (["one", "--smooth", "0"], "--smooth: must be >= 1, got 0"),
        (
            ["one", "--smooth", "2", "--metric", "loss"],
            "--smooth: has no effect with --metric, which is drawn as it was recorded",
        ),
        (["one", "--out", "one.pdf"], "--out: must end in .png or .svg, got 'one.pdf'"),
        (
            ["one", "--out", "mine.png"],
            "--out: mine.png is there and no picture of gdtrain's; remove it, or choose another "
            "name",
        ),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(arguments, said, capsys):
    for name, text in (("empty", ""), ("one", json.dumps(step(1, 1, 0.5)))):
        Path(name).mkdir()
        Path(name, "metrics.jsonl").write_text(text)
    Path("mine.png").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert main(["plot", *arguments]) == 2
    assert capsys.readouterr().err == f"command line:1:1: {said}\n"
    assert sorted(Path().rglob("*")) == before
    assert Path("mine.png").read_text() == "mine"


def test_a_pipe_is_not_waited_for(capsys):
    Path("run").mkdir()
    os.mkfifo("run/metrics.jsonl")
    assert main(["plot", "run"]) == 2
    said = "RUN: run holds no run: metrics.jsonl: no regular file; give the directory of a run"
    assert capsys.readouterr().err == f"command line:1:1: {said}\n"


def test_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    assert train("--output-dir", "out") == 0
    assert not Path("out/loss.png").exists()
    said = "pictures need matplotlib, which is not installed; pip install 'gdtrain[plots]'"
    assert capsys.readouterr().err.splitlines()[-1] == f"no loss.png: {said}"
    assert main(["plot", "out"]) == 2
    assert capsys.readouterr().err == f"gdtrain: {said}\n"


def test_with_a_matplotlib_that_does_not_work():
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text(json.dumps(step(1, 1, 0.5)))
    done = run("-m", "gdtrain", "plot", "run", env={"MPLBACKEND": "nonsense"})
    assert done.returncode == 2
    start = "gdtrain: pictures need matplotlib, which does not work: Key backend: 'nonsense' is not"
    assert done.err.startswith(start)
    assert done.err.count("\n") == 1


# ── loss.png ────────────────────────────────────────────────────────────────────────────────


def test_the_picture_can_be_left_out_and_is_not_needed(monkeypatch, capsys):
    assert train("--output-dir", "without", "log.picture=false") == 0
    assert not Path("without/loss.png").exists()

    def fails(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curves, "save", fails)
    assert train("--output-dir", "full") == 0
    assert (
        "note: loss.png was not drawn: [Errno 28] No space left on device"
        in capsys.readouterr().err
    )
    assert json.loads(Path("full/summary.json").read_text())["status"] == "done"


def test_a_long_log_does_not_make_the_end_of_a_run_wait(monkeypatch, capsys):
    monkeypatch.setattr(train_job, "_MOST_BYTES", 100)
    assert train("--output-dir", "long") == 0
    said = (
        "note: loss.png was not drawn, since the log is long; python -m gdtrain plot long draws it"
    )
    assert said in capsys.readouterr().err
    assert main(["plot", "long"]) == 0


def test_a_run_that_diverged_has_its_picture(capsys):
    data = "data={source: linear_regression, num_samples: 40}"
    code = train("--output-dir", "out", data, "model=linear", "loss=mse", "optimizer.lr=50")
    assert code == 3
    assert Path("out/loss.png").is_file()
    (log,) = read_runs([Path("out")])
    steps = json.loads(Path("out/summary.json").read_text())["steps"]
    (mark,) = [name for name in lines_of(picture([log])) if "not finite" in name]
    assert mark == f"stopped at update {steps + 1:,}: not finite"
    assert lines_of(picture([log], axis="step"))[mark][0] == [steps + 1] * 2


def test_runs_of_different_losses_are_said_to_be_so():
    logs = [RunLog.of(loss, [step(1, 1, 2.0), step(2, 1, 1.0)], loss) for loss in ("mse", "l1")]
    assert [name.partition(":")[0] for name in lines_of(picture(logs))] == ["mse (mse)", "l1 (l1)"]
    alike = [RunLog.of(name, [step(1, 1, 2.0), step(2, 1, 1.0)], "mse") for name in "ab"]
    assert [name.partition(":")[0] for name in lines_of(picture(alike))] == ["a", "b"]


def test_the_rate_is_drawn_at_the_ends_of_epochs_too():
    rates = {4: 0.4, 8: 0.2, 12: 0.1}
    ends = [epoch(n, 4 * n, 40 * n) | {"lr": rates[4 * n]} for n in (1, 2, 3)]
    figure = picture([RunLog.of("a", [step(10, 3, 1.0), *ends])], axis="step")
    (line,) = figure.axes[1].lines
    assert list(line.get_xdata()) == [4, 8, 10, 12]
    assert list(line.get_ydata()) == [0.4, 0.2, 0.1, 0.1]


def test_drawing_starts_when_training_is_over(here):
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "from gdtrain.cli.main import main\n"
        "from gdtrain.training.trainer import Trainer\n"
        "fit = Trainer.fit\n"
        "def watched(self, epochs):\n"
        "    history = fit(self, epochs)\n"
        "    assert 'matplotlib' not in sys.modules and 'tensorboard' not in sys.modules\n"
        "    return history\n"
        "Trainer.fit = watched\n"
        "assert main(['--config', 'moons.yaml', '--output-dir', 'out']) == 0\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.err
    assert Path("out/loss.png").is_file()


def test_an_interrupted_run_does_not_wait_for_a_picture_and_can_be_plotted(capsys):
    @gdtrain.register_trainer("interrupted")
    class Interrupted(gdtrain.Trainer):
        def compute_loss(self, batch):
            if self.progress.step == 6:
                signal.raise_signal(signal.SIGINT)
            return super().compute_loss(batch)

    assert train("--output-dir", "out", "trainer=interrupted", "epochs=1000") == 130
    assert not Path("out/loss.png").exists()
    assert main(["plot", "out"]) == 0
    assert Path("out/loss.png").is_file()
