"""Floats of other widths become FLOAT, in which models are read and calibrated.

DOUBLE does everywhere: TensorRT has none. FP16 and BF16 do inside nodes: constants and inputs of
the graph keep their type until they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trtq.onnx_node import label_of
from trtq.onnx_walk import branches
from trtq.reader.call import OWN
from trtq.reader.values import HALVES, Array

DOUBLE, FLOAT = TensorProto.DOUBLE, TensorProto.FLOAT
NAMES_A_TYPE = ("to", "dtype", "output_datatype", "stash_type", "output_dtype")
LIMITS = np.finfo(np.float32)


def singles_(graph: onnx.GraphProto, constants: dict[str, Array]) -> str:
    """Make what is DOUBLE in a graph FLOAT; return what a user must know, "" for nothing.

    Args:
        graph: inputs, outputs, nodes and what nodes hold.
        constants: that nodes read, by name.
    """
    wide = [n for n, v in constants.items() if v.dtype == np.float64]
    for name in wide:
        constants[name] = single(constants[name])
    changed = [n for n in _nodes(graph) if _hold_singles_(n, (DOUBLE,))]
    ports = {v.name for g in _graphs(graph) for v in _values(g) if _was_(v, (DOUBLE,))}
    ends = [v.name for v in (*graph.input, *graph.output) if v.name in ports]
    where = ", ".join(ends or [label_of(n) for n in changed[:1]] or wide[:1])
    if not where:
        return ""
    return (
        f"the file has tensors of the type DOUBLE, which TensorRT does not compute in: they become "
        f"FLOAT ({where})"
    )


def single(values: Array) -> Array:
    """Return float64 values as float32; finite ones remain finite.

    Args:
        values: any shape; beyond the range of float32 they become its largest number.
    """
    inside = np.clip(values, LIMITS.min, LIMITS.max)
    return np.where(np.isinf(values), values, inside).astype(np.float32)


def widen_halves_(graph: onnx.GraphProto) -> None:
    """Make FP16 and BF16 FLOAT in what nodes hold: types they name, tensors, and their branches.

    A node in the middle then gets operands of one type in every runtime.
    """
    for node in graph.node:
        if node.domain in OWN:
            _hold_singles_(node, HALVES)
        for branch in branches(node):
            widen_halves_(branch)
            for value in _values(branch):
                _was_(value, HALVES)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the branches in it."""
    yield graph
    for node in graph.node:
        for branch in branches(node):
            yield from _graphs(branch)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)


def _hold_singles_(node: onnx.NodeProto, kinds: Collection[int]) -> bool:
    """Make types and tensors of some kinds that a node itself has FLOAT; whether it had any."""
    has_kind = False
    for attribute in node.attribute:
        if attribute.name in NAMES_A_TYPE and attribute.i in kinds:
            attribute.i, has_kind = FLOAT, True
        tensors = (attribute.t, *attribute.tensors, *attribute.g.initializer)
        for tensor in tensors:
            if tensor.data_type in kinds:
                values = single(numpy_helper.to_array(tensor).astype(np.float64))
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                has_kind = True
    return has_kind


def _was_(value: onnx.ValueInfoProto, kinds: Collection[int]) -> bool:
    """Whether a value was of some kinds of floats; it is FLOAT now."""
    kind = value.type.tensor_type
    if kind.elem_type not in kinds:
        return False
    kind.elem_type = FLOAT
    return True
