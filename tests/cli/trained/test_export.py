"""The command ``export``: its files give what numpy computes from the files of the run."""

import csv
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gdtrain.cli.main import main

onnxruntime = pytest.importorskip("onnxruntime")

ROWS = [(50.0, "a", 1.5), (110.5, "c", 0.25), (20.25, "b", -3.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made: Path = tmp_path_factory.mktemp("export")
    draw = np.random.default_rng(5)
    lines = ["area,kind,age,price,rent,flower,is_dear"]
    for number in range(60):
        area, age = draw.uniform(20, 120), draw.normal()
        price = 3 * area + 10 * (number % 3) + age
        flower = "lily" if price < 150 else "rose" if price < 260 else "tulip"
        lines.append(
            f"{area:.2f},{'abc'[number % 3]},{age:.3f},{price:.3f},{area / 9:.3f},{flower},"
            f"{int(price > 200)}"
        )
    (made / "houses.csv").write_text("\n".join(lines) + "\n")
    (made / "new.csv").write_text(
        "area,kind,age\n" + "".join(f"{a},{k},{age}\n" for a, k, age in ROWS)
    )
    return made


def trained(folder: Path, name: str, target, loss: str, features: list[str], *more: str) -> Path:
    data = {
        "source": "csv", "path": str(folder / "houses.csv"), "target": target,
        "features": features, "standardize": True, "standardize_targets": loss == "mse",
    }  # fmt: skip
    config = folder / f"{name}.yaml"
    settings = ["model: {name: mlp, hidden: [5], activation: tanh}", "loader: batch"]
    settings += ["optimizer: {lr: 0.1}", "epochs: 3", "log: {picture: false}"]
    config.write_text("\n".join([f"data: {json.dumps(data)}", f"loss: {loss}", *settings]))
    arguments = ["--config", str(config), "--output-dir", str(folder / name), "--quiet"]
    assert main([*arguments, *more]) == 0
    return folder / name


def by_hand(run: Path, features: list[str]) -> np.ndarray:
    """The outputs for ROWS, by the files of the run alone."""
    kept = json.loads((run / "preprocessing.json").read_text("utf-8"))
    encoded = {
        "area": lambda row: [row[0]],
        "kind": lambda row: [float(row[1] == name) for name in "abc"],
        "age": lambda row: [row[2]],
    }
    x = np.array([[v for name in features for v in encoded[name](row)] for row in ROWS])
    x = (x - kept["mean"]) / kept["std"]
    arrays = list(load_file(run / "model.safetensors").items())
    (w1, w2) = (array for _, array in sorted(arrays) if array.ndim == 2)
    (b1, b2) = (array for _, array in sorted(arrays) if array.ndim == 1)
    found = np.tanh(x @ w1.T + b1) @ w2.T + b2
    return found * kept["target_std"] + kept["target_mean"] if kept["target_mean"] else found


def predicted(folder: Path, run: Path, capsys) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["predict", str(run), str(folder / "new.csv")]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


NUMBERS, WITH_KIND = ["area", "age"], ["area", "kind", "age"]
CASES = {
    "one target": ("price", "mse", NUMBERS),
    "two targets and categories": (["price", "rent"], "mse", WITH_KIND),
    "three classes and categories": ("flower", "cross_entropy", WITH_KIND),
    "two classes of one output": ("is_dear", "bce_with_logits", NUMBERS),
}


LONG = (
    "one target",
    "two targets and categories",
    "two classes of one output",
)  # each export takes seconds


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long) if c in LONG else c for c in CASES]
)
def test_onnx_gives_what_numpy_and_predict_give(case: str, folder: Path, capsys) -> None:
    target, loss, features = CASES[case]
    run = trained(folder, case.replace(" ", "-"), target, loss, features)
    assert main(["export", str(run), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(run / "model.onnx")
    columns = dict(zip(WITH_KIND, zip(*ROWS, strict=True), strict=True))
    if features == NUMBERS:
        feed = {"inputs": np.array([columns[n] for n in NUMBERS], dtype=np.float32).T}
    else:
        kinds = {"area": np.float32, "kind": object, "age": np.float32}
        feed = {n: np.array(columns[n], dtype=kinds[n])[:, None] for n in WITH_KIND}
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))
    expected = by_hand(run, features)
    assert found["outputs"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    rows = predicted(folder, run, capsys)
    if loss == "mse":
        assert list(found) == ["outputs"]
    else:
        names = ["lily", "rose", "tulip"] if loss == "cross_entropy" else [target]
        likely = np.array([[float(row[name]) for name in names] for row in rows])
        assert found["probabilities"] == pytest.approx(likely, rel=1e-5, abs=1e-6)
    if loss == "cross_entropy":
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["class_names"]) == names
        assert [names[n] for n in found["outputs"].argmax(1)] == [r["prediction"] for r in rows]
        with pytest.raises(Exception, match="Unknown Category"):
            session.run(None, feed | {"kind": np.array([["z"]] * 3, dtype=object)})


