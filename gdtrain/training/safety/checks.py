"""What must be true before training goes on: parameters, shapes, label ranges, same data."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import DataLoader

from gdtrain.data.loaders.loader import Loader
from gdtrain.data.sources import no_loader
from gdtrain.errors import ConfigError, DataError, ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.losses.known_means import TorchLoss, of_torch
from gdtrain.training.placement.distributed import World
from gdtrain.training.safety.broadcasting import Watch, is_compiled, is_over_one_class
from gdtrain.training.torch_code import has_own_pass
from gdtrain.wording import counted

logger = logging.getLogger("gdtrain")

OVER_ONE_CLASS = (
    "loss: cross_entropy is over one class here, and so 0 whatever the model gives; give the model "
    "an output for each class, and int64 labels as targets (a loss that is registered says so by "
    "targets=Targets(classes=True))"
)
NO_LOSS = "loss: missing; give a loss, or override compute_loss"


def check_model(model: Any) -> None:
    """Raise ModelError for what is no module."""
    if not isinstance(model, nn.Module):
        made = f"the class {model.__name__}" if isinstance(model, type) else _shown(model)
        raise ModelError(f"model: must be an nn.Module, such as nn.Linear(3, 1); got {made}")


def check_loader(name: str, loader: Any) -> None:
    """Raise ModelError for data, or somebody else's loader, in the place of one of ours."""
    if isinstance(loader, DataLoader):
        raise ModelError(no_loader(name, loader))
    if not isinstance(loader, Loader):
        raise ModelError(
            f"{name}: must be a Loader (BatchLoader, SampleLoader, MiniBatchLoader, PhasedLoader "
            f"or one of your own), got a {type(loader).__name__}; give its data set to one of these"
        )


def check_parts(
    loss: Any, optimizer: Any, loader: Any, callbacks: Sequence[Any], *, needs_loss: bool
) -> None:
    """Raise ModelError for a part of a Trainer that is missing or of the wrong kind."""
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        got = f"the class {loss.__name__}" if isinstance(loss, type) else _shown(loss)
        raise ModelError(
            f"loss: must be a function (output, targets) -> loss, such as nn.MSELoss(); got {got}"
        )
    if inspect.isfunction(loss):
        _check_arguments_of("loss", loss, "(output, targets)")
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
        raise ModelError(f"callbacks: must be a list; got {_shown(callbacks)}; put it into one")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ModelError(
                "callbacks: must be objects of subclasses of Callback, whose methods are the "
                f"moments of a run, such as on_epoch_end(trainer, record); got {callback!r}"
            )
        _tell_of_other_moments(type(callback))
    if not isinstance(optimizer, torch.optim.Optimizer | Mapping):
        raise ModelError(
            "optimizer: must be a torch.optim optimizer, such as torch.optim.SGD("
            f"model.parameters(), lr=0.1), or a mapping of names to some; got {_shown(optimizer)}"
        )
    if loader is not None:
        check_loader("loader", loader)
    if loss is None and needs_loss:
        raise ModelError(NO_LOSS)


# Methods of other libraries' trainers, and what is there instead.
_OTHER_METHODS = {
    "training_step": "override train_step(batch), or compute_loss(batch)",
    "validation_step": "give metrics, or override compute_loss(batch)",
    "configure_optimizers": "give optimizer=",
}


def tell_of_other_methods(kind: type) -> None:
    """Warn of methods of a trainer that fit does not call, though others' trainers do."""
    for name in _OTHER_METHODS.keys() & vars(kind).keys():
        logger.warning("%s.%s is not called by fit; %s", kind.__name__, name, _OTHER_METHODS[name])


def _tell_of_other_moments(kind: type[Callback]) -> None:
    """Warn of methods that are named like the moments of a run, and are none of them."""
    moments = [name for name in vars(Callback) if name.startswith("on_")]
    for name in dir(kind):
        if name.startswith("on_") and name not in moments and callable(getattr(kind, name)):
            logger.warning(
                "%s.%s is not called by fit; the moments of a run are %s",
                *(kind.__name__, name, ", ".join(moments)),
            )


def _shown(value: Any) -> str:
    """What was given, in one line."""
    text = repr(value)
    return text if len(text) < 80 and "\n" not in text else f"a {type(value).__name__}"


