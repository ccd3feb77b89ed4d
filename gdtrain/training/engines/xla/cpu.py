"""XLA's CPU, set up for programs that make many small steps."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import jax

# A loop whose step touches fewer bytes than this becomes one function. In others each part is
# called by itself: with XLA's 1024 bytes, a step of a perceptron 2-8-1 takes 10 times as long as
# one of 2-4-1.
_SMALL_LOOP = 1 << 20
_FLAG = "xla_backend_extra_options"
_OPTION = f"--{_FLAG}=xla_cpu_small_while_loop_byte_threshold={_SMALL_LOOP}"
# By default each call goes to a thread of its own and is waited for: on some machines that takes
# longer than the steps of a short block.
_ASYNCHRONOUS = "jax_cpu_enable_async_dispatch"


@cache
def cpu() -> Any:
    """The device. XLA takes its settings when it is first used, so they are those of the process
    if that was not here. They change no result by more than rounding."""
    config: Any = jax.config
    flags, asynchronous = os.environ.get("XLA_FLAGS"), config.read(_ASYNCHRONOUS)
    if _FLAG not in (flags or ""):
        os.environ["XLA_FLAGS"] = f"{flags or ''} {_OPTION}".strip()
    config.update(_ASYNCHRONOUS, False)
    try:
        return jax.local_devices(backend="cpu")[0]
    finally:
        config.update(_ASYNCHRONOUS, asynchronous)
        if flags is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = flags
