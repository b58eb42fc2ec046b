"""trtexec as a second opinion on an engine.

It gets the same settings, written out for the release that reads them.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from trtq.bench.record import SecondOpinion, Timing
from trtq.engine.trtexec import find_trtexec, probe_number
from trtq.engine.trtexec_log import read_log
from trtq.errors import BenchError
from trtq.export.calibration_cache import version_of
from trtq.platform.releases import Version, has_flag, shown

WARMUP_MS, SECONDS, LIMIT_S = 1000, 5, 600


def command(
    executable: str,
    version: Version,
    engine: Path,
    *,
    shapes: str = "",
    graph: bool = True,
    warmup_ms: int = WARMUP_MS,
    seconds: float = SECONDS,
    requests: int | None = None,
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
        shapes: of a dynamic batch.
        graph: launch as a CUDA graph.
        warmup_ms: of requests that do not count.
        seconds: minimum duration.
        requests: minimum number of requests.
        times: file for the times of single requests, "" for none.
        dla: core that the engine was built for, None for the GPU.
    """
    given: list[tuple[str, str | None]] = [
        ("loadEngine", str(engine)),
        ("warmUp", str(warmup_ms)),
        ("duration", f"{seconds:g}"),
    ]
    if requests is not None:
        given.append(("iterations", str(requests)))
    if times:
        given.append(("exportTimes", times))
    if dla is not None:
        given.append(("useDLACore", str(dla)))
    if shapes:
        given.append(("shapes", shapes))
    wanted = ["includeDataTransfers", "useSpinWait", "useCudaGraph" if graph else "noCudaGraph"]
    given += [(name, None) for name in wanted if has_flag(name, version)]
    return [
        executable,
        *(f"--{name}" if value is None else f"--{name}={value}" for name, value in given),
    ]


def second_opinion(
    engine: Path, ours: Timing | None, *, shapes: str = "", graph: bool = True
) -> SecondOpinion:
    """Run trtexec on an engine and compare its GPU time with ours.

    Raises:
        MissingExtraError: there is no trtexec.
        BenchError: it fails, or prints no times.
    """
    executable = find_trtexec()
    version = version_of(probe_number(executable))
    line = command(executable, version, engine, shapes=shapes, graph=graph)
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, errors="replace", timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as exc:
        raise BenchError(
            f"trtexec {shown(version)} gives no second opinion on {engine.name}",
            f"no answer in {LIMIT_S} s",
        ) from exc
    log = read_log(done.stdout + done.stderr)
    if done.returncode or "gpu_compute" not in log.rows:
        why = (
            log.errors[-1] if log.errors else f"exit status {done.returncode}, no line of GPU times"
        )
        raise BenchError(
            f"trtexec {shown(version)} gives no second opinion on {engine.name}", why[:300]
        )
    gpu, latency = (
        log.rows["gpu_compute"].median,
        log.rows["latency"].median if "latency" in log.rows else log.rows["gpu_compute"].median,
    )
    mine = ours.median.value if ours is not None else None
    notes = list(log.advice)
    if graph and not log.cuda_graph:
        notes.append("it did not capture a graph")
    return SecondOpinion(
        version=shown(version),
        command=shlex.join(line),
        gpu_ms=gpu,
        latency_ms=latency,
        difference=gpu / mine - 1.0 if mine else None,
        note="; ".join(notes)
        or "its latency is the sum of copies and GPU time, not an elapsed time",
    )
