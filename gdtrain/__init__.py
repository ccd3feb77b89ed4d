"""gdtrain: train PyTorch models by batch, stochastic and mini-batch gradient descent."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdtrain.analysis.compare import compare as compare
    from gdtrain.analysis.gradient_monitors import GradientNorm as GradientNorm
    from gdtrain.analysis.gradient_monitors import NoiseScale as NoiseScale
    from gdtrain.analysis.gradient_monitors import SampleGradients as SampleGradients
    from gdtrain.analysis.landscape import landscape as landscape
    from gdtrain.analysis.lr_range import lr_range as lr_range
    from gdtrain.analysis.sharpness_monitor import SharpnessMonitor as SharpnessMonitor
    from gdtrain.analysis.trajectory import Trajectory as Trajectory
    from gdtrain.analysis.update_monitors import FullLoss as FullLoss
    from gdtrain.analysis.update_monitors import UpdateRatio as UpdateRatio
    from gdtrain.config.load_run import TrainedRun as TrainedRun
    from gdtrain.config.load_run import load_run as load_run
    from gdtrain.config.registry import register_loss as register_loss
    from gdtrain.config.registry import register_model as register_model
    from gdtrain.config.registry import register_source as register_source
    from gdtrain.config.registry import register_trainer as register_trainer
    from gdtrain.data.batch import Batch as Batch
    from gdtrain.data.loaders import BatchLoader as BatchLoader
    from gdtrain.data.loaders import MiniBatchLoader as MiniBatchLoader
    from gdtrain.data.loaders import SampleLoader as SampleLoader
    from gdtrain.data.mapped import mapped as mapped
    from gdtrain.data.phased_loader import PhasedLoader as PhasedLoader
    from gdtrain.data.phases import BatchSizes as BatchSizes
    from gdtrain.data.weighted import Weighted as Weighted
    from gdtrain.monitoring.curves import plot_history as plot_history
    from gdtrain.monitoring.tensorboard import TensorBoard as TensorBoard
    from gdtrain.training.averaging import Averaging as Averaging
    from gdtrain.training.callbacks import Callback as Callback
    from gdtrain.training.callbacks import StepLosses as StepLosses
    from gdtrain.training.metrics import mean_over_samples as mean_over_samples
    from gdtrain.training.prequential import Prequential as Prequential
    from gdtrain.training.saga import SAGA as SAGA
    from gdtrain.training.svrg import SVRG as SVRG
    from gdtrain.training.trainer import Trainer as Trainer
    from gdtrain.training.validation import EarlyStopping as EarlyStopping
    from gdtrain.training.validation import Validation as Validation

__version__ = "0.1.0"

# Names are imported at their first use, so that the command line can answer --help, schema and
# every configuration error without importing torch.
_HOMES = {
    "Averaging": "gdtrain.training.averaging",
    "Batch": "gdtrain.data.batch",
    "BatchLoader": "gdtrain.data.loaders",
    "BatchSizes": "gdtrain.data.phases",
    "Callback": "gdtrain.training.callbacks",
    "EarlyStopping": "gdtrain.training.validation",
    "FullLoss": "gdtrain.analysis.update_monitors",
    "GradientNorm": "gdtrain.analysis.gradient_monitors",
    "MiniBatchLoader": "gdtrain.data.loaders",
    "NoiseScale": "gdtrain.analysis.gradient_monitors",
    "PhasedLoader": "gdtrain.data.phased_loader",
    "Prequential": "gdtrain.training.prequential",
    "SAGA": "gdtrain.training.saga",
    "SVRG": "gdtrain.training.svrg",
    "SampleGradients": "gdtrain.analysis.gradient_monitors",
    "SampleLoader": "gdtrain.data.loaders",
    "SharpnessMonitor": "gdtrain.analysis.sharpness_monitor",
    "StepLosses": "gdtrain.training.callbacks",
    "TensorBoard": "gdtrain.monitoring.tensorboard",
    "TrainedRun": "gdtrain.config.load_run",
    "Trainer": "gdtrain.training.trainer",
    "Trajectory": "gdtrain.analysis.trajectory",
    "UpdateRatio": "gdtrain.analysis.update_monitors",
    "Validation": "gdtrain.training.validation",
    "Weighted": "gdtrain.data.weighted",
    "register_loss": "gdtrain.config.registry",
    "register_model": "gdtrain.config.registry",
    "register_source": "gdtrain.config.registry",
    "register_trainer": "gdtrain.config.registry",
    "compare": "gdtrain.analysis.compare",
    "landscape": "gdtrain.analysis.landscape",
    "load_run": "gdtrain.config.load_run",
    "lr_range": "gdtrain.analysis.lr_range",
    "mapped": "gdtrain.data.mapped",
    "mean_over_samples": "gdtrain.training.metrics",
    "plot_history": "gdtrain.monitoring.curves",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gdtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # so that a notebook's Tab finds what is not loaded yet
