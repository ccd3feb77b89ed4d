"""The metric that early stopping, kept weights and kept checkpoints go by."""

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, Checkpoints, EarlyStopping, KeepBest, Trainer, Validation
from gdtrain.errors import ConfigError

X = torch.linspace(-1, 1, 8).view(8, 1)
DATA = BatchLoader((X, 2 * X))


def fitted(callback, epochs=2, metrics=("rmse",)):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callbacks = [Validation(DATA), callback]
    Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        DATA,
        metrics=list(metrics),
        callbacks=callbacks,
        device="cpu",
    ).fit(epochs)
    return callback


@pytest.mark.parametrize(
    ("name", "end"),
    [("val_los", "; did you mean val_loss?"), ("val_rsme", "; did you mean val_rmse?"), ("zz", "")],
)
def test_a_name_that_no_epoch_has_is_told_at_the_end(name, end, tmp_path, caplog):
    fitted(EarlyStopping(name))
    fitted(KeepBest(name))
    fitted(Checkpoints(tmp_path, keep_best=name))
    assert caplog.messages == [
        f"early stopping: no epoch had {name}, so nothing could stop the run by it{end}",
        f"KeepBest: no epoch had {name}, so no weights were kept{end}",
        f"keep_best: no epoch had {name}, so no checkpoint was kept as the best{end}",
    ]


def test_a_name_that_an_epoch_has_is_not_told_of(tmp_path, caplog):
    for callback in (KeepBest("val_rmse"), Checkpoints(tmp_path, keep_best="val_loss")):
        fitted(callback)
    fitted(Checkpoints(tmp_path / "none", every_n_epochs=1))
    assert caplog.messages == []


@pytest.mark.parametrize("make", [EarlyStopping, KeepBest])
def test_a_mode_is_min_or_max(make):
    with pytest.raises(ConfigError, match=r"^mode: must be min or max, got 'best'$"):
        make("val_loss", mode="best")


def test_no_metric_is_called_loss():
    model = nn.Linear(1, 1)
    with pytest.raises(ConfigError) as caught:
        Trainer(
            model,
            nn.MSELoss(),
            torch.optim.SGD(model.parameters(), lr=0.1),
            DATA,
            metrics={"loss": lambda outputs, targets: 1.0},
        )
    assert str(caught.value) == "metrics: 'loss' is the loss itself; name the metric otherwise"
