"""What stands in the files that trtq writes, as plain values for a golden file.

Files are read with the libraries of their formats, never with trtq's own readers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from safetensors import safe_open

from tests.golden.compare import DIGEST

DIGITS = 9  # of a number: every float32 has its own
HEX = re.compile(r"[0-9a-f]{12,64}")
LONG_HEX = re.compile(r"\b[0-9a-f]{32,64}\b")
SIZE = re.compile(r"[\d.]+ (bytes|[kMG]B)$")
# What depends on the machine and the clock.
DROPPED = frozenset({"seconds", "environment", "threads", "images_per_s", "encodings_sha256"})
PAIRS = ("QuantizeLinear", "DequantizeLinear")
FEW_VALUES = 16


class Reader:
    """Turns artefacts into plain values.

    Args:
        folders: names by folder: paths of this run become the same in every run.
    """

    def __init__(self, folders: Mapping[Path, str]) -> None:
        longest = sorted(folders.items(), key=lambda f: -len(str(f[0])))
        self.folders = [(str(folder), name) for folder, name in longest]

    def text(self, text: str) -> str:
        """Return a text without what this run alone has in it."""
        for folder, name in self.folders:
            text = text.replace(folder, name)
        return f"{DIGEST}{text[:12]}" if HEX.fullmatch(text) else LONG_HEX.sub("HASH", text)

    def lines(self, text: str) -> list[str]:
        """Return what a command printed; sizes of files are left out."""
        return [SIZE.sub("SIZE", self.text(line)).rstrip() for line in text.splitlines()]

    def plain(self, value: Any) -> Any:
        """Return a record without what depends on the machine; digests are shortened."""
        if isinstance(value, dict):
            return {self.text(k): self._field(k, v) for k, v in value.items() if k not in DROPPED}
        if isinstance(value, list):
            return [self.plain(v) for v in value]
        if isinstance(value, str):
            return self.text(value)
        return number(value) if isinstance(value, float) else value

    def record(self, path: Path) -> Any:
        """Return a JSON record."""
        return self.plain(json.loads(path.read_text(encoding="utf-8")))

    def _field(self, key: str, value: Any) -> Any:
        if key == "files" and isinstance(value, dict):
            return {self.text(n): self._bytes(n, v) for n, v in sorted(value.items())}
        if key == "quantizers" and _named(value):
            return {"fields": sorted(value[0]), **{q["name"]: self._quantizer(q) for q in value}}
        if key == "left_in_float" and _named(value):
            return {f["name"]: self.plain(_without(f, "name", "layer", "role")) for f in value}
        if key in ("layers", "rows", "kernels") and _named(value):
            return {entry["name"]: self.plain(_without(entry, "name")) for entry in value}
        return self.plain(value)

    def _bytes(self, name: str, file: dict[str, Any]) -> str:
        """Return the digest of a file; that of safetensors has its header in any order."""
        return "" if name.endswith(".safetensors") else self.text(file["sha256"])

    def _quantizer(self, q: dict[str, Any]) -> dict[str, Any]:
        """Return a row of quantize.json, its words as one text."""
        words = ("layer", "role", "format", "granularity", "channels", "runs", "extra_ops")
        counts = np.array([q["histogram_limit"], *q["histogram"]]).tobytes()
        return {
            "is": " ".join(str(q[w]) for w in (*words, "computes_in")),
            "amax": [number(q["amax_min"]), number(q["amax"])],
            "range": [number(q["low"]), number(q["high"])],
            "sqnr_db": q["sqnr_db"],
            "saturated": number(q["saturated"]),
            "histogram": digest(counts),
        }

    def encodings(self, path: Path) -> dict[str, Any]:
        """Return formats and origin of a file of encodings, and digests of its numbers."""
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        formats: dict[str, list[str]] = {}
        for name, words in sorted(header["formats"].items()):
            formats.setdefault(_words(words), []).append(name)
        ranges = [t.reshape(-1) for n, t in tensors.items() if n in header["formats"]]
        return {
            "digest": digest(b"".join(n.encode() + t.tobytes() for n, t in tensors.items())),
            "origin": self.plain(header["origin"]),
            "left_in_float": list_digest(f"{k}: {v}" for k, v in header["left_in_float"].items()),
            "formats": formats,
            "amax": summary(np.concatenate(ranges)) if ranges else [],
            "others": {n: summary(t) for n, t in tensors.items() if n not in header["formats"]},
        }

    def onnx(self, path: Path) -> dict[str, Any]:
        """Return everything in an ONNX file: nodes one a line, scales and constants in numbers."""
        model = onnx.load(path)
        constants = {i.name: i for i in model.graph.initializer}
        return {
            **self._head(model),
            "nodes": lines(model.graph.node),
            "scales": scales(model, constants),
            "constants": _constants(model, constants),
        }

    def onnx_in_short(self, path: Path) -> dict[str, Any]:
        """Return how many nodes of a kind an ONNX file has, and digests of nodes and numbers."""
        model = onnx.load(path)
        weights = [numpy_helper.to_array(i).tobytes() for i in model.graph.initializer]
        types = Counter(TensorProto.DataType.Name(i.data_type) for i in model.graph.initializer)
        return {
            **self._head(model),
            "ops": dict(sorted(Counter(n.op_type for n in model.graph.node).items())),
            "nodes": list_digest(lines(model.graph.node)),
            "constants": list_digest(f"{i.name} {shape(i.dims)}" for i in model.graph.initializer),
            "types": dict(sorted(types.items())),
            "numbers": digest(b"".join(weights)),
        }

    def _head(self, model: onnx.ModelProto) -> dict[str, Any]:
        return {
            "ir_version": model.ir_version,
            "opsets": {o.domain: o.version for o in model.opset_import},
            "inputs": [_value(v) for v in model.graph.input],
            "outputs": [_value(v) for v in model.graph.output],
            "metadata": {
                p.key: self._stored(p.value)
                for p in model.metadata_props
                if p.key.rpartition(".")[2] not in DROPPED
            },
        }

    def _stored(self, text: str) -> Any:
        try:
            return self.plain(json.loads(text))
        except json.JSONDecodeError:
            return self.text(text)


def digest(data: bytes) -> str:
    """Return a short digest of bytes, which counts only where everything must be exact."""
    return f"{DIGEST}{hashlib.sha256(data).hexdigest()[:12]}"


def list_digest(lines: Any) -> str:
    """Return how many lines there are and a digest of them, which always counts."""
    texts = list(lines)
    return f"{len(texts)}, {hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:12]}"


def number(value: float) -> float | str:
    """Return a number with as many digits as float32 needs; a text where JSON has none for it."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)


