"""States of the right form that no run of a configuration can have are refused, part by part."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from gdtrain import BatchLoader, BatchSizes, Callback, MiniBatchLoader, PhasedLoader, Trainer
from gdtrain.checkpoint.consistency import check_consistent
from gdtrain.errors import CheckpointError
from gdtrain.training.state import snapshot
from gdtrain.training.state.compatibility import check_fits

draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 3, generator=draw), torch.randn(12, 2, generator=draw)

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.01),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.5),
    "adadelta": lambda ps: torch.optim.Adadelta(ps),
    "adafactor": lambda ps: torch.optim.Adafactor(ps),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.1),
}
SCHEDULES = {
    "none": lambda o: None,
    "step": lambda o: StepLR(o, 2, 0.5),
    "exponential": lambda o: ExponentialLR(o, 0.9),
    "cosine": lambda o: CosineAnnealingLR(o, 5),
    "lambda": lambda o: LambdaLR(o, lambda t: 1 / (1 + t)),
    "cycle": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=40),
    "warm-up": lambda o: SequentialLR(o, [LinearLR(o, 0.1), ExponentialLR(o, 0.9)], [3]),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0),
}
LOADERS = {
    "batches": lambda: MiniBatchLoader((X, Y), 4),
    "sizes": lambda: MiniBatchLoader((X, Y), BatchSizes([(1, 2), (None, 5)])),
    "phases": lambda: PhasedLoader([(1, MiniBatchLoader((X, Y), 4)), (None, BatchLoader((X, Y)))]),
}


class Model(nn.Module):
    """With a normalisation, a frozen layer, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.still, self.unused = nn.Linear(4, 4).requires_grad_(False), nn.Linear(2, 2)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.still(self.norm(self.first(x))))
        return out


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        super().__init__(every_n_steps=1)
        self.step = step

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            trainer.stop("here")


def build(
    optimizer: str = "momentum", schedule: str = "none", loader: str = "batches", stop: int = 0
) -> Trainer:
    torch.manual_seed(1)
    model = Model()
    made = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    return Trainer(
        model,
        nn.MSELoss(),
        made,
        LOADERS[loader](),
        scheduler=SCHEDULES[schedule](made),
        callbacks=[StopAt(stop)],
        device="cpu",
        engine="eager",
    )


def check(state: dict[str, Any], trainer: Trainer) -> None:
    check_fits(state, trainer, snapshot.parameter_names(trainer))
    check_consistent(state, trainer)


@pytest.mark.few(25)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [*((name, "none") for name in OPTIMIZERS), *(("momentum", name) for name in SCHEDULES)],
)
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_what_a_run_leaves_is_consistent_wherever_it_stops(
    optimizer: str, schedule: str, loader: str, stop: int
) -> None:
    trainer = build(optimizer, schedule, loader, stop)
    before = trainer.state_dict()
    check(before, build(optimizer, schedule, loader))
    trainer.fit(8)
    check(trainer.state_dict(), build(optimizer, schedule, loader))


Edit = Callable[[dict[str, Any]], object]