def check_own_loss(trainer: Any, compute_loss: Any) -> None:
    """Raise ModelError for a ``compute_loss`` that is no function, or beside a subclass's own."""
    owner = type(trainer).__name__
    if trainer.has_own("compute_loss"):
        raise ModelError(f"compute_loss: {owner} has one of its own; leave one of the two out")
    if isinstance(compute_loss, type) or not callable(compute_loss):
        text = f"must be a function (trainer, batch) -> loss; got {_shown(compute_loss)}"
        raise ModelError(f"compute_loss: {text}")
    if inspect.isfunction(compute_loss):
        _check_arguments_of("compute_loss", compute_loss, "(trainer, batch)")


def _check_arguments_of(key: str, function: Any, two: str) -> None:
    """Raise ModelError for a function that can't be called with two arguments."""
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ModelError(f"{key}: must be a function {two} -> loss; got {signature}") from error


def check_arguments(**arguments: tuple[Any, float | tuple[str, ...]]) -> None:
    """Raise ConfigError for a value that is not among its choices, or not over its bound.

    arguments: name -> (value, choices or exclusive lower bound); None passes any bound.
    """
    for key, (value, allowed) in arguments.items():
        if isinstance(allowed, tuple):
            if value not in allowed:
                raise ConfigError.of(key, f"must be one of {', '.join(allowed)}; got {value!r}")
        elif value is not None and not value > allowed:
            raise ConfigError.of(key, f"must be > {allowed:g}, got {value}")


def check_parameters(
    model: nn.Module, loss: Any, optimizer: torch.optim.Optimizer, own_code: bool
) -> None:
    """Raise ModelError unless the optimizer holds exactly what is to be trained.

    Parameters of the loss may be trained too, and any others by a trainer with a loss or an update
    of its own (own_code); parameters with ``requires_grad=False`` need not be held.
    """
    named = list(model.named_parameters())
    trained = {id(p): name for name, p in named if p.requires_grad}
    if not trained:
        raise ModelError(
            "model: has no parameters to train; give it at least one with requires_grad=True"
        )
    for name, parameter in named:
        if not is_lazy(parameter) and parameter.is_inference():
            raise ModelError(
                f"model: {name} was made under torch.inference_mode(), and so has no gradient; "
                "make the model outside of it"
            )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for key, name in trained.items() if key not in held]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"optimizer: does not hold {len(missing)} of the model's parameters ({shown}); "
            "give it model.parameters(), or set requires_grad_(False) on those to keep"
        )
    own = {id(p) for _, p in named}
    if isinstance(loss, nn.Module):
        own |= {id(p) for p in loss.parameters()}
    foreign = len(held - own)
    if foreign and not own_code:
        raise ModelError(
            f"optimizer: holds {foreign} parameters that are not the model's; "
            "make it from the parameters of the model that is given to the Trainer"
        )


class OutputCheck:
    """Calls a loss, and raises ModelError if output and targets do not fit each other and the loss.

    Shapes that PyTorch's losses would broadcast are looked at in every batch; with the first one
    the labels of the whole data set, dtypes, and how a loss of your own brings the two together.
    """

    _loss: Any = None  # the one that was looked at
    _same_shape = False

    def __call__(self, loss: Any, output: Any, targets: Any, loader: Loader | None) -> Tensor:
        if self._same_shape and loss is self._loss and output.shape != targets.shape:
            check_same_shape(output, targets)
        if loss is not self._loss:
            return self._first(loss, output, targets, loader)
        value: Tensor = loss(output, targets)
        return value

    def _first(self, loss: Any, output: Any, targets: Any, loader: Loader | None) -> Tensor:
        known = of_torch(loss)
        value: Tensor
        # Neither can be followed: functions put in the place of PyTorch's would be called twice.
        if known is None and (is_compiled(loss) or not has_own_pass()):
            value = loss(output, targets)
        elif known is None:
            with Watch(output, targets) as seen:
                value = loss(output, targets)
            if seen.met is not None:
                raise _do_not_fit(*seen.met)
            if seen.over_one_class:
                raise ModelError(OVER_ONE_CLASS)
        else:
            assert known is not None
            with _disable_current_modes():  # these looks are no part of the step that is recorded
                _look(known, loss, output, targets, loader)
            value = loss(output, targets)
        self._loss, self._same_shape = loss, known is not None and known.is_elementwise
        return value