def shape(dims: Any) -> str:
    """Return a shape such as 16x3x3x3."""
    return "x".join(map(str, dims)) or "scalar"


def summary(values: np.ndarray) -> Any:
    """Return a number, or of many: shape, lowest, highest, root mean square, digest."""
    if values.size == 1 and values.ndim <= 1:
        return number(float(values.reshape(-1)[0]))
    if not values.size:
        return [shape(values.shape)]
    wide = values.astype(np.float64)
    numbers = (float(wide.min()), float(wide.max()), float(np.sqrt(np.mean(np.square(wide)))))
    data = np.ascontiguousarray(values).tobytes()
    return [shape(values.shape), *map(number, numbers), digest(data)]


def lines(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return a line for each node, ``op name (inputs) -> outputs {attributes}``.

    What follows from a node's name is left out: a node called NAME/OP is written NAME, an output
    called NAME/OP.out not at all, and two nodes that make a Q/DQ pair are one line.
    """
    written, rest = list[str](), list(nodes)
    while rest:
        node = rest.pop(0)
        text = _line(node)
        if rest and text.startswith("QuantizeLinear "):
            other = _line(rest[0]).replace("DequantizeLinear ", "QuantizeLinear ", 1)
            if other == text.replace(f"({node.input[0]}, ", f"({node.output[0]}, ", 1):
                rest.pop(0)
                text = text.replace("QuantizeLinear ", "Q/DQ ", 1)
        written.append(text)
    return written


def _line(node: onnx.NodeProto) -> str:
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    given = sorted(node.attribute, key=lambda a: a.name)
    attributes = ", ".join(f"{a.name}={_attribute(a)}" for a in given)
    name = node.name.removesuffix(f"/{node.op_type}")
    text = f"{kind} {name} ({', '.join(node.input)})"
    if list(node.output) != [f"{name}/{node.op_type}.out"]:
        text = f"{text} -> {', '.join(node.output)}"
    return f"{text} {{{attributes}}}" if attributes else text


def scales(model: onnx.ModelProto, constants: Mapping[str, TensorProto]) -> dict[str, Any]:
    """Return the scale of every Q/DQ node by its tensor; zero points only where one is not 0."""
    found: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type not in PAIRS or node.input[1] not in constants:
            continue
        found[node.input[1]] = summary(_array(constants[node.input[1]]))
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and _array(zero).astype(np.float32).any():
            found[node.input[2]] = summary(_array(zero))
    return found


def _constants(model: onnx.ModelProto, constants: Mapping[str, TensorProto]) -> dict[str, Any]:
    in_pairs = {i for n in model.graph.node if n.op_type in PAIRS for i in n.input[1:]}
    found: dict[str, Any] = {}
    for name, tensor in constants.items():
        if name in in_pairs:
            continue
        values = _array(tensor)
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        few = values.size <= FEW_VALUES and values.dtype.kind in "iub"
        found[name] = [kind, *(values.reshape(-1).tolist() if few else _weight(values))]
    return found


def _weight(values: np.ndarray) -> list[Any]:
    """Return a number, or of many: shape, root mean square, digest."""
    found = summary(values)
    return [found] if not isinstance(found, list) else [found[0], *found[3:]]


def _array(tensor: TensorProto) -> np.ndarray:
    return np.asarray(numpy_helper.to_array(tensor))


def _value(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = [d.dim_param or str(d.dim_value) for d in kind.shape.dim]
    return f"{value.name} {TensorProto.DataType.Name(kind.elem_type).lower()} {shape(dims)}"


def _attribute(attribute: AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        array = _array(value)
        return f"{array.dtype}{array.tolist()}" if array.size <= FEW_VALUES else shape(array.shape)
    if isinstance(value, onnx.GraphProto):
        return f"graph({list_digest(lines(value.node))})"
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        return f"{value:.6g}"
    values = list(value) if not isinstance(value, int) else value
    if isinstance(values, list) and any(isinstance(v, bytes) for v in values):
        values = [v.decode() for v in values]
    return str(values).replace(" ", "")


def _named(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, dict) and "name" in v for v in value)
        and len({v["name"] for v in value}) == len(value)
    )


def _without(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in names}


def _words(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in fields.items())
