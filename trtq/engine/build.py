"""Build an engine: choose the backend, refuse what it would do silently wrong, run the builder apart, write the manifest."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx

from trtq.artifact import (
    SCHEMA,
    ensure_writable_dir,
    environment,
    explain_os_error,
    locked,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.engine.backends import MODULES, choose_backend, refuse_missing_kernels, refuse_silent_failures
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.engine.plan_text import PlanAudit, audit_plan
from trtq.engine.targets import RTX_AHEAD_OF_TIME, Target, parse_target
from trtq.engine.trtexec import build_with_trtexec, command, find_trtexec, probe_number
from trtq.engine.versions import Version, newest_opset, offers, shown
from trtq.errors import EngineError, TrtqError, UsageError
from trtq.export.calibration_cache import ENTROPY_2, cache_number, read_cache, version_of
from trtq.export.half import convert_to_half
from trtq.export.onnx_file import count_qdq, get_metadata, load_onnx, opset_of, quantized_nodes
from trtq.export.strip import strip_qdq
from trtq.recipe import BuildSpec

DEFAULT_BATCH = (1, 8, 32)


def build(spec: BuildSpec) -> EngineManifest:
    """Build the engine and write it with its manifest.

    Raises:
        EngineError: the backend cannot do what is asked on this target, or the parser or the builder refuses (their words,
            with module names).
        MissingExtraError: the backend is not installed.
    """
    path, out = Path(spec.onnx), Path(spec.out)
    target, model, spec, fallback = prepare(spec)
    pairs = count_qdq(model)
    _require_trtexec(spec)
    backend = choose_backend(spec, target, quantized=pairs > 0)
    refuse_silent_failures(model, pairs, backend, target, spec)
    run = _run_trtexec(model, target, spec, pairs) if backend == "trtexec" else None
    ensure_writable_dir(out.parent)
    batch = _batch(model, spec.batch)
    metadata, wanted = get_metadata(model), quantized_convolutions(model)
    with locked(out.with_name(f".{out.name}.lock")):
        started = time.perf_counter()
        if run is not None:
            plan, done, log = run(batch)
        else:
            plan, done, log = _run_worker(convert_to_half(model) if spec.precision == "fp16" else model, backend, target, batch)
        seconds = round(time.perf_counter() - started, 3)
        audit = audit_plan(plan, str(done["version"])) if backend == "tensorrt-rtx" else None
        _require_int8(audit, wanted, pairs, target)
        # Only when the new engine is on the disk does the old manifest go; the new one comes last.
        fresh = write_bytes(out.with_name(f".{out.name}.new"), plan)
        manifest_path(out).unlink(missing_ok=True)
        fresh.replace(out)
        manifest = EngineManifest(
            schema=SCHEMA, verb="build", spec=msgspec.to_builtins(spec), engine_sha256=sha256_bytes(plan), engine_bytes=len(plan),
            builder={"backend": backend, "version": str(done["version"]), **done.get("builder", {"module": MODULES.get(backend, "")})},
            target={"name": target.name, "device": target.device, "capability": target.capability},
            precision=spec.precision, quantized_tensors=pairs, batch=batch, tensors=done["tensors"], onnx_sha256=sha256_file(path),
            onnx_bytes=path.stat().st_size, encodings_sha256=metadata.get("encodings_sha256"), model=metadata.get("model"),
            builder_log=log, audit=audit, quantized_convolutions=wanted, fallback=fallback, seconds=seconds,
            environment=environment(),
        )  # fmt: skip
        write_json(manifest_path(out), manifest)
    return manifest


def prepare(spec: BuildSpec) -> tuple[Target, onnx.ModelProto, BuildSpec, str]:
    """Return the target, the model and the settings to build with, and why they are not those that were asked for ("" when they are).

    Raises:
        EngineError: the device lacks what the model needs, and ``spec.fallback`` does not allow the alternative.
    """
    target, model = parse_target(spec.target), load_onnx(Path(spec.onnx))
    pairs = count_qdq(model)
    if spec.fallback and pairs and "INT8" not in target.arithmetic:
        why = f"{target.device} (compute capability {target.capability}) has no INT8 arithmetic: FP16 of the same model"
        return target, strip_qdq(model), msgspec.structs.replace(spec, precision="fp16"), why
    refuse_missing_kernels(model, target, pairs)
    return target, model, spec, ""


def dry_run(spec: BuildSpec) -> str:
    """Return the one command line, or the Python, that would build the engine; nothing is built, and no builder need be here.

    A model that must be changed first (pairs removed, types written into the graph) is written beside ``spec.out``, and named.

    Raises:
        EngineError: the target's TensorRT cannot read the file, or the device lacks what it needs.
        UsageError: trtexec's version is not known.
    """
    target, model, spec, fallback = prepare(spec)
    pairs, batch, half, said = count_qdq(model), _batch(model, spec.batch), spec.precision == "fp16", [fallback] if fallback else []
    _require_trtexec(spec)
    if spec.backend == "trtexec":
        version = target.release or _version_here(spec.target)
        _require_readable(model, version, spec)
        cache = _calibration(spec, version, pairs, None)
        if _typed(spec, version, cache):
            model, said = convert_to_half(model), [*said, "FP16 stands in the graph"]
        source = _changed(spec, model, said)
        line = command(
            version, executable="trtexec", onnx=source, engine=Path(spec.out), shapes=_shapes(model, batch), quantized=pairs > 0,
            half=half, calibration=cache,
        )  # fmt: skip
        return "\n".join([*(f"# {s}" for s in said), shlex.join(line)])
    backend: str = spec.backend
    if backend == "auto":
        backend = "tensorrt-rtx" if target.sm in RTX_AHEAD_OF_TIME and not (pairs and target.sm == 75) else "tensorrt"
    refuse_silent_failures(model, pairs, backend, target, spec)
    if half:
        model, said = convert_to_half(model), [*said, "FP16 stands in the graph"]
    request = _request(backend, target, batch, _changed(spec, model, said), Path(spec.out))
    code = f"import json\nfrom trtq.engine.worker import build\nbuild(json.loads({json.dumps(json.dumps(request))}))"
    return "\n".join([*(f"# {s}" for s in said), code])


def _changed(spec: BuildSpec, model: onnx.ModelProto, said: list[str]) -> Path:
    """Return the file to build from: the user's own, or the changed model, written beside the engine."""
    if not said:
        return Path(spec.onnx)
    path = Path(spec.out).with_suffix(".onnx")
    if path.resolve() == Path(spec.onnx).resolve():
        raise UsageError(f"--out {spec.out} would put the changed model over {spec.onnx}", mend="Give another --out")
    ensure_writable_dir(path.parent)
    _save(model, path)
    said.append(f"the model that is built from was written to {path}")
    return path


