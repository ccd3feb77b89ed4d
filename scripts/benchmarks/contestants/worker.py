"""The process of one contestant: it is told on standard input what to do, and answers in JSON."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

from contestants.registry import CONTESTANTS
from contestants.workload import WORKLOADS, Run, Workload

# A run is as many epochs as fill the window, found by doubling from one.
MOST_EPOCHS = 1 << 16


def serve(name: str, device: str) -> None:
    """Answer requests until standard input ends, on one core like every other contestant."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a contestant prints is no answer
    run: Run | None = None
    epochs = 1
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "start":
            run = None
            gc.collect()
            try:
                run, epochs = _start(name, request["workload"], device, request["window"])
                answer = {"epochs": epochs}
            except (ImportError, ValueError, NotImplementedError) as error:
                answer = {"missing": " ".join(str(error).split()) or type(error).__name__}
        elif request["do"] == "memory":
            from contestants.scaling import memory

            answer = memory(_workload(request["workload"]))
        else:
            assert run is not None
            answer = {"seconds": run(epochs)}
        print(json.dumps(answer), file=answers, flush=True)


def _start(name: str, workload_name: str, device: str, window: float) -> tuple[Run, int]:
    """The contestant's run of a workload, warmed up, and the epochs that fill the window."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    workload = _workload(workload_name)
    chosen = (c for c in CONTESTANTS if c.name == name and c.joins(workload, device))
    run = next(chosen).start(workload, device)
    if workload.kind == "first":  # there is only one first time
        return run, 1
    epochs = 1
    if run(1) > 4 * window > 0 and run(1) > 4 * window:  # the first time, it compiles
        return run, epochs
    while (seconds := run(epochs)) < window / 2 and epochs < MOST_EPOCHS:
        epochs *= 2
    return run, max(1, round(epochs * window / max(seconds, 1e-9))) if window else 1


def _workload(name: str) -> Workload:
    return next(w for w in WORKLOADS if w.name == name)
