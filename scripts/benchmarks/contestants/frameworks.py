"""Other training loops for PyTorch, each used plainly, with logs, bars and checkpoints off.

What is timed is the loop: from each framework's own notice that training begins to the one that it
has ended. What it does before and after a fit is not counted.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch

from contestants.by_hand import data_loader, loss_of, model_of, timed
from contestants.workload import LEARNING_RATE, Run, Workload

warnings.filterwarnings("ignore")


class Clock:
    """Seconds between ``start`` and ``stop``."""

    seconds = 0.0

    def start(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def stop(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._started


def clocked(base: type, begins: str, ends: str) -> tuple[Clock, Any]:
    """A clock, and a callback of a framework's own kind that starts and stops it.

    begins, ends: its methods that the loop calls.
    """
    clock = Clock()
    return clock, type("Timer", (base,), {begins: clock.start, ends: clock.stop})()


def _loop(owner: Any, model: Any, loss: Any, optimizer: Any, loader: Any) -> Run:
    """The loop of those who leave it to their user."""

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            owner.backward(loss(model(x), y))
            optimizer.step()

    return timed(epoch, "cpu")


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

    module, loader = Module(), data_loader(workload)
    clock, timer = clocked(L.Callback, "on_train_start", "on_train_end")

    def run(epochs: int) -> float:
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timer],
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

    return _loop(owner, model, loss, optimizer, loader)


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

    clock, timer = clocked(Callback, "on_train_begin", "on_train_end")
    net = NeuralNet(
        model_of(workload),
        type(loss_of(workload)),
        optimizer=torch.optim.SGD,
        lr=LEARNING_RATE,
        batch_size=workload.size,
        iterator_train__shuffle=workload.shuffled,
        train_split=None,
        verbose=0,
        callbacks=[("timer", timer)],
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

    return _loop(owner, model, loss, optimizer, loader)
