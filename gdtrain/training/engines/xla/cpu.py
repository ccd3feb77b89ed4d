"""XLA's CPU, set up for programs that make many small steps."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import jax
import torch

# A loop whose step touches fewer bytes than this becomes one function. In others each part is
# called by itself: with XLA's 1024 bytes, a step of a perceptron 2-8-1 takes 10 times as long as
# one of 2-4-1.
_SMALL_LOOP = 1 << 20
_FLAG = "xla_backend_extra_options"
_OPTION = f"--{_FLAG}=xla_cpu_small_while_loop_byte_threshold={_SMALL_LOOP}"
# By default there is a thread for each core, whatever a program is compiled for. Where the other
# cores are busy, an update of 784-256-10 takes twice as long by two threads as by one.
_THREADS = "PJRT_NPROC"
# By default each call goes to a thread of its own and is waited for: on some machines that takes
# longer than the steps of a short block.
_ASYNCHRONOUS = "jax_cpu_enable_async_dispatch"


@cache
def cpu() -> Any:
    """The device, which computes with as many threads as PyTorch has when it is first asked for.

    XLA takes its settings when it is first used, so they are those of the process if that was not
    here. They change no result by more than rounding.
    """
    config: Any = jax.config
    flags, asynchronous = os.environ.get("XLA_FLAGS", ""), config.read(_ASYNCHRONOUS)
    settings = {} if _FLAG in flags else {"XLA_FLAGS": f"{flags} {_OPTION}".strip()}
    if _THREADS not in os.environ:
        settings[_THREADS] = str(torch.get_num_threads())
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    config.update(_ASYNCHRONOUS, False)
    try:
        return jax.local_devices(backend="cpu")[0]
    finally:
        config.update(_ASYNCHRONOUS, asynchronous)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
