"""Operators that compute each value from the values at its place."""

from __future__ import annotations

from trtq.ops.row import Op, Operand, pointwise

_BINARY = {"write": "elementwise.binary", "read": "elementwise.binary"}

POINTWISE: tuple[Op, ...] = (
    # ---- activations -----------------------------------------------------------------------------
    pointwise("relu", "relu.default", "Relu", traits="activation homogeneous"),
    pointwise(
        "leaky_relu",
        "leaky_relu.default",
        "LeakyRelu",
        traits="activation homogeneous",
        attributes={"alpha": 0.01},
    ),
    pointwise("elu", "elu.default", "Elu", attributes={"alpha": 1.0}),
    pointwise("selu", "selu.default", "Selu", read="elementwise.selu"),
    pointwise("sigmoid", "sigmoid.default", "Sigmoid", traits="activation"),
    pointwise("tanh", "tanh.default", "Tanh"),
    pointwise("silu", "silu.default", traits="activation", write="elementwise.silu"),
    pointwise(
        "gelu",
        "gelu.default",
        "Gelu",
        traits="activation",
        write="elementwise.gelu",
        read="elementwise.gelu",
    ),
    pointwise("mish", "mish.default", "Mish", write="elementwise.mish"),
    pointwise("softplus", "softplus.default", "Softplus", write="elementwise.softplus"),
    pointwise(
        "hardswish",
        "hardswish.default",
        "HardSwish",
        traits="activation",
        write="elementwise.hardswish",
    ),
    pointwise(
        "hardsigmoid",
        "hardsigmoid.default",
        "HardSigmoid",
        traits="activation",
        write="elementwise.hardsigmoid",
        read="elementwise.hard_sigmoid",
    ),
    pointwise("relu6", "relu6.default", traits="activation", write="elementwise.relu6"),
    pointwise("hardtanh", "hardtanh.default", traits="activation", write="elementwise.hardtanh"),
    pointwise(
        "prelu", "prelu.default", "PRelu", write="elementwise.prelu", read="elementwise.prelu"
    ),
    pointwise(
        "clamp",
        "clamp.default clamp_min.default",
        "Clip",
        traits="activation attention",
        write="elementwise.clamp",
        read="elementwise.clip",
    ),
    pointwise("clamp_max", "clamp_max.default", write="elementwise.clamp_max"),
    # ---- functions -------------------------------------------------------------------------------
    pointwise("exp", "exp.default", "Exp"),
    pointwise("log", "log.default", "Log"),
    pointwise("sqrt", "sqrt.default", "Sqrt"),
    pointwise("rsqrt", "rsqrt.default", write="elementwise.rsqrt"),
    pointwise("square", "square.default", write="elementwise.square"),
    pointwise("reciprocal", "reciprocal.default", "Reciprocal"),
    pointwise("abs", "abs.default", "Abs"),
    pointwise("neg", "neg.default", "Neg"),
    pointwise("sign", "sign.default", "Sign"),
    pointwise("erf", "erf.default", "Erf"),
    pointwise("sin", "sin.default", "Sin"),
    pointwise("cos", "cos.default", "Cos"),
    pointwise("floor", "floor.default", "Floor"),
    pointwise("ceil", "ceil.default", "Ceil"),
    pointwise("round", "round.default", "Round"),
    pointwise("logical_not", "logical_not.default", "Not"),
    # ---- arithmetic ------------------------------------------------------------------------------
    pointwise(
        "add",
        "add.Tensor add.Scalar operator.add",
        "Add",
        traits="attention",
        operands=(Operand(-1, "residual"),),
        **_BINARY,
    ),
    pointwise("sub", "sub.Tensor sub.Scalar operator.sub", "Sub", traits="attention", **_BINARY),
    pointwise("rsub", "rsub.Tensor rsub.Scalar", write="elementwise.rsub"),
    pointwise("mul", "mul.Tensor mul.Scalar operator.mul", "Mul", traits="attention", **_BINARY),
    pointwise(
        "div",
        "div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode operator.floordiv",
        "Div",
        traits="attention",
        **{**_BINARY, "read": "elementwise.divide"},
    ),
    pointwise("floor_divide", "floor_divide.default", write="elementwise.floor_divide"),
    pointwise(
        "pow",
        "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar",
        "Pow",
        **{**_BINARY, "read": "elementwise.power"},
    ),
    pointwise("maximum", "maximum.default", "Max", **_BINARY),
    pointwise("minimum", "minimum.default", "Min", **_BINARY),
    pointwise("addcmul", "addcmul.default", write="elementwise.addcmul"),
    # ---- comparison and choice -------------------------------------------------------------------
    pointwise("eq", "eq.Tensor eq.Scalar", "Equal", **_BINARY),
    pointwise("ne", "ne.Tensor ne.Scalar", write="elementwise.not_equal"),
    pointwise("lt", "lt.Tensor lt.Scalar", "Less", **_BINARY),
    pointwise("gt", "gt.Tensor gt.Scalar", "Greater", **_BINARY),
    pointwise("le", "le.Tensor le.Scalar", "LessOrEqual", **_BINARY),
    pointwise("ge", "ge.Tensor ge.Scalar", "GreaterOrEqual", **_BINARY),
    pointwise("logical_and", "logical_and.default", "And", **_BINARY),
    pointwise("logical_or", "logical_or.default", "Or", **_BINARY),
    pointwise(
        "logical_xor",
        "logical_xor.default",
        "Xor",
        write="elementwise.logical",
        read="elementwise.binary",
    ),
    pointwise(
        "bitwise_and",
        "bitwise_and.Tensor __and__.Tensor",
        writes="And",
        write="elementwise.logical",
    ),
    pointwise(
        "bitwise_or", "bitwise_or.Tensor __or__.Tensor", writes="Or", write="elementwise.logical"
    ),
    pointwise(
        "bitwise_xor",
        "bitwise_xor.Tensor __xor__.Tensor",
        writes="Xor",
        write="elementwise.logical",
    ),
    pointwise(
        "where",
        "where.self",
        "Where",
        traits="attention",
        write="elementwise.where",
        read="elementwise.where",
    ),
    pointwise(
        "where_scalar",
        "where.Scalar where.ScalarSelf where.ScalarOther",
        traits="attention",
        write="elementwise.where",
    ),
    pointwise(
        "masked_fill", "masked_fill.Scalar", traits="attention", write="elementwise.masked_fill"
    ),
)
