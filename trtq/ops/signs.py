"""Sign of the result of an ONNX operator."""

from __future__ import annotations

from trtq.ops import onnx_types

NON_NEGATIVE = (
    "Relu",
    "Sigmoid",
    "HardSigmoid",
    "Softmax",
    "Softplus",
    "Exp",
    "Abs",
    "Sqrt",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
)
OF_ALL = ("Add", "Mul", "Concat", "Max", "Min")  # not negative where no operand is
# Not negative where the first operand is not.
OF_FIRST = (
    *onnx_types(trait="moves"),
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "Identity",
    "Cast",
    "Dropout",
    "Split",
)