def _require_trtexec(spec: BuildSpec) -> None:
    if spec.calibration is not None and spec.backend != "trtexec":
        raise UsageError("--calibration needs --backend trtexec", "the other builders take the scales of Q/DQ pairs", "Build the Q/DQ file")


def _version_here(target: str) -> Version:
    try:
        return version_of(probe_number(find_trtexec()))
    except TrtqError as exc:
        raise UsageError(
            "Cannot tell which trtexec would run",
            f"{target} names no TensorRT version and there is no trtexec here",
            f"Write {target}@10.16",
        ) from exc


def _typed(spec: BuildSpec, version: Version, cache: Path | None) -> bool:
    """Whether FP16 must stand in the graph: before TensorRT 10, and beside a calibration cache, the builder chooses where it pays."""
    return spec.precision == "fp16" and offers("typed", version) and cache is None


def _require_readable(model: onnx.ModelProto, version: Version, spec: BuildSpec) -> None:
    opset = opset_of(model)
    if opset > newest_opset(version):
        raise EngineError(
            f"TensorRT {shown(version)} cannot read {spec.onnx}",
            f"its opset is {opset}, the parser knows up to {newest_opset(version)}",
            f"Write it again: trtq quantize ... --opset {newest_opset(version)}",
        )


def _calibration(spec: BuildSpec, version: Version, pairs: int, number: int | None) -> Path | None:
    """Return the calibration cache to build with, once it is known that this trtexec (``number``, where it is here) will read it.

    Raises:
        EngineError: TensorRT would ignore it and take ranges from random numbers.
    """
    if spec.calibration is None:
        return None
    path, where = Path(spec.calibration), f"Cannot build {spec.onnx} with {spec.calibration}"
    if pairs:
        raise EngineError(where, "it has Q/DQ pairs, and TensorRT then reads no cache", "Give the float file, or leave --calibration out")
    if not offers("calibration cache", version):
        mend = f"Make a Q/DQ file of it: trtq import-calib {spec.calibration} --onnx {spec.onnx} --out DIR"
        raise EngineError(where, f"TensorRT {shown(version)} reads no calibration caches", mend)
    try:
        cache = read_cache(path.read_text(encoding="utf-8"), spec.calibration)
    except (OSError, UnicodeDecodeError) as exc:
        raise EngineError(where, str(exc)) from exc
    if cache.version != version or cache.algorithm != ENTROPY_2 or (number is not None and cache.number != number):
        here = number if number is not None else cache_number(version)
        release = f"{spec.target.partition('@')[0]}@{shown(version)} --release-number {here}"
        again = f"trtq export-calib MODEL.qdq.onnx --target {release} --out CACHE"
        raise EngineError(
            where, f"it is of TRT-{cache.number}, {cache.algorithm}; TRT-{here} ignores it and calibrates on random numbers",
            f"Write it for this release: {again}",
        )  # fmt: skip
    return path.resolve()


