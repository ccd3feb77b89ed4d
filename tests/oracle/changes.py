"""What a user's own code does to model, loss and optimizer in mid-run: plain PyTorch."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from oracle.parts import Parts
from oracle.program import Event


def change(event: Event, parts: Parts) -> None:
    """Make the event's change."""
    CHANGES[event.what](parts, event.value)


def freeze(parts: Parts, part: str) -> None:
    parts.part(part).requires_grad_(False)


def unfreeze(parts: Parts, part: str) -> None:
    parts.part(part).requires_grad_(True)


def add_group(parts: Parts, lr: float) -> None:
    assert parts.model.late is not None
    parts.model.late.requires_grad_(True)
    group = {"params": list(parts.model.late.parameters()), "lr": lr}
    parts.optimizer.add_param_group(group)


def lr(parts: Parts, factor: float) -> None:
    for group in parts.optimizer.param_groups:
        group["lr"] = group["lr"] * factor


def momentum(parts: Parts, value: float) -> None:
    for group in parts.optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (value, group["betas"][1])
        elif "momentum" in group:
            group["momentum"] = value


def weight_decay(parts: Parts, value: float) -> None:
    for group in parts.optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = value


def to_eval(parts: Parts, part: str) -> None:
    parts.part(part).eval()


def to_train(parts: Parts, part: str) -> None:
    parts.part(part).train()


def hook_forward(parts: Parts, part: str) -> None:
    def halve(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output * 0.5 if isinstance(output, Tensor) else None

    parts.handles.append(parts.part(part).register_forward_hook(halve))


def _halved(layer: nn.Module, *inputs: Any) -> Any:
    output = type(layer).forward(layer, *inputs)
    return output * 0.5 if isinstance(output, Tensor) else output


class _Forward:
    """A method in the place of a layer's ``forward``; a copy of the layer has its own."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, layer.forward = layer, MethodType(_halved, layer)

    def remove(self) -> None:
        vars(self.layer).pop("forward", None)


def hook_in_place(parts: Parts, part: str) -> None:
    parts.handles.append(_Forward(parts.part(part)))


def hook_backward(parts: Parts, part: str) -> None:
    def halve(module: nn.Module, of_inputs: Any, of_outputs: Any) -> Any:
        return tuple(None if g is None else g * 0.5 for g in of_inputs)

    parts.handles.append(parts.part(part).register_full_backward_hook(halve))


def _first_trained(parts: Parts, part: str) -> Tensor | None:
    return next((p for p in parts.part(part).parameters() if p.requires_grad), None)


def hook_gradient(parts: Parts, part: str) -> None:
    parameter = _first_trained(parts, part)
    if parameter is not None:
        parts.handles.append(parameter.register_hook(lambda gradient: gradient * 0.5))


@torch.no_grad()
def _clamp_gradient(parameter: Tensor) -> None:
    if parameter.grad is not None:  # there is none if it was frozen after its forward pass
        parameter.grad.clamp_(-0.05, 0.05)


def hook_accumulated(parts: Parts, part: str) -> None:
    parameter = _first_trained(parts, part)
    if parameter is not None:
        parts.handles.append(parameter.register_post_accumulate_grad_hook(_clamp_gradient))


@torch.no_grad()
def halve_gradients(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad *= 0.5


@torch.no_grad()
def clamp_weights(model: nn.Module, bound: float = 0.3) -> None:
    for parameter in model.parameters():
        parameter.clamp_(-bound, bound)


def hook_before_step(parts: Parts, _: Any) -> None:
    hook = parts.optimizer.register_step_pre_hook(lambda optimizer, *_: halve_gradients(optimizer))
    parts.handles.append(hook)


def hook_after_step(parts: Parts, bound: float) -> None:
    model = parts.model
    hook = parts.optimizer.register_step_post_hook(lambda *_: clamp_weights(model, bound))
    parts.handles.append(hook)


def unhook(parts: Parts, _: Any) -> None:
    while parts.handles:
        parts.handles.pop().remove()


def clamp(parts: Parts, bound: float) -> None:
    clamp_weights(parts.model, bound)


def bind(parts: Parts, factor: float) -> None:
    """Give every parameter other memory."""
    for parameter in parts.model.parameters():
        parameter.data = parameter.data * factor


def replace_parameters(parts: Parts, part: str) -> None:
    """Put new parameters in the place of a layer's, in the optimizer too."""
    for module in parts.part(part).modules():
        for name, old in list(module.named_parameters(recurse=False)):
            new = nn.Parameter(old.detach() * 0.5, requires_grad=old.requires_grad)
            setattr(module, name, new)
            parts.optimizer.state.pop(old, None)
            for group in parts.optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]


def replace_buffers(parts: Parts, part: str) -> None:
    for module in parts.part(part).modules():
        for name, old in list(module.named_buffers(recurse=False)):
            setattr(module, name, old.clone())


def forget(parts: Parts, _: Any) -> None:
    """Start the optimizer's momenta and moments again."""
    parts.optimizer.state.clear()


def stale_gradients(parts: Parts, value: float) -> None:
    for parameter in parts.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, value)


def halve_gradient(parts: Parts, _: Any) -> None:
    halve_gradients(parts.optimizer)


def reseed(parts: Parts, seed: int) -> None:
    torch.manual_seed(seed)


CHANGES = {
    function.__name__: function
    for function in (
        freeze, unfreeze, add_group, lr, momentum, weight_decay, to_eval, to_train, hook_forward,
        hook_in_place, hook_backward, hook_gradient, hook_accumulated, hook_before_step,
        hook_after_step, unhook, clamp, bind, replace_parameters, replace_buffers, forget,
        stale_gradients, halve_gradient, reseed,
    )
}  # fmt: skip
# Errors, once, in the pass or call of a moment whose number is their value: a batch that is cut has
# several. Whether one has come does not show, if all goes on as if it had not.
BREAKS = {"raise", "out_of_memory"}
# Changes that a snapshot does not hold: who takes one up makes them again first.
STRUCTURAL = {
    "hook_forward", "hook_in_place", "hook_backward", "hook_gradient", "hook_accumulated",
    "hook_before_step", "hook_after_step", "unhook", "add_callback",
}  # fmt: skip
