"""Several tensors as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Flat:
    """Tensors as one vector [P] of real numbers, one tensor after the other.

    A complex number counts as two, its real and its imaginary part: so a gradient by it, as PyTorch
    has it, is the one by these two.

    dtype: the widest of theirs. device: of the first.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.sizes = [t.numel() * (2 if t.is_complex() else 1) for t in self.tensors]
        self.dtype = self.tensors[0].dtype.to_real()
        for tensor in self.tensors:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype.to_real())
        self.device = self.tensors[0].device

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def wide(self) -> torch.dtype:
        """What sums are kept in: float64, where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def joined(self, others: Iterable[Tensor | None] | None = None) -> Tensor:
        """The tensors in a copy, [P], or others of their shapes; None stands for zeros."""
        pieces = []
        for tensor, other in zip(self.tensors, others or self.tensors, strict=True):
            value = torch.zeros_like(tensor) if other is None else other.detach()
            dense = value.to_dense() if value.layout is not torch.strided else value
            real = torch.view_as_real(dense) if dense.is_complex() else dense
            pieces.append(real.reshape(-1).to(self.device, self.dtype))
        return torch.cat(pieces)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector [P] as views in the shapes of the tensors; in its own dtype, or the complex one
        to it."""
        parts = []
        for tensor, part in zip(self.tensors, torch.split(vector, self.sizes), strict=True):
            pairs = torch.view_as_complex(part.view(-1, 2)) if tensor.is_complex() else part
            parts.append(pairs.view(tensor.shape))
        return parts
