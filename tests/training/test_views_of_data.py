"""Consecutive batches are views of the user's data, to which nobody's code is to write."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gdtrain import BatchLoader, Loader, MiniBatchLoader, Trainer

ROWS, WIDTH = 1024, 32  # 64 KiB of inputs, and as much of targets, are 512 rows
Data = tuple[Tensor, Tensor]


class OwnWeight(Trainer):
    """Cleans targets where they are counted."""

    def loss_weight(self, batch: Any) -> int:
        batch.targets.clamp_(min=0)
        batch.inputs.clamp_(min=0)
        return len(batch)


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def square_of_cleaned(outputs: Tensor, targets: Tensor) -> Tensor:
    return square(outputs, targets.data.clamp_(min=0))


def made() -> Data:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator), torch.randn(
        ROWS, WIDTH, generator=generator
    )


@pytest.mark.parametrize("make", [BatchLoader, lambda data: sequential(data)])
@pytest.mark.parametrize("microbatch_size", [None, 128])
@pytest.mark.parametrize(
    ("kind", "loss"), [(OwnWeight, nn.MSELoss()), (OwnWeight, square), (Trainer, square_of_cleaned)]
)
def test_losses_and_weights_that_write_leave_the_data(
    make: Callable[[Data], Loader], microbatch_size: int | None, kind: type[Trainer], loss: Any
) -> None:
    data, model = made(), nn.Linear(WIDTH, WIDTH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    kind(model, loss, sgd, make(data), microbatch_size=microbatch_size, device="cpu").fit(2)
    assert all(map(torch.equal, data, made()))


def sequential(data: Data) -> Loader:
    return MiniBatchLoader(data, ROWS // 2, order="sequential")


@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
def test_a_loss_does_not_see_what_a_weight_writes_however_batches_are_cut(order: str) -> None:
    def trained(microbatch_size: int | None) -> list[float]:
        torch.manual_seed(2)
        model = nn.Linear(WIDTH, WIDTH).double()
        loader = MiniBatchLoader(made(), ROWS // 2, order=order)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        size = {"microbatch_size": microbatch_size}
        return OwnWeight(model, nn.MSELoss(), sgd, loader, device="cpu", **size).fit(2).train_loss

    assert trained(100) == pytest.approx(trained(None), rel=1e-12)


@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
def test_a_weight_counts_what_the_loss_has_left_of_a_batch(order: str) -> None:
    """Views or copies: J = Σ w_b J_b / Σ w_b, w_b the targets that compute_loss has not masked."""
    inputs, targets = made()

    class Masked(Trainer):
        def compute_loss(self, batch: Any) -> Tensor:
            batch.targets.masked_fill_(batch.targets < batch.inputs, torch.inf)
            stays = batch.targets.isfinite()
            losses.append(self.model(batch.inputs)[stays].square().mean())
            return losses[-1]

        def loss_weight(self, batch: Any) -> Tensor:
            weights.append(batch.targets.isfinite().sum())
            return weights[-1]

    losses: list[Tensor] = []
    weights: list[Tensor] = []
    model = nn.Linear(WIDTH, WIDTH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((inputs, targets), ROWS // 2, order=order)
    history = Masked(model, None, sgd, loader, device="cpu").fit(1)
    assert sum(weights) == (targets >= inputs).sum()
    mean = sum(w * loss.detach() for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert history.train_loss == pytest.approx([float(mean)], rel=1e-6)
