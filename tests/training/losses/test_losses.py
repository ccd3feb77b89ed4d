"""The table of known means: what it says of PyTorch's losses is what they do, else nothing."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Batch
from gdtrain.training.losses.known_means import mean_of, of_torch
from gdtrain.training.losses.probabilities import BCELoss, MeanKLDivLoss

N, C = 12, 3
draw = torch.Generator().manual_seed(0)
OUT = torch.randn(N, C, generator=draw, dtype=torch.float64)
NUMBERS = torch.rand(N, C, generator=draw, dtype=torch.float64)
SIGNS = NUMBERS.sub(0.5).sign()
LABELS = torch.randint(C, (N,), generator=draw)
LABELS[[0, 1, 2, 7]] = -100
ALL = LABELS.clamp(min=0)
ROWS = torch.randint(-1, C, (N, C), generator=draw)
PIXELS = torch.randint(C, (N, 4), generator=draw)
PIXELS[torch.rand(N, 4, generator=draw) < 0.3] = 1
DEEP = torch.randn(N, C, 4, generator=draw, dtype=torch.float64)
LOG = OUT.log_softmax(1)
W = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
PER_SAMPLE = torch.rand(N, 1, generator=draw, dtype=torch.float64)

KNOWN = {
    "mse": (nn.MSELoss(), OUT, NUMBERS),
    "l1": (nn.L1Loss(), OUT, NUMBERS),
    "smooth_l1": (nn.SmoothL1Loss(beta=0.3), OUT, NUMBERS),
    "huber": (nn.HuberLoss(delta=0.3), OUT, NUMBERS),
    "bce": (nn.BCELoss(), NUMBERS, NUMBERS.flip(0)),
    "bce weight": (nn.BCELoss(weight=W), NUMBERS, NUMBERS.flip(0)),
    "bce row": (nn.BCELoss(weight=W[None]), NUMBERS, NUMBERS.flip(0)),
    "own bce": (BCELoss(weight=W), NUMBERS, NUMBERS.flip(0)),
    "logits": (nn.BCEWithLogitsLoss(weight=W, pos_weight=W.flip(0)), OUT, NUMBERS),
    "poisson": (nn.PoissonNLLLoss(), OUT, NUMBERS),
    "kl mean": (nn.KLDivLoss(reduction="mean"), LOG, NUMBERS),
    "own kl mean": (MeanKLDivLoss(reduction="mean"), LOG, NUMBERS),
    "kl batchmean": (nn.KLDivLoss(reduction="batchmean"), LOG, NUMBERS),
    "kl batchmean deep": (nn.KLDivLoss(reduction="batchmean"), DEEP.log_softmax(1), DEEP.exp()),
    "hinge": (nn.HingeEmbeddingLoss(), OUT, SIGNS),
    "soft_margin": (nn.SoftMarginLoss(), OUT, SIGNS),
    "multi_label": (nn.MultiLabelMarginLoss(), OUT, ROWS),
    "multi_label_soft": (nn.MultiLabelSoftMarginLoss(weight=W), OUT, (NUMBERS > 0.5).double()),
    "multi_margin": (nn.MultiMarginLoss(weight=W, p=2), OUT, ALL),
    "cross_entropy": (nn.CrossEntropyLoss(), OUT, LABELS),
    "ce weight": (nn.CrossEntropyLoss(weight=W), OUT, LABELS),
    "ce smooth": (nn.CrossEntropyLoss(label_smoothing=0.2), OUT, LABELS),
    "ce smooth weight": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.2), OUT, LABELS),
    "ce index": (nn.CrossEntropyLoss(weight=W, ignore_index=1), OUT, ALL),
    "ce deep": (nn.CrossEntropyLoss(ignore_index=1), DEEP, PIXELS),
    "ce deep weight": (nn.CrossEntropyLoss(weight=W, ignore_index=1), DEEP, PIXELS),
    "ce soft": (nn.CrossEntropyLoss(weight=W), OUT, NUMBERS),
    "ce soft deep": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), DEEP, DEEP.softmax(1)),
    "nll": (nn.NLLLoss(weight=W), LOG, LABELS),
    "f mse": (F.mse_loss, OUT, NUMBERS),
    "f ce": (F.cross_entropy, OUT, LABELS),
    "f ce weight": (partial(F.cross_entropy, weight=W, ignore_index=1), OUT, ALL),
    "f ce nested": (partial(partial(F.cross_entropy, weight=W), label_smoothing=0.1), OUT, LABELS),
    "f nll": (partial(F.nll_loss, ignore_index=1), LOG, ALL),
    "f logits": (partial(F.binary_cross_entropy_with_logits, pos_weight=W), OUT, NUMBERS),
    "f huber": (partial(F.huber_loss, delta=0.3), OUT, NUMBERS),
    "f kl": (partial(F.kl_div, reduction="batchmean"), LOG, NUMBERS),
    "f gaussian": (partial(F.gaussian_nll_loss, var=0.5), OUT, NUMBERS),
    "f multi_margin": (partial(F.multi_margin_loss, weight=W), OUT, ALL),
    "f cosine": (partial(F.cosine_embedding_loss, target=torch.ones(1)), OUT, NUMBERS),
    "f margin": (partial(F.margin_ranking_loss, target=torch.ones(1)), OUT[:, 0], NUMBERS[:, 0]),
    "sum": (nn.MSELoss(reduction="sum"), OUT, NUMBERS),
    "sum ce": (nn.CrossEntropyLoss(weight=W, reduction="sum"), OUT, LABELS),
    "f sum": (partial(F.cross_entropy, reduction="sum"), OUT, LABELS),
}


class NoForward(nn.CrossEntropyLoss):
    """Computes what CrossEntropyLoss does."""


KNOWN["subclass"] = (NoForward(weight=W), OUT, LABELS)


def of_parts(loss, output: Tensor, targets: Tensor, size: int) -> Tensor:
    """Σ_p N_p J_p / Σ_p N_p, with the table's N_p."""
    mean = mean_of(loss, Batch(output, targets, torch.arange(N)))
    assert mean is not None
    total = weights = 0.0
    for cut in torch.arange(N).split(size):
        part = Batch(output[cut], targets[cut], cut)
        if weight := mean.weight(part):
            total += weight * loss(output[cut], targets[cut])
            weights += weight
    return total if mean.adds else total / weights


