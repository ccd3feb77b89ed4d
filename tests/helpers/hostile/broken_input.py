"""Broken input drawn from a seed: valid configurations, command lines and data files, changed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.hostile.input_run import CONFIG, Case
from helpers.hostile.valid_input import Config, text_of, valid_config

# What stands where something else should: wrong types, bounds and beyond, text that means harm.
WILD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.5, 0.0, -0.0, 1e-308, 5e-324, 1e308),
    *(math.inf, -math.inf, math.nan, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64),
    *(10**6, 10**9, 10**12, 10**18, 10**39, 1e12, 1e-30),
    *("", " ", "-", "x", "1", "1e3", "0x10", "null", "true", "~", "é", "\u202e", "😀", "a.b"),
    *("name", "source", "sgd", "mlp", "csv", "mse", "cuda:9", "cuda:", "os.system", "__class__"),
    *("\n", "a\nb", "a\tb", "\0", "\ud800", "\x85", "\u2028", "\x1b[31m", "a" * 5000, "%s", "{}"),
    *("..", "../../x", "/", ".", "/dev/null", "/etc/hostname", "x.npy", "labels.csv", "none.pt"),
    *([], [[]], {}, [None], [0], [1], [1, "a"], [1.5], ["a"], ["a", "a"], [-1], [True]),
    *([2**31 - 1], [2**31], [10**9, 10**9], [10**5] * 3, [1] * 1000, [1.0] * 3, [[1]], [{}]),
    *({"a": 1}, {"": 1}, {"name": "mlp"}, {"name": {"name": 1}}, {"source": "csv"}, {"name": None}),
    *({"name": "linear", "name ": 1}, {"source": ["csv"]}, {"name": True}, {"name": 1}),
]
NAMES = ["name", "source", "lr", "hidden", "path", "epochs", "", "é", "a.b", "a[0]", "[0]", "0"]
NAMES += ["__init__", "batch_sise", "null", "x" * 300, "shape", "target", "weight", "?"]


def broken_case(seed: int, folder: Path) -> Case:
    """The case of a seed. folder: holds the data files that :func:`write_data` wrote."""
    draw = random.Random(seed)
    config = valid_config(draw)
    # To follow a file is to wait for more; a case must come to an end.
    config["data"].pop("follow", None)
    kinds = [_changed_tree, _changed_text, _overridden, _changed_data, _changed_data]
    return draw.choice([*kinds, *kinds, _converted])(draw, config, folder)


# ── the tree of settings ────────────────────────────────────────────────────────────────────


def _changed_tree(draw: random.Random, config: Config, folder: Path) -> Case:
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        draw.choice(TREE_CHANGES)(draw, config)
    return Case("tree", [], {CONFIG: _encoded(text_of(draw, config))})


def _replace(draw: random.Random, config: Config) -> None:
    holder, key = draw.choice(_places(config))
    holder[key] = draw.choice(WILD)


def _wrap(draw: random.Random, config: Config) -> None:
    holder, key = draw.choice(_places(config))
    for _ in range(draw.choice([1, 2, 25, 60])):
        holder[key] = draw.choice([lambda v: [v], lambda v: {"name": v}])(holder[key])


def _remove(draw: random.Random, config: Config) -> None:
    holder, key = draw.choice(_places(config))
    del holder[key]


def _add(draw: random.Random, config: Config) -> None:
    mappings = [config, *(value for value in config.values() if isinstance(value, dict))]
    draw.choice(mappings)[draw.choice(NAMES)] = draw.choice(WILD)


def _rename(draw: random.Random, config: Config) -> None:
    holder, key = draw.choice(_places(config))
    if isinstance(holder, dict):
        letters = list(key)
        letters[draw.randrange(len(letters))] = draw.choice("aeiou_. ")
        holder["".join(letters)] = holder.pop(key)


def _swap(draw: random.Random, config: Config) -> None:
    (first, a), (second, b) = draw.choice(_places(config)), draw.choice(_places(config))
    first[a], second[b] = json.loads(json.dumps([second[b], first[a]]))


def _graft(draw: random.Random, config: Config) -> None:
    """A section of another configuration, which need not fit."""
    other = valid_config(random.Random(draw.random()))
    other["data"].pop("follow", None)
    key = draw.choice(list(other))
    config[key] = other[key]


def _resize(draw: random.Random, config: Config) -> None:
    """A size that is large for some of the settings, and too large for others."""
    section, key = draw.choice(SIZES)
    size: float = draw.choice([2**31 - 1, 2**31 - 1, 2**31, 10**12, 10**18, 2**62, 10**39])
    if draw.random() < 0.4:
        section, key = draw.choice(NUMBERS)
        size = draw.choice([1e38, 3e38, 1e39, -1e39, 1e308, 5e-324])
    value = [size] * draw.choice([1, 2, 4]) if key in LISTS else size
    held = config.setdefault(section, {}) if section else config
    if not isinstance(held, dict):  # a name alone, or what an earlier change has put there
        held = config[section] = {"name": held}
    held[key] = value


SIZES = [("model", "hidden"), ("model", "hidden"), ("model", "channels"), ("model", "kernel_size")]
SIZES += [("data", "num_samples"), ("data", "num_samples"), ("data", "num_features")]
SIZES += [("data", "shape"), ("data", "window"), ("data", "num_classes"), ("data", "spectrum")]
SIZES += [("loader", "batch_size"), ("loader", "order"), ("optimizer", "history_size")]
SIZES += [("", "epochs"), ("", "seed"), ("", "microbatch_size"), ("", "memory_limit")]
SIZES += [("scheduler", "warmup"), ("scheduler", "every"), ("loss", "ignore_index")]
SIZES += [("checkpoint", "keep_last"), ("log", "every_n_steps"), ("early_stopping", "patience")]
NUMBERS = [("optimizer", "lr"), ("optimizer", "weight_decay"), ("data", "noise"), ("data", "bias")]
NUMBERS += [("data", "weights"), ("data", "spectrum"), ("loss", "weight"), ("loss", "pos_weight")]
NUMBERS += [("loss", "margin"), ("loss", "beta"), ("loss", "delta"), ("loss", "eps")]
NUMBERS += [
    ("", "clip_grad_norm"),
    ("", "clip_grad_value"),
    ("scheduler", "b"),
    ("model", "dropout"),
]
NUMBERS += [
    ("early_stopping", "min_delta"),
    ("", "process_timeout"),
    ("checkpoint", "every_seconds"),
]
LISTS = ("weights", "weight", "pos_weight", "hidden", "channels", "shape", "spectrum", "order")


TREE_CHANGES = [
    _resize,
    _resize,
    _replace,
    _replace,
    _replace,
    _wrap,
    _remove,
    _add,
    _rename,
    _swap,
    _graft,
]


def _places(config: Config) -> list[tuple[Any, Any]]:
    """Everything that can be changed, as (what holds it, its key there)."""
    found: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        for key, below in items:
            found.append((value, key))
            walk(below)

    walk(config)
    return found


# ── the text of the file ────────────────────────────────────────────────────────────────────


def _changed_text(draw: random.Random, config: Config, folder: Path) -> Case:
    raw = bytearray(_encoded(text_of(draw, config)))
    for _ in range(draw.choice([1, 1, 2, 5])):
        draw.choice(BYTE_CHANGES)(draw, raw)
    return Case("text", [], {CONFIG: bytes(raw)})


def _flip(draw: random.Random, raw: bytearray) -> None:
    if raw:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)


def _overwrite(draw: random.Random, raw: bytearray) -> None:
    if raw:
        raw[draw.randrange(len(raw))] = draw.randrange(256)


def _truncate(draw: random.Random, raw: bytearray) -> None:
    del raw[draw.randrange(len(raw) + 1) :]


def _cut_out(draw: random.Random, raw: bytearray) -> None:
    start = draw.randrange(len(raw) + 1)
    del raw[start : start + draw.choice([1, 1, 2, 8, 100])]


def _repeat(draw: random.Random, raw: bytearray) -> None:
    start = draw.randrange(len(raw) + 1)
    raw[start:start] = raw[start : start + draw.choice([1, 4, 40])] * draw.choice([1, 2, 50])


def _insert(draw: random.Random, raw: bytearray) -> None:
    start = draw.randrange(len(raw) + 1)
    raw[start:start] = draw.choice(INSERTED)


def _twice_a_line(draw: random.Random, raw: bytearray) -> None:
    lines = raw.splitlines(keepends=True)
    if lines:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
        raw[:] = b"".join(lines)


def _shuffled_lines(draw: random.Random, raw: bytearray) -> None:
    lines = raw.splitlines(keepends=True)
    draw.shuffle(lines)
    raw[:] = b"".join(lines)


BYTE_CHANGES = [_flip, _overwrite, _truncate, _cut_out, _repeat, _insert, _twice_a_line]
BYTE_CHANGES += [_shuffled_lines]
INSERTED = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\t", b"\x07", b"\xc2\x85"),
    *("😀é\u2028\u202e".encode(), b"[" * 500, b"{" * 500, b"- " * 50, b"? ", b": ", b"&a ", b"*a"),
    *(b"!!python/object/apply:os.system [ls]", b"!x ", b"<<: ", b"---\n", b"...\n", b"%YAML 9.9\n"),
    *(b"|\n ", b">\n", b'"', b"'", b"#", b",", b"}", b"]", b"9" * 5000, b"@", b"`", b"%", b"\\"),
]


# ── the command line ────────────────────────────────────────────────────────────────────────


def _overridden(draw: random.Random, config: Config, folder: Path) -> Case:
    known = [f"{k}.{key}" for k, v in config.items() if isinstance(v, dict) for key in v]
    keys = [*known, *config, "scheduler.name", "model.hidden", "loader.order", "data.shape"]
    keys += ["early_stopping.monitor", "checkpoint.keep_last", "trainer", "a", "a.b.c", "seed.x"]
    keys += ["data.classes", "data.num_samples", "loss.weight", "memory_limit", "strategy"]
    given = [f"{draw.choice(keys)}={_override(draw)}" for _ in range(draw.choice([1, 1, 2, 4]))]
    given = [text for text in given if not text.startswith("data.follow=")]
    if draw.random() < 0.1:
        given.append(draw.choice(["", "seed", "=", "=1", "a..b=1", "é=1", "seed = 1", "seed:1"]))
    # argparse has its own say on what begins with a dash, and the shell can't pass a NUL.
    given = [text.replace("\0", "") for text in given]
    return Case("override", given, {CONFIG: _encoded(text_of(draw, config))})


def _override(draw: random.Random) -> str:
    if draw.random() < 0.2:
        return draw.choice(INSERTED).decode("utf-8", errors="surrogateescape")
    value = draw.choice(WILD)
    if isinstance(value, float) and not math.isfinite(value):
        return f".{str(value).replace('inf', 'inf')}".replace(".-", "-.")
    return value if isinstance(value, str) else json.dumps(value)


# ── the data files ──────────────────────────────────────────────────────────────────────────


def _changed_data(draw: random.Random, config: Config, folder: Path) -> Case:
    names = _files_read(config["data"], folder)
    while not names:
        config = valid_config(draw)
        config["data"].pop("follow", None)
        names = _files_read(config["data"], folder)
    name = draw.choice(names)
    raw = bytearray((folder / name).read_bytes())
    suffix = name.rpartition(".")[2]
    changes: list[Callable[[random.Random, bytearray], None]] = [*BYTE_CHANGES]
    if suffix in ("csv", "jsonl", "json"):
        changes += [_other_cell] * 12
    else:
        changes += [_flip_in_header] * 8
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        draw.choice(changes)(draw, raw)
    content: bytes | None = bytes(raw)
    if draw.random() < 0.06:
        content = draw.choice(
            [None, b"", b"\0" * 64, b"\x80\x02.", (folder / "x.npy").read_bytes()]
        )
    return Case(f"data {suffix}", [], {CONFIG: _encoded(text_of(draw, config)), name: content})


def _converted(draw: random.Random, config: Config, folder: Path) -> Case:
    """The convert command, on a table that was changed."""
    name = draw.choice(["labels.csv", "named.csv", "number.csv"])
    raw = bytearray((folder / name).read_bytes())
    for _ in range(draw.choice([1, 1, 2, 4])):
        draw.choice([*BYTE_CHANGES, *[_other_cell] * 10])(draw, raw)
    options = [[], [], ["--categorical", "x0"], ["--features", "x1"], ["--dtype", "float64"]]
    options += [["--delimiter", mark] for mark in (";", "", ",,", '"', "é")]
    options += [["--rows-per-shard", count] for count in ("0", "-1", "3")]
    target = draw.choice(["t0", "t0", "t0", "x1", "zz", ""])
    given = ["convert", name, "made", "--target", target, *draw.choice(options)]
    return Case("convert", given, {name: bytes(raw)}, made="made")


def _files_read(data: Config, folder: Path) -> list[str]:
    names = [data[key] for key in ("path", "targets") if data.get(key, "y") != "y"]
    found = []
    for name in names:
        path = folder / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [str(p.relative_to(folder)) for p in inside if p.is_file()]
    return found


def _other_cell(draw: random.Random, raw: bytearray) -> None:
    text = raw.decode("utf-8", errors="surrogateescape")
    cells = [part for part in text.replace("\n", ",").split(",") if part]
    if cells:
        cell = draw.choice(cells)
        raw[:] = text.replace(cell, draw.choice(CELLS), draw.choice([1, 1, -1])).encode(
            "utf-8", errors="surrogateescape"
        )


CELLS = ["", " ", "nan", "inf", "-inf", "1e999", "1e308", "-1e308", "x", "é", "\x85", "0x1", "1_0"]
CELLS += ["true", "null", "None", '"', '"a,b"', "'", "1;2", "1,2", "\n", "\r", "\t", "[1]", "{}"]
CELLS += ["9" * 400, "NaN", "Infinity", "-0", "1.", ".5", "١", "1 2", "-1", "99", "0.5", "x0", "t0"]
CELLS += ['"x0": 1', "[" * 2000, '{"a":' * 500, "2147483648", "9223372036854775808", "\0", "\ufeff"]


def _flip_in_header(draw: random.Random, raw: bytearray) -> None:
    if raw:
        raw[draw.randrange(min(len(raw), 400))] = draw.choice(
            [*b"0123456789<>[]{}(),':\"fOVU ", 255]
        )


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
