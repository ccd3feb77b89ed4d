"""What a plain loop takes as a matter of course, and a shorter way may not: the same bits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gdtrain import BatchLoader, MiniBatchLoader, Trainer

DRAWS = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 3, generator=DRAWS), torch.randn(24, 1, generator=DRAWS)


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))


def check(make=mlp, loss: Any = F.mse_loss, optimizer=SGD, within=None, **options: Any) -> None:
    """The weights and gradients after three epochs are those of the plain loop."""
    plain, ours = make(), make()
    one, other = (optimizer(m.parameters(), lr=0.05, **options) for m in (plain, ours))
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    trainer = Trainer(ours, loss, other, loader, device="cpu", engine="eager")
    for work in (lambda: by_hand(plain, loss, one), lambda: trainer.fit(3)):
        if within is None:
            work()
        else:
            with within():
                work()
    assert trainer.step == 18
    assert all(map(torch.equal, ours.parameters(), plain.parameters()))


def by_hand(model: nn.Module, loss: Any, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        for first in range(0, 24, 4):
            optimizer.zero_grad()
            loss(model(X[first : first + 4]), Y[first : first + 4]).backward()
            optimizer.step()


# ── who writes to the gradient of the loss ──────────────────────────────────────────────────


class Halved(torch.autograd.Function):
    """Writes to the gradient that it is given."""

    @staticmethod
    def forward(_, loss: Tensor) -> Tensor:
        return loss * 1.0

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return gradient.mul_(0.5)


def by_function(output: Tensor, targets: Tensor) -> Tensor:
    return Halved.apply(F.mse_loss(output, targets))


def by_hook(output: Tensor, targets: Tensor) -> Tensor:
    loss = F.mse_loss(output, targets)
    loss.register_hook(lambda gradient: gradient.mul_(0.5))
    return loss


@pytest.mark.parametrize("loss", [by_function, by_hook])
def test_a_loss_that_writes_to_its_gradient_writes_to_that_of_one_update(loss) -> None:
    check(loss=loss)
    check()  # and no other run is touched


# ── what stands where weights stand ─────────────────────────────────────────────────────────


def with_buffer() -> nn.Module:
    """Random features, which stand still and are saved."""
    model = mlp()
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)
    return model


def with_tensor(name: str):
    def make() -> nn.Module:
        model = mlp()
        tensor = getattr(model[2], name).detach() + 0.1
        delattr(model[2], name)
        setattr(model[2], name, tensor)
        return model

    return make


def with_shadow() -> nn.Module:
    model = mlp()
    vars(model[0])["weight"] = model[0].weight.detach() * 2
    return model


@pytest.mark.parametrize(
    "make", [with_buffer, with_tensor("weight"), with_tensor("bias"), with_shadow]
)
def test_a_layer_computes_with_what_stands_under_its_names(make) -> None:
    check(make, nn.MSELoss())


def tied() -> nn.Module:
    model = mlp()
    model[2].weight.data = model[0].weight.data
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "weight_decay": 0.1}],
)
def test_parameters_in_one_memory_move_one_after_the_other(options) -> None:
    check(tied, nn.MSELoss(), **options)


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}])
def test_a_parameter_that_is_listed_twice_moves_twice(options) -> None:
    def twice(parameters, **settings: Any) -> SGD:
        held = list(parameters)
        return SGD([*held, held[0]], **settings)

    check(mlp, nn.MSELoss(), twice, **options)


# ── who looks at each function and kernel ───────────────────────────────────────────────────


class Larger(TorchDispatchMode):
    def __torch_dispatch__(self, kernel, types, arguments=(), options=None):
        value = kernel(*arguments, **(options or {}))
        return value.mul_(1.01) if kernel is torch.ops.aten.add_.Tensor else value


class FromTwice(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is Tensor.backward:
            arguments = (arguments[0] * 2, *arguments[1:])
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("mode", [Larger, FromTwice])
@pytest.mark.parametrize("loss", [nn.MSELoss(), by_hook])
def test_a_mode_sees_the_calls_of_the_plain_loop(mode, loss) -> None:
    check(loss=loss, within=mode)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Tanh, nn.Sequential, nn.MSELoss])
@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_a_class_may_be_called_in_a_way_of_its_own(kind, name, monkeypatch) -> None:
    forward = kind.forward
    monkeypatch.setattr(kind, name, lambda layer, *given: forward(layer, *given) * 1.1, False)
    check(loss=nn.MSELoss())


# ── code that writes to what it is shown of a batch ─────────────────────────────────────────


CHOSEN = torch.tensor([3, 1, 2, 0, 4])
ORDERS = {
    "explicit": CHOSEN,
    "callable": lambda epoch: CHOSEN,
    "sequential": "sequential",
    "reshuffle": "reshuffle",
    "shuffle_once": "shuffle_once",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [None, 1, 2])
def test_a_loss_that_writes_to_the_indices_of_a_batch_changes_no_order(order, size) -> None:
    data = torch.arange(10.0).view(5, 2), torch.arange(5.0).view(5, 1)
    seen = []

    def loss(trainer, batch):
        assert torch.equal(batch.inputs, data[0][batch.indices])
        seen.extend(batch.indices.tolist())
        batch.indices.zero_()
        return trainer.model(batch.inputs).square().mean()

    def loader():
        if size is None:
            return BatchLoader(data, order=ORDERS[order])
        return MiniBatchLoader(data, size, order=ORDERS[order])

    expected = []
    for epoch in range(4):
        plan = loader().plan(epoch)
        expected += plan.take(0, 5).tolist()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    trainer = Trainer(model, None, optimizer, loader(), compute_loss=loss, device="cpu")
    trainer.fit(4)
    assert seen == expected
    assert CHOSEN.tolist() == [3, 1, 2, 0, 4]
