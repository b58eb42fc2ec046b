"""Read an engine with its manifest, or an ONNX file, as the contents of a package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from trtq.artifact import sha256_bytes, size_words
from trtq.data.answers import ANSWER, TASK
from trtq.engine.manifest import EngineManifest, manifest_path, read_engine
from trtq.engine.open_engine import is_engine
from trtq.engine.settings import TensorRow
from trtq.engine.shapes import inputs_of
from trtq.engine.sizes import DEFAULT_BATCH
from trtq.errors import EngineError, UsageError
from trtq.export.codes import count_qdq
from trtq.export.onnx_file import get_metadata, made_with, read_onnx
from trtq.export.sound import LARGEST_PROTOBUF
from trtq.graph.tensor_spec import SIGNATURE, Signature, stored_signature
from trtq.onnx_walk import axis_name, bytes_of, is_fixed
from trtq.package.contents import Contents, Span, Tensor
from trtq.package.meaning import Request, Stored, explain

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "DOUBLE": "float64",
    "BF16": "bfloat16",
    **{n: n.lower() for n in ("INT8", "UINT8", "INT32", "INT64", "BOOL")},
}  # of TensorRT, as NumPy calls them


def read_contents(path: Path, request: Request | None = None) -> Contents:
    """Return the contents of an engine or of an ONNX file.

    Args:
        path: an .onnx file, or an engine with its manifest beside it.
        request: what a user says beside the file; None is nothing.

    Raises:
        EngineError: no engine, no manifest, one of another engine, no weights in it, or an input
            that is no tensor of known rank.
        ExportError: the ONNX file cannot be read.
        UsageError: it is neither, the task does not fit, the labels cannot be read, or an output
            has no known rank.
    """
    request = request or Request()
    if path.suffix == ".onnx":
        return _read_onnx(path, request)
    if is_engine(path) or manifest_path(path).is_file():
        return _read_engine(path, request)
    raise UsageError(
        f"Cannot package {path}",
        "it is neither an .onnx file nor an .engine with its manifest",
        "Build one: trtq build MODEL.onnx --target ... --out FILE.engine",
    )


def _read_engine(path: Path, request: Request) -> Contents:
    manifest, plan = read_engine(path)
    if manifest.spec.get("strip_weights"):
        raise EngineError(
            f"Cannot package {path.name}",
            "it has no weights: it was built with --strip-weights",
            "Build it without --strip-weights",
        )
    stored = Stored.of_manifest(manifest)
    inputs, outputs = _engine_tensors(manifest, stored_signature(stored.signature))
    preprocess, task, classes, notes = explain(stored, inputs, outputs, request)
    batch = _batch(inputs, outputs, notes)
    if batch is not None and batch[0] > 1:
        notes.append(f"the engine takes no request of fewer than {batch[0]} samples")
    return Contents(
        path=path,
        format="engine",
        data=plan,
        digest=manifest.engine_sha256,
        inputs=inputs,
        outputs=outputs,
        batch=batch,
        preprocess=preprocess,
        task=task,
        classes=classes,
        manifest=manifest,
        pairs=manifest.quantized_tensors,
        notes=notes,
    )


def _engine_tensors(
    manifest: EngineManifest, signature: Signature | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs of an engine, axes with the names that the file gave them."""
    names = {t.name: t.shape for t in signature.outputs} if signature is not None else {}
    rows = {r.name: r for r in manifest.input_rows}
    inputs = tuple(
        Tensor(
            name=t.name,
            dtype=_dtype(t),
            axes=tuple(rows[t.name].axes),
            spans=tuple(rows[t.name].spans),
        )
        for t in manifest.tensors
        if t.mode == "input"
    )
    outputs = tuple(
        Tensor(name=t.name, dtype=_dtype(t), axes=_named(t.shape, names.get(t.name, ())))
        for t in manifest.tensors
        if t.mode != "input"
    )
    return inputs, outputs


def _dtype(row: TensorRow) -> str:
    return DTYPES.get(row.dtype, row.dtype.lower())


def _named(shape: Sequence[int], names: Sequence[int | str]) -> tuple[int | str, ...]:
    """Return axes; open ones have the names of the signature where it has as many axes."""
    known = [n if isinstance(n, str) else "" for n in names]
    texts = known if len(known) == len(shape) else [""] * len(shape)
    return tuple(d if d >= 0 else text for d, text in zip(shape, texts, strict=True))


