"""``verify``: identities hold where they should, and what breaks them is named."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import CONFIGS
from torch import nn
from torch.nn import functional as F

from gdtrain import Batch, BatchLoader, Trainer, register_loss
from gdtrain.analysis.verify import processes
from gdtrain.analysis.verify.gradients import Report, Row, verify
from gdtrain.cli.main import main
from gdtrain.cli.runs.verify_job import first_samples
from gdtrain.config.build import build
from gdtrain.config.load import load_config
from gdtrain.errors import ModelError

draw = torch.Generator().manual_seed(0)
N = 11
X = torch.randn(N, 4, generator=draw)
LABELS = torch.randint(3, (N,), generator=draw)
IGNORED = torch.where(torch.arange(N) % 3 == 0, -100, LABELS)
NUMBERS = torch.randn(N, 3, generator=draw)
W = torch.tensor([0.2, 1.0, 2.5])
IN_ONE_PASS = (
    "batches are cut in one pass, their parts weighted by what loss CrossEntropyLoss is divided by"
)
MIXES = (
    "mixes samples: in training mode a sample's output depends on the others of its batch; use a "
    "layer that looks at one sample at a time, such as GroupNorm or LayerNorm, or put it in eval "
    "mode"
)


class Centred(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x):
        return x - x.mean(0)


class CentredBefore(nn.Module):
    """Subtracts the mean of the batch, and only then uses a layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x - x.mean(0))


class TimeFirst(nn.Module):
    """An LSTM over [T, B, 1], whose outputs at the last step are centred if asked to."""

    def __init__(self, centred: bool):
        super().__init__()
        self.lstm = nn.LSTM(1, 5, num_layers=2, dropout=0.4)
        self.head = nn.Sequential(nn.Linear(5, 3), *[Centred()] * centred)

    def forward(self, x):
        return self.head(self.lstm(x.T[..., None])[0][-1])


class Noise(nn.Module):
    """Adds noise in training mode, or always."""

    def __init__(self, always: bool):
        super().__init__()
        self.always = always

    def forward(self, x):
        return x + torch.randn_like(x) if self.training or self.always else x


class HalfDetached(nn.Module):
    """x, of which half is hidden from autograd."""

    def forward(self, x):
        return x / 2 + x.detach() / 2


class Branching(nn.Module):
    """Does different things by the data, which torch.func can't follow."""

    def forward(self, x):
        return x * 2 if x.detach().sum() > 1e9 else x


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, first, second):
        return self.first(first) * self.second(second)


class OnlyFloat32(nn.Module):
    def forward(self, x):
        if x.dtype != torch.float32:
            raise RuntimeError("only float32\nis good enough")
        return x


class FailsInCompany(nn.Module):
    def forward(self, x):
        if torch.distributed.is_initialized():
            raise OSError("there are others")
        return x


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 3))


def make_trainer(model, loss=None, targets=LABELS, kind=Trainer, inputs=X) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return kind(model, loss, optimizer, BatchLoader((inputs, targets)), device="cpu")


def report_of(model, loss, targets=LABELS, inputs=X, kind=Trainer, num_processes=0) -> Report:
    trainer = make_trainer(model, loss, targets, kind, inputs)
    batch = Batch(inputs, targets, torch.arange(len(inputs)))
    return verify(trainer, batch, num_processes=num_processes)


# ── identities that hold ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["batch", "minibatch", "sample"])
def test_they_hold_for_the_shipped_configs(name: str) -> None:
    run = build(load_config(CONFIGS / f"{name}.yaml")[0])
    batch = first_samples(run.loader, 13)
    rows = run.loader.plan(0).take(0, 13)
    assert torch.equal(batch.targets, run.loader.samples.targets[rows])
    report = verify(run.trainer, batch, num_processes=0)
    assert report.holds
    assert [row.comparison for row in report.rows] == [
        "microbatches of 1",
        "microbatches of 2, the last of 1",
        "microbatches of 3, the last of 1",
        "microbatches of 7, the last of 6",
        "microbatches of 12, the last of 1",
        "4 batches in eval mode",
        "per-sample gradients (torch.func)",
        "finite differences, 3 directions",
    ]
    assert all(row.ok for row in report.rows)
    assert max(row.error for row in report.rows[:-1]) < 1e-14
    assert report.findings == ()


