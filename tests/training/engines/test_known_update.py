"""Blocks in which only PyTorch's code and the project's own runs, and those where others' does.

Each run is that of a plain loop, to the bit.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ModelError
from gdtrain.training.engines.known_update import known_update

N, SIZE, EPOCHS = 30, 4, 6
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 5, generator=DRAW)
Y = torch.randn(N, 3, generator=DRAW)
LABELS = torch.arange(N) % 3
STOCK = {
    "perceptron": (nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)),
    "without bias": (nn.Linear(5, 3, bias=False),),
    "nested": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True)), nn.Linear(4, 3)),
    "dropout": (nn.Linear(5, 8), nn.Dropout(0.4), nn.Linear(8, 3)),
    "statistics": (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
    "in place": (nn.ReLU(inplace=True), nn.Linear(5, 3)),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
}


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def by_hand(model, loss, optimizer, targets=Y) -> None:
    torch.manual_seed(1)
    for _ in range(EPOCHS):
        for rows in torch.arange(N).split(SIZE):
            optimizer.zero_grad()
            loss(model(X[rows]), targets[rows]).backward()
            optimizer.step()


def trainer_of(model, loss, optimizer, targets=Y) -> Trainer:
    loader = MiniBatchLoader((X, targets), SIZE, order="sequential")
    return Trainer(model, loss, optimizer, loader, device="cpu", engine="eager")


def is_known(trainer: Trainer) -> bool:
    return known_update(trainer) is not None


def fitted(trainer: Trainer) -> Trainer:
    torch.manual_seed(1)
    trainer.block_length._steps = 64  # whatever the clock says
    trainer.fit(EPOCHS)
    return trainer


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.few(24)
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss(), nn.functional.l1_loss])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layers", STOCK)
def test_of_stock_parts(layers, optimizer, loss) -> None:
    torch.manual_seed(0)
    model, targets = nn.Sequential(*copy.deepcopy(STOCK[layers])), Y
    if isinstance(loss, nn.CrossEntropyLoss):
        targets = LABELS
    theirs = copy.deepcopy(model)
    by_hand(theirs, loss, OPTIMIZERS[optimizer](theirs.parameters()), targets)
    trainer = trainer_of(model, loss, OPTIMIZERS[optimizer](model.parameters()), targets)
    assert is_known(trainer)
    fitted(trainer)
    assert same(model, theirs)
    assert (trainer.step, trainer.progress.samples) == (EPOCHS * 8, EPOCHS * N)


def test_a_registered_state_that_callbacks_move_is_of_no_concern_to_it() -> None:
    """Lookahead (Zhang and others, 2019): nobody's code runs but between blocks."""

    class Lookahead(Callback):
        every_n_steps = 5

        def on_safe_point(self, trainer):
            go_back(trainer.slow, trainer.model)

    def go_back(slow, model) -> None:
        with torch.no_grad():
            for kept, parameter in zip(slow, model.parameters(), strict=True):
                parameter.copy_(kept.lerp_(parameter, 0.5))

    torch.manual_seed(0)
    model = nn.Sequential(*copy.deepcopy(STOCK["perceptron"]))
    theirs = copy.deepcopy(model)
    slow, optimizer = [p.detach().clone() for p in theirs.parameters()], sgd(theirs.parameters())
    for step, rows in enumerate(EPOCHS * torch.arange(N).split(SIZE), 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(theirs(X[rows]), Y[rows]).backward()
        optimizer.step()
        if step % 5 == 0:
            go_back(slow, theirs)
    trainer = trainer_of(model, nn.MSELoss(), sgd(model.parameters()))
    trainer.callbacks.append(Lookahead())
    trainer.register_state("slow", [p.detach().clone() for p in model.parameters()])
    assert is_known(trainer)
    fitted(trainer)
    assert same(model, theirs)
    assert all(map(torch.equal, trainer.slow, slow))


def test_batches_that_are_views_of_the_data_are_not_changed() -> None:
    X = torch.randn(1 << 17, 3)
    before, model = X.clone(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 1))
    loader = BatchLoader((X, X[:, :1]), order="sequential")
    trainer = Trainer(model, nn.MSELoss(), sgd(model.parameters()), loader, device="cpu")
    assert is_known(trainer)
    fitted(trainer)
    assert torch.equal(X, before)


