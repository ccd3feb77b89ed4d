"""The command ``evaluate``: what a run says of its validation part, and numpy of a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gdtrain import load_run
from gdtrain.cli.main import main
from gdtrain.errors import DataError

KINDS = "abc"


def table(draw: np.random.Generator, count: int) -> tuple[str, list[tuple[float, str, float]]]:
    rows = []
    for number in range(count):
        area, kind = round(float(draw.uniform(20, 120)), 2), KINDS[number % 3]
        rows.append((area, kind, round(3 * area + 10 * (number % 3), 2)))
    lines = [f"{a},{k},{p},{'dear' if p > 200 else 'cheap'}" for a, k, p in rows]
    return "\n".join(["area,kind,price,class", *lines]) + "\n", rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With linear models of prices (in standard deviations) and of classes, and tables."""
    made: Path = tmp_path_factory.mktemp("houses")
    draw = np.random.default_rng(5)
    (made / "houses.csv").write_text(table(draw, 60)[0])
    for name, target, loss, scaled in (
        ("price", "price", "mse\nmetrics: [mae]", True),
        ("class", "class", "cross_entropy", False),
        ("two", "class", "bce_with_logits\nmetrics: [accuracy]", False),
    ):
        data = {
            "source": "csv", "path": str(made / "houses.csv"), "target": target,
            "features": ["area", "kind"], "standardize": True, "standardize_targets": scaled,
            "validation_fraction": 0.25,
        }  # fmt: skip
        settings = [
            f"data: {json.dumps(data)}", "model: linear", f"loss: {loss}", "loader: batch",
            "optimizer: {lr: 0.1}", "epochs: 3", "precision: fp64", "log: {picture: false}",
        ]  # fmt: skip
        (made / f"{name}.yaml").write_text("\n".join(settings))
        arguments = ["--config", str(made / f"{name}.yaml"), "--output-dir", str(made / name)]
        assert main([*arguments, "--quiet"]) == 0
    return made


@pytest.fixture
def later(folder: Path) -> tuple[Path, np.ndarray, np.ndarray, list[str]]:
    """A table of a later day: its path, inputs, prices and classes."""
    text, rows = table(np.random.default_rng(6), 7)
    path = folder / "later.csv"
    path.write_text(text)
    x = np.array([[area, *(float(kind == name) for name in KINDS)] for area, kind, _ in rows])
    return path, x, np.array([p for *_, p in rows]), [r.split(",")[3] for r in text.split()[1:]]


def outputs(run: Path, x: np.ndarray) -> np.ndarray:
    kept = json.loads((run / "preprocessing.json").read_text())
    arrays = load_file(run / "model.safetensors").values()
    (weight,) = (array for array in arrays if array.ndim == 2)
    (bias,) = (array for array in arrays if array.ndim == 1)
    return (x - kept["mean"]) / kept["std"] @ weight.T + bias


def evaluated(capsys, *arguments: str | Path) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_numbers_in_the_units_of_training(folder: Path, later, capsys) -> None:
    path, x, prices, _ = later
    kept = json.loads((folder / "price/preprocessing.json").read_text())
    error = outputs(folder / "price", x)[:, 0] - (prices - kept["target_mean"]) / kept["target_std"]
    found = evaluated(capsys, folder / "price", path)
    assert found.keys() == {"loss", "mae", "mae_original_units", "samples"}
    own = found["mae"] * kept["target_std"][0]
    assert found["mae_original_units"] == pytest.approx(own, rel=1e-9)
    assert found["loss"] == pytest.approx((error**2).mean(), rel=1e-9)
    assert found["mae"] == pytest.approx(abs(error).mean(), rel=1e-9)
    assert found["samples"] == 7
    assert load_run(folder / "price").evaluate(path) == found


def test_classes_by_their_names(folder: Path, later, capsys) -> None:
    path, x, _, classes = later
    scores = outputs(folder / "class", x)
    truth = np.array([["cheap", "dear"].index(name) for name in classes])
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    found = evaluated(capsys, folder / "class", path)
    assert found["loss"] == pytest.approx(-logs[np.arange(7), truth].mean(), rel=1e-9)
    assert found["accuracy"] == pytest.approx((scores.argmax(1) == truth).mean())


def test_two_named_classes_under_a_binary_loss(folder: Path, later, capsys) -> None:
    path, x, _, classes = later
    scores = outputs(folder / "two", x)[:, 0]
    truth = np.array([name == "dear" for name in classes])
    found = evaluated(capsys, folder / "two", path)
    expected = np.logaddexp(0, np.where(truth, -scores, scores)).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-9)
    assert found["accuracy"] == pytest.approx(((scores > 0) == truth).mean())


def test_a_folder_of_tables_gives_what_one_table_gives(folder: Path, later, capsys) -> None:
    path, parts = later[0], folder / "parts"
    parts.mkdir()
    header, *rows = path.read_text().splitlines()
    (parts / "a.csv").write_text("\n".join([header, *rows[:3]]) + "\n")
    (parts / "b.csv").write_text("\n".join([header, *rows[3:]]) + "\n")
    assert evaluated(capsys, folder / "class", parts) == evaluated(capsys, folder / "class", path)


def test_a_line_for_each_number(folder: Path, later, capsys) -> None:
    found = evaluated(capsys, folder / "class", later[0])
    assert main(["evaluate", str(folder / "class"), str(later[0])]) == 0
    shown = [f"loss {found['loss']:.4g}", f"accuracy {found['accuracy']:.2%}", "samples 7"]
    assert capsys.readouterr().out.splitlines() == shown


