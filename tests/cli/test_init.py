"""The command ``init``: what it writes runs as it is, and what is there stays."""

import io
import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
from helpers.paths import ROOT

from gdtrain.cli.init import EXAMPLES
from gdtrain.cli.main import main
from gdtrain.config.load import load_config

NUMBERS = "a,b,price\n" + "".join(f"{n * n},{n * n % 7},{2 * n + 0.5}\n" for n in range(40))
NAMES = "a;b;kind\n" + "".join(f"{n * n};{n % 3};{'even' if n % 2 else 'odd'}\n" for n in range(40))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [None, *EXAMPLES])
def test_an_example_runs(name: str | None, capsys) -> None:
    assert main(["init", *(["--example", name] if name else [])]) == 0
    written = f"{name or 'minibatch'}.yaml"
    assert capsys.readouterr().err == (
        f"written: {written}; train with: python -m gdtrain --config {written}\n"
    )
    assert main(["--config", written, "--dry-run"]) == 0


def test_examples_are_those_of_the_repository() -> None:
    text = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))["example_text"]
    for name in EXAMPLES:
        packaged = ROOT / "gdtrain" / "cli" / "examples" / f"{name}.yaml"
        assert packaged.read_text("utf-8") == text(name)


def test_a_file_with_numbers(capsys) -> None:
    Path("houses 2.csv").write_text(NUMBERS)
    assert main(["init", "--data", "houses 2.csv", "--target", "price"]) == 0
    config, _ = load_config("houses 2.yaml")
    assert (config.loss.name, config.data.standardize_targets) == ("mse", True)
    assert (
        main(["--config", "houses 2.yaml", "epochs=1", "log.picture=false", "--output-dir", "out"])
        == 0
    )


def test_a_file_with_classes_and_semicolons() -> None:
    Path("kinds.csv").write_text(NAMES)
    assert main(["init", "--data", "kinds.csv", "--target", "kind"]) == 0
    config, _ = load_config("kinds.yaml")
    assert config.loss.name == "cross_entropy"
    assert (
        main(["--config", "kinds.yaml", "epochs=1", "log.picture=false", "--output-dir", "out"])
        == 0
    )


def test_commands_to_copy_have_paths_in_quotes(capsys) -> None:
    assert main(["init", "--out", "my data.yaml"]) == 0
    assert capsys.readouterr().err == (
        "written: my data.yaml; train with: python -m gdtrain --config 'my data.yaml'\n"
    )


