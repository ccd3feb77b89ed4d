"""What trainers of one structure share: outlines of captured steps, and compiled programs.

In a process all trainers do, and through the user's cache folder those of later processes. None of
it has numbers of a model: weights, data and constants are given to a program when it is called.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import jax
import torch
from jax import export

from gdtrain.training.engines.capturing.capture import StepOutline
from gdtrain.training.engines.xla import user_cache
from gdtrain.training.engines.xla.step_key import digest

Block = Callable[..., tuple[Any, Any]]

# For products, XLA calls YNNPACK, unless that is for sums alone.
_WITHOUT_LIBRARY = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# So many of each are kept in a process; those go first that were not used for the longest.
_MOST = 64
_outlines: OrderedDict[str, StepOutline] = OrderedDict()
_programs: OrderedDict[str, Any] = OrderedDict()


def outline(key: str) -> StepOutline | None:
    """The outline of the step of this key, if it has been captured before."""
    if key not in _outlines:
        kept = user_cache.read(f"{key}.json")
        if kept is None:
            return None
        try:
            found = json.loads(kept)
            terms = [(bool(is_term), str(name)) for is_term, name in found.pop("terms")]
            _outlines[key] = StepOutline(**found, terms=terms)
        except (ValueError, TypeError, KeyError):  # not what was written
            return None
    _outlines.move_to_end(key)
    return _outlines[key]


def keep_outline(key: str, found: StepOutline) -> None:
    """Let others have it."""
    _keep(_outlines, key, found)
    user_cache.write(f"{key}.json", json.dumps(asdict(found)).encode())


def compiled(
    words: Any, make: Callable[[], Block], arguments: Sequence[Any], *, calls_library: bool
) -> Any:
    """``(state, losses, …) -> (state, losses)``, compiled; losses given to it are used up.

    words: what it depends on besides the shapes and dtypes of the arguments, which are arrays in
    lists and tuples. make: gives the function, to be traced if nobody has compiled it before.
    calls_library: whether products are left to XLA's library, whose calls take longer than small
    products, and whose products longer than others by matrices that are not transposed for them.
    """
    leaves, tree = jax.tree.flatten(tuple(arguments))
    threads = torch.get_num_threads() > 1
    key = digest([words, [(str(a.dtype), a.shape) for a in leaves], str(tree), threads])
    if key not in _programs:
        block = _read(key) or _exported(key, make(), leaves, tree)
        options: dict[str, str | bool] = {"xla_cpu_multi_thread_eigen": threads}
        lowered = jax.jit(block, donate_argnums=(1,)).lower(*arguments)
        with user_cache.xla_keeps_programs():
            _keep(_programs, key, _compile(lowered, options, calls_library=calls_library))
    _programs.move_to_end(key)
    return _programs[key]


def _compile(lowered: Any, options: dict[str, str | bool], *, calls_library: bool) -> Any:
    if not calls_library:
        with suppress(jax.errors.JaxRuntimeError):  # of a jaxlib that has no such library
            return lowered.compile(compiler_options={**options, **_WITHOUT_LIBRARY})
    return lowered.compile(compiler_options=options)


def _read(key: str) -> Block | None:
    """What an earlier process has traced."""
    if (kept := user_cache.read(f"{key}.program")) is None:
        return None
    try:
        return _called(export.deserialize(bytearray(kept)))
    except Exception:  # not what was written, or not by this jax
        return None


def _exported(key: str, block: Block, leaves: Sequence[Any], tree: Any) -> Block:
    """The function as a later process will have it, and so compile it to the same bits.

    The function itself if jax has no such form of it, which then raises what it has to.
    """

    def flat(*leaves: Any) -> list[Any]:
        state, losses = block(*jax.tree.unflatten(tree, leaves))
        return [*state, losses]

    try:
        exported = export.export(jax.jit(flat), platforms=["cpu"])(*leaves)
        user_cache.write(f"{key}.program", bytes(exported.serialize()))
    except Exception:
        return block
    return _called(exported)


def _called(exported: export.Exported) -> Block:
    call: Any = exported.call

    def block(*arguments: Any) -> tuple[list[Any], Any]:
        *state, losses = call(*jax.tree.leaves(arguments))
        return state, losses

    return block


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    if len(kept) > _MOST:
        kept.popitem(last=False)
