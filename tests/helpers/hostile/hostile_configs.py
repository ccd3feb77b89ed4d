"""Hostile configurations and data files: what a stranger may send to run code or read too much."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gdtrain.config.load import check
from gdtrain.config.yaml_source import MAX_BYTES, read_text
from gdtrain.errors import ConfigError

CONFIG = """\
data: {source: csv, path: data.csv, target: y}
model: linear
loss: mse
loader: batch
optimizer: {lr: 0.1}
epochs: 1
"""
DATA = "a,b,y\n1,2,0\n3,4,1\n5,6,2\n"
COMMAND = "touch ran"


@dataclass(frozen=True)
class Hostile:
    """A command line in a folder with ``a.yaml`` and ``data.csv``, which train as they are.

    content: of ``a.yaml``. setup: makes other files. named: paths outside the folder that the
    command line or the configuration names. dry: whether it is a dry run.
    """

    name: str
    content: bytes = CONFIG.encode()
    arguments: tuple[str, ...] = ()
    config: str = "a.yaml"
    setup: Callable[[], object] = lambda: None
    named: tuple[str, ...] = ()
    dry: bool = field(default=True)


def cases() -> list[Hostile]:
    """All of them, in a fixed order."""
    found: list[Hostile] = []
    for group in (tags, bombs, names, texts, config_paths, data_paths, data_files, overrides, outs):
        found += group()
    return found


# ── YAML that is more than data ─────────────────────────────────────────────────────────────

TAGS = [
    f"!!python/object/apply:os.system ['{COMMAND}']",
    f"!!python/object/apply:os.system\n  - {COMMAND}",
    "!!python/object/apply:subprocess.check_output [[touch, ran]]",
    "!!python/object/apply:builtins.eval [\"open('ran', 'w')\"]",
    "!!python/object/apply:builtins.exec [\"open('ran', 'w')\"]",
    "!!python/object/new:os.system [touch ran]",
    "!!python/object/new:type {args: [x, [], {}], state: {}}",
    "!!python/object:gdtrain.config.schema.Config {}",
    "!!python/name:os.system ''",
    "!!python/name:os.system",
    "!!python/module:antigravity ''",
    "!!python/module:this",
    "!!python/tuple [1, 2]",
    "!!python/bytes aGVsbG8=",
    "!!python/complex 1+2j",
    "!!python/dict {a: 1}",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!timestamp 2001-12-14",
    "!!int '3'",
    "!!str linear",
    "!!map {name: linear}",
    "!!merge {a: 1}",
    "!!null ''",
    "!own linear",
    "! linear",
    "!<tag:yaml.org,2002:python/object/apply:os.system> [touch ran]",
    "!include /etc/passwd",
    "!ENV ${HOME}",
    "!!java/object javax.script.ScriptEngineManager",
    "!ruby/object:Gem::Installer {}",
    "!!js/function 'function(){}'",
]


def tags() -> list[Hostile]:
    found = []
    for number, tag in enumerate(TAGS):
        whole = f"%TAG ! tag:yaml.org,2002:\n---\n{CONFIG}"
        texts = {
            "value": CONFIG.replace("model: linear", f"model: {tag}"),
            "item": CONFIG + f"metrics: [{tag.splitlines()[0]}]\n",
            "key": CONFIG + f"? {tag.splitlines()[0]}\n: 1\n",
            "root": tag + "\n",
            "handle": whole.replace("model: linear", f"model: {tag.replace('!!', '!', 1)}"),
        }
        for place, text in texts.items():
            found.append(Hostile(f"tag {number} as {place}", text.encode()))
        found.append(Hostile(f"tag {number} as override", arguments=(f"model={tag}",)))
    return found


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
# What is small and grows, or is as large as a file may be and hard to read.
BOMBS = {
    "a billion laughs": LAUGHS,
    "laughs as mappings": "a: &a {x: 1}\n"
    + "".join(f"b{i}: &b{i} {{<<: [*a, *a], y: *a}}\n" for i in range(99)),
    "quadratic blowup": "a: &a " + "x" * 30000 + "\nb: [" + "*a, " * 8000 + "]\n",
    "an alias of itself": "a: &a [*a, *a]\n",
    "a key that is an alias": "a: &a {x: 1}\n? *a\n: 1\n",
    "merge keys": "base: &b {a: 1}\n" + "<<: *b\n" * 5000,
    "many aliases": "a: &a 1\nb: [" + "*a," * 20000 + "]",
    "many anchors": "b: [" + "&a 1," * 12000 + "]",
    "many tags": "b: [" + "!x 1," * 12000 + "]",
    "duplicate keys": "a: 1\n" * 13000,
    "many items": "b: [" + "1," * 32000 + "]",
    "many empty lists": "b: [" + "[]," * 21000 + "]",
    "many keys": "".join(f"k{i}: 1\n" for i in range(6500)),
    "many keys in braces": "{" + ",".join(f"k{i}: 1" for i in range(6000)) + "}",
    "deep brackets": "[" * 65000,
    "deep braces": "{" * 65000,
    "deep pairs": "a: " + "[[{a: " * 10000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(350)),
    "deep dashes": "- " * 32000,
    "deep questions": "? " * 32000,
    "deep braced questions": "{? " * 21000,
    "many documents": "---\n" * 16000,
    "many directives": "%TAG ! tag:x,2000:\n" * 3400,
    "one long word": "a: " + "x" * 65000,
    "one long key": "x" * 65000 + ": 1",
    "one long number": "seed: " + "9" * 65000,
    "one long float": "seed: 1e" + "9" * 65000,
    "one long escape": 'a: "' + "\\x41" * 16000 + '"',
    "one long quote": "'" * 65000,
    "a quote left open": '"' + "a\n" * 32000,
    "a long block": "a: |\n" + " x\n" * 21000,
    "a long folded block": "a: >\n" + " x\n\n" * 16000,
    "a word over many lines": "a: " + "b \n " * 16000,
    "a long anchor": "&" + "a" * 65000,
    "a long tag": "!" + "a" * 65000,
    "a long comment": "#" * 65000,
    "many comments": "# \n" * 21000,
    "many line ends": "\n" * 65000,
    "many commas": "[" + "," * 65000,
    "many colons": ":" * 65000,
    "many blanks": " " * 65000,
    "too long": "#" * (1 << 20),
}


# What a bomb may cost.
BOMB_SECONDS, BOMB_BYTES = 0.1, 10_000_000


def cost_of_bomb(text: str) -> tuple[float, int]:
    """Processor seconds, the best of a few times, and bytes at the peak, to refuse a text."""

    def refuse() -> None:
        try:
            check(read_text(text[:MAX_BYTES], "a.yaml"))
        except ConfigError:
            return
        raise AssertionError("a bomb was taken for a configuration")

    seconds: list[float] = []
    while len(seconds) < 5 and (not seconds or min(seconds) > BOMB_SECONDS):
        started = time.process_time()
        refuse()
        seconds.append(time.process_time() - started)
    tracemalloc.start()
    refuse()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak


def bombs() -> list[Hostile]:
    found = [Hostile(f"bomb: {name}", text.encode()) for name, text in BOMBS.items()]
    laughing = "model={a: &a [x, x], b: &b [*a, *a], c: [*b, *b]}"
    return [*found, Hostile("bomb: override", arguments=(laughing,))]


# ── names that look like code ───────────────────────────────────────────────────────────────

CODE = [
    *("os.system", "os:system", "builtins.exec", "__import__('os').system('touch ran')"),
    *("torch.nn.Linear", "torch.hub.load", "subprocess.Popen", "gdtrain.cli.main.main", "this"),
    *("antigravity", "../evil", "evil.py", "./evil", "${ran}", "$(touch ran)", "`touch ran`"),
    *("{0.__class__.__mro__}", "%(asctime)s", "__class__", "__init__", "lambda: 0", "; touch ran"),
    *("file:///etc/passwd", "http://127.0.0.1:9/x", "\\x00", "evil\\n--import evil"),
]


def names() -> list[Hostile]:
    def evil() -> None:
        Path("evil.py").write_text("open('ran', 'w')\n", "utf-8")

    found = []
    for code in CODE:
        quoted = f'"{code}"'
        texts = {
            "model": CONFIG.replace("linear", quoted),
            "loss": CONFIG.replace("mse", quoted),
            "loader": CONFIG.replace("loader: batch", f"loader: {quoted}"),
            "optimizer": CONFIG.replace("{lr: 0.1}", f"{{name: {quoted}, lr: 0.1}}"),
            "scheduler": CONFIG + f"scheduler: {quoted}\n",
            "source": CONFIG.replace("source: csv", f"source: {quoted}"),
            "trainer": CONFIG + f"trainer: {quoted}\n",
            "device": CONFIG + f"device: {quoted}\n",
            "key": CONFIG + f"{quoted}: 1\n",
            "import": CONFIG + f"import: {quoted}\n",
        }
        for place, text in texts.items():
            found.append(Hostile(f"{place} {code}", text.encode(), setup=evil))
    return found


# ── text that is none, or other text than it seems ──────────────────────────────────────────

TEXTS = {
    "UTF-16": CONFIG.encode("utf-16"),
    "UTF-16 LE": CONFIG.encode("utf-16-le"),
    "UTF-32": CONFIG.encode("utf-32"),
    "UTF-7": b"+ADw-: 1\n",
    "Latin-1": CONFIG.replace("mse", "msé").encode("latin-1"),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + CONFIG.encode(),
    "a byte order mark inside": CONFIG.replace("mse", "\ufeffmse").encode(),
    "overlong": CONFIG.encode().replace(b"mse", b"\xc0\xaf"),
    "a surrogate": CONFIG.encode().replace(b"mse", b"\xed\xa0\x80"),
    "an escaped surrogate": CONFIG.encode().replace(b"data.csv", b'"\\ud800"'),
    "an escaped NUL": CONFIG.encode().replace(b"data.csv", b'"data.csv\\0"'),
    "an escape over Unicode": CONFIG.encode().replace(b"data.csv", b'"\\UFFFFFFFF"'),
    "a NUL": CONFIG.encode().replace(b"mse", b"m\0se"),
    "a NUL at the end": CONFIG.encode() + b"\0",
    "only NULs": b"\0" * 4096,
    "a bell": CONFIG.encode().replace(b"mse", b"m\x07se"),
    "an escape sequence": CONFIG.encode().replace(b"mse", b'"\\e[2J\\e]0;x\\a"'),
    "right to left": CONFIG.replace("mse", "\u202emse").encode(),
    "line separators": CONFIG.replace("mse", "m\u2028se").encode(),
    "next lines": CONFIG.replace("\n", "\x85").encode(),
    "carriage returns": CONFIG.replace("\n", "\r").encode(),
    "look-alikes": CONFIG.replace("mse", "m\u0455e").encode(),
    "an ELF file": b"\x7fELF" + bytes(range(256)),
    "a zip": b"PK\x03\x04" + bytes(200),
    "a pickle": pickle.dumps({"a": 1}),
    "nothing": b"",
    "several documents": (CONFIG + "---\n" + CONFIG).encode(),
    "a document after its end": (CONFIG + "...\nseed: 1\n").encode(),
    "YAML of another version": ("%YAML 9.9\n---\n" + CONFIG).encode(),
}


def texts() -> list[Hostile]:
    return [Hostile(f"text: {name}", raw) for name, raw in TEXTS.items()]


# ── configurations that are no files, and names of files that are hostile ───────────────────


def config_paths() -> list[Hostile]:
    def linked(target: str) -> Callable[[], object]:
        return lambda: Path("b.yaml").symlink_to(target)

    def listening() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("b.yaml")

    paths: list[tuple[str, Callable[[], object], tuple[str, ...]]] = [
        ("b.yaml", lambda: os.mkfifo("b.yaml"), ()),
        ("b.yaml", listening, ()),
        ("b.yaml", lambda: Path("b.yaml").mkdir(), ()),
        ("b.yaml", linked("b.yaml"), ()),
        ("b.yaml", linked("none.yaml"), ()),
        ("b.yaml", linked("/etc/passwd"), ("/etc/passwd",)),
        ("b.yaml", linked("/dev/zero"), ("/dev/zero",)),
        ("b.yaml", linked("data.csv"), ()),
        ("none.yaml", lambda: None, ()),
        ("", lambda: None, ()),
        (".", lambda: None, ()),
        ("..", lambda: None, ("..",)),
        ("a" * 300, lambda: None, ()),
        ("a/" * 3000, lambda: None, ()),
        ("a.yaml/b.yaml", lambda: None, ()),
        ("a\nb.yaml", lambda: None, ()),
        ("a\0b.yaml", lambda: None, ()),
        ("\udcff.yaml", lambda: None, ()),
    ]
    for device in ("/dev/zero", "/dev/null", "/dev/random", "/dev/full", "/proc/self/mem"):
        paths.append((device, lambda: None, (device,)))
    paths += [(p, lambda: None, (p,)) for p in ("/proc/self/environ", "/proc/self/maps", "/")]
    return [
        Hostile(f"config {number}: {path[:40]!r}", config=path, setup=setup, named=named)
        for number, (path, setup, named) in enumerate(paths)
    ]


def outs() -> list[Hostile]:
    """Names of a configuration that the default output directory is made of; these train."""

    def written(name: str) -> Callable[[], object]:
        return lambda: Path(name).write_text(CONFIG, "utf-8")

    def leading(name: str) -> None:
        Path("runs").mkdir()
        Path("elsewhere").mkdir()
        Path("runs", name).symlink_to("../elsewhere")

    odd = ["..yaml", "...yaml", ".yaml", "....yaml", "a b.yaml", "a\nb.yaml", "-a.yaml", "é.yaml"]
    odd += ["~.yaml", "$HOME.yaml", "a" * 240 + ".yaml", "a;b.yaml", "1.yaml", "\x1b[2J.yaml"]
    found = []
    for number, name in enumerate(odd):
        # Every third draws its picture too; it takes longer than all the rest of such a run.
        arguments = () if number % 3 == 0 else ("log.picture=false",)
        given = {"arguments": arguments, "config": f"./{name}", "setup": written(name)}
        found.append(Hostile(f"named {name[:20]!r}", dry=False, **given))
    found.append(Hostile("runs is a file", setup=written("runs"), dry=False))
    found.append(Hostile("runs/a is a link", setup=lambda: leading("a"), dry=False))
    return found


# ── paths of data that are no data ──────────────────────────────────────────────────────────

SOURCES = {
    "csv": "{source: csv, path: PATH, target: y}",
    "npz": "{source: npz, path: PATH}",
    "npy": "{source: npy, path: PATH, targets: PATH}",
    "pt": "{source: pt, path: PATH}",
    "safetensors": "{source: safetensors, path: PATH}",
    "mapped": "{source: mapped, path: PATH}",
    "stream": "{source: stream, format: csv, path: PATH, target: y}",
    "records": "{source: stream, format: jsonl, path: PATH, target: y}",
}


def of_source(source: str, path: str) -> bytes:
    """A configuration that reads ``path``."""
    given = SOURCES[source].replace("PATH", json.dumps(path))
    text = CONFIG.replace("{source: csv, path: data.csv, target: y}", given)
    return text.replace("loader: batch", "loader: {name: minibatch, batch_size: 2}").encode()


def data_paths() -> list[Hostile]:
    def fifo() -> None:
        os.mkfifo("pipe")

    def folder() -> None:
        Path("folder").mkdir()
        os.mkfifo("folder/data.json")

    found = []
    for source in SOURCES:
        outside = ["/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "/proc/self/environ"]
        outside += ["/etc/passwd", "/etc"]
        for path in outside:
            named = (path, f"{path}/data.json", f"{path}/inputs")
            found.append(Hostile(f"{source} {path}", of_source(source, path), named=named))
        inside = [".", "none", "a" * 300, "data.csv/x", "loop", "~/x", "a\0b", "http://127.0.0.1/"]
        # A stream waits for the writer of a named pipe: that is what it is for.
        inside += [] if source in ("stream", "records") else ["pipe"]
        for path in inside:
            setup = fifo if path == "pipe" else lambda: Path("loop").symlink_to("loop")
            found.append(Hostile(f"{source} {path[:20]!r}", of_source(source, path), setup=setup))
    found.append(Hostile("mapped folder", of_source("mapped", "folder"), setup=folder))
    return found


# ── data files that are hostile inside ──────────────────────────────────────────────────────


class Reduced:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _pickles() -> dict[str, bytes]:
    nested = io.BytesIO()
    torch.save(Reduced(os.system, COMMAND), nested)
    objects: dict[str, Any] = {
        "system": Reduced(os.system, COMMAND),
        "exec": Reduced(exec, "open('ran', 'w')"),
        "eval": Reduced(eval, "open('ran', 'w')"),
        "open": Reduced(open, "ran", "w"),
        "import": Reduced(__import__, "antigravity"),
        "load from bytes": Reduced(torch.storage._load_from_bytes, nested.getvalue()),
        "getattr": Reduced(getattr, Reduced(__import__, "os"), "system"),
        "in a dict": {"x": torch.zeros(2), "y": Reduced(os.system, COMMAND)},
        "in a list": [torch.zeros(2), [Reduced(os.system, COMMAND)]],
        "a module": torch.nn.Linear(1, 1),
    }
    found: dict[str, bytes] = {}
    for name, held in objects.items():
        file = io.BytesIO()
        torch.save(held, file)
        found[f"pt {name}"] = file.getvalue()
        old = io.BytesIO()
        torch.save(held, old, _use_new_zipfile_serialization=False)
        found[f"old pt {name}"] = old.getvalue()
        for protocol in (0, 2, 5):
            found[f"pickle {protocol} {name}"] = pickle.dumps(held, protocol)
    return found


def _numpy() -> dict[str, bytes]:
    objects = np.array([Reduced(os.system, COMMAND)], dtype=object)

    def npy(array: Any) -> bytes:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()

    def header(text: str) -> bytes:
        raw = text.encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(64)

    code = "__import__('os').system('touch ran')"
    return {
        "objects": npy(objects),
        "objects in a record": npy(np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")])),
        "code as header": header(code),
        "code in header": header(f"{{'descr': {code}, 'fortran_order': False, 'shape': (3,)}}"),
        "a shape of code": header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {code}}}"),
        "a huge shape": header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**40},)}}"),
        "an overflowing shape": header(
            f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, 8)}}"
        ),
        "no rows of a huge shape": header(
            f"{{'descr': '<f8', 'fortran_order': False, 'shape': (0, {2**62}, 8)}}"
        ),
        "a negative shape": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2)}"),
        "a deep header": header("(" * 5000),
        "a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
        "a void dtype": header("{'descr': '|V0', 'fortran_order': False, 'shape': (3,)}"),
    }


def _zips() -> dict[str, bytes]:
    """Archives that lie about names and sizes."""
    fine = io.BytesIO()
    np.save(fine, np.zeros((3, 2)))

    def archive(members: dict[str, bytes]) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, raw in members.items():
                zipped.writestr(name, raw)
        return file.getvalue()

    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"
    huge = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(huge)) + huge
    lying = bytearray(archive({"x.npy": fine.getvalue(), "y.npy": fine.getvalue()}))
    place = lying.index(b"PK\x01\x02") + 24
    lying[place : place + 4] = b"\xfe\xff\xff\xff"
    return {
        "slipping": archive({"../../x.npy": fine.getvalue(), "/tmp/y.npy": fine.getvalue()}),
        "of objects": archive({"x.npy": _numpy()["objects"], "y.npy": _numpy()["objects"]}),
        "of huge arrays": archive({"x.npy": huge, "y.npy": huge}),
        "of zeros": archive({"x.npy": huge + bytes(1 << 24), "y.npy": huge}),
        "of itself": archive({"x.npy": archive({"x.npy": b""}), "y.npy": b""}),
        "lying": bytes(lying),
        "of text": archive({"x": b"text", "y": b"text"}),
        "of nothing": archive({}),
        "of many": archive({f"{i}.npy": b"" for i in range(3000)}),
    }


def _safetensors() -> dict[str, bytes]:
    def file(header: str | bytes, data: int = 64, length: int | None = None) -> bytes:
        raw = header if isinstance(header, bytes) else header.encode()
        return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)

    def entry(shape: list[int], begin: int, end: int) -> str:
        return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]})

    x, y = entry([4, 2], 0, 32), entry([4, 2], 32, 64)
    return {
        "a giant header": file("{}", length=2**63),
        "a header over the file": file("{}", length=10**6),
        "overlapping": file(f'{{"x": {x}, "y": {x}}}'),
        "out of the file": file(f'{{"x": {x}, "y": {entry([4, 2], 2**40, 2**40 + 32)}}}'),
        "huge": file(f'{{"x": {x}, "y": {entry([2**40, 2], 32, 64)}}}'),
        "overflowing": file(f'{{"x": {x}, "y": {entry([2**62, 4], 32, 64)}}}'),
        "named twice": file(f'{{"x": {x}, "y": {y}, "x": {entry([2, 1], 0, 8)}}}'),
        "backwards": file(f'{{"x": {x}, "y": {entry([4, 2], 64, 32)}}}'),
        "negative": file(f'{{"x": {x}, "y": {entry([-4, 2], 32, 64)}}}'),
        "deep": file('{"x": ' + "[" * 100000),
        "no JSON": file(b"\xff" * 30),
        "a list": file("[]"),
        "a pickle": pickle.dumps(Reduced(os.system, COMMAND)),
    }


def _mapped() -> dict[str, dict[str, bytes]]:
    """Folders that convert did not write."""
    shard = io.BytesIO()
    np.save(shard, np.zeros((3, 2)))
    fine = {"num_samples": 3, "columns": [], "targets": ["y"]}
    described: dict[str, Any] = {
        "negative": fine | {"num_samples": -3},
        "huge": fine | {"num_samples": 10**30},
        "of code": fine | {"targets": ["__import__('os').system('touch ran')"]},
        "of more": fine | {"path": "../../.."},
        "a list": [],
        "deep": json.loads("[" * 500 + "]" * 500),
    }
    files = {"inputs/0.npy": shard.getvalue(), "targets/0.npy": shard.getvalue()}
    found = {n: {"data.json": json.dumps(d).encode(), **files} for n, d in described.items()}
    good = json.dumps(fine).encode()
    x = json.dumps({"dtype": "F64", "shape": [3, 2], "data_offsets": [0, 48]})
    small = json.dumps({"dtype": "F64", "shape": [1, 1], "data_offsets": [0, 8]})
    twice = f'{{"x": {x}, "x": {small}}}'.encode()
    return found | {
        "of pickles": {
            "data.json": good,
            "inputs/0.pt": pickle.dumps(Reduced(os.system, COMMAND)),
            "targets/0.npy": shard.getvalue(),
        },
        "of objects": {
            "data.json": good,
            "inputs/0.npy": _numpy()["objects"],
            "targets/0.npy": shard.getvalue(),
        },
        "of code": {
            "data.json": good,
            "inputs/0.npy": _numpy()["code in header"],
            "targets/0.npy": shard.getvalue(),
        },
        "of names given twice": {
            "data.json": good,
            "inputs/0.safetensors": struct.pack("<Q", len(twice)) + twice + bytes(48),
            "targets/0.npy": shard.getvalue(),
        },
        "of no rows that are huge": {
            "data.json": json.dumps(fine | {"num_samples": 0}).encode(),
            "inputs/0.npy": _numpy()["no rows of a huge shape"],
            "targets/0.npy": shard.getvalue(),
        },
        "deep as text": {"data.json": b"[" * 100000, **files},
        "of nothing": {"data.json": good},
    }


TEXT_FILES = {
    "formulas": b"a,b,y\n=cmd|'/c calc'!A1,2,0\n@SUM(1),4,1\n",
    "code": b"a,b,y\n__import__('os').system('touch ran'),2,0\n",
    "a million commas": b"a,b,y\n" + b"," * 1_000_000,
    "a million columns": b",".join(b"c%d" % i for i in range(100_000)) + b"\n",
    "one long line": b"a" * (1 << 25),
    "a cell over the bound": b'a,b,y\n"' + b"x" * 200_000 + b'",2,0\n',
    "an open quote": b'a,b,y\n"' + b"1\n" * 100_000,
    "JSON too deep": b'{"a": ' + b"[" * 100_000,
    "JSON with a huge number": b'{"a": ' + b"9" * 100_000 + b', "y": 1}\n',
    "JSON with names twice": b'{"a": 1, "a": 2, "y": 1}\n',
    "JSON with a class": b'{"__class__": "os.system", "a": 1, "y": 1}\n',
    "NULs": bytes(1 << 20),
}


def data_files() -> list[Hostile]:
    def written(raw: bytes) -> Callable[[], object]:
        return lambda: Path("d").write_bytes(raw)

    def folder(files: dict[str, bytes]) -> Callable[[], object]:
        def make() -> None:
            for name, raw in files.items():
                path = Path("d", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)

        return make

    groups: list[tuple[tuple[str, ...], dict[str, bytes]]] = [
        (("pt", "npz", "npy"), _pickles()),
        (("npy", "npz"), _numpy()),
        (("npz", "pt"), _zips()),
        (("safetensors",), _safetensors()),
        (("csv", "stream", "records"), TEXT_FILES),
    ]
    found = [
        Hostile(f"{source} file: {name}", of_source(source, "d"), setup=written(raw))
        for sources, files in groups
        for source in sources
        for name, raw in files.items()
    ]
    for name, files in _mapped().items():
        found.append(Hostile(f"folder {name}", of_source("mapped", "d"), setup=folder(files)))
    return found


# ── the command line ────────────────────────────────────────────────────────────────────────

OVERRIDES = [
    *("__class__=1", "model.__class__=1", "model.__init__.__globals__=1", "import=os", "a=!!x 1"),
    *(
        "trainer=os.system",
        "trainer=__main__.main",
        "data.path=/etc/shadow",
        "model.name=os.system",
    ),
    *(
        "loss=eval",
        "optimizer.name=torch.optim.SGD",
        "device=cuda:0;touch ran",
        "seed=$(touch ran)",
    ),
    *("model.hidden=[1].__class__", "output_dir=/", "config=/etc/passwd", "data.source=python"),
    *("model={__reduce__: [os.system]}", "=", "a.b.c.d.e.f.g=1", "model.hidden=" + "[" * 5000),
    *(
        "epochs=1\nmodel: os.system",
        "epochs=1 # x",
        "epochs=&a 1",
        "epochs=*a",
        "a" * 100_000 + "=1",
    ),
    *(
        "a." * 5000 + "a=1",
        "metrics={}[0]",
        "memory_limit=9e999GB",
        "memory_limit=" + "9" * 400 + "GB",
    ),
]


def overrides() -> list[Hostile]:
    named = ("/etc/shadow",)
    return [Hostile(f"override {o[:30]!r}", arguments=(o,), named=named) for o in OVERRIDES]
