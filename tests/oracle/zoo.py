"""Models and losses as people write them, in the smallest sizes; nothing here knows gdtrain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

WIDTH = 3  # of inputs, hidden layers and outputs
TOKENS = 6

Moment = Callable[[str], bool]

# ── models ──────────────────────────────────────────────────────────────────────────────────────


class Net(nn.Module):
    """A body and a head.

    moment: called in each forward pass in training mode, where a program has events there.
    late: a layer behind the head that is frozen at first.
    """

    moment: Moment | None = None

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.late: nn.Module | None = None

    def forward(self, *inputs: Any) -> Any:
        if self.moment is not None and self.training:
            self.moment("forward")
        output = self.compute(*inputs)
        return output if self.late is None else output + self.late(output)

    def compute(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.body(x)))


class Images(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(32, WIDTH)

    def compute(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).flatten(1))


class Normed(Net):
    """A layer that normalises, over a length of 4, so that it takes single samples too."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(WIDTH, 12), norm(), nn.Linear(12, WIDTH)

    def compute(self, x: Tensor) -> Tensor:
        out = self.norm(self.body(x).unflatten(1, (3, 4)))
        return self.head(torch.tanh(out).flatten(1))


class FrozenNorm(Normed):
    """BatchNorm with statistics from elsewhere, which stays in eval mode."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.BatchNorm1d(3).requires_grad_(False))
        self.norm.running_mean.fill_(0.1)
        self.norm.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self


class Dropping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Dropout(0.4)

    def compute(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.body(x))))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.body.weight


class Parametrized(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.body)
        parametrize.register_parametrization(self.head, "bias", nn.Softplus())


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)


class MaxNormLinear(nn.Linear):
    """Keeps its rows in a ball by giving the parameter other memory in each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.6)
        return super().forward(x)


class MaxNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = MaxNormLinear(WIDTH, WIDTH)


class ClampedInPlace(Net):
    def compute(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.body.weight.clamp_(-0.3, 0.3)
        return super().compute(x)


class Running(Net):
    """Divides by a running mean that forward assigns again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def compute(self, x: Tensor) -> Tensor:
        out = super().compute(x)
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * out.detach().abs().mean()
        return out / self.scale


class Growing(Net):
    """Keeps what it has seen in a buffer that grows, and adds its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def compute(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = torch.cat([self.seen, x.detach()[:, 0]])
        return super().compute(x) + self.seen.mean()


class Counting(Net):
    """Counts samples in a buffer that its output does not depend on."""

    def __init__(self, by_assignment: bool) -> None:
        super().__init__()
        self.by_assignment = by_assignment
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def compute(self, x: Tensor) -> Tensor:
        if self.training and self.by_assignment:
            self.count = self.count + len(x)
        elif self.training:
            self.count += len(x)
        return super().compute(x)


class Remembering(Net):
    """Has a state of its own, which it brings to state_dict as an extra state."""

    calls = 0

    def compute(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().compute(x) * (1 + 0.5 / (1 + self.calls))

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state["calls"])


class Embedded(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(TOKENS, WIDTH, sparse=True)

    def compute(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x).mean(1)))


class SometimesSparse(Net):
    """Has a sparse gradient, and where all tokens are small a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(TOKENS, WIDTH, sparse=True)

    def compute(self, x: Tensor) -> Tensor:
        out = self.body(x).mean(1)
        return out + self.head(self.body.weight.mean(0)) if bool((x[:, 0] < 3).all()) else out


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * -0.5


class CustomFunction(Net):
    """Adds what an autograd.Function gives, whose gradient is not its derivative."""

    def compute(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return self.head(hidden + _Reversed.apply(0.5 * hidden))


class TwoInputs(Net):
    def compute(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)) * z)


class InPlace(Net):
    """Standardises its input where it lies."""

    def compute(self, x: Tensor) -> Tensor:
        x -= 0.5
        x /= 2.0
        return super().compute(x)


class Unsafe(Net):
    """Adds the root of a frozen parameter that is 0, and has no finite derivative there."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.ParameterList([nn.Parameter(torch.zeros(1), requires_grad=False)])

    def compute(self, x: Tensor) -> Tensor:
        return super().compute(x) + self.norm[0].sqrt()


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LazyLinear(WIDTH)


class Forces(Net):
    """The derivative of an energy by its input: it differentiates in forward."""

    def compute(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            place = x.detach().requires_grad_(True)
            energy = self.head(torch.tanh(self.body(place))).square().sum()
            (force,) = torch.autograd.grad(energy, place, create_graph=True)
        return force


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(1, WIDTH, batch_first=True)

    def compute(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, :, None])[0][:, -1])


