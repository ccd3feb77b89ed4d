"""Gradients added up over all processes, in buckets that go out while backward computes others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from gdtrain.training.placement.distributed import World

# Of so many bytes or more. A bucket goes out when the gradients of its parameters are there; in
# one of fewer the start of an exchange would take longer than the exchange.
BUCKET_BYTES = 4 << 20


class Exchange:
    """One sum of ``.grad`` over all processes.

    parameters: alike on all processes. A gradient that only some have counts as zeros elsewhere;
    a parameter that none has used keeps none, as with one process. Sparse gradients are sent as
    they are, and stay sparse.
    """

    def __init__(self, world: World, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._world = world
        # At least float32, in which the loss goes along.
        self._dtype = torch.float32
        for parameter in self.parameters:
            self._dtype = torch.promote_types(self._dtype, parameter.dtype.to_real())
        self._buckets = self._in_buckets()
        self._pieces = {n: piece for bucket in self._buckets for n, piece in bucket.pieces.items()}
        self._sent: list[Callable[[], None]] = []  # each waits for the sum of a bucket
        self._given: dict[int, tuple[Tensor | None, int]] = {}  # with the version that was copied

    def _in_buckets(self) -> list[_Bucket]:
        """The parameters from the last to the first, as backward comes to them."""
        buckets: list[_Bucket] = []
        numbers: list[int] = []
        room = 0
        for number in reversed(range(len(self.parameters))):
            numbers.append(number)
            room += _real(self.parameters[number].detach()).numel() * self._dtype.itemsize
            if room >= BUCKET_BYTES or not number:
                buckets.append(_Bucket(numbers, self.parameters, self._dtype))
                numbers, room = [], 0
        return buckets

    @contextmanager
    def during(self) -> Iterator[None]:
        """Send gradients as they come in a backward pass, this process's last of the batch."""
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
        """Copy a gradient into its bucket, or zeros where there is none, or a sparse one."""
        gradient, piece = self.parameters[number].grad, self._pieces[number]
        self._given[number] = gradient, -1 if gradient is None else gradient._version
        if gradient is None or _is_sparse(gradient):
            piece.zero_()
        else:
            piece.copy_(_real(gradient).reshape(-1))

    def _send(self) -> None:
        """Send the buckets that are full, in the order that all processes have."""
        for bucket in self._buckets[len(self._sent) :]:
            if not bucket.pieces.keys() <= self._given.keys():
                return
            self._sent.append(self._world.sum_later(bucket.buffer))

    def finish(self, loss: Tensor) -> Tensor:
        """Set ``.grad`` to the sums. loss: this process's share, []; returns the sum of these."""
        parameters, count = self.parameters, len(self.parameters)
        # A pass within the backward pass may have added to what was sent before.
        is_late = any(self._is_other(number) for number in self._given)
        for number in range(count):
            if number not in self._given:
                self._take(number)
        self._send()
        given = [self._given[number][0] for number in range(count)]
        device = parameters[0].device if parameters else loss.device
        tail = torch.zeros(2 * count + 2, dtype=self._dtype, device=device)
        dense, sparse, total, late = torch.split(tail, [count, count, 1, 1])
        for number, gradient in enumerate(given):
            if gradient is not None:
                (sparse if _is_sparse(gradient) else dense)[number] = 1
        total[0], late[0] = loss, is_late
        self._world.sum(tail)
        for wait in self._sent:
            wait()
        # On a device the flags are not read where this process has all gradients, and so knows
        # them, since that would wait for it.
        known = device.type != "cpu" and all(g is not None and not _is_sparse(g) for g in given)
        if is_late if known else late[0]:
            return Exchange(self._world, parameters).finish(loss)
        has_dense = [True] * count if known else (dense > 0).tolist()
        has_sparse = [False] * count if known else (sparse > 0).tolist()
        for number, parameter in enumerate(parameters):
            summed = _shaped(self._pieces[number], parameter) if has_dense[number] else None
            if has_sparse[number]:
                own = given[number]
                own = own if own is not None and _is_sparse(own) else None
                added = _sum_sparse(self._world, parameter, own)
                summed = added if summed is None else summed + added
            parameter.grad = summed
        return total[0].clone()

    def _is_other(self, number: int) -> bool:
        """Whether a gradient is not what was copied."""
        gradient, version = self._given[number]
        now = self.parameters[number].grad
        return now is not gradient or (now is not None and now._version != version)


class _Bucket:
    """Memory for the gradients of some parameters, which are sent together.

    pieces: of the buffer, by the parameters' numbers.
    """

    def __init__(
        self, numbers: Sequence[int], parameters: Sequence[Tensor], dtype: torch.dtype
    ) -> None:
        sizes = [_real(parameters[number].detach()).numel() for number in numbers]
        self.buffer = torch.empty(sum(sizes), dtype=dtype, device=parameters[numbers[0]].device)
        self.pieces = dict(zip(numbers, torch.split(self.buffer, sizes), strict=True))


def exchange_gradients(
    world: World, parameters: Sequence[Tensor], loss: Tensor, begun: Exchange | None = None
) -> Tensor:
    """Add ``.grad`` up over all processes, and the loss; see :class:`Exchange`.

    begun: an exchange that has sent some, and goes on if it is of these parameters.
    """
    if begun is not None:
        same = len(parameters) == len(begun.parameters) and all(
            one is other for one, other in zip(parameters, begun.parameters, strict=True)
        )
        if same:
            return begun.finish(loss)
    return Exchange(world, parameters).finish(loss)


def _is_sparse(gradient: Tensor) -> bool:
    return gradient.layout is not torch.strided


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _shaped(piece: Tensor, parameter: Tensor) -> Tensor:
    """A piece of the buffer as the gradient of a parameter."""
    if parameter.is_complex():
        pairs = piece.view(*parameter.shape, 2).to(parameter.dtype.to_real())
        return torch.view_as_complex(pairs)
    return piece.view(parameter.shape).to(parameter.dtype)


def _sum_sparse(world: World, parameter: Tensor, own: Tensor | None) -> Tensor:
    """The sparse gradients of all processes, added up; own: None where this one has none."""
    content = None
    if own is not None:
        own = own.coalesce()
        content = own.indices().cpu(), own.values().cpu(), own.sparse_dim()
    found = [theirs for theirs in world.gather_objects(content) if theirs is not None]
    indices = torch.cat([indices for indices, _, _ in found], dim=1)
    values = torch.cat([values for _, values, _ in found])
    joined = torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
    return joined.to(parameter.device).coalesce()
