"""trtexec as a second opinion on an engine.

It gets the same settings, written out for the release that reads them.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trtq.bench.record import SecondOpinion, Timing
from trtq.engine.trtexec import find_trtexec, probe_number, spell_name, spell_shapes
from trtq.engine.trtexec_log import read_log
from trtq.errors import BenchError
from trtq.export.calibration_cache import version_of
from trtq.export.feeds import Inputs
from trtq.platform.releases import Version, has_flag, shown
from trtq.scratch import scratch

WARMUP_MS = 1000
SECONDS = 5
LIMIT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long trtexec measures.

    Attributes:
        warmup_ms: of requests that do not count.
        seconds: minimum duration.
        requests: minimum number of requests; None for trtexec's own.
    """

    warmup_ms: int = WARMUP_MS
    seconds: float = SECONDS
    requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """Inputs that trtexec feeds to an engine.

    trtexec itself draws inputs at random. Integers that it draws are indices that may not exist, so
    integers come from files.

    Attributes:
        shapes: of the inputs with open axes.
        arrays: integer inputs.
        files: where trtexec finds them.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    arrays: Inputs = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, feed: Inputs, open_inputs: Sequence[str]) -> Fed:
        """Return what trtexec needs beside the engine.

        Args:
            feed: arrays of every input.
            open_inputs: names of those with open axes.
        """
        return cls(
            shapes={n: list(feed[n].shape) for n in open_inputs},
            arrays={n: a for n, a in feed.items() if a.dtype.kind in "iub"},
        )

    def written(self, folder: Path) -> Fed:
        """Write the integer inputs, as the engine holds them, into a folder.

        Returns:
            the same with ``files``; each holds the raw values in row-major order.
        """
        files = {n: folder / f"input{i}.bin" for i, n in enumerate(self.arrays)}
        for name, path in files.items():
            np.ascontiguousarray(self.arrays[name]).tofile(path)
        return replace(self, files={n: str(p) for n, p in files.items()})


def command(
    executable: str,
    version: Version,
    engine: Path,
    *,
    fed: Fed = Fed(),
    graph: bool = True,
    duration: Duration = Duration(),
    times: str = "",
    dla: int | None = None,
) -> list[str]:
    """Return the command line that times an engine, copies included.

    Launches use a CUDA graph or not, as requested, regardless of the defaults of the release.

    Before 11.0 copies are timed and graphs are off by default; from 11.0 on the defaults are the
    reverse (facts: defaults by version).

    Args:
        executable: trtexec.
        version: of it.
        engine: to load.
        fed: shapes of open axes, and files of inputs.
        graph: launch as a CUDA graph.
        duration: of the warm-up and the measurement.
        times: file for the times of single requests, "" for none.
        dla: core that the engine was built for, None for the GPU.
    """
    options: dict[str, object] = {
        "loadEngine": engine,
        "warmUp": duration.warmup_ms,
        "duration": f"{duration.seconds:g}",
        "iterations": duration.requests,
        "exportTimes": times or None,
        "useDLACore": dla,
        "shapes": spell_shapes(fed.shapes) or None,
        "loadInputs": ",".join(f"{spell_name(n)}:{p}" for n, p in fed.files.items()) or None,
    }
    flags = ["includeDataTransfers", "useSpinWait", "useCudaGraph" if graph else "noCudaGraph"]
    return [
        executable,
        *(f"--{name}={value}" for name, value in options.items() if value is not None),
        *(f"--{name}" for name in flags if has_flag(name, version)),
    ]


def second_opinion(
    engine: Path, ours: Timing | None, fed: Fed = Fed(), *, graph: bool = True
) -> SecondOpinion:
    """Run trtexec on an engine and compare its GPU time with ours.

    Args:
        engine: its file.
        ours: GPU times of our own measurement, None without one.
        fed: shapes and integer inputs.
        graph: launch a CUDA graph.

    Raises:
        MissingExtraError: there is no trtexec.
        BenchError: it fails, does not end in 600 s, or prints no times.
    """
    executable = find_trtexec()
    version = version_of(probe_number(executable))
    title = f"trtexec {shown(version)} gives no second opinion on {engine.name}"
    with scratch("inputs") as folder:
        line = command(executable, version, engine, fed=fed.written(folder), graph=graph)
        try:
            process = subprocess.run(
                line, capture_output=True, text=True, check=False, errors="replace", timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired as exc:
            raise BenchError(title, f"no answer in {LIMIT_S} s") from exc
    log = read_log(process.stdout + process.stderr)
    if process.returncode or "gpu_compute" not in log.rows:
        status = f"exit status {process.returncode}, no line of GPU times"
        raise BenchError(title, (log.errors or [status])[-1][:300])
    gpu = log.rows["gpu_compute"].median
    latency = log.rows.get("latency", log.rows["gpu_compute"]).median
    median = ours.median.value if ours is not None else None
    notes = [*log.advice, *["it did not capture a graph"] * (graph and not log.cuda_graph)]
    return SecondOpinion(
        version=shown(version),
        command=shlex.join(line),
        gpu_ms=gpu,
        latency_ms=latency,
        difference=gpu / median - 1.0 if median else None,
        note="; ".join(notes)
        or "its latency is the sum of copies and GPU time, not an elapsed time",
    )
