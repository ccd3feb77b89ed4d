"""The path of the weights and the loss surface: closed forms of a quadratic, numpy's SVD, runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer, Trajectory, landscape
from gdtrain.analysis.landscape import principal_plane
from gdtrain.analysis.monitors import trajectory as recording
from gdtrain.analysis.monitors.trajectory import WeightPath, sketch
from gdtrain.cli.main import main
from gdtrain.errors import ConfigError, DataError

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [6]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 7}
optimizer: {lr: 0.1}
monitors: {trajectory: {every_n_steps: 3}}
epochs: 4
log: {picture: false}
"""


class Weights(Callback):
    """The weights after every update, kept by other means than the monitor's."""

    def __init__(self, every_n_steps=1):
        super().__init__(every_n_steps=every_n_steps)
        self.kept = {}

    def on_fit_start(self, trainer):
        self.kept.setdefault(trainer.progress.step, flat(trainer))

    def on_safe_point(self, trainer):
        self.kept[trainer.progress.step] = flat(trainer)


def flat(trainer) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).numpy().copy()


def table():
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    return X, X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]], dtype=torch.float64) + 0.7


def quadratic(callbacks=(), seed=0, cls=Trainer, **options) -> Trainer:
    """Least squares in float64: 11 samples, 4 weights and a bias."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loader = MiniBatchLoader(table(), batch_size=3, seed=seed)
    return cls(model, nn.MSELoss(), optimizer, loader, callbacks=callbacks, **options)


def mean_squares(theta) -> float:
    X, y = (part.numpy() for part in table())
    return float(np.mean((X @ theta[:4, None] + theta[4] - y) ** 2))


# ── the trajectory ──────────────────────────────────────────────────────────────────────────


def test_points_are_the_weights_of_their_steps():
    monitor, other = Trajectory(every_n_steps=3), Weights()
    trainer = quadratic([monitor, other])
    trainer.fit(4)  # 16 updates
    path = monitor.weight_path()
    assert path.steps.tolist() == [0, 3, 6, 9, 12, 15, 16]
    assert not path.projected
    assert path.points.dtype == np.float64
    assert np.array_equal(path.points, [other.kept[step] for step in path.steps])
    assert [r["step"] for r in monitor.records] == [3, 6, 9, 12, 15]
    assert monitor.report()["distance_from_start"] == pytest.approx(
        float(np.linalg.norm(other.kept[15] - other.kept[0])), rel=1e-12
    )
    trainer.fit(5)  # the end of the first fit was no point of its own
    assert monitor.weight_path().steps.tolist() == [0, 3, 6, 9, 12, 15, 18, 20]


def test_by_default_about_a_hundred_points_and_never_more_than_asked_for():
    monitor = Trajectory()
    quadratic([monitor]).fit(100)  # 400 updates
    assert monitor.steps == list(range(0, 401, 4))
    monitor, other = Trajectory(every_n_steps=1, max_points=10), Weights()
    quadratic([monitor, other]).fit(25)  # 100 updates
    assert monitor.steps == list(range(0, 101, 16)), "every second was dropped four times"
    kept = [other.kept[step] for step in monitor.weight_path().steps]
    assert np.array_equal(monitor.weight_path().points, kept)


def test_it_can_look_at_the_end_of_epochs():
    monitor = Trajectory(every_n_epochs=2)
    history = quadratic([monitor]).fit(5)
    assert monitor.weight_path().steps.tolist() == [0, 8, 16, 20]
    assert [value is None for value in history.distance_from_start] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_a_resumed_run_records_the_same_points():
    def made():
        return Trajectory(every_n_steps=1, max_points=8)

    whole = made()
    quadratic([whole]).fit(12)
    first, second, third = made(), made(), made()
    trainer = quadratic([first])
    trainer.fit(5)
    for monitor, epochs in ((second, 9), (third, 12)):  # resumed twice
        state = trainer.state_dict()
        trainer = quadratic([monitor], seed=0)
        trainer.load_state_dict(state)
        trainer.fit(epochs)
    for ours, theirs in zip(
        vars(third.weight_path()).values(), vars(whole.weight_path()).values(), strict=True
    ):
        assert np.array_equal(ours, theirs)
    assert third.records == whole.records


def test_under_the_scan_engine_the_points_are_the_weights_too():
    pytest.importorskip("jax")
    monitor, other = Trajectory(every_n_steps=2), Weights(2)
    trainer = quadratic([monitor, other], engine="scan")
    trainer.fit(2)
    assert trainer.engine.name == "scan"
    path = monitor.weight_path()
    assert path.steps.tolist() == [0, 2, 4, 6, 8]
    assert np.array_equal(path.points, [other.kept[step] for step in path.steps])


def test_a_large_model_is_projected(monkeypatch):
    monkeypatch.setattr(recording, "MOST_NUMBERS", 5 * 32 - 1)
    monkeypatch.setattr(recording, "PROJECTIONS", 3)
    monitor, other = Trajectory(every_n_steps=4, seed=9), Weights()
    trainer = quadratic([monitor, other])
    trainer.fit(2)
    path = monitor.weight_path()
    assert (path.projected, path.points.shape) == (True, (3, 3))
    S = torch.stack([sketch(row, 3, 9) for row in torch.eye(5, dtype=torch.float64)]).T
    assert (S.abs().sum(0) == 1).all(), "one ±1 in each column"
    expected = [S.numpy() @ other.kept[step] for step in path.steps]
    assert path.points == pytest.approx(np.array(expected), rel=1e-12)
    with pytest.raises(DataError, match="holds random projections of the weights"):
        landscape(trainer, [path])


def test_projections_keep_products_on_the_average():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    found = torch.tensor([float(sketch(a, 64, s) @ sketch(b, 64, s)) for s in range(2000)])
    # the variance is below 2 |a|² |b|² / 64, so five standard errors of the mean are
    error = 5 * math.sqrt(2 * float(a @ a) * float(b @ b) / 64 / 2000)
    assert float(found.mean()) == pytest.approx(float(a @ b), abs=error)
    assert not torch.equal(sketch(a, 64, 0), sketch(a, 64, 1))


def test_files_come_back_as_they_were_and_others_are_refused(tmp_path):
    path = WeightPath(np.array([0, 5]), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), False)
    path.save(tmp_path / "a.npz")
    back = WeightPath.load(tmp_path / "a.npz")
    assert back.points.dtype == np.float32
    assert all(
        np.array_equal(x, y) for x, y in zip(vars(back).values(), vars(path).values(), strict=True)
    )
    bad = {"steps": [0], "points": [[math.nan]], "projected": False}
    files = {
        "text": b"no",
        "empty": b"",
        "torn": (tmp_path / "a.npz").read_bytes()[:-40],
    }
    np.savez(tmp_path / "nan.npz", **bad)
    np.savez(tmp_path / "short.npz", **(bad | {"points": [[1.0], [2.0]]}))
    np.savez(tmp_path / "object.npz", **(bad | {"points": np.array([[None]], object)}))
    np.savez(tmp_path / "lacks.npz", steps=[0])
    for name, content in files.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    for name in (*files, "nan", "short", "object", "lacks", "none"):
        with pytest.raises(DataError, match=rf"{name}.npz (can't be read|is no trajectory)"):
            WeightPath.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_points": 3}, "max_points: must be >= 4, got 3"),
        ({"projections": 0}, "projections: must be >= 1, got 0"),
        ({"seed": -1}, "seed: must be >= 0, got -1"),
    ],
)
def test_settings_out_of_range(options, said):
    with pytest.raises(ConfigError) as caught:
        Trajectory(**options)
    assert str(caught.value) == said


# ── the slice ───────────────────────────────────────────────────────────────────────────────


def test_the_slice_of_a_quadratic_is_its_closed_form_and_nothing_is_changed():
    monitor = Trajectory(every_n_steps=2)
    trainer = quadratic([monitor])
    trainer.fit(6)
    path, before = monitor.weight_path(), flat(trainer)
    rng, gradient = torch.get_rng_state(), trainer.model.weight.grad.clone()
    hill = landscape(trainer, [path], resolution=9)
    u, v = hill.directions.numpy()
    for j, y in enumerate(hill.y):
        for i, x in enumerate(hill.x):
            expected = mean_squares(path.points[-1] + x * u + y * v)
            assert hill.losses[j, i] == pytest.approx(expected, rel=1e-10)
    assert np.array_equal(flat(trainer), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(trainer.model.weight.grad, gradient)
    assert trainer.model.training
    # the plane is that of numpy's SVD, and the way is seen from straight above it
    apart = path.points - path.points.mean(0)
    _, sizes, components = np.linalg.svd(apart, full_matrices=False)
    assert hill.explained == pytest.approx(tuple(sizes[:2] ** 2 / (sizes**2).sum()), rel=1e-10)
    assert abs(components[:2] @ hill.directions.numpy().T) == pytest.approx(np.eye(2), abs=1e-10)
    (way,) = hill.ways
    assert way == pytest.approx((path.points - path.points[-1]) @ np.stack([u, v]).T, abs=1e-12)
    assert way[-1].tolist() == [0, 0]


def test_ways_lie_within_the_slice_and_runs_share_the_plane():
    monitors = [Trajectory(every_n_steps=1) for _ in range(3)]
    trainers = [quadratic([monitor], seed=seed) for seed, monitor in enumerate(monitors)]
    for trainer in trainers:
        trainer.fit(3)
    paths = [monitor.weight_path() for monitor in monitors]
    hill = landscape(trainers[0], paths, ["a", "b", "c"], resolution=5)
    for way in hill.ways:
        assert (way > [hill.x[0], hill.y[0]]).all()
        assert (way < [hill.x[-1], hill.y[-1]]).all()
    last = np.mean([path.points[-1] for path in paths], axis=0)
    assert hill.centre.numpy() == pytest.approx(last, abs=1e-14)
    together = np.concatenate([path.points for path in paths])
    sizes = np.linalg.svd(together - together.mean(0), compute_uv=False)
    assert hill.explained == pytest.approx(tuple(sizes[:2] ** 2 / (sizes**2).sum()), rel=1e-10)


@pytest.mark.parametrize(
    "points", [np.ones((1, 4)), np.ones((5, 4)), np.arange(3.0)[:, None] * [1, 2, 3, 4]]
)
def test_where_the_way_is_a_point_or_a_line_the_plane_is_completed(points):
    directions, explained = principal_plane(torch.from_numpy(points))
    assert directions.numpy() @ directions.numpy().T == pytest.approx(np.eye(2), abs=1e-12)
    on_a_line = len(points) == 3
    assert explained == pytest.approx((1.0, 0.0) if on_a_line else (0.0, 0.0), abs=1e-12)


def test_a_model_that_cannot_be_mapped_is_looked_at_point_by_point(caplog):
    class Branching(Trainer):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            return loss if float(loss) >= 0 else loss * 2

    monitor = Trajectory(every_n_steps=2)
    trainer = quadratic([monitor])
    trainer.fit(2)
    slow = quadratic(cls=Branching)
    one, other = (landscape(t, [monitor.weight_path()], resolution=4) for t in (trainer, slow))
    assert "the slice is computed point by point, which is slow" in caplog.text
    assert other.losses == pytest.approx(one.losses, rel=1e-12)


def test_weighted_and_ignored_targets_count_as_in_evaluate():
    torch.manual_seed(0)
    X, y = torch.randn(30, 2, dtype=torch.float64), torch.randint(0, 3, (30,))
    y[3] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3)
    ).double()
    monitor = Trajectory(every_n_steps=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    options = {"callbacks": [monitor], "microbatch_size": 7, "microbatch_allow": ["1"]}
    trainer = Trainer(model, loss, optimizer, BatchLoader((X, y)), **options)
    trainer.fit(5)
    hill = landscape(trainer, [monitor.weight_path()], resolution=3)
    for (j, i), loss_there in np.ndenumerate(hill.losses):
        theta = hill.centre + torch.tensor([hill.x[i], hill.y[j]]) @ hill.directions
        nn.utils.vector_to_parameters(theta, model.parameters())
        assert loss_there == pytest.approx(trainer.evaluate()["loss"], rel=1e-10)


def test_what_does_not_fit_is_refused():
    trainer = quadratic()
    path = WeightPath(np.array([0]), np.zeros((1, 7)), False)
    with pytest.raises(DataError, match="is of 7 weights, and the model has 5"):
        landscape(trainer, [path])
    with pytest.raises(ConfigError, match="resolution: must be >= 2, got 1"):
        landscape(trainer, [path], resolution=1)


def test_its_picture_says_how_much_the_plane_explains():
    monitor = Trajectory(every_n_steps=1)
    trainer = quadratic([monitor])
    trainer.fit(3)
    hill = landscape(trainer, [monitor.weight_path()], ["mine"], resolution=6)
    made = hill.draw("mean squared error")
    shares = [f"{share:.1%}" for share in (*hill.explained, sum(hill.explained))]
    frame, bar = made.axes
    assert shares[0] in frame.get_xlabel()
    assert shares[1] in frame.get_ylabel()
    assert shares[2] in made.get_suptitle()
    assert bar.get_ylabel() == "mean squared error"
    assert [text.get_text() for text in frame.get_legend().get_texts()] == ["mine"]
    (way,) = hill.ways
    drawn = next(line for line in frame.lines if line.get_label() == "mine")
    assert np.array_equal(np.stack(drawn.get_data()).T, way)
    flat_hill = vars(hill) | {"losses": np.full_like(hill.losses, np.nan)}
    type(hill)(**flat_hill).draw()._repr_png_()
    type(hill)(**(flat_hill | {"losses": np.ones_like(hill.losses)})).draw()._repr_png_()


# ── the command ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(CONFIG, "utf-8")


def train(*arguments: str) -> int:
    return main(["--config", "moons.yaml", *arguments])


def test_runs_of_three_forms_over_one_hill(here, capsys):
    for form in ("batch", "sample", "minibatch"):
        size = {"batch_size": 7} if form == "minibatch" else {}
        assert train("--output-dir", form, f"loader={json.dumps({'name': form} | size)}") == 0
    assert main(["landscape", "batch", "sample", "minibatch", "--resolution", "5"]) == 0
    assert main(["landscape", "minibatch", "--resolution", "5", "--out", "one.svg"]) == 0
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "drawn: batch/landscape.png",
        "drawn: one.svg",
    ]
    steps = WeightPath.load(Path("minibatch/trajectory.npz")).steps.tolist()
    assert steps == [0, 3, 6, 9, 12, 15, 18, 20]


def test_runs_that_can_not_be_drawn_together(here, capsys):
    for name, setting in (
        ("a", "seed=0"),
        ("b", "seed=1"),
        ("c", "model.hidden=[7]"),
        ("d", "monitors=null"),
    ):
        assert train("--output-dir", name, setting) == 0
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main(["landscape", "a", "b", "c", "d", "no"]) == 2
    tail = "so that its loss is not the same function of the weights; give runs that agree in these"
    asked = "train with monitors=trajectory, and to the end"
    assert capsys.readouterr().err.splitlines() == [
        f"command line:1:1: RUN: b differs from a in seed, {tail}",
        f"command line:1:1: RUN: c differs from a in model, {tail}",
        f"command line:1:1: RUN: d has no trajectory.npz; {asked}",
        "command line:1:1: RUN: no does not exist",
    ]
    assert main(["landscape", "a", "--resolution", "1"]) == 2
    assert capsys.readouterr().err == "command line:1:1: --resolution: must be >= 2, got 1\n"
    assert sorted(Path().rglob("*")) == before
