"""What people write first: right, or refused in a line that says what would be."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from gdtrain import (
    BatchLoader,
    Callback,
    EarlyStopping,
    KeepBest,
    MiniBatchLoader,
    Prequential,
    SampleLoader,
    Trainer,
    compare,
    curvature,
    lr_range,
)
from gdtrain.errors import GdtrainError

X = torch.linspace(-1, 1, 40)[:, None]
Y = 3 * X + 1
CLASSES = torch.arange(40) % 3


def linear(inputs: int = 1, outputs: int = 1) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def trainer(model: Any = None, loss: Any = "mse", loader: Any = None, **options: Any) -> Trainer:
    model = linear() if model is None else model
    loader = BatchLoader((X, Y)) if loader is None else loader
    options = {"optimizer": SGD(model.parameters(), lr=0.1), "device": "cpu", **options}
    return Trainer(model, loss, loader=loader, **options)


def fit(*arguments: Any, **options: Any) -> Any:
    return trainer(*arguments, **options).fit(1)


class Head(nn.Module):
    """A linear model whose outputs are wrapped."""

    def __init__(self, wrap: Any, outputs: int = 1) -> None:
        super().__init__()
        self.wrap, self.linear = wrap, linear(1, outputs)

    def forward(self, x: Any) -> Any:
        return self.wrap(self.linear(x))


class Normal(NamedTuple):
    mean: Any
    var: Any


@dataclass
class Outputs:
    logits: Any
    loss: Any = None


class Named(nn.Module):
    """A model that takes its inputs by name, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear(1, 3)

    def forward(self, x: Any, labels: Any = None) -> Outputs:
        logits = self.linear(x)
        return Outputs(logits, None if labels is None else F.cross_entropy(logits, labels))


def shapes_of_torch(rows: int, columns: int, inputs: int) -> str:
    """What PyTorch itself says of such features, which begins with "addmm: " since 2.15."""
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as error:
        linear(inputs)(torch.ones(rows, columns))
    return str(error.value)


