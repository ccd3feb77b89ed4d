"""A loss or gradient that is not finite stops the run before it changes anything."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from helpers.faults.interruptions import Injected, StopAfter
from helpers.ranks import on_ranks
from torch import nn

from gdtrain import BatchLoader, Callback, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.errors import ModelError, NonFiniteError
from gdtrain.training.safety.finite_guard import Guard

N = 13
draw = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=draw)
Y = torch.randn(N, 2, generator=draw)
LOADERS = {
    "batch": lambda data: BatchLoader(data, order="reshuffle", seed=1),
    "sample": lambda data: SampleLoader(data, seed=1),
    "minibatch": lambda data: MiniBatchLoader(data, 5, seed=1),
}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def make(
    form="minibatch",
    optimizer="momentum",
    where="nowhere",
    at=0,
    value=math.nan,
    kind=Injected,
    data=(X, Y),
    norm: type[nn.Module] | None = nn.BatchNorm1d,
    **options,
):
    torch.manual_seed(3)
    layers = [nn.Linear(4, 6), *([norm(6)] if norm else []), nn.ReLU(), nn.Dropout(0.2)]
    model = nn.Sequential(*layers, nn.Linear(6, 2))
    made = OPTIMIZERS[optimizer](model.parameters())
    trainer = kind(model, nn.MSELoss(), made, LOADERS[form](data), device="cpu", **options)
    trainer.where, trainer.at, trainer.value = where, at, value
    return trainer


def bits(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that an update changes, and the generator that dropout draws from."""
    state = trainer.optimizer.state_dict()["state"]
    held = {f"{number}.{name}": v for number, s in state.items() for name, v in s.items()}
    tensors = {k: v for k, v in held.items() if isinstance(v, torch.Tensor)}
    return {**trainer.model.state_dict(), **tensors, "rng": torch.get_rng_state()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def stopped_after(step: int, **options) -> dict[str, torch.Tensor]:
    trainer = make(callbacks=[StopAfter(step)] if step else [], **options)
    if step:
        trainer.fit(100)
    return bits(trainer)


@pytest.mark.few(20)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["output", "loss", "gradient"])
@pytest.mark.parametrize(
    ("form", "norm"),
    [("batch", nn.BatchNorm1d), ("sample", nn.LayerNorm), ("minibatch", nn.BatchNorm1d)],
)
@pytest.mark.parametrize("at", [1, 8])
def test_everything_is_as_before_the_bad_update(form, norm, where, value, at):
    trainer = make(form, where=where, value=value, at=at, norm=norm)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(30)
    stopped = bits(trainer)
    assert trainer.progress.step == at - 1
    assert f", step {at}, with lr 0.05, on sample" in str(caught.value)
    assert_same(stopped, stopped_after(at - 1, form=form, norm=norm))


@pytest.mark.parametrize("form", LOADERS)
def test_a_run_that_goes_on_after_it_ends_with_the_bits_of_one_that_never_stopped(form):
    norm = nn.LayerNorm if form == "sample" else nn.BatchNorm1d
    whole = make(form, norm=norm)
    whole.fit(4)
    expected = bits(whole)
    trainer = make(form, norm=norm, where="gradient", at=3)
    with pytest.raises(NonFiniteError):
        trainer.fit(4)
    trainer.fit(4)
    assert_same(bits(trainer), expected)
    assert trainer.history.train_loss == whole.history.train_loss


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_other_optimizers(optimizer, where):
    at = 4 if optimizer == "adam" else 7  # the third update's first evaluation of three
    trainer = make("batch", optimizer, where=where, at=at, norm=None)
    trainer.model[2].p = 0.0  # L-BFGS needs one loss, not one for each mask
    with pytest.raises(NonFiniteError):
        trainer.fit(20)
    stopped = bits(trainer)
    steps = trainer.progress.step
    assert steps >= 1
    clean = make("batch", optimizer, norm=None, callbacks=[StopAfter(steps)])
    clean.model[2].p = 0.0
    clean.fit(20)
    assert_same(stopped, bits(clean))


