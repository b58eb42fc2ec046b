"""An ONNX file as nvinfer feeds and reads it: one scale for all channels, probabilities out.

nvinfer computes ``scale * (pixel - offset of the channel)``. A standard deviation of each channel
moves into the weights of the first convolution, which is exact but for one rounding of float32.
Behind a quantizer it is not: a pixel at the border of two codes could take the other one. There the
graph normalises the pixels itself, by the operations of the calibration in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq import ops
from trtq.export.onnx_file import check_onnx, copy_model, opset_of, set_metadata_
from trtq.onnx_node import integer, names_of
from trtq.onnx_walk import QDQ, REORDER, Scope, rename_
from trtq.package.preprocessing import FULL, Preprocessing

SOFTMAX_BY_AXIS = 13  # before, Softmax flattens what is behind its axis
MATRIX = 2  # axes of one score a class
PROBABILITIES = ops.onnx_types("softmax", "sigmoid", "hardsigmoid")
# Ops that turn a probability into another one.
PASSES_ON = (*REORDER, *QDQ, *ops.onnx_types("cast", "identity", "resize"))


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Preprocessing of nvinfer, ``scale * (pixel - offset)``.

    Attributes:
        scale: of all channels.
        offsets: of each channel, 0 to 255, in the order of the model's channels; () for none.
    """

    scale: float
    offsets: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Fed:
    """A model as nvinfer feeds it.

    Attributes:
        model: changed where it had to be.
        scaling: of the pixels.
        note: what was changed, "" for nothing.
    """

    model: onnx.ModelProto
    scaling: Scaling
    note: str = ""


def plain_scaling(how: Preprocessing) -> Scaling | None:
    """Return nvinfer's numbers for a preprocessing; None where channels have other scales.

    (pixel / 255 - mean) / std is 1 / (255 std) * (pixel - 255 mean).
    """
    if len(set(how.stds)) > 1:
        return None
    return _scaling(how.means, how.stds[0])


def _scaling(means: tuple[float, ...], std: float) -> Scaling:
    return Scaling(scale=1.0 / (FULL * std), offsets=tuple(FULL * m for m in means))


def with_one_scale(model: onnx.ModelProto, name: str, how: Preprocessing) -> Fed:
    """Return a model whose channels have one scale.

    Where channels are divided by several numbers, the mean of those becomes the scale, and the
    weights of the first convolutions are multiplied by mean / std of their input channel. Where
    that is not exact, the graph normalises the pixels itself and nvinfer feeds 0 to 255.

    Args:
        model: is not changed.
        name: of its image input.
        how: its preprocessing.
    """
    plain = plain_scaling(how)
    if plain is not None:
        return Fed(model=model, scaling=plain)
    shared = float(np.mean(how.stds))
    factors = np.float64(shared) / np.asarray(how.stds, np.float64)
    changed = copy_model(model)
    if _fold_(changed, name, factors):
        _say_(changed, how, how.mean, (shared,))
        note = "the standard deviation of each channel is in the first convolution's weights"
        return Fed(model=changed, scaling=_scaling(how.means, shared), note=note)
    changed = copy_model(model)
    _normalise_(changed, name, how)
    _say_(changed, how, (0.0,), (1.0 / FULL,))
    note = (
        "the graph normalises the pixels itself: its first layer is quantized, or no convolution "
        "that could take the standard deviations"
    )
    return Fed(model=changed, scaling=Scaling(scale=1.0, offsets=()), note=note)


