"""Output and exports of trtexec 8.0 to 11.

This covers times, percentiles, sizes, memory and warnings. Values that a release does not print are
None.

Parsing is anchored on labels, with any number of percentiles; numbers are C++ defaults (six digits,
exponents, ``nan``). Source: sampleReporting.cpp, trtexec.cpp and sampleEngines.cpp of the tags;
lines of the library itself come from public logs, so their wording is matched loosely.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import msgspec

from trtq.artifact import decode_json
from trtq.errors import BenchError
from trtq.export.calibration_cache import version_of
from trtq.platform.releases import Version, releases, shown

NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
# trtexec writes "[date] [E] [TRT] ...", TensorRT's own logger in Python "[date] [TRT] [E] ...", the
# agent no date.
STAMP = re.compile(r"^(?:\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] )?(?:\[TRT\] )?\[([IWEFV])\] ?")
STATS = re.compile(rf"(min|max|mean|median) = {NUMBER} ms")
PERCENTILE = re.compile(rf"percentile\(({NUMBER[1:-1]})%\) = {NUMBER} ms")
ROWS = {
    "latency": "Latency",
    "end_to_end": "End-to-End Host Latency",
    "enqueue": "Enqueue Time",
    "h2d": "H2D Latency",
    "gpu_compute": "GPU Compute Time",
    "d2h": "D2H Latency",
}
# Label of a single number: name here, unit (ms and MiB become seconds and bytes).
SINGLES = (
    ("throughput_qps", rf"^Throughput: {NUMBER} qps", 1.0),
    ("walltime_s", rf"^Total Host Walltime: {NUMBER} s", 1.0),
    ("compute_s", rf"^Total GPU Compute Time: {NUMBER} s", 1.0),
    ("built_s", rf"^Engine built in {NUMBER} sec", 1.0),
    ("loaded_s", rf"^Engine loaded in {NUMBER} sec", 1.0),
    ("deserialized_s", rf"^Engine deserialized in {NUMBER} sec", 1.0),
    ("warmup_queries", rf"^Warmup completed {NUMBER} queries over", 1.0),
    ("queries", rf"^Timing trace has {NUMBER} queries over", 1.0),
    ("engine_bytes", rf"^(?:Created|Loaded) engine with size: {NUMBER} MiB", 2.0**20),
    ("engine_bytes", rf"Loaded engine size: {NUMBER} MiB", 2.0**20),
    ("host_persistent_bytes", rf"Total Host Persistent Memory: {NUMBER}(?: bytes)?", 1.0),
    ("device_persistent_bytes", rf"Total Device Persistent Memory: {NUMBER}(?: bytes)?", 1.0),
    ("scratch_bytes", rf"(?:Total|Max) Scratch Memory: {NUMBER}(?: bytes)?", 1.0),
    ("activation_bytes", rf"Total Activation Memory: {NUMBER}(?: bytes)?", 1.0),
    ("weights_bytes", rf"Total Weights Memory: {NUMBER}(?: bytes)?", 1.0),
    ("context_bytes", rf"Created execution context with device memory size: {NUMBER} MiB", 2.0**20),
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the performance summary, milliseconds.

    Attributes:
        percentiles: by the percentage asked for, as printed.
    """

    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[str, float]


class TrtexecLog(msgspec.Struct, frozen=True, kw_only=True):
    """Output of one run of trtexec.

    Attributes:
        passed: its last line says so.
        version: down to the patch, such as 10.3.0; None where no line names it.
        device, capability: of the GPU; None where no line names it.
        rows: the summary by name (``latency``, ``gpu_compute``, ...); empty when nothing was
            measured.
        numbers: single numbers by name, seconds, bytes and counts.
        warnings, errors: its own lines, without stamps.
        advice: why its numbers should be doubted, from its ``* `` lines.
        cuda_graph: whether it said that a graph was captured.
    """

    passed: bool
    version: str | None
    device: str | None
    capability: str | None
    rows: dict[str, Row]
    numbers: dict[str, float]
    warnings: list[str]
    errors: list[str]
    advice: list[str]
    cuda_graph: bool

    @property
    def transfers(self) -> bool | None:
        """Whether copies are part of the latency; None when nothing was measured."""
        rows = [self.rows[n] for n in ("h2d", "d2h") if n in self.rows]
        return any(r.median > 0 for r in rows) if rows else None


