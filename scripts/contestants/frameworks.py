"""Other training loops for PyTorch, each used plainly, with logs, bars and checkpoints off.

What is timed is the loop: from each framework's own notice that training begins to the one that it
has ended. What it does before and after a fit is not counted.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from typing import Any

import torch

from contestants.by_hand import data_loader, loss_of, model_of, tensors_of
from contestants.workload import LEARNING_RATE, Run, Workload

warnings.filterwarnings("ignore")


class Clock:
    """Seconds between ``start`` and ``stop``."""

    seconds = 0.0

    def start(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def stop(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._started


def lightning(workload: Workload, _: str) -> Run:
    import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = model_of(workload), loss_of(workload)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)

    clock, module, loader = Clock(), Module(), data_loader(workload)

    class Timer(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            clock.start()

        def on_train_end(self, *_: Any) -> None:
            clock.stop()

    def run(epochs: int) -> float:
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Timer()],
        )
        trainer.fit(module, loader)
        return clock.seconds

    return run


def fabric(workload: Workload, _: str) -> Run:
    from lightning.fabric import Fabric

    owner = Fabric(accelerator="cpu", devices=1)
    module = model_of(workload)
    model, optimizer = owner.setup(module, torch.optim.SGD(module.parameters(), lr=LEARNING_RATE))
    loader, loss = owner.setup_dataloaders(data_loader(workload)), loss_of(workload)

    def run(epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                owner.backward(loss(model(x), y))
                optimizer.step()
        return time.perf_counter() - started

    return run


def ignite(workload: Workload, _: str) -> Run:
    from ignite.engine import Events, create_supervised_trainer

    model, loader, clock = model_of(workload), data_loader(workload), Clock()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    engine = create_supervised_trainer(
        model, optimizer, loss_of(workload), output_transform=lambda *parts: parts[-1]
    )
    engine.add_event_handler(Events.STARTED, clock.start)
    engine.add_event_handler(Events.COMPLETED, clock.stop)

    def run(epochs: int) -> float:
        engine.state.max_epochs = None  # or it would go on from the last run's epoch
        engine.run(loader, max_epochs=epochs)
        return clock.seconds

    return run


def skorch(workload: Workload, _: str) -> Run:
    from skorch import NeuralNet
    from skorch.callbacks import Callback

    clock = Clock()

    class Timer(Callback):
        def on_train_begin(self, net: Any, **_: Any) -> None:
            clock.start()

        def on_train_end(self, net: Any, **_: Any) -> None:
            clock.stop()

    net = NeuralNet(
        model_of(workload),
        type(loss_of(workload)),
        optimizer=torch.optim.SGD,
        lr=LEARNING_RATE,
        batch_size=workload.size,
        iterator_train__shuffle=workload.shuffled,
        train_split=None,
        verbose=0,
        callbacks=[("timer", Timer())],
        callbacks__print_log=None,
    ).initialize()
    inputs, targets = workload.data()

    def run(epochs: int) -> float:
        net.partial_fit(inputs, targets, epochs=epochs)
        return clock.seconds

    return run


def accelerate(workload: Workload, _: str) -> Run:
    from accelerate import Accelerator

    owner = Accelerator(cpu=True)
    module = model_of(workload)
    model, optimizer, loader = owner.prepare(
        module, torch.optim.SGD(module.parameters(), lr=LEARNING_RATE), data_loader(workload)
    )
    loss = loss_of(workload)

    def run(epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                owner.backward(loss(model(x), y))
                optimizer.step()
        return time.perf_counter() - started

    return run


def hf_trainer(workload: Workload, _: str) -> Run:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import Trainer, TrainerCallback, TrainingArguments

    inputs, targets = tensors_of(workload)
    clock = Clock()

    class Data(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(inputs)

        def __getitem__(self, place: int) -> dict[str, Any]:
            return {"x": inputs[place], "labels": targets[place]}

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.loss = model_of(workload), loss_of(workload)

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": self.loss(self.inner(x), labels)}

    class Timer(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    model, folder = Model(), tempfile.mkdtemp()

    def run(epochs: int) -> float:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=workload.size,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_grad_norm=0.0,
            dataloader_pin_memory=False,
        )
        sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)
        trainer = Trainer(
            model, arguments, train_dataset=Data(), optimizers=(sgd, constant), callbacks=[Timer()]
        )
        trainer.train()
        return clock.seconds

    return run


def keras(workload: Workload, _: str) -> Run:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    layers: list[Any] = [k.Input((workload.sizes[0],))]
    for size in workload.sizes[1:-1]:
        layers.append(k.layers.Dense(size, activation="relu"))
    layers.append(k.layers.Dense(workload.sizes[-1]))
    model = k.Sequential(layers)
    model.set_weights([part for weight, bias in workload.initial() for part in (weight.T, bias)])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True) if workload.classes else "mse"
    model.compile(k.optimizers.SGD(LEARNING_RATE), loss)
    inputs, targets = workload.data()
    clock = Clock()

    class Timer(k.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            clock.start()

        def on_train_end(self, logs: Any = None) -> None:
            clock.stop()

    def run(epochs: int) -> float:
        model.fit(
            inputs,
            targets,
            workload.size,
            epochs,
            verbose=0,
            shuffle=workload.shuffled,
            callbacks=[Timer()],
        )
        return clock.seconds

    return run


def composer(workload: Workload, _: str) -> Run:
    from composer import Callback, Trainer
    from composer.models import ComposerModel

    clock = Clock()

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.criterion = model_of(workload), loss_of(workload)

        def forward(self, batch: Any) -> Any:
            return self.inner(batch[0])

        def loss(self, outputs: Any, batch: Any, *_: Any, **__: Any) -> Any:
            return self.criterion(outputs, batch[1])

    class Timer(Callback):
        def fit_start(self, *_: Any) -> None:
            clock.start()

        def fit_end(self, *_: Any) -> None:
            clock.stop()

    model = Model()
    trainer = Trainer(
        model=model,
        train_dataloader=data_loader(workload),
        optimizers=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        max_duration="1ep",
        device="cpu",
        progress_bar=False,
        log_to_console=False,
        callbacks=[Timer()],
    )

    def run(epochs: int) -> float:
        trainer.fit(duration=f"{epochs}ep")
        return clock.seconds

    return run