def _say_(
    model: onnx.ModelProto, how: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Store the preprocessing of the changed file: engines built from it have it, too."""
    stored = msgspec.structs.replace(how, mean=mean, std=std)
    set_metadata_(model, {"preprocess": msgspec.to_builtins(stored)})


def _fold_(model: onnx.ModelProto, name: str, factors: np.ndarray) -> bool:
    """Multiply the weights behind an input by a factor for each channel; tell if that is exact.

    It is where float32 convolutions alone read the input, each with stored weights [outputs,
    channels / groups, ...] of its own. Zeros that pad the image remain zeros.

    Args:
        model: changed in place, and only where the result is True.
        name: of the input.
        factors: float64 [channels].
    """
    scope = Scope(model.graph, {o.domain: o.version for o in model.opset_import})
    readers = scope.readers.get(name, [])
    stored = {t.name: t for t in model.graph.initializer}
    given_out = names_of(model.graph.output)
    # A weight that something else reads, or that is computed, is not changed.
    fit = readers and all(
        n.op_type == "Conv"
        and list(n.input).index(name) == 0
        and n.input[1] in stored
        and stored[n.input[1]].data_type == TensorProto.FLOAT
        and len(scope.readers[n.input[1]]) == 1
        and given_out.isdisjoint((name, n.input[1]))
        for n in readers
    )
    if not fit:
        return False
    for node in readers:
        tensor = stored[node.input[1]]
        weight = numpy_helper.to_array(tensor).astype(np.float64)
        groups, own = integer(node, "group", 1), weight.shape[1]
        # Output o is of group o // (outputs / groups), which reads that group's channels.
        group = np.arange(len(weight)) // max(len(weight) // groups, 1)
        channel = group[:, None] * own + np.arange(own)
        scaled = weight * factors[channel].reshape(*channel.shape, *[1] * (weight.ndim - 2))
        tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))
    return True


def _normalise_(model: onnx.ModelProto, name: str, how: Preprocessing) -> None:
    """Put ``(x / 255 - mean) / std`` behind an input, as the calibration computed it.

    Args:
        model: changed in place.
        name: of the input, float32 [N, C, H, W].
        how: its preprocessing.
    """
    taken = names_of(model.graph.initializer) | {o for n in model.graph.node for o in n.output}
    shape = (1, how.channels, 1, 1)
    numbers = {
        "255": np.asarray(FULL, np.float32),
        "mean": np.asarray(how.means, np.float32).reshape(shape),
        "std": np.asarray(how.stds, np.float32).reshape(shape),
    }
    constants = {k: _free(f"{name}_{k}", taken) for k in numbers}
    places = [_free(f"{name}_{k}", taken) for k in ("scaled", "centred", "normalised")]
    rename_(model.graph, name, places[-1])
    chain = [name, *places]
    ops = (("Div", "255"), ("Sub", "mean"), ("Div", "std"))
    nodes = [
        helper.make_node(op, [chain[i], constants[k]], [chain[i + 1]], name=chain[i + 1])
        for i, (op, k) in enumerate(ops)
    ]
    whole = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(whole)
    for key, value in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(value, constants[key]))


def _free(name: str, taken: set[str]) -> str:
    """Return a name that no tensor has."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def with_probabilities(model: onnx.ModelProto, output: str) -> onnx.ModelProto | None:
    """Return a model whose scores of classes are probabilities, by a Softmax over axis 1.

    Up to opset 12 Softmax flattens the axes behind its own: there the classes are moved to the last
    axis and back.

    Args:
        model: is not changed.
        output: name of the scores, float32 [N, classes, ...].

    Returns:
        a copy with the same output, or None where the scores already are probabilities.
    """
    if _is_probability(model.graph, output):
        return None
    changed = copy_model(model)
    taken = {o for n in model.graph.node for o in n.output} | names_of(model.graph.initializer)
    logits = _free(f"{output}_logits", taken)
    for node in changed.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == output:
                    names[i] = logits
    value = next(v for v in model.graph.output if v.name == output)
    rank = len(value.type.tensor_type.shape.dim)
    if rank == MATRIX or opset_of(model) >= SOFTMAX_BY_AXIS:
        nodes = [_step("Softmax", logits, output, axis=1)]
    else:
        behind, before = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
        moved, scores = (_free(f"{output}_{k}", taken) for k in ("moved", "scores"))
        nodes = [
            _step("Transpose", logits, moved, perm=behind),
            _step("Softmax", moved, scores, axis=rank - 1),
            _step("Transpose", scores, output, perm=before),
        ]
    changed.graph.node.extend(nodes)
    return changed


def _step(op: str, source: str, result: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, [source], [result], name=f"{result}_{op.lower()}", **attributes)


def _is_probability(graph: onnx.GraphProto, output: str) -> bool:
    """Whether an output comes from a Softmax or a sigmoid, through nodes that only pass it on."""
    producer = {o: n for n in graph.node for o in n.output}
    node = producer.get(output)
    while node is not None and node.op_type in PASSES_ON:
        node = producer.get(node.input[0])
    return node is None or node.op_type in PROBABILITIES


def to_bytes(model: onnx.ModelProto, name: str) -> bytes:
    """Return a changed model as a file, checked.

    Args:
        model: with all its tensors inside.
        name: of the file, for errors.

    Raises:
        ExportError: the ONNX checker refuses it.
    """
    check_onnx(model, name)
    data: bytes = model.SerializeToString()
    return data
