"""Valid configurations of every kind, drawn from a seed, and the data files that they read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from gdtrain.data.files.convert import convert
from gdtrain.data.tables.formats.csv_file import Dialect
from gdtrain.data.tables.formats.table_files import TableFiles
from gdtrain.data.tables.table import TableReading
from helpers.hostile.input_run import CONFIG, Case

NUM_SAMPLES = 24
NUM_INPUTS = 4
CLASSES = 3
ACTIVATIONS = [
    "relu",
    "tanh",
    "sigmoid",
    "gelu",
    "silu",
    "elu",
    "leaky_relu",
    "softplus",
    "identity",
]
OUTPUT_ACTIVATIONS = ["none", "sigmoid", "tanh", "softplus", "softmax", "log_softmax"]

Config = dict[str, Any]
Targets = np.ndarray[Any, Any]


def _targets() -> dict[str, Targets]:
    """Targets of every kind that a loss takes, by the name of the kind."""
    draw = np.random.default_rng(0)
    n = NUM_SAMPLES
    simplex = draw.random((n, CLASSES)) + 0.1
    simplex /= simplex.sum(axis=1, keepdims=True)
    rows = np.stack([draw.permutation(CLASSES) for _ in range(n)])
    rows[::2, 2] = -1
    return {
        "number": draw.normal(size=(n, 1)),
        "numbers": draw.normal(size=(n, CLASSES)),
        "labels": np.arange(n) % CLASSES,
        "unit": draw.random((n, 2)),
        "binary": draw.integers(0, 2, (n, CLASSES)),
        "signs": draw.integers(0, 2, (n, 2)) * 2 - 1,
        "counts": draw.integers(0, 5, (n, 1)),
        "simplex": simplex,
        "log_simplex": np.log(simplex),
        "label_rows": rows,
    }


TARGETS = _targets()

# loss -> the kinds of targets that it takes, and the output activations that go with it
LOSSES: dict[str, tuple[list[str], list[str]]] = {
    "mse": (["number", "numbers"], OUTPUT_ACTIVATIONS),
    "l1": (["number", "numbers"], OUTPUT_ACTIVATIONS),
    "smooth_l1": (["number", "numbers"], OUTPUT_ACTIVATIONS),
    "huber": (["number", "numbers"], OUTPUT_ACTIVATIONS),
    "cross_entropy": (["labels"], ["none"]),
    "nll": (["labels"], ["log_softmax"]),
    "multi_margin": (["labels"], OUTPUT_ACTIVATIONS),
    "bce": (["unit", "binary"], ["sigmoid", "softmax"]),
    "bce_with_logits": (["unit", "binary"], ["none"]),
    "poisson_nll": (["counts"], ["none", "softplus"]),
    "kl_div": (["simplex", "log_simplex"], ["log_softmax"]),
    "hinge_embedding": (["signs"], OUTPUT_ACTIVATIONS),
    "soft_margin": (["signs"], OUTPUT_ACTIVATIONS),
    "multi_label_margin": (["label_rows"], OUTPUT_ACTIVATIONS),
    "multi_label_soft_margin": (["binary"], ["none", "tanh"]),
}
ARRAY_SOURCES = ("npz", "npy", "pt", "safetensors")
TABLE_SOURCES = ("csv", "mapped", "stream_csv", "stream_jsonl")
PROBLEMS = ("digits", "two_moons", "teaching", "linear_regression", "quadratic")


def write_data(folder: Path) -> None:
    """Write each kind of targets with the same inputs in every format, under ``folder``."""
    draw = np.random.default_rng(1)
    inputs = draw.normal(size=(NUM_SAMPLES, NUM_INPUTS)).round(3)
    with chdir(folder):
        np.save("x.npy", inputs)
        for kind, targets in TARGETS.items():
            tensors = {"x": torch.tensor(inputs), "y": torch.tensor(targets)}
            np.savez(f"{kind}.npz", x=inputs, y=targets)
            np.save(f"{kind}.npy", targets)
            torch.save(tensors, f"{kind}.pt")
            save_file(tensors, f"{kind}.safetensors")
            _write_table(kind, inputs, targets)
        named = Path("labels.csv").read_text("utf-8").splitlines()
        names = ["t0", *(("rose", "lily", "iris")[i % 3] for i in range(NUM_SAMPLES))]
        cut = [line.rsplit(",", 1)[0] for line in named]
        text = "".join(f"{c},{name}\n" for c, name in zip(cut, names, strict=True))
        Path("named.csv").write_text(text, "utf-8")


def _write_table(kind: str, inputs: Targets, targets: Targets) -> None:
    columns = targets.reshape(NUM_SAMPLES, -1)
    fields = [f"x{i}" for i in range(NUM_INPUTS)] + [f"t{i}" for i in range(columns.shape[1])]
    rows = [[*x.tolist(), *t.tolist()] for x, t in zip(inputs, columns, strict=True)]
    lines = [",".join(map(str, row)) for row in rows]
    Path(f"{kind}.csv").write_text("\n".join([",".join(fields), *lines, ""]), "utf-8")
    objects = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
    Path(f"{kind}.jsonl").write_text("\n".join([*objects, ""]), "utf-8")
    names = [name for name in fields if name.startswith("t")]
    reading = TableReading(TableFiles(f"{kind}.csv", Dialect()), names)
    convert(reading, Path(f"{kind}.mapped"), rows_per_shard=10)


def valid_config(draw: random.Random) -> Config:
    """A configuration that trains, with any of the sections, forms and options there are."""
    loss = draw.choice(list(LOSSES))
    kinds, activations = LOSSES[loss]
    kind, outputs = draw.choice(kinds), draw.choice(activations)
    config: Config = {"data": _data(draw, loss, kind)}
    source = config["data"]["source"]
    streamed = source == "stream"
    wide = source == "digits" and draw.random() < 0.5
    if wide:
        config["data"]["shape"] = [1, 8, 8]
    width = 10 if source == "digits" else _num_outputs(kind, source)
    config["loss"] = _loss(draw, loss, kind, width, outputs)
    config["model"] = _model(draw, outputs, wide)
    config["loader"] = _loader(draw, streamed)
    config["optimizer"] = _optimizer(draw)
    config["epochs"] = 1 if streamed else draw.choice([1, 3, 10**6])
    for section in (_scheduler, _updates, _watching, _rest):
        config |= section(draw, config)
    keys = list(config)
    draw.shuffle(keys)
    return {key: config[key] for key in keys}


def valid_case(seed: int) -> Case:
    """A configuration that must be taken."""
    draw = random.Random(seed)
    config = valid_config(draw)
    return Case("valid", [], {CONFIG: text_of(draw, config).encode()})


def text_of(draw: random.Random, config: Config) -> str:
    """A configuration as YAML, in one of the ways to write it."""
    style = draw.choice(["block", "flow", "json"])
    if style == "json":
        return json.dumps(config, indent=draw.choice([None, 1]))  # NaN and Infinity are words here
    flow = None if style == "flow" else False
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=flow)


def _num_outputs(kind: str, source: str) -> int:
    return 2 if source == "two_moons" else CLASSES if kind == "labels" else TARGETS[kind].shape[1]


def _data(draw: random.Random, loss: str, kind: str) -> Config:
    source = draw.choice([*ARRAY_SOURCES, *TABLE_SOURCES, "problem"])
    names = [f"t{i}" for i in range(1 if kind == "labels" else TARGETS[kind].shape[1])]
    target: Any = names[0] if len(names) == 1 and draw.random() < 0.5 else names
    if source.startswith("stream"):
        form = source.removeprefix("stream_")
        data = {"source": "stream", "format": form, "path": f"{kind}.{form}", "target": target}
        if kind == "labels":
            labels = draw.choice([[0, 1, 2], ["0", "1", "2"]])
            data |= draw.choice([{"classes": labels}, {"num_classes": CLASSES}])
        options = {"window": 7, "on_bad_line": "skip", "follow": True, "features": ["x1", "x0"]}
        return data | _some(draw, options)
    if source == "problem":
        data = _problem(draw, kind)
        if data is None:
            source = "npz"
    if source in ("npz", "pt", "safetensors"):
        data = {"source": source, "path": f"{kind}.{source}", "inputs": "x", "targets": "y"}
    elif source == "npy":
        data = {"source": "npy", "path": "x.npy", "targets": f"{kind}.npy"}
    elif source == "mapped":
        data = {"source": "mapped", "path": f"{kind}.mapped"}
    elif source == "csv":
        path = draw.choice(["labels.csv", "named.csv"]) if kind == "labels" else f"{kind}.csv"
        data = {"source": "csv", "path": path, "target": target}
        data |= _some(draw, {"features": ["x3", "x0"], "delimiter": ",", "categorical": []})
    common: Config = {"validation_fraction": draw.choice([0.1, 0.25]), "standardize": True}
    if loss in ("mse", "l1", "smooth_l1", "huber"):
        common["standardize_targets"] = True
    return data | _some(draw, common)


def _problem(draw: random.Random, kind: str) -> Config | None:
    if kind == "labels":
        return draw.choice(
            [{"source": "digits"}, {"source": "two_moons", "num_samples": 9, "noise": 0.2}]
        )
    if kind != "number":
        return None
    return draw.choice(
        [
            {"source": "teaching", "num_samples": 12, "num_features": 3},
            {"source": "linear_regression", "num_samples": 11, "noise": 0, "bias": -1},
            {"source": "linear_regression", "num_features": 2, "weights": [1, -2.5]},
            {"source": "quadratic", "spectrum": [1, 0, 2.5], "num_samples": 8},
            {"source": "quadratic", "num_samples": 9},
        ]
    )


def _loss(
    draw: random.Random, name: str, kind: str, num_outputs: int, outputs: str
) -> Config | str:
    weight = [round(draw.random() + 0.1, 2) for _ in range(num_outputs)]
    options: dict[str, Config] = {
        "smooth_l1": {"beta": draw.choice([0, 0.5])},
        "huber": {"delta": 0.5},
        "cross_entropy": {"weight": weight, "ignore_index": -1, "label_smoothing": 0.1},
        "nll": {"weight": weight, "ignore_index": 7},
        "multi_margin": {"p": draw.choice([1, 2]), "margin": 0.5, "weight": weight},
        "bce": {"weight": weight},
        "bce_with_logits": {"weight": weight, "pos_weight": list(weight)},
        "poisson_nll": {"log_input": outputs == "none", "full": True, "eps": 1e-6},
        "kl_div": {"reduction": draw.choice(["mean", "batchmean"])},
        "hinge_embedding": {"margin": 2},
        "multi_label_soft_margin": {"weight": weight},
    }
    chosen = _some(draw, options.get(name, {}))
    if kind == "log_simplex":
        chosen["log_target"] = True
    return {"name": name, **chosen} if chosen or draw.random() < 0.5 else name


def _model(draw: random.Random, outputs: str, wide: bool) -> Config | str:
    common: Config = {} if outputs == "none" else {"output_activation": outputs}
    if not wide and draw.random() < 0.3:
        return {"name": "linear", **common, **_some(draw, {"bias": False})}
    options = {
        "hidden": draw.choice([[], [5], [4, 3]]),
        "activation": draw.choice(ACTIVATIONS),
        "dropout": 0.2,
        "batch_norm": True,
    }
    if wide:
        more = {"channels": draw.choice([[2], [2, 3]]), "kernel_size": draw.choice([1, 3, 5])}
        return {"name": "cnn", **common, **_some(draw, options | more)}
    return {"name": "mlp", **common, **_some(draw, options)}


def _loader(draw: random.Random, streamed: bool) -> Config | str:
    orders: list[Any] = ["reshuffle", "shuffle_once", "sequential", "replacement", [0, 3, 1, 3]]
    order = {"order": "sequential" if streamed else draw.choice(orders)}
    name = draw.choice(["minibatch", "sample"] if streamed else ["minibatch", "sample", "batch"])
    if name != "minibatch":
        return {"name": name, **_some(draw, order)} if draw.random() < 0.7 else name
    size = draw.choice([1, 2, 4, 5, 24 if streamed else 1000])  # a followed stream would wait
    loader = {"name": name, "batch_size": size, **_some(draw, order)}
    return loader | ({"drop_last": True} if size == 4 and draw.random() < 0.5 else {})


def _optimizer(draw: random.Random) -> Config | str:
    forms: list[Callable[[], Config | str]] = [
        lambda: {"lr": 0.1},
        lambda: {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "nesterov": True},
        lambda: {"lr": 0.01, "momentum": 0.5, **_some(draw, {"dampening": 0.1})},
        lambda: "adam",
        lambda: {"name": "adam", **_some(draw, {"lr": 0.01, "weight_decay": 0.1})},
        lambda: {"name": "adamw", **_some(draw, {"lr": 0.01, "weight_decay": 0})},
        lambda: {
            "name": "lbfgs",
            **_some(draw, {"lr": 0.5, "max_iter": 3, "history_size": 5, "line_search": False}),
        },
    ]
    return draw.choice(forms)()


def _scheduler(draw: random.Random, config: Config) -> Config:
    forms: list[Config] = [
        {"name": "constant"},
        {"name": "step", "every": 2, "gamma": 0.5},
        {"name": "exponential", "gamma": 0.99},
        {"name": "inverse_time", "b": 10},
        {"name": "cosine", "min_factor": 0.1},
    ]
    if config["data"]["source"] == "stream":
        forms.pop()
    scheduler = draw.choice(forms)
    scheduler |= _some(draw, {"per": draw.choice(["step", "epoch"]), "warmup": 2})
    return {"scheduler": scheduler} if draw.random() < 0.5 else {}


def _updates(draw: random.Random, config: Config) -> Config:
    """What cuts batches, bounds gradients and sets the precision."""
    some = _some(draw, {"clip_grad_norm": 1, "clip_grad_value": 0.5, "engine": "eager"})
    some |= _some(draw, {"precision": draw.choice(["fp32", "bf16", "fp64"]), "device": "cpu"})
    model = config["model"]
    if draw.random() < 0.3 and not (isinstance(model, dict) and model.get("batch_norm")):
        some["microbatch_size"] = draw.choice([1, 2, 3, "auto"])
        some |= _some(draw, {"accumulate_in": "fp64"})
        if some["microbatch_size"] == "auto":
            some |= _some(draw, {"memory_limit": draw.choice([100000, "1MB", "0.5 MiB"])})
    some |= _some(draw, {"evaluate_in": draw.choice(["whole", "batches"])})
    if isinstance(model, dict) and model.get("batch_norm") and model["name"] == "mlp":
        config["loader"] = {"name": "minibatch", "batch_size": 4, "drop_last": True}
    return some


def _watching(draw: random.Random, config: Config) -> Config:
    """Validation, its metrics, and early stopping."""
    data, loss = config["data"], config["loss"]
    streamed = data["source"] == "stream"
    some: Config = {}
    if not streamed and draw.random() < 0.3:
        some["early_stopping"] = {"monitor": "train_loss", "patience": 3}
        some["early_stopping"] |= _some(draw, {"min_delta": 0.1, "mode": "min"})
    if not data.get("validation_fraction"):
        return some
    name = loss["name"] if isinstance(loss, dict) else loss
    regression = name in ("mse", "l1", "smooth_l1", "huber")
    if regression or name in ("cross_entropy", "nll", "multi_margin"):
        some |= _some(draw, {"metrics": ["mae"] if regression else ["accuracy"]})
    if "metrics" in some and draw.random() < 0.5:
        some["early_stopping"] = {"monitor": f"val_{some['metrics'][0]}"}
    cadence = draw.choice([{"every_n_steps": 2}, {"every_n_epochs": 2}])
    return some | _some(draw, {"validation": cadence})


def _rest(draw: random.Random, config: Config) -> Config:
    checkpoint = _some(draw, {"every_n_steps": 5, "every_n_epochs": 1, "every_seconds": 0.5})
    best = ["train_loss"]
    if config["data"].get("validation_fraction"):
        best += ["val_loss", *(f"val_{name}" for name in config.get("metrics", []))]
    if config["data"]["source"] != "stream":
        checkpoint |= _some(draw, {"keep_best": draw.choice(best)})
    return _some(
        draw,
        {
            "seed": draw.choice([0, 7, 2**63 - 1]),
            "log": {"every_n_steps": 1},
            "checkpoint": {"keep_last": 2, **checkpoint},
            "strategy": "replicate",
            "process_timeout": 30,
            "microbatch_allow": [],
        },
    )


def _some(draw: random.Random, options: Config) -> Config:
    """Some of the options, or none, or all."""
    share = draw.choice([0.0, 0.4, 0.4, 1.0])
    return {key: value for key, value in options.items() if draw.random() < share}
