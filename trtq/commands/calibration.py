"""``trtq export-calib`` and ``trtq import-calib``.

They make TensorRT's calibration caches out of Q/DQ files, and Q/DQ files out of caches.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import torch

from trtq.artifact import (
    Environment,
    FileRecord,
    Record,
    ensure_writable_dir,
    environment,
    header,
    sha256_file,
    write_bytes,
)
from trtq.errors import EncodingsError, ExportError, UsageError
from trtq.export.cache_ranges import ranges_for
from trtq.export.calibration_cache import (
    ENTROPY_2,
    amax_of,
    cache_number,
    read_cache_file,
    write_cache,
)
from trtq.export.insert_qdq import Inserted, insert_qdq
from trtq.export.onnx_file import digest_onnx, get_metadata, load_onnx, set_metadata_
from trtq.files import ENCODINGS, FP32, IMPORT_JSON, MODEL_FILES
from trtq.flow.pair import save_pair
from trtq.flow.run import Run
from trtq.methods.registry import METHODS, get_method
from trtq.platform.releases import releases, shown
from trtq.platform.target import Target
from trtq.progress import Progress, or_silent
from trtq.quant.encodings import Encodings
from trtq.quant.formats import INT8, Format
from trtq.specs import ExportCalibSpec, ImportCalibSpec
from trtq.workspace import Workspace, file_records


class CalibrationRecord(Record, frozen=True, kw_only=True):
    """The ranges that were written, and those that could not be.

    Attributes:
        header: of the cache.
        tensors: how many ranges are in use.
        missing: tensors (export) or layers (import) without a range, with the reason: they run in
            float.
        unused: ranges that nothing reads.
        notes: every automatic choice.
        files: written, by name.
        environment: software and machine.
    """

    header: str
    tensors: int
    missing: dict[str, str]
    unused: list[str]
    notes: list[str]
    files: dict[str, FileRecord]
    environment: Environment

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
        what = "tensors have no range" if self.verb == "export-calib" else "layers remain in float"
        return (
            f"{self.header}: {self.tensors} ranges in use, {len(self.missing)} {what}, "
            f"{len(self.unused)} ranges unused"
        )


def export_calib(spec: ExportCalibSpec, progress: Progress | None = None) -> CalibrationRecord:
    """Write the calibration cache of a Q/DQ file, and ``OUT.json`` about it.

    The cache is for implicit INT8 of the float file on TensorRT up to 10.16.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        UsageError: the target's TensorRT reads no caches, or names no version.
        ExportError: the file has no pairs, or the float file is not beside it.
    """
    run, target, path = Run(or_silent(progress)), Target.parse(spec.target), Path(spec.onnx)
    network = Path(spec.network) if spec.network else path.with_name(FP32)
    out = Path(spec.out)
    work = Workspace.for_file(
        out, run.progress, inputs=[path, network], record=f"{out.name}.json", clock=run.clock
    )
    release = _require_caches(target, spec.target, path)
    quantized, plain = load_onnx(path), load_onnx(network)
    _require_unfolded(path, quantized)
    ranges = ranges_for(quantized, plain, spec.onnx)
    run.note(*ranges.notes)
    number = spec.release_number or cache_number(release, target.patch)
    if spec.release_number is None:
        run.note(
            f"the header says TRT-{number}: a release with another patch ignores it "
            f"(--release-number, such as {number + 1})"
        )
    ensure_writable_dir(out.parent)
    write_bytes(out, write_cache(ranges.scales, number).encode())
    record = CalibrationRecord(
        **header("export-calib", spec),
        header=f"TRT-{number}-{ENTROPY_2}",
        tensors=len(ranges.scales),
        missing=ranges.missing,
        unused=ranges.unused,
        notes=run.note.lines,
        files=file_records([out]),
        environment=environment(),
    )
    work.save(record)
    return record


def _require_caches(target: Target, text: str, path: Path) -> tuple[int, int]:
    """Return the release of a target, once it is known to read calibration caches.

    Raises:
        UsageError: its TensorRT reads no caches, or names no version.
    """
    feature = "calibration cache"
    if target.release is None:
        last = releases().features[feature].last
        raise UsageError(
            f"{text} names no TensorRT version",
            "a cache is read by the very release in its header and ignored by others",
            f"Write {text}@{shown(last) if last else ''}, or what runs there",
        )
    again = f"Build from {path} itself: its Q/DQ pairs carry the same scales"
    target.require(feature, doing="export a", hint=again)
    target.require("INT8", doing="export a cache of")
    return target.release


def _require_unfolded(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a Q/DQ file whose encodings say that factors were folded into it.

    The tensors of its float file have other ranges.

    Raises:
        ExportError: names the methods.
        EncodingsError: the file is trtq's, and its encodings are not beside it.
    """
    if "encodings_sha256" not in get_metadata(model):
        return  # of another tool
    methods = str(Encodings.load(path.with_name(ENCODINGS)).origin.get("methods", ""))
    folding_methods = [
        m for m in re.split(r"[ ,]+", methods) if m in METHODS and get_method(m).exact
    ]
    if folding_methods:
        raise ExportError(
            f"The ranges of {path} are not those of its float file",
            f"{', '.join(folding_methods)} folded factors into it",
            "Quantize with --preset-quant none or without that method, and export that",
        )


def import_calib(spec: ImportCalibSpec, progress: Progress | None = None) -> CalibrationRecord:
    """Write a Q/DQ model from a calibration cache and the float ONNX it was made for.

    The files are Q/DQ and float ONNX, encodings and ``import.json``.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        EncodingsError: the cache is damaged, or names none of the file's tensors.
        ExportError: the ONNX file cannot be quantized.
    """
    run = Run(or_silent(progress))
    work = Workspace(Path(spec.out), IMPORT_JSON, run.progress, run.clock)
    cache, plain = read_cache_file(spec.cache), load_onnx(Path(spec.onnx))
    done = insert_qdq(plain, cache.scales)
    if not done.activations:
        first = next(iter(cache.scales), "nothing")
        raise EncodingsError(
            f"{spec.cache} was not made for {spec.onnx}",
            f"no layer of it reads a tensor with a range; the cache names {first}",
            "Give the ONNX file it was calibrated with: tensor names must be the same",
        )
    encodings = _encodings(spec, done)
    # The metadata of the float file about its images is there already.
    set_metadata_(done.model, {"encodings_sha256": encodings.digest()})
    run.note(*done.notes)
    with work.locked():
        work.remove_leftovers(MODEL_FILES)
        paths = save_pair(plain, done.model, encodings, work.staging())
        record = CalibrationRecord(
            **header("import-calib", spec),
            header=f"TRT {shown(cache.version)} {cache.algorithm}",
            tensors=len(done.activations),
            missing=done.missing,
            unused=done.unused,
            notes=run.note.lines,
            environment=environment(),
            files=file_records(paths.values()),
        )
        work.publish(paths, record)
    return record


def _encodings(spec: ImportCalibSpec, done: Inserted) -> Encodings:
    """Return the ranges of a Q/DQ file as encodings."""
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
    return Encodings(amax=amax, formats=formats, left_in_float=done.missing, origin=origin)
