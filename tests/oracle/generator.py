"""Random programs: what people combine, and what they do in mid-run; and how to make them short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from random import Random
from typing import Any

from oracle import zoo
from oracle.by_hand import updates_of
from oracle.parts import OPTIMIZERS, SCHEDULES, SGD_KINDS
from oracle.program import Event, Program
from oracle.rules import is_sound, is_to_be_refused

KINDS = ("exact", "cut", "ranks", "scan")
OFTEN_SGD = [*OPTIMIZERS, *sorted(SGD_KINDS) * 2]
# Each field with its values; what stands there twice is drawn twice as often. In this order, and
# what does not fit to what was drawn before is drawn again.
FIELDS: dict[str, list[Any]] = {
    "engine": ["eager", "eager", "auto"],
    "ranks": [1],
    "microbatch": [None],
    "memory_limit": [None],
    "seed": list(range(100)),
    "model": list(zoo.MODELS),
    "loss": list(zoo.LOSSES),
    "trainer": ["plain"] * 10 + ["noted", "annealed", "perturbed", "own_step", "unweighted"],
    "data": ["tensors"] * 8 + ["arrays", "dataset", "gaps", "stream"],
    "data trainer": [None] * 19 + [("dicts", "of_dicts")],
    # A model that works in place is to leave the rows as they are, which it may be given as views.
    "model data order": [None] * 29 + [("in_place", "tensors", "sequential")],
    # Where PyTorch's code alone runs between two blocks.
    "model loss trainer data": [
        *[None] * 8,
        ("stock", "mse", "plain", "tensors"),
        ("stock_norm", "entropy", "plain", "tensors"),
    ],
    "dtype": ["float32"] * 9 + ["float64"] * 9 + ["bfloat16"] * 2,
    "default_dtype": ["float32"] * 9 + ["float64"],
    "late": [False] * 4 + [True],
    "optimizer": OFTEN_SGD,
    "groups": ["one", "one", "two", "reversed", "each", "empty"],
    "samples": list(range(6, 21)),
    "form": ["minibatch"] * 3 + ["batch"] * 2 + ["sample", "growing", "phased"],
    "batch_size": [2, 3, 4, 5],
    "order": [
        *["sequential"] * 3,
        "reshuffle",
        "shuffle_once",
        "replacement",
        "indices",
        "callable",
        "sampler",
        "sampler_of_all",
        "own_sampler",
        "weighted",
        "weighted_once",
    ],
    "drop_last": [False] * 4 + [True],
    "schedule": [None] * len(SCHEDULES) + list(SCHEDULES),
    "schedule_per": ["epoch", "step"],
    "validation": [None] * 7 + [(5, 1), (17, 1), (17, 2)],
    "metric": [False, True],
    "watch": [None, 0, 1, 2, 3, 7],
    "clip_norm": [None] * 8 + [0.5, 0.05],
    "clip_value": [None] * 9 + [0.05],
    "in_float64": [False],
    "fits": [(1,), (2,), (3,), (4,), (1, 2), (2, 4), (1, 3), (3, 3)],
}
OF_KIND: dict[str, dict[str, list[Any]]] = {
    "exact": {},
    "cut": {
        "dtype": ["float64", "float64", "float32"],
        "microbatch": [1, 2, 3, "auto", "auto"],
        # In which it shows whether a batch that is tried again starts as it did.
        "model microbatch": [*[None] * 8, ("counting", "auto"), ("counting_anew", "auto")],
        "memory_limit": [None, 300, 300, 1000],
        "in_float64": [False, True],
    },
    "ranks": {
        "dtype": ["float64", "float64", "float32"],
        "ranks": [2],
        "microbatch": [None, None, None, 2, "auto"],
        "memory_limit": [None, 2000],
        "in_float64": [False, True],
    },
    "scan": {
        "engine": ["scan"],
        "optimizer": sorted(SGD_KINDS),
        "data": ["tensors"],
        # Each size of batches is captured and compiled, and after each event and in each call of
        # fit captured again, which takes most of the time.
        "samples": [6, 9, 12, 12],
        "form": ["minibatch"] * 8 + ["batch", "sample"] * 4 + ["growing", "phased"],
        "batch_size": [3, 3, 3, 4],
        "fits": [(1,), (2,), (2,), (3,), (1, 2)],
    },
}
# Models with which scan refuses to begin.
NO_SCAN_MODELS = {
    *("groupnorm", "parametrized", "spectral", "growing", "remembering", "embedding"),
    *("sometimes_sparse", "lazy", "recurrent"),
}
REFUSED = 0.2  # of the programs that have to be refused, how many are drawn
FITTING = 0.4  # of the events, how many are drawn from those that concern what the program has
HALF_FROZEN = ("frozen", "frozen_norm", "unsafe")  # models
HOOKS = ("hook", "add_callback")  # which no compiled step can follow
BETWEEN = ["fit", "order", "epoch_end", "safe_point", "safe_point"]
INSIDE = ["forward", "loss", "gradient", "before_update"]
MOMENTS = (
    ["fit", "fit_start", "order", "epoch_start", "epoch_end", "epoch_end"]
    + [*INSIDE, "before_update", "item"]
    + ["safe_point"] * 3
)
CHANGES: dict[str, list[Any]] = {
    "freeze": ["body", "head"],
    "unfreeze": ["body", "head", "norm"],
    "add_group": [0.02, 0.1],
    "lr": [0.5, 2.0, 0.0],
    "lr_of_trainer": [0.01, 0.03],
    "momentum": [0.5, 0.0, 0.9],
    "weight_decay": [0.1, 0.0],
    "to_eval": ["norm", "model", "body"],
    "to_train": ["norm", "model"],
    "hook_forward": ["body", "head"],
    "hook_backward": ["head"],
    "hook_gradient": ["body", "head"],
    "hook_accumulated": ["body", "head"],
    "hook_in_place": ["body", "head"],
    "hook_before_step": [None],
    "hook_after_step": [0.3],
    "unhook": [None],
    "clamp": [0.3],
    "bind": [0.9],
    "replace_parameters": ["head", "body"],
    "replace_buffers": ["model"],
    "forget": [None],
    "stale_gradients": [1.0],
    "reseed": [99],
    "halve_gradient": [None],
    "stop": [None],
    "state_dict": [None],
    "snapshot": [None],
    "add_callback": ["halve", "count", "clamp"],
    "evaluate": [None],
    "predict": [3, 1],
    "raise": [0, 0, 1, 2],
    "nan": [None],
    "out_of_memory": [0, 1, 2],
}


def generate(random: Random, kind: str) -> Program:
    """A random program of one of the :data:`KINDS`."""
    program = Program(samples=20)
    for name, values in (FIELDS | OF_KIND[kind]).items():
        for _ in range(30):
            value = random.choice(values)
            if " " in name:  # fields that go together, or None for none of it
                candidate = replace(program, **dict(zip(name.split(), value or (), strict=False)))
            else:
                candidate = replace(program, **{name: value})
            if not is_sound(candidate):
                continue
            refused = is_to_be_refused(candidate) or (
                kind == "scan" and candidate.model in NO_SCAN_MODELS
            )
            if not refused or random.random() < REFUSED:
                program = candidate
                break
    for _ in range(random.randint(0, 2 if kind == "scan" else 6)):  # most make scan capture again
        for _ in range(10):
            candidate = replace(program, events=(*program.events, _event(random, program)))
            hooked = candidate.events[-1].what.startswith(HOOKS) and kind == "scan"
            if is_sound(candidate) and not (hooked and random.random() > REFUSED):
                program = candidate
                break
    return program


def _event(random: Random, program: Program) -> Event:
    whens, whats = MOMENTS, list(CHANGES)
    if program.engine != "scan" and random.random() < FITTING:
        whens, whats = random.choice(list(_fitting(program)))
    if program.model in zoo.STOCK_MODELS:
        whens = BETWEEN
    when, what = random.choice(whens), random.choice(whats)
    if when == "item":
        what = "raise"
    most = {
        "fit": len(program.fits) - 1,
        "fit_start": len(program.fits) - 1,
        "item": program.samples - 1,
    } | dict.fromkeys(("order", "epoch_start", "epoch_end"), program.fits[-1])
    number = random.randint(0, most.get(when, updates_of(program)))
    return Event(when, number, what, random.choice(CHANGES[what]))


def _fitting(program: Program) -> Iterator[tuple[list[str], list[str]]]:
    """Moments and changes that concern what this very program has, and few others have."""
    yield INSIDE, ["add_callback"]
    yield ["safe_point", "fit"], ["snapshot"]
    if program.microbatch == "auto":
        yield ["forward"], ["out_of_memory"]
    if program.is_cut:
        yield ["forward", "loss"], ["raise"]  # between two parts
    if program.model in HALF_FROZEN:
        yield MOMENTS, ["unfreeze"]
    if program.late:
        yield MOMENTS, ["add_group"]
    if program.order in ("callable", "own_sampler"):
        yield ["safe_point", "before_update", "epoch_end"], ["stop", "raise"]
    if program.optimizer == "lbfgs":
        yield ["gradient", "before_update"], ["halve_gradient", "raise"]


# ── making a failing program short ──────────────────────────────────────────────────────────────


def shortest(program: Program, fails: Callable[[Program], bool], tries: int = 400) -> Program:
    """The program with all left out that it does not need to fail."""
    while True:
        for candidate in _shorter(program):
            if tries == 0:
                return program
            if not is_sound(candidate):
                continue
            tries -= 1
            if fails(candidate):
                program = candidate
                break
        else:
            return program


def _shorter(program: Program) -> Iterator[Program]:
    events = program.events
    for cut in range(len(events)):
        yield replace(program, events=events[:cut] + events[cut + 1 :])
    for field in fields(program):
        if field.name != "events" and getattr(program, field.name) != field.default:
            yield replace(program, **{field.name: field.default})
    if program.samples > 8:
        yield replace(program, samples=program.samples // 2)
        yield replace(program, samples=program.samples - 1)
    if program.fits[-1] > 1:
        yield replace(program, fits=program.fits[-1:])
        yield replace(program, fits=(program.fits[-1] - 1,))
    for place, event in enumerate(events):
        if event.number > 0:
            for number in (event.number // 2, event.number - 1):
                earlier = (*events[:place], replace(event, number=number), *events[place + 1 :])
                yield replace(program, events=earlier)
