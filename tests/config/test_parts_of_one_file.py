"""A further part of the package is one file: written into a copy, listed, checked and trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from safetensors.torch import load_file
from torch import nn

from gdtrain.data.tables.preparation import split

# Where each file goes -> what it holds. Each is all that a part takes.
FILES = {
    "training/losses/quartic.py": '''"""The mean fourth power of the error."""

from gdtrain.registry import register_loss
from gdtrain.settings import LossSettings, PositiveFloat, Targets


class Quartic(LossSettings):
    """Mean fourth power of the error."""

    targets = Targets(unit=True)
    scale: PositiveFloat = 1.0
    """What it is multiplied by."""


@register_loss("quartic", Quartic)
def quartic(output, targets, scale):
    return scale * (output - targets).pow(4).mean()
''',
    "training/sign_descent.py": '''"""Descent by the gradient's signs."""

import torch

from gdtrain.registry import register_optimizer
from gdtrain.settings import NamedSettings, PositiveFloat


class SignDescent(NamedSettings):
    """Steps of one length along the gradient's signs."""

    lr: PositiveFloat
    """Length of a step."""


@register_optimizer("sign_descent", SignDescent)
class SignSgd(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad.sign()
''',
    "training/square_root.py": '''"""A schedule by the square root."""

from functools import partial

from gdtrain.registry import register_schedule
from gdtrain.settings import Positive, ScheduleSettings


class SquareRoot(ScheduleSettings):
    """The learning rate falls with the square root of t."""

    after: Positive = 1
    """t at which it is divided by the square root of 2."""


@register_schedule("square_root", SquareRoot)
def square_root(after):
    return partial(_factor, after)


def _factor(after, t):
    return (1 + t / after) ** -0.5
''',
    "training/largest_error.py": '''"""The largest error."""

from gdtrain.registry import register_metric


@register_metric("largest_error")
def largest_error(output, targets, power: float = 1.0):
    """The largest error of all samples, to a power."""
    return (output - targets).abs().max() ** power
''',
    "analysis/monitors/weight_sum.py": '''"""The sum of the weights."""

from gdtrain.analysis.monitors.monitor import Monitor, MonitorSettings
from gdtrain.registry import register_monitor


class WeightSumSettings(MonitorSettings):
    """The sum of all weights."""


@register_monitor("weight_sum", WeightSumSettings)
class WeightSum(Monitor):
    name = "weight_sum"

    def measure(self, trainer):
        return {"sum": float(sum(p.detach().sum() for p in trainer.model.parameters()))}
''',
    "data/builtin/line.py": '''"""Points on a line."""

import torch

from gdtrain.data.tables.preparation import LoadedData
from gdtrain.registry import register_source
from gdtrain.settings import Positive, SourceSettings


class Line(SourceSettings):
    """Points on the line y = 3x."""

    rows: Positive
    """How many."""


@register_source("line", Line)
def line(rows):
    x = torch.arange(rows, dtype=torch.float32)[:, None] / rows
    return LoadedData(x, 3 * x)
''',
    "data/orders/backwards.py": '''"""From the last sample to the first."""

import torch

from gdtrain.registry import register_order


@register_order("backwards")
def backwards(num_samples, seed, epoch, skipped: int = 0):
    """From the last sample to the first, some left out."""
    return torch.arange(num_samples - 1 - skipped, -1, -1)
''',
    "training/callbacks/epoch_file.py": '''"""A file that says which epochs were trained."""

from pathlib import Path

from gdtrain.registry import register_callback
from gdtrain.training.callbacks.callback import Callback


@register_callback("epoch_file")
class EpochFile(Callback):
    """Writes the number of each epoch into a file."""

    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)

    def on_epoch_end(self, trainer, record):
        with self.path.open("a") as file:
            file.write(f"{record['epoch']}\\n")
