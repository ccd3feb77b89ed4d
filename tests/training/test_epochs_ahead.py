"""Epochs that are read at once: whatever somebody's code changes meanwhile is seen as in a loop."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from gdtrain import Batch, MiniBatchLoader, PhasedLoader, Plan, Trainer
from gdtrain.data.orders.order import generator
from gdtrain.training import blocks

EPOCHS, SIZE, SAMPLES = 12, 4, 10
BATCHES = 3
Data = dict[str, Any]


def made() -> Data:
    """What is trained on, and other data."""
    X = torch.randn(2 * SAMPLES, 2, generator=torch.Generator().manual_seed(0))
    y = X.sum(dim=1, keepdim=True)
    return {"X": X[:SAMPLES].clone(), "y": y[:SAMPLES].clone(), "other": (X[SAMPLES:], y[SAMPLES:])}


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


# ── what somebody's code does in an update, of the trainer or of the plain loop (None) ──────────


def nothing(_data: Data, _trainer: Trainer | None) -> None:
    pass


def write(data: Data, _: Trainer | None) -> None:
    data["X"].mul_(1.5)


def write_uncounted(data: Data, _: Trainer | None) -> None:
    data["X"].data.mul_(1.5)


def write_by_numpy(data: Data, _: Trainer | None) -> None:
    data["y"].numpy()[:] *= 2


def give_other_tensors(data: Data, trainer: Trainer | None) -> None:
    data["X"], data["y"] = data["other"]
    if trainer is not None:
        data["set"].tensors = data["other"]


def give_other_loader(data: Data, trainer: Trainer | None) -> None:
    data["X"], data["y"] = data["other"]
    if trainer is not None:
        trainer.loader = MiniBatchLoader(data["other"], SIZE, order=data["order"], seed=3)


def give_other_samples(data: Data, trainer: Trainer | None) -> None:
    data["X"], data["y"] = data["other"]
    if trainer is not None and trainer.loader is not None:
        trainer.loader.samples = MiniBatchLoader(data["other"], SIZE).samples


def change_seed(data: Data, trainer: Trainer | None) -> None:
    data["seed"] = 9
    if trainer is not None and trainer.loader is not None:
        trainer.loader.seed = 9


def change_order(data: Data, trainer: Trainer | None) -> None:
    data["order"] = "sequential"
    if trainer is not None:
        trainer.loader.order = "sequential"  # type: ignore[union-attr]


CHANGES = (
    *(nothing, write, write_uncounted, write_by_numpy, give_other_tensors, give_other_loader),
    *(give_other_samples, change_seed, change_order),
)


def by_hand(change: Callable[..., None], when: int, order: str) -> nn.Module:
    data, model, step = made() | {"seed": 3, "order": order}, make_model(), 0
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(EPOCHS):
        chosen = torch.arange(SAMPLES)
        if data["order"] == "reshuffle":
            chosen = torch.randperm(SAMPLES, generator=generator(data["seed"], epoch))
        for rows in chosen.split(SIZE):
            inputs, targets = data["X"][rows], data["y"][rows]
            if step == when:
                change(data, None)
            sgd.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            sgd.step()
            step += 1
    return model


def by_trainer(change: Callable[..., None], when: int, order: str) -> nn.Module:
    data, model = made() | {"order": order}, make_model()
    data["set"] = TensorDataset(data["X"], data["y"])

    def compute_loss(trainer: Trainer, batch: Batch) -> Tensor:
        if trainer.step == when:
            change(data, trainer)
        return (trainer.model(batch.inputs) - batch.targets).square().mean()

    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(data["set"], SIZE, order=order, seed=3)
    Trainer(model, None, sgd, loader, compute_loss=compute_loss, device="cpu").fit(EPOCHS)
    return model


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches were read at once, each time."""
    found: list[int] = []
    plain = blocks.cut

    def noted(rows: Any, places: Tensor, sizes: list[int]) -> Any:
        found.append(len(sizes))
        return plain(rows, places, sizes)

    monkeypatch.setattr(blocks, "cut", noted)
    return found


