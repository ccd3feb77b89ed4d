"""Frameworks that own the loop and the data's way into it: HF Trainer, Keras on torch, Composer."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch

from contestants.by_hand import data_loader, loss_of, model_of, tensors_of
from contestants.frameworks import clocked
from contestants.workload import LEARNING_RATE, Run, Workload


def hf_trainer(workload: Workload, _: str) -> Run:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import Trainer, TrainerCallback, TrainingArguments

    inputs, targets = tensors_of(workload)
    clock, timer = clocked(TrainerCallback, "on_train_begin", "on_train_end")

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
            model, arguments, train_dataset=Data(), optimizers=(sgd, constant), callbacks=[timer]
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
    clock, timer = clocked(k.callbacks.Callback, "on_train_begin", "on_train_end")

    def run(epochs: int) -> float:
        model.fit(
            inputs,
            targets,
            workload.size,
            epochs,
            verbose=0,
            shuffle=workload.shuffled,
            callbacks=[timer],
        )
        return clock.seconds

    return run


def composer(workload: Workload, _: str) -> Run:
    from composer import Callback, Trainer
    from composer.models import ComposerModel

    clock, timer = clocked(Callback, "fit_start", "fit_end")

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.criterion = model_of(workload), loss_of(workload)

        def forward(self, batch: Any) -> Any:
            return self.inner(batch[0])

        def loss(self, outputs: Any, batch: Any, *_: Any, **__: Any) -> Any:
            return self.criterion(outputs, batch[1])

    model = Model()
    trainer = Trainer(
        model=model,
        train_dataloader=data_loader(workload),
        optimizers=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        max_duration="1ep",
        device="cpu",
        progress_bar=False,
        log_to_console=False,
        callbacks=[timer],
    )

    def run(epochs: int) -> float:
        trainer.fit(duration=f"{epochs}ep")
        return clock.seconds

    return run
