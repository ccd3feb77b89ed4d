"""The examples of research code end with the bits of the plain loops that stand beside them."""

import copy
import runpy
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT
from torch import Tensor, nn

HOME = ROOT / "examples" / "research"
FILES = sorted(HOME.glob("*.py"))
LINES = 60


def example(name: str) -> SimpleNamespace:
    """What stands in an example."""
    return SimpleNamespace(**runpy.run_path(str(HOME / f"{name}.py"), run_name=name))


def network(outputs: int = 1, inputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def inputs(count: int = 50) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)).double()


def numbers() -> tuple[Tensor, ...]:
    return inputs(), inputs().sum(1, keepdim=True)


def labels() -> tuple[Tensor, ...]:
    return inputs(), torch.arange(50) % 3


def players() -> nn.ModuleDict:
    return nn.ModuleDict({"critic": network(), "generator": network(3, 4)})


PROBLEMS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "sam": (network(), numbers()),
    "sgld": (network(), numbers()),
    "ema_teacher": (network(), numbers()),
    "distillation": (network(3), labels()),
    "adversarial": (network(3), labels()),
    "physics_informed": (network(inputs=1), (torch.linspace(0, 3, 30).double()[:, None],)),
    "contrastive": (network(5), (inputs(), inputs() + 0.1)),
    "curriculum": (network(), numbers()),
    "gan": (players(), (inputs(),)),
    "fine_tuning": (network(), numbers()),
}


def test_every_example_is_looked_at() -> None:
    assert {file.stem for file in FILES} == set(PROBLEMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_can_be_read_at_a_glance(file) -> None:
    assert len(file.read_text("utf-8").splitlines()) < LINES


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_ends_with_the_bits_of_the_plain_loop(name: str) -> None:
    module, (model, data) = example(name), PROBLEMS[name]
    ends = []
    for way in (module.with_gdtrain, module.by_hand):
        own = copy.deepcopy(model)
        torch.manual_seed(5)
        other = way(own, *(tensor.clone() for tensor in data))
        kept = [*own.state_dict().values(), *(other.state_dict().values() if other else ())]
        ends.append([*kept, torch.get_rng_state()])
    assert all(map(torch.equal, *ends))
    before = list(model.state_dict().values())
    assert not any(map(torch.equal, before, ends[0]))


@pytest.mark.parametrize("size", [1, 5, 16])
def test_contrastive_learning_is_exact_in_microbatches(size: int) -> None:
    module, (model, data) = example("contrastive"), PROBLEMS["contrastive"]
    whole, cut = copy.deepcopy(model), copy.deepcopy(model)
    module.by_hand(whole, *data)
    module.with_gdtrain(cut, *data, microbatch_size=size)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