def _shapes(model: onnx.ModelProto, batch: tuple[int, int, int]) -> dict[str, list[list[int]]]:
    """Return min, opt and max shape of every dynamic input."""
    return {
        i.name: [[d.dim_value or b for d in i.type.tensor_type.shape.dim] for b in batch]
        for i in model.graph.input
        if not i.type.tensor_type.shape.dim[0].HasField("dim_value")
    }


def quantized_convolutions(model: onnx.ModelProto) -> int:
    """Return how many Conv nodes read both operands from a DequantizeLinear."""
    return len(quantized_nodes(model, "Conv"))


def _require_int8(audit: PlanAudit | None, convolutions: int, pairs: int, target: Target) -> None:
    """A Q/DQ model whose plan computes nothing in INT8 must not be called INT8."""
    if audit is None or not pairs:
        return
    if not any({"int8", "fp8"} & set(found) for found in (audit.convolutions, audit.products)):
        raise EngineError(
            f"The engine for {target.device} computes nothing in INT8",
            f"the model has {pairs} Q/DQ pairs and {convolutions} quantized convolutions",
            "Look at the Q/DQ placement with: trtq inspect MODEL.qdq.onnx",
        )


def _batch(model: onnx.ModelProto, wanted: tuple[int, int, int] | None) -> tuple[int, int, int]:
    for value in model.graph.input:
        for i, d in enumerate(value.type.tensor_type.shape.dim):
            if i and not d.HasField("dim_value"):
                raise EngineError(
                    f"Cannot build with the dynamic axis {i} of input {value.name}",
                    "only the batch may be dynamic",
                    "Export it with a fixed image size",
                )
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    if dim.HasField("dim_value"):
        fixed = dim.dim_value
        if wanted is not None and wanted != (fixed, fixed, fixed):
            raise UsageError(
                f"Cannot build with --batch {':'.join(map(str, wanted))}", f"the model has a fixed batch of {fixed}", "Leave --batch out"
            )
        return (fixed, fixed, fixed)
    low, opt, high = wanted or DEFAULT_BATCH
    if not 1 <= low <= opt <= high:
        raise UsageError(f"Cannot build with --batch {low}:{opt}:{high}", "expected 1 <= MIN <= OPT <= MAX", "Write it like 1:8:32")
    return (low, opt, high)


