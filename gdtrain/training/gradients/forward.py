"""One pass of inputs through a trainer's model."""

from __future__ import annotations

from typing import Any

from gdtrain.training.placement.device import autocast
from gdtrain.training.run import Run
from gdtrain.training.safety.checks import explain


def forward(trainer: Run, inputs: Any) -> Any:
    """The model's output in the trainer's precision.

    In a context of its own: autocast keeps what it has cast, with or without its graph. Raises
    ModelError in place of PyTorch's errors for inputs that can't be right.
    """
    try:
        with autocast(trainer.precision, trainer.device):
            return trainer.forward(inputs)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        explain(error, inputs)
        raise