REFUSED: dict[str, tuple[Any, str]] = {
    "1-D inputs, samples": (
        lambda: fit(loader=SampleLoader((X[:, 0], Y[:, 0]))),
        "model: inputs have shape [40], one number a sample, and a layer takes rows of features; "
        "give the inputs as [40, 1], by inputs[:, None]",
    ),
    "features": (
        lambda: fit(linear(3), loader=BatchLoader((X.expand(40, 4), Y))),
        "model: a layer does not accept inputs of shape [40, 4]: "
        f"{shapes_of_torch(40, 4, 3)}; give the layer as many inputs as there are features",
    ),
    "whole numbers": (
        lambda: fit(loader=BatchLoader((torch.arange(40)[:, None], Y))),
        "model: inputs are torch.int64, and a layer takes floating-point numbers; use "
        "inputs.float()",
    ),
    "a float as loss": (
        lambda: fit(loss=lambda output, y: F.mse_loss(output, y).item()),
        "loss: must be a tensor of shape [], whose gradient is computed; got a float: leave out "
        ".item(), float() and numpy",
    ),
    "a float among terms": (
        lambda: fit(loss=None, compute_loss=lambda trainer, batch: {"loss": 1.0}),
        "loss: must be a tensor of shape [], whose gradient is computed; got a float: leave out "
        ".item(), float() and numpy",
    ),
    "a detached loss": (
        lambda: fit(loss=lambda output, y: F.mse_loss(output.detach(), y)),
        "loss: has no gradient: no trained parameter has a part in it; compute it by torch from "
        "what the model gives, without detach(), no_grad(), inference_mode() or numpy",
    ),
    "a loss of one argument": (
        lambda: trainer(loss=lambda output: output.mean()),
        "loss: must be a function (output, targets) -> loss; got (output)",
    ),
    "a compute_loss of one argument": (
        lambda: trainer(loss=None, compute_loss=lambda batch: 0),
        "compute_loss: must be a function (trainer, batch) -> loss; got (batch)",
    ),
    "loss and no targets": (
        lambda: fit(loader=BatchLoader(X)),
        "loss: needs targets, and the data have none; give the loader (inputs, targets)",
    ),
    "outputs in a tuple": (
        lambda: fit(Head(lambda out: (out, out))),
        "loss: the model gives a tuple, and this loss takes a tensor; give a function of it, such "
        "as lambda output, targets: loss(output[0], targets)",
    ),
    "outputs in a dict": (
        lambda: fit(Head(lambda out: {"out": out})),
        "loss: the model gives a dict, and this loss takes a tensor; give a function of it, such "
        "as lambda output, targets: loss(output['out'], targets)",
    ),
    "outputs in a named tuple": (
        lambda: fit(Head(lambda out: Normal(out, out))),
        "loss: the model gives a Normal, and this loss takes a tensor; give a function of it, such "
        "as lambda output, targets: loss(output.mean, targets)",
    ),
    "inputs by name": (
        lambda: fit(Two(), loader=BatchLoader(({"a": X, "b": X}, Y))),
        "model: Two.forward() missing 1 required positional argument: 'b'; inputs are a dict, "
        "which forward gets as one argument. With the loss 'model' it gets them by their names "
        "(a, b), and gives the loss",
    ),
    "inputs and targets in a dict": (
        lambda: fit(loader=MiniBatchLoader({"x": X, "y": Y}, 8)),
        "model: inputs are a dict (x, y), which forward gets as one argument; give inputs and "
        "targets as (X, y), or use the loss 'model' for a model that takes them by their names "
        "and gives its loss",
    ),
    "one callback": (
        lambda: trainer(callbacks=KeepBest("train_loss")),
        "callbacks: must be a list; got KeepBest(every_n_epochs=1, monitor='train_loss'); "
        "put it into one",
    ),
    "a class of callbacks": (
        lambda: trainer(callbacks=[EarlyStopping]),
        "callbacks: must be objects of subclasses of Callback, whose methods are the moments of a "
        "run, such as on_epoch_end(trainer, record); got <class "
        "'gdtrain.training.callbacks.validation.EarlyStopping'>",
    ),
    "a class of metrics": (
        lambda: trainer(metrics={"mae": pytest.importorskip("torchmetrics").MeanAbsoluteError}),
        "metrics: must be a list of names, such as ['mae'], or a mapping of names to functions "
        "(output, targets) -> number, or to objects with update, compute and reset; mae is <class "
        "'torchmetrics.regression.mae.MeanAbsoluteError'>",
    ),
    "a class of schedules": (
        lambda: trainer(scheduler=StepLR),
        "scheduler: must be a torch.optim.lr_scheduler, such as torch.optim.lr_scheduler.StepLR("
        "optimizer, 10); got <class 'torch.optim.lr_scheduler.StepLR'>",
    ),
    "a train_step without return": (
        lambda: own_step(lambda loss: None).fit(1),
        "Stepping.train_step: must return the loss, a tensor of shape []; got None; end with "
        "return loss.detach()",
    ),
    "a float of a train_step": (
        lambda: own_step(lambda loss: loss.item()).fit(1),
        "Stepping.train_step: must return the loss, a tensor of shape []; got a float; end with "
        "return loss.detach()",
    ),
    "several losses of a train_step": (
        lambda: own_step(lambda loss: loss.expand(3)).fit(1),
        "Stepping.train_step: must return the loss, a tensor of shape []; got shape [3]; end with "
        "return loss.detach()",
    ),
    "a metric of each sample": (
        lambda: trainer(metrics={"error": lambda output, y: (output - y).abs()}).evaluate(),
        "metrics.error: must be one number, got [40, 1]; take its mean, or leave it out",
    ),
    "a metric in words": (
        lambda: trainer(metrics={"error": lambda output, y: "low"}).evaluate(),
        "metrics.error: must be one number, got str; take its mean, or leave it out",
    ),
    "a prequential metric of each sample": (
        lambda: fit(
            callbacks=[Prequential(10, metrics={"error": lambda output, y: (output - y).abs()})]
        ),
        "metrics.error: must be one number, got [40, 1]; take its mean, or leave it out",
    ),
    "a list of forms": (
        lambda: compare([trainer, trainer], epochs=1),  # type: ignore[arg-type]
        "forms: must be a mapping of names to functions that make a trainer, such as "
        "{'batch': f}; got a list",
    ),
    "a trainer as a form": (
        lambda: compare({"a": trainer()}, epochs=1),  # type: ignore[dict-item]
        "forms.a: must be a function that makes a new Trainer; got Trainer; write a function that "
        "returns it",
    ),
    "a form without a seed": (
        lambda: compare({"a": lambda: trainer()}, epochs=1, seeds=2),
        "forms.a: is called as a(seed=…): got an unexpected keyword argument 'seed'; have it take "
        "just these",
    ),
    "a form that returns nothing": (
        lambda: compare({"a": lambda: None}, epochs=1),  # type: ignore[dict-item, return-value]
        "forms.a: must return a Trainer; got None",
    ),
    "the curvature of a model": (
        lambda: curvature(linear()),  # type: ignore[arg-type]
        "trainer: must be a Trainer, which has the model, its loss and the data; got a Linear",
    ),
    "the range of a model's rates": (
        lambda: lr_range(linear()),  # type: ignore[arg-type]
        "trainer: must be a Trainer, which has the model, its loss and the data; got a Linear",
    ),
    "resume as a switch": (
        lambda: trainer().fit(1, resume=True),  # type: ignore[arg-type]
        "resume: must be a directory of checkpoints, such as the one given to Checkpoints; got "
        "True",
    ),
    "two arguments, and a size by name": (
        lambda: MiniBatchLoader(X, Y, batch_size=8),  # type: ignore[arg-type]
        "data: inputs and targets are one argument: MiniBatchLoader((X, y), 32), with options by "
        "name",
    ),
    "shuffle": (
        lambda: MiniBatchLoader((X, Y), 8, shuffle=True),  # type: ignore[call-arg]
        "shuffle: is called order here: order='reshuffle' for True, order='sequential' for False",
    ),
    "a size of all samples": (
        lambda: BatchLoader((X, Y), batch_size=8),  # type: ignore[call-arg]
        "batch_size: is an argument of MiniBatchLoader: MiniBatchLoader((X, y), batch_size=32)",
    ),
    "no size": (
        lambda: MiniBatchLoader((X, Y)),  # type: ignore[call-arg]
        "MiniBatchLoader: missing a required argument: 'batch_size'",
    ),
    "bce of numbers that are no probabilities": (
        lambda: fit(nn.Linear(1, 1), nn.BCELoss(), BatchLoader((9e4 * X, (X > 0).float()))),
        "loss: BCELoss takes probabilities; end the model with nn.Sigmoid(), or use "
        "nn.BCEWithLogitsLoss (by name bce_with_logits)",
    ),
    "the patience of EarlyStopping": (
        lambda: EarlyStopping(3),  # type: ignore[arg-type]
        "monitor: must be a key of the epochs' records, such as 'val_loss', got 3",
    ),
    "data in fit": (
        lambda: trainer().fit(X, Y),  # type: ignore[arg-type]
        "data: is the trainer's: Trainer(…, loader=MiniBatchLoader((X, y), 32)).fit(100)",
    ),
    "inputs in fit": (
        lambda: trainer().fit(X),  # type: ignore[arg-type]
        "num_epochs: must be a whole number >= 0, got a Tensor",
    ),
    "data in evaluate": (
        lambda: trainer().evaluate(X, Y),  # type: ignore[arg-type]
        "data: is given by a loader: trainer.evaluate(BatchLoader((X, y)))",
    ),
    "inputs in evaluate": (
        lambda: trainer().evaluate(X),  # type: ignore[arg-type]
        "loader: must be a Loader (BatchLoader, SampleLoader, MiniBatchLoader, PhasedLoader or one "
        "of your own), got a Tensor; give its data set to one of these",
    ),
    "epochs of a trainer": (
        lambda: trainer(epochs=3),
        "epochs: is an argument of fit: trainer.fit(100)",
    ),
    "train_loader": (
        lambda: trainer(train_loader=None),
        "train_loader: is given by a loader: loader=MiniBatchLoader((X, y), batch_size=32)",
    ),
    "a bound of another library": (
        lambda: trainer(gradient_clip_val=1.0),
        "gradient_clip_val: is called clip_grad_norm",
    ),
    "verbose": (
        lambda: trainer(verbose=False),
        "verbose: is called progress: progress=False",
    ),
    "val_loader": (
        lambda: trainer(val_loader=None),
        "val_loader: is called validation: validation=BatchLoader((X, y))",
    ),
    "a misspelt argument": (
        lambda: trainer(clip_grad=1.0),
        "clip_grad: is not an argument; did you mean clip_grad_norm?",
    ),
    "epochs of a fit": (
        lambda: trainer().fit(epochs=3),  # type: ignore[call-arg]
        "epochs: is called num_epochs here: fit(num_epochs=100), or fit(100)",
    ),
    "epochs of a comparison": (
        lambda: compare({"a": trainer}, num_epochs=3),  # type: ignore[call-arg]
        "num_epochs: is called epochs here: compare(forms, epochs=100)",
    ),
    "a class of models": (
        lambda: Trainer(nn.Linear, "mse", "adam", BatchLoader((X, Y))),  # type: ignore[arg-type]
        "model: must be an nn.Module, such as nn.Linear(3, 1); got the class Linear",
    ),
    "a bound in quotes": (
        lambda: trainer(clip_grad_norm="1"),
        "clip_grad_norm: must be > 0, got '1'",
    ),
    "a zip": (
        lambda: MiniBatchLoader(zip(X, Y, strict=True), 8),
        "data: an iterator gives its samples once; give them as a list, such as list(data), or as "
        "tensors",
    ),
    "an order that is true": (
        lambda: MiniBatchLoader((X, Y), 8, order=True),  # type: ignore[arg-type]
        "order: must be the name of an order, such as 'reshuffle' or 'sequential'; got True",
    ),
    "ragged samples": (
        lambda: next(iter(MiniBatchLoader([(torch.ones(n, 2), 1.0) for n in (3, 4)], 2))),
        "the dataset's samples do not make a batch: stack expects each tensor to be equal size, "
        "but got [3, 2] at entry 0 and [4, 2] at entry 1; give samples of one shape, or a "
        "collate_fn",
    ),
    "predictions of a loader": (
        lambda: trainer().predict(BatchLoader((X, Y))),
        "inputs: must be tensors or arrays [n, …], got a BatchLoader; evaluate takes loaders",
    ),
    "predictions of one sample": (
        lambda: trainer(linear(3)).predict(torch.ones(3)),
        "model: gave [1] for inputs of shape [3], taken as 3 samples; give one sample as [1, 3], "
        "by inputs[None]",
    ),
    "predictions of other features": (
        lambda: trainer().predict(torch.ones(4, 2)),
        "model: a layer does not accept inputs of shape [4, 2]: "
        f"{shapes_of_torch(4, 2, 1)}; give the layer as many inputs as there are features",
    ),
    "a DataLoader to evaluate": (
        lambda: trainer().evaluate(DataLoader(TensorDataset(X, Y), 8)),  # type: ignore[arg-type]
        "loader: a torch DataLoader has no order by seed and epoch; give its data set to a loader, "
        "as in MiniBatchLoader(dataset, 8)",
    ),
    "a DataLoader as data": (
        lambda: MiniBatchLoader(DataLoader(TensorDataset(X, Y), 8), 8),
        "data: a torch DataLoader has no order by seed and epoch; give its data set to a loader, "
        "as in MiniBatchLoader(dataset, 8)",
    ),
    "an optimizer to be made": (
        lambda: trainer(optimizer=partial(SGD, lr=0.1)),
        "optimizer: must be a torch.optim optimizer, such as torch.optim.SGD(model.parameters(), "
        "lr=0.1), or a mapping of names to some; got functools.partial(<class "
        "'torch.optim.sgd.SGD'>, lr=0.1)",
    ),
}


