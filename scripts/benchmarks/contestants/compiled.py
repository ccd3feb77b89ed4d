"""JAX and C written by hand, and scikit-learn's own compiled loops."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from contestants.workload import LEARNING_RATE, Run, Workload


def jax_by_hand(workload: Workload, _: str) -> Run:
    """One epoch is one compiled call: gather in a new order, then lax.scan over the batches."""
    import jax
    import jax.numpy as jnp

    inputs, targets = map(jnp.asarray, workload.data())
    layers = [(jnp.asarray(w), jnp.asarray(b)) for w, b in workload.initial()]
    size, full = workload.size, workload.num_samples // workload.size
    assert full * size == workload.num_samples, "no ragged batch, to keep to one loop"

    def loss(layers: Any, x: Any, y: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jax.nn.relu(x @ weight.T + bias)
        x = x @ layers[-1][0].T + layers[-1][1]
        if workload.classes:
            return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()
        return ((x - y) ** 2).mean()

    def step(layers: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(layers, *batch)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, layers, gradient), value

    @jax.jit
    def epoch(layers: Any, order: Any) -> Any:
        x, y = (inputs, targets) if order is None else (inputs[order], targets[order])
        x, y = (t.reshape(full, size, *t.shape[1:]) for t in (x, y))
        return jax.lax.scan(step, layers, (x, y))

    draw = np.random.default_rng(2)

    def run(epochs: int) -> float:
        nonlocal layers
        started = time.perf_counter()
        for _ in range(epochs):
            order = draw.permutation(workload.num_samples) if workload.shuffled else None
            layers, losses = epoch(layers, order)
        losses.block_until_ready()
        return time.perf_counter() - started

    return run


def c_by_hand(workload: Workload, _: str) -> Run:
    """native.c, compiled for this machine."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise ImportError("there is no C compiler (cc)")
    library = Path(tempfile.mkdtemp()) / "native.so"
    source = Path(__file__).with_name("native.c")
    sizes = workload.sizes
    flags = [
        *("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"),
        f"-DSIZES={','.join(map(str, sizes))}",
        f"-DDEPTH={len(sizes) - 1}",
        f"-DWIDEST={max(sizes)}",
        f"-DBATCH={workload.size}",
        f"-DCLASSES={int(workload.classes)}",
    ]
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-lm"], check=True)
    train = ctypes.CDLL(str(library)).train
    inputs, targets = workload.data()
    targets = np.ascontiguousarray(targets, dtype=np.float32)
    layers = workload.initial()

    def pointers(place: int) -> Any:
        addresses = [layer[place].ctypes.data for layer in layers]
        return (ctypes.c_void_p * len(layers))(*addresses)

    def run(epochs: int) -> float:
        started = time.perf_counter()
        train(
            pointers(0),
            pointers(1),
            ctypes.c_void_p(inputs.ctypes.data),
            ctypes.c_void_p(targets.ctypes.data),
            ctypes.c_int(workload.num_samples),
            ctypes.c_int(workload.shuffled),
            ctypes.c_float(LEARNING_RATE),
            ctypes.c_int(epochs),
            ctypes.c_ulonglong(88172645463325252),
        )
        return time.perf_counter() - started

    return run


def sgd_regressor(workload: Workload, _: str) -> Run:
    """scikit-learn's compiled SGD for linear models, in float32, without penalty."""
    from sklearn.linear_model import SGDRegressor

    inputs, targets = workload.data()

    def run(epochs: int) -> float:
        model = SGDRegressor(
            penalty=None,
            learning_rate="constant",
            eta0=LEARNING_RATE,
            max_iter=epochs,
            tol=None,
            shuffle=workload.shuffled,
        )
        started = time.perf_counter()
        model.fit(inputs, targets[:, 0])
        return time.perf_counter() - started

    return run


def sklearn_mlp(workload: Workload, _: str) -> Run:
    """scikit-learn's MLP: NumPy, one pass of numpy calls an update."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    warnings.filterwarnings("ignore")
    inputs, targets = workload.data()
    form = MLPClassifier if workload.classes else MLPRegressor

    def run(epochs: int) -> float:
        model = form(
            hidden_layer_sizes=workload.sizes[1:-1],
            solver="sgd",
            alpha=0.0,
            momentum=0.0,
            learning_rate_init=LEARNING_RATE,
            batch_size=workload.size,
            shuffle=workload.shuffled,
            max_iter=epochs,
            tol=0.0,
            n_iter_no_change=epochs + 1,
        )
        started = time.perf_counter()
        model.fit(inputs, targets if workload.classes else targets[:, 0])
        return time.perf_counter() - started

    return run
