"""The notebooks in examples/ are saved as they run: the same kinds of output, the same numbers."""

import os
import re

import pytest
from helpers.paths import ROOT

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def outputs(cell) -> dict[str, str | int]:
    """What a cell printed, and how many pictures and errors it has."""
    kinds = [output.output_type for output in cell.outputs]
    texts = [output.text for output in cell.outputs if output.output_type == "stream"]
    pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
    return {"text": "".join(texts), "pictures": pictures, "errors": kinds.count("error")}


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_with_what_it_shows(path) -> None:
    notebook = nbformat.read(path, 4)
    assert not [c for c in notebook.cells if c.source.startswith("#")]  # the page has the headings
    cells = code(notebook)
    assert any(outputs(cell)["pictures"] for cell in cells)
    for cell in cells:
        assert ("print(" in cell.source) == bool(outputs(cell)["text"])
        assert ("plt.show()" in cell.source) == (outputs(cell)["pictures"] == 1)
        assert outputs(cell)["errors"] == 0
        assert bool(cell.metadata.get("alt")) == ("plt.show()" in cell.source)


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_what_it_was_saved_with(path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    saved, made = nbformat.read(path, 4), nbformat.read(path, 4)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    nbclient.NotebookClient(made, timeout=600).execute()
    for before, now in zip(code(saved), code(made), strict=True):
        assert outputs(now)["pictures"] == outputs(before)["pictures"]
        words, again = (re.split(r"(\d+(?:\.\d+)?)", outputs(c)["text"]) for c in (before, now))
        assert [w.split() for w in again[::2]] == [w.split() for w in words[::2]]
        assert [float(n) for n in again[1::2]] == pytest.approx(
            [float(n) for n in words[1::2]], rel=0.1
        )
