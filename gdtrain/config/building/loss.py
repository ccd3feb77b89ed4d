"""From the loss section to a loss."""

from __future__ import annotations

from typing import Any

import torch

from gdtrain import registry
from gdtrain.config.schema import Config
from gdtrain.errors import ConfigError


def build_loss(config: Config, num_outputs: int) -> Any:
    """The loss of a configuration, ``(output, targets) -> loss``.

    Raises ConfigError for weights that are not one for each of the ``num_outputs`` outputs.
    """
    options = config.loss.model_dump(exclude={"name"})
    for key in config.loss.per_output:
        if options[key] is not None:
            if len(options[key]) != num_outputs:
                raise ConfigError.of(
                    key,
                    f"must hold one number for each of the {num_outputs} outputs, "
                    f"got {len(options[key])}",
                )
            options[key] = torch.tensor(options[key])
    return registry.find("loss", config.loss.name).call(options)
