"""Checkpoints by somebody who wants harm and can compute digests: resumed from, and watched.

Run as a program, in a process of its own: ``hostile_checkpoints.py DIRECTORY NUMBER SEED`` makes
that many, resumes a run from each, and prints what happened as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# What no file may cause. Opening is judged by where; these, by whether a sound resume does them.
FORBIDDEN = (
    *("import", "exec", "compile", "marshal.loads", "marshal.load", "pickle.find_class"),
    *("code.__new__", "function.__new__", "os.system", "os.exec", "os.fork", "os.forkpty"),
    *("os.posix_spawn", "os.spawn", "subprocess.Popen", "os.kill", "os.putenv", "pty.spawn"),
    *("ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "webbrowser.open"),
)
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod")
LOOKING = ("os.listdir", "os.scandir", "os.truncate", "shutil.rmtree")

CONFIGS = {
    "sgd": """\
data: {source: digits, validation_fraction: 0.2}
model: {name: mlp, hidden: [8], dropout: 0.1}
loss: cross_entropy
loader: {name: minibatch, batch_size: 300}
optimizer: {lr: 0.1, momentum: 0.9}
scheduler: {name: cosine, warmup: 2}
early_stopping: {monitor: val_loss, patience: 3}
epochs: 3
checkpoint: {every_n_steps: 1, keep_last: 9, keep_best: val_loss}
log: {picture: false}
""",
    "adam": """\
data: {source: digits}
model: {name: mlp, hidden: [4]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 250, order: replacement}
optimizer: {name: adam, lr: 0.01}
scheduler: {name: step, every: 3, gamma: 0.5, per: step}
epochs: 1
checkpoint: {every_n_steps: 2, keep_last: 9}
log: {picture: false}
""",
    "stream": """\