def own_step(returned: Any) -> Trainer:
    """A trainer whose ``train_step`` returns something made of the loss."""

    class Stepping(Trainer):
        def train_step(self, batch: Any) -> Any:
            return returned(super().train_step(batch))

    model = linear()
    return Stepping(model, "mse", SGD(model.parameters(), lr=0.1), BatchLoader((X, Y)))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = linear(2)

    def forward(self, a: Any, b: Any) -> Any:
        return self.linear(torch.cat([a, b], dim=1))


@pytest.mark.parametrize("guess", REFUSED)
def test_a_wrong_first_guess_is_refused_in_a_line(guess: str) -> None:
    work, message = REFUSED[guess]
    with pytest.raises(GdtrainError) as error:
        work()
    assert str(error.value) == message


# ── right as they are ───────────────────────────────────────────────────────────────────────


def test_a_list_of_samples_is_data() -> None:
    pairs = MiniBatchLoader(list(zip(X, Y, strict=True)), 16, order="sequential")
    plain = MiniBatchLoader((X, Y), 16, order="sequential")
    for mine, theirs in zip(pairs, plain, strict=True):
        assert torch.equal(mine.inputs, theirs.inputs)
        assert torch.equal(mine.targets, theirs.targets)
    named = next(iter(MiniBatchLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], 8)))
    assert named.inputs["x"].shape == (8, 1)


