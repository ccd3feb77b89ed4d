"""Losses, metrics and optimizers by the names that a configuration has for them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Trainer
from gdtrain.errors import ConfigError, ModelError

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
LABELS = (Y[:, 0] > 0).long()


def make(loss="mse", optimizer="adam", data=(X, Y), outputs=1, **options):
    torch.manual_seed(0)
    return Trainer(
        nn.Linear(2, outputs), loss, optimizer, BatchLoader(data), device="cpu", **options
    )


@pytest.mark.parametrize(
    ("name", "function"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)]
)
def test_a_loss_by_name(name, function):
    trainer = make(name, metrics=["mae"])
    expected = function(trainer.model(X), Y).item()
    mae = (trainer.model(X) - Y).abs().mean().item()
    assert trainer.evaluate() == pytest.approx({"loss": expected, "mae": mae}, rel=1e-6)


def test_an_accuracy_is_that_of_the_loss():
    trainer = make("cross_entropy", data=(X, LABELS), outputs=2, metrics="accuracy")
    right = trainer.model(X).argmax(1) == LABELS
    assert trainer.evaluate()["accuracy"] == float(right.double().mean())
    both = {"mine": "accuracy", "share": lambda output, targets: 0.5}
    found = make(nn.CrossEntropyLoss(), data=(X, LABELS), outputs=2, metrics=both).evaluate()
    assert (found["mine"], found["share"]) == (float(right.double().mean()), 0.5)


def test_a_metric_beside_a_loss_of_ones_own():
    class Own(Trainer):
        def compute_loss(self, batch):
            return (self.model(batch.inputs) - batch.targets).square().sum()

    torch.manual_seed(0)
    trainer = Own(nn.Linear(2, 1), None, "adam", BatchLoader((X, Y)), metrics=["mae"], device="cpu")
    expected = (trainer.model(X) - Y).abs().mean().item()
    assert trainer.evaluate()["mae"] == pytest.approx(expected)


def test_an_optimizer_by_name_trains_what_is_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    trainer = Trainer(model, "mse", "adam", BatchLoader((X, Y)), device="cpu")
    assert trainer.optimizer.param_groups[0]["params"] == list(model[1].parameters())
    assert isinstance(trainer.optimizer, torch.optim.Adam)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "mae"}, r"loss: must be one of mse, .*; got 'mae'; did you mean l1\?"),
        ({"metrics": ["acc"]}, r"metrics: must be one of accuracy, mae\b.*; got 'acc'"),
        (
            {"metrics": ["accuracy"]},
            "metrics: accuracy is not defined for mse; use mae, rmse or r2",
        ),
        (
            {"optimizer": "sgd"},
            r"optimizer: sgd needs lr; pass optimizer=torch.optim.SGD\(model.param.*\(\), lr=…\)",
        ),
        ({"optimizer": "lion"}, "optimizer: must be one of sgd, adam, .*; got 'lion'"),
        ({"scheduler": "cosine"}, "scheduler: must be a torch.optim.lr_scheduler"),
    ],
)
def test_names_that_are_none(given, message):
    with pytest.raises(ConfigError, match=message):
        make(**given)


def test_a_class_of_optimizers_is_answered_with_what_to_write():
    with pytest.raises(ModelError, match=r"such as torch.optim.SGD\(model.parameters\(\), lr=0.1"):
        make(optimizer=torch.optim.SGD)


def test_a_list_of_optimizers_is_answered_in_a_line():
    parameters = nn.Linear(2, 1).parameters()
    with pytest.raises(ModelError, match=r"or a mapping of names to some; got a list$"):
        make(optimizer=[torch.optim.SGD(parameters, lr=0.1)])