LOSSES = {
    "mse": (nn.MSELoss(), NUMBERS),
    "sum": (nn.MSELoss(reduction="sum"), NUMBERS),
    "weighted": (nn.CrossEntropyLoss(weight=W), LABELS),
    "weighted_smoothed": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), LABELS),
    "ignoring": (nn.CrossEntropyLoss(), IGNORED),
    "weighted_ignoring": (nn.CrossEntropyLoss(weight=W), IGNORED),
    "probabilities": (nn.CrossEntropyLoss(weight=W), NUMBERS.softmax(1)),
    "function": (F.cross_entropy, LABELS),
    "partial": (partial(F.cross_entropy, weight=W), IGNORED),
}


@pytest.mark.parametrize("name", LOSSES)
def test_they_hold_for_a_loss(name: str) -> None:
    loss, targets = LOSSES[name]
    assert all(row.ok for row in report_of(network(nn.Tanh()), loss, targets).rows)


def test_they_hold_for_nll_a_cnn_two_inputs_and_a_loss_of_the_users_own() -> None:
    nll = nn.NLLLoss(weight=W)
    assert all(r.ok for r in report_of(network().append(nn.LogSoftmax(1)), nll, IGNORED).rows)

    pictures = torch.randn(N, 1, 4, 4, generator=draw)
    cnn = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    )
    report = report_of(cnn.append(nn.Linear(8, 3)), nn.CrossEntropyLoss(), inputs=pictures)
    assert all(row.ok for row in report.rows)

    class Regularised(Trainer):
        def compute_loss(self, batch):
            weights = self.model.weight.abs().sum()
            return F.mse_loss(self.model(batch.inputs), batch.targets) + 0.01 * weights

        def loss_weight(self, batch):
            return len(batch)

    assert all(r.ok for r in report_of(nn.Linear(4, 3), None, NUMBERS, kind=Regularised).rows)

    model = TwoInputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((X, NUMBERS, LABELS))
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu")
    two = next(iter(loader))
    assert all(row.ok for row in verify(trainer, two, num_processes=0).rows)


def test_one_sample_has_no_microbatches() -> None:
    report = report_of(network(), nn.CrossEntropyLoss(), LABELS[:1], X[:1])
    assert [(row.comparison, row.ok) for row in report.rows] == [
        ("4 batches in eval mode", True),
        ("per-sample gradients (torch.func)", True),
        ("finite differences, 3 directions", True),
    ]


def test_dropout_is_off_and_said_to_be() -> None:
    report = report_of(network(nn.Dropout(0.5), nn.AlphaDropout(0.1)), nn.CrossEntropyLoss())
    assert report.holds
    assert report.notes == (
        IN_ONE_PASS,
        "dropout is off here (layers '1', '2'); microbatches draw other masks than one pass",
    )
    lstm = report_of(TimeFirst(centred=False), nn.CrossEntropyLoss())
    assert lstm.holds
    assert lstm.notes == (
        IN_ONE_PASS,
        "dropout is off here (layer 'lstm'); microbatches draw other masks than one pass",
    )


def test_other_random_layers_are_put_into_eval_mode_if_that_helps() -> None:
    report = report_of(network(Noise(always=False)), nn.CrossEntropyLoss())
    assert report.holds
    assert report.notes == (
        IN_ONE_PASS,
        "layer '1' (Noise) draws random numbers, so it is in eval mode here; microbatches draw "
        "others than one pass",
    )
    report = report_of(network(Noise(always=True)), nn.CrossEntropyLoss())
    assert not report.holds
    assert report.findings == (
        "layer '1' (Noise) draws random numbers in eval mode too, so no two passes are alike; "
        "give it a generator that starts again in each pass",
    )


