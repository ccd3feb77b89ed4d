"""Every command and every block of code in README.md and docs/ does what is said there."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from gdtrain.cli.main import main
from gdtrain.config.load import check, load_config
from gdtrain.config.yaml_source import read_text

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(file.relative_to(ROOT)): file.read_text("utf-8")
    for file in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
}
FENCED = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page, and the prose between it and the block before it."""

    language: str
    text: str
    lead: str = ""


def blocks(page: str) -> list[Block]:
    pieces = FENCED.split(PAGES[page])
    return [Block(*pieces[i : i + 2], lead=pieces[i - 1].strip()) for i in range(1, len(pieces), 3)]


def of_all_pages(language: str) -> list[tuple[str, str]]:
    return [(p, block.text) for p in PAGES for block in blocks(p) if block.language == language]


COMMANDS = [(page, line) for page, text in of_all_pages("bash") for line in text.splitlines()]
INSTALLS = list(dict.fromkeys(line for _, line in COMMANDS if line.startswith("pip ")))
# Pages that are read one after the other, in one directory; the others are read when needed.
IN_TURN = ["README.md", *(page for page in PAGES if page.startswith("docs/tutorial/"))]
READINGS = [IN_TURN, *([page] for page in PAGES if page not in IN_TURN)]
# The run of 14,380 updates; of its results no page shows more than the table of the three forms.
LONG_RUN = "python -m gdtrain --config configs/sample.yaml"
# What a configuration needs besides a fragment that is shown.
REST = {
    "data": "{source: digits, validation_fraction: 0.2}",
    "model": "mlp",
    "loss": "cross_entropy",
    "loader": "sample",
    "optimizer": "{lr: 0.1}",
    "epochs": "20",
}


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """The working directory: one with the configs, the examples and a table."""
    for folder in ("configs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    rows = [f"{40 + i},{'old' if i % 3 else 'new'},{1000 * i + 5 * (i % 3)}" for i in range(50)]
    (tmp_path / "houses.csv").write_text("area,age,price\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_lines_are_those_that_ci_runs() -> None:
    assert len(INSTALLS) == 2
    assert all(line in PAGES["README.md"] for line in INSTALLS)
    assert INSTALLS[0].endswith("&& python -m gdtrain --config configs/minibatch.yaml")
    assert INSTALLS[1].endswith("&& python -m pytest -n 2")
    assert "grep '^pip install -c constraints.txt' README.md" in (ROOT / ".ci/run").read_text()


def has_code(page: str) -> bool:
    return bool({block.language for block in blocks(page)} & {"python", "bash"})


@pytest.mark.few(2)
@pytest.mark.parametrize("pages", [p for p in READINGS if any(map(has_code, p))], ids=" ".join)
def test_commands_and_python_do_what_is_said_from_top_to_bottom(pages, clone, capsys) -> None:
    """In one test for a reading, since later blocks meet what earlier ones have made."""
    everything = [block for page in pages for block in blocks(page)]
    installed = set()
    for number, block in enumerate(everything):
        if block.language == "python":
            script = clone / f"block_{number}.py"
            script.write_text(block.text, "utf-8")
            capsys.readouterr()
            runpy.run_path(str(script))
        elif block.language == "yaml" and (name := re.match(r"# ([\w.-]+\.yaml)\n", block.text)):
            (clone / name[1]).write_text(block.text, "utf-8")
        elif block.language == "bash":
            for command in block.text.splitlines():
                if command not in installed:
                    run(command, capsys)
                installed |= {command} & set(INSTALLS)
        elif block.lead == "prints":
            assert masked(printed(capsys)) == masked(block.text)
        elif block.lead.endswith("ends with"):
            assert masked(printed(capsys)).endswith(masked(block.text))


def run(command: str, capsys) -> None:
    """Run a command, of one that installs first what comes then; tests are not run again."""
    command = command.split(" && ")[-1] if command in INSTALLS else command
    if command.startswith("python -m pytest"):
        return
    capsys.readouterr()
    if command.startswith("python examples/"):
        runpy.run_path(command.removeprefix("python "), run_name="__main__")
        return
    python, dash_m, package, *arguments = shlex.split(command)
    if command == LONG_RUN:
        arguments.append("epochs=1")
    assert (python, dash_m, package) == ("python", "-m", "gdtrain")
    assert main(arguments) == 0, (command, capsys.readouterr().err)


@pytest.mark.long
def test_the_shipped_forms_end_as_the_table_says(clone, capsys) -> None:
    (row,) = re.findall(r"^\| … on the digits \|(.*)\|$", PAGES["README.md"], re.MULTILINE)
    for form, cell in zip(("batch", "sample", "minibatch"), row.split("|"), strict=True):
        assert main(["--config", f"configs/{form}.yaml", "--output-dir", f"runs/{form}"]) == 0
        summary = json.loads(Path(f"runs/{form}/summary.json").read_text())
        accuracy = summary["validation"]["accuracy"]
        assert f"{summary['steps']:,} updates, {100 * accuracy:.0f} %" == cell.strip()


def test_no_two_pages_write_into_each_others_directories() -> None:
    """So that a reader may follow all pages, in any order, in one clone."""
    pages: dict[str, set[str]] = {}
    unnamed = set()  # the directories of a configuration's numbered runs, as runs/minibatch
    for page, command in COMMANDS:
        if given := re.search(r"--output-dir (\S+)", command):
            pages.setdefault(given[1], set()).add(page)
        elif "--dry-run" not in command:
            unnamed |= {f"runs/{name}" for name in re.findall(r"--config \S*?(\w+)\.yaml", command)}
    assert {path: of for path, of in pages.items() if len(of) > 1 or path in unnamed} == {}


def printed(capsys) -> str:
    return "".join(capsys.readouterr())


def masked(text: str) -> str:
    """The text without what differs from machine to machine: times, and digits after the second."""
    return re.sub(r"(\d+\.\d{2})\d+(e-\d+)?|\d\.\de-\d+|[\d.]+ s\b", r"\1…", text)


YAML = of_all_pages("yaml")


@pytest.mark.parametrize(("page", "fragment"), YAML, ids=[page for page, _ in YAML])
def test_yaml_that_is_shown_is_valid_beside_the_rest_of_a_configuration(page, fragment) -> None:
    there = set(re.findall(r"^(\w+):", fragment, flags=re.MULTILINE))
    if "phases" in there:  # each of which has one of its own
        there.add("optimizer")
    missing = [key for key in REST if key not in there]
    check(read_text("".join(f"{key}: {REST[key]}\n" for key in missing) + fragment, page))


def test_the_faults_that_are_shown_are_those_that_are_printed(clone, capsys) -> None:
    shown = next(text for _, text in of_all_pages("text") if "unknown key" in text)
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


def test_the_index_the_configuration_reference_and_the_schema_file_are_up_to_date(capsys) -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
    remedy = "run: python scripts/write_reference.py"
    assert written["index_text"]() == (ROOT / "gdtrain" / "parts.json").read_text("utf-8"), remedy
    page = PAGES["docs/reference/configuration.md"]
    assert "| `batch_size` |" in page
    assert written["with_reference"](page) == page, remedy
    assert written["schema_text"]() == (ROOT / "configs" / "schema.json").read_text("utf-8"), remedy
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == written["schema_text"]()


def test_every_shipped_config_is_valid_and_names_its_schema() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    for file in files:
        assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
        config, _ = load_config(file)
        form = file.stem.removeprefix("teaching_").replace("edge_of_stability", "batch")
        assert config.loader.name == form
        assert read_text(file.read_text(), file.name).data["loader"]["name"] == form


@pytest.mark.parametrize("prefix", ["", "teaching_"])
def test_the_three_forms_differ_in_the_loader_and_how_it_descends_alone(prefix: str) -> None:
    """So that their curves may share a picture."""
    shared = ("seed", "data", "model", "loss")
    configs = [
        read_text((ROOT / "configs" / f"{prefix}{form}.yaml").read_text("utf-8"), form).data
        for form in ("batch", "sample", "minibatch")
    ]
    assert len({str([config[key] for key in shared]) for config in configs}) == 1


def test_the_readme_is_short_and_the_index_names_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    linked = {target.partition("#")[0] for target in links("docs/index.md")}
    assert linked == {str(f.relative_to(DOCS)) for f in DOCS.rglob("*.md")} - {"index.md"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target
    named = re.findall(r"`((?:gdtrain|configs|scripts|docs|examples)/[\w/]+\.\w+)`", PAGES[page])
    assert [name for name in named if not (ROOT / name).exists()] == []


def links(page: str) -> list[str]:
    """Where the links and the images of a page lead, other pages of the web left out."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", PAGES[page]))
    return [target for target in found if "://" not in target]


def anchors(text: str) -> set[str]:
    """The headings as a Markdown viewer names them in links."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
