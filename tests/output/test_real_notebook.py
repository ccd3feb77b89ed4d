"""A real notebook, run by a real kernel: what its cells show."""

from __future__ import annotations

import os

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

CELLS = [
    """
import torch
from torch import nn
from gdtrain import BatchLoader, MiniBatchLoader, Trainer

torch.manual_seed(0)
X = torch.randn(200, 2)
y = X @ torch.tensor([[2.0], [-1.0]])
loader = MiniBatchLoader((X, y), 20)
loader
""",
    """
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trainer = Trainer(model, "mse", optimizer, loader, validation=BatchLoader((X, y)), metrics=["mae"])
trainer
""",
    "trainer.fit(4)",
    "trainer.lr = 0.01\ntrainer.fit(4)",
    "trainer.history[-1], trainer.history['val_mae'][-1] < 0.5",
    "trainer.history.plot()",
    "MiniBatchLoader(X, y, 20)",
]


@pytest.fixture(scope="module")
def cells():
    """The cells of the notebook after it has run, top to bottom, errors allowed."""
    made = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=made)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    client = nbclient.NotebookClient(notebook, timeout=300, allow_errors=True)
    return client.execute().cells


def shown(cell) -> dict[str, str]:
    """What the cell's value is shown as, by the kind of text or picture."""
    (value,) = [out for out in cell.outputs if out.output_type in ("execute_result", "error")]
    return value.get("data") or {"error": f"{value['ename']}: {value['evalue']}"}


def test_objects_show_themselves_in_a_line(cells) -> None:
    assert shown(cells[0])["text/plain"] == (
        "MiniBatchLoader(200 samples, 10 updates an epoch, batch_size=20, order=reshuffle, seed=0)"
    )
    assert shown(cells[1])["text/plain"].startswith("Trainer(Linear of 3 parameters, MSELoss, SGD,")


def test_a_history_is_a_table(cells) -> None:
    html = shown(cells[2])["text/html"]
    assert html.count("<tr>") == 5
    assert "<th>val_mae</th>" in html
    assert shown(cells[4])["text/plain"].endswith("True)")


def test_what_has_nothing_to_do_says_so(cells) -> None:
    texts = "".join(out.get("text", "") for out in cells[3].outputs)
    assert "nothing to train: of 4 epochs, 4 are done; " in texts


def test_a_picture_is_shown(cells) -> None:
    pytest.importorskip("matplotlib")
    assert len(shown(cells[5])["image/png"]) > 5000


def test_a_wrong_first_guess_is_answered_in_a_line(cells) -> None:
    assert shown(cells[6])["error"] == (
        "ConfigError: data: inputs and targets are one argument: MiniBatchLoader((X, y), 32), with "
        "options by name"
    )
