"""What time per sample and memory do as the number of samples grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contestants.by_hand import gdtrain_engine, loader_of, loop_over, tensors_of
from contestants.workload import Run, Workload


def loader_alone(workload: Workload, _: str) -> Run:
    return loop_over(loader_of(workload))


def data_loader_alone(workload: Workload, _: str) -> Run:
    from contestants.by_hand import data_loader

    return loop_over(data_loader(workload))


def memory(workload: Workload) -> dict[str, Any]:
    """Peak resident memory of two epochs over that of the data alone, in MiB."""
    # Once over a little first, so that what is imported at the first update is not counted.
    small = Workload("small", "", workload.sizes, 4096, workload.batch_size)
    gdtrain_engine(small, "cpu", engine="eager")(1)
    data = tensors_of(workload)
    for tensor in data:
        tensor.sum()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    for _ in range(2):
        for _batch in _loader(data, workload):
            pass
    return {"mib": (_resident("VmHWM") - before) / 1024}


def _loader(data: Any, workload: Workload) -> Any:
    from gdtrain import MiniBatchLoader

    assert workload.batch_size is not None
    return MiniBatchLoader(data, workload.batch_size)


def _resident(key: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