# ── what breaks them ────────────────────────────────────────────────────────────────────────────


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("model", "named"),
    [
        (network(nn.BatchNorm1d(4), nn.ReLU()), "layer '1' (BatchNorm1d)"),
        (network(nn.Sequential(nn.Tanh(), Centred())), "layer '1.1' (Centred)"),
        (network(CentredBefore()), "layer '1' (CentredBefore)"),
        (nn.Sequential(CentredBefore(), nn.BatchNorm1d(4)), "layer '0' (CentredBefore)"),
        (CentredBefore(), "model (CentredBefore)"),
    ],
    ids=["batch norm", "nested", "mixes first", "the first of two", "the model"],
)
@pytest.mark.parametrize("size", [2, 3, N])
def test_a_layer_that_mixes_samples_is_named(model: nn.Module, named: str, size: int) -> None:
    labels = torch.zeros(N, dtype=torch.int64)
    labels[::2] = 1
    report = report_of(model, nn.CrossEntropyLoss(), labels[:size], X[:size])
    assert not report.holds
    assert report.findings == (f"{named} {MIXES}",)


def test_the_batch_need_not_be_the_first_dimension() -> None:
    report = report_of(TimeFirst(centred=True), nn.CrossEntropyLoss())
    assert report.findings == (f"layer 'head.1' (Centred) {MIXES}",)


def worst(output, targets):
    return (output - targets).square().sum(1).max()


class OverConstant(nn.Module):
    def forward(self, output, targets):
        return (output - targets).square().sum() / 8


@pytest.mark.parametrize(("loss", "name"), [(worst, "worst"), (OverConstant(), "OverConstant")])
def test_they_hold_for_a_loss_that_is_no_mean_in_two_passes(loss, name) -> None:
    report = report_of(network(), loss, NUMBERS)
    assert report.holds
    assert report.notes == (
        f"what loss {name} is divided by is not known, so batches are cut in two passes: right for "
        "any loss, for one more forward pass, about 1.4 times the work",
    )
    (row,) = [row for row in report.rows if row.ok is None]
    assert row.comparison == "per-sample gradients (torch.func)"
    assert row.verdict == "not run: the loss is not known to be a mean over samples"


def test_a_loss_weight_that_is_wrong_is_named() -> None:
    class Worst(Trainer):
        def compute_loss(self, batch):
            return worst(self.model(batch.inputs), batch.targets)

        def loss_weight(self, batch):
            return len(batch)

    model = network().double()
    squares = (model(X.double()) - NUMBERS.double()).square().sum(1).detach()
    parts = squares.split(5)  # the halves of eleven samples, and the one that is left
    mean = sum(len(part) / N * part.max() for part in parts)
    report = report_of(model, None, NUMBERS, kind=Worst)
    assert not report.holds
    assert report.notes == ("batches are cut in one pass, their parts weighted by loss_weight",)
    assert report.findings == (
        f"loss Worst.compute_loss is not a mean over samples: {squares.max():.6g} for the batch, "
        f"but {mean:.6g} as the weighted mean of its parts; let loss_weight(batch) say what it is "
        "divided by",
    )


def test_a_loss_weight_that_is_right_on_the_first_samples_only_is_found_on_others() -> None:
    """No target of the batch is ignored, but some of the data set are."""

    class Ignoring(Trainer):
        def compute_loss(self, batch):
            return F.cross_entropy(self.model(batch.inputs), batch.targets)

        def loss_weight(self, batch):
            return len(batch)

    trainer = make_trainer(network(), None, IGNORED, Ignoring)
    chosen = torch.tensor([1, 2, 4, 5])
    report = verify(trainer, Batch(X[chosen], IGNORED[chosen], chosen), num_processes=0)
    assert [row.comparison for row in report.rows if row.ok is False] == ["4 batches in eval mode"]


def test_what_draws_random_numbers_in_eval_mode_can_not_be_checked() -> None:
    def noisy(output, targets):
        return (output - targets + torch.rand(())).square().mean()

    for model, loss, said in [
        (network(Noise(always=True)), nn.MSELoss(), "layer '1' (Noise) draws random numbers"),
        (network(), noisy, "the loss draws random numbers"),
    ]:
        report = report_of(model, loss, NUMBERS)
        (row,) = [row for row in report.rows if row.comparison == "4 batches in eval mode"]
        assert row.verdict == f"not run: cannot be checked: {said}"


