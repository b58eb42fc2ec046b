"""Which nodes must remain in float32 when the rest becomes FP16: measured on images, node by node.

Every node is computed twice on the same float32 tensors: as written, and as it would run with its
operands and result rounded to FP16. A node remains in float32 when a range comes too near to the
end of FP16, or when the rounding alone costs it more than a set SQNR. Such nodes run in float32
on rounded operands and is measured again; where that does not help, the nodes that make its
operands are kept, too, since a difference of large numbers is lost before it is computed; and so
on, until nothing is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq import ops
from trtq.data.metrics import ratio_db
from trtq.errors import ExportError, first_line
from trtq.export.feeds import Given, feed_for
from trtq.export.fp16 import HALF_MAX, elem_types, operand_types
from trtq.export.onnx_file import opset_of, set_metadata_
from trtq.export.ort import input_slots, open_session
from trtq.onnx_constants import constant_of
from trtq.onnx_node import names_of
from trtq.onnx_walk import QDQ
from trtq.typed import present

MIN_SQNR_DB = 30.0
HEADROOM = 4.0  # images that were not seen reach further
SUMS = ("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool")
LAYERS = ("conv", "linear", "matmul")
MAX_ROUNDS = 50
FLOAT_NODES = "float_nodes"  # metadata of an ONNX file: nodes that FP16 would harm, and why
IMAGES = 16  # that files are looked at with when they are written


def find_float_nodes(
    model: onnx.ModelProto, batches: Iterable[Given], *, min_sqnr_db: float = MIN_SQNR_DB
) -> dict[str, str]:
    """Return, by node name, why a node must compute in float32 beside FP16 ones.

    Args:
        model: float32 ONNX, with or without Q/DQ pairs; nodes without a name are never kept.
        batches: of its inputs, as for :func:`trtq.export.feeds.feed_for`.
        min_sqnr_db: least SQNR of a node's result with operands and result in FP16.

    Raises:
        ExportError: ONNX Runtime cannot compute the model.
    """
    samples = list(batches)
    reasons, infinite = constants_beyond_half(model, min_sqnr_db), set[str]()
    for _ in range(MAX_ROUNDS):
        seen, shadow = _measure(model, reasons, infinite, samples)
        more = {n for n, at in seen.items() if math.isinf(at.amax)} - infinite
        infinite |= more
        if more:
            continue  # -inf is a mask and as good in FP16: these are measured again without it
        worse = _judge(seen, shadow, min_sqnr_db)
        if not worse:
            return reasons
        reasons |= worse
    return reasons


def mark_float_nodes_(model: onnx.ModelProto, batches: Iterable[Given]) -> str:
    """Write into a model's metadata which nodes must remain in float32 beside FP16.

    Args:
        model: float32; its metadata gets :data:`FLOAT_NODES`.
        batches: of its inputs, as for :func:`find_float_nodes`.

    Returns:
        A note for the user, "" for none. Where ONNX Runtime cannot compute the model this
        says so, and nothing is written.
    """
    try:
        float_nodes = find_float_nodes(model, batches)
    except ExportError as exc:
        return f"which tensors leave the range of FP16 is not known: {exc}"
    set_metadata_(model, {FLOAT_NODES: float_nodes})
    if not float_nodes:
        return ""
    first, why = next(iter(float_nodes.items()))
    if len(float_nodes) == 1:
        return f"in FP16 engines 1 node remains in FP32, {first}: {why}"
    return f"in FP16 engines {len(float_nodes)} nodes remain in FP32, the first is {first}: {why}"


def constants_beyond_half(
    model: onnx.ModelProto, min_sqnr_db: float = MIN_SQNR_DB
) -> dict[str, str]:
    """Return the nodes that read a float constant unfit for FP16, and why.

    FP16 lacks the constant's range or loses its precision. No images are needed.

    Args:
        model: float32 ONNX; nodes without a name are left out.
        min_sqnr_db: least signal to rounding error of a constant, dB. A constant of 1e-12 becomes 0
            in FP16: 0 dB.

    Returns:
        Reasons by node name.
    """
    unfit = {name: why for name, a in _floats(model) if (why := _unfit(name, a, min_sqnr_db))}
    opset, result = opset_of(model), dict[str, str]()
    for node in model.graph.node:
        reads, _ = operand_types(node, opset)
        read_in_half = (n for n, half in zip(node.input, reads, strict=True) if half)
        why = next((unfit[n] for n in read_in_half if n in unfit), "")
        if why and node.op_type not in QDQ and node.name:
            result[node.name] = why
    return result


def _floats(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the float32 constants of a model with their names."""
    constants = (constant_of(n) for n in model.graph.node if n.op_type == "Constant")
    for tensor in (*model.graph.initializer, *present(constants)):
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor.name, numpy_helper.to_array(tensor)


