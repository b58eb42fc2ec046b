"""Reading, writing and inspection of ONNX files.

Nothing here needs torch: commands that only read files start fast.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import onnx
import onnx.inliner

from trtq.artifact import (
    Stamp,
    decode_json,
    read_record,
    sha256_bytes,
    sha256_file,
    stamp_of,
    write_atomic,
)
from trtq.errors import ArtifactError, ExportError, first_line, reason
from trtq.export.lint_ops import is_plugin
from trtq.export.sound import LARGEST_PROTOBUF, require_one_file, require_sound
from trtq.export.tail import with_tail
from trtq.files import FINETUNE_JSON, IMPORT_JSON, QUANTIZE_JSON
from trtq.magic import HEAD, content_of
from trtq.onnx_node import names_of
from trtq.onnx_walk import all_nodes, all_tensors, bytes_of, declare_domains_
from trtq.platform.target import Target

T = TypeVar("T")
METADATA_PREFIX = "trtq."
TARGET = "target"  # the metadata that says which device a file is for
PLUGIN_DOMAIN = "trt.plugins"
_MENDS = {
    "ort": "Give the .onnx file it was made from",
    "engine": "Give the ONNX file it was built from",
    "tflite": "Convert it: python -m tf2onnx.convert --tflite FILE --output MODEL.onnx",
}  # for files of other kinds, by kind
LONGEST_NOTE = 100_000  # characters of metadata that is kept
METADATA: dict[str, Any] = {
    "preprocess": dict[str, Any] | None,
    "model": str | None,
    "weights": str | None,
    "precision": str | None,
    "encodings_sha256": str | None,
    "float_nodes": dict[str, str],
    "kept_float": dict[str, str],
    "answer": str | None,
    "task": str | None,
    "classes": list[str] | None,
    TARGET: str | None,
}  # types of what trtq stores in ONNX files


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that can be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def set_metadata_(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Store JSON values under ``trtq.KEY`` in the model's metadata, in place of older ones."""
    new = {f"{METADATA_PREFIX}{key}": msgspec.json.encode(v).decode() for key, v in values.items()}
    for entry in [e for e in model.metadata_props if e.key in new]:
        model.metadata_props.remove(entry)
    for key, value in new.items():
        model.metadata_props.add(key=key, value=value)


def target_metadata(target: Target | None) -> dict[str, str]:
    """Return what a file for a target says of it: builds then need no ``--target``."""
    return {TARGET: target.text} if target is not None else {}


def get_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what :func:`set_metadata_` stored, an empty dict for a file of other origin.

    Keys have no ``trtq.`` in front; those of :data:`METADATA` have the types given there.

    Raises:
        ExportError: it is damaged.
    """
    metadata = {}
    for entry in model.metadata_props:
        if entry.key.startswith(METADATA_PREFIX):
            name = entry.key.removeprefix(METADATA_PREFIX)
            try:
                metadata[name] = decode_json(entry.value, METADATA.get(name, Any))
            except msgspec.MsgspecError as exc:
                why = f"its metadata {entry.key} is damaged ({reason(exc)})"
                raise ExportError("Cannot use the ONNX file", why, "Export it again") from exc
    return metadata


def made_with(model: onnx.ModelProto) -> dict[str, str]:
    """Return what the maker of a file wrote into its metadata, by key.

    Keys of trtq and texts of more than :data:`LONGEST_NOTE` characters are left out.
    """
    own = (e for e in model.metadata_props if not e.key.startswith(METADATA_PREFIX))
    return {e.key: e.value for e in own if len(e.value) <= LONGEST_NOTE}


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Check ``model`` and write it atomically.

    Nodes that ONNX does not know (plugins of TensorRT) are written as they are, and those that a
    tail holds behind the others.

    Raises:
        ExportError: the ONNX checker refuses it, or it is larger than an ONNX file can be.
        ArtifactError: the file cannot be written.
    """
    model = with_tail(model)
    require_one_file(model, path.name)
    check_onnx(model, path.name)
    return write_atomic(path, lambda tmp: onnx.save(model, tmp))