def test_a_bad_batch_leaves_everything_as_before_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    targets = Y.clone()
    targets[22] = torch.nan  # in the sixth batch
    theirs = copy.deepcopy(model)
    optimizer = sgd(theirs.parameters())
    torch.manual_seed(1)
    for rows in torch.arange(N).split(SIZE)[:5]:
        optimizer.zero_grad()
        nn.functional.mse_loss(theirs(X[rows]), targets[rows]).backward()
        optimizer.step()
    drawn = torch.random.get_rng_state()
    loader = MiniBatchLoader((X, targets), SIZE, order="sequential", allow_nonfinite=True)
    trainer = Trainer(model, nn.MSELoss(), sgd(model.parameters()), loader, device="cpu")
    assert is_known(trainer)
    with pytest.raises(Exception, match="not finite"):
        fitted(trainer)
    assert same(model, theirs)
    assert trainer.step == 5
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_outputs_of_another_shape_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Flatten(0))
    with pytest.raises(ModelError, match="loss: output has shape"):
        fitted(trainer_of(model, nn.MSELoss(), sgd(model.parameters())))


def test_a_loss_that_is_not_one_number_is_refused() -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(ModelError, match="must be one number"):
        fitted(trainer_of(model, nn.MSELoss(reduction="none"), sgd(model.parameters())))


# ── somebody else's code, which changes the model while a block runs ────────────────────────


def freezing(model: nn.Sequential):
    """Freezes the last layer at its ninth call: nobody hears of that but who looks."""
    calls = 0

    def call(*arguments):
        nonlocal calls
        calls += 1
        if calls == 9:
            model[-1] = copy.deepcopy(model[-1]).requires_grad_(False)

    return call


class Calling(TorchFunctionMode):
    """Calls somebody at each linear map, of the first layer and of the last."""

    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            self.call()
        return function(*args, **(kwargs or {}))


def on_a_layer(model):
    call = freezing(model)
    model[0].register_forward_pre_hook(lambda *_: call())


def on_a_backward_pass(model):
    call = freezing(model)
    model[1].register_full_backward_hook(lambda *_: call())


def on_a_gradient(model):
    call = freezing(model)
    model[0].weight.register_hook(lambda _: call())


def on_a_parameter(model):
    call = freezing(model)
    model[0].weight.register_post_accumulate_grad_hook(lambda _: call())


class Own(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        self.call()
        return x


def in_a_layer(model):
    model.insert(1, Own(freezing(model)))


def in_a_function_of_a_layer(model):
    call = freezing(model)

    def activation(x):
        call()
        return x.tanh()

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, activation=activation)
    model.insert(1, layer)


def in_the_place_of_forward(model):
    call, forward = freezing(model), model[0].forward

    def own(x):
        call()
        return forward(x)

    model[0].forward = own


PLACES = (
    *(on_a_layer, on_a_backward_pass, on_a_gradient, on_a_parameter),
    *(in_a_layer, in_a_function_of_a_layer, in_the_place_of_forward),
)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("put", PLACES, ids=lambda put: put.__name__)
def test_code_that_changes_the_model_within_a_block_is_seen(put) -> None:
    ours, theirs = perceptron(), perceptron()
    for model in (ours, theirs):
        put(model)
    by_hand(theirs, nn.MSELoss(), sgd(theirs.parameters()))
    trainer = trainer_of(ours, nn.MSELoss(), sgd(ours.parameters()))
    assert not is_known(trainer)
    fitted(trainer)
    assert not theirs[-1].weight.requires_grad
    assert same(ours, theirs)


def test_a_mode_that_changes_the_model_within_a_block_is_seen() -> None:
    ours, theirs = perceptron(), perceptron()
    with Calling(freezing(theirs)):
        by_hand(theirs, nn.MSELoss(), sgd(theirs.parameters()))
    trainer = trainer_of(ours, nn.MSELoss(), sgd(ours.parameters()))
    with Calling(freezing(ours)):
        assert not is_known(trainer)
        fitted(trainer)
    assert same(ours, theirs)


def test_hooks_on_all_modules_are_called() -> None:
    ours, calls = perceptron(), []
    trainer = trainer_of(ours, nn.MSELoss(), sgd(ours.parameters()))
    hook = nn.modules.module.register_module_forward_hook(lambda layer, *_: calls.append(layer))
    try:
        assert not is_known(trainer)
        fitted(trainer)
    finally:
        hook.remove()
    assert len(calls) == EPOCHS * 8 * 5  # three layers, the model and the loss


def test_what_is_changed_between_blocks_counts_from_the_next_one() -> None:
    ours, theirs = perceptron(), perceptron()
    optimizer = sgd(ours.parameters())
    trainer = trainer_of(ours, nn.MSELoss(), optimizer)
    fitted(trainer)
    ours[1] = nn.ReLU()
    ours[0].weight.data = ours[0].weight.data * 0.5
    trainer.loss = nn.SmoothL1Loss()
    trainer.fit(2 * EPOCHS)
    optimizer = sgd(theirs.parameters())
    by_hand(theirs, nn.MSELoss(), optimizer)
    theirs[1] = nn.ReLU()
    theirs[0].weight.data = theirs[0].weight.data * 0.5
    by_hand(theirs, nn.SmoothL1Loss(), optimizer)
    assert same(ours, theirs)


