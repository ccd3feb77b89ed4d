"""PyTorch's functions that look at numbers in Python, or in C++, written so that they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, combinations_with_replacement
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gdtrain.training.engines.capturing.ctc import captured_ctc_loss


class Rewritten(TorchFunctionMode):
    """Calls what :data:`_REWRITTEN` has in the place of PyTorch's functions."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _REWRITTEN.get(function, function)(*args, **(kwargs or {}))


def _gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """½ (log σ² + (x - y)²/σ²), by PyTorch's function, whose σ² may be a number.

    Of that, it looks at the sign alone; a negative one of a tensor is NaN here.
    """
    if isinstance(var, Tensor):
        var = torch.where(var < 0, torch.nan, var)
        if var.shape != input.shape and var.shape == input.shape[:-1]:
            var = var.unsqueeze(-1)
    elif var < 0:
        raise ValueError("var has negative entry/entries")
    else:
        var = torch.full_like(input, var)
    var = var.clone()
    with torch.no_grad():
        var.clamp_(min=eps)
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _one_hot(classes: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:  # which asks for the largest
        return functional.one_hot(classes, num_classes)
    return (classes.unsqueeze(-1) == torch.arange(num_classes, device=classes.device)).long()


def _cov(
    x: Tensor,
    *,
    correction: int = 1,
    fweights: Tensor | None = None,
    aweights: Tensor | None = None,
) -> Tensor:
    """Covariances of the rows of x; fweights: how often each column counts, aweights: how much."""
    x = x.reshape(1, -1) if x.dim() < 2 else x
    given = [weights for weights in (fweights, aweights) if weights is not None]
    weights = math.prod(given, start=torch.ones(x.shape[1], dtype=torch.int64, device=x.device))
    total = weights.sum()
    less = correction if aweights is None else correction * (weights * aweights).sum() / total
    apart = x - ((x * weights).sum(1) / total).unsqueeze(1)
    products = apart @ (apart * weights).T.conj()
    return (products / (total - less).clamp(min=0)).squeeze()


def _corrcoef(x: Tensor) -> Tensor:
    covariances = _cov(x)
    if not covariances.dim():
        return covariances / covariances
    spread = covariances.diagonal().real.sqrt()
    found = covariances / spread.unsqueeze(1) / spread
    if found.is_complex():
        return torch.complex(found.real.clamp(-1, 1), found.imag.clamp(-1, 1))
    return found.clamp(-1, 1)


def _combinations(x: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    choose = combinations_with_replacement if with_replacement else combinations
    chosen = list(choose(range(len(x)), r))
    return x[torch.tensor(chosen, dtype=torch.int64, device=x.device).reshape(len(chosen), r)]


def _lstsq(a: Tensor, b: Tensor, rcond: Any = None, *, driver: str | None = None) -> Any:
    """The X of least ‖A X - B‖, and of these of least ‖X‖, by the pseudo-inverse.

    As of PyTorch's drivers for matrices that may lack rank, and that do not, ``gels``. Others look
    at ranks to say what else they give.
    """
    if driver not in (None, "gels", "gelsy") or rcond is not None:
        return torch.linalg.lstsq(a, b, rcond, driver=driver)
    is_vector = b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1])
    known, nothing = b.unsqueeze(-1) if is_vector else b, a.new_zeros(0)
    solution = torch.linalg.pinv(a) @ known
    residuals = nothing
    if driver == "gels" and a.shape[-2] > a.shape[-1]:
        residuals = (a @ solution - known).abs().square().sum(-2)
    rank = nothing.long() if driver == "gels" else torch.linalg.matrix_rank(a)
    made = solution.squeeze(-1) if is_vector else solution, residuals, rank, nothing
    return torch.return_types.linalg_lstsq(made)  # type: ignore[attr-defined]


def _linear_cross_entropy(*given: Any, options: Any = None, **named: Any) -> Tensor:
    """Not in the pieces that ``options`` ask for, which save memory where they are cut."""
    del options
    loss: Tensor = functional.linear_cross_entropy(*given, **named)
    return loss


_REWRITTEN: dict[Any, Callable[..., Any]] = {
    functional.gaussian_nll_loss: _gaussian_nll_loss,
    functional.one_hot: _one_hot,
    functional.ctc_loss: captured_ctc_loss,
    getattr(functional, "linear_cross_entropy", None): _linear_cross_entropy,
    torch.linalg.lstsq: _lstsq,
    torch.combinations: _combinations,
    **dict.fromkeys((torch.cov, Tensor.cov), _cov),
    **dict.fromkeys((torch.corrcoef, Tensor.corrcoef), _corrcoef),
}