def _look(known: TorchLoss, loss: Any, output: Any, targets: Any, loader: Loader | None) -> None:
    if known.is_elementwise:
        check_same_shape(output, targets)
        check_numbers(known, loss, output, targets)
    elif known.takes_classes:
        labels = loader.samples.targets if loader is not None else None
        check_classes(known, output, targets, labels)


def check_same_shape(output: Any, targets: Any) -> None:
    """Raise ModelError if the loss would broadcast output and targets."""
    if isinstance(targets, Tensor) and isinstance(output, Tensor) and output.shape == targets.shape:
        return
    raise _do_not_fit(getattr(output, "shape", output), getattr(targets, "shape", targets))


def _do_not_fit(output: Any, targets: Any) -> ModelError:
    if targets is None:
        raise ModelError(
            "loss: needs targets, and the data have none; give the loader (inputs, targets)"
        )
    if not isinstance(output, torch.Size):
        raise ModelError(
            f"loss: the model gives a {type(output).__name__}, and this loss takes a tensor; give "
            f"a function of it, such as lambda output, targets: loss({_part_of(output)}, targets)"
        )
    text = [list(s) if isinstance(s, torch.Size) else type(s).__name__ for s in (output, targets)]
    return ModelError(
        f"loss: output has shape {text[0]} and targets {text[1]}; they must be the same, "
        "or the loss would be of their broadcast; reshape one of them"
    )


def _part_of(output: Any) -> str:
    """How one writes the first part of an output that has several."""
    if isinstance(output, Mapping):
        return f"output[{next(iter(output), 'name')!r}]"
    names = getattr(output, "_fields", None) or getattr(output, "__dataclass_fields__", None)
    return f"output.{next(iter(names))}" if names else "output[0]"


def check_numbers(known: TorchLoss, loss: Any, output: Tensor, targets: Tensor) -> None:
    """Raise ModelError if the loss, one of PyTorch's, can't take whole numbers."""
    if targets.is_floating_point() or not output.is_floating_point():
        return
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        try:
            torch.autograd.grad(loss(leaf, targets).sum(), leaf)
        except RuntimeError as error:
            loss(leaf, targets.to(output.dtype))  # if something else is wrong, it is said here
            raise ModelError(
                f"loss: targets are {targets.dtype}, and {known.name} takes floating-point "
                "numbers; use targets.float()"
            ) from error


def check_classes(
    loss: TorchLoss, output: Tensor, targets: Any, all_targets: Tensor | None
) -> None:
    """Raise ModelError if a loss over class indices can't take these targets.

    output: [B, C, …]; targets: [B, …] int64 in 0 … C - 1, ``ignore_index`` apart.
    all_targets: those of the whole data set where they are in memory, so that a bad label is
    found before the first update.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        fits = isinstance(targets, Tensor) and targets.shape == output.shape
        if fits and loss.takes_probabilities:
            if is_over_one_class(output, targets):
                raise ModelError(OVER_ONE_CLASS)
            return
        or_else = f" or probabilities of shape {list(output.shape)}"
        raise ModelError(
            f"loss: targets must be int64 class indices{or_else * loss.takes_probabilities}, "
            f"got {_described(targets)}"
        )
    expected = [output.shape[0], *output.shape[2:]]
    if output.ndim < 2 or list(targets.shape) != expected:
        raise ModelError(
            f"loss: output has shape {list(output.shape)} and targets {list(targets.shape)}; "
            "class indices need outputs [B, C, …] and targets [B, …]"
        )
    if targets.dtype != torch.int64:
        raise ModelError(f"loss: class indices must be int64, got {targets.dtype}; use .long()")
    labels = targets if all_targets is None else all_targets
    in_use = labels[labels != loss.setting("ignore_index", -100)]
    if in_use.numel() == 0:
        return
    low, high, classes = int(in_use.min()), int(in_use.max()), output.shape[1]
    if low < 0 or high >= classes:
        raise ModelError(
            f"targets: label {low if low < 0 else high} is out of range; "
            f"the model has {counted(classes, 'output')}, so labels must be in 0 … {classes - 1}"
        )


def check_rows(model: nn.Module, loader: Loader) -> None:
    """Raise ModelError for inputs [n] of a model that begins with a layer of rows.

    In batches of one sample it would take [1] for a row, and in evaluation [n] for another.
    """
    first = model
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    tensors: Sequence[Any] = getattr(loader.samples, "tensors", ())
    alone = 1 <= len(tensors) <= 2 and isinstance(tensors[0], Tensor) and tensors[0].ndim == 1
    if isinstance(first, nn.Linear) and alone:
        raise _no_rows(tensors[0].shape[0])


def _no_rows(n: int) -> ModelError:
    return ModelError(
        f"model: inputs have shape [{n}], one number a sample, and a layer takes rows of "
        f"features; give the inputs as [{n}, 1], by inputs[:, None]"
    )


def check_same_data(world: World, loader: Loader) -> None:
    """Raise DataError on every rank if one of them was given other data than rank 0."""
    digest = loader.samples.fingerprint() or 0
    seen = world.gather([loader.num_samples, loader.outline(0).batch_size, digest])
    other = [rank for rank, theirs in enumerate(seen) if theirs != seen[0]]
    if other:
        names = ("samples", "batch_size", "data digest")
        message = "; ".join(
            f"{name} {mine} on rank 0, {theirs} on rank {other[0]}"
            for name, mine, theirs in zip(names, seen[0], seen[other[0]], strict=True)
            if mine != theirs
        )
        raise DataError(f"the processes see different data: {message}; give all of them the same")


def check_resume(resume: Any) -> None:
    """Raise ConfigError for what is no directory's name."""
    if not isinstance(resume, str | PathLike):
        text = "must be a directory of checkpoints, such as the one given to Checkpoints"
        raise ConfigError.of("resume", f"{text}; got {resume!r}")


