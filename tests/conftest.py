"""What all tests share: one thread, and a registry that forgets what a test has registered."""

from collections.abc import Iterator

import pytest
import torch

from gdtrain.config import registry

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    kinds = (registry.models, registry.losses, registry.sources, registry.trainers)
    before = [dict(kind.parts) for kind in kinds]
    yield
    for kind, parts in zip(kinds, before, strict=True):
        kind.parts.clear()
        kind.parts.update(parts)
