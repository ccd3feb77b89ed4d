"""Help: each command's fits a screen, and its examples run."""

import re
from pathlib import Path

import pytest

from gdtrain.cli.main import COMMANDS, main

# A user begins with init, and has run what the others look at.
FIRST = ("init", "train", "convert", "predict", "evaluate")
HOUSES = "area,age,price\n" + "".join(f"{40 + i},{i % 7},{900 * i + i % 3}\n" for i in range(50))


def shown(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS)
def test_it_fits_a_screen(command: str, capsys) -> None:
    lines = shown(command, capsys).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_that_of_training_names_every_command(capsys) -> None:
    listed = re.findall(r"^  ([a-z-]+)  +\S", shown("train", capsys), flags=re.MULTILINE)
    assert [name for name in listed if name in COMMANDS] == sorted(COMMANDS)


@pytest.mark.long
def test_the_examples_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("houses.csv").write_text(HOUSES)
    Path("new.csv").write_text("area,age\n61,3\n")
    for command in dict.fromkeys([*FIRST, *COMMANDS]):
        if command == "verify":  # which starts processes; test_verify.py runs it
            continue
        examples = re.findall(r"^  python -m gdtrain (.*)$", shown(command, capsys), re.MULTILINE)
        assert examples, command
        if command == "landscape":  # the run that it needs comes below
            examples.reverse()
        for example in examples:
            assert main(example.split()) == 0, (example, capsys.readouterr().err)
        if command == "init":
            for name in ("minibatch", "batch", "houses"):
                config = Path(f"{name}.yaml")
                text = re.sub(r"epochs: \d+", "epochs: 2", config.read_text())
                config.write_text(re.sub(r"hidden: \[\d+\]", "hidden: [4]", text))
            assert main(["--config", "houses.yaml", "--quiet"]) == 0
