"""Which builder makes the engine, and what each would do silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from trtq import ops
from trtq.engine.python_api import PythonBuilder, installed_version
from trtq.engine.settings import RTX, Builder
from trtq.engine.trtexec import TrtexecBuilder, find_trtexec, probe_number
from trtq.engine.worker_process import is_installed
from trtq.errors import EngineError, MissingExtraError, TrtqError, UsageError
from trtq.export.calibration_cache import version_of
from trtq.export.codes import codes_of
from trtq.export.onnx_file import get_metadata, opset_of
from trtq.platform.releases import Version, opset_read, releases, shown
from trtq.platform.target import Target, capabilities_with, rtx_capabilities
from trtq.progress import Progress, Silent
from trtq.specs import BuildSpec

FLOAT_MATMULS = ops.onnx_types("linear", "matmul")


def choose_backend(
    spec: BuildSpec, target: Target, has_module: Callable[[str], bool], *, quantized: bool
) -> str:
    """Return the backend to use: ``tensorrt``, ``tensorrt-rtx`` or ``trtexec``.

    ``auto`` prefers the one that needs no GPU, where it computes what the model asks for.

    Args:
        spec: says which backend is wanted.
        target: to build for.
        has_module: whether a Python module is installed.
        quantized: the model has Q/DQ pairs.
    """
    if spec.backend != "auto":
        return spec.backend
    full = has_module("tensorrt")
    in_float = quantized and "INT8" not in target.facts.rtx
    if not target.rtx or (in_float and full):
        return "tensorrt"
    return RTX if has_module("tensorrt_rtx") or not full else "tensorrt"


def open_builder(
    spec: BuildSpec, target: Target, progress: Progress, *, quantized: bool
) -> tuple[Builder, int | None]:
    """Return the builder to use here, and trtexec's number where it is one.

    Args:
        spec: says which backend is wanted.
        target: to build for.
        progress: receives the builder's progress.
        quantized: the model has Q/DQ pairs.

    Returns:
        The builder; the number down to the patch, such as 100300 for 10.3.0, None for another
        builder.

    Raises:
        EngineError: the backend does not cover the target, or this machine's GPU is another.
        MissingExtraError: it is not installed.
    """
    open_ = {"trtexec": _open_trtexec, RTX: _open_rtx, "tensorrt": _open_tensorrt}
    return open_[choose_backend(spec, target, is_installed, quantized=quantized)](target, progress)


def _open_trtexec(target: Target, progress: Progress) -> tuple[Builder, int | None]:
    executable = find_trtexec()
    number = probe_number(executable)
    version = version_of(number)
    _require_release(target, version, executable)
    return TrtexecBuilder(executable, version, progress), number


def _open_rtx(target: Target, progress: Progress) -> tuple[Builder, int | None]:
    if target.version is not None:
        raise EngineError(
            f"Cannot build for {target.text} with TensorRT-RTX",
            f"its engines load in TensorRT-RTX alone, not in TensorRT {shown(target.version)}",
            f"Write --target {target.name}, or build there with --backend tensorrt",
        )
    if not target.rtx:
        raise EngineError(
            f"TensorRT-RTX does not build for {target.device} (sm{target.sm})",
            f"it covers {rtx_capabilities()}",
            "Build on that device with full TensorRT: --backend tensorrt",
        )
    if not is_installed("tensorrt_rtx"):
        raise MissingExtraError(
            "The backend tensorrt-rtx is not installed",
            hint="Install it: pip install 'trtq[rtx]'",
        )
    return PythonBuilder(RTX, installed_version(RTX), progress), None


def _open_tensorrt(target: Target, progress: Progress) -> tuple[Builder, int | None]:
    if not is_installed("tensorrt"):
        raise MissingExtraError(
            f"Building for {target.text} (sm{target.sm}) needs full TensorRT, which is not "
            "installed here",
            "TensorRT-RTX has releases of its own (no @ in the target) and builds ahead of time "
            f"only for {rtx_capabilities()}",
            "On the machine with that GPU: pip install 'trtq[tensorrt]'",
        )
    require_local_gpu(target)
    version = installed_version("tensorrt")
    _require_release(target, version, "the module tensorrt")
    return PythonBuilder("tensorrt", version, progress), None


def imagine_builder(spec: BuildSpec, target: Target, *, quantized: bool) -> Builder:
    """Return the builder a dry run speaks of; it need not be here.

    Raises:
        UsageError: trtexec's version is not known.
    """
    name = choose_backend(spec, target, lambda _: True, quantized=quantized)
    if name == "trtexec":
        return TrtexecBuilder("trtexec", target.release or _version_here(target), Silent())
    newest = releases().rtx
    return PythonBuilder(name, newest if name == RTX else target.release or newest, Silent())


def _version_here(target: Target) -> Version:
    try:
        return version_of(probe_number(find_trtexec()))
    except TrtqError as exc:
        last = releases().features["calibration cache"].last
        assert last is not None
        raise UsageError(
            "Cannot tell which trtexec would run",
            f"{target.text} names no TensorRT version and there is no trtexec here",
            f"Write {target.name}@{shown(last)}",
        ) from exc


def _require_release(target: Target, version: Version, what: str) -> None:
    if target.version is not None and target.version != version:
        raise EngineError(
            f"Cannot build for {target.text} here",
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
            "the engine must be built on the target GPU; no CUDA device was found",
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
    opset, newest = opset_of(model), opset_read(version)
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


# Codes of a file, what a target must have for them, and the way out.
NEEDED = {
    "INT8": (
        "INT8",
        "Add --fallback for the FP16 engine of the same model, or build model.fp32.onnx with "
        "--precision fp16",
    ),
    "INT4": ("INT4 weights", "Quantize again with other --bits, or build model.fp32.onnx"),
    "FP8": ("FP8", "Quantize again without FP8, or build for compute capability {}"),
    "NVFP4": ("FP4", "Quantize again without NVFP4, or build for compute capability {}"),
}


def refuse_missing_kernels(model: onnx.ModelProto, target: Target) -> None:
    """Refuse a Q/DQ model for a GPU without the arithmetic of its codes.

    Raises:
        EngineError: names the format and the alternative.
    """
    codes = codes_of(model).split(", ")
    for name, (feature, hint) in NEEDED.items():
        if name in codes:
            target.require(
                feature,
                doing="build",
                called=name,
                hint=hint.format(capabilities_with(feature)),
                error=EngineError,
            )


def refuse_silent_failures(
    model: onnx.ModelProto, pairs: int, backend: str, target: Target, spec: BuildSpec
) -> None:
    """Refuse what TensorRT for RTX would build and not compute as asked.

    Raises:
        EngineError: names what it would do, and the alternative.
    """
    if backend != RTX or not target.facts.rtx:
        return
    if pairs and "INT8" not in target.facts.rtx:
        raise EngineError(
            f"Refusing to build a Q/DQ model for {target.device} with TensorRT-RTX",
            f"its INT8 convolutions for compute capability {target.capability} are computed in "
            "float without a message: the engine would not be an INT8 engine",
            "Build the float model (model.fp32.onnx with --precision fp16), or build with full "
            "TensorRT on that device",
        )
    matmuls = [n.name for n in model.graph.node if n.op_type in FLOAT_MATMULS]
    if spec.precision == "fp32" and "FP32" not in target.facts.rtx and matmuls:
        raise EngineError(
            f"TensorRT-RTX has no FP32 matrix product for {target.device}",
            f"the model has {len(matmuls)} of them, the first is {matmuls[0]}",
            "Add --precision fp16",
        )
