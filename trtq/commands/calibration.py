"""``trtq export-calib`` and ``trtq import-calib``.

They make TensorRT's calibration caches out of Q/DQ files, and Q/DQ files out of caches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch

from trtq.artifact import (
    SCHEMA,
    ensure_writable_dir,
    ensure_writable_file,
    environment,
    locked,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.engine.targets import parse_target
from trtq.engine.versions import offers, shown
from trtq.errors import EncodingsError, ExportError, UsageError, reason
from trtq.export.calibration_cache import ENTROPY_2, amax_of, cache_number, read_cache, write_cache
from trtq.export.insert_qdq import insert_qdq
from trtq.export.lint_view import View
from trtq.export.onnx_file import digest_onnx, get_metadata, load_onnx, save_onnx, set_metadata_
from trtq.flow.files import ENCODINGS, FP32, QDQ
from trtq.flow.records import FileRecord
from trtq.methods.registry import METHODS, get_method
from trtq.progress import Progress, Silent
from trtq.quant.encodings import Encodings
from trtq.quant.formats import INT8, Format
from trtq.specs import ExportCalibSpec, ImportCalibSpec

RECORD = "import.json"
PLACES = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Relu",
    "Clip",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
)


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and what could not be.

    Attributes:
        header: of the cache.
        tensors: how many ranges are in use.
        missing: tensors (export) or layers (import) without a range, with the reason: they run in
            float.
        unused: ranges that nothing reads.
        files: written, by name.
    """

    schema: int
    verb: str
    spec: dict[str, Any]
    header: str
    tensors: int
    missing: dict[str, str]
    unused: list[str]
    notes: list[str]
    files: dict[str, FileRecord]
    environment: dict[str, Any]

    @property
    def leftovers(self) -> list[str]:
        """Lines about the leftovers.

        There is one for each of the first ten tensors that have no range, and one for ranges that
        nothing reads.
        """
        unused = [f"unused: {', '.join(self.unused[:10])}"] if self.unused else []
        return [*(f"{what}: {why}" for what, why in list(self.missing.items())[:10]), *unused]

    @property
    def summary(self) -> str:
        """One line for a person."""
        what = "tensors have no range" if self.verb == "export-calib" else "layers stay in float"
        return (
            f"{self.header}: {self.tensors} ranges in use, {len(self.missing)} {what}, "
            f"{len(self.unused)} ranges unused"
        )


def export_calib(spec: ExportCalibSpec, progress: Progress | None = None) -> CalibrationRecord:
    """Write the calibration cache of a Q/DQ file, and ``OUT.json`` about it.

    The cache is for implicit INT8 of the float file on TensorRT up to 10.16.

    Raises:
        UsageError: the target's TensorRT reads no caches, or names no version.
        ExportError: the file has no pairs, or the float file is not beside it.
    """
    told, target, path = progress or Silent(), parse_target(spec.target), Path(spec.onnx)
    network = Path(spec.network) if spec.network else path.with_name(FP32)
    out = ensure_writable_file(Path(spec.out), inputs=[path, network])
    release = target.release
    if release is None:
        raise UsageError(
            f"{spec.target} names no TensorRT version",
            "a cache is read by the very release in its header and ignored by others",
            f"Write {spec.target}@8.6, or what runs there",
        )
    if not offers("calibration cache", release):
        raise UsageError(
            f"TensorRT {shown(release)} reads no calibration caches",
            "11 removed them with every calibrator",
            f"Build from {path} itself: its Q/DQ pairs carry the same scales",
        )
    if "INT8" not in target.arithmetic:
        raise UsageError(
            f"Cannot use INT8 on {target.device}",
            f"compute capability {target.capability} has no INT8 arithmetic",
        )
    quantized, plain = load_onnx(path), load_onnx(network)
    _require_unfolded(path, quantized)
    scales, missing, unused, notes = ranges_for(quantized, plain, spec.onnx)
    number = spec.release_number or cache_number(release, target.patch)
    if spec.release_number is None:
        notes.append(
            f"the header says TRT-{number}: a release with another patch ignores it "
            f"(--release-number, such as {number + 1})"
        )
    ensure_writable_dir(out.parent)
    write_bytes(out, write_cache(scales, number).encode())
    record = CalibrationRecord(
        schema=SCHEMA,
        verb="export-calib",
        spec=msgspec.to_builtins(spec),
        header=f"TRT-{number}-{ENTROPY_2}",
        tensors=len(scales),
        missing=missing,
        unused=unused,
        notes=notes,
        files={out.name: FileRecord(sha256=sha256_file(out), bytes=out.stat().st_size)},
        environment=environment(),
    )
    write_json(out.with_name(out.name + ".json"), record)
    for line in notes:
        told.note(line)
    return record


