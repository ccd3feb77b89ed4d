"""gdtrain: train PyTorch models by batch, stochastic and mini-batch gradient descent."""

from __future__ import annotations

import importlib
import sys

# `python -m gdtrain` comes here first, while its __main__ is looked for and compiled.
if sys.argv[:1] == ["-m"] and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["gdtrain"]:
    from gdtrain.interrupted import leave_if_interrupted

    leave_if_interrupted()

from gdtrain.version import __version__ as __version__

# Importing typing would take longer than all else here, and Ctrl-C would end it with a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gdtrain.analysis.comparison.compare import compare as compare
    from gdtrain.analysis.curvature.curvature import curvature as curvature
    from gdtrain.analysis.landscape import landscape as landscape
    from gdtrain.analysis.lr_range import lr_range as lr_range
    from gdtrain.analysis.monitors.batch_gradients import Alpha as Alpha
    from gdtrain.analysis.monitors.batch_gradients import GradientCosine as GradientCosine
    from gdtrain.analysis.monitors.batch_gradients import (
        GradientTestsMonitor as GradientTestsMonitor,
    )
    from gdtrain.analysis.monitors.curvature import CurvatureMonitor as CurvatureMonitor
    from gdtrain.analysis.monitors.gradients import GradientNorm as GradientNorm
    from gdtrain.analysis.monitors.gradients import NoiseScale as NoiseScale
    from gdtrain.analysis.monitors.gradients import SampleGradients as SampleGradients
    from gdtrain.analysis.monitors.sharpness import SharpnessMonitor as SharpnessMonitor
    from gdtrain.analysis.monitors.trajectory import Trajectory as Trajectory
    from gdtrain.analysis.monitors.updates import FullLoss as FullLoss
    from gdtrain.analysis.monitors.updates import UpdateRatio as UpdateRatio
    from gdtrain.analysis.sweep.sweep import sweep as sweep
    from gdtrain.checkpoint.checkpoints import Checkpoints as Checkpoints
    from gdtrain.config.load_run import TrainedRun as TrainedRun
    from gdtrain.config.load_run import load_run as load_run
    from gdtrain.data.batch import Batch as Batch
    from gdtrain.data.batch import Plan as Plan
    from gdtrain.data.files.mapped import mapped as mapped
    from gdtrain.data.loaders.loader import BatchLoader as BatchLoader
    from gdtrain.data.loaders.loader import Loader as Loader
    from gdtrain.data.loaders.loader import MiniBatchLoader as MiniBatchLoader
    from gdtrain.data.loaders.loader import SampleLoader as SampleLoader
    from gdtrain.data.loaders.phased_loader import PhasedLoader as PhasedLoader
    from gdtrain.data.loaders.phases import BatchSizes as BatchSizes
    from gdtrain.data.loaders.poisson import PoissonLoader as PoissonLoader
    from gdtrain.data.loaders.token_budget import TokenBudgetLoader as TokenBudgetLoader
    from gdtrain.data.orders.order import Weighted as Weighted
    from gdtrain.output.console import ProgressBar as ProgressBar
    from gdtrain.output.metrics_csv import MetricsCsv as MetricsCsv
    from gdtrain.output.metrics_log import MetricsLog as MetricsLog
    from gdtrain.output.plots.curves import plot_history as plot_history
    from gdtrain.output.tensorboard import TensorBoard as TensorBoard
    from gdtrain.registry import register_callback as register_callback
    from gdtrain.registry import register_loader as register_loader
    from gdtrain.registry import register_loss as register_loss
    from gdtrain.registry import register_metric as register_metric
    from gdtrain.registry import register_model as register_model
    from gdtrain.registry import register_monitor as register_monitor
    from gdtrain.registry import register_optimizer as register_optimizer
    from gdtrain.registry import register_order as register_order
    from gdtrain.registry import register_schedule as register_schedule
    from gdtrain.registry import register_source as register_source
    from gdtrain.registry import register_trainer as register_trainer
    from gdtrain.registry import register_variance_reduction as register_variance_reduction
    from gdtrain.settings import Settings as Settings
    from gdtrain.settings import Targets as Targets
    from gdtrain.training.callbacks.averaging import Averaging as Averaging
    from gdtrain.training.callbacks.callback import Callback as Callback
    from gdtrain.training.callbacks.callback import StepLosses as StepLosses
    from gdtrain.training.callbacks.keep_best import KeepBest as KeepBest
    from gdtrain.training.callbacks.prequential import Prequential as Prequential
    from gdtrain.training.callbacks.saga import SAGA as SAGA
    from gdtrain.training.callbacks.svrg import SVRG as SVRG
    from gdtrain.training.callbacks.validation import EarlyStopping as EarlyStopping
    from gdtrain.training.callbacks.validation import Validation as Validation
    from gdtrain.training.evaluating.metrics import mean_over_samples as mean_over_samples
    from gdtrain.training.optimizing.phases import Phases as Phases
    from gdtrain.training.progress import History as History
    from gdtrain.training.trainer import Trainer as Trainer


