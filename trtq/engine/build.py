"""Build an engine: choose the backend, refuse what it would do silently wrong, run the builder apart, write the manifest."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
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
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.engine.plan_text import PlanAudit, audit_plan
from trtq.engine.targets import RTX_AHEAD_OF_TIME, Target, parse_target
from trtq.errors import EngineError, MissingExtraError, UsageError
from trtq.export.half import convert_to_half
from trtq.export.onnx_file import count_qdq, get_metadata, load_onnx
from trtq.recipe import BuildSpec

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
DEFAULT_BATCH = (1, 8, 32)
NO_INT8 = (53, 60, 62)
FLOAT_MATMULS = ("MatMul", "Gemm")


def build(spec: BuildSpec) -> EngineManifest:
    """Build the engine and write it with its manifest.

    Raises:
        EngineError: the backend cannot do what is asked on this target, or the parser or the builder refuses (their words,
            with module names).
        MissingExtraError: the backend is not installed.
    """
    target, path, out = parse_target(spec.target), Path(spec.onnx), Path(spec.out)
    model = load_onnx(path)
    pairs = count_qdq(model)
    if pairs and target.sm in NO_INT8:
        raise EngineError(
            f"Cannot build a Q/DQ model for {target.device}", f"compute capability {target.capability} has no INT8 arithmetic",
            "Build the float model in half precision: model.fp32.onnx with --precision fp16",
        )  # fmt: skip
    backend = _choose_backend(spec, target, quantized=pairs > 0)
    _refuse_silent_failures(model, pairs, backend, target, spec)
    ensure_writable_dir(out.parent)
    batch = _batch(model, spec.batch)
    metadata, wanted = get_metadata(model), quantized_convolutions(model)
    if spec.precision == "fp16":
        model = convert_to_half(model)
    with locked(out.with_name(f".{out.name}.lock")):
        started = time.perf_counter()
        plan, done, log = _run_worker(model, backend, target, batch)
        seconds = round(time.perf_counter() - started, 3)
        audit = audit_plan(plan, str(done["version"])) if backend == "tensorrt-rtx" else None
        _require_int8(audit, wanted, pairs, target)
        # Only when the new engine is on the disk does the old manifest go; the new one comes last.
        fresh = write_bytes(out.with_name(f".{out.name}.new"), plan)
        manifest_path(out).unlink(missing_ok=True)
        fresh.replace(out)
        manifest = EngineManifest(
            schema=SCHEMA, verb="build", spec=msgspec.to_builtins(spec), engine_sha256=sha256_bytes(plan), engine_bytes=len(plan),
            builder={"backend": backend, "module": MODULES[backend], "version": str(done["version"])},
            target={"name": target.name, "device": target.device, "capability": target.capability},
            precision=spec.precision, quantized_tensors=pairs, batch=batch, tensors=done["tensors"], onnx_sha256=sha256_file(path),
            onnx_bytes=path.stat().st_size, encodings_sha256=metadata.get("encodings_sha256"), model=metadata.get("model"),
            builder_log=log, audit=audit, quantized_convolutions=wanted, seconds=seconds, environment=environment(),
        )  # fmt: skip
        write_json(manifest_path(out), manifest)
    return manifest


def _choose_backend(spec: BuildSpec, target: Target, *, quantized: bool) -> str:
    """Return the backend to use; ``auto`` prefers the one that needs no GPU."""
    rtx, full = is_installed("tensorrt_rtx"), is_installed("tensorrt")
    if spec.backend == "trtexec":
        raise EngineError(
            "Cannot build with trtexec yet",
            "trtq does not make trtexec's command for every version yet"
            + ("" if shutil.which("trtexec") else ", and there is no trtexec here"),
            "Use --backend tensorrt-rtx or --backend tensorrt",
        )
    wanted = spec.backend
    if wanted == "auto":
        covered = target.sm in RTX_AHEAD_OF_TIME and not (quantized and target.sm == 75 and full)
        wanted = "tensorrt-rtx" if covered and (rtx or not full) else "tensorrt"
    if wanted == "tensorrt-rtx":
        if target.sm not in RTX_AHEAD_OF_TIME:
            raise EngineError(
                f"TensorRT-RTX does not build for {target.device} (sm{target.sm})",
                f"it covers {', '.join(f'sm{s}' for s in RTX_AHEAD_OF_TIME)}",
                "Build on that device with full TensorRT: --backend tensorrt",
            )
        if not rtx:
            raise MissingExtraError("The backend tensorrt-rtx is not installed", mend="Install it: pip install 'trtq[rtx]'")
        return wanted
    if not full:
        raise MissingExtraError(
            f"Building for {target.device} (sm{target.sm}) needs full TensorRT, which is not installed here",
            "TensorRT-RTX builds ahead of time only for " + ", ".join(f"sm{s}" for s in RTX_AHEAD_OF_TIME),
            "On the machine with that GPU: pip install 'trtq[tensorrt]'",
        )
    return wanted


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported; a folder of type stubs does not count."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def quantized_convolutions(model: onnx.ModelProto) -> int:
    """Return how many Conv nodes read both operands from a DequantizeLinear."""
    made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return sum(n.op_type == "Conv" and set(n.input[:2]) <= made for n in model.graph.node)


def _require_int8(audit: PlanAudit | None, convolutions: int, pairs: int, target: Target) -> None:
    """A Q/DQ model whose plan computes nothing in INT8 must not be called INT8."""
    if audit is None or not pairs:
        return
    if not audit.convolutions.get("int8", 0) and not audit.products.get("int8", 0):
        raise EngineError(
            f"The engine for {target.device} computes nothing in INT8",
            f"the model has {pairs} Q/DQ pairs and {convolutions} quantized convolutions",
            "Look at the Q/DQ placement with: trtq inspect MODEL.qdq.onnx",
        )


def _refuse_silent_failures(model: onnx.ModelProto, pairs: int, backend: str, target: Target, spec: BuildSpec) -> None:
    if pairs and target.sm == 75 and backend == "tensorrt-rtx":
        raise EngineError(
            f"Refusing to build a Q/DQ model for {target.device} with TensorRT-RTX",
            "its INT8 convolutions for compute capability 7.5 are computed in float without a word: the engine would be called "
            "INT8 and not be it",
            "Build the float model (model.fp32.onnx with --precision fp16), or build with full TensorRT on that device",
        )
    if target.sm == 75 and backend == "tensorrt-rtx" and spec.precision == "fp32":
        matmuls = [n.name for n in model.graph.node if n.op_type in FLOAT_MATMULS]
        if matmuls:
            raise EngineError(
                f"TensorRT-RTX has no FP32 matrix product for {target.device}",
                f"the model has {len(matmuls)} of them, the first is {matmuls[0]}",
                "Add --precision fp16",
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


def _run_worker(
    model: onnx.ModelProto, backend: str, target: Target, batch: tuple[int, int, int]
) -> tuple[bytes, dict[str, Any], list[str]]:
    with tempfile.TemporaryDirectory(prefix="trtq-build-") as folder:
        source, plan, request = (Path(folder) / n for n in ("model.onnx", "plan", "request.json"))
        try:
            onnx.save(model, source)
        except OSError as exc:
            raise explain_os_error(exc, source) from exc
        request.write_text(
            json.dumps(
                {
                    "module": MODULES[backend], "onnx": str(source), "out": str(plan), "batch": list(batch),
                    "sm": target.sm if backend == "tensorrt-rtx" else None,
                }
            )
        )  # fmt: skip
        process = subprocess.run([sys.executable, "-m", "trtq.engine.worker", str(request)], capture_output=True, text=True, check=False)
        events = [json.loads(ln) for ln in process.stdout.splitlines() if ln.startswith("{")]
        done = next((e for e in events if e["event"] == "done"), None)
        if process.returncode == 0 and done is not None and plan.is_file():
            return plan.read_bytes(), done, [f"{e['severity']}: {e['text']}" for e in events if e["event"] == "log"]
        raise _explain_failure(process, events, target)


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