def test_what_is_there_stays(capsys) -> None:
    Path("minibatch.yaml").write_text("mine: true\n")
    assert main(["init"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: minibatch.yaml already exists and was not changed; move it first, or "
        "name another with --out\n"
    )
    assert main(["init", "--out", "conf/mine.yaml"]) == 2  # no such directory
    Path("conf").mkdir()
    assert main(["init", "--out", "conf/mine.yaml"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "written: conf/mine.yaml; train with: python -m gdtrain --config conf/mine.yaml"
    )
    assert main(["init", "--out", "conf/mine.yaml"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: conf/mine.yaml already exists and was not changed; move it first\n"
    )
    assert Path("minibatch.yaml").read_text() == "mine: true\n"


def test_columns_suggest_settings() -> None:
    lines = ["number;day;size;kind;note;price"]
    lines += [
        f"{n};2024-0{n % 9 + 1}-1{n % 3};{'' if n == 7 else f'{n},5'};{'ab'[n % 2]};n{n};{n},25"
        for n in range(80)
    ]
    Path("a.csv").write_text("\n".join([*lines, "80;2024-01-01;1,5;a;x;"]) + "\n")
    assert main(["init", "--data", "a.csv", "--target", "price"]) == 0
    data = load_config("a.yaml")[0].data
    assert (data.decimal, data.exclude, data.keep) == (",", ["number", "note"], ["day"])
    assert data.missing == {"size": "median", "price": "drop"}
    assert main(["--config", "a.yaml", "epochs=1", "log.picture=false", "--output-dir", "out"]) == 0


def test_that_a_cell_is_missing_may_be_all_that_a_column_says(capsys) -> None:
    lines = ["coupon,gift,few,many,price"]
    lines += [
        f"{'SAVE10' if n % 3 == 0 else ''},{'' if n else 1},{n * n if n % 20 else ''},"
        f"{n * n % 11 if n % 4 else 'NA'},{10 - 2 * (n % 3 == 0)}"
        for n in range(60)
    ]
    Path("shop.csv").write_text("\n".join(lines) + "\n")
    assert main(["init", "--data", "shop.csv", "--target", "price"]) == 0
    data = load_config("shop.yaml")[0].data
    assert (data.missing, data.indicator) == ("median", ["coupon", "gift", "many"])
    rest = ["epochs=40", "data.validation_fraction=0", "--output-dir", "out"]
    assert main(["--config", "shop.yaml", *rest]) == 0
    records = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "epoch"][-1]
    assert last["train_loss"] < 0.01  # of a variance of 1: the coupon alone says the price
    capsys.readouterr()
    main(["--config", "shop.yaml", "data.indicator=false", "--dry-run"])
    same = [line for line in capsys.readouterr().err.splitlines() if "the same in all rows" in line]
    assert [line.split()[0] for line in same] == ["coupon", "gift"]


WRITTEN = {
    "remarks above": ("# one\n# two\n" + NUMBERS, "price", "comment: \"#\"", "mse"),
    "a title above": ("Houses\n\n" + NUMBERS, "price", "skip_rows: 2", "mse"),
    "no header": (NUMBERS.partition("\n")[2], "column_3", "header: false", "mse"),
    "other quotes": (NUMBERS.replace("price", "'price'"), "price", "quote: \"'\"", "mse"),
    "ten classes": (
        "a,b,k\n" + "".join(f"{n * n},{n},{n % 10}\n" for n in range(90)),
        "k",
        "standardize: true",
        "cross_entropy",
    ),
    "days before months": (
        NUMBERS.replace("a,b", "a,day").replace(",0,", ",31.01.2020,").replace(",1,", ",1.2.2020,")
        .replace(",2,", ",2.2.2020,").replace(",4,", ",4.2.2020,"),
        "price",
        "exclude: [day]",
        "mse",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_how_a_file_is_written_becomes_settings(case: str) -> None:
    text, target, setting, loss = WRITTEN[case]
    Path("a.csv").write_text(text)
    assert main(["init", "--data", "a.csv", "--target", target]) == 0
    assert f"  {setting}" in Path("a.yaml").read_text()
    assert load_config("a.yaml")[0].loss.name == loss
    assert main(["--config", "a.yaml", "epochs=1", "log.picture=false", "--output-dir", "out"]) == 0


@pytest.mark.parametrize(("name", "encoding"), [("Preis (€)", "cp1252"), ("Preis \x81", "latin-1")])
def test_text_of_one_byte_a_letter_is_read(name: str, encoding: str) -> None:
    """As Excel writes it in Germany, with decimal commas and dates of other forms."""
    rows = [f"{'Köln' if n % 2 else 'Bonn'};{n}.9.2013;{n * n},5" for n in range(1, 21)]
    Path("a.csv").write_text("\n".join([f"Ort;Tag;{name}", *rows]), encoding=encoding)
    assert main(["init", "--data", "a.csv", "--target", name]) == 0
    data = load_config("a.yaml")[0].data
    assert (data.encoding, data.decimal, data.exclude) == (encoding, ",", ["Tag"])
    assert "  # a guess, as it is not UTF-8: look whether" in Path("a.yaml").read_text("utf-8")
    assert main(["--config", "a.yaml", "--dry-run"]) == 0


def test_several_targets() -> None:
    Path("a.csv").write_text(NUMBERS)
    assert main(["init", "--data", "a.csv", "--target", "b", "--target", "price"]) == 0
    assert load_config("a.yaml")[0].data.target == ["b", "price"]
    assert main(["--config", "a.yaml", "epochs=1", "log.picture=false", "--output-dir", "out"]) == 0


def test_what_is_to_be_corrected_is_told(capsys) -> None:
    Path("a.csv").write_text("x,y\n" + "".join(f'{n},"${n},000"\n' for n in range(1, 30)))
    assert main(["init", "--data", "a.csv", "--target", "y"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "correct this before training: a.csv: column 'y': 29 of 29 cells are not "
        "numbers, the first is '$1,000' in line 2; these look like amounts with a currency; "
    )
    assert second == (
        "written: a.yaml; when the table is corrected, train with: "
        "python -m gdtrain --config a.yaml"
    )
    assert load_config("a.yaml")[0].loss.name == "mse"


def test_each_fault_has_a_line_and_so_has_each_column_left_out(capsys) -> None:
    lines = [f'{1000 + n},0{n % 9 + 1}.13.2024,"${n},000",{n} kg,{n * n}' for n in range(1, 40)]
    Path("a.csv").write_text("\n".join(["order_no,day,paid,weight,y", *lines]) + "\n")
    assert main(["init", "--data", "a.csv", "--target", "y", "--out", "b.yaml"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in told] == [
        "excluded:",
        "excluded:",
        "correct",
        "correct",
        "written:",
    ]
    assert told[0] == "excluded: 'order_no' (counts the rows, from 1001 on)"
    assert told[1].startswith("excluded: 'day' ('02.13.2024' in line 2 is a date that")
    assert told[2].startswith("correct this before training: a.csv: column 'paid': 39 of 39")
    assert told[3].startswith("correct this before training: a.csv: column 'weight': ")
    assert all("(pip install pandas)" in line for line in told[2:4])
    assert load_config("b.yaml")[0].data.exclude == ["order_no", "day"]


@pytest.mark.parametrize("first", [-3, 0, 1, 7, 1000])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_running_numbers_are_left_out_from_wherever_they_begin(first: int, suffix: str) -> None:
    numbers = pd.read_csv(io.StringIO(NUMBERS))
    numbers.insert(1, "no", range(first, first + len(numbers)))
    numbers.insert(2, "day", pd.date_range("2024-01-01", periods=len(numbers)))
    path = f"a.{suffix}"
    numbers.to_csv(path, index=False) if suffix == "csv" else numbers.to_parquet(path)
    assert main(["init", "--data", path, "--target", "price"]) == 0
    data = load_config("a.yaml")[0].data
    assert (data.exclude, data.keep) == (["no"], ["day"])
    assert main(["--config", "a.yaml", "epochs=1", "log.picture=false", "--output-dir", "out"]) == 0


def test_names_of_few_rows_are_left_out(capsys) -> None:
    rows = [f"Student {n},{'yes' if n % 3 else 'no'},{n * n}" for n in range(20)]
    Path("a.csv").write_text("\n".join(["name,job,y", *rows, ",no,3"]))
    assert main(["init", "--data", "a.csv", "--target", "y"]) == 0
    told = capsys.readouterr().err.splitlines()[0]
    assert told == "excluded: 'name' (text with 20 different values in 21 rows)"
    assert load_config("a.yaml")[0].data.exclude == ["name"]
    Path("b.csv").write_text("\n".join(["name,y", *(f"{row[8:10]}x,1" for row in rows)]))
    assert main(["init", "--data", "b.csv", "--target", "y"]) == 0
    assert load_config("b.yaml")[0].data.exclude == []  # nothing else is there to learn from


def test_inputs_that_are_nothing_but_running_numbers_stay() -> None:
    Path("a.csv").write_text("x,z,y\n" + "".join(f"{n},{n + 9},{n * n}\n" for n in range(5, 30)))
    assert main(["init", "--data", "a.csv", "--target", "y"]) == 0
    assert load_config("a.yaml")[0].data.exclude == []


def test_digits_with_lines_below_are_no_numbers() -> None:
    Path("a.csv").write_text("x,y\n" + "1,1_0\n2,2_0\n" * 20)
    assert main(["init", "--data", "a.csv", "--target", "y"]) == 0
    assert load_config("a.yaml")[0].loss.name == "cross_entropy"


def test_names_of_files_are_printed_without_control_characters(capsys) -> None:
    Path("a\x1b[2J.csv").write_text(NUMBERS)
    assert main(["init", "--data", "a\x1b[2J.csv", "--target", "price"]) == 0
    assert "\x1b" not in capsys.readouterr().err


def test_a_directory_that_can_not_be_written_to_is_named(monkeypatch, capsys) -> None:
    monkeypatch.chdir("/proc")
    assert main(["init"]) == 2
    message = "minibatch.yaml can't be written: No such file or directory"
    assert capsys.readouterr().err == (
        f"command line:1:1: {message}; go to a directory where it can be\n"
    )


WRONG = {
    "data alone": (["--data", "a.csv"], "--target: missing; --data and --target go together"),
    "target alone": (["--target", "y"], "--data: missing; --data and --target go together"),
    "both": (
        ["--data", "a.csv", "--target", "y", "--example", "batch"],
        "--example: has no effect beside --data; remove one of the two",
    ),
    "no file": (
        ["--data", "none.csv", "--target", "y"],
        "--data: none.csv: file not found; paths are relative to the working directory",
    ),
    "no column": (
        ["--data", "a.csv", "--target", "z"],
        "--target: a.csv: has no column 'z'; it has x, y",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_refuses(case: str, capsys) -> None:
    Path("a.csv").write_text("x,y\n1,2\n")
    arguments, message = WRONG[case]
    assert main(["init", *arguments]) == 2
    assert capsys.readouterr().err == f"command line:1:1: {message}\n"
    assert [path.name for path in Path().iterdir()] == ["a.csv"]