def test_a_list_of_two_tensors_is_inputs_and_targets() -> None:
    batch = next(iter(BatchLoader([X, Y])))
    assert torch.equal(batch.inputs, X)
    assert torch.equal(batch.targets, Y)


@pytest.mark.parametrize("inputs", [X, X.numpy(), {"a": X}])
def test_targets_may_be_none(inputs: Any) -> None:
    batch = next(iter(BatchLoader((inputs, None))))
    assert batch.targets is None
    there = batch.inputs["a"] if isinstance(inputs, dict) else batch.inputs
    assert torch.equal(there, torch.as_tensor(X))


def test_a_model_that_gives_an_object_with_its_loss() -> None:
    loader = MiniBatchLoader({"x": X, "labels": CLASSES}, 8, order="sequential")
    made = trainer(Named(), "model", loader, metrics=["accuracy"])
    hand = Named()
    optimizer = SGD(hand.parameters(), lr=0.1)
    for x, labels in zip(X.split(8), CLASSES.split(8), strict=True):
        optimizer.zero_grad()
        hand(x, labels).loss.backward()
        optimizer.step()
    made.fit(1)
    assert all(map(torch.equal, made.model.parameters(), hand.parameters()))
    logits = hand(X).logits
    assert torch.equal(made.predict({"x": X}).logits, logits.detach())
    assert made.evaluate()["accuracy"] == pytest.approx(
        float((logits.argmax(1) == CLASSES).float().mean())
    )


