"""Which section of a configuration an error of building is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gdtrain.config.building.memory import out_of_memory
from gdtrain.config.schema import Config
from gdtrain.errors import ConfigError, Fault, GdtrainError


@contextmanager
def stage(key: str) -> Iterator[None]:
    """Say of which section an error is, as a ConfigError without places."""
    try:
        yield
    except ConfigError as error:
        faults = [
            Fault(".".join(filter(None, (key, fault.key))), fault.message) for fault in error.faults
        ]
        raise ConfigError(faults) from error
    except GdtrainError as error:
        message = str(error)
        own, _, rest = message.partition(": ")
        if own == key or (not key and own in Config.model_fields):
            raise ConfigError([Fault(own, rest)]) from error
        in_data = not key and own in ("inputs", "targets")
        raise ConfigError([Fault("data" if in_data else key, message)]) from error
    except (MemoryError, RuntimeError, TypeError) as error:
        text = out_of_memory(error, key)
        if text is None:
            raise
        raise ConfigError([Fault(key, text)]) from error
