"""Operators of ONNX that ATen has under other names, in parts, or as more than one call."""

from __future__ import annotations

from trtq.ops.row import Op, op, pointwise

ONNX: tuple[Op, ...] = (
    # ---- value by value --------------------------------------------------------------------------
    pointwise("tan", "tan.default", "Tan"),
    pointwise("asin", "asin.default", "Asin"),
    pointwise("acos", "acos.default", "Acos"),
    pointwise("atan", "atan.default", "Atan"),
    pointwise("sinh", "sinh.default", "Sinh"),
    pointwise("cosh", "cosh.default", "Cosh"),
    pointwise("asinh", "asinh.default", "Asinh"),
    pointwise("acosh", "acosh.default", "Acosh"),
    pointwise("atanh", "atanh.default", "Atanh"),
    pointwise("celu", "celu.default", "Celu", attributes={"alpha": 1.0}),
    pointwise("is_nan", "isnan.default", "IsNaN"),
    pointwise("is_inf", "isinf.default", "IsInf", read="elementwise.is_inf"),
    pointwise("softsign", "", "Softsign", read="elementwise.softsign"),
    pointwise("swish", "", "Swish", read="elementwise.swish"),
    pointwise("thresholded_relu", "", "ThresholdedRelu", read="elementwise.thresholded_relu"),
    pointwise("shrink", "", "Shrink", read="elementwise.shrink"),
    pointwise("mod", "", "Mod", read="elementwise.modulo"),
    pointwise("sum_of", "", "Sum", read="elementwise.many_sum"),
    pointwise("mean_of", "", "Mean", read="elementwise.many_mean"),
    pointwise("cast_like", "", "CastLike", read="elementwise.cast_like"),
    pointwise("bit_shift", "", "BitShift", read="elementwise.bit_shift"),
    pointwise("bits_and", "", "BitwiseAnd", read="elementwise.bits"),
    pointwise("bits_or", "", "BitwiseOr", read="elementwise.bits"),
    pointwise("bits_xor", "", "BitwiseXor", read="elementwise.bits"),
    pointwise("bits_not", "bitwise_not.default", "BitwiseNot"),
    # ---- norms, reductions and pools -------------------------------------------------------------
    op("hardmax", "", "Hardmax", read="elementwise.hardmax"),
    op("root_mean_square_norm", "", "RMSNormalization", read="norms.rms_norm"),
    op("lp_norm", "", "LpNormalization", read="norms.lp_norm"),
    op("mean_variance_norm", "", "MeanVarianceNormalization", read="norms.mean_variance"),
    op("lrn", "", "LRN", read="norms.lrn"),
    op("prod", "", "ReduceProd", read="reduce.reduction"),
    op("sum_square", "", "ReduceSumSquare", read="reduce.reduction"),
    op("log_sum", "", "ReduceLogSum", read="reduce.reduction"),
    op("cumprod", "", "CumProd", read="reduce.cumulated_product"),
    op("lp_pool", "", "LpPool", read="pools.lp_pool"),
    op("global_lp_pool", "", "GlobalLpPool", read="pools.global_lp"),
    # ---- places and sizes ------------------------------------------------------------------------
    op("upsample", "", "Upsample", kind="resize", read="resample.resize"),
    op("affine_grid", "", "AffineGrid", read="resample.affine_grid"),
    op("roi_align", "torchvision.roi_align.default", "RoiAlign", read="resample.roi_align"),
    op("gather_elements", "", "GatherElements", read="shapes.gather_elements"),
    op("gather_nd", "", "GatherND", read="shapes.gather_nd"),
    op("scatter_elements", "", "ScatterElements Scatter", read="shapes.scatter_elements"),
    op("scatter_nd", "", "ScatterND", read="shapes.scatter_nd"),
    op("size", "", "Size", read="shapes.size"),
    op("constant_of_shape", "", "ConstantOfShape", read="shapes.fill"),
    op(
        "range",
        "arange.default arange.start arange.start_step",
        "Range",
        read="shapes.steps",
        write="fill.arange",
    ),
    op("eye_like", "", "EyeLike", read="shapes.eye_like"),
    op("trilu", "", "Trilu", read="shapes.trilu"),
    op("one_hot", "", "OneHot", read="shapes.one_hot"),
    op("reverse_sequence", "", "ReverseSequence", read="shapes.reverse_sequence"),
    # ---- computed by ONNX Runtime ----------------------------------------------------------------
    op("onnx_node", "trtq.onnx_node.default", write="opaque.node"),
)

# Before opset 13 these take all axes from one on as one.
FLATTEN = ("Softmax", "LogSoftmax", "Hardmax")
# The version in which an op's new attributes changed what it computes without them, or are needed.
CHANGED = {"GroupNormalization": 21, "Resize": 11, "RoiAlign": 16, "Split": 18}
