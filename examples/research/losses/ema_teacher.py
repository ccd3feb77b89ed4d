"""A mean teacher (Tarvainen and Valpola, 2017): agree with the average of one's past weights."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

DECAY, BATCH, EPOCHS = 0.9, 16, 3


def follow(teacher: nn.Module, student: nn.Module) -> None:
    """θ' ← d θ' + (1 - d) θ."""
    with torch.no_grad():
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - DECAY)


def with_gdtrain(model, X, y):
    def of_pupil(trainer, batch):
        output = trainer.model(batch.inputs)
        with torch.no_grad():
            taught = trainer.teacher(batch.inputs)
        return F.mse_loss(output, batch.targets) + 0.5 * F.mse_loss(output, taught)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, y), BATCH, order="sequential")
    trainer = Trainer(model, optimizer=optimizer, loader=loader, compute_loss=of_pupil)
    teacher = trainer.register_state("teacher", copy.deepcopy(model))  # saved with the rest
    optimizer.register_step_post_hook(lambda *_: follow(teacher, model))
    trainer.fit(EPOCHS)
    return teacher


def by_hand(model, X, y):
    optimizer, teacher = torch.optim.SGD(model.parameters(), lr=0.1), copy.deepcopy(model)
    for _ in range(EPOCHS):
        for inputs, targets in zip(X.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            output = model(inputs)
            with torch.no_grad():
                taught = teacher(inputs)
            loss = F.mse_loss(output, targets) + 0.5 * F.mse_loss(output, taught)
            loss.backward()
            optimizer.step()
            follow(teacher, model)
    return teacher