@pytest.mark.parametrize("order", ["reshuffle", "sequential"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_the_last_update_of_an_epoch(change, order: str, reads) -> None:
    when = 5 * BATCHES + 2
    ours, theirs = by_trainer(change, when, order), by_hand(change, when, order)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert reads == [EPOCHS * BATCHES], "all at once; and no more where that was in vain"


@pytest.mark.parametrize("order", ["reshuffle", "sequential"])
def test_data_that_are_written_to_within_an_epoch(order: str, reads) -> None:
    ours, theirs = by_trainer(write, 16, order), by_hand(write, 16, order)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert len(reads) == 1


def test_a_model_that_has_another_dtype_from_an_epoch_on(reads) -> None:
    dtypes, model, data = [], make_model(), made()

    def compute_loss(trainer: Trainer, batch: Batch) -> Tensor:
        dtypes.append(batch.inputs.dtype)
        if trainer.step == 5:
            trainer.model.double()
        return (trainer.model(batch.inputs.to(trainer.dtype)) - batch.targets).square().mean()

    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((data["X"], data["y"]), SIZE)
    Trainer(model, None, sgd, loader, compute_loss=compute_loss, device="cpu").fit(4)
    assert dtypes == [torch.float32] * 6 + [torch.float64] * 6
    assert len(reads) == 1


def test_inputs_keep_their_structure(reads) -> None:
    seen, model, data = [], make_model(), made()

    def compute_loss(trainer: Trainer, batch: Batch) -> Tensor:
        seen.append((batch.inputs["x"], batch.indices))
        return (trainer.model(batch.inputs["x"]) - batch.targets).square().mean()

    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(({"x": data["X"]}, data["y"]), SIZE, seed=4)
    Trainer(model, None, sgd, loader, compute_loss=compute_loss, device="cpu").fit(3)
    assert len(seen) == 9 == reads[0]
    for epoch in range(3):
        order = torch.cat([rows for _, rows in seen[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(order, torch.randperm(SAMPLES, generator=generator(4, epoch)))
    assert all(torch.equal(x, data["X"][rows]) for x, rows in seen)


def test_many_rows_are_read_an_epoch_at_a_time_where_somebodys_code_runs(reads) -> None:
    model, X = make_model(), torch.randn(8000, 2)

    def compute_loss(trainer: Trainer, batch: Batch) -> Tensor:
        return trainer.model(batch.inputs).square().mean()

    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(X, 4000)
    Trainer(model, None, sgd, loader, compute_loss=compute_loss, device="cpu").fit(3)
    assert reads == []


def test_zeros_that_change_their_sign_unseen() -> None:
    """1/x and copysign tell 0 from -0, which are equal."""
    seen, model, X = [], make_model(), torch.zeros(SAMPLES, 2)

    def compute_loss(trainer: Trainer, batch: Batch) -> Tensor:
        seen.append(torch.copysign(torch.ones(()), batch.inputs).mean().item())
        if trainer.step % BATCHES == BATCHES - 1:
            X.data.neg_()
        return trainer.model(batch.inputs).square().mean()

    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(X, SIZE, order="sequential")
    Trainer(model, None, sgd, loader, compute_loss=compute_loss, device="cpu").fit(4)
    assert seen == ([1.0] * BATCHES + [-1.0] * BATCHES) * 2


@pytest.mark.parametrize("in_phases", [False, True])
@pytest.mark.parametrize("own_loss", [False, True])
def test_a_plan_of_ones_own_is_asked_for_in_its_epoch(in_phases: bool, own_loss: bool) -> None:
    """It may look at the weights, which are those after all updates so far."""
    data, model = made(), make_model()
    loader: Any = MiniBatchLoader((data["X"], data["y"]), SIZE)
    asked: dict[int, int] = {}

    def plan(epoch: int) -> Plan:
        asked.setdefault(epoch, trainer.progress.step)
        return Plan(epoch, SAMPLES, SIZE, torch.arange(SAMPLES))

    def compute_loss(trainer: Trainer, batch: Batch) -> Tensor:
        return (trainer.model(batch.inputs) - batch.targets).square().mean()

    own: Any = {"compute_loss": compute_loss} if own_loss else {}
    loader.plan = plan
    loader = PhasedLoader([(None, loader)]) if in_phases else loader
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, nn.MSELoss(), sgd, loader, device="cpu", **own)
    asked.clear()
    trainer.fit(EPOCHS)
    assert asked == {epoch: epoch * BATCHES for epoch in range(EPOCHS)}
