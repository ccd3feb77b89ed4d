"""What a loss is divided by: the one table of the losses whose mean is known.

For J = (1/N) Σ l_i over a batch that is cut into parts p, J = Σ_p (N_p / N) J_p. N is known of the
losses of torch.nn and of their forms in torch.nn.functional, ``functools.partial`` of these
included. Of any other loss over outputs nothing is assumed: it is computed on the outputs of the
whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain.data.batch import Batch
from gdtrain.data.samples import Samples
from gdtrain.training.torch_code import is_of_torch

Loss = Callable[[Any, Any], Tensor]
T = TypeVar("T", bound=nn.Module)

# Losses that compare output and target number by number, and would broadcast them …
ELEMENTWISE: dict[Any, type[nn.Module] | None] = {
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.gaussian_nll_loss: None,  # the modules of these take three tensors
}
# … that average over the weights of classes, of the targets that are not ignored …
_OVER_TARGETS: dict[Any, type[nn.Module] | None] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
}
# … and others that average over samples.
_OVER_SAMPLES: dict[Any, type[nn.Module] | None] = {
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.cosine_embedding_loss: None,
    F.margin_ranking_loss: None,
}
_FUNCTIONS = {**ELEMENTWISE, **_OVER_TARGETS, **_OVER_SAMPLES}
# A subclass with a forward of its own computes something else; one without is the same loss.
_OF_FORWARD: dict[Any, Any] = {
    module.forward: function
    for function, module in _FUNCTIONS.items()
    if module is not None and is_of_torch(module.forward) and is_of_torch(function)
}
_CLASS_INDEX = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
# Whose ``weight``, and ``pos_weight``, multiply numbers that are then averaged, and so may hold one
# for each sample. Those of the class index losses have one for each class.
_MULTIPLIED = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.multilabel_soft_margin_loss,
)
_TENSORS = ("weight", "pos_weight")  # settings of torch.nn's modules that may be tensors


@dataclass(frozen=True, slots=True)
class TorchLoss:
    """A loss of PyTorch: its form in torch.nn.functional, and its settings as they are now.

    loss: the module, or what was bound by ``functools.partial``.
    """

    function: Any
    loss: nn.Module | dict[str, Any]

    def setting(self, name: str, default: Any = None) -> Any:
        """The value of an argument of the function, such as ``reduction``."""
        if isinstance(self.loss, dict):
            return self.loss.get(name, default)
        own = self.loss.__dict__  # a module's getattr takes long for what it does not have
        for place in (own, own["_buffers"], own["_parameters"], type(self.loss).__dict__):
            if name in place:
                return getattr(self.loss, name)
        return default

    def tensors(self) -> list[tuple[str, Tensor]]:
        """The settings that are tensors with more than one number."""
        names = list(self.loss) if isinstance(self.loss, dict) else _TENSORS
        named = ((name, self.setting(name)) for name in names)
        return [(n, value) for n, value in named if isinstance(value, Tensor) and value.numel() > 1]

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.function.__name__ if isinstance(self.loss, dict) else type(self.loss).__name__

    @property
    def is_elementwise(self) -> bool:
        """Whether it needs output and targets of one shape."""
        return self.function in ELEMENTWISE

    @property
    def takes_classes(self) -> bool:
        """Whether its targets are indices of classes."""
        return self.function in _CLASS_INDEX

    @property
    def takes_probabilities(self) -> bool:
        """Whether targets of the outputs' shape are probabilities of classes."""
        return self.function is F.cross_entropy


def of_torch(loss: Any) -> TorchLoss | None:
    """What PyTorch knows the loss as; None for a loss of your own."""
    if isinstance(loss, nn.Module):
        function = _OF_FORWARD.get(type(loss).forward)
        if function is None or _is_changed(loss) or getattr(F, function.__name__) is not function:
            return None
        return TorchLoss(function, loss)
    settings: dict[str, Any] = {}
    while isinstance(loss, partial):
        if loss.args:  # takes the place of the output
            return None
        settings, loss = {**loss.keywords, **settings}, loss.func
    if isinstance(loss, FunctionType) and loss in _FUNCTIONS and is_of_torch(loss):
        return TorchLoss(loss, settings)
    return None


def _is_changed(loss: nn.Module) -> bool:
    """Whether somebody may put another value in the place of what a module computes."""
    own = loss.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def same_loss_as(known: type[nn.Module]) -> Callable[[type[T]], type[T]]:
    """Decorates a module whose forward computes the loss of another one that is in the table."""

    def note(kind: type[T]) -> type[T]:
        _OF_FORWARD[kind.forward] = _OF_FORWARD[known.forward]
        return kind

    return note


# ── means ───────────────────────────────────────────────────────────────────────────────────────


class Mean:
    """A mean over samples, all of which count alike."""

    adds = False
    """Whether the loss is a sum, whose parts simply add."""

    def weight(self, batch: Batch) -> float:
        """N, what the batch's loss is divided by; only N_p / N matters."""
        return float(len(batch))


class Sum(Mean):
    """A sum over samples, which nothing is divided by."""

    adds = True

    def weight(self, batch: Batch) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class MeanOfTargets(Mean):
    """A mean over the weights w[y_i] of the targets' classes, those of ``ignore_index`` left out.

    So with ``label_smoothing`` too. Targets that are probabilities are averaged over samples.
    """

    ignore_index: int
    weights: Tensor | None

    def weight(self, batch: Batch) -> float:
        targets = batch.targets
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            return float(len(batch))
        return float(self.each(targets).sum())

    def each(self, targets: Tensor) -> Tensor:
        """What each sample, of class indices [B, …], counts for: [B] float64."""
        counted = targets != self.ignore_index
        if self.weights is None:
            each = counted.double()
        else:
            each = self.weights.double()[targets * counted] * counted
        return each.flatten(1).sum(1) if each.ndim > 1 else each


_MEAN, _SUM = Mean(), Sum()
# Modules that are asked in every update, and have no setting that is a tensor.
OVER_SAMPLES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def mean_of(loss: Any, batch: Batch | Samples) -> Mean | None:
    """How the loss takes its mean over a batch, or data set, by its settings as they are now.

    None if it is not known: of a loss of your own, one that is not reduced, or one with settings
    for each sample.
    """
    if type(loss) in OVER_SAMPLES and loss.reduction == "mean" and not _is_changed(loss):
        return _MEAN
    known = of_torch(loss)
    if known is None or not all(_is_shared(known, *named, batch) for named in known.tensors()):
        return None
    if known.setting("reduce") is not None or known.setting("size_average") is not None:
        return None
    reduction = known.setting("reduction", "mean")
    if reduction == "sum":
        return _SUM
    if known.function in _OVER_TARGETS and reduction == "mean":
        return MeanOfTargets(known.setting("ignore_index", -100), known.setting("weight"))
    # batchmean, of kl_div alone, is over samples too.
    return _MEAN if reduction in ("mean", "batchmean") else None


def _is_shared(known: TorchLoss, name: str, value: Tensor, batch: Batch | Samples) -> bool:
    """Whether a setting is the same for all samples of a batch."""
    if name in _TENSORS and known.takes_classes:
        return True
    if name not in _TENSORS or known.function not in _MULTIPLIED:
        return False
    targets = batch.targets
    if not isinstance(targets, Tensor):
        return targets is None  # where a process has no share of the batch
    return value.ndim < targets.ndim or (value.ndim == targets.ndim and value.shape[0] == 1)