def _read_onnx(path: Path, request: Request) -> Contents:
    model, stamp, digest = read_onnx(path)
    stored = _stored_in(model)
    values = {v.name: v for v in model.graph.input}
    inputs = tuple(_onnx_tensor(values[i.name], path) for i in inputs_of(model))
    outputs = tuple(_onnx_tensor(v, path) for v in model.graph.output)
    preprocess, task, classes, notes = explain(stored, inputs, outputs, request)
    batch = _batch(inputs, outputs, notes)
    if batch is not None:
        batch = _file_batch(inputs[0].axes[0], stored_signature(stored.signature), notes)
    data = path.read_bytes() if stamp is not None else b""
    return Contents(
        path=path,
        format="onnx",
        data=data if sha256_bytes(data) == digest else _one_file(model, path),
        digest=digest,
        inputs=inputs,
        outputs=outputs,
        batch=batch,
        preprocess=preprocess,
        task=task,
        classes=classes,
        model=model,
        pairs=count_qdq(model),
        notes=notes,
    )


def _one_file(model: onnx.ModelProto, path: Path) -> bytes:
    """Return a model as one file, with the tensors that are in files of their own.

    Raises:
        UsageError: it is too large for one.
    """
    size = sum(bytes_of(t) for t in model.graph.initializer)
    if size > LARGEST_PROTOBUF:
        raise UsageError(
            f"Cannot package {path.name}",
            f"its tensors have {size_words(size)}, and an ONNX file ends at 2 GB",
            "Build an engine from it, and package that",
        )
    data: bytes = model.SerializeToString()
    return data


def _stored_in(model: onnx.ModelProto) -> Stored:
    metadata: Mapping[str, Any] = get_metadata(model)
    return Stored(
        preprocess=metadata.get("preprocess"),
        task=metadata.get(TASK),
        answer=metadata.get(ANSWER),
        classes=tuple(metadata.get("classes") or ()),
        signature=metadata.get(SIGNATURE),
        made_with=made_with(model),
    )


def _onnx_tensor(value: onnx.ValueInfoProto, path: Path) -> Tensor:
    """Return an input or an output of an ONNX file.

    Raises:
        UsageError: it is no tensor, or the file does not say its axes.
    """
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        form = str(value.type.WhichOneof("value")).removesuffix("_type")
        raise UsageError(
            f"Cannot package {path.name}",
            f"{value.name} has no shape"
            if form == "tensor"
            else f"{value.name} is a {form}, not a tensor",
            "Export the model with tensors of known rank as outputs; an axis may be open",
        )
    return Tensor(
        name=value.name,
        dtype=_onnx_dtype(kind.elem_type),
        axes=tuple(d.dim_value if is_fixed(d) else axis_name(d) for d in kind.shape.dim),
    )


def _onnx_dtype(kind: int) -> str:
    name = str(TensorProto.DataType.Name(kind))
    if name in ("BFLOAT16", "STRING") or name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4")):
        return name.lower()
    return str(helper.tensor_dtype_to_np_dtype(kind).name)


def _batch(inputs: Sequence[Tensor], outputs: Sequence[Tensor], notes: list[str]) -> Span | None:
    """Return the batch of a profile where the first axis of every tensor is open.

    None where the inputs' first axes have several names or spans: they are not one batch.
    """
    firsts = [t.axes[:1] for t in (*inputs, *outputs)]
    if not inputs or not all(axes and isinstance(axes[0], str) for axes in firsts):
        return None
    names = dict.fromkeys(str(t.axes[0]) for t in inputs)
    if len(names) > 1:
        shown = " and ".join(n or "?" for n in names)
        notes.append(f"requests are not batched: the first axes of the inputs are {shown}")
        return None
    spans = [t.spans[0] for t in inputs if t.spans]
    if not spans:
        return DEFAULT_BATCH
    return spans[0] if len(set(spans)) == 1 else None


def _file_batch(axis: int | str, signature: Signature | None, notes: list[str]) -> Span:
    """Return the batch of an ONNX file with an open one: the file's own limits, else 1:8:32."""
    own = signature.ranges.get(str(axis)) if signature is not None else None
    least, usual, most = DEFAULT_BATCH
    if own is not None and own.most is not None:
        return own.least, min(max(usual, own.least), own.most), own.most
    notes.append(f"the file does not limit its batch: {least} to {most} is assumed")
    return least, usual, most
