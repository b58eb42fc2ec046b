"""Measure load time and memory in a new process that loads a model and answers.

Run as ``python -m trtq.bench.startup_worker``.

The process reads one JSON object from its command line and prints one. Heavy imports are delayed
until they are needed.
"""

from __future__ import annotations

import time

ENTERED = time.perf_counter_ns()

import contextlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402


class Request(NamedTuple):
    """The file to load, and the figures to measure.

    Attributes:
        file: what is loaded.
        files: it, and the files with its tensors, which are read before it is loaded.
        device, batch: as in :class:`trtq.bench.workload.LoadOptions`.
        shapes: as ``--shapes`` has them.
        memory: whether its memory is measured instead of its time.
        started: when, by the clock that all processes share (CLOCK_MONOTONIC), ns.
    """

    file: str
    files: list[str]
    device: str
    batch: int
    shapes: list[str]
    memory: bool
    started: int


class Use(NamedTuple):
    """Memory in use, bytes.

    Attributes:
        rss: VmRSS of this process; ``peak``: its VmHWM.
        device: of the GPU by all processes, or of the shared memory of a Jetson; None on a CPU.
    """

    rss: int
    peak: int
    device: int | None


def main() -> int:
    """Load, answer twice, print."""
    request = Request(*json.loads(sys.argv[1]))
    path, device = Path(request.file), request.device
    from trtq.bench.workload import LoadOptions, device_for, open_workload

    hardware = device_for(device, path)
    options = LoadOptions(
        device=device,
        batch=request.batch,
        graph=False,
        trust=True,
        shapes=request.shapes,
    )
    laps: list[tuple[str, int]] = [("process and Python", ENTERED - request.started)]
    memory = Memory(hardware) if request.memory else None
    _import_runtime(path)
    last = time.perf_counter_ns()
    laps.append(("imports", last - ENTERED))
    if memory is not None:
        memory.look()
    for file in request.files:
        with Path(file).open("rb") as handle:
            while handle.read(1 << 20):
                pass
    last = _lap(laps, "read", last)
    workload = open_workload(path, options)
    deserialized = getattr(getattr(workload, "runner", None), "deserialized_ns", None)
    if deserialized is None:  # ONNX Runtime does both in one call
        last = _lap(laps, "deserialize and context", last)
    else:
        laps.append(("deserialize", deserialized - last))
        last = _lap(laps, "context and buffers", deserialized)
    workload.call()
    last = _lap(laps, "first answer", last)
    workload.call()
    second = time.perf_counter_ns() - last
    answer: dict[str, object] = {"laps": laps, "second": second}
    if memory is not None:
        for _ in range(8):
            workload.call()
        memory.look()
        answer["memory"] = memory.account(workload)
    print(json.dumps(answer))
    return 0


def _lap(laps: list[tuple[str, int]], name: str, last: int) -> int:
    now = time.perf_counter_ns()
    laps.append((name, now - last))
    return now


def _import_runtime(path: Path) -> None:
    """Import what runs the file, so that its import does not count as loading the file."""
    from trtq.engine.open_engine import is_engine

    if is_engine(path):
        import torch

        if torch.cuda.is_available():
            torch.cuda.current_device()  # starts CUDA
    else:
        import onnxruntime  # noqa: F401


class Memory:
    """Measures the memory of this process and its GPU, before and after.

    Args:
        device: ``cpu`` or ``cuda:N``.
    """

    def __init__(self, device: str) -> None:
        from trtq.bench.meters.jetson import is_jetson
        from trtq.bench.system_info import open_gpu

        self.gpu, self.why = open_gpu(device)
        self.shared = is_jetson()
        self.seen: list[Use] = []

    def look(self) -> None:
        """Record the memory in use now; the peak counts from the first call."""
        if not self.seen:
            # In a kernel without it the peak may be that of the imports.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        used = (
            shared_memory_used()
            if self.shared
            else self.gpu.memory_used()
            if self.gpu is not None
            else None
        )
        self.seen.append(Use(*status(), used))

    def account(self, workload: Any) -> dict[str, object]:
        """Return the growth, the engine's own account, and where each figure comes from.

        It needs two looks: before the file was read and after the requests.

        Args:
            workload: the model, after its requests.

        Returns:
            the fields of :class:`trtq.bench.record.Memory`, bytes.
        """
        before, after = self.seen
        engine = getattr(getattr(workload, "runner", None), "loaded", None)
        weights, activations = account_of(engine.engine) if engine is not None else (None, None)
        io = int(workload.io_bytes)
        sources = {
            "process": "VmRSS of a fresh process: after ten requests less before the file was read",
            "process_peak": "VmHWM of the same process less VmRSS before the file was read",
            "io": "sum of inputs and outputs",
        }
        device = None
        if before.device is not None and after.device is not None:
            device = after.device - before.device
            sources["device"] = (
                "growth of MemTotal less MemAvailable: GPU and CPU share this memory, the process "
                "is in it, and so are all others"
                if self.shared
                else "growth of the memory in use on the GPU by all processes, NVML"
            )
        else:
            sources["device"] = f"n/a: {self.why}"
        for name, value in (("weights", weights), ("activations", activations)):
            source = (
                "the engine's own account"
                if value is not None
                else "n/a: this runtime keeps no account of it"
            )
            sources[name] = source
        return {
            "weights": weights,
            "activations": activations,
            "io": io,
            "process": after.rss - before.rss,
            "process_peak": after.peak - before.rss,
            "device": device,
            "sources": sources,
        }


def account_of(engine: Any) -> tuple[int | None, int | None]:
    """Return the bytes of an engine's weights and of its activations.

    A value is None when this TensorRT does not report it.
    """
    activations = getattr(engine, "device_memory_size_v2", None)
    if activations is None:
        activations = getattr(engine, "device_memory_size", None)
    weights = None
    stat = getattr(engine, "get_engine_stat", None)
    if stat is not None:
        import importlib

        module = importlib.import_module(type(engine).__module__.partition(".")[0])
        weights = int(stat(module.EngineStat.TOTAL_WEIGHTS_SIZE))
    return weights, None if activations is None else int(activations)


def status(text: str | None = None) -> tuple[int, int]:
    """Return VmRSS and VmHWM of this process, bytes."""
    return _sizes(text or Path("/proc/self/status").read_text(), "VmRSS", "VmHWM")


def shared_memory_used(text: str | None = None) -> int:
    """Return the memory in use on this machine, bytes (MemTotal minus MemAvailable)."""
    total, free = _sizes(text or Path("/proc/meminfo").read_text(), "MemTotal", "MemAvailable")
    return total - free


def _sizes(text: str, first: str, second: str) -> tuple[int, int]:
    """Return two sizes of a file of Linux that has one a line, bytes."""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    one, two = (int(lines[name].split()[0]) * 1024 for name in (first, second))
    return one, two


if __name__ == "__main__":
    sys.exit(main())