def test_onnx_of_a_table_with_missing_cells_and_dates(folder: Path, capsys) -> None:
    """As ``predict`` reads the same table: NaN and the empty text stand for missing cells."""
    draw, lines = np.random.default_rng(7), ["area,kind,day,price"]
    for number in range(60):
        area = "" if number % 5 == 0 else f"{draw.uniform(20, 120):.2f}"
        kind = "" if number % 7 == 0 else "abc"[number % 3]
        lines.append(f"{area},{kind},2024-01-{1 + number % 28:02d},{100 + number}")
    (folder / "gaps.csv").write_text("\n".join(lines) + "\n")
    data = {
        "source": "table", "path": str(folder / "gaps.csv"), "target": "price", "keep": ["day"],
        "missing": {"area": "mean", "kind": "most_frequent"}, "indicator": True,
        "standardize": True, "standardize_targets": True,
    }  # fmt: skip
    settings = [f"data: {json.dumps(data)}", "model: {name: mlp, hidden: [5]}", "loss: mse"]
    settings += ["loader: batch", "optimizer: {lr: 0.1}", "epochs: 3", "log: {picture: false}"]
    (folder / "gaps.yaml").write_text("\n".join(settings))
    run = folder / "gaps"
    command = ["--config", str(folder / "gaps.yaml"), "--output-dir", str(run), "--quiet"]
    assert main(command) == 0
    new = [("50.5", "a", "2024-01-03"), ("", "b", "2024-02-01"), ("80", "", "2024-01-01")]
    rows = "".join(f"{','.join(row)}\n" for row in new)
    (folder / "gaps-new.csv").write_text("area,kind,day\n" + rows)
    capsys.readouterr()
    assert main(["predict", str(run), str(folder / "gaps-new.csv")]) == 0
    told = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert main(["export", str(run), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(run / "model.onnx")
    days = [(date.fromisoformat(day) - date(1970, 1, 1)).days for *_, day in new]
    feed = {
        "area": np.array([[float(area or "nan")] for area, *_ in new], dtype=np.float32),
        "kind": np.array([[kind] for _, kind, _ in new], dtype=object),
        "day": np.array(days, dtype=np.float64)[:, None],
    }
    (outputs,) = session.run(None, feed)
    expected = [float(row["price"]) for row in told]
    assert outputs[:, 0] == pytest.approx(expected, rel=1e-5)


def test_onnx_of_images_by_a_network_with_batch_norm(folder: Path, capsys) -> None:
    """Ten classes, for one image and for several; without the paths of this machine."""
    (folder / "digits.yaml").write_text(
        "data: {source: digits, shape: [1, 8, 8], standardize: true}\n"
        "model: {name: cnn, channels: [2], hidden: [4], batch_norm: true}\nloss: cross_entropy\n"
        "loader: {name: minibatch, batch_size: 500}\noptimizer: {lr: 0.1}\nepochs: 1\n"
        "log: {picture: false}\n"
    )
    run, out = folder / "digits", folder / "digits.onnx"
    assert main(["--config", str(folder / "digits.yaml"), "--output-dir", str(run)]) == 0
    assert main(["export", str(run), "--format", "onnx", "--out", str(out)]) == 0
    assert str(Path(torch.__file__).parent).encode() not in out.read_bytes()
    from gdtrain import load_run
    from gdtrain.data.builtin.digits import digits

    pixels = digits().inputs[:30].float()
    session = onnxruntime.InferenceSession(out)
    for rows in (pixels, pixels[:1]):
        outputs, likely = session.run(None, {"inputs": rows.numpy()})
        expected = load_run(run).predict(rows)
        assert outputs == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-5)
        assert likely == pytest.approx(expected.softmax(1).numpy(), rel=1e-5, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")  # by torch 2.6 itself
@pytest.mark.filterwarnings("ignore:Node lifted_tensor")
def test_a_program_of_torch_needs_no_code_of_the_model(folder: Path, monkeypatch) -> None:
    run = trained(folder, "program", "price", "mse", NUMBERS, "precision=fp64")
    assert main(["export", str(run), "--format", "torch_export"]) == 0
    x = torch.tensor([[area, age] for area, _, age in ROWS], dtype=torch.float64)
    extra = {"gdtrain.json": ""}
    program = torch.export.load(run / "model.pt2", extra_files=extra)
    expected = by_hand(run, NUMBERS)
    assert program.module()(x).detach().numpy() == pytest.approx(expected, rel=1e-12)
    assert json.loads(extra["gdtrain.json"]) == {"columns": NUMBERS}


def test_a_file_of_another_kind_is_not_written_over(folder: Path, capsys, tmp_path: Path) -> None:
    run = trained(folder, "kept", "price", "mse", NUMBERS)
    there = tmp_path / "people.yaml"
    there.write_text("data: people.csv")
    command = ["export", str(run), "--format", "torch_export", "--out"]
    assert main([*command, str(there)]) == 2
    said = f"{there} is there already, and is no .pt2 file; move it first, or choose another name"
    assert said in capsys.readouterr().err
    assert there.read_text() == "data: people.csv"
    for _ in range(2):  # its own kind is put in the place of the older one
        assert main([*command, str(tmp_path / "model.pt2")]) == 0


OWN = """\
import torch
from torch import nn
from gdtrain import register_model

@register_model("embedded")
class Embedded(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.table = nn.Embedding(5, out_features)
    def forward(self, x):
        return self.table(x).mean(1)

@register_model("branching")
class Branching(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 0 else super().forward(2 * x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("exported_models.py").write_text(OWN)
    words = np.random.default_rng(0).integers(0, 5, (20, 3))
    np.savez("words.npz", x=words, y=words[:, 0])
    np.savez("numbers.npz", x=words.astype(np.float32), y=words[:, 0])
    for name, data in (("embedded", "words"), ("branching", "numbers")):
        Path(f"{name}.yaml").write_text(
            f"data: {{source: npz, path: {data}.npz}}\nmodel: {name}\nloss: cross_entropy\n"
            "loader: batch\noptimizer: {lr: 0.1}\nepochs: 1\nlog: {picture: false}\n"
        )
        command = ["--config", f"{name}.yaml", "--output-dir", name, "--import", "exported_models"]
        assert main([*command, "--quiet"]) == 0
    return tmp_path


def test_models_of_ones_own(own: Path, capsys) -> None:
    """One of whole numbers is written; one that is no graph is refused, and nothing is written."""
    more = ["--format", "torch_export", "--import", "exported_models"]
    assert main(["export", "embedded", *more]) == 0
    words = torch.tensor([[4, 0, 2]])
    table = load_file("embedded/model.safetensors")["table.weight"]
    found = torch.export.load("embedded/model.pt2").module()(words)
    assert found.detach().numpy() == pytest.approx(table[[4, 0, 2]].mean(0)[None], rel=1e-6)
    capsys.readouterr()
    assert main(["export", "branching", *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gdtrain: the model can't be exported: ")
    assert said.endswith("a graph of tensor operations, the same for every batch\n")
    assert not Path("branching/model.pt2").exists()


def test_without_the_packages_for_onnx(folder: Path, monkeypatch, capsys) -> None:
    from gdtrain.output.export import onnx_file

    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    assert main(["export", "nowhere", "--format", "onnx"]) == 2
    assert capsys.readouterr().err == (
        "gdtrain: export to ONNX needs onnx, onnxscript and onnxruntime, which are not installed; "
        "pip install 'gdtrain[onnx]'\n"
    )
