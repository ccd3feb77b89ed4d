"""Every command and every block of code in the README does what the README says."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from gdtrain.cli import main
from gdtrain.config.load import check, load_config
from gdtrain.config.yaml_source import read_text

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [block for named, block in BLOCKS if named == language]


INSTALLS = [
    line for block in blocks("bash") for line in block.splitlines() if line[:11] == "pip install"
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A directory with the configs and a table, in which all of the README is run, in its order."""
    directory = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", directory / "configs")
    rows = [f"{40 + i},{'old' if i % 3 else 'new'},{1000 * i + 5 * (i % 3)}" for i in range(50)]
    (directory / "houses.csv").write_text("area,age,price\n" + "\n".join(rows) + "\n")
    return directory


def test_the_two_lines_are_those_that_ci_runs() -> None:
    assert len(INSTALLS) == 2
    assert INSTALLS[0].endswith("&& python -m gdtrain --config configs/minibatch.yaml")
    assert INSTALLS[1].endswith("&& python -m pytest -n 2")
    assert "grep '^pip install -c constraints.txt' README.md" in (ROOT / ".ci/run").read_text()


def test_commands_and_python_do_what_is_said_from_top_to_bottom(clone, monkeypatch, capsys):
    """In one test, since later ones go on with what earlier ones have made."""
    monkeypatch.chdir(clone)
    for number, (language, block) in enumerate(BLOCKS):
        if language == "python":
            script = clone / f"block_{number}.py"
            script.write_text(block, "utf-8")
            runpy.run_path(str(script))
        for command in block.splitlines() if language == "bash" else ():
            if command not in INSTALLS:
                python, dash_m, package, *arguments = shlex.split(command)
                assert (python, dash_m, package) == ("python", "-m", "gdtrain")
                assert main(arguments) == 0, (command, capsys.readouterr().err)


def test_the_yaml_of_the_csv_example_trains_on_such_a_file(clone, monkeypatch, capsys) -> None:
    monkeypatch.chdir(clone)
    block = next(block for block in blocks("yaml") if "houses.csv" in block)
    (clone / "houses.yaml").write_text(block)
    assert main(["--config", "houses.yaml"]) == 0
    assert "done: 50 epochs, 100 updates" in capsys.readouterr().err


def test_the_yaml_of_the_forms_is_valid_beside_the_rest_of_a_configuration() -> None:
    section = README.partition("## Variance-reduced and mixed forms\n")[2].partition("\n## ")[0]
    fragments = re.findall(r"^```yaml\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    rest = "data: digits\nmodel: mlp\nloss: cross_entropy\noptimizer: {lr: 0.1}\nepochs: 20\n"
    assert len(fragments) == 5
    for fragment in fragments:
        loader = "" if "loader:" in fragment else "loader: sample\n"
        check(read_text(rest + loader + fragment, "README.md"))


def test_the_faults_that_are_shown_are_those_that_are_printed(clone, monkeypatch, capsys) -> None:
    monkeypatch.chdir(clone)
    shown = next(block for block in blocks("text") if "unknown key" in block)
    (clone / "my.yaml").write_text(
        "data: digits\nmodel: mlp\nloss: cross_entropy\nepochs: 1\n"
        "loader: {  batch_sise: 8, name: minibatch, batch_size: 8}\n"
        "optimizer: {momentum: 0.9, lr: 0}\n".replace("momentum: 0.9, lr", "weight_decay: 1,lr")
    )
    assert main(["--config", "my.yaml"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert [re.sub(r":\d+: ", ": ", line) for line in printed] == [
        re.sub(r":\d+: ", ": ", line) for line in shown.splitlines()
    ]


def test_the_configuration_reference_and_the_schema_file_are_up_to_date(capsys) -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
    remedy = "run: python scripts/write_reference.py"
    assert written["with_reference"](README) == README, remedy
    assert written["schema_text"]() == (ROOT / "configs" / "schema.json").read_text("utf-8"), remedy
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == written["schema_text"]()


def test_every_shipped_config_is_valid_and_names_its_schema() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert [f.stem for f in files] == ["batch", "edge_of_stability", "minibatch", "sample"]
    for file in files:
        assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
        config, _ = load_config(file)
        form = "batch" if file.stem == "edge_of_stability" else file.stem
        assert config.loader.name == form
        assert read_text(file.read_text(), file.name).data["loader"]["name"] == form


def test_all_links_to_files_are_files() -> None:
    named = re.findall(r"`((?:gdtrain|configs|scripts)/[\w/]+\.\w+)`", README)
    assert [name for name in named if not (ROOT / name).exists()] == []
