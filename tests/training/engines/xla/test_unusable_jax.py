"""A jax that can't be used: auto goes on eagerly and says why, scan is refused in a line."""

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, Trainer
from gdtrain.errors import ConfigError
from gdtrain.training.engines import selection

pytest.importorskip("jax", exc_type=ImportError)


def trainer(engine: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    x = torch.linspace(-1, 1, 8)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader((x, 3 * x))
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", engine=engine)


class Broken(ModuleType):
    """Raises at the first use, as an import with a library that is missing does."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("libjax.so: undefined symbol:\n  PyInit")


def old() -> Any:
    return SimpleNamespace(__version__="0.4.30", __version_info__=(0, 4, 30))


def interpreted() -> Any:
    config = SimpleNamespace(jax_disable_jit=True)
    return SimpleNamespace(__version__="0.9.0", __version_info__=(0, 9, 0), config=config)


def without_version() -> Any:
    return SimpleNamespace(__version__="1", config=None)


def broken() -> Any:
    found: Any = Broken("jax")
    found.__version_info__ = (0, 9, 0)
    return found


UNUSABLE = {
    "old": (old, "jax 0.4.30 is too old; install jax >= 0.8"),
    "interpreted": (interpreted, "jax compiles nothing, since JAX_DISABLE_JIT is set; unset it"),
    "odd": (without_version, "jax can't be used (AttributeError: "),
    "broken": (broken, "jax can't be used (ImportError: libjax.so: undefined symbol: PyInit)"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_scan_is_refused_in_a_line_and_auto_goes_on_eagerly(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make, said = UNUSABLE[kind]
    module = make()
    module.__spec__ = ModuleSpec("jax", None)  # which is all that says that it is installed
    monkeypatch.setitem(sys.modules, "jax", module)
    with pytest.raises(ConfigError) as told:
        trainer("scan").fit(2)
    assert str(told.value).startswith(f"engine: scan can't run this: {said}")
    assert "\n" not in str(told.value)
    monkeypatch.setattr(selection, "_by_rule", lambda *_: "scan")
    plain, automatic = trainer("eager"), trainer("auto")
    plain.fit(2)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        automatic.fit(2)
    assert automatic.engine.name == "eager"
    (note,) = caplog.messages
    assert note.startswith(f"engine: eager, since scan can't run this: {said}")
    assert torch.equal(automatic.model.weight, plain.model.weight)  # type: ignore[arg-type]