def ranges_for(
    quantized: onnx.ModelProto, plain: onnx.ModelProto, name: str
) -> tuple[dict[str, float], dict[str, str], list[str], list[str]]:
    """Return the scales of a Q/DQ file by the tensors of its float file.

    The others are the float tensors without a scale and why, the scales of no tensor, and notes.

    Raises:
        ExportError: there are no pairs, or a scale is not one that a cache can hold.
    """
    view = View(quantized)
    known = {i.name for i in plain.graph.input} | {
        n for node in plain.graph.node for n in node.output
    }
    scales: dict[str, float] = {}
    unused, notes = list[str](), list[str]()
    for node in quantized.graph.node:
        if node.op_type != "QuantizeLinear" or view.is_constant(node.input[0]):
            continue
        tensor, held, zero = (
            node.input[0],
            view.value(node.input[1]),
            view.value(node.input[2]) if len(node.input) > 2 else None,
        )
        if (
            held is None
            or held.size != 1
            or zero is None
            or str(zero.dtype) != "int8"
            or zero.any()
        ):
            raise ExportError(
                f"Cannot write the range of {tensor} into a cache",
                "a cache holds ranges of INT8 codes around 0, one for a tensor",
                "Give a file of symmetric INT8: trtq lint names what is not",
            )
        scale = float(held.reshape(-1)[0])
        if tensor not in known:
            unused.append(tensor)
            continue
        if scales.get(tensor, scale) != scale:
            notes.append(
                f"{tensor} has two scales, {scales[tensor]:.6g} and {scale:.6g}; a cache holds "
                "one: the larger"
            )
        scales[tensor] = max(scale, scales.get(tensor, 0.0))
    if not scales:
        raise ExportError(
            f"There are no ranges in {name}",
            "no tensor of the float file has a pair",
            "Give the Q/DQ file of trtq quantize",
        )
    missing = {
        node.output[0]: f"the output of {node.name or node.op_type}: no pair reads it"
        for node in plain.graph.node
        if node.op_type in PLACES and node.output[0] not in scales
    }
    return scales, missing, unused, notes


def _require_unfolded(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a Q/DQ file whose encodings say that factors were folded into it.

    The tensors of its float file have other ranges.

    Raises:
        ExportError: names the methods.
        EncodingsError: the file is trtq's, and its encodings do not lie beside it.
    """
    if "encodings_sha256" not in get_metadata(model):
        return  # of another tool
    methods = str(Encodings.load(path.with_name(ENCODINGS)).origin.get("methods", ""))
    found = [m for m in re.split(r"[ ,]+", methods) if m in METHODS and get_method(m).exact]
    if found:
        raise ExportError(
            f"The ranges of {path} are not those of its float file",
            f"{', '.join(found)} folded factors into it",
            "Quantize with --preset-quant none or without that method, and export that",
        )


def import_calib(spec: ImportCalibSpec, progress: Progress | None = None) -> CalibrationRecord:
    """Write a Q/DQ model from a calibration cache and the float ONNX it was made for.

    The files are Q/DQ and float ONNX, encodings and ``import.json``.

    Raises:
        EncodingsError: the cache is damaged, or names none of the file's tensors.
        ExportError: the ONNX file cannot be quantized.
    """
    told, out = progress or Silent(), ensure_writable_dir(Path(spec.out))
    try:
        text = Path(spec.cache).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise EncodingsError(
            f"Cannot read the calibration cache {spec.cache}", reason(exc)
        ) from exc
    cache, plain = read_cache(text, spec.cache), load_onnx(Path(spec.onnx))
    done = insert_qdq(plain, cache.scales)
    if not done.activations:
        first = next(iter(cache.scales), "nothing")
        raise EncodingsError(
            f"{spec.cache} was not made for {spec.onnx}",
            f"no layer of it reads a tensor with a range; the cache names {first}",
            "Give the ONNX file it was calibrated with: tensor names must be the same",
        )
    formats: dict[str, Format] = dict.fromkeys(done.activations, INT8)
    amax = {
        name: torch.tensor(amax_of(scale), dtype=torch.float32)
        for name, scale in done.activations.items()
    }
    for name, values in done.weights.items():
        formats[name], amax[name] = Format(axis=done.axes[name]), torch.from_numpy(values)
    origin = {
        "onnx_sha256": digest_onnx(Path(spec.onnx)),
        "cache_sha256": sha256_file(Path(spec.cache)),
        "methods": "import-calib",
    }
    encodings = Encodings(amax=amax, formats=formats, left_in_float=done.missing, origin=origin)
    # The metadata of the float file about its images is there already.
    set_metadata_(done.model, {"encodings_sha256": encodings.digest()})
    with locked(out / ".trtq.lock", waiting=told.note):
        (out / RECORD).unlink(missing_ok=True)
        paths = {
            QDQ: save_onnx(done.model, out / QDQ),
            FP32: save_onnx(plain, out / FP32),
            ENCODINGS: encodings.save(out / ENCODINGS),
        }
        header = f"TRT {shown(cache.version)} {cache.algorithm}"
        record = CalibrationRecord(
            schema=SCHEMA,
            verb="import-calib",
            spec=msgspec.to_builtins(spec),
            header=header,
            tensors=len(done.activations),
            missing=done.missing,
            unused=done.unused,
            notes=done.notes,
            environment=environment(),
            files={
                n: FileRecord(sha256=sha256_file(p), bytes=p.stat().st_size)
                for n, p in paths.items()
            },
        )
        write_json(out / RECORD, record)
    for line in done.notes:
        told.note(line)
    return record
