"""ONNX files: reading, writing, what is in them. Nothing here needs torch: commands that only read files start fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx

from trtq.artifact import decode_json, read_json, sha256_bytes, sha256_file, write_atomic
from trtq.errors import ArtifactError, ExportError, reason
from trtq.export.sound import require_sound

METADATA_PREFIX = "trtq."
QDQ = ("QuantizeLinear", "DequantizeLinear")
Stamp = tuple[int, int, int]
METADATA: dict[str, Any] = {
    "preprocess": dict[str, Any] | None, "model": str | None, "weights": str | None, "precision": str | None,
    "encodings_sha256": str | None, "float_nodes": dict[str, str],
}  # types of what trtq stores in ONNX files  # fmt: skip


def set_metadata_(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Store JSON values under ``trtq.KEY`` in the model's metadata."""
    for key, value in values.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_PREFIX + key, msgspec.json.encode(value).decode()


def get_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what :func:`set_metadata_` stored, an empty dict for a file of other origin.

    Raises:
        ExportError: it is damaged.
    """
    found = {}
    for entry in model.metadata_props:
        if entry.key.startswith(METADATA_PREFIX):
            name = entry.key.removeprefix(METADATA_PREFIX)
            try:
                found[name] = decode_json(entry.value, METADATA.get(name, Any))
            except msgspec.MsgspecError as exc:
                why = f"its metadata {entry.key} is damaged ({reason(exc)})"
                raise ExportError("Cannot use the ONNX file", why, "Export it again") from exc
    return found


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Check ``model`` and write it atomically.

    Raises:
        ExportError: the ONNX checker refuses it.
        ArtifactError: the file cannot be written.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as exc:
        raise ExportError(f"The ONNX for {path.name} is not valid", str(exc).splitlines()[0]) from exc
    return write_atomic(path, lambda tmp: onnx.save(model, tmp))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in ``path``.

    Raises:
        ExportError: missing or not an ONNX file.
    """
    return read_onnx(path)[0]


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file is written anew: inode, size, time."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_onnx(path: Path) -> tuple[onnx.ModelProto, Stamp | None, str]:
    """Return the model in ``path``, the file's stamp where the file is that model as it stands, and the digest of what was read.

    Raises:
        ExportError: missing or not an ONNX file.
    """
    try:
        stamp, data = stamp_of(path), path.read_bytes()
        model = onnx.load_from_string(data)
        outside = _outside(model)
        if outside:
            onnx.load_external_data_for_model(model, str(path.parent))
    except FileNotFoundError as exc:
        raise ExportError(f"Cannot read {path}", "there is no such file") from exc
    except OSError as exc:
        raise ExportError(f"Cannot read {path}", reason(exc)) from exc
    except Exception as exc:  # protobuf's DecodeError is not public; whatever it is, the file is not ONNX
        raise ExportError(f"Cannot read {path}", "it is not an ONNX file, or not a whole one") from exc
    if not model.graph.node:
        raise ExportError(f"Cannot use {path}", "it is not an ONNX model, or one without nodes")
    require_sound(model, str(path))
    changed = _tidy_(model)
    return model, None if changed or outside else stamp, _digest(path, data, outside)


def digest_onnx(path: Path) -> str:
    """Return the SHA-256 of a file, and of the files its tensors lie in where they lie outside."""
    data = path.read_bytes()
    try:
        outside = _outside(onnx.load_from_string(data))
    except Exception:  # no ONNX file: its own bytes are all there is
        outside = []
    return _digest(path, data, outside)


def _outside(model: onnx.ModelProto) -> list[str]:
    return sorted({e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"})


def _digest(path: Path, data: bytes, outside: list[str]) -> str:
    own = sha256_bytes(data)
    return sha256_bytes(" ".join([own, *(sha256_file(path.parent / o) for o in outside)]).encode()) if outside else own


def _tidy_(model: onnx.ModelProto) -> bool:
    """Take constants out of the inputs, where files of IR 3 list them, and name every node; return whether that did anything."""
    changed = False
    constants, taken = {i.name for i in model.graph.initializer}, {n.name for n in model.graph.node}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version, changed = max(model.ir_version, 4), True  # from which on constants need not be inputs
    for i, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name, changed = name, True
            taken.add(name)
    return changed


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of ONNX's own domain, 0 where the file names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def quantized_nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    """Return the nodes of these kinds that read their first two operands from a DequantizeLinear, a cast to FP16 between or not."""
    made: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type == "Cast" and node.input[0] in made):
            made.add(node.output[0])
    return [n for n in model.graph.node if n.op_type in kinds and set(n.input[:2]) <= made]


def count_qdq(model: onnx.ModelProto) -> int:
    """Return the number of QuantizeLinear nodes."""
    return sum(n.op_type == "QuantizeLinear" for n in model.graph.node)


def records_beside(onnx_file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that lie beside an ONNX file, of the verbs that write such files; damaged ones are left out."""
    for name in ("quantize.json", "finetune.json", "import.json"):
        try:
            record = read_json(onnx_file.parent / name)
        except ArtifactError:
            continue
        if isinstance(record.get("files"), dict):
            yield record


def codes_of(model: onnx.ModelProto) -> str:
    """Return what its Q/DQ pairs round to: ``INT8``, ``FP8``, ``INT4`` or several; "" for a float model."""
    names = {onnx.TensorProto.FLOAT8E4M3FN: "FP8", onnx.TensorProto.INT4: "INT4"}
    types = {i.name: i.data_type for i in model.graph.initializer}
    found = set()
    for n in model.graph.node:
        if n.op_type == "DequantizeLinear":
            zero = n.input[2] if len(n.input) > 2 else ""
            found.add(names.get(types.get(zero, types.get(n.input[0], onnx.TensorProto.INT8)), "INT8"))
    return ", ".join(sorted(found))
