"""The ONNX file that a board's TensorRT should read.

It is made from the encodings where trtq made the file that was given.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtq.artifact import (
    FileRecord,
    ensure_writable_dir,
    read_record,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.errors import ArtifactError, DataError, ModelError
from trtq.export.onnx_file import records_beside
from trtq.files import ENCODINGS, EXPORT_JSON, FP32, QDQ, SOURCE_JSON
from trtq.platform.releases import shown
from trtq.platform.target import Target
from trtq.progress import Progress
from trtq.specs import ExportSpec
from trtq.version import __version__

# Boards are deployed to side by side, but only one model is captured at a time.
_ONE = threading.Lock()


class Profiled(NamedTuple):
    """The file to send, and what to say about it.

    Attributes:
        path: the ONNX file.
        fallback: why it is not what was asked for, "" when it is.
        notes: what a user should know.
    """

    path: Path
    fallback: str = ""
    notes: tuple[str, ...] = ()


Origin = dict[str, str | int]


class _Source(msgspec.Struct):
    """The sources of the files of a folder; written as source.json."""

    made_from: Origin
    files: dict[str, str]
    notes: list[str] = []


class _Profile(msgspec.Struct):
    """The part of a row of export.json that is read here, whose own type needs torch."""

    fallback: str
    opset: int
    kind: str
    float_nodes: dict[str, str]


class _Exported(msgspec.Struct):
    profiles: list[_Profile]


class _Made(msgspec.Struct):
    """The part of the record beside a Q/DQ file that is read here, of any verb."""

    spec: dict[str, object]
    files: dict[str, FileRecord]


def profile_for(onnx: Path, target: Target, precision: str, progress: Progress) -> Profiled:
    """Return the file to send.

    A Q/DQ file beside its record and encodings (of quantize, search, finetune, import-checkpoint)
    is exported for the target once (opset, typed FP16 with the ranges of real images); the next
    deployment finds it. A file of another origin is sent unchanged. So is, with a note, a file
    whose model or images are not here. Threads that call it take turns.

    Args:
        onnx: the file that was given.
        target: of the board; it names a release.
        precision: of what has no codes, ``fp16`` or ``fp32``.
        progress: receives a line when a file is written, or cannot be.

    Raises:
        TrtqError: the export fails for another reason than a missing model or missing images.
    """
    with _ONE:
        return _profile_for(onnx, target, precision, progress)


def _profile_for(onnx: Path, target: Target, precision: str, progress: Progress) -> Profiled:
    record = _record(onnx)
    if record is None:
        return Profiled(onnx)
    assert target.version is not None
    label = f"{target.name}@{shown(target.version)}"
    folder = onnx.parent / f"for-{label.replace('@', '-')}-{precision}"
    name = f"{label.replace('@', '-')}.onnx"
    source: Origin = {
        "onnx": record.files[onnx.name].sha256,
        "encodings": record.files[ENCODINGS].sha256,
        "trtq": __version__,
    }
    if _fresh(folder, source):
        return _described(folder / name)
    # Only now what needs torch: an unchanged deployment takes no seconds to import it.
    from trtq.commands.export import export_profiles

    progress.note(f"writing the file for {label} from {onnx.parent / ENCODINGS}")
    fields = set(ExportSpec.__struct_fields__)
    given = {k: v for k, v in record.spec.items() if k in fields and v not in (None, [], {}, "")}
    given |= {
        "encodings": str(onnx.parent / ENCODINGS),
        "target": [label],
        "out": str(folder),
        "precision": precision,
        "fallback": True,
    }
    try:
        export_profiles(ExportSpec.make(given), progress)
    except (ModelError, DataError) as exc:  # trained on another machine, say
        note = f"the file is sent unchanged: it cannot be written for {label} here ({exc})"
        progress.note(note)
        return Profiled(onnx, notes=(note,))
    _sign(folder, source, name, EXPORT_JSON)
    return _described(folder / name)


def for_dla(qdq: Path, number: int, folder: Path) -> tuple[Path, Path, list[str]]:
    """Return a Q/DQ file's float file, its ranges as a calibration cache, and notes.

    A DLA takes INT8 in that form only.

    Args:
        qdq: the file.
        number: of the trtexec that will read the cache, down to the patch: it ignores those of
            others.
        folder: where both go; the next deployment finds them.

    Returns:
        The float file, the calibration cache, and what a user should know: tensors without a range,
        and ranges that nothing reads.

    Raises:
        ExportError: the ranges do not fit a cache.
    """
    plain, cache = folder / FP32, folder / f"trt-{number}.cache"
    source: Origin = {"onnx": sha256_file(qdq), "number": number, "trtq": __version__}
    if not _fresh(folder, source):
        from trtq.export.cache_ranges import ranges_for
        from trtq.export.calibration_cache import write_cache
        from trtq.export.onnx_file import load_onnx, save_onnx
        from trtq.export.strip import strip_qdq

        ensure_writable_dir(folder)
        model = load_onnx(qdq)
        stripped = strip_qdq(model)
        ranges = ranges_for(model, stripped, str(qdq))
        notes = list(ranges.notes)
        if ranges.missing:
            first = next(iter(ranges.missing))
            notes.append(
                f"{len(ranges.missing)} tensors have no range in the cache, what is not fused "
                f"around them runs in float: {first}, ..."
            )
        if ranges.unused:
            notes.append(
                f"{len(ranges.unused)} scales are of no tensor of the float file, the first is "
                f"{ranges.unused[0]}"
            )
        save_onnx(stripped, plain)
        write_bytes(cache, write_cache(ranges.scales, number).encode())
        _sign(folder, source, plain.name, cache.name, notes=notes)
    return plain, cache, read_record(folder / SOURCE_JSON, _Source).notes


def _described(path: Path) -> Profiled:
    row = read_record(path.parent / EXPORT_JSON, _Exported).profiles[0]
    kept = (
        f"{len(row.float_nodes)} nodes in FP32"
        if row.float_nodes
        else "every node in the precision asked for"
    )
    return Profiled(path, row.fallback, (f"{path.name}: opset {row.opset}, {row.kind}, {kept}",))


def _record(onnx: Path) -> _Made | None:
    """Return the record beside a Q/DQ file that describes this very file.

    It must also name the file's encodings and its model. Returns None where there is no such
    record.
    """
    if onnx.name != QDQ or not (onnx.parent / ENCODINGS).is_file():
        return None
    here = {n: sha256_file(onnx.parent / n) for n in (QDQ, ENCODINGS)}
    for record in records_beside(onnx, _Made):
        named = {n: record.files[n].sha256 for n in here if n in record.files}
        # The record of import-calib names no model: its file is sent unchanged.
        if "model" in record.spec and named == here:
            return record
    return None


def _sign(folder: Path, source: Origin, *names: str, notes: Sequence[str] = ()) -> None:
    files = {n: sha256_file(folder / n) for n in names}
    write_json(folder / SOURCE_JSON, _Source(made_from=source, files=files, notes=list(notes)))


def _fresh(folder: Path, source: Origin) -> bool:
    try:
        written = read_record(folder / SOURCE_JSON, _Source)
        return written.made_from == source and all(
            sha256_file(folder / n) == digest for n, digest in written.files.items()
        )
    except (ArtifactError, OSError):
        return False
