"""Outputs, targets and losses that do not fit each other are refused before anything is learnt."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.errors import ModelError

N = 8
draw = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=draw)
Y = torch.randn(N, generator=draw)


def make(loss, targets: Tensor = Y, outputs: int = 1, loader=BatchLoader, inputs=X) -> Trainer:
    torch.manual_seed(1)
    model = nn.Linear(inputs.shape[-1] if inputs.ndim > 1 else 1, outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, loss, optimizer, loader((inputs, targets)), device="cpu")


class LogCosh(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.log(torch.cosh(output - target)).mean()


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.SmoothL1Loss()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return 2 * self.inner(output, target)


def by_operators(output: Tensor, target: Tensor) -> Tensor:
    error = target.clone()
    error = 1.0 * error - output
    return (error**2).mean()


BROADCASTING = {
    "mse": nn.MSELoss(),
    "function": F.l1_loss,
    "partial": partial(F.huber_loss, delta=0.5),
    "module": LogCosh(),
    "inside": Inside(),
    "lambda": lambda o, t: F.mse_loss(o, t),
    "operators": by_operators,
    "reflected": lambda o, t: (t / (1 + o.exp())).mean(),
    "method": lambda o, t: o.sigmoid().mul(t).mean(),
    "where": lambda o, t: torch.where(t > 0, o, -o).mean(),
    "maximum": lambda o, t: torch.maximum(o, t).sum(),
    "keywords": lambda o, t: torch.sub(input=o, other=t).square().mean(),
    "detached": lambda o, t: (o.double() - t.double()).abs().mean(),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", BROADCASTING)
@pytest.mark.parametrize("loader", [BatchLoader, SampleLoader])
def test_samples_of_one_do_not_meet_all_of_the_other(name: str, loader) -> None:
    trainer = make(BROADCASTING[name], loader=loader)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    n = N if loader is BatchLoader else 1
    with pytest.raises(ModelError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        f"loss: output has shape [{n}, 1] and targets [{n}]; they must be the same, or the loss "
        "would be of their broadcast; reshape one of them"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


INTENDED = {
    "squeezed": (lambda o, t: (o.squeeze(-1) - t).pow(4).mean(), Y, 1),
    "flattened": (lambda o, t: (o.flatten() - t.flatten()).abs().mean(), Y, 1),
    "raised": (lambda o, t: (o - t[:, None]).abs().mean(), Y, 1),
    "pairs": (lambda o, t: (o[:, None, 0] - t[None, :]).abs().mean(), Y, 1),
    "cross entropy": (lambda o, t: F.cross_entropy(o, t), (Y > 0).long(), 2),
    "gathered": (lambda o, t: -o.log_softmax(1)[torch.arange(len(t)), t].mean(), (Y > 0).long(), 2),
    "weights of classes": (
        lambda o, t: (o.log_softmax(1) * torch.tensor([1.0, 2.0])).mean() + 0 * t.sum(), Y, 2
    ),
    "one column": (lambda o, t: (o[:, 0] - t).square().mean() + o[:, 1].exp().mean(), Y, 2),
    "right or wrong": (
        lambda o, t: ((o.argmax(1) == t).float() * o.logsumexp(1)).mean(), (Y > 0).long(), 2
    ),
    "same shape": (lambda o, t: (o - t).square().mean(), Y[:, None], 1),
    "columns": (lambda o, t: (o - t).square().mean(), Y[:, None].expand(N, 4), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", INTENDED)
def test_a_loss_that_brings_shapes_together_is_right(name: str) -> None:
    loss, targets, outputs = INTENDED[name]
    trainer = make(loss, targets, outputs)
    expected = loss(trainer.model(X), targets).detach()
    assert trainer.fit(1).train_loss == pytest.approx([float(expected)], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(),
        F.binary_cross_entropy_with_logits,
        partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor([2.0])),
        nn.HuberLoss(),
    ],
    ids=["module", "function", "partial", "huber"],
)
def test_whole_numbers_against_a_loss_of_floats_are_refused(dtype: torch.dtype, loss) -> None:
    with pytest.raises(ModelError, match=rf"loss: targets are {dtype}, and .* takes floating-poin"):
        make(loss, (Y > 0)[:, None].to(dtype)).fit(1)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.PoissonNLLLoss()])
def test_whole_numbers_are_taken_where_torch_takes_them(loss) -> None:
    targets = (Y > 0)[:, None].long()
    trainer = make(loss, targets)
    try:
        torch.autograd.grad(loss(trainer.model(X), targets), trainer.model.weight)
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} does not take them: {error}")
    expected = loss(trainer.model(X), targets.float()).detach()
    assert trainer.fit(1).train_loss == pytest.approx([float(expected)], rel=1e-6)


@pytest.mark.parametrize("look", ["fit", "evaluate", "predict"])
def test_inputs_of_one_dimension_are_refused(look: str) -> None:
    trainer = make(nn.MSELoss(), inputs=Y)
    work = {"fit": lambda: trainer.fit(1), "evaluate": trainer.evaluate}
    with pytest.raises(ModelError) as caught:
        work.get(look, lambda: trainer.predict(Y))()
    assert str(caught.value) == (
        "model: inputs have shape [8], one number a sample, and a layer takes rows of features; "
        "give the inputs as [8, 1], by inputs[:, None]"
    )


@pytest.mark.parametrize(
    ("loss", "got"), [(("mse",), "('mse',)"), (nn.MSELoss, "the class MSELoss"), (3.0, "3.0")]
)
def test_a_loss_that_is_none_is_refused(loss, got: str) -> None:
    with pytest.raises(ModelError) as caught:
        make(loss)
    assert str(caught.value) == (
        "loss: must be a function (output, targets) -> loss, such as nn.MSELoss(); got " + got
    )


def test_a_callback_that_is_none_is_refused() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match=r"callbacks: must be objects of subclasses of Callback"):
        Trainer(
            model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), callbacks=[print], device="cpu"
        )


def test_a_loss_that_is_given_in_mid_run_is_looked_at() -> None:
    trainer = make(nn.MSELoss(), Y[:, None])
    trainer.fit(1)
    trainer.loss = nn.NLLLoss()
    with pytest.raises(ModelError, match="targets must be int64 class indices, got"):
        trainer.fit(2)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
    ],
)
def test_cross_entropy_of_numbers_over_one_output_is_refused(loss):
    """log softmax of one number is 0, so the loss is: the model would not be trained at all."""
    model = nn.Linear(2, 1)
    loader = MiniBatchLoader((torch.randn(6, 2), torch.rand(6, 1)), 3)
    trainer = Trainer(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    with pytest.raises(ModelError, match=r"^loss: cross_entropy is over one class here"):
        trainer.fit(1)
    assert trainer.step == 0


def test_a_contrastive_loss_of_a_single_pair_is_let_through():
    def info_nce(outputs, targets):
        return F.cross_entropy(outputs @ targets.T, torch.arange(len(outputs)))

    model = nn.Linear(2, 3)
    loader = MiniBatchLoader((torch.randn(3, 2), torch.randn(3, 3)), 1)
    trainer = Trainer(model, info_nce, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    assert trainer.fit(1).train_loss == [0.0]
