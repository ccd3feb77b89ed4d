"""The loss that a model computes by itself, as those of Hugging Face do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gdtrain.errors import ModelError
from gdtrain.registry import register_loss
from gdtrain.settings import LossSettings


class Model(LossSettings):
    """The loss that the model gives with its outputs, as Hugging Face's models do."""


@register_loss("model", Model)
class LossOfModel:
    """``outputs.loss``, of a model that is called as ``model(**inputs)``.

    The batches are dicts without targets: what Hugging Face's models call ``labels`` is among the
    inputs. Metrics are given ``outputs.logits`` and the ``labels``.

    Raises ModelError if the outputs have no loss.
    """

    def __call__(self, output: Any, targets: Any) -> Tensor:
        loss = part(output, "loss")
        if targets is not None:
            raise ModelError(
                "loss: model takes data without targets; put them among the inputs, under the name "
                "that the model has for them, such as labels"
            )
        if not isinstance(loss, Tensor):
            raise ModelError(
                f"loss: the model gives a {type(output).__name__} without a loss; give it what it "
                "computes one from, such as labels, among the inputs"
            )
        return loss


def judged(output: Any, inputs: Any) -> tuple[Any, Any]:
    """What metrics are given of a model that computes its loss: the logits, and the labels."""
    logits = part(output, "logits")
    return output if logits is None else logits, part(inputs, "labels")


def part(tree: Any, name: str) -> Any:
    """What is called so in a mapping or an object; None where nothing is."""
    return tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)
