"""Inputs of TensorRT's ONNX parser: an allow-list of ops, plugins and tensor types.

Releases are in the catalogue (``trtq/platform/releases.toml``); here is what is the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

from trtq.platform.releases import Span, releases

OWN = ("", "ai.onnx")  # ONNX's own domain, which the parser reads
_SECOND = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare Squeeze Unsqueeze Reshape Pad Tile Expand TopK CumSum OneHot Split"
)
# Operands that must be known when the engine is built, or follow from shapes: positions by op.
BUILD_TIME: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(_SECOND.split(), (1,)),
    "Slice": (1, 2, 3, 4),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "ConstantOfShape": (0,),
    "Dropout": (2,),
    "NonMaxSuppression": (2,),
    "BlackmanWindow": (0,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "STFT": (1, 2),
}
SIZES = ("Shape", "Size")  # ops that read no values
# Ops that may read a UINT8 input.
BYTES = frozenset(("Cast", "CastLike", "Identity", "Equal", "QuantizeLinear", "DequantizeLinear"))
# Types that exist between QuantizeLinear and DequantizeLinear alone.
QUANTIZED = frozenset(
    (TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E8M0)
)


def span_of(op_type: str) -> Span | None:
    """Return the releases whose parser reads an op of ONNX's own or of TensorRT's."""
    return releases().custom.get(op_type) or releases().ops.get(op_type)


def span_of_type(code: int) -> Span | None:
    """Return the releases that have tensors of a type, a number of ``TensorProto.DataType``.

    None: no release has them.
    """
    return releases().types.get(TensorProto.DataType.Name(code))


def is_plugin(op_type: str, domain: str) -> bool:
    """Whether the parser looks for a plugin of this name.

    Args:
        op_type: of the node.
        domain: one that only plugins have decides; in ONNX's own domain the name does: a plugin of
            TensorRT's library, or an unknown op that ends in ``_TRT``, ``Plugin`` or
            ``PluginDynamic``.
    """
    known = releases()
    if domain in OWN:
        return op_type in known.plugins or (
            op_type not in known.ops and op_type.endswith(("_TRT", "Plugin", "PluginDynamic"))
        )
    return domain in known.plugin_domains and op_type not in known.custom
