"""What stands between the gradient and the result: variance reduction and averaged weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import Positive, instead_of, shorthand


class Svrg(Strict):
    """A full gradient now and then corrects those of the batches (Johnson and Zhang, 2013)."""

    name: Literal["svrg"]
    every_n_steps: Positive | None = None
    """Updates between two full gradients; those of two passes over the data if left out."""


class Saga(Strict):
    """A table of every sample's last gradient corrects those of the batches (Defazio et al., 2014).
    For small data sets and models."""

    name: Literal["saga"]
    memory_limit: Positive | str = "1GiB"
    """What the table, a number for each sample and parameter, may take: bytes, or 512MB, 2GiB."""


VarianceReductionSection = Annotated[Svrg | Saga, Field(discriminator="name"), shorthand("name")]


class AveragingSection(Strict):
    """Average the weights over the updates, beside training, which goes on from its own."""

    start_epoch: Positive | None = None
    """The first epoch whose weights are averaged, counted from 1; 1 if neither start is given."""
    start_step: Annotated[Positive | None, instead_of("start_epoch")] = None
    """The first update whose weights are averaged, counted from 1."""
    every_n_steps: Positive = 1
    """Average the weights after every k-th update. Under engine scan, 1 costs most of its speed."""
    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """d of the exponential average d · mean + (1 - d) · θ; all count alike if left out."""


def no_reduction(loader: Any, optimizer: Any, is_stream: bool) -> str | None:
    """Why the variance of these batches' gradients can't be reduced, if so."""
    if is_stream:
        return "needs every sample again and again, and a stream gives each once; remove it"
    if getattr(optimizer, "name", None) == "lbfgs":
        return "corrects one gradient per update, and lbfgs evaluates several; remove it"
    if getattr(loader, "name", None) == "batch" and loader.order != "replacement":
        return "has no effect under batch, whose gradient has no variance; remove it"
    return None
