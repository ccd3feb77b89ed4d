"""What does not fit together is an error before the first update."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, MiniBatchLoader, Trainer
from gdtrain.errors import DeviceError, ModelError
from gdtrain.training.placement.device import resolve_device

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1, keepdim=True)


def trainer_of(model, loss, targets, optimizer=None, **options) -> Trainer:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, loss, optimizer, BatchLoader((X, targets)), device="cpu", **options)


def fault_of_fit(model, loss, targets) -> str:
    """The error's text, having made sure that it came before any update."""
    trainer = trainer_of(model, loss, targets)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ModelError) as caught:
        trainer.fit(1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.L1Loss(),
        nn.SmoothL1Loss(),
        nn.HuberLoss(),
        nn.BCEWithLogitsLoss(),
        nn.SoftMarginLoss(),
        F.mse_loss,
        F.l1_loss,
    ],
    ids=lambda loss: getattr(loss, "__name__", type(loss).__name__),
)
@pytest.mark.parametrize("outputs", ["(N,)", "(N, 1)"])
def test_n_against_n_1_is_an_error_and_never_a_broadcast(loss, outputs) -> None:
    flat = outputs == "(N,)"
    model = nn.Sequential(nn.Linear(2, 1), *([nn.Flatten(0)] if flat else []))
    targets = Y if flat else Y[:, 0]
    shapes = ("[6]", "[6, 1]") if flat else ("[6, 1]", "[6]")
    assert fault_of_fit(model, loss, targets) == (
        f"loss: output has shape {shapes[0]} and targets {shapes[1]}; they must be the same, "
        "or the loss would be of their broadcast; reshape one of them"
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            torch.tensor([0, 1, 2, 3, 0, 1]),
            "targets: label 3 is out of range; the model has 3 outputs, so labels must be in 0 … 2",
        ),
        (
            torch.tensor([0, 1, 2, -1, 0, 1]),
            "targets: label -1 is out of range; the model has 3 outputs, "
            "so labels must be in 0 … 2",
        ),
        (
            torch.zeros(6, 1).long(),
            "loss: output has shape [6, 3] and targets [6, 1]; "
            "class indices need outputs [B, C, …] and targets [B, …]",
        ),
        (
            torch.zeros(6, dtype=torch.int32),
            "loss: class indices must be int64, got torch.int32; use .long()",
        ),
        (
            torch.zeros(6),
            "loss: targets must be int64 class indices or probabilities of shape [6, 3], "
            "got torch.float32 of shape [6]",
        ),
    ],
)
def test_targets_that_are_not_class_labels(targets, message) -> None:
    assert fault_of_fit(nn.Linear(2, 3), nn.CrossEntropyLoss(), targets) == message


def test_a_label_out_of_range_in_a_later_batch_is_found_before_the_first_update() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    loader = MiniBatchLoader((X, torch.tensor([0, 1, 0, 1, 0, 2])), 2, order="sequential")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match=r"^targets: label 2 is out of range; "):
        Trainer(model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu").fit(1)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("ignored", [-100, 7])
def test_ignored_labels_are_not_out_of_range(ignored) -> None:
    model = nn.Linear(2, 2)
    kept = torch.tensor([0, 1, 3, 4, 5])
    targets = torch.tensor([0, 1, ignored, 1, 0, 1])
    expected = F.cross_entropy(model(X)[kept], targets[kept]).item()
    trainer = trainer_of(model, nn.CrossEntropyLoss(ignore_index=ignored), targets)
    assert trainer.fit(1).train_loss == pytest.approx([expected], rel=1e-6)


def test_a_loss_that_is_not_a_scalar() -> None:
    assert fault_of_fit(nn.Linear(2, 1), nn.MSELoss(reduction="none"), Y) == (
        "loss: must be one number per batch, got shape [6, 1]; use a loss with reduction='mean'"
    )


def test_a_batch_of_one_under_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loader = MiniBatchLoader((X, Y), 5, order="sequential")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError) as caught:
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu").fit(1)
    assert str(caught.value) == (
        "model: a batch of one sample reached BatchNorm, which has no statistics of one; "
        "use GroupNorm or LayerNorm, another batch_size, or drop_last"
    )


def test_parameters_and_the_optimizer() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)

    def fault(model, optimizer) -> str:
        with pytest.raises(ModelError) as caught:
            trainer_of(model, nn.MSELoss(), Y, optimizer)
        return str(caught.value)

    assert fault(nn.ReLU(), torch.optim.SGD(other.parameters(), lr=1)) == (
        "model: has no parameters to train; give it at least one with requires_grad=True"
    )
    assert fault(model, torch.optim.SGD([model.weight], lr=1)) == (
        "optimizer: does not hold 1 of the model's parameters (bias); "
        "give it model.parameters(), or set requires_grad_(False) on those to keep"
    )
    both = [*model.parameters(), *other.parameters()]
    assert fault(model, torch.optim.SGD(both, lr=1)) == (
        "optimizer: holds 2 parameters that are not the model's; "
        "make it from the parameters of the model that is given to the Trainer"
    )
    model.bias.requires_grad_(False)
    trainer_of(model, nn.MSELoss(), Y, torch.optim.SGD([model.weight], lr=0.1)).fit(1)


def test_parameters_of_the_loss_may_be_trained_too() -> None:
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, targets):
            return (output - self.scale * targets).square().mean()

    model, loss = nn.Linear(2, 1), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    trainer_of(model, loss, Y, optimizer).fit(1)
    assert loss.scale.item() != 1.0


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"^device: cuda is not available on this machine"):
            resolve_device("cuda")
    with pytest.raises(DeviceError) as caught:
        resolve_device("gpu")
    assert str(caught.value) == (
        "device: 'gpu' is not a device; use auto, cpu, cuda, cuda:N or mps"
    )
    with pytest.raises(DeviceError) as caught:
        resolve_device("meta")
    assert str(caught.value) == "device: 'meta' is not supported; use auto, cpu, cuda or mps"