def _unfit(name: str, array: np.ndarray, min_sqnr_db: float) -> str:
    """Return why FP16 cannot hold a constant, empty where it can.

    Infinite values do not count: FP16 has them.
    """
    finite = array[np.isfinite(array)]
    largest = float(np.abs(finite).max(initial=0.0))
    if largest > HALF_MAX:
        return f"its constant {name} reaches {largest:.3g}, FP16 ends at {HALF_MAX:g}"
    lost = _loss(finite)
    if lost < min_sqnr_db:
        return f"its constant {name} keeps {lost:.1f} dB in FP16 (largest value {largest:.3g})"
    return ""


def _loss(values: np.ndarray) -> float:
    exact = values.astype(np.float64)  # in float32 the square of 1e-24 is 0
    lost = exact - values.astype(np.float16)
    return ratio_db(float(np.sum(exact**2)), float(np.sum(lost**2)))


@dataclass(slots=True)
class _Seen:
    """Sums over all images of one node's results."""

    amax: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    whole: float = 0.0  # largest sum of magnitudes that a reduction adds up

    def add(self, values: Mapping[str, float]) -> None:
        self.amax = max(self.amax, values["amax"])
        self.signal += values["signal"]
        self.noise += values["noise"]
        self.whole = max(
            self.whole, values.get("mean", 0.0) * values.get("many", 1.0) / values.get("few", 1.0)
        )


def _measure(
    model: onnx.ModelProto, keep: Mapping[str, str], infinite: set[str], samples: list[Given]
) -> tuple[dict[str, _Seen], _Shadow]:
    """Return the statistics of every node and the model that they were measured with.

    Values of -inf in ``infinite`` nodes do not count.
    """
    shadow = _Shadow(model, keep, infinite)
    session = open_session(shadow.build(), optimize=False)
    slots, seen = input_slots(session), dict[str, _Seen]()
    for batch in samples:
        feed = feed_for(slots, batch, "model")
        try:
            got = dict(zip(shadow.wanted, session.run(None, feed), strict=True))
        except Exception as exc:  # ONNX Runtime's exceptions share no public base
            raise ExportError(
                "ONNX Runtime cannot compute the model beside its FP16 twin", first_line(exc)
            ) from exc
        for node, parts in shadow.taps.items():
            seen.setdefault(node, _Seen()).add(
                {k: float(np.asarray(got[v]).max()) for k, v in parts.items()}
            )
    return seen, shadow


def _judge(seen: Mapping[str, _Seen], shadow: _Shadow, floor: float) -> dict[str, str]:
    """Return further nodes to keep in float32, and why."""
    keep, reasons = shadow.keep, dict[str, str]()
    for node, at in seen.items():
        sqnr = ratio_db(at.signal, at.noise) if math.isfinite(at.noise) else -math.inf
        for reach, clause in ((at.amax, "its values reach"), (at.whole, "what it adds up reaches")):
            if not reach * HEADROOM <= HALF_MAX and node not in keep and node not in reasons:
                reasons[node] = (
                    f"{clause} {reach:.4g} on the images seen, FP16 ends at {HALF_MAX:g}"
                )
        if sqnr >= floor or not at.signal > 0.0:
            continue
        why = (
            f"FP16 would leave it {sqnr:.1f} dB"
            if math.isfinite(sqnr)
            else "FP16 would make it NaN or infinite"
        )
        if node not in keep:
            reasons.setdefault(node, why)
            continue
        for other in shadow.makers(
            node
        ):  # float32 alone did not help it: its operands were rounded
            if other not in keep:
                reasons.setdefault(
                    other, f"it makes an operand of {node}: {why.replace('it ', 'that ', 1)}"
                )
    return reasons