def test_a_line_search_that_ends_nowhere_is_undone():
    trainer = make("batch", "lbfgs", norm=None)
    trainer.model[2].p = 0.0
    trainer.optimizer.param_groups[0]["lr"] = 1e38
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(NonFiniteError):
        trainer.fit(5)
    assert_same(trainer.model.state_dict(), before)
    assert not trainer.optimizer.state_dict()["state"]


@pytest.mark.parametrize("option", [{"clip_grad_value": 1.0}, {"clip_grad_norm": 1.0}])
def test_clipping_hides_no_infinite_gradient(option):
    trainer = make(where="gradient", value=math.inf, at=4, **option)
    with pytest.raises(NonFiniteError, match=r"^gradient is not finite in epoch 2, step 4, "):
        trainer.fit(5)
    assert_same(bits(trainer), stopped_after(3, **option))


@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_a_bad_sample_is_named(where):
    x, y = X.clone(), Y.clone()
    (x if where == "inputs" else y)[7, 1] = math.nan
    loader = SampleLoader((x, y), order="sequential", allow_nonfinite=True)
    trainer = make("sample", norm=None)
    trainer.loader = loader
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "loss is nan in epoch 1, step 8, with lr 0.05, on sample 7; first tensor that is not "
        f"finite: {where} of sample 7, column 1, which is nan; weights and optimizer are as they "
        "were before this update; remove or mend that sample, or mask it in compute_loss"
    )


class Overflowing(nn.Module):
    """exp of a linear map: its output overflows before its inputs and weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 2)

    def forward(self, x):
        return torch.exp(self.first(x) * 100)


def test_the_first_layer_whose_output_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(4, 4), Overflowing(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[1].first.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((X.abs() + 1, Y))
    with pytest.raises(NonFiniteError, match=r"the output of layer '1' \(Overflowing\); weights"):
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu").fit(1)


def test_the_parameter_whose_gradient_is_not_finite_is_named():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.linear(x) + self.scale.sqrt()  # infinite slope at 0

    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteError, match=r"^gradient is not finite .* the gradient of scale;"):
        Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu").fit(1)


class Deferred(Injected):
    """Looks after each block, as on a device."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.guard = Guard(self, deferred=True)


@pytest.mark.few(7)
@pytest.mark.parametrize("option", [{}, {"clip_grad_value": 1.0}])
@pytest.mark.parametrize("where", ["output", "loss", "gradient"])
@pytest.mark.parametrize("at", [1, 2, 8, 30])
def test_flags_that_stay_on_the_device_until_the_block_ends_do_as_well(where, at, option):
    trainer = make(where=where, at=at, kind=Deferred, scheduler=None, **option)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(100)
    stopped = bits(trainer)
    assert trainer.progress.step == at - 1
    assert f", step {at}, " in str(caught.value)
    assert_same(stopped, stopped_after(at - 1, **option))


def test_a_block_made_again_steps_the_schedule_as_often():
    def scheduled(kind, **options):
        trainer = make(kind=kind, **options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, 0.9)
        trainer.schedule.scheduler, trainer.schedule.per = scheduler, "step"
        return trainer

    trainer = scheduled(Deferred, where="gradient", at=20)
    with pytest.raises(NonFiniteError):
        trainer.fit(100)
    stopped = bits(trainer)
    clean = scheduled(Injected, callbacks=[StopAfter(19)])
    clean.fit(100)
    assert_same(stopped, bits(clean))
    assert trainer.lr == clean.lr
    assert trainer.schedule.scheduler.state_dict() == clean.schedule.scheduler.state_dict()


def test_a_train_step_of_ones_own_is_guarded_too():
    class OwnStep(Injected):
        def train_step(self, batch):
            self.optimizer.zero_grad()
            loss = self.compute_loss(batch)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    trainer = make(kind=OwnStep, where="gradient", at=5)
    with pytest.raises(NonFiniteError, match=r"^gradient is not finite in epoch 2, step 5, "):
        trainer.fit(9)
    assert_same(bits(trainer), stopped_after(4))


