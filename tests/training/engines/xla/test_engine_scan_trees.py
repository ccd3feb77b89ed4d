"""Data in tuples, dicts and dataclasses of tensors under engine scan, against a loop by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Callback, MiniBatchLoader, SampleLoader, Trainer

pytest.importorskip("jax")

ROWS, SIZE = 14, 4  # the last batch has two
DRAW = torch.Generator().manual_seed(0)
A = torch.randn(ROWS, 3, generator=DRAW, dtype=torch.float64)
B = torch.randn(ROWS, 3, generator=DRAW, dtype=torch.float64)
KIND = torch.randint(4, (ROWS,), generator=DRAW)
Y = torch.randn(ROWS, 2, generator=DRAW, dtype=torch.float64)
Z = torch.randn(ROWS, generator=DRAW, dtype=torch.float64)
TOLERANCE = 1e-10


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor


class Net(nn.Module):
    """Two inputs that count differently, and a number of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 5)
        self.kinds, self.head = nn.Embedding(4, 5), nn.Linear(5, 3)

    def forward(self, left, right, kind):
        hidden = torch.tanh(self.left(left)) * self.right(right) + self.kinds(kind)
        return self.head(hidden)


def loss_by_hand(model, rows):
    output = model(A[rows], B[rows], KIND[rows])
    return F.mse_loss(output[:, :2], Y[rows]) + (output[:, 2] - Z[rows]).abs().mean()


def make():
    torch.manual_seed(3)
    model = Net().double()
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def by_hand(orders):
    model, optimizer = make()
    for rows in orders:
        optimizer.zero_grad()
        loss_by_hand(model, rows).backward()
        optimizer.step()
    return model


def of_output(output, y, z):
    return F.mse_loss(output[:, :2], y) + (output[:, 2] - z).abs().mean()


class OfDicts(Trainer):
    """Takes the targets out of the dict, as many loops do."""

    def compute_loss(self, batch):
        y, z = batch.inputs.pop("y"), batch.inputs.pop("z")
        return of_output(self.model(**batch.inputs), y, z)


class OfTuples(Trainer):
    def compute_loss(self, batch):
        (left, right), kind = batch.inputs
        return of_output(self.model(left, right, kind), **batch.targets)


class OfDataclasses(Trainer):
    def compute_loss(self, batch):
        pair = batch.inputs["pair"]
        output = self.model(pair.left, pair.right, batch.inputs["kind"])
        return of_output(output, *batch.targets)


KINDS = {
    "a dict": (OfDicts, {"left": A, "right": B, "kind": KIND, "y": Y, "z": Z}),
    "tuples": (OfTuples, (((A, B), KIND), {"y": Y, "z": Z})),
    "dataclasses": (OfDataclasses, ({"pair": Pair(A, B), "kind": KIND}, (Y, Z))),
}


def trained(name, loader, epochs=3, callbacks=(), engine="scan"):
    kind, data = KINDS[name]
    model, optimizer = make()
    trainer = kind(
        *(model, None, optimizer, loader(data)),
        callbacks=callbacks,
        engine=engine,
        device="cpu",
        progress=False,
    )
    trainer.fit(epochs)
    assert trainer.engine.name == engine
    return model


def assert_close(got, expected):
    for name, value in expected.state_dict().items():
        mine = got.state_dict()[name]
        assert (mine - value).norm() <= TOLERANCE * (value.norm() + 1e-3), name


@pytest.mark.few(2)
@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_loop_by_hand(name: str, order: str) -> None:
    seen = []

    def loader(data):
        made = MiniBatchLoader(data, SIZE, order=order, seed=5)
        for epoch in range(3):
            made.set_epoch(epoch)
            seen.extend(batch.indices for batch in made)
        made.set_epoch(None)
        return made

    got = trained(name, loader)
    assert [len(rows) for rows in seen] == 3 * [4, 4, 4, 2]
    assert_close(got, by_hand(seen))


@pytest.mark.long
@pytest.mark.parametrize("form", [BatchLoader, SampleLoader])
@pytest.mark.parametrize("name", KINDS)
def test_so_they_are_in_the_other_forms(name: str, form) -> None:
    rows = torch.arange(ROWS)
    orders = 3 * ([rows] if form is BatchLoader else [*rows.split(1)])
    got = trained(name, lambda data: form(data, order="sequential"))
    assert_close(got, by_hand(orders))


class WithLoss(Net):
    """Gives its own loss and outputs, as models of Hugging Face do."""

    def forward(self, left, right, kind, labels):
        logits = super().forward(left, right, kind)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_model_that_takes_a_dict_by_its_names_and_gives_its_loss() -> None:
    labels = torch.arange(ROWS) % 3

    def made(engine):
        torch.manual_seed(3)
        model = WithLoss().double()
        data = {"labels": labels, "kind": KIND, "left": A, "right": B}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = MiniBatchLoader(data, SIZE, order="sequential")
        return Trainer(model, "model", optimizer, loader, engine=engine, device="cpu")

    hand, scan = made("eager").model, made("scan")
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for rows in 2 * [*torch.arange(ROWS).split(SIZE)]:
        optimizer.zero_grad()
        hand(A[rows], B[rows], KIND[rows], labels[rows])["loss"].backward()
        optimizer.step()
    scan.fit(2, progress=False)
    assert_close(scan.model, hand)


def test_values_that_somebody_changes_in_mid_run_count() -> None:
    data = {name: tensor.clone() for name, tensor in KINDS["a dict"][1].items()}

    class Doubles(Callback):
        def on_epoch_end(self, trainer, record):
            if record["epoch"] == 1:
                data["y"].mul_(2)

    def loader(_):
        return MiniBatchLoader(data, SIZE, order="sequential")

    got = trained("a dict", loader, 3, [Doubles()])
    data["y"].div_(2)
    assert_close(got, trained("a dict", loader, 3, [Doubles()], engine="eager"))


def test_keys_that_change_places_make_another_step() -> None:
    """The same shapes in another order: what an earlier trainer has captured is not theirs."""
    swapped = {"right": B, "left": A, "kind": KIND, "z": Z, "y": Y}

    def loader(data):
        return MiniBatchLoader(data, SIZE, order="sequential")

    orders = 3 * [*torch.arange(ROWS).split(SIZE)]
    assert_close(trained("a dict", loader), by_hand(orders))
    assert_close(trained("a dict", lambda _: loader(swapped)), by_hand(orders))
