"""500 drawn cases: a batch's gradient and loss are those of a single pass, however it is cut."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Batch, MiniBatchLoader, Trainer
from gdtrain.data.batch import Plan
from gdtrain.training.placement.distributed import World

CASES = 500
CLASSES = 3
PRIMES = [1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]
LOSSES = {
    "mse": lambda w: nn.MSELoss(),
    "sum": lambda w: nn.MSELoss(reduction="sum"),
    "cross_entropy": lambda w: nn.CrossEntropyLoss(),
    "ignoring": lambda w: nn.CrossEntropyLoss(),
    "weighted": lambda w: nn.CrossEntropyLoss(weight=w),
    "weighted_ignoring": lambda w: nn.CrossEntropyLoss(weight=w, ignore_index=1),
    "weighted_smoothed": lambda w: nn.CrossEntropyLoss(weight=w, label_smoothing=0.1),
    "nll_weighted_ignoring": lambda w: nn.NLLLoss(weight=w),
    "function_ignoring": lambda w: partial(F.cross_entropy, weight=w),
    "unknown_ignoring": lambda w: lambda o, t: F.cross_entropy(o, t, weight=w),
}


class Case:
    """A model, a loss, data and a way to cut it, all decided by the number of the case."""

    def __init__(self, number: int) -> None:
        draw = np.random.default_rng(number)
        self.n = int(draw.choice(PRIMES) if number % 2 else draw.integers(1, 61))
        self.batch_size = int(draw.integers(1, self.n + 1))
        self.microbatch_size = int(draw.integers(1, self.batch_size + 2))
        self.ranks = number % 4 + 1
        self.in_float64 = bool(draw.integers(2))
        self.loss_name = str(draw.choice(list(LOSSES)))
        self.loss = LOSSES[self.loss_name](torch.tensor(draw.uniform(0.1, 3, CLASSES)))
        order = draw.permutation(self.n)
        X = torch.tensor(draw.normal(size=(self.n, 4)))
        loader = MiniBatchLoader((X, self._targets(draw, order)), self.batch_size, order=order)
        self.plan, self.samples = loader.plan(0), loader.samples
        torch.manual_seed(number)
        layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)]
        last = [nn.LogSoftmax(1)] if self.loss_name.startswith("nll") else []
        self.model = nn.Sequential(*layers, *last).double()

    def _targets(self, draw: np.random.Generator, order: np.ndarray) -> Tensor:
        if self.loss_name in ("mse", "sum"):
            return torch.tensor(draw.normal(size=(self.n, CLASSES)))
        labels = torch.tensor(draw.integers(0, CLASSES, self.n))
        if "ignoring" in self.loss_name:
            ignored = getattr(self.loss, "ignore_index", -100)
            labels[torch.tensor(draw.uniform(size=self.n) < draw.uniform())] = ignored
            # The mean over no target at all is 0/0, also in a single pass: one must count.
            labels[torch.tensor(order[:: self.batch_size])] = 2
        return labels

    def read(self, plan: Plan, number: int) -> Batch:
        return next(self.samples.read(plan, number))

    def in_one_pass(self, number: int) -> list[Tensor]:
        """Gradients and loss, by autograd alone."""
        rows = self.plan.take(number * self.batch_size, (number + 1) * self.batch_size)
        X, y = self.samples.tensors[0][rows], self.samples.targets[rows]
        loss = self.loss(self.model(X), y)
        return [*torch.autograd.grad(loss, list(self.model.parameters())), loss.detach()]

    def trainer(self) -> Trainer:
        model = copy.deepcopy(self.model)
        return Trainer(
            model,
            self.loss,
            torch.optim.SGD(model.parameters(), lr=0.1),
            device="cpu",
            microbatch_size=self.microbatch_size,
            accumulate_in="fp64" if self.in_float64 else None,
        )

    def in_parts(self, number: int) -> list[Tensor]:
        """Gradients and loss, by microbatches of as many ranks as the case has."""

        def work(world: World) -> list[Tensor]:
            trainer = self.trainer()
            trainer.world = trainer.microbatches.world = world
            share = self.read(self.plan.share(world.rank, world.size), number)
            loss = trainer.batch_gradient(share)
            return [*(p.grad for p in trainer.model.parameters()), loss]

        return on_threads(self.ranks, work)[-1]


def worst_error(case: Case) -> float:
    errors = []
    for number in range(len(case.plan)):
        pairs = zip(case.in_parts(number), case.in_one_pass(number), strict=True)
        errors += [float((got - expected).norm() / expected.norm()) for got, expected in pairs]
    return max(errors)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n < 40 else pytest.mark.long) for n in range(CASES)]
)
def test_gradient_and_loss_of_a_case(number: int) -> None:
    assert worst_error(Case(number)) <= 1e-12


@pytest.mark.long
def test_the_cases_are_of_all_kinds() -> None:
    cases = [Case(number) for number in range(CASES)]
    last = [case.plan.num_samples - (len(case.plan) - 1) * case.batch_size for case in cases]
    kinds = {
        "ragged batch": sum(size < c.batch_size for size, c in zip(last, cases, strict=True)),
        "ragged microbatch": sum(c.batch_size % c.microbatch_size > 0 for c in cases),
        "empty share": sum(size < c.ranks for size, c in zip(last, cases, strict=True)),
        "uneven shares": sum(c.batch_size % c.ranks > 0 for c in cases),
        "prime": sum(c.n in PRIMES for c in cases),
        **{name: sum(c.loss_name == name for c in cases) for name in LOSSES},
        **{f"{ranks} ranks": sum(c.ranks == ranks for c in cases) for ranks in range(1, 5)},
    }
    assert min(kinds.values()) >= 40, kinds
