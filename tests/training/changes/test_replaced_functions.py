"""Functions put in the place of PyTorch's: a trainer runs them, as the plain loop does."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import processes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim import sgd as sgd_module

from gdtrain import MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError
from gdtrain.training import torch_code
from gdtrain.training.descent import known_step

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Own(nn.Sequential):
    """Somebody's class, which takes the general path."""


def step_by_hand(optimizer, closure=None) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter -= 0.2 * parameter.grad


def scaled(function, factor):
    """What a function gives, times a number."""
    return lambda *arguments, **options: function(*arguments, **options) * factor


def zeroed_and_kept(optimizer, set_to_none: bool = True) -> None:
    """Momentum of a kind: a part of the last gradient stays."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(0.3)


BACKWARD, CALL = Tensor.backward, nn.Module._call_impl
REPLACED = {
    "layer": (nn.Linear, "forward", scaled(nn.Linear.forward, 1.5)),
    "activation": (nn.ReLU, "forward", lambda layer, x: torch.tanh(x)),
    "container": (nn.Sequential, "forward", scaled(nn.Sequential.forward, 0.5)),
    "call": (nn.Module, "_call_impl", lambda self, *a: CALL(self, *a) * 0.9),
    "loss": (nn.MSELoss, "forward", scaled(nn.MSELoss.forward, 2)),
    "function of a loss": (F, "mse_loss", scaled(F.mse_loss, 2)),
    "function of a layer": (F, "linear", scaled(F.linear, 1.5)),
    "function of an activation": (F, "relu", lambda x, inplace=False: torch.tanh(x)),
    "step": (torch.optim.SGD, "step", step_by_hand),
    "kernel of the step": (sgd_module, "sgd", lambda params, grads, *_, **__: None),
    "zero_grad": (torch.optim.Optimizer, "zero_grad", zeroed_and_kept),
    "backward": (Tensor, "backward", lambda loss, *a, **b: BACKWARD(loss * 3, *a, **b)),
}

# Those of classes alone are captured as they are.
CAPTURED = ("activation", "loss")


def model_of(kind: type[nn.Sequential]) -> nn.Sequential:
    torch.manual_seed(1)
    return kind(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))


def by_hand(model: nn.Module, epochs: int = 3) -> None:
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.05), nn.MSELoss()
    for _ in range(epochs):
        for first in range(0, 24, 4):
            optimizer.zero_grad()
            loss(model(X[first : first + 4]), Y[first : first + 4]).backward()
            optimizer.step()


def fitted(model: nn.Module, engine: str) -> nn.Module:
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine=engine)
    trainer.fit(3)
    assert trainer.step == 18
    return model


@pytest.mark.few(15)
@pytest.mark.parametrize("kind", [nn.Sequential, Own])
@pytest.mark.parametrize("name", REPLACED)
def test_eager_runs_what_stands_there(name, kind, monkeypatch) -> None:
    plain, ours = model_of(kind), model_of(kind)
    untouched = copy.deepcopy(plain)
    by_hand(untouched)
    monkeypatch.setattr(*REPLACED[name])
    by_hand(plain)
    fitted(ours, "eager")
    assert not torch.equal(plain[0].weight, untouched[0].weight)  # it does make a difference
    assert all(map(torch.equal, ours.parameters(), plain.parameters()))


@pytest.mark.few(4)
@pytest.mark.parametrize("name", REPLACED)
def test_scan_runs_it_too_or_refuses(name, monkeypatch) -> None:
    """Also where it has compiled the same model with PyTorch's own functions before."""
    pytest.importorskip("jax")
    fitted(model_of(nn.Sequential), "scan")
    plain, ours = model_of(nn.Sequential), model_of(nn.Sequential)
    monkeypatch.setattr(*REPLACED[name])
    if name not in CAPTURED:
        with pytest.raises(ConfigError, match="others stand in the place of PyTorch's functions"):
            fitted(ours, "scan")
        return
    by_hand(plain)
    fitted(ours, "scan")
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


BEFORE = """
import torch
from torch import nn
from torch.nn import functional as F
forward, mse_loss = nn.Linear.forward, F.mse_loss
nn.Linear.forward = lambda layer, x: forward(layer, x) * 1.5
F.mse_loss = lambda *a, **b: mse_loss(*a, **b) * 2
from test_replaced_functions import by_hand, fitted, model_of
plain = model_of(nn.Sequential)
by_hand(plain)
ours = fitted(model_of(nn.Sequential), "eager")
print(all(map(torch.equal, ours.parameters(), plain.parameters())))
"""


def test_also_what_was_put_there_before_gdtrain_was_imported() -> None:
    here = str(Path(__file__).parent)
    done = processes.run("-c", f"import sys; sys.path.insert(0, {here!r})\n{BEFORE}")
    assert (done.returncode, done.out) == (0, "True\n"), done.err


def test_a_hook_that_a_hook_of_a_node_adds_counts_from_then_on() -> None:
    """Of the node that adds up a weight's gradient, whose hooks nobody can see."""
    kept = []

    def with_hook(model: nn.Sequential) -> nn.Sequential:
        node = model[0].weight.expand_as(model[0].weight).grad_fn.next_functions[0][0]
        calls = iter(range(100))

        def add(*_) -> None:
            if next(calls) == 4:
                model[1].register_forward_hook(lambda layer, inputs, output: output * 0.7)

        node.register_hook(add)
        kept.append(node)
        return model

    plain, ours = with_hook(model_of(nn.Sequential)), with_hook(model_of(nn.Sequential))
    by_hand(plain)
    fitted(ours, "eager")
    assert all(map(torch.equal, ours.parameters(), plain.parameters()))


def test_wrappers_of_pytorch_s_are_its_own_code() -> None:
    """torch.compile puts some about the optimizers, and leaves them there."""
    torch.compile(nn.Linear(1, 1), backend="eager")(torch.ones(1, 1))
    assert hasattr(SGD._init_group, "__wrapped__")
    assert torch_code.has_own_pass()
    assert torch_code.has_own_update()
    assert known_step(SGD([nn.Parameter(torch.ones(1))], lr=0.1)) is not None


def test_another_function_of_pytorch_s_is_not_the_one_that_stood_there(monkeypatch) -> None:
    monkeypatch.setattr(F, "mse_loss", F.l1_loss)
    assert not torch_code.has_own_pass()