# ── somebody else's code, which changes something between two blocks ────────────────────────


def doubled(layer, _, output):
    return 2 * output


class Scaled(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def give_a_forward(model) -> None:
    model[1].forward = lambda x: x.sin()


def make_a_buffer_of_a_weight(model) -> None:
    weight = model[2].weight.detach().clone()
    del model[2].weight
    model[2].register_buffer("weight", weight)


# What is changed: by a function of the model, the loss, and the optimizer.
CHANGES = {
    "nothing": lambda model, loss, optimizer: None,
    "a layer is another": lambda model, loss, optimizer: model.__setitem__(1, nn.ReLU()),
    "a layer more": lambda model, loss, optimizer: model.append(nn.Tanh()),
    "a layer less": lambda model, loss, optimizer: model.pop(1),
    "a class of its own": lambda model, loss, optimizer: setattr(model[1], "__class__", Scaled),
    "a class of PyTorch's": lambda model, loss, optimizer: setattr(
        model[1], "__class__", nn.Tanhshrink
    ),
    "a forward of its own": lambda model, loss, optimizer: give_a_forward(model),
    "a hook": lambda model, loss, optimizer: model[0].register_forward_hook(doubled),
    "a hook on the loss": lambda model, loss, optimizer: loss.register_forward_hook(doubled),
    "a hook on a pass backward": lambda model, loss, optimizer: model[
        1
    ].register_full_backward_hook(lambda _, given, __: (given[0] / 2,)),
    "a hook on a parameter": lambda model, loss, optimizer: model[0].weight.register_hook(
        lambda gradient: gradient / 2
    ),
    "a parameter is another": lambda model, loss, optimizer: setattr(
        model[2], "bias", nn.Parameter(torch.ones(3))
    ),
    "a weight is a buffer": lambda model, loss, optimizer: make_a_buffer_of_a_weight(model),
    "frozen": lambda model, loss, optimizer: model[0].requires_grad_(False),
    "no bias": lambda model, loss, optimizer: setattr(model[2], "bias", None),
    "a setting of the loss": lambda model, loss, optimizer: setattr(loss, "reduction", "sum"),
    "a rate": lambda model, loss, optimizer: optimizer.param_groups[0].update(lr=0.01),
    "a rate that is a tensor": lambda model, loss, optimizer: optimizer.param_groups[0].update(
        lr=torch.tensor(0.01)
    ),
    "momentum": lambda model, loss, optimizer: optimizer.param_groups[0].update(momentum=0.5),
    "a hook on steps": lambda model, loss, optimizer: optimizer.register_step_pre_hook(
        lambda *_: setattr(model[0].weight, "grad", None)
    ),
    "a step of its own": lambda model, loss, optimizer: setattr(optimizer, "step", lambda: None),
    "another group": lambda model, loss, optimizer: optimizer.add_param_group(
        {"params": [nn.Parameter(torch.ones(2))]}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_an_order_changes_counts_from_its_epoch_on(change) -> None:
    """The updates of each epoch are a block, and most make use of what the first one looked up."""
    ours, theirs = perceptron(), perceptron()
    order, fourth = torch.arange(N), 3

    def asked(epoch: int) -> Tensor:
        if epoch == fourth:
            CHANGES[change](ours, trainer.loss, trainer.optimizer)
        return order

    loader = MiniBatchLoader((X, Y), 10, order=asked)
    trainer = Trainer(ours, nn.MSELoss(), sgd(ours.parameters()), loader, device="cpu")
    trainer.block_length._steps = 64
    trainer.fit(EPOCHS)
    optimizer, loss = sgd(theirs.parameters()), nn.MSELoss()
    for epoch in range(EPOCHS):
        if epoch == fourth:
            CHANGES[change](theirs, loss, optimizer)
        for rows in order.split(10):
            optimizer.zero_grad()
            loss(theirs(X[rows]), Y[rows]).backward()
            optimizer.step()
    assert same(ours, theirs)


def test_it_is_made_once_for_blocks_of_few_updates(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(
        "gdtrain.training.engines.known_update.known_update",
        lambda trainer: made.append(known_update(trainer)) or made[-1],
    )
    model = perceptron()
    loader = MiniBatchLoader((X, Y), 15, order=lambda epoch: torch.arange(N))
    Trainer(model, nn.MSELoss(), sgd(model.parameters()), loader, device="cpu").fit(20)
    assert len(made) == 1
    assert made[0] is not None
