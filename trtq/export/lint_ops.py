"""What the ONNX parser of each TensorRT release reads.

This is an allow-list of ops, plugins and tensor types.

Sources: the importers and docs/operators.md of the release branches 8.0 to 10.1 of onnx-tensorrt,
docs/operators.md of 10.15, the changelogs of 10.2 to 11.1, and the parser of TensorRT for RTX
1.7.1, which was queried for every op of ONNX 1.23.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

Version = tuple[int, int]

OWN = ("", "ai.onnx")  # ONNX's own domain, which the parser reads
# Domains whose nodes the parser takes for its own custom ops or for plugins.
PLUGIN_DOMAINS = (
    "trt",
    "TRT",
    "trt.plugins",
    "tensorrt",
    "tensorrt.plugins",
    "nvinfer",
    "TRT_plugins",
    "trt_plugins",
)

_FIRST: Mapping[Version, str] = {
    (8, 0): (
        "\n        Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool "
        "BatchNormalization Cast Ceil"
        "\n        Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum "
        "DepthToSpace"
        "\n        DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU "
        "Gather"
        "\n        GatherElements Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater "
        "GreaterOrEqual HardSigmoid"
        "\n        Identity If ImageScaler InstanceNormalization LRN LSTM LeakyRelu Less "
        "LessOrEqual Log LogSoftmax"
        "\n        Loop LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg "
        "NonMaxSuppression Not Or PRelu Pad"
        "\n        ParametricSoftplus Pow QuantizeLinear RNN RandomUniform RandomUniformLike Range "
        "Reciprocal ReduceL1"
        "\n        ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum"
        "\n        ReduceSumSquare Relu Reshape Resize ReverseSequence ScaledTanh Scan Selu Shape "
        "Sigmoid Sin Sinh"
        "\n        Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum "
        "Tan Tanh"
        "\n        ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where"
    ),
    (8, 2): "Einsum GatherND IsNaN Round Scatter ScatterElements ScatterND Sign",
    (8, 4): "HardSwish Shrink Xor",
    (
        8,
        5,
    ): "GridSample MeanVarianceNormalization Mod NonZero OneHot RandomNormal RandomNormalLike "
    "RoiAlign Trilu",
    (8, 6): "GroupNormalization IsInf LayerNormalization",
    (9, 1): "CastLike",
    (9, 2): "Hardmax",
    (10, 0): "Gelu Mish",
    (10, 1): "DeformConv",
    (10, 4): "BlackmanWindow HammingWindow HannWindow",
    (10, 5): "STFT",
    (10, 14): "Attention",
    (10, 15): "RMSNormalization RotaryEmbedding TensorScatter",
    (11, 0): "Swish",
}
# Op of ONNX's own domain: the first release whose parser reads it. Every other op is refused.
FIRST_RELEASE: Mapping[str, Version] = {
    op: release for release, ops in _FIRST.items() for op in ops.split()
}
# TensorRT for RTX has the parser of 11 and no library of plugins: its parser computes the first
# three with plugins, and its builder has no kernel for the last.
NOT_IN_RTX = frozenset(("DeformConv", "NonZero", "RoiAlign", "NonMaxSuppression"))
_SECOND = (
    "\n    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum"
    "\n    ReduceSumSquare Squeeze Unsqueeze Reshape Pad Tile Expand TopK CumSum OneHot Split"
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
# Ops that may read a UINT8 input.
BYTES = frozenset(("Cast", "CastLike", "Identity", "Equal", "QuantizeLinear", "DequantizeLinear"))
# The parser of TensorRT for RTX reads these, and its builder has been seen to take them.
ONLY_IN_RTX = frozenset(("CausalConvWithState", "LinearAttention", "SimplifiedLayerNormalization"))

# The parser's own custom ops, in a domain of PLUGIN_DOMAINS or in none.
CUSTOM: Mapping[str, Version] = {
    "TRT_FP8QuantizeLinear": (8, 6),
    "TRT_FP8DequantizeLinear": (8, 6),
    "TRT_INT4QuantizeLinear": (10, 0),
    "TRT_INT4DequantizeLinear": (10, 0),
    "TRT_FP4DynamicQuantize": (10, 8),
    "TRT_MXFP8DynamicQuantize": (10, 12),
    "TRT_MXFP8DequantizeLinear": (10, 12),
    "TRT_Attention": (11, 0),
    "TRT_MoE": (11, 0),
    "TRT_KVCacheUpdate": (11, 0),
}
_PLUGINS = (
    "\n    BatchTilePlugin_TRT BatchedNMS_TRT BatchedNMSDynamic_TRT Clip_TRT CoordConvAC "
    "CropAndResize"
    "\n    CropAndResizeDynamic CustomEmbLayerNormPluginDynamic CustomFCPluginDynamic "
    "CustomGeluPluginDynamic"
    "\n    CustomQKVToContextPluginDynamic CustomSkipLayerNormPluginDynamic DecodeBbox3DPlugin "
    "DetectionLayer_TRT"
    "\n    DisentangledAttention_TRT EfficientNMS_TRT EfficientNMS_ONNX_TRT "
    "EfficientNMS_Explicit_TF_TRT"
    "\n    EfficientNMS_Implicit_TF_TRT FlattenConcat_TRT GenerateDetection_TRT GridAnchor_TRT "
    "GridAnchorRect_TRT"
    "\n    GroupNormalizationPlugin InstanceNormalization_TRT LReLU_TRT ModulatedDeformConv2d"
    "\n    MultilevelCropAndResize_TRT MultilevelProposeROI_TRT MultiscaleDeformableAttnPlugin_TRT "
    "NMS_TRT"
    "\n    NMSDynamic_TRT Normalize_TRT PillarScatterPlugin PriorBox_TRT Proposal ProposalDynamic"
    "\n    ProposalLayer_TRT PyramidROIAlign_TRT ROIAlign_TRT RPROI_TRT Region_TRT Reorg_TRT "
    "ResizeNearest_TRT"
    "\n    SpecialSlice_TRT TopkLastDim VoxelGeneratorPlugin"
)
# Plugins of NVIDIA's own library (libnvinfer_plugin, plugin/README.md of 8.5 to 11.1), which
# trtexec loads.
PLUGINS = frozenset(_PLUGINS.split())

# First release with tensors of a type. Types that are not here are in no release.
TYPES: Mapping[int, Version] = {
    TensorProto.FLOAT: (8, 0),
    TensorProto.FLOAT16: (8, 0),
    TensorProto.INT8: (8, 0),
    TensorProto.INT32: (8, 0),
    TensorProto.INT64: (8, 0),
    TensorProto.BOOL: (8, 0),
    TensorProto.UINT8: (8, 5),
    TensorProto.BFLOAT16: (9, 0),
    TensorProto.FLOAT8E4M3FN: (9, 0),
    TensorProto.INT4: (10, 0),
    TensorProto.FLOAT4E2M1: (10, 8),
    TensorProto.FLOAT8E8M0: (10, 12),
}
# Types that exist between QuantizeLinear and DequantizeLinear alone.
QUANTIZED = frozenset(
    (TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E8M0)
)
LOCAL_FUNCTIONS: Version = (9, 0)


def is_plugin(op_type: str, domain: str) -> bool:
    """Whether the parser looks for a plugin of this name.

    The domain decides, or the name for a node in ONNX's own domain.
    """
    if domain in OWN:
        return op_type in PLUGINS or (
            op_type not in FIRST_RELEASE and op_type.endswith(("_TRT", "Plugin", "PluginDynamic"))
        )
    return domain in PLUGIN_DOMAINS and op_type not in CUSTOM
