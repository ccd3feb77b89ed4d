"""Runs the contestants, interleaved, and gathers their times."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from contestants.registry import CONTESTANTS, Contestant
from contestants.workload import WORKLOADS, Workload

SCRIPT = Path(__file__).resolve().parent.parent / "speed.py"
ROOT = SCRIPT.parents[2]
# One thread for everybody.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
}
PACKAGES = (
    *("torch", "numpy", "jax", "lightning", "pytorch-ignite", "skorch", "accelerate"),
    *("transformers", "keras", "mosaicml", "scikit-learn", "river", "vowpalwabbit"),
)

Results = dict[str, Any]


class Process:
    """A contestant's process: requests go in, answers come out, a line of JSON each."""

    def __init__(self, name: str, device: str) -> None:
        self._name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - frameworks talk, to the end
        self._child = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--worker", name, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the process of {self._name} has died:\n{self._log.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self, workload: Workload, window: float, missing: dict[str, str]) -> int:
        """Make ready; return the epochs of a run, or 0 with the reason among the missing."""
        answer = self.ask(do="start", workload=workload.name, window=window)
        if "missing" in answer:
            missing[f"{self._name}, {workload.name}"] = answer["missing"]
        return int(answer.get("epochs", 0))

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def measure(
    only: Iterable[str],
    names: Iterable[str],
    *,
    device: str,
    repeats: int,
    window: float,
    keep: Callable[[Results], object],
) -> Results:
    """The machine, who is missing and why, and for each workload and contestant its times.

    keep: is given what there is so far after each workload.
    """
    only, names = list(only), list(names)
    missing: dict[str, str] = {}
    for c in CONTESTANTS:
        if c.name in names and (why := c.missing()):
            missing[c.name] = why
    times: dict[str, dict[str, list[float]]] = {}
    results: Results = {
        "machine": machine(),
        "device": device_name(device),
        "repeats": repeats,
        "missing": missing,
        "workloads": times,
    }
    processes: dict[str, Process] = {}
    try:
        for workload in (w for w in WORKLOADS if w.name in only):
            joining = [
                c
                for c in CONTESTANTS
                if c.name in names and c.name not in missing and c.joins(workload, device)
            ]
            _say(f"{workload.name}: {', '.join(c.name for c in joining)}")
            play = _first if workload.kind == "first" else _interleaved
            times[workload.name] = play(
                workload, joining, processes, missing, device, repeats, window
            )
            keep(results)
    finally:
        for process in processes.values():
            process.close()
    if "startup" in only:
        _say("startup")
        times["startup"] = startup(repeats)
    if "memory" in only:
        _say("memory")
        times["memory"] = memory(device)
    keep(results)
    return results


def _interleaved(
    workload: Workload,
    joining: list[Contestant],
    processes: dict[str, Process],
    missing: dict[str, str],
    device: str,
    repeats: int,
    window: float,
) -> dict[str, list[float]]:
    """Seconds per update, batch or sample, of each contestant in each repetition."""
    epochs: dict[str, int] = {}
    for contestant in joining:
        name = contestant.name
        if name not in processes:
            processes[name] = Process(name, device)
        if started := processes[name].start(workload, window, missing):
            epochs[name] = started
    times: dict[str, list[float]] = {name: [] for name in epochs}
    of_samples = workload.kind in ("stream", "scaling")
    units = workload.num_samples if of_samples else workload.updates
    for _ in range(repeats):
        for name, passes in epochs.items():
            answer = processes[name].ask(do="run")
            times[name].append(answer["seconds"] / passes / units)
    return times


def _first(
    workload: Workload,
    joining: list[Contestant],
    _processes: dict[str, Process],
    missing: dict[str, str],
    device: str,
    repeats: int,
    window: float,
) -> dict[str, list[float]]:
    """Seconds to the end of the first epoch, each in a new process."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for contestant in joining:
            process = Process(contestant.name, device)
            if process.start(workload, window, missing):
                seconds = process.ask(do="run").get("seconds")
                times.setdefault(contestant.name, []).append(seconds)
            process.close()
    return times


def startup(repeats: int) -> dict[str, list[float]]:
    """Seconds of whole processes: torch's import, and a run of gdtrain without its training."""
    times: dict[str, list[float]] = {"import torch": [], "gdtrain, training excluded": []}
    environment = {**os.environ, **ENVIRONMENT}
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True, env=environment)
        times["import torch"].append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "run")
            command = [sys.executable, "-m", "gdtrain", "--config", "configs/minibatch.yaml"]
            started = time.perf_counter()
            subprocess.run(
                [*command, "--output-dir", str(output)],
                check=True,
                cwd=ROOT,
                env=environment,
                capture_output=True,
            )
            seconds = time.perf_counter() - started
            summary = json.loads((output / "summary.json").read_text("utf-8"))
            times["gdtrain, training excluded"].append(seconds - summary["seconds"])
    return times


def memory(device: str) -> dict[str, list[float]]:
    """MiB beyond the data that two epochs of a shuffled MiniBatchLoader take at their peak."""
    found = {}
    for workload in (w for w in WORKLOADS if w.kind == "scaling"):
        process = Process("gdtrain loader", device)
        found[workload.said] = [process.ask(do="memory", workload=workload.name)["mib"]]
        process.close()
    return found


def machine() -> dict[str, Any]:
    """What the times depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), "?")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": " ".join(model.split()),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    code = "import torch; print(torch.cuda.get_device_name())"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return said.stdout.strip()


def _say(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)