class Spectral(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.body)


class Skipping(Net):
    """Leaves its body out of every other forward pass, by chance."""

    def compute(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < 0.5:
            return self.head(x)
        return super().compute(x)


class Checkpointed(Net):
    def compute(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda x: torch.tanh(self.body(x)), x, use_reentrant=False))


class TwoOutputs(Net):
    def compute(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.body(x))
        return self.head(hidden), hidden

    def forward(self, *inputs: Any) -> Any:
        if self.moment is not None and self.training:
            self.moment("forward")
        output, hidden = self.compute(*inputs)
        return (output, hidden) if self.late is None else (output + self.late(output), hidden)


def of_torch(**layers: nn.Module) -> Any:
    """A model in whose passes PyTorch's code alone runs, by the names of its layers.

    Nothing happens in them, so that changes come between two updates.
    """
    model = nn.Sequential(OrderedDict(layers))
    model.late = model.moment = None  # type: ignore[assignment]
    return model


MODELS: dict[str, Callable[[], Net]] = {
    "perceptron": Net,
    "cnn": Images,
    "batchnorm": lambda: Normed(lambda: nn.BatchNorm1d(3)),
    "batchnorm_of_batch": lambda: Normed(
        lambda: nn.BatchNorm1d(3, track_running_stats=False)  # in eval mode too
    ),
    "groupnorm": lambda: Normed(lambda: nn.GroupNorm(3, 3)),
    "instancenorm": lambda: Normed(
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    ),
    "frozen_norm": FrozenNorm,
    "dropout": Dropping,
    "tied": Tied,
    "parametrized": Parametrized,
    "spectral": Spectral,
    "frozen": Frozen,
    "unused": Unused,
    "max_norm": MaxNorm,
    "clamped": ClampedInPlace,
    "running": Running,
    "growing": Growing,
    "counting": lambda: Counting(by_assignment=False),
    "counting_anew": lambda: Counting(by_assignment=True),
    "remembering": Remembering,
    "embedding": Embedded,
    "sometimes_sparse": SometimesSparse,
    "function": CustomFunction,
    "two_inputs": TwoInputs,
    "two_outputs": TwoOutputs,
    "in_place": InPlace,
    "unsafe": Unsafe,
    "lazy": Lazy,
    "forces": Forces,
    "recurrent": Recurrent,
    "skipping": Skipping,
    "checkpointed": Checkpointed,
    "stock": lambda: of_torch(
        body=nn.Linear(WIDTH, WIDTH), between=nn.Tanh(), head=nn.Linear(WIDTH, WIDTH)
    ),
    "stock_norm": lambda: of_torch(
        body=nn.Linear(WIDTH, 12),
        rows=nn.Unflatten(1, (3, 4)),
        norm=nn.BatchNorm1d(3),
        between=nn.ReLU(),
        flat=nn.Flatten(),
        head=nn.Linear(12, WIDTH),
    ),
}
STOCK_MODELS = {"stock", "stock_norm"}
# What a model is given, if not vectors.
INPUTS = {
    "cnn": "images",
    "embedding": "tokens",
    "sometimes_sparse": "tokens",
    "two_inputs": "pairs",
}
# Draw random numbers in forward, so that no two cuts of a batch can be compared.
RANDOM_MODELS = {"dropout", "skipping"}
# Have layers that are known to make a sample's output depend on the others of its batch.
MIXING_MODELS = {"batchnorm", "batchnorm_of_batch", "instancenorm", "spectral", "stock_norm"}
WITH_NORM = {
    "batchnorm",
    "batchnorm_of_batch",
    "groupnorm",
    "instancenorm",
    "frozen_norm",
    "dropout",
    "unsafe",
    "stock_norm",
}
SPARSE_MODELS = {"embedding", "sometimes_sparse"}

# ── losses ──────────────────────────────────────────────────────────────────────────────────────

IGNORED = -100
CLASS_WEIGHT = (0.2, 1.0, 3.0)


def weighted_squares(output: Tensor, targets: Tensor) -> Tensor:
    """Σ w l / Σ w, with weights that depend on the targets."""
    weight = targets.abs().sum(1)
    return (weight * (output - targets).square().mean(1)).sum() / weight.sum()


