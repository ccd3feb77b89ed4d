"""The losses of a configuration that are more than torch.nn's: same bits, without its surprises."""

import pytest
import torch
from torch import nn

from gdtrain.config.build import build_loss
from gdtrain.config.load import parse_config
from gdtrain.training.losses.probabilities import BCELoss, MeanKLDivLoss


def made(loss: object, num_outputs: int = 2, precision: str = "fp32") -> nn.Module:
    settings = {"data": "digits", "model": "linear", "loader": "batch", "optimizer": "adam"}
    more = {"epochs": 1, "loss": loss, "precision": precision}
    built = build_loss(parse_config(settings | more), num_outputs)
    assert isinstance(built, nn.Module)
    return built


def value_and_gradient(loss: nn.Module, output: torch.Tensor, target: torch.Tensor) -> list[float]:
    leaf = output.clone().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    assert leaf.grad is not None
    return [float(value.detach()), *leaf.grad.flatten().tolist()]


@pytest.mark.parametrize("weight", [None, [0.5, 2.0]])
def test_bce_has_the_bits_of_torch(weight):
    draw = torch.Generator().manual_seed(0)
    output, target = torch.rand(2, 7, 2, generator=draw)
    given = None if weight is None else torch.tensor(weight)
    ours = made({"name": "bce", "weight": weight})
    assert isinstance(ours, BCELoss)
    assert value_and_gradient(ours, output, target) == value_and_gradient(
        nn.BCELoss(weight=given), output, target
    )


def test_bce_of_an_output_that_is_nan_is_nan():
    output, target = torch.tensor([[0.5], [float("nan")]]), torch.ones(2, 1)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        nn.BCELoss()(output, target)
    assert made("bce", 1)(output, target).isnan()


@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_over_every_number_has_the_bits_of_torch_and_gives_no_advice(log_target):
    draw = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 7, 3, generator=draw).log_softmax(dim=2)
    target = target if log_target else target.exp()
    ours = made({"name": "kl_div", "reduction": "mean", "log_target": log_target})
    assert isinstance(ours, MeanKLDivLoss)
    with pytest.warns(UserWarning, match="batchmean"):
        theirs = value_and_gradient(nn.KLDivLoss(log_target=log_target), output, target)
    assert value_and_gradient(ours, output, target) == theirs


def test_the_other_reduction_is_torch_itself():
    loss = made("kl_div")
    assert type(loss) is nn.KLDivLoss
    assert loss.reduction == "batchmean"


@pytest.mark.parametrize("setting", ["weight", "pos_weight"])
def test_weights_under_fp64_are_the_numbers_of_the_configuration(setting):
    name = "bce_with_logits" if setting == "pos_weight" else "cross_entropy"
    weights = [0.1, 2.3]  # neither is a float32
    loss = made({"name": name, setting: weights}, precision="fp64")
    assert getattr(loss, setting).tolist() == weights
    assert getattr(made({"name": name, setting: weights}), setting).dtype == torch.float32