def test_a_converted_folder_gives_what_its_table_gives(folder: Path, later, capsys) -> None:
    """Its categories are the training file's: all of them are in both."""
    path, out = later[0], folder / "converted"
    command = ["convert", str(path), str(out), "--target", "price", "--features", "area"]
    assert main([*command, "--features", "kind", "--dtype", "float64"]) == 0
    expected = evaluated(capsys, folder / "price", path)
    assert evaluated(capsys, folder / "price", out) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_arrays_of_the_validation_part_give_its_loss(kind: str, tmp_path, monkeypatch, capsys):
    import torch
    from safetensors.numpy import save_file

    from gdtrain.data.tables.preparation import split

    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 3)), draw.integers(0, 3, 40)
    np.savez("all.npz", a=x, b=y)
    Path("run.yaml").write_text(
        "data: {source: npz, path: all.npz, inputs: a, targets: b, validation_fraction: 0.3,"
        " standardize: true}\nmodel: {name: mlp, hidden: [4], batch_norm: true}\n"
        "loss: cross_entropy\nloader: {name: minibatch, batch_size: 7}\noptimizer: {lr: 0.1}\n"
        "epochs: 2\nlog: {picture: false}\n"
    )
    assert main(["--config", "run.yaml", "--output-dir", "run", "--quiet"]) == 0
    held_out = split(40, 0.3, 0)[1].numpy()
    # Files of the run's own kind have its names, others x and y.
    names = ("a", "b") if kind == "npz" else ("x", "y")
    arrays = dict(zip(names, (x[held_out], y[held_out]), strict=True))
    save = {
        "npz": lambda: np.savez("part.npz", **arrays),
        "safetensors": lambda: save_file(arrays, "part.safetensors"),
        "pt": lambda: torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, "part.pt"),
    }
    save[kind]()
    expected = json.loads(Path("run/summary.json").read_text())["validation"]
    found = evaluated(capsys, "run", f"part.{kind}")
    assert found == pytest.approx(expected | {"samples": 12}, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("area,kind,class\n50,a,dear\n60,b,cosy\n", ("line 3", "class", "'cosy'")),
        ("area,kind\n50,a\n", ("class",)),
        ("area,kind,class\n50,z,dear\n", ("line 2", "kind", "'z'")),
    ],
    ids=["unseen class", "no target", "unseen category"],
)
def test_what_does_not_fit_is_told(text, parts, folder: Path, tmp_path, capsys) -> None:
    (tmp_path / "bad.csv").write_text(text)
    assert main(["evaluate", str(folder / "class"), str(tmp_path / "bad.csv")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(part in shown.err for part in parts), shown.err


def test_rows_that_training_left_out_are_left_out(tmp_path, monkeypatch) -> None:
    """Under missing: drop, those with a missing cell or target count for nothing."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{n},{n % 7},{2 * n + n % 7}" for n in range(40)]
    Path("a.csv").write_text("\n".join(["x,z,y", *rows]))
    Path("b.csv").write_text("\n".join(["x,z,y", *rows[:9], "NA,1,2", "3,1,", *rows[9:], ",,"]))
    Path("a.yaml").write_text(
        "data: {source: table, path: b.csv, target: y, missing: drop}\nmodel: linear\nloss: mse\n"
        "loader: batch\noptimizer: {lr: 0.0001}\nepochs: 1\nlog: {picture: false}\n"
    )
    assert main(["--config", "a.yaml", "--output-dir", "out", "--quiet"]) == 0
    run = load_run("out")
    assert run.evaluate("b.csv") == run.evaluate("a.csv")
    assert run.evaluate("b.csv")["samples"] == 40
    Path("c.csv").write_text("x,z,y\n1,,1\n2,2,two\n")
    with pytest.raises(
        DataError, match=r"c.csv: line 3, column 'y' is 'two', which is not a number"
    ):
        run.evaluate("c.csv")
    Path("d.csv").write_text("x,z,y\n1,,1\n")
    with pytest.raises(DataError, match="no row is left where those with missing cells are left"):
        run.evaluate("d.csv")


def test_a_label_that_the_model_has_no_output_for(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("two.npz", x=np.eye(2, dtype=np.float32), y=np.array([0, 1]))
    np.savez("three.npz", x=np.eye(2, dtype=np.float32), y=np.array([0, 2]))
    Path("run.yaml").write_text(
        "data: {source: npz, path: two.npz}\nmodel: linear\nloss: cross_entropy\nloader: batch\n"
        "optimizer: {lr: 0.1}\nepochs: 1\nlog: {picture: false}\n"
    )
    assert main(["--config", "run.yaml", "--output-dir", "run", "--quiet"]) == 0
    assert main(["evaluate", "run", "three.npz"]) == 2
    assert capsys.readouterr().err == (
        "gdtrain: three.npz: holds label 2, but the model was trained on 2 classes, 0 … 1\n"
    )


def test_a_loss_that_is_not_finite_ends_with_3(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("small.npz", x=np.eye(2, dtype=np.float32), y=np.array([0.0, 1.0]))
    np.savez("large.npz", x=np.eye(2, dtype=np.float32), y=np.array([0.0, 1e30]))
    Path("run.yaml").write_text(
        "data: {source: npz, path: small.npz}\nmodel: linear\nloss: mse\nloader: batch\n"
        "optimizer: {lr: 0.1}\nepochs: 1\nlog: {picture: false}\n"
    )
    assert main(["--config", "run.yaml", "--output-dir", "run", "--quiet"]) == 0
    assert main(["evaluate", "run", "large.npz", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"loss": None, "samples": 2}