def info_nce(output: Tensor, targets: Tensor) -> Tensor:
    """Each output is to be nearest to its own target."""
    scores = F.normalize(output, dim=1) @ F.normalize(targets, dim=1).T
    return F.cross_entropy(scores / 0.5, torch.arange(len(scores)))


def ranking(output: Tensor, targets: Tensor) -> Tensor:
    """Pairs whose first outputs are in another order than their first targets."""
    apart = output[:, :1] - output[:, 0]
    sign = (targets[:, :1] - targets[:, 0]).sign()
    return F.softplus(-sign * apart).mean() + 0.01 * output.square().mean()


def focal(output: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(output, targets, reduction="none")
    return ((1 - torch.exp(-each)).square() * each).mean()


class RunningScale(nn.Module):
    """A squared error over its own running mean, which is part of the loss's state."""

    def __init__(self, by_assignment: bool) -> None:
        super().__init__()
        self.by_assignment = by_assignment
        self.register_buffer("scale", torch.ones(()))

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        error = (output - targets).square().mean()
        if self.training and self.by_assignment:
            self.scale = 0.9 * self.scale + 0.1 * error.detach()
        elif self.training:
            self.scale.mul_(0.9).add_(0.1 * error.detach())
        return error / self.scale


class LearnedScale(nn.Module):
    """A Gaussian likelihood whose width is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        return ((output - targets).square() * torch.exp(-self.log_width) + self.log_width).mean()


class DroppingLoss(nn.Module):
    """A squared error of some of the outputs, by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        return self.drop(output - targets).square().mean()


def _weight(dtype: torch.dtype) -> Tensor:
    return torch.tensor(CLASS_WEIGHT, dtype=dtype)


# name -> (what the targets are, dtype -> the loss)
LOSSES: dict[str, tuple[str, Callable[[torch.dtype], Any]]] = {
    "mse": ("values", lambda _: nn.MSELoss()),
    "mse_function": ("values", lambda _: F.mse_loss),
    "huber": ("values", lambda _: nn.HuberLoss(delta=0.5)),
    "smooth_partial": ("values", lambda _: partial(F.smooth_l1_loss, beta=0.5)),
    "mse_sum": ("values", lambda _: nn.MSELoss(reduction="sum")),
    "mse_sum_partial": ("values", lambda _: partial(F.mse_loss, reduction="sum")),
    "bce": ("halves", lambda dtype: nn.BCEWithLogitsLoss(pos_weight=_weight(dtype))),
    "weighted": ("values", lambda _: weighted_squares),
    "contrast": ("values", lambda _: lambda output, targets: info_nce(output, targets)),
    "ranking": ("values", lambda _: ranking),
    "running": ("values", lambda _: RunningScale(by_assignment=False)),
    "running_anew": ("values", lambda _: RunningScale(by_assignment=True)),
    "learned": ("values", lambda _: LearnedScale()),
    "dropping": ("values", lambda _: DroppingLoss()),
    "first": ("values", lambda _: lambda output, targets: F.mse_loss(output[0], targets)),
    "entropy": ("classes", lambda _: nn.CrossEntropyLoss()),
    "entropy_function": ("classes", lambda _: F.cross_entropy),
    "entropy_ignored": ("some_classes", lambda _: nn.CrossEntropyLoss()),
    "entropy_ignored_function": ("some_classes", lambda _: F.cross_entropy),
    "entropy_weighted": (
        "some_classes",
        lambda dtype: nn.CrossEntropyLoss(weight=_weight(dtype)),
    ),
    "entropy_weighted_partial": (
        "some_classes",
        lambda dtype: partial(F.cross_entropy, weight=_weight(dtype)),
    ),
    "entropy_weighted_lambda": (
        "classes",
        lambda dtype: lambda output, targets: F.cross_entropy(output, targets, _weight(dtype)),
    ),
    "entropy_sum_partial": ("classes", lambda _: partial(F.cross_entropy, reduction="sum")),
    "smoothed": (
        "classes",
        lambda dtype: nn.CrossEntropyLoss(weight=_weight(dtype), label_smoothing=0.1),
    ),
    "nll": (
        "some_classes",
        lambda _: lambda output, targets: F.nll_loss(output.log_softmax(1), targets),
    ),
    "focal": ("classes", lambda _: focal),
}
RANDOM_LOSSES = {"dropping"}
