"""The ONNX opset of the files that a verb writes, and the reasons against an opset.

Both are known before anything is loaded.
"""

from __future__ import annotations

from trtq.engine.targets import parse_target
from trtq.engine.versions import offers, shown
from trtq.errors import UsageError
from trtq.specs import OPSET, FinetuneSpec, QuantizeOptions, QuantizeSpec

INT4_OPSET = 21  # the first with INT4


def opset_of(spec: QuantizeOptions | QuantizeSpec | FinetuneSpec) -> int:
    """Return the opset of the files: what was asked for, else what the target's TensorRT reads.

    Raises:
        UsageError: the target's TensorRT does not read what was asked for.
    """
    if spec.target is None:
        return spec.opset or OPSET
    target = parse_target(spec.target)
    newest = target.opset
    if spec.weight_storage == "int4" and (
        target.release is None or offers("INT4 weights", target.release)
    ):
        newest = INT4_OPSET
    if spec.opset is not None and target.release is not None and spec.opset > newest:
        why = f"TensorRT {shown(target.release)} has every op that trtq writes up to opset {newest}"
        raise UsageError(
            f"Cannot write opset {spec.opset} for {target.device}", why, "Leave --opset out"
        )
    return spec.opset or newest


def check_files(spec: QuantizeOptions | QuantizeSpec | FinetuneSpec) -> None:
    """Refuse files that their target cannot compute, or that cannot hold what was asked for.

    Raises:
        UsageError: names what contradicts what.
    """
    target = parse_target(spec.target) if spec.target is not None else None
    if target is not None and "INT8" not in target.arithmetic:
        raise UsageError(
            f"Cannot quantize for {target.device}",
            f"compute capability {target.capability} has no INT8 arithmetic",
            f"Leave --target out, and build with trtq build ... --target {spec.target} "
            "--fallback: FP16 of the same model",
        )
    if spec.weight_storage == "int4" and opset_of(spec) < INT4_OPSET:
        why = f"ONNX has INT4 from opset {INT4_OPSET} on, asked for {opset_of(spec)}"
        raise UsageError("Cannot store weights as INT4", why, f"Give --opset {INT4_OPSET}")