@pytest.mark.few(46)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_known_mean_is_that_of_its_parts(name: str, size: int) -> None:
    loss, output, targets = KNOWN[name]
    got = of_parts(loss, output, targets, size)
    assert float(got) == pytest.approx(float(loss(output, targets)), rel=1e-13)


class Own(nn.MSELoss):
    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        return super().forward(output, targets).sqrt()


def hooked() -> nn.Module:
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda *_: None)
    return loss


def patched() -> nn.Module:
    loss = nn.MSELoss()
    loss.forward = lambda output, targets: (output - targets).abs().max()
    return loss


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        return (output - targets).sum()


UNKNOWN = {
    "lambda": lambda output, targets: F.mse_loss(output, targets),
    "subclass": Own(),
    "hooked": hooked(),
    "patched": patched(),
    "unhashable": Unhashable(),
    "none": nn.MSELoss(reduction="none"),
    "f none": partial(F.mse_loss, reduction="none"),
    "legacy": partial(F.mse_loss, size_average=False),
    "positional": partial(F.mse_loss, NUMBERS),
    "sample weights": nn.BCELoss(weight=PER_SAMPLE),
    "pos_weight of samples": partial(F.binary_cross_entropy_with_logits, pos_weight=PER_SAMPLE),
    "mse weight": partial(F.mse_loss, weight=torch.ones_like(NUMBERS)),
    "variances": partial(F.gaussian_nll_loss, var=NUMBERS),
    "pairs": partial(F.cosine_embedding_loss, target=torch.ones(N)),
    "sequential": nn.Sequential(nn.Identity()),
    "none at all": None,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_said_of_other_losses(name: str) -> None:
    assert mean_of(UNKNOWN[name], Batch(OUT, NUMBERS, torch.arange(N))) is None


def test_settings_are_those_of_the_moment() -> None:
    batch, loss = Batch(OUT, ALL, torch.arange(N)), nn.CrossEntropyLoss()
    assert mean_of(loss, batch).weight(batch) == N
    loss.ignore_index = 1
    assert mean_of(loss, batch).weight(batch) == int((ALL != 1).sum())
    loss.weight = W
    expected = float(W[ALL[ALL != 1]].sum())
    assert mean_of(loss, batch).weight(batch) == pytest.approx(expected, rel=1e-15)
    loss.reduction = "sum"
    assert mean_of(loss, batch).adds
    loss.reduction = "none"
    assert mean_of(loss, batch) is None
    bound = {"weight": None}
    of = partial(F.cross_entropy, **bound)
    assert mean_of(of, batch).weight(batch) == N
    of.keywords["ignore_index"] = 1
    assert mean_of(of, batch).weight(batch) == int((ALL != 1).sum())


@pytest.mark.filterwarnings("ignore:`NLLLoss2d` has been deprecated")
def test_every_loss_of_torch_that_takes_outputs_and_targets_is_known() -> None:
    """Those that are not take three tensors, or more, or hold a layer of their own."""
    modules = {getattr(nn.modules.loss, name) for name in nn.modules.loss.__all__}
    missing = {module.__name__ for module in modules if of_torch(_made(module)) is None}
    assert missing <= {
        *("GaussianNLLLoss", "CosineEmbeddingLoss", "MarginRankingLoss", "TripletMarginLoss"),
        *("TripletMarginWithDistanceLoss", "CTCLoss", "LinearCrossEntropyLoss"),
    }


def _made(module: type[nn.Module]) -> nn.Module:
    with_layer = module.__name__ == "LinearCrossEntropyLoss"
    return module(2, 3) if with_layer else module()
