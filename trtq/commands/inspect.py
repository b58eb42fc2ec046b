"""``trtq inspect``: what any file or folder that trtq wrote, or an ONNX file of any origin, is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trtq.artifact import decode_json, read_json, sha256_file
from trtq.errors import ArtifactError
from trtq.files import PACKAGE_JSON, QUANTIZE_JSON
from trtq.known_records import known, read_known

if TYPE_CHECKING:
    from trtq.records.quantize import QuantizeRecord

Info = dict[str, Any]  # of --json: what is in it depends on the kind
# Verbs whose records are shown with their summary.
SUMMED = ("search", "bench", "deploy", "fleet", "package")


def inspect(path: Path | str) -> Info:
    """Return what is in ``path`` as a JSON-like dict whose ``kind`` says what it is.

    Args:
        path: of an ONNX file, encodings or weights, an engine, a record, a recipe, a calibration
            cache of TensorRT, or a folder.

    Returns:
        For a file also ``path``, ``bytes`` and ``sha256``; the other keys depend on ``kind``.

    Raises:
        TrtqError: it does not exist, is damaged, or is nothing trtq knows.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise ArtifactError(f"Cannot inspect {path}", "there is no such file or folder")
    readers = {
        ".onnx": _onnx,
        ".safetensors": _safetensors,
        ".engine": _engine,
        ".json": _record,
        ".toml": _recipe,
        ".cache": _calibration_cache,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise ArtifactError(
            f"Cannot inspect {path}",
            f"trtq writes {', '.join(readers)} files",
            "Is it another tool's?",
        )
    return {
        **reader(path),
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": _digest(path),
    }


def _digest(path: Path) -> str:
    if path.suffix != ".onnx":
        return sha256_file(path)
    from trtq.export.onnx_file import digest_onnx

    return digest_onnx(path)


def _folder(path: Path) -> Info:
    suffixes = (".onnx", ".safetensors", ".engine", ".json", ".html")
    files = [p for p in sorted(path.iterdir()) if p.suffix in suffixes]
    if not files:
        raise ArtifactError(
            f"There is nothing of trtq's in {path}", "no .onnx, .safetensors, .engine or .json file"
        )
    info: Info = {
        "kind": "folder",
        "path": str(path),
        "files": {p.name: p.stat().st_size for p in files},
    }
    if (path / PACKAGE_JSON).is_file():
        return info | _package(path)
    record = path / QUANTIZE_JSON
    if record.is_file():
        quantize: QuantizeRecord = read_known(record, "quantize")
        info["quantize"] = _record(record)
        info["altered_or_missing"] = [
            name
            for name, file in quantize.files.items()
            if not (path / name).is_file() or sha256_file(path / name) != file.sha256
        ]
    return info


def _package(path: Path) -> Info:
    """Return what a package is, and whether it is whole."""
    from trtq.package.check import check_package

    checked = check_package(path)
    return {
        "kind": "package",
        "summary": checked.record.summary,
        "files": {n: f.bytes for n, f in checked.record.files.items()},
        "altered": checked.altered,
        "missing": checked.missing,
        "extra": checked.extra,
        "package": _record(path / PACKAGE_JSON),
    }


def _onnx(path: Path) -> Info:
    from trtq.export.codes import count_qdq, quantized_nodes
    from trtq.export.onnx_file import get_metadata, load_onnx
    from trtq.onnx_walk import all_nodes
    from trtq.ops import onnx_types

    model = load_onnx(path)
    ops = Counter(n.op_type for n in all_nodes(model))
    kinds = onnx_types("conv", "matmul", "linear", "conv_transpose")
    compute, quantized = (
        [n for n in all_nodes(model) if n.op_type in kinds],
        quantized_nodes(model, *kinds),
    )
    has_pairs = count_qdq(model) > 0  # weights alone have no QuantizeLinear
    return {
        "kind": "Q/DQ ONNX" if has_pairs else "ONNX",
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "producer": model.producer_name,
        "inputs": {i.name: _shape(i) for i in model.graph.input},
        "outputs": {o.name: _shape(o) for o in model.graph.output},
        "nodes": sum(ops.values()),
        "ops": dict(ops.most_common(12)),
        "quantized_layers": f"{len(quantized)} of {len(compute)}",
        "float_layers": [n.name for n in compute if n not in quantized][:20] if has_pairs else [],
        "trtq": get_metadata(model),
    }


def _shape(value: Any) -> list[Any]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _calibration_cache(path: Path) -> Info:
    from trtq.export.calibration_cache import amax_of, read_cache_file

    cache = read_cache_file(str(path))
    return {
        "kind": "calibration cache of TensorRT",
        "header": f"TRT-{cache.number}-{cache.algorithm}",
        "ranges": len(cache.scales),
        "amax": {name: amax_of(scale) for name, scale in cache.scales.items()},
    }


def _safetensors(path: Path) -> Info:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            meta, names = handle.metadata() or {}, list(handle.keys())
    except (SafetensorError, OSError) as exc:
        raise ArtifactError(
            f"Cannot inspect {path}", f"not a whole safetensors file ({exc})", "Make it again"
        ) from exc
    if meta.get("trtq") == "encodings":
        from trtq.quant.encodings import Encodings

        encodings = Encodings.load(path)
        return {
            "kind": "encodings",
            "quantizers": len(encodings.amax),
            "formats": dict(Counter(f.label for f in encodings.formats.values())),
            "left_in_float": encodings.left_in_float,
            "origin": dict(encodings.origin),
            "digest": encodings.digest(),
        }
    if meta.get("trtq") == "calibration":
        try:
            parts = decode_json(meta.get("parts", ""), dict[str, str])
        except msgspec.MsgspecError as exc:
            raise ArtifactError(
                f"Cannot inspect {path}", f"its key is damaged ({exc})", "Delete it"
            ) from exc
        return {"kind": "calibration cache entry", "key": parts, "tensors": len(names)}
    return {"kind": "weights", "tensors": len(names), "first": names[:8]}


def _engine(path: Path) -> Info:
    from trtq.engine.manifest import read_manifest

    manifest = read_manifest(path)
    content: Info = msgspec.to_builtins(manifest)
    return {"kind": "engine", "summary": manifest.summary, "manifest": content}


def _record(path: Path) -> Info:
    content = read_json(path)
    verb = content.get("verb")
    if verb is None:
        raise ArtifactError(f"Cannot inspect {path}", "it is JSON, but no record of trtq's")
    if verb == "build":
        from trtq.engine.manifest import read_manifest

        manifest = read_manifest(path.with_name(path.name.removesuffix(".json")))
        return {"kind": "engine manifest", "summary": manifest.summary}
    try:
        record, damage = known(content, path), ""
    except ArtifactError as exc:  # a damaged record is still shown
        record, damage = None, exc.reason
    summary = str(record.summary) if record is not None and verb in SUMMED else ""
    info: Info = {"kind": f"{verb} record", "damaged": damage, "summary": summary}
    if record is not None and verb == "quantize":
        return info | _quantize(record)
    return info | {k: v for k, v in content.items() if k not in ("spec", "environment", "schema")}


def _quantize(record: QuantizeRecord) -> Info:
    measured = [(q.sqnr_db, q.name) for q in record.quantizers if q.sqnr_db is not None]
    weakest = sorted(measured, key=lambda pair: pair[0])[:5]
    return {
        "model": record.model.get("name"),
        "weights": record.model.get("weights"),
        "calibration": record.calibration,
        "quantizers": msgspec.to_builtins(record.quantizers),
        "left_in_float": {f.name: f.reason for f in record.left_in_float},
        "parity": msgspec.to_builtins(record.parity),
        "weakest": {name: sqnr for sqnr, name in weakest},
        "notes": record.notes,
    }


def _recipe(path: Path) -> Info:
    from trtq.recipe import load_recipe

    content: Info = msgspec.to_builtins(load_recipe(path))
    return {"kind": "recipe", "recipe": content}
