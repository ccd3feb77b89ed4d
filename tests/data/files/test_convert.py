"""A CSV file of any size becomes a folder that trains as the file itself does."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gdtrain.cli.main import main
from gdtrain.config.data import prepare_data
from gdtrain.config.load import load_config
from gdtrain.data.files import convert as convert_module
from gdtrain.data.files import mapped
from gdtrain.data.files.converted import Moments
from gdtrain.data.loaders.loader import BatchLoader, MiniBatchLoader
from gdtrain.data.tables.formats import csv_file
from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.preparation import LoadedData
from gdtrain.data.tables.table import TableReading, read_table
from gdtrain.errors import DataError

CONFIG = """\
data: {source: mapped, path: out}
model: {name: mlp, hidden: [4]}
loss: mse
loader: {name: minibatch, batch_size: 3}
optimizer: {lr: 0.01}
epochs: 2
log: {picture: false}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A directory with a table of 7 rows, read three rows at a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(csv_file, "_BLOCK", 100)
    monkeypatch.setattr(csv_file, "_ROWS_OF_HEADER", 1)
    draw = random.Random(0)
    rows = [
        f'{draw.gauss(0, 1)!r}," {draw.choice(["red", "blue"])}",{draw.choice("xyz")},{i % 3},{i}.5'
        for i in range(7)
    ]
    Path("t.csv").write_text("size,colour,kind,room,price\n" + "\n".join(rows) + "\n", "utf-8")
    return tmp_path


def convert(path: str, out: Path, target, categorical=(), **options) -> None:
    reading = TableReading(TableFiles(path, Dialect()), target, categorical=categorical)
    convert_module.convert(reading, out, **options)


def read_csv(path: str, target, **options) -> LoadedData:
    table = read_table(path, target, **options)
    return table.data(torch.arange(len(table)))


def arrays(folder: str = "out") -> tuple[list[np.ndarray], list[np.ndarray]]:
    names = (f"{folder}/inputs", f"{folder}/targets")
    inputs, targets = ([np.load(f) for f in sorted(Path(n).iterdir())] for n in names)
    return inputs, targets