def check_returned(owner: str, loss: Any) -> None:
    """Raise ModelError for what a ``train_step`` has returned that is no loss."""
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else _kind_of(loss)
        raise ModelError(
            f"{owner}.train_step: must return the loss, a tensor of shape []; got {got}; "
            "end with return loss.detach()"
        )


def _kind_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def check_epochs(num_epochs: Any) -> int:
    """The number of epochs as an int. Raises ConfigError unless it is a whole number >= 0."""
    number = num_epochs.item() if isinstance(num_epochs, np.integer) else num_epochs
    if type(number) is not int or number < 0:
        raise ConfigError.of("num_epochs", f"must be a whole number >= 0, got {_shown(num_epochs)}")
    return number


@cache
def needs_closure(step: Callable[..., Any]) -> bool:
    """Whether an optimizer with this ``step`` evaluates the loss by itself, as L-BFGS does."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _described(targets: Any) -> str:
    if not isinstance(targets, Tensor):
        return type(targets).__name__
    return f"{targets.dtype} of shape {list(targets.shape)}"


def explain(error: Exception, inputs: Any) -> None:
    """Raise ModelError in place of what PyTorch says of inputs that can't be right."""
    message = str(error)
    if "more than 1 value per channel" in message:
        raise ModelError(
            "model: a batch of one sample reached BatchNorm, which has no statistics of one; "
            "use GroupNorm or LayerNorm, another batch_size, or drop_last"
        ) from error
    if "all elements of input should be between 0 and 1" in message:
        raise ModelError(
            "loss: BCELoss takes probabilities; end the model with nn.Sigmoid(), or use "
            "nn.BCEWithLogitsLoss (by name bce_with_logits)"
        ) from error
    if isinstance(inputs, Mapping) and ("not dict" in message or "'dict' object" in message):
        raise ModelError(
            f"model: inputs are a dict ({', '.join(map(str, inputs))}), which forward gets as one "
            "argument; give inputs and targets as (X, y), or use the loss 'model' for a model "
            "that takes them by their names and gives its loss"
        ) from error
    if isinstance(inputs, Mapping) and "positional argument" in message:
        names = ", ".join(map(str, inputs))
        raise ModelError(
            f"model: {message}; inputs are a dict, which forward gets as one argument. With the "
            f"loss 'model' it gets them by their names ({names}), and gives the loss"
        ) from error
    if not isinstance(inputs, Tensor):
        return
    if inputs.ndim == 1 and "shapes cannot be multiplied" in message:
        raise _no_rows(inputs.shape[0]) from error
    if "shapes cannot be multiplied" in message:
        raise ModelError(
            f"model: a layer does not accept inputs of shape "
            f"{list(inputs.shape)}: {message}; give the layer as many inputs as there are features"
        ) from error
    if not inputs.is_floating_point() and "same dtype" in message:
        raise ModelError(
            f"model: inputs are {inputs.dtype}, and a layer takes floating-point numbers; "
            "use inputs.float()"
        ) from error
