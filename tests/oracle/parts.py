"""The parts of a program, made separately for each who runs it: model, loss, optimizer, data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from oracle.program import Program
from oracle.zoo import IGNORED, INPUTS, LOSSES, MODELS, TOKENS, WIDTH, Net

CHANNELS = 4  # height and width of images, and tokens of a row
GAP = 1  # the row that a data set with gaps does not have
EPS = {"eps": 1e-3}  # large, so that rounding of a gradient that is about 0 makes no other step

# name -> groups of parameters, learning rate -> optimizer
OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr),
    "momentum": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9),
    "nesterov": lambda groups, lr: torch.optim.SGD(
        groups, lr, momentum=0.8, nesterov=True, weight_decay=0.05
    ),
    "dampening": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9, dampening=0.5),
    "decay": lambda groups, lr: torch.optim.SGD(groups, lr, weight_decay=0.1),
    "maximize": lambda groups, lr: torch.optim.SGD(groups, lr / 10, maximize=True),
    "foreach": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.5, foreach=True),
    "tensor_lr": lambda groups, lr: torch.optim.SGD(groups, torch.tensor(lr), momentum=0.5),
    "adam": lambda groups, lr: torch.optim.Adam(groups, lr / 2, **EPS),
    "adam_fused": lambda groups, lr: torch.optim.Adam(groups, lr / 2, fused=True, **EPS),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr / 2, amsgrad=True, **EPS),
    "rmsprop": lambda groups, lr: torch.optim.RMSprop(groups, lr / 4, momentum=0.5, **EPS),
    "adagrad": lambda groups, lr: torch.optim.Adagrad(groups, lr, **EPS),
    "adadelta": lambda groups, lr: torch.optim.Adadelta(groups, 10 * lr, **EPS),
    "adamax": lambda groups, lr: torch.optim.Adamax(groups, lr / 2, **EPS),
    "nadam": lambda groups, lr: torch.optim.NAdam(groups, lr / 2, **EPS),
    "radam": lambda groups, lr: torch.optim.RAdam(groups, lr / 2, **EPS),
    "asgd": lambda groups, lr: torch.optim.ASGD(groups, lr),
    "rprop": lambda groups, lr: torch.optim.Rprop(groups, lr / 5),
    "adafactor": lambda groups, lr: torch.optim.Adafactor(groups, lr),
    "lbfgs": lambda groups, lr: torch.optim.LBFGS(groups, lr, max_iter=3, history_size=3),
}
SGD_KINDS = {"sgd", "momentum", "nesterov", "dampening", "decay", "foreach", "tensor_lr"}
SPARSE_OPTIMIZERS = {"sgd", "momentum", "adagrad"}

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "warm_restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=3),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(
        o, [2 * group["lr"] for group in o.param_groups], 500, cycle_momentum=_has_momentum(o)
    ),
    "cyclic": lambda o: lr_scheduler.CyclicLR(
        o, [g["lr"] / 2 for g in o.param_groups], [g["lr"] for g in o.param_groups], 3,
        cycle_momentum=False,
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.3, 2), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[2],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.3, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}  # fmt: skip
# Schedules that go on when a group is added in mid-run.
OPEN_SCHEDULES = {None, "exponential", "step", "multistep", "linear"}
# Schedules that compute each rate from the last one, so that it can be set beside them.
FROM_RATE = {None, "exponential", "step", "multistep", "cosine", "linear", "plateau", "chained"}


def _has_momentum(optimizer: Optimizer) -> bool:
    return bool(optimizer.defaults.get("momentum") or "betas" in optimizer.defaults)


@dataclass
class Parts:
    """What a user's own code has in its hands.

    handles: of the hooks that are registered. held: rows of data, ``(*inputs, targets)``.
    validation: such rows, or None.
    """

    model: Net
    loss: Any
    optimizer: Optimizer
    scheduler: Any
    rows: tuple[Tensor, ...]
    validation: tuple[Tensor, ...] | None
    handles: list[Any]

    def part(self, name: str) -> nn.Module:
        """The model, one of its layers, or the loss, by name."""
        if name == "loss":
            return self.loss
        return self.model if name == "model" else getattr(self.model, name)


def make(program: Program) -> Parts:
    """The parts of a program as they are before training; the global generator is seeded."""
    dtype = getattr(torch, program.dtype)
    torch.manual_seed(program.seed)
    model = MODELS[program.model]()
    if program.late:
        model.late = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    model.to(dtype)
    loss = LOSSES[program.loss][1](dtype)
    if isinstance(loss, nn.Module):
        loss.to(dtype)
    lr = 0.004 if "sum" in program.loss else 0.05
    optimizer = OPTIMIZERS[program.optimizer](_groups(program, model, loss, lr), lr)
    scheduler = SCHEDULES[program.schedule](optimizer) if program.schedule else None
    validation = None
    if program.validation is not None:
        validation = rows(program, program.validation[0], seed=program.seed + 1)
    data = rows(program, program.samples, seed=program.seed)
    return Parts(model, loss, optimizer, scheduler, data, validation, [])


def trained(model: nn.Module, loss: Any) -> list[nn.Parameter]:
    """The parameters of the model, but for a late layer's, and of the loss."""
    late = set(model.late.parameters()) if model.late is not None else set()
    own = [parameter for parameter in model.parameters() if parameter not in late]
    return own + (list(loss.parameters()) if isinstance(loss, nn.Module) else [])


def _groups(program: Program, model: Net, loss: Any, lr: float) -> Any:
    everything = trained(model, loss)
    if program.groups == "reversed":
        return everything[::-1]
    if program.groups == "each":
        return [{"params": [parameter]} for parameter in everything]
    body = set(model.body.parameters())
    first = [parameter for parameter in everything if parameter in body]
    rest = [parameter for parameter in everything if parameter not in body]
    if program.groups == "two":
        return [{"params": first, "lr": lr / 5}, {"params": rest}]
    if program.groups == "empty":
        return [{"params": []}, {"params": everything}]
    return everything


def rows(program: Program, count: int, seed: int) -> tuple[Tensor, ...]:
    """So many rows of ``(*inputs, targets)`` as model and loss want them."""
    draw = torch.Generator().manual_seed(1000 + seed)
    dtype = getattr(torch, program.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=draw, dtype=torch.float64).to(dtype)

    inputs: Iterable[Tensor]
    match INPUTS.get(program.model):
        case "images":
            inputs = (normal(1, CHANNELS, CHANNELS),)
        case "tokens":
            inputs = (torch.randint(TOKENS, (count, CHANNELS), generator=draw),)
        case "pairs":
            inputs = normal(WIDTH), normal(WIDTH)
        case _:
            inputs = (normal(WIDTH),)
    kind = LOSSES[program.loss][0]
    if kind == "values":
        return (*inputs, normal(WIDTH))
    if kind == "halves":
        return (*inputs, (normal(WIDTH) > 0).to(dtype))
    targets = torch.randint(WIDTH, (count,), generator=draw)
    if kind == "some_classes":
        targets[torch.rand(count, generator=draw) < 0.3] = IGNORED
        targets[0] = 0
    return (*inputs, targets)
