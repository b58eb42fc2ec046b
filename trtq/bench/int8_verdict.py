"""Compare a quantized file with its float baseline.

The two take turns on one device. The verdict names the layers that consume the gain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trtq.bench.interleaved import BLOCK_S, MARGIN, MAX_GROUPS, Call, take_turns
from trtq.bench.layers import profile_layers, what_ate
from trtq.bench.meters.nvml import Gpu
from trtq.bench.record import LayerTime, Verdict
from trtq.bench.system_info import Watch
from trtq.bench.workload import open_workload
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.engine.open_engine import is_engine
from trtq.errors import TrtqError
from trtq.export.onnx_file import count_qdq, load_onnx
from trtq.files import FP32
from trtq.known_records import read_known

NOISY, UNKNOWN = 0.05, 0.02


def is_quantized(path: Path) -> bool:
    """Whether a file computes in quantized codes.

    That is an ONNX file with Q/DQ pairs, or an engine whose manifest counts some.
    """
    if not is_engine(path):
        return count_qdq(load_onnx(path)) > 0
    beside = manifest_path(path)
    return beside.is_file() and _manifest(path).has_codes


def find_baseline(path: Path, given: str | None = None) -> tuple[Path | None, str]:
    """Return the float baseline of a quantized file, or None and how to get one.

    For an ONNX file the float one that ``trtq quantize`` wrote beside it; for an engine the FP16
    engine for the same target in its folder.
    """
    if given is not None:
        return Path(given), ""
    if not is_engine(path):
        beside = path.with_name(FP32)
        return (
            (beside, "")
            if beside.is_file() and beside != path
            else (None, f"no {FP32} beside it; name one with --baseline")
        )
    manifest = _manifest(path)
    target = manifest.target["name"]
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        if other == path or not manifest_path(other).is_file():
            continue
        found = _manifest(other)
        if not found.has_codes and found.precision == "fp16" and found.target == manifest.target:
            return other, ""
    source = Path(str(manifest.spec["onnx"])).with_name(FP32)
    out = path.with_name(f"{path.stem}.fp16{path.suffix}")
    return (
        None,
        f"no FP16 engine for it beside it; build one: trtq build {source} --target {target} "
        f"--precision fp16 --out {out}",
    )


def _manifest(engine: Path) -> EngineManifest:
    manifest: EngineManifest = read_known(manifest_path(engine), "build", kind="engine manifest")
    return manifest


def judge_files(
    first: Path,
    second: Path,
    *,
    device: str,
    batch: int = 1,
    trust: bool = False,
    graph: bool = True,
    gpu: Gpu | None = None,
    margin: float = MARGIN,
    block_s: float = BLOCK_S,
    max_groups: int = MAX_GROUPS,
    profile: bool = True,
) -> Verdict:
    """Time two files in turns and return the verdict on the second.

    Raises:
        EngineError, ExportError, BenchError: a file cannot be loaded or timed.
    """

    def opener(path: Path) -> Callable[[], Call]:
        return lambda: (
            open_workload(
                path, device=device, batch=batch, graph=graph, trust=trust, taking_turns=True
            ).call
        )

    probe = open_workload(second, device=device, batch=batch, graph=graph, trust=trust)
    watch = Watch(probe.device, gpu)
    turns = take_turns(
        opener(first),
        opener(second),
        block_s=block_s,
        max_groups=max_groups,
        margin=margin,
        between=watch.between,
    )
    watch.look()
    quantized = is_quantized(second) and not is_quantized(first)
    ate, note = list[LayerTime](), ""
    if profile and turns.outcome != "faster":
        try:
            times = [
                profile_layers(
                    open_workload(p, device=device, batch=batch, graph=False, trust=trust), p
                )[0]
                for p in (first, second)
            ]
            ate = what_ate(times[0], times[1])
        except TrtqError as exc:
            note = f"Which layers ate the gain is not known: {exc.message}."
    reasons = watch.reasons()
    keep = "FP16" if is_engine(first) else "the float file"
    advice = ""
    if quantized and turns.outcome != "faster":
        worst = ", ".join(f"{r.module} (+{r.ms:.3f} ms)" for r in ate[:3])
        advice = (
            f"Keep {keep}: INT8 does not win on this "
            f"device{f'; the gain was eaten by {worst}' if worst else ''}."
        )
    elif quantized:
        advice = f"INT8 wins: {1.0 - turns.ratio:.1%} less time on this device."
    advice = " ".join(t for t in (advice, note) if t)
    if turns.noise > NOISY:
        reasons = [
            *reasons,
            f"a copy of the first file came out up to {turns.noise:.1%} apart from it: the "
            "machine was busy",
        ]
    half = (turns.high - turns.low) / 2.0
    if turns.outcome not in ("faster", "slower") and half > max(2 * margin, UNKNOWN):
        reasons = [*reasons, f"the ratio is known within {half:.1%} only"]
    return Verdict(
        first=first.name,
        second=second.name,
        device=probe.label,
        first_ms=turns.first_ms,
        second_ms=turns.second_ms,
        ratio=turns.ratio,
        low=turns.low,
        high=turns.high,
        noise=turns.noise,
        outcome=turns.outcome,
        advice=advice,
        loads=turns.groups,
        valid=not reasons,
        reasons=reasons,
        ate=ate,
        batch=batch,
    )