data: {source: stream, format: jsonl, path: PATH, target: y, features: [a, b], window: 8}
model: {name: mlp, hidden: [4]}
loss: mse
loader: {name: minibatch, batch_size: 5}
optimizer: {lr: 0.01, momentum: 0.9}
epochs: 1
checkpoint: {every_n_steps: 3, keep_last: 9}
log: {picture: false}
""",
}


# ── hostile values ───────────────────────────────────────────────────────────────────────────


def _values() -> list[Any]:
    import numpy as np
    import torch

    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    return [
        *(None, True, False, -1, 0, 1, 3, 2**31, 2**62, 2**63, -(2**63), 10**30, 10**4000),
        *(0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
        *("", "x" * 100_000, "\x1b[2J\r\n\x07", "../../etc/passwd", "__import__('os').abort()"),
        *("!!python/object/apply:os.system [id]", "\u202e\u0000", "nan", "0.1", "step", "min"),
        *([], {}, (), [[]], [{}], [None] * 3, list(range(1000)), deep, {"a": deep}),
        *({"": None}, {1: 2}, {"params": []}, {"__class__": "x"}, ["tensor", "model.x"]),
        *(torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(-5), torch.zeros(3, 3)),
        *(torch.zeros(0), torch.ones(5056, dtype=torch.uint8), torch.zeros(627).long()),
        torch.full((627,), 10**6),
        *(np.float32("nan"), np.int64(-1), np.bool_(True), np.float64(0.5), Counter({"a": 1})),
        torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=True),
        torch.tensor(1j),
    ]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested dicts and lists, those of one kind of list once."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 2)):
            yield from _paths(value[number], (*path, number))


def _at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


def _replaced(rng: random.Random, state: dict[str, Any]) -> str:
    """One value in the state becomes another; or a key goes, comes or is renamed."""
    # Each part of the state is hit as often as any other, however many values it has.
    part = rng.choice(sorted(state, key=str))
    path = rng.choice([(part, *rest) for rest in [(), *_paths(state[part])]])
    held, key = _at(state, path[:-1]), path[-1]
    kind = rng.choice(["value"] * 6 + ["gone", "foreign", "renamed"])
    said = ".".join(map(str, path))
    if kind == "gone" and isinstance(held, dict):
        del held[key]
    elif kind == "foreign" and isinstance(held, dict):
        held[rng.choice(["foreign", "\x1b[31mred\n", "x" * 5000, "params"])] = held[key]
    elif kind == "renamed" and isinstance(held, dict):
        held[rng.choice(["foreign", f"{key}'", 7])] = held.pop(key)
    else:
        kind, value = "value", copy.deepcopy(rng.choice(_values()))
        held[key] = value
        return f"{said} = {str(value)[:40] if not isinstance(value, int) else 'int'}"
    return f"{said} {kind}"


# ── hostile files ────────────────────────────────────────────────────────────────────────────


def sign(directory: Path, values: bytes | None = None) -> None:
    """Make the digests of a checkpoint right, whatever is in its two files."""
    if values is None:
        values = (directory / "state.json").read_bytes().partition(b"\n")[2].removesuffix(b"\n")
    with (directory / "tensors.safetensors").open("rb") as file:
        tensors = hashlib.file_digest(file, "sha256").hexdigest()
    both = hashlib.sha256(f"1 {tensors}\n".encode() + values).hexdigest()
    header = {"gdtrain checkpoint": 1, "tensors.safetensors": tensors, "sha256": both}
    content = json.dumps(header).encode() + b"\n" + values + b"\n"
    (directory / "state.json").write_bytes(content)


def _header_of(directory: Path) -> tuple[dict[str, Any], bytes]:
    content = (directory / "tensors.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write_tensors(directory: Path, header: Any, data: bytes, said: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if said is None else said
    content = length.to_bytes(8, "little") + text + data
    (directory / "tensors.safetensors").write_bytes(content)
    sign(directory)


def _header_mutation(rng: random.Random, directory: Path) -> str:
    header, data = _header_of(directory)
    name = rng.choice(sorted(header))
    said = header[name]
    start, end = said["data_offsets"]
    kind = rng.randrange(16)
    if kind == 0:
        said["shape"] = [10**12]
        said["data_offsets"] = [start, start + 4 * 10**12]
    elif kind == 1:
        said["shape"] = rng.choice([[2**40, 2**40], [2**62, 0], [-1, -1], [1] * 5000, [1.5], "3"])
    elif kind == 2:
        said["shape"] = rng.choice([None, {}, [[3]], [True], [10**3000], []])
    elif kind == 3:
        said["dtype"] = rng.choice(["F8_E4M3", "I64", "BOOL", "U8", "O", None, 5, "f32", ["F32"]])
    elif kind == 4:
        said["data_offsets"] = rng.choice(
            [[end, start], [-8, end], [start, end + 8], [0, len(data)], [start], "01", None, [0, 0]]
        )
    elif kind == 5:
        names = sorted(header)
        other = names[(names.index(name) + 1) % len(names)]
        header[name], header[other] = header[other], header[name]
    elif kind == 6:
        header[rng.choice(["../../escape", "model.\x1b[2J", "__metadata__", "x" * 10_000])] = said
    elif kind == 7:
        del header[name]
    elif kind == 8:
        twice = json.dumps(header)[:-1] + f', "{name}": {json.dumps(said)}}}'
        _write_tensors(directory, twice.encode(), data)
        return "a name twice"
    elif kind == 9:
        _write_tensors(directory, header, data, said=rng.choice([2**31, 2**63, 2**64 - 1, 0, 1]))
        return "another length of the header"
    elif kind == 10:
        deep = b"[" * 100_000 + b"]" * 100_000
        _write_tensors(directory, deep, data)
        return "a deep header"
    elif kind == 11:
        _write_tensors(directory, header, data)
        with (directory / "tensors.safetensors").open("r+b") as file:
            file.truncate(1 << 40)  # a sparse file of a terabyte
        return "a giant file"
    elif kind == 12:
        many = {f"model.{i}": {**said, "shape": [0]} for i in range(20_000)}
        _write_tensors(directory, header | many, data)
        return "many names"
    elif kind == 13:
        _write_tensors(directory, rng.choice([b"", b"{}", b"[]", b"null", b"\xff\xfe", b"1"]), data)
        return "no header"
    elif kind == 14:
        header[name] = rng.choice([[], None, 1, "x", {}, {"dtype": "F32"}])
    else:
        size = 1 << 40
        top = max(held["data_offsets"][1] for held in header.values())
        header["callbacks.x"] = {"dtype": "U8", "shape": [size], "data_offsets": [top, top + size]}
        text = json.dumps(header).encode()
        path = directory / "tensors.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with path.open("r+b") as file:
            file.truncate(8 + len(text) + top + size)
        return "a terabyte of callbacks' state"  # whose digest nobody would wait for
    _write_tensors(directory, header, data)
    return f"header, kind {kind}"


def _json_mutation(rng: random.Random, directory: Path) -> str:
    content = (directory / "state.json").read_bytes().partition(b"\n")[2].removesuffix(b"\n")
    bomb = b'["list"' + b',["list"]' * 300_000 + b"]"
    hostile = {
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "deep lists": b'["list",' * 900 + b"1" + b"]" * 900,
        "a bomb": content[:-1] + b',["bomb",' + bomb + b"]]",
        "huge number": content.replace(b'"epoch", 0', b'"epoch", ' + b"9" * 100_000, 1),
        "no JSON": b"\x80\x04\x95pickle",
        "a pickle": pickle.dumps(os.getcwd),
        "objects": b'{"__reduce__": ["os.system", "id"]}',
        "NaN": content[:-1] + b',["x",NaN]]',
        "a float": content[:-1] + b',["x",1e999]]',
        "a kind of its own": content[:-1] + b',["x",["object","os.system","id"]]]',
        "a key twice": content[:-1] + b',["lr",["float","0x1p-3"]]]',
        "a tensor twice": content[:-1] + b',["x",["tensor","rng.0.cpu"]]]',
        "a tensor as a key": content[:-1] + b',[["tensor","rng.0.cpu"],1]]',
        "another tensor": content.replace(b'"rng.0.cpu"', b'"rng.0.python"'),
        "no such tensor": content.replace(b'"rng.0.cpu"', b'"/etc/passwd"'),
        "a list as a key": content[:-1] + b',[["list"],1]]',
        "text for a float": content.replace(b'"0x1', b'"import os;0x1'),
        "nothing": b"",
        "null": b"null",
        "a long name": content[:-1] + b',["' + b"x" * 1_000_000 + b'",1]]',
        "giant": content + b" " * (80 << 20),
    }
    kind = rng.choice(sorted(hostile))
    sign(directory, hostile[kind])
    return f"values: {kind}"


def _settings_mutation(rng: random.Random, directory: Path) -> str:
    from gdtrain.checkpoint.format import read_state

    state = read_state(directory)
    text = state["settings"]["config"]
    state["settings"]["config"] = rng.choice(
        [
            "!!python/object/apply:os.system [id]",
            "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]\n",
            f"{text}trainer: os.system\n",
            text.replace("mlp", "../../evil"),
            f"{text}\nseed: !!python/name:os.system ''\n",
            text.replace("seed: 0", "seed: 1"),
            "[" * 5000,
            "",
            "\x00",
        ]
    )
    _rewrite(directory, state)
    return "settings"


def _place_mutation(rng: random.Random, directory: Path) -> str:
    """Something else in the place of a file or a checkpoint."""
    kept = directory.parent
    outside = kept.parent.parent.parent / "outside"
    path = directory / rng.choice(["tensors.safetensors", "state.json"])
    kind = rng.randrange(9)
    if kind == 0:
        path.rename(outside / f"moved-{path.name}")
        path.symlink_to(outside / f"moved-{path.name}")
    elif kind == 1:
        path.unlink()
        os.mkfifo(path)
    elif kind == 2:
        path.unlink()
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.unlink()
        path.mkdir()
    elif kind == 4:
        shutil.move(directory, outside / directory.name)
        directory.symlink_to(outside / directory.name)
    elif kind == 5:
        for name in ("step-٠٠٠٠٠٠٠٠٠٩", "step-0000000099\n", "step-../../outside", "step-"):
            with contextlib.suppress(OSError):
                shutil.copytree(directory, kept / name)
        (kept / "step-999999999999999999").symlink_to(outside)
    elif kind == 6:
        (kept / "step-0000099999").write_bytes(pickle.dumps(os.getcwd))
        (directory / "extra.pkl").write_bytes(pickle.dumps(os.getcwd))
    elif kind == 7:
        (kept / ".unfinished-removed-step-0000000001").symlink_to(outside)
        (kept / ".unfinished-x").symlink_to("/etc")
        (kept / ".unfinished-step-0000000001").mkdir()
        (kept / ".unfinished-step-0000000001" / "out").symlink_to(outside)
    else:
        (kept / "best.json").unlink(missing_ok=True)
        (kept / "best.json").symlink_to(outside / "precious")
    return f"place, kind {kind}"


def _rewrite(directory: Path, state: dict[str, Any]) -> None:
    from gdtrain.checkpoint.format import write_state

    for name in ("tensors.safetensors", "state.json"):
        (directory / name).unlink()
    write_state(directory, state)


def _state_mutation(rng: random.Random, directory: Path) -> str:
    from gdtrain.checkpoint.format import read_state

    state = read_state(directory)
    said = _replaced(rng, state)
    if rng.random() < 0.2:
        said += "; " + _replaced(rng, state)
    _rewrite(directory, state)
    return said


def _told_mutations() -> list[Callable[[dict[str, Any]], Any]]:
    """What a plausible state may say that no run can have come to."""
    import torch

    def progress(**values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: s["progress"].update(values)

    def rng(name: str, place: int, value: int) -> Callable[[dict[str, Any]], Any]:
        return lambda s: s["rng"][0][name].__setitem__(place, value)

    def optimizer(**values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: s["optimizer"]["groups"][0].update(values)

    def kept(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: [k.__setitem__(key, value) for k in s["optimizer"]["state"].values()]

    def callback(name: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: s["callbacks"].setdefault(name, {}).update(values)

    def scheduler(**values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda s: (s["scheduler"] or {}).update(values)

    def everything(part: str, value: float) -> Callable[[dict[str, Any]], Any]:
        return lambda s: [t.fill_(value) for t in s[part].values()]

    return [
        *(progress(step_in_epoch=n) for n in (2**61, 10**6, -1, 1, 0)),
        *(progress(step=n) for n in (0, 2**61, -5)),
        *(progress(epoch=n) for n in (2**61, 2**63 - 1, -1, 1, 10**9)),
        *(progress(epoch_samples=n) for n in (0, 1, 2**61)),
        *(progress(position=p) for p in ([2**61, 0, 0], [0], [1, 2], [-1, 0, 0], [0] * 50)),
        *(progress(position=p) for p in ([5, 1, 0], [10**9, 5, 5], [])),
        *(progress(samples=n, seconds=-1e300, epoch_loss_sum=float("inf")) for n in (0, 2**61)),
        *(rng("numpy", 624, n) for n in (10**6, -1, 625, 2**62)),
        *(rng("python", 624, n) for n in (10**6, -1, 625, 2**62)),
        *(rng("numpy", 3, n) for n in (2**32, -1, 2**62)),
        *(rng("cpu", n, 255) for n in range(0, 5056, 500)),
        lambda s: s["rng"][0]["numpy"].fill_(0),
        lambda s: s["rng"][0]["cpu"].fill_(0),
        lambda s: s["rng"].extend([s["rng"][0]] * 3),
        lambda s: s["rng"].clear(),
        *(optimizer(lr=v) for v in (float("inf"), float("nan"), -1.0, 1e308, "0.1", None, True)),
        *(optimizer(momentum=v) for v in (float("nan"), -1.0, 1e308, "x")),
        *(optimizer(betas=v) for v in ((5, 7), (float("nan"), 0), (0.9,), "ab", (1.0, 1.0))),
        *(optimizer(foreach=v) for v in ("x", True, [1], 1)),
        *(optimizer(fused=v, capturable=v, differentiable=v, maximize=v) for v in (True, "x", 1)),
        *(optimizer(amsgrad=v, nesterov=v) for v in (True, 1, None)),
        *(optimizer(params=v) for v in ([], ["0.weight"], ["x"] * 4, [0, 1, 2, 3], "abcd")),
        *(kept("step", torch.tensor(v)) for v in (-1.0, float("nan"), float("inf"), -5, True)),
        *(kept("exp_avg", v) for v in (None, "x", torch.zeros(()), 0.5, [])),
        *(kept("momentum_buffer", v) for v in ("x", torch.tensor(1), torch.tensor(True), 0.5, [])),
        kept("max_exp_avg_sq", "x"),
        lambda s: s["optimizer"]["state"].clear(),
        lambda s: [k.clear() for k in s["optimizer"]["state"].values()],
        *(scheduler(last_epoch=n) for n in (-1, 10**30, 2**60, 1.5, float("nan"), "x", None)),
        *(scheduler(base_lrs=v) for v in ([], [float("nan")], [1e308], ["x"], [0.1, 0.1], None)),
        *(scheduler(lr_lambdas=v) for v in ([], ["os.system"], [{"__class__": 1}], None, [1])),
        scheduler(foreign=1, step="os.system", __dict__={}),
        *(callback("Validation", results=v) for v in ("abc", [1], [{}], [{"val_loss": 1.0}])),
        callback("Validation", results=[{"epoch": 0, "step": 1, "val_loss": "x"}]),
        callback("Validation", results=[{"epoch": 10**4000, "step": 1, "val_loss": 1.0}]),
        callback("Validation", results=5),
        *(callback("EarlyStopping", best=v) for v in ("x", None, [], float("nan"), 10**4000)),
        *(
            callback("EarlyStopping", epochs_without_improvement=v)
            for v in (2**61, -1, 1.5, "x", None)
        ),
        *(callback("Prequential", steps=v) for v in ("ab", [[]], [[0, 1.0]], [["x", 1.0]], [[5]])),
        *(callback("Prequential", steps=v) for v in ([[1, "x"]], [[2**61, 1.0]], [[-3, 1.0]], 7)),
        *(callback(name, x=1) for name in ("Checkpoints", "MetricsLog", "Console", "os.system")),
        *(
            lambda s, v=v: s["history"].append(v)
            for v in (1, {}, {"train_loss": "x"}, {"train_loss": 1.0, "val_loss": "x"}, {1: 2})
        ),
        lambda s: s["history"].append({"train_loss": 10**4000, "epoch": 1}),
        lambda s: s["history"].append({"train_loss": 1.0, "val_accuracy": 10**4000}),
        lambda s: s["history"].append({"train_loss": float("nan"), "val_x\x1b[2J\n": 1.0}),
        *(lambda s, v=v: s["flags"].update(model=v) for v in (None, {}, 3, {"frozen": ["x"]})),
        *(lambda s, v=v: s["flags"]["model"].update(frozen=v) for v in (["x"], "x", [3], None)),
        *(lambda s, v=v: s["flags"]["model"].update(eval=v) for v in (["x"], [""], [[]], 1)),
        lambda s: s["flags"]["model"].update(frozen=list(s["model"])),
        *(lambda s, v=v: s.update(told=v) for v in ([], ["Validation"], ["x"], [1], "x", 5, {})),
        *(lambda s, v=v: s.update(order=v) for v in ({}, [], {"epoch": 1}, 3, {"indices": None})),
        *(lambda s, v=v: s["optimizer"].update(v) for v in ({"own": {"x": 1}}, {"shared": {1: 2}})),
        lambda s: s["optimizer"]["groups"].append({"params": ["0.weight"], "lr": 1.0}),
        lambda s: s["optimizer"]["groups"].append(dict(s["optimizer"]["groups"][0], params=[])),
        lambda s: s["settings"].update(best="x"),
        lambda s: s["settings"].update(best=float("nan")),
        lambda s: s["settings"].update(config=["x"]),
        lambda s: s.update(settings=None),
        lambda s: s["made_by"].update(torch="\x1b[2J\n" * 1000, foreign=[1]),
        lambda s: s["made_by"].update({"threads": [[]], "engine": {"a": 1}}),
        lambda s: s["data"].update(n=10**4000),
        lambda s: s["data"].update(dict.fromkeys(s["data"], "\x1b[2J\n")),
        *(everything("model", v) for v in (float("nan"), float("inf"), 1e38)),
    ]


def _told_mutation(number: int, rng: random.Random, directory: Path) -> str:
    from gdtrain.checkpoint.format import read_state

    state = read_state(directory)
    with contextlib.suppress(KeyError, IndexError):  # of another optimizer or callback
        _told_mutations()[number](state)
    _rewrite(directory, state)
    return f"told, number {number}"


def hostile(number: int, seed: int) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """So many ways to make a checkpoint hostile, each for one of the runs by its name."""
    rng = random.Random(seed)
    told = len(_told_mutations())
    kinds = (_state_mutation, _header_mutation, _json_mutation, _place_mutation, _settings_mutation)
    weights = (50, 20, 15, 10, 5)
    for i in range(number):
        own = random.Random(f"{seed}-{i}")
        name = sorted(CONFIGS)[i % len(CONFIGS)]
        if i % 3 == 0 or rng.random() < 0.2:
            own_kind: Any = functools.partial(_told_mutation, rng.randrange(told))
        else:
            own_kind = rng.choices(kinds, weights)[0]
        yield name, functools.partial(own_kind, own)


# ── the victim ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Figures:
    """codes: how often each exit code came. peak_mb: what the worst case added to the memory."""

    cases: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    imports: int = 0
    executions: int = 0
    opens_outside: int = 0
    tracebacks: int = 0
    hangs: int = 0
    long_answers: int = 0
    harmed: int = 0
    peak_mb: float = 0.0
    problems: list[str] = field(default_factory=list)


class Watch:
    """The audit hook: what happens while it is on, other than what happened while it learned."""

    def __init__(self) -> None:
        self.on = self.learning = False
        self.inside = ""
        self.known: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not (self.on or self.learning):
            return
        if event in FORBIDDEN or event.startswith(("socket.", "ctypes.")):
            what = (event, str(arguments[:1])[:200])
        elif event in ("open", *CHANGING, *LOOKING) and not isinstance(arguments[0], int):
            follows = event == "open" and not (arguments[2] or 0) & os.O_NOFOLLOW
            path = os.fsdecode(arguments[0])
            place = os.path.realpath(os.path.dirname(path) or ".")  # noqa: PTH120
            place = os.path.realpath(path) if follows else f"{place}/{os.path.basename(path)}"  # noqa: PTH119
            if place == self.inside or place.startswith(f"{self.inside}/"):
                return
            what = ("open" if event == "open" else event, place)
        else:
            return
        if self.learning:
            self.known.add(str(what))
        elif str(what) not in self.known:
            self.seen.append((f"{what[0]} {what[1]} from {_stack()}", what[0]))


def _stack() -> str:
    """Where it came from, without opening a file to say so."""
    frame, places = sys._getframe(2), []
    while frame is not None and len(places) < 16:
        places.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")  # noqa: PTH119
        frame = frame.f_back
    return " < ".join(places)


def _resume(place: Path, name: str, watch: Watch) -> tuple[int | None, str]:
    """Resume in this process; return the exit code, or None after a traceback, and stderr."""
    from gdtrain.cli.main import main

    said = io.StringIO()
    given = ["--config", str(place / f"{name}.yaml"), "--output-dir", str(place / "run" / "out")]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: int | None = main([*given, "--resume"])
        except TimeoutError:
            raise
        except BaseException:
            watch.on = watch.learning = False  # to tell of it opens the program's own files
            said.write(traceback.format_exc())
            code = None
    return code, said.getvalue()


def _prepare(place: Path) -> dict[str, Path]:
    """One interrupted run of each configuration; its newest checkpoint lies within an epoch."""
    from gdtrain.cli.main import main

    lines = [json.dumps({"a": i / 40, "b": 1 - i / 40, "y": i / 40}) for i in range(40)]
    (place / "data.jsonl").write_text("\n".join(lines) + "\n")
    runs = {}
    for name, text in CONFIGS.items():
        config = place / f"{name}.yaml"
        config.write_text(text.replace("PATH", str(place / "data.jsonl")))
        runs[name] = place / f"whole-{name}"
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(["--config", str(config), "--output-dir", str(runs[name])])
        assert code == 0, said.getvalue()
        kept = sorted((runs[name] / "checkpoints").glob("step-*"))
        for other in kept[:-3] + kept[-2:]:
            shutil.rmtree(other)
        (runs[name] / "checkpoints" / "best.json").unlink(missing_ok=True)
    return runs


def run(place: Path, number: int, seed: int) -> Figures:
    """Resume from so many hostile checkpoints in this process, and count what they caused."""
    import torch

    from gdtrain.checkpoint.format import read_state

    torch.set_num_threads(1)
    watch, figures, codes = Watch(), Figures(), Counter[str]()
    runs = _prepare(place)
    work, outside = place / "run", place / "outside"

    def fresh(name: str) -> Path:
        for path in (work, outside):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        (outside / "precious").write_text("precious")
        (outside / "step-0000000001").mkdir()
        (outside / "step-0000000001" / "state.json").write_text("precious too")
        shutil.copytree(runs[name], work / "out", symlinks=True)
        return next((work / "out" / "checkpoints").glob("step-*"))

    def alarm(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, alarm)
    watch.inside = os.path.realpath(work / "out")
    # Sound resumes, here and by other numbers of processes, and one that is refused show what is
    # usual; torch, for one, reads its callers' source when it is seeded again.
    for name, kind in itertools.product(runs, ("sound", "of four processes", "damaged")):
        directory = fresh(name)
        if kind == "of four processes":
            state = read_state(directory)
            state["rng"] *= 4
            _rewrite(directory, state)
        elif kind == "damaged":
            (directory / "state.json").write_bytes(b"{")
        watch.learning = True
        code, said = _resume(place, name, watch)
        watch.learning = False
        assert code == (2 if kind == "damaged" else 0), said
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, make in hostile(number, seed):
        directory = fresh(name)
        case = f"{name}, {make(directory)}"
        moved = sorted(path.name for path in outside.rglob("*"))
        figures.cases += 1
        watch.seen.clear()
        watch.on = True
        signal.alarm(60)
        try:
            code, said = _resume(place, name, watch)
        except TimeoutError:
            figures.hangs += 1
            figures.problems.append(f"{case}: hangs")
            continue
        finally:
            signal.alarm(0)
            watch.on = False
        codes[str(code)] += 1
        if code not in (0, 2, 3):
            figures.tracebacks += 1
            figures.problems.append(f"{case}: {said[-600:]}")
        usual = ("note: ", "skipped a checkpoint: ", "resuming from ", "training on ")
        faults = [line for line in said.splitlines() if not line.startswith(usual)]
        dirty = any(not c.isprintable() and c not in "\r\n" for c in said)
        if len(said) > 20_000 or dirty or (code == 2 and len(faults) != 1):
            figures.long_answers += 1
            figures.problems.append(
                f"{case}: {len(faults)} faults, {len(said)} long, {said[:300]!r}"
            )
        for what, event in watch.seen:
            figures.imports += event == "import"
            is_open = event in ("open", *CHANGING, *LOOKING)
            figures.opens_outside += is_open
            figures.executions += not is_open and event != "import"
            figures.problems.append(f"{case}: {what}")
        intact = (outside / "precious").read_text() == "precious"
        if not intact or sorted(path.name for path in outside.rglob("*")) != moved:
            figures.harmed += 1
            figures.problems.append(f"{case}: files outside were changed")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures.peak_mb = (after - before) / 1024
    figures.codes = dict(codes)
    return figures


def in_a_process_of_its_own(place: Path, number: int, seed: int) -> Figures:
    """What :func:`run` finds, in a fresh interpreter."""
    command = [sys.executable, "-m", "helpers.hostile.hostile_checkpoints"]
    done = subprocess.run(
        [*command, str(place), str(number), str(seed)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    found = run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(asdict(found)))