def of_many_weights(row: torch.Tensor) -> Trainer:
    """The gradient of its loss, the mean of its outputs, is the one row of its data."""
    model = nn.Linear(len(row), 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = BatchLoader((row[None], torch.zeros(1, 1)))
    return Trainer(model, lambda output, _: output.mean(), optimizer, loader, device="cpu")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_gradients_whose_sum_is_not_are_stepped_with(sign):
    row = torch.full((40_000,), sign * 3e38)  # as large as a float32 gets, nearly
    trainer = of_many_weights(row)
    trainer.fit(1)
    assert torch.equal(trainer.model.weight.detach(), -0.5 * row[None])


@pytest.mark.parametrize(
    "values", [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf), (math.inf, math.nan)]
)
def test_no_gradient_of_many_weights_hides_one_that_is_not_finite(values):
    trainer = of_many_weights(torch.ones(40_000))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, -len(values) :] = torch.tensor(values)
        return gradient

    trainer.model.weight.register_hook(spoil)
    with pytest.raises(NonFiniteError, match="weight"):
        trainer.fit(1)
    assert not trainer.model.weight.any()


def test_sparse_gradients_are_looked_at():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 2, sparse=True)

        def forward(self, x):
            return self.table(x).sum(dim=1).log()

    model = Words()
    with torch.no_grad():
        model.table.weight.fill_(1.0)
        model.table.weight[3] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    words = torch.tensor([[1], [2], [3]])
    loader = SampleLoader((words, torch.zeros(3, 2)), order="sequential")
    before = model.table.weight.detach().clone()
    trainer = Trainer(model, lambda o, _: o.clamp(min=-9).sum(), optimizer, loader, device="cpu")
    with pytest.raises(NonFiniteError, match=r"step 3, .* output of layer 'model' \(Words\)"):
        trainer.fit(1)
    assert torch.equal(model.table.weight[3], before[3])


def test_an_overflow_of_the_weights_themselves_is_told_apart():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38)
    trainer = Trainer(
        model, lambda o, _: 9 * o.sum(), optimizer, SampleLoader((X, Y)), device="cpu"
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(1)
    said = str(caught.value)
    assert "is not finite: weight, which overflowed in an earlier update; " in said
    assert said.endswith("; try a smaller lr, or less weight_decay")


class OnOneRank(Callback):
    """Changes the final gradient of rank 1 alone."""

    def on_before_update(self, trainer: Trainer) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        if dist.get_rank() == 1 and self.calls == 5:
            trainer.model[0].weight.grad[0, 0] = math.nan


def stopped_on_both(where: str) -> dict:
    x = X.clone()
    callbacks = []
    if where == "x":
        x[7, 2] = math.nan  # in one rank's share
    if where == "callback":
        callbacks = [OnOneRank()]
    rank = dist.get_rank()
    trainer = make(norm=None, callbacks=callbacks, data=(X, Y))
    trainer.model[2].p = 0.0
    trainer.loader = MiniBatchLoader((x, Y), 5, order="sequential", allow_nonfinite=True)
    if where in ("loss", "gradient"):
        trainer.where, trainer.at = where, 5 if rank == 1 else 0
    try:
        trainer.fit(30)
        said = "nothing"
    except NonFiniteError as error:
        said = str(error)
    held = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    momentum = [s["momentum_buffer"].flatten() for s in trainer.optimizer.state.values()]
    return {
        "said": said,
        "step": trainer.progress.step,
        "weights": held,
        "momentum": torch.cat(momentum),
    }


def all_kinds(_rank: int) -> dict[str, dict]:
    return {where: stopped_on_both(where) for where in ("x", "loss", "gradient", "callback")}


def test_one_bad_rank_of_two_stops_both_at_the_same_step() -> None:
    first, second = on_ranks(all_kinds)
    for where in first:
        assert first[where]["said"] == second[where]["said"]
        assert " is " in first[where]["said"]
        assert first[where]["step"] == second[where]["step"] > 0
        for name in ("weights", "momentum"):
            assert torch.equal(first[where][name], second[where][name])
            assert bool(torch.isfinite(first[where][name]).all())
    assert "inputs of sample 7, column 2, which is nan" in first["x"]["said"]
    assert {first[where]["step"] for where in ("loss", "gradient", "callback")} == {4}


def test_gradients_that_are_known_to_be_zero_are_those_of_the_plain_loop() -> None:
    """torch.sgn gives tensors of zeros without memory, which no kernel may write to."""

    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((3,), 0.5))

        def forward(self, x):
            return x * self.w + torch.sgn(self.v)

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    hand, model = Signed(), Signed()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1) for m in (hand, model)]
    for _ in range(3):
        optimizers[0].zero_grad()
        nn.functional.mse_loss(hand(x), x).backward()
        optimizers[0].step()
    Trainer(model, nn.MSELoss(), optimizers[1], BatchLoader((x, x)), device="cpu").fit(3)
    for expected, got in zip(hand.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, expected)