def group(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = state["optimizer"]["groups"][0]
    return found


def rates(state: dict[str, Any], rate: float) -> None:
    group(state)["lr"] = state["lr"] = rate


EDITS: dict[str, tuple[str, str, Edit, str]] = {
    "momentum": (
        *("momentum", "none", lambda s: group(s).update(momentum=0.1)),
        "optimizer: momentum is 0.1 in the state, and 0.9 in this configuration",
    ),
    "weight decay": (
        *("momentum", "none", lambda s: group(s).update(weight_decay=9.0)),
        "optimizer: weight_decay is 9.0 in the state, and 0 in this configuration",
    ),
    "betas": (
        *("adam", "none", lambda s: group(s).update(betas=(0.1, 0.2))),
        "optimizer: betas is (0.1, 0.2) in the state, and (0.9, 0.999) in this configuration",
    ),
    "rate": (
        *("momentum", "none", lambda s: rates(s, 1e30)),
        "optimizer: lr is 1e+30, which this configuration does not lead to",
    ),
    "a little rate": (
        *("momentum", "none", lambda s: rates(s, 0.06)),
        "optimizer: lr is 0.06, which this configuration does not lead to",
    ),
    "last rate": (
        *("momentum", "none", lambda s: s.update(lr=7.0)),
        "lr is 7, which this configuration does not lead to",
    ),
    "rate of a schedule": (
        *("momentum", "step", lambda s: rates(s, 0.049)),
        "optimizer: lr is 0.049, which this configuration does not lead to",
    ),
    "rate of a cycle": (
        *("momentum", "cycle", lambda s: rates(s, 5.0)),
        "optimizer: lr is 5, which this configuration does not lead to",
    ),
    "rate on a plateau": (
        *("momentum", "plateau", lambda s: rates(s, 0.2)),
        "optimizer: lr is 0.2, which this configuration does not lead to",
    ),
    "base rates": (
        *("momentum", "exponential", lambda s: s["scheduler"].update(base_lrs=[1e9])),
        "scheduler: base_lrs is [1000000000.0] in the state, and [0.05] in this configuration",
    ),
    "base rates of a part": (
        "momentum",
        "warm-up",
        lambda s: s["scheduler"]["_schedulers"][1].update(base_lrs=[1e9]),
        "scheduler: base_lrs is [1000000000.0] in the state, and [0.05] in this configuration",
    ),
    "factor": (
        *("momentum", "step", lambda s: s["scheduler"].update(gamma=0.9)),
        "scheduler: gamma is 0.9 in the state, and 0.5 in this configuration",
    ),
    "no buffer": (
        *("momentum", "none", lambda s: s["optimizer"]["state"].pop("first.weight")),
        "optimizer: the state lacks momentum_buffer of first.weight, which updates have changed",
    ),
    "no buffers": (
        *("momentum", "none", lambda s: s["optimizer"]["state"].clear()),
        "optimizer: the state lacks momentum_buffer of first.weight, which updates have changed",
    ),
    "half of Adam": (
        *("adam", "none", lambda s: s["optimizer"]["state"]["last.bias"].pop("max_exp_avg_sq")),
        "",  # torch can't go on from it, which is seen first
    ),
    "squares": (
        "adam",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"]["exp_avg_sq"].neg_(),
        "optimizer: exp_avg_sq of last.bias is negative, and is a mean of squares",
    ),
    "no number": (
        "momentum",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"]["momentum_buffer"].fill_(math.nan),
        "optimizer: momentum_buffer of last.bias has NaN in it",
    ),
    "half a step": (
        "adam",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"]["step"].fill_(2.5),
        "optimizer: step of last.bias is 2.5, which no number of updates leaves",
    ),
    "no step yet": (
        "adam",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"]["step"].fill_(0),
        "optimizer: step of last.bias is 0, which no number of updates leaves",
    ),
    "foreign": (
        "adam",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"].update(momentum_buffer=torch.ones(2)),
        "optimizer: momentum_buffer of last.bias is nothing that updates leave",
    ),
    "dtype": (
        "rmsprop",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"].update(square_avg=torch.ones(2).double()),
        "optimizer: square_avg of last.bias is not a tensor such as updates leave",
    ),
    "L-BFGS: count": (
        "lbfgs",
        "none",
        lambda s: s["optimizer"]["state"]["first.weight"].update(n_iter="x"),
        "optimizer: n_iter is no count",
    ),
    "L-BFGS: history": (
        "lbfgs",
        "none",
        lambda s: s["optimizer"]["state"]["first.weight"]["ro"].pop(),
        "optimizer: ro is not what L-BFGS keeps",
    ),
    "L-BFGS: direction": (
        "lbfgs",
        "none",
        lambda s: s["optimizer"]["state"]["first.weight"].pop("d"),
        "optimizer: the state lacks d",
    ),
    "patience": (
        *("momentum", "plateau", lambda s: s["scheduler"].update(patience=9)),
        "scheduler: patience is 9 in the state, and 0 in this configuration",
    ),
    "length of a cycle": (
        *("momentum", "cycle", lambda s: s["scheduler"].update(total_steps=50)),
        "scheduler: total_steps is 50 in the state, and 40 in this configuration",
    ),
    "turns": (
        *("momentum", "step", lambda s: s["scheduler"].update(last_epoch=7, _step_count=8)),
        "scheduler: last_epoch is 7, but progress is at epoch 1 and step 4",
    ),
    "half a turn": (
        *("momentum", "plateau", lambda s: s["scheduler"].update(last_epoch=0.5)),
        "scheduler: last_epoch is 0.5, but progress is at epoch 1 and step 4",
    ),
    "two counts of turns": (
        *("momentum", "exponential", lambda s: s["scheduler"].update(_step_count=9)),
        "scheduler: _step_count is 9, but last_epoch is 1",
    ),
    "bad epochs": (
        *("momentum", "plateau", lambda s: s["scheduler"].update(num_bad_epochs=-3)),
        "scheduler: num_bad_epochs is -3, no count",
    ),
    "step": (
        "adam",
        "none",
        lambda s: s["optimizer"]["state"]["last.bias"]["step"].add_(100),
        "optimizer: step of last.bias is 104, of 4 updates",
    ),
    "variance": (
        *("momentum", "none", lambda s: s["model"]["norm.running_var"].neg_()),
        "model: norm.running_var is negative",
    ),
    "count": (
        *("momentum", "none", lambda s: s["model"]["norm.num_batches_tracked"].neg_()),
        "model: norm.num_batches_tracked is negative",
    ),
    "generators": (
        *("momentum", "none", lambda s: s["made_by"].update(processes=2)),
        "rng: there are generators of 1 processes, but 2 have made it",
    ),
    "epoch": (
        *("momentum", "none", lambda s: s["progress"].update(epoch=3)),
        "progress: epoch is 3, but its history has 1",
    ),
    "steps": (
        *("momentum", "none", lambda s: s["progress"].update(step=9)),
        "progress: step is 9, but history and epoch make 4",
    ),
    "samples": (
        *("momentum", "none", lambda s: s["progress"].update(samples=99)),
        "progress: samples is 99, but history and epoch make 16",
    ),
    "history": (
        *("momentum", "none", lambda s: s["history"][0].update(step=-3)),
        "history: step falls from one epoch to the next",
    ),
    "more steps": (
        "momentum",
        "none",
        lambda s: (s["history"][0].update(step=7), s["progress"].update(step=8)),
        "progress: step is 8, but 1 epochs and step_in_epoch make 4",
    ),
}


@pytest.mark.few(25)
@pytest.mark.parametrize("kind", EDITS)
def test_a_part_that_contradicts_the_others_or_the_configuration_is_refused(kind: str) -> None:
    optimizer, schedule, edit, said = EDITS[kind]
    trainer = build(optimizer, schedule, stop=4)
    trainer.fit(8)
    state = copy.deepcopy(trainer.state_dict())
    check(state, build(optimizer, schedule))
    edit(state)
    with pytest.raises(CheckpointError, match=f"^{re.escape(said)}"):
        check(state, build(optimizer, schedule))
