"""CTC's loss under engine scan, whose lengths stand in the batches, beside the loop by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer
from gdtrain.training.engines.capturing.ctc import ctc_loss

pytest.importorskip("jax")

ROWS, SIZE, STEPS, CLASSES = 11, 4, 9, 5
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def data(dtype):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, STEPS, 3, generator=draw, dtype=torch.float64).to(dtype)
    lengths = torch.randint(7, STEPS + 1, (ROWS,), generator=draw)
    labels = torch.randint(1, CLASSES, (ROWS, 4), generator=draw)
    sizes = torch.randint(0, 4, (ROWS,), generator=draw)
    return x, lengths, labels, sizes


def rows(dtype):
    """Inputs in a row with their lengths, and labels with theirs."""
    x, lengths, labels, sizes = data(dtype)
    inputs = torch.cat([x.flatten(1), lengths.unsqueeze(1).to(dtype)], dim=1)
    return inputs, torch.cat([labels, sizes.unsqueeze(1)], dim=1)


def make(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, CLASSES)).to(dtype)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def loss_of(model, inputs, targets):
    log_probs = model(inputs[:, :-1].unflatten(1, (STEPS, 3))).log_softmax(-1)
    lengths = inputs[:, -1].long(), targets[:, -1]
    return nn.CTCLoss()(log_probs.transpose(0, 1), targets[:, :-1], *lengths)


class Aligning(Trainer):
    def compute_loss(self, batch):
        return loss_of(self.model, batch.inputs, batch.targets)

    def loss_weight(self, batch):
        return len(batch)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [*TOLERANCE][::-1], ids=str)
def test_an_epoch_ends_with_the_weights_of_the_loop_by_hand(dtype) -> None:
    inputs, targets = rows(dtype)
    hand, optimizer = make(dtype)
    for batch in zip(inputs.split(SIZE), targets.split(SIZE), strict=True):
        optimizer.zero_grad()
        loss_of(hand, *batch).backward()
        optimizer.step()
    model, optimizer = make(dtype)
    loader = MiniBatchLoader((inputs, targets), SIZE, order="sequential")
    Aligning(model, None, optimizer, loader, device="cpu", engine="scan").fit(1)
    for got, expected in zip(model.parameters(), hand.parameters(), strict=True):
        assert (got - expected).norm() <= TOLERANCE[dtype] * (expected.norm() + 1e-3)


def test_the_operator_is_pytorchs_loss() -> None:
    _, lengths, labels, sizes = data(torch.float64)
    log_probs = torch.randn(STEPS, ROWS, CLASSES, dtype=torch.float64).requires_grad_()
    weights = torch.arange(1.0, ROWS + 1, dtype=torch.float64)
    expected = F.ctc_loss(log_probs, labels, lengths, sizes, reduction="none")
    (of_pytorch,) = torch.autograd.grad(expected @ weights, log_probs)
    got = ctc_loss(log_probs, labels, lengths, sizes, 0)
    (of_operator,) = torch.autograd.grad(got @ weights, log_probs)
    assert torch.equal(got, expected)
    assert torch.equal(of_operator, of_pytorch)