class _Shadow:
    """A model with every node's FP16 twin beside it, and numbers about the two as outputs."""

    def __init__(self, model: onnx.ModelProto, keep: Mapping[str, str], infinite: set[str]) -> None:
        self.model, self.keep, self.infinite, self.opset = (
            onnx.ModelProto(),
            keep,
            infinite,
            opset_of(model),
        )
        self.model.CopyFrom(model)
        self.types = elem_types(model)
        self.producer = {o: n for n in model.graph.node for o in n.output}
        self.constants = names_of(model.graph.initializer) | {
            n.output[0] for n in model.graph.node if n.op_type == "Constant"
        }
        self.extra: list[onnx.NodeProto] = []
        self.taps: dict[str, dict[str, str]] = {}
        self.made: dict[tuple[str, ...], str] = {}
        self.wanted: list[str] = []
        self.twins = dict[str, str]()  # by the tensor that they are beside

    def build(self) -> onnx.ModelProto:
        """Return the model and set ``taps``: for each node, the outputs that measure it."""
        for node in self.model.graph.node:
            reads, gives = operand_types(node, self.opset)
            if node.name and gives[:1] == [True] and self._is_float(node):
                self._twin(node, reads)
        graph = self.model.graph
        graph.node.extend(self.extra)
        del graph.output[:]
        del graph.value_info[:]
        self.wanted = list(dict.fromkeys(v for parts in self.taps.values() for v in parts.values()))
        graph.output.extend(helper.make_empty_tensor_value_info(n) for n in self.wanted)
        return self.model

    def _is_float(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes a float32 result."""
        computes = node.op_type not in (*QDQ, "Constant")
        return computes and self.types.get(node.output[0]) == TensorProto.FLOAT

    def makers(self, node: str) -> list[str]:
        """Return the nodes whose results a node reads in FP16, Q/DQ left out."""
        reader = next(n for n in self.model.graph.node if n.name == node)
        return [
            p.name
            for i in reader.input
            if (p := self.producer.get(i)) is not None
            and p.op_type not in (*QDQ, "Constant")
            and p.name
            and self.types.get(i) == TensorProto.FLOAT
        ]

    def _in_codes(self, node: onnx.NodeProto) -> bool:
        """Whether an engine multiplies a layer's codes: only its result is ever in FP16."""
        operands = [self.producer.get(n) for n in node.input[:2]]
        return ops.kind(node) in LAYERS and all(
            p is not None and p.op_type in QDQ for p in operands
        )

    def _twin(self, node: onnx.NodeProto, reads: list[bool]) -> None:
        if self._in_codes(node):
            self.twins |= {o: o for o in node.output}
        else:
            self._recompute(node, reads)
        self._tap(node)

    def _recompute(self, node: onnx.NodeProto, reads: list[bool]) -> None:
        """Compute a node a second time, from operands in FP16."""
        kept = node.name in self.keep
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = f"{node.name}/shadow"
        for i, name in enumerate(node.input):
            if name and self.types.get(name) == TensorProto.FLOAT and reads[i]:
                twin.input[i] = self._operand(name, kept)
        for i, name in enumerate(node.output):
            twin.output[i] = f"{name}/shadow" if name else ""
        self.extra.append(twin)
        self.twins |= dict(zip(node.output, twin.output, strict=True))

    def _tap(self, node: onnx.NodeProto) -> None:
        """Measure a node's result against that of its twin."""
        kept, out = node.name in self.keep, node.output[0]
        result = self.twins[out] if kept else self._rounded(self.twins[out])
        exact = out
        if node.name in self.infinite:
            masked = self._op("IsInf", out)
            exact, result = self._without(masked, out), self._without(masked, result)
        self.taps[node.name] = {
            "amax": self._all("ReduceMax", self._op("Abs", exact)),
            "signal": self._all("ReduceSumSquare", exact),
            "noise": self._all("ReduceSumSquare", self._op("Sub", exact, result)),
        }
        if node.op_type in SUMS:
            whole = onnx.NodeProto()
            whole.CopyFrom(node)
            whole.name, whole.input[0], whole.output[0] = (
                f"{node.name}/whole",
                self._op("Abs", node.input[0]),
                f"{out}/whole",
            )
            self.extra.append(whole)
            self.taps[node.name]["mean"] = self._all("ReduceMax", f"{out}/whole")
            if node.op_type != "ReduceSum":
                self.taps[node.name] |= {
                    "many": self._op("Size", node.input[0]),
                    "few": self._op("Size", out),
                }

    def _operand(self, name: str, kept: bool) -> str:
        """Return a node's operand in float32, as a kept node makes it or rounded to FP16."""
        maker = self.producer.get(name)
        if maker is not None and maker.name in self.keep and name in self.twins:
            return self.twins[name] if kept else self._rounded(self.twins[name])
        exact = maker is None or maker.op_type in QDQ or name in self.constants
        return name if exact and kept else self._rounded(name)

    def _rounded(self, name: str) -> str:
        """Return a tensor rounded to FP16 and cast back to float32.

        The ops themselves remain in float32: ONNX Runtime drops casts around FP16 ops.
        """
        return self._op(
            "Cast", self._op("Cast", name, to=TensorProto.FLOAT16), to=TensorProto.FLOAT
        )

    def _without(self, masked: str, name: str) -> str:
        """Return a tensor with 0 where ``masked`` is true."""
        key = ("Where", masked, name)
        if key not in self.made:
            zero = "trtq/zero"
            if zero not in self.constants:
                self.constants.add(zero)
                self.model.graph.initializer.append(
                    numpy_helper.from_array(np.zeros((), dtype=np.float32), zero)
                )
            self.made[key] = f"trtq/measured_{len(self.made)}"
            self.extra.append(helper.make_node("Where", [masked, zero, name], [self.made[key]]))
        return self.made[key]

    def _all(self, kind: str, name: str) -> str:
        return self._op(kind, name, keepdims=0)

    def _op(self, kind: str, name: str, second: str = "", **attributes: Any) -> str:
        key = (kind, name, second, *map(str, attributes.values()))
        if key not in self.made:
            self.made[key] = f"trtq/measured_{len(self.made)}"
            inputs = [name, second] if second else [name]
            self.extra.append(helper.make_node(kind, inputs, [self.made[key]], **attributes))
        return self.made[key]