def check_onnx(model: onnx.ModelProto, name: str) -> None:
    """Let ONNX check a model, but for nodes that only TensorRT knows.

    Raises:
        ExportError: the ONNX checker refuses it.
    """
    copy = copy_model(model)
    opset = opset_of(model)
    for node in all_nodes(copy):
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(
            node.op_type, max_inclusive_version=opset
        ):
            node.domain = PLUGIN_DOMAIN
    declare_domains_(copy)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"The ONNX for {name} is not valid", first_line(exc)) from exc


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in ``path``.

    Raises:
        ExportError: missing or not an ONNX file.
    """
    return read_onnx(path)[0]


def read_onnx(path: Path) -> tuple[onnx.ModelProto, Stamp | None, str]:
    """Return the model in ``path``, the file's stamp, and the digest of what was read.

    External tensors are loaded, local functions inlined, and every node has a name.

    Returns:
        The model; the stamp, None where the file as it is differs from the model; the SHA-256 as of
        :func:`digest_onnx`.

    Raises:
        ExportError: it is missing, no ONNX file, damaged or larger than 2 GB, or a file with its
            tensors is missing or outside of its folder.
    """
    path = Path(path)
    model, data, stamp = _parse(path)
    outside = _require_outside(path, model)
    if outside:
        _load_outside_(path, model)
    require_sound(model, str(path))
    changed = _tidy_(model)
    return model, None if changed or outside else stamp, _digest(path, data, outside)


def _parse(path: Path) -> tuple[onnx.ModelProto, bytes, Stamp]:
    data, stamp = _bytes_of(path)
    try:
        model = onnx.load_from_string(data)
    except (
        Exception
    ) as exc:  # protobuf's DecodeError is not public; after any error the file is not ONNX
        raise ExportError(f"Cannot read {path}", *_what_it_is(path, data)) from exc
    if not model.graph.node:
        if model.ir_version and model.HasField("graph") and model.opset_import:
            raise ExportError(
                f"Cannot use {path}", "its graph has no nodes", "Export the model again"
            )
        raise ExportError(f"Cannot read {path}", *_what_it_is(path, data))
    return model, data, stamp


def _bytes_of(path: Path) -> tuple[bytes, Stamp]:
    if path.is_dir():
        inside = ", ".join(p.name for p in sorted(path.glob("*.onnx"))[:3])
        hint = f"Give a file in it: {inside}" if inside else "Give the .onnx file"
        raise ExportError(f"Cannot read {path}", "it is a folder", hint)
    try:
        stamp = stamp_of(path)
        if stamp.size > LARGEST_PROTOBUF:
            raise ExportError(
                f"Cannot read {path}",
                f"it has {stamp.size / 1e9:.1f} GB, and an ONNX file ends at 2 GB",
                "Save it with its tensors outside: onnx.save_model(model, path, "
                "save_as_external_data=True)",
            )
        return path.read_bytes(), stamp
    except FileNotFoundError as exc:
        raise ExportError(f"Cannot read {path}", "there is no such file") from exc
    except OSError as exc:
        raise ExportError(f"Cannot read {path}", reason(exc)) from exc


def _what_it_is(path: Path, data: bytes) -> tuple[str, str]:
    """Return what a file is that is no ONNX model, and what to do."""
    content = content_of(data[:HEAD])
    if content is not None and content.kind != "text":
        return content.what, content.mend or _MENDS.get(content.kind, "Give the .onnx file")
    if data[:4] == b"PK\x03\x04":
        return (
            "it is a zip archive: a checkpoint of PyTorch, or an archive with the file in it",
            "Export or unpack the .onnx file",
        )
    if path.suffix in (".engine", ".plan"):
        return "it is a TensorRT engine", _MENDS["engine"]
    if data[:2] == b"\x80\x02" or path.suffix in (".pt", ".pth"):
        return "it is a checkpoint of PyTorch", "Export it: trtq quantize, or torch.onnx.export"
    if path.suffix == ".pb" or b"saved_model" in data[:64] or _is_tensorflow(data):
        return (
            "it is a graph of TensorFlow (.pb)",
            "Convert it: python -m tf2onnx.convert --graphdef FILE --output MODEL.onnx",
        )
    if _starts_like_onnx(data):
        return (
            f"it ends too early: {len(data)} bytes of an ONNX file, the rest is missing",
            "Copy or download it again",
        )
    return "it is not an ONNX file", ""


def _is_tensorflow(data: bytes) -> bool:
    """Whether the bytes start like a GraphDef: a list of nodes, each with a name and an op."""
    return (
        data[:1] == b"\x0a"
        and (b"Placeholder" in data[:256] or b"Const" in data[:256])
        and b"\x12" in data[:64]
    )


def _starts_like_onnx(data: bytes) -> bool:
    """Whether the bytes start like a ModelProto.

    It begins with the IR version, followed by the producer, opsets or graph.
    """
    return (
        len(data) > 2
        and data[0] == 0x08
        and 1 <= data[1] <= 32
        and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    )


def parse_onnx(path: Path) -> onnx.ModelProto:
    """Return the model as it is in the file.

    Local functions remain functions, and external tensors are not loaded.

    Raises:
        ExportError: it is missing, or no ONNX file.
    """
    return _parse(Path(path))[0]


def checked_onnx(path: Path) -> onnx.ModelProto:
    """Return the model as it is in the file, once its external tensors are known to be there.

    Raises:
        ExportError: as :func:`read_onnx`.
    """
    model = parse_onnx(path)
    _require_outside(Path(path), model)
    return model


def require_files(path: Path) -> tuple[str, list[Path]]:
    """Return the digest of a model and its files, after checking that they are there.

    The file is parsed once, and no external tensor is loaded.

    Args:
        path: of an ONNX file, or of an engine, which is one file.

    Returns:
        The digest as :func:`digest_onnx` gives it; the file, and those of external tensors.

    Raises:
        ExportError: as :func:`read_onnx`.
    """
    if path.suffix != ".onnx":
        return sha256_file(path), [path]
    model, data = _parse(path)[:2]
    outside = _require_outside(path, model)
    return _digest(path, data, outside), [path, *(path.parent / name for name in outside)]


def digest_onnx(path: Path) -> str:
    """Return the SHA-256 of a file, hex.

    With external tensors it is that of the file's digest and those of their files, in order of
    their names.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        outside = _outside(onnx.load_from_string(data))
    except Exception:  # no ONNX file: its own bytes are all there is
        outside = []
    return _digest(path, data, outside)


