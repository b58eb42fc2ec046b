"""The ONNX opset of the files that a verb writes, and the reasons against an opset.

Both are known before anything is loaded.
"""

from __future__ import annotations

from trtq.errors import UsageError
from trtq.export.onnx_file import TARGET
from trtq.platform.releases import Runtime
from trtq.platform.target import Target
from trtq.specs import OPSET, FinetuneOptions, QuantizeOptions, QuantizeSpec

INT4_OPSET = 21  # the first with INT4


def target_of(spec: QuantizeOptions | QuantizeSpec | FinetuneOptions) -> Target | None:
    """Return the target that the files are for, None where none is named.

    Raises:
        UsageError: it is unknown.
    """
    return Target.parse(spec.target) if spec.target is not None else None


def target_metadata(target: Target | None) -> dict[str, str]:
    """Return what a file for a target says of it: builds then need no ``--target``."""
    return {TARGET: target.text} if target is not None else {}


def opset_of(spec: QuantizeOptions | QuantizeSpec | FinetuneOptions) -> int:
    """Return the opset of the files: what was asked for, else what the target's TensorRT reads.

    Raises:
        UsageError: the target's TensorRT does not read what was asked for.
    """
    target = target_of(spec)
    if target is None:
        return spec.opset or OPSET
    newest = target.opset
    runtime = Runtime(target.release)
    if spec.weight_storage == "int4" and not runtime.lacks("INT4 weights"):
        newest = INT4_OPSET
    if spec.opset is not None and target.release is not None and spec.opset > newest:
        why = f"{runtime.title} has every op that trtq writes up to opset {newest}"
        raise UsageError(
            f"Cannot write opset {spec.opset} for {target.device}", why, "Leave --opset out"
        )
    return spec.opset or newest


def check_files(spec: QuantizeOptions | QuantizeSpec | FinetuneOptions) -> None:
    """Refuse files that their target cannot compute, or that cannot hold what was asked for.

    Raises:
        UsageError: names what contradicts what.
    """
    target = target_of(spec)
    if target is not None:
        target.require(
            "INT8",
            doing="quantize to",
            hint=f"Leave --target out, and build with trtq build ... --target {spec.target} "
            "--fallback: FP16 of the same model",
        )
    if spec.weight_storage == "int4" and opset_of(spec) < INT4_OPSET:
        why = f"ONNX has INT4 from opset {INT4_OPSET} on, asked for {opset_of(spec)}"
        raise UsageError("Cannot store weights as INT4", why, f"Give --opset {INT4_OPSET}")
