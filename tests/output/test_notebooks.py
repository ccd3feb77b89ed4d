"""What a notebook shows of objects, and what it completes: short texts, columns by key."""

import logging
import sys
from types import ModuleType

import pytest
import torch
from helpers.paths import CONFIGS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, PhasedLoader, SampleLoader, Trainer
from gdtrain.cli.main import main
from gdtrain.errors import MissingPackageError, ModelError

X = torch.linspace(-1, 1, 40)[:, None]
Y = 3 * X


def make(lr: float = 0.1, loader=None, **options) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = loader or MiniBatchLoader((X, Y), 8)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", **options)


def phased() -> PhasedLoader:
    return PhasedLoader([(2, SampleLoader((X, Y))), (None, BatchLoader((X, Y)))])


def compared(count: int):
    return gdtrain.compare({f"a form with a long name, {n}": make for n in range(count)}, epochs=1)


SHOWN = {
    "Trainer": lambda: (
        make(),
        "Trainer(Linear of 2 parameters, MSELoss, SGD, MiniBatchLoader(40 samples, 5 updates an "
        "epoch, batch_size=8, order=reshuffle, seed=0), on cpu; 0 epochs, 0 updates)",
    ),
    "batch": lambda: (
        BatchLoader((X, Y), order="shuffle_once", seed=3),
        "BatchLoader(40 samples, 1 update an epoch, order=shuffle_once, seed=3)",
    ),
    "sample": lambda: (
        SampleLoader((X, Y), order=[3, 1]),
        "SampleLoader(40 samples, 2 updates an epoch, order=Tensor, seed=0)",
    ),
    "phased": lambda: (
        phased(),
        "PhasedLoader(SampleLoader until epoch 2, then BatchLoader; 40 samples, 40 updates in the "
        "first epoch)",
    ),
    "Comparison": lambda: (
        compared(2),
        "Comparison(done: a form with a long name, 0, a form with a long name, 1; print it for the "
        "table)",
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_what_a_cell_shows(kind: str) -> None:
    value, shown = SHOWN[kind]()
    assert repr(value) == shown


@pytest.mark.parametrize("value", [lambda: compared(40), lambda: gdtrain.lr_range(make())])
def test_what_a_cell_shows_is_short(value) -> None:
    shown = repr(value())
    assert len(shown) < 400
    assert "\n" not in shown
    assert " at 0x" not in shown


def test_a_history_by_key_and_by_row() -> None:
    history = make(validation=BatchLoader((X, Y))).fit(3)
    assert history["val_loss"] == history.val_loss == [record["val_loss"] for record in history]
    assert [record["epoch"] for record in history[1:]] == [2, 3]
    assert history[-1] is history.epochs[2]
    with pytest.raises(AttributeError, match=r"^history has no column 'nothing'; it has: epoch, "):
        history["nothing"]
    with pytest.raises(IndexError):
        history[3]


def test_tab_offers_public_names_and_modules() -> None:
    offered = {name for name in dir(gdtrain) if not name.startswith("_")}
    assert set(gdtrain.__all__) <= offered
    for name in offered - set(gdtrain.__all__):
        value = getattr(gdtrain, name)
        assert isinstance(value, ModuleType)
        assert value.__name__ == f"gdtrain.{name}"


def test_a_history_as_a_data_frame(monkeypatch) -> None:
    history = make().fit(3)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pandas is not installed; pip install pandas"):
        history.to_pandas()
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["train_loss"].tolist() == history.train_loss
    assert frame["epoch"].tolist() == [1, 2, 3]


def test_results_are_tables_in_a_notebook_and_nothing_in_them_is_obeyed() -> None:
    compared_forms = gdtrain.compare({"<b>one</b>": make, "two": make}, epochs=1)
    tables = [make().fit(1), compared_forms, gdtrain.lr_range(make())]
    for table in tables:
        html = table._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == html.count("</tr>") >= 2
    assert "&lt;b&gt;one&lt;/b&gt;" in compared_forms._repr_html_()
    assert "<b>" not in compared_forms._repr_html_()


def test_a_run_that_is_read_back_is_shown_in_a_line(tmp_path) -> None:
    config = str(CONFIGS / "minibatch.yaml")
    assert main(["--config", config, "epochs=1", "--output-dir", str(tmp_path / "run")]) == 0
    run = gdtrain.load_run(tmp_path / "run")
    assert repr(run) == (
        "TrainedRun(model mlp of 19,210 parameters, loss cross_entropy, data digits, inputs [64], "
        "epochs 1)"
    )
    assert "mlp of 19,210 parameters" in run._repr_html_()


def test_a_fit_that_has_nothing_to_do_says_so(caplog) -> None:
    trainer = make()
    trainer.fit(3)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(3)
        trainer.fit(2)
        trainer.fit(0)
    assert [record.getMessage() for record in caplog.records] == [
        "nothing to train: of 3 epochs, 3 are done; to train longer, give a larger total",
        "nothing to train: of 2 epochs, 3 are done; to train longer, give a larger total",
    ]


def test_a_data_loader_of_torch_is_answered_with_what_to_write() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    with pytest.raises(ModelError, match=r"loader: a torch DataLoader has .*MiniBatchLoader\(d"):
        make(loader=loader)