''',
}
CONFIG = """\
data: {source: line, rows: 8, validation_fraction: 0.25}
model: linear
loss: {name: quartic, scale: 0.5}
loader: {name: minibatch, batch_size: 2, order: {name: backwards, skipped: 1}}
optimizer: {name: sign_descent, lr: 0.125}
scheduler: {name: square_root, after: 2}
metrics: {mae: {}, largest_error: {power: 2.0}}
monitors: {weight_sum: {every_n_epochs: 1}}
callbacks: {epoch_file: {path: epochs.txt}}
epochs: 3
log: {picture: false}
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the files, and what is generated, generated again."""
    there = tmp_path_factory.mktemp("copy")
    for folder in ("gdtrain", "scripts", "docs", "configs"):
        shutil.copytree(ROOT / folder, there / folder)
    for name, text in FILES.items():
        (there / "gdtrain" / name).write_text(text, "utf-8")
    python(there, "scripts/write_reference.py")
    (there / "a.yaml").write_text(CONFIG, "utf-8")
    return there


def python(there: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    environment = os.environ | {"PYTHONPATH": str(there)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=there, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_parts_are_listed_and_stand_in_the_schema_and_the_reference(copy):
    out, _ = python(copy, "-m", "gdtrain", "list")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for said in (
        "quartic Mean fourth power of the error.",
        "sign_descent Steps of one length along the gradient's signs.",
        "square_root The learning rate falls with the square root of t.",
        "largest_error The largest error of all samples, to a power.",
        "weight_sum The sum of all weights.",
        "line Points on the line y = 3x.",
        "backwards From the last sample to the first, some left out.",
        "epoch_file Writes the number of each epoch into a file.",
    ):
        assert any(line.startswith(said) for line in lines), said
    schema = json.loads((copy / "configs/schema.json").read_text("utf-8"))
    assert schema["$defs"]["quartic_loss"]["properties"]["scale"]["default"] == 1.0
    page = (copy / "docs/reference/configuration.md").read_text("utf-8")
    assert "`quartic`: Mean fourth power" in page


def test_their_faults_are_told_with_their_places_without_torch(copy):
    wrong = CONFIG.replace("scale: 0.5", "scala: 0.5").replace("skipped: 1", "skipped: x")
    (copy / "wrong.yaml").write_text(wrong.replace("largest_error", "larges_error"), "utf-8")
    look = "import sys; from gdtrain.cli.main import main; code = main(sys.argv[1:])\n"
    look += "assert 'torch' not in sys.modules; sys.exit(code)"
    _, err = python(copy, "-c", look, "--config", "wrong.yaml", code=2)
    assert err.splitlines() == [
        "wrong.yaml:3:23: loss.scala: unknown key; did you mean scale?",
        "wrong.yaml:4:76: loader.order.skipped: must be a whole number, got 'x'",
        "wrong.yaml:7:20: metrics.larges_error: unknown key; did you mean largest_error?",
    ]


def test_a_configuration_of_them_trains_as_the_loop_by_hand(copy):
    python(copy, "-m", "gdtrain", "--config", "a.yaml", "--output-dir", "out")
    assert (copy / "epochs.txt").read_text() == "1\n2\n3\n"
    lines = (copy / "out/metrics.jsonl").read_text("utf-8").splitlines()
    last = [record for record in map(json.loads, lines) if "val_loss" in record][-1]

    torch.manual_seed(0)
    layer = nn.Linear(1, 1)
    x = torch.arange(8, dtype=torch.float32)[:, None] / 8
    train, held = ((x[i], 3 * x[i]) for i in split(8, 0.25, 0))
    for step in range(3 * 3):
        order = torch.arange(4, -1, -1)[step % 3 * 2 :][:2]
        loss = 0.5 * (layer(train[0][order]) - train[1][order]).pow(4).mean()
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                parameter -= 0.125 * (1 + step / 2) ** -0.5 * gradient.sign()
    weights = load_file(copy / "out/model.safetensors")
    assert [w.item() for w in weights.values()] == pytest.approx(
        [layer.bias.item(), layer.weight.item()], rel=1e-6
    )
    errors = (layer(held[0]) - held[1]).detach().abs()
    assert last["val_largest_error"] == pytest.approx(float(errors.max() ** 2), rel=1e-5)
    assert last["val_mae"] == pytest.approx(float(errors.mean()), rel=1e-5)
