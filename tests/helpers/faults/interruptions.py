"""Trainers and callbacks that end a run, or have a loss that is not finite, at a chosen moment."""

import math

import torch

from gdtrain import Callback, Trainer


class Injected(Trainer):
    """Makes the ``at``-th evaluation of the loss for a gradient, or this, not finite: once."""

    where, at, value = "nowhere", 0, math.nan

    def compute_loss(self, batch):
        self.calls = getattr(self, "calls", 0) + torch.is_grad_enabled()
        hit = self.calls == self.at and torch.is_grad_enabled()
        output = self.model(batch.inputs)
        if hit and self.where == "output":
            output = output * self.value
        loss = self.loss(output, batch.targets)
        if hit and self.where == "loss":
            loss = loss * self.value
        if hit and self.where == "gradient":
            loss = _Poisoned.apply(loss, self.value)
        return loss

    def loss_weight(self, batch):
        return len(batch)


class StopAfter(Callback):
    every_n_steps = 1

    def __init__(self, step: int) -> None:
        self.last = step

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.last:
            trainer.stop("here")


class _Poisoned(torch.autograd.Function):
    """The identity, whose gradient is ``value``."""

    @staticmethod
    def forward(context, loss, value):
        context.value = value
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.value, None
