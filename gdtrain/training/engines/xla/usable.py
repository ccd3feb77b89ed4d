"""Whether the jax that is installed can be used; asked before anything here imports it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gdtrain.training.engines.engine import EngineError

# jax.enable_x64 as a context came with it.
LEAST = (0, 8)


def _next(x: Any) -> Any:
    return x + 1


def check_jax() -> None:
    """Raise EngineError, in one line, if jax is too old, broken, or told to compile nothing.

    It is imported, which takes a second. Whatever it raises, an installation can raise. Its import
    draws from numpy's generator, which the run may draw from: that is put back.
    """
    least = ".".join(map(str, LEAST))
    try:
        before = np.random.get_state(legacy=True)
        try:
            import jax
        finally:
            np.random.set_state(before)

        if jax.__version_info__ < LEAST:
            raise EngineError(f"jax {jax.__version__} is too old; install jax >= {least}")
        config: Any = jax.config
        if config.jax_disable_jit:
            raise EngineError("jax compiles nothing, since JAX_DISABLE_JIT is set; unset it")
        from gdtrain.training.engines.xla.cpu import cpu

        with jax.default_device(cpu()):
            jax.jit(_next)(1.0).block_until_ready()
    except EngineError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        reason = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise EngineError(f"jax can't be used ({reason}); install jax >= {least}") from error
