"""Random layers under engine scan: a stream that is a function of the seed and the step."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gdtrain import Callback, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.errors import ConfigError

pytest.importorskip("jax")

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """Dropout, and noise by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(5, 8), nn.Dropout(0.4), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.drop(self.body(x)) + 0.1 * torch.randn_like(self.body.bias))


class Looking(Callback):
    """Ends a block every five updates, and keeps what a run is resumed from."""

    every_n_steps = 5

    def __init__(self) -> None:
        self.snapshots = []

    def on_safe_point(self, trainer):
        self.snapshots.append(trainer.state_dict())


def build(seed=1, model=None, callbacks=(), engine="scan", loader=MiniBatchLoader):
    torch.manual_seed(0)
    model = Noisy() if model is None else model
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    sizes = (4,) if loader is MiniBatchLoader else ()
    data = loader((X, X.sum(1, keepdim=True)), *sizes)
    return Trainer(
        *(model, nn.MSELoss(), optimizer, data),
        device="cpu",
        engine=engine,
        callbacks=callbacks,
    )


def fitted(seed, **options):
    trainer = build(seed, **options)
    trainer.fit(3)
    return trainer


def bits(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_weights_depend_on_the_seed_and_not_on_where_blocks_end_or_a_run_is_resumed() -> None:
    looking = Looking()
    plain, cut, other = (fitted(1), fitted(1, callbacks=[looking]), fitted(2))
    assert torch.equal(bits(plain), bits(cut))
    assert not torch.equal(bits(plain), bits(other))
    snapshot = looking.snapshots[1]
    snapshot["callbacks"].clear()
    resumed = build(seed=3)
    resumed.load_state_dict(snapshot)
    assert 0 < resumed.step < plain.step
    resumed.fit(3)
    assert torch.equal(bits(resumed), bits(plain))


def test_every_update_drops_its_own_share() -> None:
    """With the loss w times the mean of a mask, w moves by the share that is kept, over 1 - p."""

    class Share(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return (F.dropout(torch.ones(10_000), 0.3) * self.w).mean() * torch.ones(len(x), 1)

    class Keep(Callback):
        every_n_steps = 1

        def __init__(self) -> None:
            self.values = [0.0]

        def on_safe_point(self, trainer):
            self.values.append(float(trainer.model.w.detach()))

    class Mean(Trainer):
        def compute_loss(self, batch):
            return self.model(batch.inputs).mean()

    model, keep = Share(), Keep()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = SampleLoader((X, X[:, :1]))
    Mean(model, None, optimizer, loader, device="cpu", engine="scan", callbacks=[keep]).fit(1)
    values = torch.tensor(keep.values, dtype=torch.float64)
    kept = 0.7 * (values[:-1] - values[1:])  # of 10,000 with probability 0.7: σ = 0.0046
    assert (kept - 0.7).abs().max() < 5 * 0.0046
    assert len(set(kept.tolist())) > len(X) / 2


def test_it_is_told_once(caplog) -> None:
    trainer = build()
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(1)
        torch.manual_seed(7)
        trainer.fit(2)
    told = [record.message for record in caplog.records if "draws" in record.message]
    assert told == [
        "engine: scan draws its random numbers (dropout's masks) from a stream of its own, a "
        "function of the seed and the step; they are not those of eager"
    ]


def test_dropout_in_eval_mode_draws_nothing(caplog) -> None:
    trainer = build(model=nn.Sequential(nn.Linear(5, 1), nn.Dropout(0.5)))
    trainer.model[1].eval()
    trainer.fit(1)
    assert not [record for record in caplog.records if "draws" in record.message]


def test_windows_at_random_places() -> None:
    """The largest of all is in a window of each draw: it trains, and ends with the same bits."""

    def pooled():
        layers = nn.Unflatten(1, (1, 1, 5)), nn.FractionalMaxPool2d((1, 2), (1, 3)), nn.Flatten()
        return nn.Sequential(nn.Linear(5, 5), *layers, nn.Linear(3, 1))

    one, again = fitted(1, model=pooled()), fitted(1, model=pooled())
    assert torch.equal(bits(one), bits(again))
    assert not torch.equal(bits(one), bits(fitted(2, model=pooled())))
    assert one.history.train_loss[-1] < one.history.train_loss[0]


class Checkpointed(Noisy):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class OwnGenerator(Noisy):
    draw = torch.Generator()

    def forward(self, x):
        return super().forward(x) * torch.rand(1, generator=self.draw)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Checkpointed, "sets PyTorch's generator"), (OwnGenerator, "enerator")],
)
def test_streams_that_it_can_not_follow_are_refused(model, reason) -> None:
    with pytest.raises(ConfigError, match=f"^engine: scan can't run this: .*{reason}"):
        build(model=model()).fit(1)


DRAWS = """
import sys
import numpy as np
import torch
from torch import nn
from gdtrain import MiniBatchLoader, Trainer

X = torch.arange(12.0)[:, None] / 12
torch.manual_seed(0)
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = MiniBatchLoader((X, 2 * X), 4, order=lambda epoch: np.random.permutation(12))
trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine=sys.argv[1])
np.random.seed(1)
trainer.fit(2)
print(np.random.rand())
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("engine", ["scan", "eager"])
def test_the_first_use_of_jax_draws_nothing_from_numpys_generator(engine):
    """In a new process: jax draws from it while it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", DRAWS, engine],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    draw = np.random.RandomState(1)
    for _ in range(2):
        draw.permutation(12)
    assert float(done.stdout) == draw.rand()
