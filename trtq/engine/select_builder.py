"""Which builder makes the engine, and what each would do silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from trtq import ops
from trtq.engine.python_api import PythonBuilder, installed_version
from trtq.engine.settings import Builder
from trtq.engine.targets import NO_INT8, RTX_AHEAD_OF_TIME, Target
from trtq.engine.trtexec import TrtexecBuilder, find_trtexec, probe_number
from trtq.engine.versions import LIKE_RTX, Version, newest_opset, shown
from trtq.engine.worker_process import is_installed
from trtq.errors import EngineError, MissingExtraError, TrtqError, UsageError
from trtq.export.calibration_cache import version_of
from trtq.export.onnx_file import get_metadata, opset_of
from trtq.progress import Progress, Silent
from trtq.specs import BuildSpec

FIRST_FP8 = 89
FLOAT_MATMULS = ops.onnx_types("linear", "matmul")


def _wanted(
    spec: BuildSpec, target: Target, there: Callable[[str], bool], *, quantized: bool
) -> str:
    """Return the backend to use; ``there`` says which modules are installed.

    ``auto`` prefers the one that needs no GPU.
    """
    if spec.backend != "auto":
        return spec.backend
    covered = (
        target.sm in RTX_AHEAD_OF_TIME
        and target.version is None
        and not (quantized and target.sm == 75 and there("tensorrt"))
    )
    return (
        "tensorrt-rtx"
        if covered and (there("tensorrt_rtx") or not there("tensorrt"))
        else "tensorrt"
    )


def open_builder(
    spec: BuildSpec, target: Target, told: Progress, *, quantized: bool
) -> tuple[Builder, int | None]:
    """Return the builder to use here, and trtexec's number down to the patch where it is one.

    Raises:
        EngineError: the backend does not cover the target, or this machine's GPU is another.
        MissingExtraError: it is not installed.
    """
    name = _wanted(spec, target, is_installed, quantized=quantized)
    if name == "trtexec":
        executable = find_trtexec()
        number = probe_number(executable)
        _require_release(spec, target, version_of(number), executable)
        return TrtexecBuilder(executable, version_of(number), told), number
    if name == "tensorrt-rtx":
        if target.version is not None:
            raise EngineError(
                f"Cannot build for {spec.target} with TensorRT-RTX",
                f"its engines load in TensorRT-RTX alone, not in TensorRT {shown(target.version)}",
                f"Write --target {spec.target.partition('@')[0]}, or build there with --backend "
                "tensorrt",
            )
        if target.sm not in RTX_AHEAD_OF_TIME:
            raise EngineError(
                f"TensorRT-RTX does not build for {target.device} (sm{target.sm})",
                f"it covers {', '.join(f'sm{s}' for s in RTX_AHEAD_OF_TIME)}",
                "Build on that device with full TensorRT: --backend tensorrt",
            )
        if not is_installed("tensorrt_rtx"):
            raise MissingExtraError(
                "The backend tensorrt-rtx is not installed",
                hint="Install it: pip install 'trtq[rtx]'",
            )
        return PythonBuilder(name, installed_version(name), told), None
    if not is_installed("tensorrt"):
        raise MissingExtraError(
            f"Building for {spec.target} (sm{target.sm}) needs full TensorRT, which is not "
            "installed here",
            "TensorRT-RTX has releases of its own (no @ in the target) and builds ahead of time "
            "only for " + ", ".join(f"sm{s}" for s in RTX_AHEAD_OF_TIME),
            "On the machine with that GPU: pip install 'trtq[tensorrt]'",
        )
    require_local_gpu(target)
    version = installed_version(name)
    _require_release(spec, target, version, "the module tensorrt")
    return PythonBuilder(name, version, told), None


def imagine_builder(spec: BuildSpec, target: Target, *, quantized: bool) -> Builder:
    """Return the builder a dry run speaks of; it need not be here.

    Raises:
        UsageError: trtexec's version is not known.
    """
    name = _wanted(spec, target, lambda _: True, quantized=quantized)
    if name == "trtexec":
        return TrtexecBuilder("trtexec", target.release or _version_here(spec.target), Silent())
    return PythonBuilder(
        name, LIKE_RTX if name == "tensorrt-rtx" else target.release or LIKE_RTX, Silent()
    )


def _version_here(target: str) -> Version:
    try:
        return version_of(probe_number(find_trtexec()))
    except TrtqError as exc:
        raise UsageError(
            "Cannot tell which trtexec would run",
            f"{target} names no TensorRT version and there is no trtexec here",
            f"Write {target}@10.16",
        ) from exc


def _require_release(spec: BuildSpec, target: Target, version: Version, what: str) -> None:
    if target.version is not None and target.version != version:
        raise EngineError(
            f"Cannot build for {spec.target} here",
            f"{what} is of TensorRT {shown(version)}, not {shown(target.version)}",
            "Build on the machine with that version, or leave the version out of --target",
        )


def require_local_gpu(target: Target) -> None:
    """Full TensorRT builds for the GPU it runs on: that must be the target.

    Raises:
        EngineError: there is no GPU, or it is another.
    """
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            f"Cannot build for {target.device} here",
            "full TensorRT builds on the GPU it builds for, and there is none",
            "Run this on that device, or use --backend tensorrt-rtx for a target it covers",
        )
    major, minor = torch.cuda.get_device_capability()
    if major * 10 + minor != target.sm:
        raise EngineError(
            f"This machine's GPU is not {target.device}",
            f"full TensorRT builds for the GPU it runs on, compute capability {major}.{minor}; "
            f"the target has {target.capability}",
            f"Build on that device, or say what this is: --target sm{major}{minor}",
        )


def require_readable(model: onnx.ModelProto, version: Version, spec: BuildSpec) -> None:
    """Refuse a file whose opset the parser of this release does not know.

    Raises:
        EngineError: names the opsets.
    """
    opset, newest = opset_of(model), newest_opset(version)
    if opset > newest:
        ours = (
            f"Write it again: trtq quantize ... --opset {newest}, or trtq export ... --target "
            f"{spec.target}"
        )
        raise EngineError(
            f"TensorRT {shown(version)} cannot read {spec.onnx}",
            f"its opset is {opset}, the parser knows up to {newest}",
            ours
            if get_metadata(model)
            else f"Export it again with opset {newest}: torch.onnx.export(..., "
            f"opset_version={newest})",
        )


def refuse_missing_kernels(model: onnx.ModelProto, target: Target, pairs: int) -> None:
    """Raise where a Q/DQ model meets a GPU without INT8 or without FP8 arithmetic."""
    if pairs and target.sm in NO_INT8:
        raise EngineError(
            f"Cannot build a Q/DQ model for {target.device}",
            f"compute capability {target.capability} has no INT8 arithmetic",
            "Add --fallback for the FP16 engine of the same model, or build model.fp32.onnx "
            "with --precision fp16",
        )
    if target.sm < FIRST_FP8 and any(
        t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in model.graph.initializer
    ):
        raise EngineError(
            f"Cannot build an FP8 model for {target.device}",
            f"compute capability {target.capability} has no FP8 arithmetic",
            "Allocate again without fp8, or build for compute capability "
            f"{FIRST_FP8 // 10}.{FIRST_FP8 % 10} and later",
        )


def refuse_silent_failures(
    model: onnx.ModelProto, pairs: int, backend: str, target: Target, spec: BuildSpec
) -> None:
    """Raise where the builder would succeed and the engine not be what it is called."""
    if pairs and target.sm == 75 and backend == "tensorrt-rtx":
        raise EngineError(
            f"Refusing to build a Q/DQ model for {target.device} with TensorRT-RTX",
            "its INT8 convolutions for compute capability 7.5 are computed in float without a "
            "word: the engine would be called INT8 and not be it",
            "Build the float model (model.fp32.onnx with --precision fp16), or build with full "
            "TensorRT on that device",
        )
    if target.sm == 75 and backend == "tensorrt-rtx" and spec.precision == "fp32":
        matmuls = [n.name for n in model.graph.node if n.op_type in FLOAT_MATMULS]
        if matmuls:
            raise EngineError(
                f"TensorRT-RTX has no FP32 matrix product for {target.device}",
                f"the model has {len(matmuls)} of them, the first is {matmuls[0]}",
                "Add --precision fp16",
            )