def test_a_compute_loss_that_is_not_a_mean_is_named() -> None:
    class Summing(Trainer):
        def compute_loss(self, batch):
            return F.cross_entropy(self.model(batch.inputs), batch.targets, reduction="sum")

    report = report_of(network(), None, kind=Summing)
    (finding,) = report.findings
    assert finding.startswith("loss Summing.compute_loss is not a mean over samples: ")
    assert report.notes == (
        "Summing.compute_loss is taken for a mean over samples; to cut batches, training asks for "
        "`def loss_weight(self, batch): return len(batch)`",
    )


def test_parameters_with_a_wrong_gradient_are_named() -> None:
    report = report_of(network(HalfDetached()), nn.CrossEntropyLoss())
    assert [row.comparison for row in report.rows if not row.ok] == [
        "finite differences, 3 directions"
    ]
    assert report.findings == (
        "the gradient of 0.weight, 0.bias is not the derivative of the loss: look for a detach, "
        "a .data, or an autograd.Function whose backward is wrong",
    )


def test_a_part_that_can_not_be_computed_breaks_the_identity() -> None:
    report = report_of(network(nn.Unflatten(0, (1, N)), nn.Flatten(0, 1)), nn.CrossEntropyLoss())
    assert report.rows[0].error == float("inf")
    assert report.rows[0].verdict.startswith("BROKEN: RuntimeError: unflatten: ")
    assert report.findings == ("the model does not take parts of a batch: see above for the error",)


# ── what can't be compared ──────────────────────────────────────────────────────────────────────


def test_models_that_torch_func_can_not_follow_are_compared_otherwise() -> None:
    report = report_of(network(Branching()), nn.CrossEntropyLoss())
    assert report.holds
    (row,) = [row for row in report.rows if row.ok is None]
    assert row.comparison == "per-sample gradients (torch.func)"
    assert row.verdict.startswith("not run: RuntimeError: vmap: ")


def test_a_loss_that_can_not_be_sent_to_other_processes_is_compared_otherwise() -> None:
    def local(output, targets):
        return F.cross_entropy(output, targets)

    report = report_of(network(), local, num_processes=2)
    assert report.holds
    assert report.rows[-1].comparison == "2 processes, 5 + 6 samples"
    assert report.rows[-1].verdict.startswith("not run: can't be sent to another process: ")


@pytest.mark.long
def test_processes_that_fail_or_hang_are_ended_and_told(monkeypatch) -> None:
    row = report_of(network(FailsInCompany()), nn.CrossEntropyLoss(), num_processes=2).rows[-1]
    assert row.verdict == "not run: OSError: there are others"
    monkeypatch.setattr(processes, "TIMEOUT_SECONDS", 0.05)
    row = report_of(network(), nn.CrossEntropyLoss(), num_processes=3).rows[-1]
    assert row.comparison == "3 processes, 3 + 4 + 4 samples"
    assert row.verdict == "not run: not done within 0.05 s"


def test_a_model_that_does_not_run_in_float64_is_an_error() -> None:
    with pytest.raises(ModelError) as caught:
        report_of(network(OnlyFloat32()), nn.CrossEntropyLoss())
    assert str(caught.value) == (
        "model: does not run in float64 on the CPU: only float32 is good enough"
    )


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ModelError) as caught:
        report_of(network(), nn.CrossEntropyLoss(), torch.full((N,), -100))
    assert str(caught.value) == (
        "loss: is nan on these 11 samples, or its gradient is not finite, so there is nothing to "
        "compare; use other samples"
    )


# ── the report, side effects, the command ───────────────────────────────────────────────────────


def test_the_report_is_a_table() -> None:
    rows = (
        Row("microbatches of 1", 1.26e-16, 1e-10),
        Row("microbatches of 2", 0.25, 1e-10),
        Row("per-sample gradients (torch.func)", None, 1e-10, "no reason"),
    )
    assert str(Report(1000, 12345, rows, ("a note",), ("a finding",))).splitlines() == [
        "The gradient of 1,000 samples for 12,345 parameters, in float64 on the CPU:",
        "",
        "compared with one pass                relative error  tolerance",
        "microbatches of 1                            1.3e-16      1e-10  ok",
        "microbatches of 2                            2.5e-01      1e-10  BROKEN",
        "per-sample gradients (torch.func)                  -      1e-10  not run: no reason",
        "",
        "note: a note",
        "a finding",
        "1 of 2 comparisons differ; 1 could not be run",
    ]
    assert Report(1, 1, rows[:1], (), ()).holds
    assert str(Report(1, 1, rows[:1], (), ())).splitlines()[-1] == "all comparisons hold"
    assert Row("", float("nan"), 1.0).ok is False