def _outside(model: onnx.ModelProto) -> list[str]:
    tensors = (t for t in all_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL)
    return sorted({e.value for t in tensors for e in t.external_data if e.key == "location"})


def _require_outside(path: Path, model: onnx.ModelProto) -> list[str]:
    """Return the model's files of external tensors, after checking them.

    They must exist and are beside the model.

    Raises:
        ExportError: names the file that is missing, or is outside the model's folder.
    """
    outside = _outside(model)
    # A cache of downloads links both the model and its data into one folder: that folder is the
    # model's own, too.
    folders = (path.parent.resolve(), path.resolve().parent)
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not any(
            e.key == "location" for e in tensor.external_data
        ):
            why = f"its tensor {tensor.name} is in another file, and no file is named"
            raise ExportError(f"Cannot read {path}", why, "Export it again")
    for name in outside:
        where = path.parent / name
        try:
            inside = any(where.resolve().is_relative_to(f) for f in folders)
            known = where.is_file()
        except (OSError, ValueError) as exc:  # too long, or with a zero byte
            why = f"its tensors are in a file of no usable name: {name[:40]!r}"
            raise ExportError(f"Cannot read {path}", why, "Export it again") from exc
        if Path(name).is_absolute() or ".." in Path(name).parts or not inside:
            why = f"it reads tensors from {name}, outside the file's own folder"
            raise ExportError(
                f"Refusing to read {path}",
                why,
                "Put that file beside the model, and save it again with its name alone",
            )
        if not known:
            why = f"the file with its tensors is missing: {where}"
            raise ExportError(f"Cannot read {path}", why, f"Copy {name} beside it")
    return outside


