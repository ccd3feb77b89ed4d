"""A batch cut into microbatches has the gradient and the loss of the whole batch."""

import itertools

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, Trainer
from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError
from gdtrain.training.gradient import batch_gradient

draw = torch.Generator().manual_seed(0)
N = 23
X = torch.randn(N, 4, generator=draw, dtype=torch.float64)
LABELS = torch.randint(3, (N,), generator=draw)
IGNORED = torch.where(torch.arange(N) % 3 == 0, -100, LABELS)
HALF_IGNORED = torch.where(torch.arange(N) < 12, -100, LABELS)  # whole microbatches of nothing
W = torch.tensor([0.2, 1.0, 2.5], dtype=torch.float64)
NUMBERS = torch.randn(N, 3, generator=draw, dtype=torch.float64)
LOSSES = {
    "mse": (nn.MSELoss(), NUMBERS),
    "sum": (nn.MSELoss(reduction="sum"), NUMBERS),
    "huber": (nn.HuberLoss(), NUMBERS),
    "cross_entropy": (nn.CrossEntropyLoss(), LABELS),
    "weighted": (nn.CrossEntropyLoss(weight=W), LABELS),
    "weighted_smoothed": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), LABELS),
    "ignoring": (nn.CrossEntropyLoss(), IGNORED),
    "weighted_ignoring": (nn.CrossEntropyLoss(weight=W), HALF_IGNORED),
    "probabilities": (nn.CrossEntropyLoss(weight=W), NUMBERS.softmax(1)),
    "multi_margin": (nn.MultiMarginLoss(weight=W), LABELS),
}


@pytest.mark.parametrize(
    ("name", "size"), list(itertools.product(LOSSES, [1, 2, 5, 7, 22, 23, 100])), ids=str
)
def test_the_gradient_and_the_loss_are_those_of_a_single_pass(name: str, size: int) -> None:
    loss, targets = LOSSES[name]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    expected = loss(model(X), targets)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    batch = Batch(X, targets, torch.arange(N))
    got = batch_gradient(lambda b: loss(model(b.inputs), b.targets), batch, loss, size)
    assert abs(got - expected.detach()) <= 1e-12 * abs(expected.detach())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-12 * gradient.norm()


def make_trainer(*layers: nn.Module, **options) -> Trainer:
    model = nn.Sequential(nn.Linear(4, 3), *layers).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((X, LABELS))
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", **options)


def test_a_run_in_microbatches_follows_the_run_in_whole_batches() -> None:
    torch.manual_seed(2)
    whole = make_trainer()
    torch.manual_seed(2)
    cut = make_trainer(microbatch_size=5)
    assert torch.allclose(
        torch.tensor(whole.fit(20).train_loss),
        torch.tensor(cut.fit(20).train_loss),
        rtol=1e-12,
        atol=0,
    )


def test_layers_that_mix_samples_are_refused_unless_they_are_in_eval_mode() -> None:
    trainer = make_trainer(nn.BatchNorm1d(3).double(), microbatch_size=5)
    with pytest.raises(ModelError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        "microbatch_size: layer '1' (BatchNorm1d) computes its statistics over the batch in "
        "training mode, so the gradient of a batch is not the sum of its microbatches' "
        "gradients; use GroupNorm or LayerNorm, put the layer in eval mode, or leave "
        "microbatch_size out"
    )
    trainer.model[1].eval()
    assert len(trainer.fit(1)) == 1
