"""What tests of compiled steps share."""

from collections import OrderedDict
from pathlib import Path

import pytest


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No earlier test has captured or compiled a step, in this process or in the user's folder."""
    from gdtrain.training.engines.xla import shared

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("_outlines", "_programs"):
        monkeypatch.setattr(shared, name, OrderedDict())