class Shrinking(nn.Linear):
    """A layer that writes to its weights in its forward pass."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.mul_(0.5)
        return super().forward(inputs)


def replaced(inputs: int, outputs: int) -> nn.Linear:
    """A layer of PyTorch's with the forward pass of another one in its place."""
    layer, other = nn.Linear(inputs, outputs), Shrinking(inputs, outputs)
    layer.forward = other.forward  # type: ignore[method-assign]
    layer.weight, layer.bias = other.weight, other.bias
    return layer


@pytest.mark.parametrize(("layer", "copies"), [(nn.Linear, 0), (Shrinking, 1), (replaced, 1)])
def test_weights_are_copied_for_a_first_update_only_where_a_forward_pass_may_set_them(
    layer: Callable[[int, int], nn.Linear], copies: int
) -> None:
    model = layer(37, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(4, 37), torch.ones(4, 1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader(data), engine="eager")
    with torch.autograd.profiler.profile(record_shapes=True) as seen:
        trainer.fit(1, progress=False)
    clones = [e for e in seen.function_events if e.name == "aten::clone"]
    assert [e.input_shapes[0] for e in clones].count([1, 37]) == copies


def halve(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


class Halving(torch.overrides.TorchFunctionMode):
    """Writes to a model's weights when a layer is computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is nn.functional.linear:
            halve(self.model)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("where", ["all layers", "a layer", "a mode"])
def test_weights_that_others_set_in_a_refused_first_pass_come_back(where: str) -> None:
    model = nn.Linear(3, 1)
    before = [parameter.clone() for parameter in model.parameters()]
    data = torch.ones(4, 3), torch.ones(4)  # of a shape that is refused once the loss is known
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader(data), engine="eager")
    if where == "a mode":
        with Halving(model), pytest.raises(ModelError):
            trainer.fit(1, progress=False)
    else:
        of_all = nn.modules.module.register_module_forward_pre_hook
        register = of_all if where == "all layers" else model.register_forward_pre_hook
        hook = register(lambda module, _: halve(module))
        with pytest.raises(ModelError):
            trainer.fit(1, progress=False)
        hook.remove()
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("place", ["nn.Linear.forward", "nn.functional.linear", "layer._call_impl"])
def test_so_do_those_that_functions_in_the_place_of_pytorchs_set(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 1)
    before = [parameter.clone() for parameter in model.parameters()]
    data = torch.ones(4, 3), torch.ones(4)  # of a shape that is refused once the loss is known
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader(data), engine="eager")
    holder, name = place.rsplit(".", 1)
    where = {"nn.Linear": nn.Linear, "nn.functional": nn.functional, "layer": model}[holder]
    function = getattr(where, name)

    def writes(*args, **kwargs):
        halve(model)
        return function(*args, **kwargs)

    monkeypatch.setattr(where, name, writes, raising=False)
    with pytest.raises(ModelError):
        trainer.fit(1, progress=False)
    assert all(map(torch.equal, model.parameters(), before))