# Names are imported at their first use, so that the command line can answer --help, schema and
# every configuration error without importing torch.
_HOMES = {
    "Alpha": "gdtrain.analysis.monitors.batch_gradients",
    "Averaging": "gdtrain.training.callbacks.averaging",
    "Batch": "gdtrain.data.batch",
    "BatchLoader": "gdtrain.data.loaders.loader",
    "BatchSizes": "gdtrain.data.loaders.phases",
    "Callback": "gdtrain.training.callbacks.callback",
    "Checkpoints": "gdtrain.checkpoint.checkpoints",
    "CurvatureMonitor": "gdtrain.analysis.monitors.curvature",
    "EarlyStopping": "gdtrain.training.callbacks.validation",
    "FullLoss": "gdtrain.analysis.monitors.updates",
    "GradientCosine": "gdtrain.analysis.monitors.batch_gradients",
    "GradientNorm": "gdtrain.analysis.monitors.gradients",
    "GradientTestsMonitor": "gdtrain.analysis.monitors.batch_gradients",
    "History": "gdtrain.training.progress",
    "KeepBest": "gdtrain.training.callbacks.keep_best",
    "Loader": "gdtrain.data.loaders.loader",
    "MetricsCsv": "gdtrain.output.metrics_csv",
    "MetricsLog": "gdtrain.output.metrics_log",
    "MiniBatchLoader": "gdtrain.data.loaders.loader",
    "NoiseScale": "gdtrain.analysis.monitors.gradients",
    "PhasedLoader": "gdtrain.data.loaders.phased_loader",
    "Phases": "gdtrain.training.optimizing.phases",
    "Plan": "gdtrain.data.batch",
    "PoissonLoader": "gdtrain.data.loaders.poisson",
    "Prequential": "gdtrain.training.callbacks.prequential",
    "ProgressBar": "gdtrain.output.console",
    "SAGA": "gdtrain.training.callbacks.saga",
    "SVRG": "gdtrain.training.callbacks.svrg",
    "SampleGradients": "gdtrain.analysis.monitors.gradients",
    "SampleLoader": "gdtrain.data.loaders.loader",
    "Settings": "gdtrain.settings",
    "SharpnessMonitor": "gdtrain.analysis.monitors.sharpness",
    "StepLosses": "gdtrain.training.callbacks.callback",
    "Targets": "gdtrain.settings",
    "TensorBoard": "gdtrain.output.tensorboard",
    "TokenBudgetLoader": "gdtrain.data.loaders.token_budget",
    "TrainedRun": "gdtrain.config.load_run",
    "Trainer": "gdtrain.training.trainer",
    "Trajectory": "gdtrain.analysis.monitors.trajectory",
    "UpdateRatio": "gdtrain.analysis.monitors.updates",
    "Validation": "gdtrain.training.callbacks.validation",
    "Weighted": "gdtrain.data.orders.order",
    "compare": "gdtrain.analysis.comparison.compare",
    "curvature": "gdtrain.analysis.curvature.curvature",
    "landscape": "gdtrain.analysis.landscape",
    "load_run": "gdtrain.config.load_run",
    "lr_range": "gdtrain.analysis.lr_range",
    "mapped": "gdtrain.data.files.mapped",
    "mean_over_samples": "gdtrain.training.evaluating.metrics",
    "plot_history": "gdtrain.output.plots.curves",
    "register_callback": "gdtrain.registry",
    "register_loader": "gdtrain.registry",
    "register_loss": "gdtrain.registry",
    "register_metric": "gdtrain.registry",
    "register_model": "gdtrain.registry",
    "register_monitor": "gdtrain.registry",
    "register_optimizer": "gdtrain.registry",
    "register_order": "gdtrain.registry",
    "register_schedule": "gdtrain.registry",
    "register_source": "gdtrain.registry",
    "register_trainer": "gdtrain.registry",
    "register_variance_reduction": "gdtrain.registry",
    "sweep": "gdtrain.analysis.sweep.sweep",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gdtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What Tab offers in a notebook: names that are not loaded yet too, and no imports of this."""
    here = globals().items()
    own = {name for name, value in here if getattr(value, "__name__", "") == f"gdtrain.{name}"}
    return sorted({*__all__, *own, *(name for name, _ in here if name.startswith("__"))})
