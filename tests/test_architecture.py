"""The house: imports go down the list of rooms only, and each file says what it is for."""

import ast
from pathlib import Path

import pytest

import gdtrain

PACKAGE = Path(gdtrain.__file__).parent
# From the top down. A file may import from its own room and from those below it.
ROOMS = [
    "cli",
    "config",
    "analysis",
    "output",
    "checkpoint",
    "training",
    "data",
    "errors",
]
TOP = ("__main__",)
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    part = module.split(".")[1]
    return "cli" if part in TOP else part


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: imports are absolute"
            if node.module == "gdtrain":
                found |= {f"gdtrain.{alias.name}" for alias in node.names}
            elif node.module:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("gdtrain.") and "__version__" not in name}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_only_go_down(file: Path) -> None:
    relative = file.relative_to(PACKAGE)
    if str(relative) == "__init__.py":
        return  # gives all public names, lazily
    here = "cli" if str(relative.with_suffix("")) in TOP else relative.parts[0].removesuffix(".py")
    up = [
        module
        for module in imported_modules(file)
        if ROOMS.index(room_of(module)) < ROOMS.index(here)
    ]
    assert up == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_opens_with_a_sentence(file: Path) -> None:
    text = file.read_text("utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert first.endswith("."), "the first line says in one sentence what the file is for"


def test_the_loop_does_not_know_which_form_it_runs() -> None:
    forms = ("BatchLoader", "SampleLoader", "MiniBatchLoader")
    knowing = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Name) and node.id in forms
    }
    assert knowing <= {"data/loaders/forms.py", "config/build.py", "__init__.py"}


def test_every_public_name_can_be_imported() -> None:
    assert sorted(gdtrain.__all__) == gdtrain.__all__
    assert set(gdtrain.__all__) <= set(dir(gdtrain))  # in a fresh notebook too
    assert [name for name in gdtrain.__all__ if not hasattr(gdtrain, name)] == []
    with pytest.raises(AttributeError, match=r"^module 'gdtrain' has no attribute 'nothing'$"):
        _ = gdtrain.nothing
