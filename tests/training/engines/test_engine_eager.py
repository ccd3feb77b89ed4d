"""The eager update: the bits, gradients and state of torch.optim."""

import copy
import functools
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim import optimizer as torch_optimizer

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.errors import NonFiniteError
from gdtrain.training.descent import known_step

N = 30
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 5, generator=DRAW)
Y = torch.randn(N, 3, generator=DRAW)


class Uneven(nn.Module):
    """A model in which some parameters have a gradient in some batches only, two share one, and
    one is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(5, 3)
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.first if x[0, 0] > 0 else self.second
        return chosen(x) + (self.a + self.b) + chosen(x.roll(1, 1))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x[:, 0].abs() * 10).long() % 7)


SETTINGS = {
    "plain": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9, "dampening": 0.2}),
    "all": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "maximize": (SGD, {"maximize": True}),
    "foreach": (SGD, {"foreach": True, "momentum": 0.9}),
    "tensor_lr": (SGD, {"lr": torch.tensor(0.05)}),
    "adam": (Adam, {}),
    "adam_decay": (Adam, {"weight_decay": 0.1, "betas": (0.7, 0.9), "eps": 1e-3}),
    "adamw": (AdamW, {"weight_decay": 0.1, "betas": (0.3, 0.99)}),
    "amsgrad": (Adam, {"amsgrad": True}),
    "adam_maximize": (AdamW, {"maximize": True}),
    "adam_foreach": (Adam, {"foreach": True}),
    "adam_tensors": (Adam, {"betas": (torch.tensor(0.9), torch.tensor(0.99))}),
}
# Those that take other kernels, which PyTorch is left to call.
OTHERS = {"maximize", "foreach", "tensor_lr", "amsgrad", "adam_maximize", "adam_foreach"}
if not issubclass(AdamW, Adam):  # in older versions it has a code of its own
    OTHERS.add("adamw")


def by_hand(model, optimizer, epochs, after=lambda: None) -> None:
    for _ in range(epochs):
        for s in range(0, N, 4):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(X[s : s + 4]), Y[s : s + 4]).backward()
            optimizer.step()
            after()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [Uneven, Sparse])
def test_weights_gradients_and_state_are_those_of_the_hand_written_loop(kind, setting) -> None:
    optimizer, options = SETTINGS[setting]
    if kind is Sparse and (setting in ("all", "foreach") or optimizer is not SGD):
        return  # these do not take sparse gradients
    options = {"lr": 0.05, **options}
    torch.manual_seed(1)
    expected = kind()
    model = copy.deepcopy(expected)
    theirs = optimizer(expected.parameters(), **options)
    by_hand(expected, theirs, 2)
    ours = optimizer(model.parameters(), **options)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    trainer = Trainer(model, nn.MSELoss(), ours, loader, device="cpu", engine="eager")
    trainer.fit(2)
    assert (known_step(ours) is not None) == (setting not in OTHERS)
    for p, q in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert torch.equal(p.grad.to_dense(), q.grad.to_dense())
        assert theirs.state[p].keys() == ours.state[q].keys()
        for key, value in theirs.state[p].items():
            assert value is ours.state[q][key] is None or torch.equal(
                value.to_dense(), ours.state[q][key].to_dense()
            )


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_hooks_of_a_step_see_what_they_see_by_hand(kind, everywhere, when) -> None:
    def seen_by(train) -> list:
        torch.manual_seed(1)
        model, seen = nn.Linear(5, 3), []
        optimizer = kind(model.parameters(), lr=0.05)

        def look(seen_optimizer, arguments, options) -> None:
            assert seen_optimizer is optimizer
            assert torch.is_grad_enabled()
            seen.append((len(arguments), options, model.weight.tolist()))
            with torch.no_grad():
                model.weight.mul_(0.9)

        registers = torch_optimizer if everywhere else optimizer
        add = getattr(registers, f"register_{'optimizer_' * everywhere}step_{when}_hook")
        handle = add(look)
        train(model, optimizer)
        handle.remove()
        return [*seen, model.weight.tolist()]

    def ours(model, optimizer) -> None:
        loader = MiniBatchLoader((X, Y), 4, order="sequential")
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine="eager").fit(2)

    assert seen_by(ours) == seen_by(lambda model, optimizer: by_hand(model, optimizer, 2))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("start", [0, 5])
def test_parameters_in_one_memory_are_stepped_one_after_the_other(start, kind, decay) -> None:
    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            memory = torch.ones(20)
            self.whole = nn.Parameter(memory[:15].view(3, 5))
            self.again = nn.Parameter(memory[start : start + 15].view(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.whole.T + torch.tanh(x @ self.again.T)

    expected, model = Overlapping(), Overlapping()
    by_hand(expected, kind(expected.parameters(), lr=0.05, weight_decay=decay), 2)
    ours = kind(model.parameters(), lr=0.05, weight_decay=decay)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    Trainer(model, nn.MSELoss(), ours, loader, device="cpu", engine="eager").fit(2)
    assert torch.equal(expected.whole, model.whole)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("way", ["before", "after", "copies its mark"])
def test_a_step_of_ones_own_is_called_though_a_scheduler_wraps_it(way, kind) -> None:
    def trained(train) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = kind(model.parameters(), lr=0.05)

        def halved(self, closure=None):
            for parameter in model.parameters():
                parameter.grad.mul_(0.5)
            return type(self).step(self, closure)

        if way == "before":
            optimizer.step = MethodType(halved, optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
        if way == "after":
            optimizer.step = MethodType(halved, optimizer)
        elif way == "copies its mark":
            step = optimizer.step

            @functools.wraps(step)
            def again(*arguments):
                step()
                return step()

            optimizer.step = again
        train(model, optimizer, scheduler)
        return model.weight.detach()

    def ours(model, optimizer, scheduler) -> None:
        loader = MiniBatchLoader((X, Y), 4, order="sequential")
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", scheduler=scheduler).fit(2)

    expected = trained(lambda model, optimizer, _: by_hand(model, optimizer, 2))
    assert torch.equal(trained(ours), expected)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_methods_of_parameters_of_ones_own_are_called(kind) -> None:
    class Slow(nn.Parameter):
        def add_(self, other, *, alpha=1):
            return super().add_(other, alpha=alpha * 0.5)

        def addcdiv_(self, *tensors, value=1):
            return super().addcdiv_(*tensors, value=value * 0.5)

    def model() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Linear(5, 3)
        made.weight = Slow(made.weight.detach())
        return made

    expected, found = model(), model()
    by_hand(expected, kind(expected.parameters(), lr=0.05), 2)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    ours = kind(found.parameters(), lr=0.05)
    Trainer(found, nn.MSELoss(), ours, loader, device="cpu", engine="eager").fit(2)
    assert torch.equal(found.weight, expected.weight)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_gradient_that_lies_in_one_place_of_memory(kind) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Linear(5, 3)
        ones = torch.ones(()).expand(3, 5)
        made.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", ones))
        return made

    expected, found = model(), model()
    by_hand(expected, kind(expected.parameters(), lr=0.05), 2)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    Trainer(
        found, nn.MSELoss(), kind(found.parameters(), lr=0.05), loader, device="cpu", engine="eager"
    ).fit(2)
    assert torch.equal(found.weight, expected.weight)


def test_an_optimizer_may_have_any_attributes() -> None:
    class Own(SGD):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            self.of = {}

    expected = nn.Linear(5, 3)
    model = copy.deepcopy(expected)
    by_hand(expected, Own(expected.parameters(), lr=0.05), 2)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    Trainer(model, nn.MSELoss(), Own(model.parameters(), lr=0.05), loader, device="cpu").fit(2)
    assert torch.equal(model.weight, expected.weight)


@pytest.mark.parametrize("own_loss", [False, True])
def test_an_update_that_is_not_made_leaves_rows_that_forward_shortens(own_loss) -> None:
    model = nn.Sequential(nn.EmbeddingBag(7, 3, max_norm=0.1), nn.Linear(3, 1))
    before = copy.deepcopy(model.state_dict())
    given = (lambda t, b: t.loss(t.model(b.inputs), b.targets)) if own_loss else None
    loader = MiniBatchLoader((torch.arange(12).view(6, 2) % 7, torch.full((6, 1), 1e30)), 1)
    trainer = Trainer(
        model, nn.MSELoss(), SGD(model.parameters(), lr=0.1), loader, compute_loss=given
    )
    with pytest.raises(NonFiniteError):
        trainer.fit(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_that_adam_would_not_make_is_left_to_it() -> None:
    def changed(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = Adam(model.parameters(), lr=0.05)
        by_hand(model, optimizer, 1)
        for state in optimizer.state.values():
            state["exp_avg"] = nn.Parameter(state["exp_avg"])
        return optimizer

    expected = nn.Linear(5, 3)
    model = copy.deepcopy(expected)
    by_hand(expected, changed(expected), 1)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    ours = changed(model)
    Trainer(model, nn.MSELoss(), ours, loader, device="cpu", engine="eager").fit(1)
    assert torch.equal(expected.weight, model.weight)


def test_settings_changed_at_a_safe_point_count_from_the_next_update_on() -> None:
    class Change(Callback):
        every_n_steps = 3

        def on_safe_point(self, trainer):
            (group,) = trainer.optimizer.param_groups
            group["lr"] *= 0.5
            group["momentum"] = 0.9 - group["momentum"]
            with torch.no_grad():
                trainer.model.weight.mul_(0.5)

    expected = nn.Linear(5, 3)
    model = copy.deepcopy(expected)
    theirs = torch.optim.SGD(expected.parameters(), lr=0.1)
    steps = 0

    def change() -> None:
        nonlocal steps
        steps += 1
        if steps % 3 == 0:
            theirs.param_groups[0]["lr"] *= 0.5
            theirs.param_groups[0]["momentum"] = 0.9 - theirs.param_groups[0]["momentum"]
            with torch.no_grad():
                expected.weight.mul_(0.5)

    by_hand(expected, theirs, 2, after=change)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, Y), 4, order="sequential")
    Trainer(model, nn.MSELoss(), ours, loader, device="cpu", callbacks=[Change()]).fit(2)
    assert torch.equal(expected.weight, model.weight)
    assert torch.equal(expected.bias, model.bias)


def test_whoever_looks_at_each_update_is_called_each_time() -> None:
    class OwnSGD(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            return super().step(closure)

    seen = []
    model = nn.Linear(5, 3)
    model.weight.register_hook(lambda gradient: seen.append("gradient"))
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    model.register_forward_hook(lambda *_: seen.append("forward"))
    loader = MiniBatchLoader((X, Y), 4)
    optimizer = OwnSGD(model.parameters(), lr=0.1)
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu").fit(1)
    assert optimizer.steps == len(loader)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.register_step_post_hook(lambda *_: seen.append("step"))
    trainer = Trainer(model, nn.MSELoss(), plain, loader, device="cpu")
    seen.clear()
    trainer.fit(1)
    assert [seen.count(name) for name in ("step", "gradient", "accumulated", "forward")] == [8] * 4
    unwatched = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), unwatched, loader, device="cpu")
    seen.clear()
    trainer.fit(1)
    assert known_step(unwatched) is not None
    assert [seen.count(name) for name in ("gradient", "accumulated", "forward")] == [8] * 3
