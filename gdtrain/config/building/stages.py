"""Which section of a configuration an error of building is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gdtrain.config.schema import Config
from gdtrain.errors import ConfigError, DataError, Fault, GdtrainError
from gdtrain.training.gradients.microbatches import is_out_of_memory

# What torch says of sizes that are too large, themselves or as a product, to count bytes.
_NO_SIZE = (
    "size calculation overflowed",
    "Overflow when unpacking long",
    "multiplication overflow",
)
REMEDIES = {
    "data": "use fewer samples, or source: mapped, which is read as it is needed",
    "model": "use fewer or smaller layers",
    "": "use a smaller model, or set microbatch_size: auto to compute batches in slices",
}


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
        messages = error.args if isinstance(error, DataError) else [str(error)]
        raise ConfigError([_fault(key, str(message)) for message in messages]) from error
    except (MemoryError, RuntimeError, TypeError) as error:
        text = out_of_memory(error, key)
        if text is None:
            raise
        raise ConfigError([Fault(key, text)]) from error


def _fault(key: str, message: str) -> Fault:
    """The fault of a section, or of the one that the message itself begins with."""
    own, _, rest = message.partition(": ")
    if own == key or (not key and own in Config.model_fields):
        return Fault(own, rest)
    in_data = not key and own in ("inputs", "targets")
    return Fault("data" if in_data else key, message)


def out_of_memory(error: BaseException, key: str) -> str | None:
    """What to say if ``error`` is of too little memory for the section ``key``, else None."""
    if not (is_out_of_memory(error) or any(message in str(error) for message in _NO_SIZE)):
        return None
    what = "needs" if key else "training needs"
    return f"{what} more memory than there is; {REMEDIES.get(key, REMEDIES[''])}"