def test_a_named_tuple_of_outputs_stays_one() -> None:
    def loss(output: Normal, y: Any) -> Any:
        return F.gaussian_nll_loss(output.mean, y, output.var)

    made = trainer(Head(lambda out: Normal(out, out.exp())), loss, MiniBatchLoader((X, Y), 8))
    made.fit(1)
    predicted = made.predict(X)
    assert isinstance(predicted, Normal)
    expected = loss(Normal(*map(torch.as_tensor, predicted)), Y)
    assert made.evaluate()["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_lists_and_doubles_to_predict() -> None:
    made = trainer()
    expected = made.model(X[:2]).detach()
    for given in (X[:2].tolist(), X[:2].double().numpy(), np.asarray(X[:2], np.float16)):
        assert torch.allclose(made.predict(given), expected, atol=1e-3)


def test_a_method_of_another_library_s_moment_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Log(Callback):
        def on_train_epoch_end(self, trainer: Any) -> None: ...

        def on_epoch_end(self, trainer: Any, record: dict[str, Any]) -> None: ...

    trainer(callbacks=[Log()])
    assert caplog.messages == [
        "Log.on_train_epoch_end is not called by fit; the moments of a run are on_fit_start, "
        "on_epoch_start, on_gradient, on_before_update, on_safe_point, on_epoch_end, on_records, "
        "on_fit_end"
    ]


def test_a_step_of_another_library_s_trainer_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Lightning(Trainer):
        def training_step(self, batch: Any, number: int) -> None: ...

    model = linear()
    Lightning(model, "mse", SGD(model.parameters(), lr=0.1), BatchLoader((X, Y)))
    assert caplog.messages == [
        "Lightning.training_step is not called by fit; override train_step(batch), or "
        "compute_loss(batch)"
    ]


def test_what_a_trainer_prints_of_a_loss_of_its_own() -> None:
    own = trainer(loss=None, compute_loss=lambda t, b: t.model(b.inputs).square().mean())
    assert ", a loss of its own, SGD, " in repr(own)