@pytest.mark.few(13)
@pytest.mark.parametrize("rows_per_shard", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", ["price", "kind", ["size", "price"]], ids=str)
def test_the_numbers_are_those_of_reading_the_file(target, dtype, rows_per_shard) -> None:
    options = {"categorical": ["room"]}
    convert("t.csv", Path("out"), target, dtype=dtype, rows_per_shard=rows_per_shard, **options)
    loaded = read_csv("t.csv", target, **options)
    inputs, targets = arrays()
    full, ragged = divmod(7, rows_per_shard)
    sizes = [rows_per_shard] * full + [ragged] * (ragged > 0)
    assert [len(part) for part in inputs] == [len(part) for part in targets] == sizes
    number = getattr(torch, dtype)
    assert torch.equal(torch.from_numpy(np.concatenate(inputs)), loaded.inputs.to(number))
    found = torch.from_numpy(np.concatenate(targets))
    expected = loaded.targets if target == "kind" else loaded.targets.to(number)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    said = json.loads(Path("out/data.json").read_text())
    assert said["num_samples"] == 7
    assert said["class_names"] == (["x", "y", "z"] if target == "kind" else None)
    assert [c["name"] for c in said["columns"]] == [c.name for c in loaded.columns]
    assert [c["categories"] for c in said["columns"]] == [c.categories for c in loaded.columns]


def train(config: str, name: str) -> bytes:
    Path(f"{name}.yaml").write_text(config, "utf-8")
    assert main(["--config", f"{name}.yaml", "--output-dir", name]) == 0
    return Path(name, "model.safetensors").read_bytes()


@pytest.mark.parametrize("loader", ["batch", "sample", "{name: minibatch, batch_size: 3}"])
@pytest.mark.parametrize(("target", "loss"), [("price", "mse"), ("kind", "cross_entropy")])
def test_training_on_it_has_the_bits_of_training_on_the_file(loader, target, loss, capsys) -> None:
    assert main(["convert", "t.csv", "out", "--target", target, "--rows-per-shard", "2"]) == 0
    config = CONFIG.replace("{name: minibatch, batch_size: 3}", loader).replace("mse", loss)
    of_file = config.replace("mapped, path: out", f"csv, path: t.csv, target: {target}")
    assert train(config, "mapped") == train(of_file, "csv")
    done = [json.loads(Path(f"{n}/preprocessing.json").read_text()) for n in ("mapped", "csv")]
    assert done[0] == done[1]


def test_a_prepared_part_is_standardised_by_its_own_statistics() -> None:
    convert("t.csv", Path("out"), "price", dtype="float64")
    settings = ", standardize: true, standardize_targets: true, validation_fraction: 0.3}"
    Path("a.yaml").write_text(CONFIG.replace("out}", "out" + settings), "utf-8")
    config, _ = load_config("a.yaml")
    data = prepare_data(config)
    (training,), (validation,) = BatchLoader(data.training), BatchLoader(data.validation)
    assert (len(training), len(validation)) == (5, 2)
    for part in training:
        constant = (part == part[0]).all(dim=0)
        assert torch.allclose(part.mean(0), torch.zeros(1, dtype=torch.float64), atol=1e-12)
        deviation = torch.where(constant, 1.0, part.std(0, correction=0))
        assert torch.allclose(deviation, torch.ones(1, dtype=torch.float64), atol=1e-12)
    prices = data.preprocessing.restore_targets(torch.cat([training.targets, validation.targets]))
    assert sorted(prices[:, 0].tolist()) == pytest.approx([i + 0.5 for i in range(7)], abs=1e-12)
    rows = read_csv("t.csv", "price").inputs
    by_price = prices[:, 0].argsort()
    ready = torch.cat([training.inputs, validation.inputs])[by_price]
    assert torch.allclose(ready, data.preprocessing.apply(rows), atol=1e-12)
    assert len(list(MiniBatchLoader(data.training, 2))) == 3


def test_statistics_in_one_pass_are_those_in_two_far_from_zero() -> None:
    rows = 1e8 + torch.randn(
        1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    moments = Moments("inputs")
    for part in torch.split(rows, [1, 2, 500, 497]):
        moments.add(part)
    mean, std = moments.usable()
    assert mean == pytest.approx(np.mean(rows.numpy(), axis=0).tolist(), rel=1e-14)
    assert std == pytest.approx(np.std(rows.numpy(), axis=0).tolist(), rel=1e-9)


def test_the_closing_line(capsys) -> None:
    assert main(["convert", "t.csv", "out", "--target", "price"]) == 0
    assert capsys.readouterr() == (
        "",
        "converted 7 rows; train with data: {source: mapped, path: out}\n",
    )
    assert sorted(p.name for p in Path().iterdir()) == ["out", "t.csv"]


def test_an_empty_folder_may_be_written_to() -> None:
    Path("out").mkdir()
    convert("t.csv", Path("out"), "price")
    assert len(arrays()[0]) == 1


def refused(capsys, *arguments: str) -> str:
    before = sorted(Path().rglob("*"))
    assert main(["convert", *arguments]) == 2
    assert sorted(Path().rglob("*")) == before  # nothing was left behind
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.rstrip("\n")


def test_what_the_command_refuses(capsys) -> None:
    Path("full").mkdir()
    Path("full/a").write_text("")
    price = ("--target", "price")
    assert refused(capsys, "t.csv", "full", *price) == (
        "command line:1:1: OUT: full: is there already; give a new or an empty directory"
    )
    assert refused(capsys, "t.csv", "t.csv", *price) == (
        "command line:1:1: OUT: t.csv: is there already; give a new or an empty directory"
    )
    assert refused(capsys, "t.csv", "full/a/b", *price) == (
        "command line:1:1: OUT: full/a/b: can't be written: Not a directory"
    )
    assert refused(capsys, "u.csv", "out", *price) == (
        "command line:1:1: TABLE: u.csv: file not found; paths are relative to the working "
        "directory"
    )
    assert refused(capsys, "t.csv", "out", "--target", "prize") == (
        "command line:1:1: TABLE: t.csv: has no column 'prize'; did you mean price?"
    )
    assert refused(capsys, "t.csv", "out", *price, "--rows-per-shard", "0") == (
        "command line:1:1: --rows-per-shard: must be >= 1, got 0"
    )
    assert refused(capsys, "t.csv", "out", *price, "--delimiter", "::") == (
        "command line:1:1: --delimiter: must be one character, got '::'"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,red", "line 9 has 2 cells, but the header has 5"),
        (
            "1,red,x,0,",
            "missing cells: 1 of 8 in 'price' (first in line 9); missing: drop leaves those rows "
            "out; missing targets can't be filled in",
        ),
        (
            "nan,red,x,0,1",
            "missing cells: 1 of 8 in 'size' (first in line 9); missing: drop leaves those rows "
            "out; missing: mean, median or most_frequent fills them in from the training part (of "
            "text always most_frequent), and indicator: true adds inputs that say where",
        ),
        (
            "1e39,red,x,0,1",
            "line 9, column 'size' is 1e+39, which float32 does not hold; use float64",
        ),
    ],
)
def test_rows_that_can_not_be_converted_leave_nothing(capsys, row, said) -> None:
    Path("t.csv").write_text(Path("t.csv").read_text() + row + "\n")
    told = refused(capsys, "t.csv", "out", "--target", "price")
    assert told == f"command line:1:1: TABLE: t.csv: {said}"


def test_a_column_of_names_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(convert_module, "MOST_CATEGORIES", 5)
    Path("n.csv").write_text("name,y\n" + "".join(f"n{i},{i}\n" for i in range(6)))
    with pytest.raises(DataError) as error:
        convert("n.csv", Path("out"), "y")
    assert str(error.value) == (
        "n.csv: column 'name' has 6 categories, more than 5; exclude it, or train on the table "
        "itself"
    )


def test_ctrl_c_leaves_nothing_under_the_name() -> None:
    told = []

    def interrupt(nbytes: int) -> None:
        told.append(nbytes)
        if len(told) == 5:  # the table is read in three pieces: in the second pass
            assert [p.name[:5] for p in Path().glob(".*")] == [".out."]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert("t.csv", Path("out"), "price", advance=interrupt)
    assert [p.name for p in Path().iterdir()] == ["t.csv"]


def test_progress_counts_both_passes() -> None:
    told: list[int] = []
    convert("t.csv", Path("out"), "price", advance=told.append)
    assert sum(told) == 2 * Path("t.csv").stat().st_size


def test_a_file_that_changes_meanwhile_is_noticed() -> None:
    told = []

    def add_a_row(nbytes: int) -> None:
        told.append(nbytes)
        if len(told) == 3:  # at the end of the first pass
            Path("t.csv").write_text(Path("t.csv").read_text() + "1,red,x,0,1\n")

    with pytest.raises(DataError) as error:
        convert("t.csv", Path("out"), "price", advance=add_a_row)
    assert str(error.value) == "t.csv: changed while it was read; start again"
    assert not Path("out").exists()


def folder_fault(capsys) -> str:
    Path("a.yaml").write_text(CONFIG, "utf-8")
    assert main(["--config", "a.yaml"]) == 2
    return capsys.readouterr().err.rstrip("\n")


def test_folders_that_are_no_converted_ones(capsys) -> None:
    Path("out").mkdir()
    assert folder_fault(capsys) == (
        "a.yaml:1:7: data: out: is not a folder that `python -m gdtrain convert` wrote; "
        "it has no data.json"
    )
    Path("out").rmdir()
    convert("t.csv", Path("out"), "price", rows_per_shard=3)
    Path("out/targets/000001.npy").unlink()
    assert folder_fault(capsys) == (
        "a.yaml:1:7: data: out/targets: holds 4 rows, but 7 were converted; convert again"
    )
    Path("out/data.json").write_text('{"num_samples": "many"}')
    assert folder_fault(capsys).startswith(
        "a.yaml:1:7: data: out/data.json: does not describe a converted folder; num_samples: "
    )


def test_targets_that_do_not_fit_the_loss_are_found_by_their_row(capsys) -> None:
    convert("t.csv", Path("out"), "price", rows_per_shard=3)
    Path("a.yaml").write_text(CONFIG.replace("mse", "cross_entropy"), "utf-8")
    assert main(["--config", "a.yaml"]) == 2
    assert capsys.readouterr().err == (
        "a.yaml:1:7: data: targets: row 0 is 0.5; class labels must be whole numbers 0, 1, …, "
        "or use a loss for numbers such as mse\n"
    )


def test_the_whole_batch_is_never_read_where_microbatches_do(capsys, monkeypatch) -> None:
    monkeypatch.setattr(mapped, "LAZY_BYTES", 1)
    assert main(["convert", "t.csv", "out", "--target", "price"]) == 0
    config = CONFIG.replace("{name: minibatch, batch_size: 3}", "batch\nmicrobatch_size: 2")
    of_file = config.replace("mapped, path: out", "csv, path: t.csv, target: price")
    assert train(config, "mapped") == train(of_file, "csv")
    assert main(["--config", "mapped.yaml", "--dry-run"]) == 0
