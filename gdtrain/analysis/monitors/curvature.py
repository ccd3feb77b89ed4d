"""The monitor of curvature: the outermost eigenvalues of a matrix, and its trace."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gdtrain.analysis.curvature.curvature import Curvature, curvature
from gdtrain.analysis.curvature.matrix import SymmetricMatrix
from gdtrain.analysis.monitors.monitor import Monitor, MonitorSettings
from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError
from gdtrain.registry import register_monitor
from gdtrain.training.trainer import Trainer

Which = Literal["hessian", "gauss_newton"]


class CurvatureSettings(MonitorSettings):
    """The largest eigenvalues and the trace of the full loss's Hessian or Gauss–Newton matrix."""

    matrix: Which = "hessian"
    """The Hessian, or the Gauss–Newton matrix, of a loss over outputs."""
    top: Annotated[int, Field(ge=0, lt=2**31)] = 3
    """Number of the largest eigenvalues."""
    trace_products: Annotated[int, Field(ge=0, lt=2**31)] = 30
    """Matrix products for the trace, at least 6; 0: no trace."""
    max_products: Annotated[int, Field(ge=1, lt=2**31)] = 100
    """Most matrix products per measurement for the eigenvalues; each costs two full gradients."""


@register_monitor("curvature", CurvatureSettings)
class CurvatureMonitor(Monitor):
    """``curvature``: the ``top`` largest eigenvalues of the full loss's Hessian, and its trace.

    Reports ``eigenvalue_1`` … (fewer if the model has fewer parameters), ``trace`` and, for
    Hutch++, ``trace_error``, its standard error: for J in eval mode, as in
    :func:`~gdtrain.curvature`.
    matrix: ``hessian`` or ``gauss_newton``. trace_products: 0 for no trace. max_products: for the
    eigenvalues, to a relative residual of 1e-4. By default it measures ten times in a run.
    For sharpness and the stability limit, use the monitor ``sharpness``.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, CurvatureMonitor, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> watch = CurvatureMonitor(every_n_epochs=10)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[watch]
    ... )
    >>> history = trainer.fit(10)
    >>> round(history.eigenvalue_1[-1], 3), round(history.trace[-1], 3)
    (2.0, 2.737)
    """

    name = "curvature"
    looks_by_steps = False

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        matrix: Which = "hessian",
        top: int = 3,
        trace_products: int = 30,
        max_products: int = 100,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        if matrix not in ("hessian", "gauss_newton"):
            raise ConfigError.of("matrix", f"must be hessian or gauss_newton, got {matrix!r}")
        self.matrix = matrix
        self.top = whole_number("top", top, minimum=0)
        self.trace_products = whole_number("trace_products", trace_products, minimum=0)
        if 0 < trace_products < 6:
            raise ConfigError.of("trace_products", f"must be 0 or >= 6, got {trace_products}")
        self.max_products = whole_number("max_products", max_products, minimum=max(1, top))

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        curvature(trainer).check_second_derivatives(self.matrix)

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        found: Curvature = curvature(trainer)
        matrix: SymmetricMatrix = getattr(found, self.matrix)
        measured: dict[str, Any] = {}
        if count := min(self.top, found.num_parameters):
            top = matrix.top(count, tolerance=1e-4, max_products=self.max_products)
            measured = {f"eigenvalue_{n}": v for n, v in enumerate(top.values.tolist(), start=1)}
        if self.trace_products:
            trace = matrix.trace(self.trace_products, seed=trainer.progress.step)
            measured |= {"trace": trace.value, "trace_error": trace.standard_error}
        return measured
