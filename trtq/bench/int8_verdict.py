"""Compare a quantized file with its float baseline.

The two take turns on one device. The verdict names the layers that consume the gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trtq.bench.engine_workload import count_of
from trtq.bench.interleaved import DEFAULT_TURNS, Call, Turns, TurnSettings, take_turns
from trtq.bench.layers import profile_layers, what_ate
from trtq.bench.meters.nvml import Gpu
from trtq.bench.record import LayerTime, Verdict
from trtq.bench.system_info import Watch
from trtq.bench.workload import LoadOptions
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.engine.open_engine import is_engine
from trtq.errors import TrtqError
from trtq.export.codes import count_qdq
from trtq.export.onnx_file import load_onnx
from trtq.files import FP32
from trtq.known_records import read_known

NOISY = 0.05
UNKNOWN = 0.02


def is_quantized(path: Path) -> bool:
    """Whether a file computes in quantized codes.

    That is an ONNX file with Q/DQ pairs, or an engine whose manifest counts some. An engine without
    a manifest counts as float.

    Raises:
        ExportError: the ONNX file cannot be read.
        ArtifactError: the manifest cannot be read.
    """
    if not is_engine(path):
        return count_qdq(load_onnx(path)) > 0
    beside = manifest_path(path)
    return beside.is_file() and _manifest(path).has_codes


def find_baseline(path: Path, baseline: str | None = None) -> tuple[Path | None, str]:
    """Return the float baseline of a quantized file, or None and how to get one.

    For an ONNX file the float one that ``trtq quantize`` wrote beside it; for an engine the FP16
    engine of the same model, shapes and target in its folder.

    Args:
        path: of the quantized file.
        baseline: the one to use; None looks for it. It is not checked.

    Returns:
        its path and "", or None and what to do, for a note.

    Raises:
        ArtifactError: a manifest in the folder cannot be read.
    """
    if baseline is not None:
        return Path(baseline), ""
    if is_engine(path):
        return _fp16_engine(path)
    beside = path.with_name(FP32)
    if beside.is_file() and beside != path:
        return beside, ""
    return None, f"no {FP32} beside it; name one with --baseline"


def _fp16_engine(path: Path) -> tuple[Path | None, str]:
    """Return the FP16 engine for the target of an engine, or None and how to build one."""
    manifest = _manifest(path)
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        if other != path and manifest_path(other).is_file():
            beside = _manifest(other)
            is_fp16 = beside.precision == "fp16" and not beside.has_codes
            if is_fp16 and beside.target == manifest.target and _same_model(beside, manifest):
                return other, ""
    source = manifest.source.with_name(FP32)
    target = manifest.target.name
    out = path.with_name(f"{path.stem}.fp16{path.suffix}")
    return (
        None,
        f"no FP16 engine for it beside it; build one: trtq build {source} --target {target} "
        f"--precision fp16 --out {out}",
    )


def _same_model(a: EngineManifest, b: EngineManifest) -> bool:
    """Whether two engines take the same inputs and are of one model.

    Where no file names its model, the folder of the ONNX files decides.
    """
    shapes = ([(r.name, r.least, r.usual, r.most) for r in m.input_rows] for m in (a, b))
    if next(shapes) != next(shapes):
        return False
    if a.model is None and b.model is None:
        return a.source.parent == b.source.parent
    return a.model == b.model


def _manifest(engine: Path) -> EngineManifest:
    manifest: EngineManifest = read_known(manifest_path(engine), "build", kind="engine manifest")
    return manifest


def judge_files(
    first: Path,
    second: Path,
    options: LoadOptions,
    *,
    gpu: Gpu | None = None,
    settings: TurnSettings = DEFAULT_TURNS,
    profile: bool = True,
) -> Verdict:
    """Time two files in turns and return the verdict on the second.

    Args:
        first: the baseline.
        second: the file that is judged.
        options: how both are loaded.
        gpu: through NVML, where there is one; it is not watched while files run on the CPU.
        settings: of the turns.
        profile: look for the layers that consume the gain, where the second is not faster.

    Returns:
        the verdict; not valid where the machine was busy, or the ratio is known too roughly for a
        result other than faster or slower. Then there is no advice.

    Raises:
        EngineError, ExportError, BenchError: a file cannot be loaded or timed.
    """

    def opener(path: Path) -> Callable[[], Call]:
        return lambda: options.open(path, taking_turns=True).call

    probe = options.open(second)
    watch = Watch(probe.device, gpu if probe.device != "cpu" else None)
    turns = take_turns(opener(first), opener(second), settings, between=watch.between)
    watch.look()
    slower_layers: list[LayerTime] = []
    note = ""
    if profile and turns.outcome != "faster":
        slower_layers, note = _slower_layers(first, second, options)
    reasons = [*watch.reasons(), *_doubts(turns, settings.margin)]
    advice = "" if reasons else _advice(first, second, turns, slower_layers)
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
        advice=" ".join(text for text in (advice, note) if text),
        loads=turns.groups,
        valid=not reasons,
        reasons=reasons,
        ate=slower_layers,
        batch=count_of(probe.shapes),
    )


def _slower_layers(first: Path, second: Path, options: LoadOptions) -> tuple[list[LayerTime], str]:
    """Return the layers that take more time in the second file, or why they are not known."""
    plain = replace(options, graph=False)
    try:
        before, after = (profile_layers(plain.open(path), path)[0] for path in (first, second))
    except TrtqError as exc:
        return [], f"Which layers ate the gain is not known: {exc.message}."
    return what_ate(before, after), ""


def _advice(first: Path, second: Path, turns: Turns, slower_layers: list[LayerTime]) -> str:
    """Return what follows for a quantized file against its float baseline."""
    if not is_quantized(second) or is_quantized(first):
        return ""
    if turns.outcome == "faster":
        return f"INT8 wins: {1.0 - turns.ratio:.1%} less time on this device."
    engine = is_engine(first)
    keep = "FP16" if engine else "the float file"
    where = "on this device" if engine else "in ONNX Runtime here (an engine may differ)"
    worst = ", ".join(f"{r.module} (+{r.ms:.3f} ms)" for r in slower_layers[:3])
    eaten = f"; the gain was eaten by {worst}" if worst else ""
    some = " trtq advise --measured --keep-winners leaves single layers in FP16." if worst else ""
    return f"Keep {keep}: INT8 does not win {where}{eaten}.{some}"


def _doubts(turns: Turns, margin: float) -> list[str]:
    """Return why the verdict should not be used."""
    reasons = []
    if turns.noise > NOISY:
        reasons.append(
            f"a copy of the first file came out up to {turns.noise:.1%} apart from it: the "
            "machine was busy"
        )
    half_width = (turns.high - turns.low) / 2.0
    is_open = turns.outcome not in ("faster", "slower")
    if is_open and half_width > max(2 * margin, UNKNOWN):
        reasons.append(f"the ratio is known within {half_width:.1%} only")
    return reasons
