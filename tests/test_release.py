"""The version, the changelog and the metadata of the package agree."""

import re
import tomllib

from helpers.paths import ROOT

from gdtrain import __version__


def test_the_changelog_begins_with_the_version() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if __version__.endswith(".dev0"):
        assert sections[0] == "Unreleased"
    else:
        assert re.fullmatch(rf"{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", sections[0])
    assert not [name for name in sections[1:] if "nreleased" in name]


def test_the_changelog_has_the_sections_that_are_usual() -> None:
    kinds = set(re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_pythons_that_are_promised_are_those_that_are_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert project["requires-python"] == f">={named[0]}"
