"""A loss without a gradient is refused by name, before an update, wherever it comes from."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.errors import GdtrainError, ModelError

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
MESSAGE = (
    "loss: has no gradient: no trained parameter has a part in it; compute it by torch from what "
    "the model gives, without detach(), no_grad(), inference_mode() or numpy"
)


def make(loss: Any = None, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    if options.get("microbatch_size"):
        model[1] = nn.Tanh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, X[:, :1]), 4, order="sequential")
    options = {"device": "cpu", "engine": "eager"} | options
    return Trainer(model, loss or nn.MSELoss(), optimizer, loader, **options)


def weights(trainer: Trainer) -> list[Tensor]:
    return copy.deepcopy(list(trainer.model.parameters()))


def assert_refused(trainer: Trainer, updates: int = 0, message: str = MESSAGE) -> None:
    before = weights(trainer)
    with pytest.raises(ModelError) as caught:
        trainer.fit(2)
    assert str(caught.value) == message
    assert trainer.step == updates
    if not updates:
        assert all(map(torch.equal, before, trainer.model.parameters()))


def mean_square(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().mean()


CUTS: list[dict[str, Any]] = [{}, {"microbatch_size": 3}, {"precision": "bf16"}]


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize("known", [True, False])  # which decides whether parts need two passes
def test_a_detached_output(options: Any, known: bool) -> None:
    loss = F.mse_loss if known else mean_square
    assert_refused(make(lambda o, t: loss(o.detach(), t), **options))


def test_gradients_that_are_switched_off_around_fit() -> None:
    for off in (torch.no_grad(), torch.inference_mode()):
        trainer = make()
        with off:
            assert_refused(trainer)


def test_gradients_that_a_callback_switches_off() -> None:
    class Off(Callback):
        def on_epoch_end(self, trainer: Any, record: Any) -> None:
            torch.set_grad_enabled(False)

    try:
        assert_refused(make(callbacks=[Off()]), updates=2)
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("engine", ["eager", "scan"])
def test_a_model_that_is_frozen_in_mid_run(engine: str) -> None:
    class Freeze(Callback):
        def on_epoch_end(self, trainer: Any, record: Any) -> None:
            trainer.model.requires_grad_(False)

    if engine == "scan":
        pytest.importorskip("jax")
    trainer = make(callbacks=[Freeze()], engine=engine)
    trainer.fit(1)
    before = weights(trainer)
    with pytest.raises(GdtrainError, match="loss: has no gradient: "):
        trainer.fit(2)
    assert all(map(torch.equal, before, trainer.model.parameters()))
    trainer.model.requires_grad_(True)
    trainer.fit(2)
    assert trainer.step == 4


@pytest.mark.parametrize("options", CUTS[:2], ids=str)
def test_a_loss_that_is_no_tensor(options: Any) -> None:
    for value, kind in ((3.0, "float"), ((X.sum(), X), "tuple"), (None, "NoneType")):
        trainer = make(lambda o, t, value=value: value, **options)
        before = weights(trainer)
        with pytest.raises(ModelError, match=rf"^loss: must be a tensor of shape .* got a {kind}"):
            trainer.fit(2)
        assert all(map(torch.equal, before, trainer.model.parameters()))


def test_an_own_update_without_a_loss_to_differentiate() -> None:
    class Own(Trainer):
        def train_step(self, batch: Any) -> Tensor:
            return self.batch_gradient(batch)

    model = nn.Linear(3, 1)
    loader = MiniBatchLoader((X, X[:, :1]), 4)
    trainer = Own(model, None, torch.optim.SGD(model.parameters(), lr=0.1), loader, device="cpu")
    assert_refused(trainer, message="loss: missing; give a loss, or override compute_loss")


def test_a_model_that_was_made_for_inference() -> None:
    with torch.inference_mode():
        model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, X[:, :1]), 4)
    with pytest.raises(ModelError) as caught:
        Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
    assert str(caught.value) == (
        "model: weight was made under torch.inference_mode(), and so has no gradient; make the "
        "model outside of it"
    )