def _run_trtexec(
    model: onnx.ModelProto, target: Target, spec: BuildSpec, pairs: int
) -> Callable[[tuple[int, int, int]], tuple[bytes, dict[str, Any], list[str]]]:
    """Check that the trtexec here can build ``model``, and return what builds it for a batch range."""
    executable = find_trtexec()
    number = probe_number(executable)
    version = version_of(number)
    if target.version is not None and target.version != version:
        raise EngineError(
            f"Cannot build for {spec.target} here", f"{executable} is of TensorRT {shown(version)}, not {shown(target.version)}",
            "Build on the machine with that version, or leave the version out of --target",
        )  # fmt: skip
    _require_readable(model, version, spec)
    cache = _calibration(spec, version, pairs, number)
    half = spec.precision == "fp16"
    typed = convert_to_half(model) if _typed(spec, version, cache) else model

    def run(batch: tuple[int, int, int]) -> tuple[bytes, dict[str, Any], list[str]]:
        with tempfile.TemporaryDirectory(prefix="trtq-build-") as folder:
            source, plan = Path(folder) / "model.onnx", Path(folder) / "plan"
            _save(typed, source)
            made, log, line = build_with_trtexec(
                source,
                plan,
                executable=executable,
                version=version,
                target=target,
                shapes=_shapes(typed, batch),
                quantized=pairs > 0,
                half=half,
                calibration=cache,
            )
        tensors = [
            {"name": v.name, "dtype": onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type), "mode": mode,
             "shape": [d.dim_value or -1 for d in v.type.tensor_type.shape.dim]}
            for mode, values in (("input", typed.graph.input), ("output", typed.graph.output)) for v in values
        ]  # fmt: skip
        text = " ".join(line).replace(str(source), spec.onnx).replace(str(plan), spec.out)
        return made, {"version": f"{version[0]}.{version[1]}", "tensors": tensors, "builder": {"command": text}}, log

    return run


def _save(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.save(model, path)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc


def _run_worker(
    model: onnx.ModelProto, backend: str, target: Target, batch: tuple[int, int, int]
) -> tuple[bytes, dict[str, Any], list[str]]:
    with tempfile.TemporaryDirectory(prefix="trtq-build-") as folder:
        source, plan, request = (Path(folder) / n for n in ("model.onnx", "plan", "request.json"))
        _save(model, source)
        request.write_text(json.dumps(_request(backend, target, batch, source, plan)))
        process = subprocess.run([sys.executable, "-m", "trtq.engine.worker", str(request)], capture_output=True, text=True, check=False)
        events = [json.loads(ln) for ln in process.stdout.splitlines() if ln.startswith("{")]
        done = next((e for e in events if e["event"] == "done"), None)
        if process.returncode == 0 and done is not None and plan.is_file():
            return plan.read_bytes(), done, [f"{e['severity']}: {e['text']}" for e in events if e["event"] == "log"]
        raise _explain_failure(process, events, target)


def _request(backend: str, target: Target, batch: tuple[int, int, int], source: Path, plan: Path) -> dict[str, Any]:
    return {
        "module": MODULES[backend], "onnx": str(source), "out": str(plan), "batch": list(batch),
        "sm": target.sm if backend == "tensorrt-rtx" else None,
    }  # fmt: skip


def _explain_failure(process: subprocess.CompletedProcess[str], events: list[dict[str, Any]], target: Target) -> EngineError:
    where = f"Cannot build the engine for {target.device} (sm{target.sm})"
    parser = [f"{e['node'] or e['op']}: {e['text']}" for e in events if e["event"] == "error"]
    errors = [str(e["text"]) for e in events if e["event"] == "log" and "error" in e["severity"]]
    if parser:
        return EngineError(where, "the ONNX parser refuses " + "; ".join(parser))
    if process.returncode < 0:
        import signal

        name = signal.Signals(-process.returncode).name
        return EngineError(where, f"the builder crashed ({name})" + (f" after: {'; '.join(errors)}" if errors else ""))
    if errors:
        return EngineError(where, "; ".join(errors))
    return EngineError(where, process.stderr.strip().splitlines()[-1] if process.stderr.strip() else "the builder gave no reason")
