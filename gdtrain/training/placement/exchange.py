"""Gradients added up over all processes, which go out while backward computes others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gdtrain.errors import ModelError
from gdtrain.training.descent import NO_GRADIENT
from gdtrain.training.placement.distributed import World

# A gradient of so many bytes goes out alone as soon as it is there, and is added up where it lies.
# Smaller ones are copied into buckets of as many: the start of an exchange would take longer than
# the exchange.
BUCKET_BYTES = 4 << 20
# Who holds a gradient's memory that nobody else has: the gradient, and the storage asked.
_ALONE = 2
# Older builds of PyTorch without CUDA do not tell; there all gradients go into buckets.
_count_of_holders = getattr(torch._C, "_storage_Use_Count", None)


class Total(NamedTuple):
    """The sum of a gradient's elements, [], at this version of it."""

    gradient: Tensor
    version: int
    value: Tensor


class Exchange:
    """One sum of ``.grad`` over all processes.

    parameters: alike on all processes. A gradient that only some have counts as zeros elsewhere;
    a parameter that none has used keeps none, as with one process. Sparse gradients are sent as
    they are, and stay sparse. What is on its way is not in ``.grad``.
    """

    def __init__(self, world: World, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._world = world
        # At least float32, in which the loss goes along.
        self._dtype = torch.float32
        for parameter in self.parameters:
            self._dtype = torch.promote_types(self._dtype, parameter.dtype.to_real())
        self._sizes = [_real(parameter.detach()).numel() for parameter in self.parameters]
        self._buckets, self._others = self._in_buckets()
        self._given: dict[int, Tensor | None] = {}
        self._sums: dict[int, Tensor] = {}  # a gradient itself, or a piece of a bucket
        self.totals: list[Total] = []  # of some gradients that have been added up
        self._sent: list[Callable[[], None]] = []  # each waits for the sum of a bucket

    def _in_buckets(self) -> tuple[list[list[int]], list[int]]:
        """The parameters' numbers, from the last to the first, as backward comes to them.

        Those of each bucket, and those that fill none and go along with the loss.
        """
        buckets: list[list[int]] = []
        numbers: list[int] = []
        room = 0
        for number in reversed(range(len(self.parameters))):
            size = self._sizes[number] * self._dtype.itemsize
            if size >= BUCKET_BYTES:
                buckets.append([number])
                continue
            numbers.append(number)
            room += size
            if room >= BUCKET_BYTES:
                buckets.append(numbers)
                numbers, room = [], 0
        return buckets, numbers

    @contextmanager
    def during(self) -> Iterator[None]:
        """Send gradients as they come in a backward pass, this process's last of the batch.

        They are sent after it where hooks of others may look at them in the pass.
        """
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters):
            yield
            return
        leaves = [(n, p) for n, p in enumerate(self.parameters) if p.is_leaf and p.requires_grad]
        hooks = [
            p.register_post_accumulate_grad_hook(partial(self._come, n))  # type: ignore[no-untyped-call]
            for n, p in leaves
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _come(self, number: int, parameter: Tensor) -> None:
        if number not in self._given:
            self._take(number)
            self._send()

    def _take(self, number: int) -> None:
        """Take a gradient out of ``.grad``, where a pass within the pass may add another one."""
        parameter = self.parameters[number]
        self._given[number], parameter.grad = parameter.grad, None

    def _send(self) -> None:
        """Send the buckets that are full, in the order that all processes have."""
        for numbers in self._buckets[len(self._sent) :]:
            if not all(number in self._given for number in numbers):
                return
            first = self._given[numbers[0]]
            if len(numbers) == 1 and first is not None and self._may_add_to(first):
                self._sums[numbers[0]], bucket = first, first.view(-1)
            else:
                bucket = self._filled(numbers)
            self._sent.append(self._world.sum_later(bucket))

    def _may_add_to(self, gradient: Tensor) -> bool:
        """Whether the sum may be made where the gradient lies, in memory that is its own."""
        return (
            type(gradient) is Tensor
            and gradient.dtype is self._dtype
            and gradient.is_contiguous()
            and not gradient._is_zerotensor()
            and _count_of_holders is not None
            and _count_of_holders(gradient.untyped_storage()._cdata) == _ALONE
        )

    def _filled(self, numbers: Sequence[int], more: Sequence[Tensor] = ()) -> Tensor:
        """Gradients as one vector, with zeros for none and for sparse ones; more: its end."""
        sizes = [self._sizes[number] for number in numbers]
        device = self.parameters[numbers[0]].device if numbers else None
        bucket = torch.cat([torch.empty(sum(sizes), dtype=self._dtype, device=device), *more])
        for number, piece in zip(numbers, torch.split(bucket[: sum(sizes)], sizes), strict=True):
            gradient, self._sums[number] = self._given[number], piece
            if gradient is None or _is_sparse(gradient):
                piece.zero_()
            else:
                piece.copy_(_real(gradient).reshape(-1))
        return bucket

    def _add_up(self, numbers: Sequence[int]) -> None:
        """Take the total of a large gradient while others are on their way."""
        gradient = self._sums[numbers[0]]
        if gradient is self._given[numbers[0]] and gradient.is_cpu:
            self.totals.append(Total(gradient, gradient._version, gradient.sum()))

    def finish(self, loss: Tensor, has_graph: bool = True) -> Tensor:
        """Set ``.grad`` to the sums. loss: this process's share, []; returns the sum of these.

        has_graph: whether it can be differentiated. Raises ModelError on all processes if none can.
        """
        parameters, count = self.parameters, len(self.parameters)
        is_late = any(parameters[number].grad is not None for number in self._given)
        for number in range(count):
            if number not in self._given:
                self._take(number)
        self._send()
        given = [self._given[number] for number in range(count)]
        device = parameters[0].device if parameters else loss.device
        flags = [float(g is not None and not _is_sparse(g)) for g in given]
        flags += [float(g is not None and _is_sparse(g)) for g in given]
        ends = [
            torch.tensor([*flags, float(has_graph), float(is_late)], device="cpu"),
            loss.reshape(1),
        ]
        last = self._filled(self._others, [end.to(device, self._dtype) for end in ends])
        wait_for_last = self._world.sum_later(last)
        for wait, numbers in zip(self._sent, self._buckets, strict=True):
            wait()
            self._add_up(numbers)
        wait_for_last()
        told = torch.split(last[-2 * count - 3 :], [count, count, 1, 1, 1])
        dense, sparse, graphs, late, total = told
        # On a device the flags are not read where this process has all gradients, and so knows
        # them, since that would wait for it.
        known = device.type != "cpu" and all(g is not None and not _is_sparse(g) for g in given)
        if not (has_graph or graphs[0]):
            raise ModelError(NO_GRADIENT)
        later: list[Tensor | None] = [None] * count
        if is_late if known else late[0]:
            Exchange(self._world, parameters).finish(loss)
            later = [parameter.grad for parameter in parameters]
        has_dense = [True] * count if known else (dense > 0).tolist()
        has_sparse = [False] * count if known else (sparse > 0).tolist()
        for number, parameter in enumerate(parameters):
            summed = _shaped(self._sums[number], parameter) if has_dense[number] else None
            if has_sparse[number]:
                own = given[number]
                own = own if own is not None and _is_sparse(own) else None
                summed = _added(summed, _sum_sparse(self._world, parameter, own))
            parameter.grad = _added(summed, later[number])
        return total[0].clone()


def exchange_gradients(
    world: World,
    parameters: Sequence[Tensor],
    loss: Tensor,
    begun: Exchange | None = None,
    *,
    has_graph: bool = True,
) -> Tensor:
    """Add ``.grad`` up over all processes, and the loss; see :meth:`Exchange.finish`.

    begun: an exchange that has sent some, of the parameters that there were before the pass.
    """
    if begun is None:
        return Exchange(world, parameters).finish(loss, has_graph)
    total = begun.finish(loss, has_graph)
    known = set(map(id, begun.parameters))
    if others := [parameter for parameter in parameters if id(parameter) not in known]:
        Exchange(world, others).finish(loss)
    return total


def _is_sparse(gradient: Tensor) -> bool:
    return gradient.layout is not torch.strided


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _shaped(piece: Tensor, parameter: Tensor) -> Tensor:
    """A piece of a bucket as the gradient of a parameter; one that is a gradient, as it is."""
    if parameter.is_complex():
        pairs = piece.view(*parameter.shape, 2).to(parameter.dtype.to_real())
        return torch.view_as_complex(pairs)
    return piece if piece.ndim != 1 else piece.view(parameter.shape).to(parameter.dtype)


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return other + one if _is_sparse(one) else one + other  # a dense one first


def _sum_sparse(world: World, parameter: Tensor, own: Tensor | None) -> Tensor:
    """The sparse gradients of all processes, added up; own: None where this one has none."""
    content = None
    if own is not None:
        own = own.coalesce()
        content = own.indices().cpu(), own.values().cpu(), own.sparse_dim()
    found = [theirs for theirs in world.gather_objects(content) if theirs is not None]
    indices = torch.cat([indices for indices, _, _ in found], dim=1)
    values = torch.cat([values for _, values, _ in found])
    joined = torch.sparse_coo_tensor(
        indices, values, parameter.shape, check_invariants=False, device="cpu"
    )
    return joined.to(parameter.device).coalesce()
