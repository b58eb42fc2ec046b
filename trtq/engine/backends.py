"""Which builder makes the engine, and what each would do silently wrong."""

from __future__ import annotations

import importlib.util

import onnx

from trtq.engine.targets import NO_INT8, RTX_AHEAD_OF_TIME, Target
from trtq.errors import EngineError, MissingExtraError
from trtq.recipe import BuildSpec

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
FIRST_FP8 = 89
FLOAT_MATMULS = ("MatMul", "Gemm")


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported; a folder of type stubs does not count."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def choose_backend(spec: BuildSpec, target: Target, *, quantized: bool) -> str:
    """Return the backend to use; ``auto`` prefers the one that needs no GPU.

    Raises:
        EngineError: the backend does not cover the target, or this machine's GPU is another.
        MissingExtraError: it is not installed.
    """
    rtx, full = is_installed("tensorrt_rtx"), is_installed("tensorrt")
    wanted: str = spec.backend
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
    if wanted == "tensorrt":
        if not full:
            raise MissingExtraError(
                f"Building for {target.device} (sm{target.sm}) needs full TensorRT, which is not installed here",
                "TensorRT-RTX builds ahead of time only for " + ", ".join(f"sm{s}" for s in RTX_AHEAD_OF_TIME),
                "On the machine with that GPU: pip install 'trtq[tensorrt]'",
            )
        require_local_gpu(target)
    return wanted


def require_local_gpu(target: Target) -> None:
    """Full TensorRT builds for the GPU it runs on: that must be the target.

    Raises:
        EngineError: there is no GPU, or it is another.
    """
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            f"Cannot build for {target.device} here", "full TensorRT builds on the GPU it builds for, and there is none",
            "Run this on that device, or use --backend tensorrt-rtx for a target it covers",
        )  # fmt: skip
    major, minor = torch.cuda.get_device_capability()
    if major * 10 + minor != target.sm:
        raise EngineError(
            f"This machine's GPU is not {target.device}",
            f"full TensorRT builds for the GPU it runs on, compute capability {major}.{minor}; the target has {target.capability}",
            f"Build on that device, or say what this is: --target sm{major}{minor}",
        )


def refuse_missing_kernels(model: onnx.ModelProto, target: Target, pairs: int) -> None:
    """Raise where a Q/DQ model meets a GPU without INT8 or without FP8 arithmetic."""
    if pairs and target.sm in NO_INT8:
        raise EngineError(
            f"Cannot build a Q/DQ model for {target.device}", f"compute capability {target.capability} has no INT8 arithmetic",
            "Add --fallback for the FP16 engine of the same model, or build model.fp32.onnx with --precision fp16",
        )  # fmt: skip
    if target.sm < FIRST_FP8 and any(t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in model.graph.initializer):
        raise EngineError(
            f"Cannot build an FP8 model for {target.device}", f"compute capability {target.capability} has no FP8 arithmetic",
            f"Allocate again without fp8, or build for compute capability {FIRST_FP8 // 10}.{FIRST_FP8 % 10} and later",
        )  # fmt: skip


def refuse_silent_failures(model: onnx.ModelProto, pairs: int, backend: str, target: Target, spec: BuildSpec) -> None:
    """Raise where the builder would succeed and the engine not be what it is called."""
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