def _load_outside_(path: Path, model: onnx.ModelProto) -> None:
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.raw_data = _read_outside(path, tensor)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _read_outside(path: Path, tensor: onnx.TensorProto) -> bytes:
    """Return the bytes of a tensor whose file is known to be beside the model.

    Raises:
        ExportError: its file ends before the tensor does, or cannot be read.
    """
    facts = {e.key: e.value for e in tensor.external_data}
    where = f"Cannot read the tensors of {path}"
    try:
        offset = int(facts.get("offset", 0))
        length = int(facts["length"]) if "length" in facts else bytes_of(tensor)
    except ValueError as exc:
        raise ExportError(where, f"the place of {tensor.name} is no number") from exc
    try:
        with (path.parent / facts["location"]).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if offset < 0 or length < 0 or offset + length > size:
                why = (
                    f"{facts['location']} has {size} bytes, {tensor.name} would end at byte "
                    f"{offset + length}"
                )
                raise ExportError(where, why, f"Copy {facts['location']} again")
            file.seek(offset)
            data: bytes = file.read(length)
            return data
    except OSError as exc:
        raise ExportError(where, f"{facts['location']}: {reason(exc)}") from exc


def _digest(path: Path, data: bytes, outside: list[str]) -> str:
    own = sha256_bytes(data)
    return (
        sha256_bytes(" ".join([own, *(sha256_file(path.parent / o) for o in outside)]).encode())
        if outside
        else own
    )


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model, tidied in place as :func:`read_onnx` does.

    Raises:
        ExportError: its local functions cannot be inlined.
    """
    _tidy_(model)
    return model


def _tidy_(model: onnx.ModelProto) -> bool:
    """Tidy a model in place and return whether anything changed.

    Local functions are inlined, constants are removed from the inputs, and every node gets a name.
    """
    changed = _inline_(model)
    constants, taken = names_of(model.graph.initializer), names_of(all_nodes(model))
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) < len(model.graph.input):  # files of IR 3 list them
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version, changed = (
            max(model.ir_version, 4),
            True,
        )  # from which on constants need not be inputs
    for i, node in enumerate(all_nodes(model)):
        if not node.name:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name, changed = name, True
            taken.add(name)
    return changed


def _inline_(model: onnx.ModelProto) -> bool:
    """Inline the local functions, except those that stand in for a plugin."""
    called = {(n.domain, n.op_type) for n in all_nodes(model)}
    ours = [
        (f.domain, f.name)
        for f in model.functions
        if (f.domain, f.name) in called and not is_plugin(f.name, f.domain)
    ]
    if not ours:
        return False
    try:
        inlined = onnx.inliner.inline_selected_functions(model, ours)
    except (RuntimeError, onnx.checker.ValidationError) as exc:
        why, hint = first_line(exc), "Export it without functions"
        raise ExportError("Cannot read the local functions of the ONNX file", why, hint) from exc
    model.CopyFrom(inlined)
    return True


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of ONNX's own domain, 0 where the file names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def records_beside(onnx_file: Path, kind: type[T]) -> Iterator[T]:
    """Yield what ``kind`` reads of the records beside an ONNX file, of the verbs that write them.

    Damaged records, and those that lack a part of it, are left out.
    """
    for name in (QUANTIZE_JSON, FINETUNE_JSON, IMPORT_JSON):
        with contextlib.suppress(ArtifactError):
            yield read_record(onnx_file.parent / name, kind)