VERSION = re.compile(r"(?:\[TRT\] )?TensorRT version: (\d+\.\d+\.\d+)")


def read_log(text: str) -> TrtexecLog:
    """Return what a run printed.

    Args:
        text: standard output and error together, in any order.
    """
    lines = [_Line.parse(line) for line in text.splitlines()]
    bodies = [line.body for line in lines]
    number = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    named = [m.group(1) for body in bodies if (m := VERSION.match(body)) is not None]
    graph = re.search(r"Successfully captured CUDA graph|CUDA graph capture succeeded", text)
    by_level = {
        level: [line.body for line in lines if line.level == level] for level in ("W", "E", "F")
    }
    return TrtexecLog(
        passed="&&&& PASSED" in text,
        version=named[-1] if named else dotted(int(number.group(1))) if number else None,
        device=_last(bodies, "Selected Device: "),
        capability=_last(bodies, "Compute Capability: "),
        rows={
            name: row
            for body in bodies
            for name, label in ROWS.items()
            if (row := _row(body, label)) is not None
        },
        numbers=_numbers(bodies),
        warnings=by_level["W"],
        errors=[*by_level["E"], *by_level["F"]],
        advice=[body[2:] for body in bodies if body.startswith("* ")],
        cuda_graph=graph is not None,
    )


class _Line(NamedTuple):
    """A line without its stamp, and the level that the stamp had."""

    level: str
    body: str

    @classmethod
    def parse(cls, line: str) -> _Line:
        stamp = STAMP.match(line)
        if stamp is None:
            return cls("", line.strip())
        return cls(stamp.group(1), line[stamp.end() :].strip())


def _numbers(bodies: list[str]) -> dict[str, float]:
    """Return the single numbers; the first line that has one counts."""
    numbers: dict[str, float] = {}
    for body in bodies:
        for name, pattern, unit in SINGLES:
            hit = re.search(pattern, body) if name not in numbers else None
            if hit is not None and math.isfinite(value := float(hit.group(1)) * unit):
                numbers[name] = value
    return numbers


def dotted(number: int) -> str:
    """Return the version behind trtexec's number.

    >>> dotted(8201), dotted(100300)
    ('8.2.1', '10.3.0')
    """
    return f"{shown(version_of(number))}.{number % 100}"


def _last(bodies: list[str], label: str) -> str | None:
    """Return the text behind a label in the last line with it; None where there is none."""
    values = [body[len(label) :].strip() for body in bodies if body.startswith(label)]
    return next((value for value in reversed(values) if value), None)


def _row(body: str, label: str) -> Row | None:
    """Return a row of the summary; the explanations repeat the labels, followed by prose."""
    if not body.startswith(f"{label}: "):
        return None
    values = {k: float(v) for k, v in STATS.findall(body)}
    if not {"min", "max", "mean", "median"} <= set(values):
        return None
    return Row(percentiles={p: float(v) for p, v in PERCENTILE.findall(body)}, **values)


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Single inferences of ``--exportTimes``, milliseconds.

    Attributes:
        compute: GPU time of each.
        latency: copies and GPU time of each.
        left_out: records of the warm-up, which releases up to 8.4 leave in the file.
    """

    compute: list[float]
    latency: list[float]
    left_out: int


def read_times(text: str, version: Version, *, warmup_ms: float = 200.0) -> Times:
    """Return the times of a file of ``--exportTimes``.

    Args:
        text: of the file.
        version: of the trtexec that wrote it: up to 8.4 the warm-up is in it.
        warmup_ms: that was asked for.

    Raises:
        BenchError: it is no such file.
    """
    try:
        records = decode_json(text, list[_Inference])
    except msgspec.MsgspecError as exc:
        why = f"{exc}; expected a list of records with computeMs, latencyMs"
        raise BenchError("This is no file of trtexec --exportTimes", why) from exc
    without = releases().forms["exported times without the warm-up"].covers(version)
    kept = [r for r in records if without or r.start >= warmup_ms]
    return Times(
        compute=[r.compute for r in kept],
        latency=[r.latency for r in kept],
        left_out=len(records) - len(kept),
    )


class _Inference(msgspec.Struct):
    compute: float = msgspec.field(name="computeMs")
    latency: float = msgspec.field(name="latencyMs")
    start: float = msgspec.field(name="startComputeMs", default=math.inf)
