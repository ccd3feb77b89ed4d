"""Orders that have changed: a checkpoint goes on with those that it was made with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gdtrain import BatchSizes, MiniBatchLoader, PhasedLoader, SampleLoader, Trainer
from gdtrain.errors import CheckpointError

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
DATA = (X, X.sum(1, keepdim=True))
SEED = 2**64 + 3  # whose orders are those of 3 in version 1


def loader_of(kind: str, seed: int = SEED) -> Any:
    if kind == "one":
        return MiniBatchLoader(DATA, 5, seed=seed)
    if kind == "sizes":
        return MiniBatchLoader(DATA, BatchSizes([(2, 3), (None, 4)]), seed=seed)
    return PhasedLoader([(2, MiniBatchLoader(DATA, 4, seed=seed)), (None, SampleLoader(DATA))])


class Noting(Trainer):
    def train_step(self, batch: Any) -> Any:
        self.__dict__.setdefault("seen", []).extend(batch.indices.tolist())
        return super().train_step(batch)


def make(loader: Any) -> Noting:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Noting(model, nn.MSELoss(), optimizer, loader, device="cpu")


@pytest.mark.parametrize("kind", ["one", "sizes", "phases"])
def test_a_state_of_version_0_1_0_goes_on_with_its_orders(kind: str) -> None:
    trainer = make(loader_of(kind))
    trainer.fit(1)
    state = trainer.state_dict()
    old = state | {"data": {k: v for k, v in state["data"].items() if k != "orders"}}
    expected = {
        version: torch.cat([loader_of(kind, seed).plan(1).indices]).tolist()
        for version, seed in ((1, 3), (2, SEED))
    }
    assert expected[1] != expected[2]
    for version, snapshot in ((1, old), (2, state)):
        restored = make(loader_of(kind))
        restored.load_state_dict(snapshot)
        again = make(loader_of(kind))
        again.load_state_dict(restored.state_dict())
        for resumed in (restored, again):
            resumed.fit(2)
            assert resumed.seen == expected[version]


def test_the_fingerprint_says_which_orders_they_are() -> None:
    assert loader_of("one").fingerprint()["orders"] == 2
    assert loader_of("phases").fingerprint()["orders"] == 2
    assert "orders" not in loader_of("phases").fingerprint(1)


@pytest.mark.parametrize("version", [0, 3, "2", None, True])
def test_orders_of_a_later_version_are_refused(version: Any) -> None:
    trainer = make(loader_of("one"))
    state = trainer.state_dict()
    state["data"]["orders"] = version
    said = f"its orders are of version {version}, which this gdtrain does not know"
    with pytest.raises(CheckpointError, match=said):
        trainer.load_state_dict(state)