def test_it_has_no_side_effects() -> None:
    def trained(with_verify: bool) -> tuple[Trainer, object]:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        model = network(nn.BatchNorm1d(4), nn.Dropout(0.3))
        model[1].eval()
        trainer = make_trainer(model, nn.CrossEntropyLoss(weight=W))
        trainer.train_step(next(trainer.read(trainer.loader)))
        held = [parameter.grad for parameter in model.parameters()]
        if with_verify:
            verify(trainer, Batch(X, LABELS, torch.arange(N)), num_processes=0)
        assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
        assert [m.training for m in model] == [True, False, True, True]
        assert (X.dtype, W.dtype, torch.get_default_dtype()) == (torch.float32,) * 3
        gradients = [gradient.clone() for gradient in held]
        state = trainer.state_dict(), gradients, random.random(), np.random.rand(), torch.rand(3)
        trainer.fit(3)
        return state, trainer.model.state_dict()

    def same(a, b) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b

    assert same(trained(with_verify=True), trained(with_verify=False))


@pytest.fixture
def moons(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(
        "data: {source: two_moons, num_samples: 40}\nmodel: {name: mlp, hidden: [8]}\n"
        "loss: {name: cross_entropy, weight: [1, 3]}\nloader: {name: minibatch, batch_size: 8}\n"
        "optimizer: {lr: 0.1}\nepochs: 2\n",
        "utf-8",
    )
    return tmp_path


def test_the_command_prints_a_table_writes_nothing_and_exits_with_0(moons, capfd) -> None:
    Path("parts_for_verify.py").write_text(
        "from gdtrain import register_loss\n\n@register_loss('quartic')\n"
        "def quartic(output, targets, scale: float = 1.0):\n"
        "    return scale * (output.sum(1) - targets.flatten()).pow(4).mean()\n"
    )
    arguments = ["--import", "parts_for_verify", "--samples", "9", "--updates", "0"]
    arguments.append("loader=sample")
    assert main(["verify", "--config", "moons.yaml", "loss=quartic", *arguments]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "The gradient of 9 samples for 33 parameters, in float64 on the CPU:"
    (row,) = [line for line in lines if line.startswith("2 processes, 4 + 5 samples ")]
    assert row.endswith(" ok")
    assert lines[-1] == "all comparisons hold; 1 could not be run"
    assert sorted(path.suffix for path in moons.iterdir() if path.is_file()) == [".py", ".yaml"]


def test_the_command_exits_with_1_where_an_identity_is_broken(moons, capsys) -> None:
    @register_loss("halved")
    def halved(output, targets, power: int = 2):
        return (output.sum(1) / 2 + output.sum(1).detach() / 2 - targets).pow(power).mean()

    assert main(["verify", "--config", "moons.yaml", "loss=halved"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "\n2 processes, 20 + 20 samples         " in out
    assert " is not the derivative of the loss: " in out
    assert "\n1 of 8 comparisons differ; 2 could not be run\n\n" in out
    assert out.endswith("all 4 tensors of model, loss and optimizer have the same bits\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--samples", "0"], "command line:1:1: --samples: must be >= 1, got 0"),
        (["epochs=0"], "command line:1:8: epochs: must be >= 1, got 0"),
        (
            ["--import", "nowhere_to_be_found"],
            "command line:1:1: --import: module 'nowhere_to_be_found' not found; "
            "run from its directory, or add that to PYTHONPATH",
        ),
        (
            ["model.output_activation=softmax"],
            "command line:1:25: model.output_activation: must be none for the loss cross_entropy, "
            "got softmax",
        ),
    ],
)
def test_the_command_exits_with_2_on_bad_input(moons, capsys, arguments, said) -> None:
    assert main(["verify", "--config", "moons.yaml", *arguments]) == 2
    assert capsys.readouterr() == ("", f"{said}\n")
