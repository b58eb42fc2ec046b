"""``trtq advise`` for a quantized model: which regions lose from INT8, and a file without them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from trtq.artifact import environment, header
from trtq.bench.int8_verdict import is_quantized
from trtq.commands.advise_sources import Basis, Subject, basis_of, open_subject
from trtq.engine.int8_model import Int8Model
from trtq.engine.open_engine import is_engine
from trtq.engine.regions import Region
from trtq.errors import ArtifactError, UsageError
from trtq.export.codes import count_qdq
from trtq.export.onnx_file import get_metadata, load_onnx, save_onnx, set_metadata_
from trtq.export.strip import strip_at
from trtq.files import ADVISE_JSON, ENCODINGS, FP32, MODEL_FILES, QDQ, QUANTIZE_JSON
from trtq.onnx_node import label_of
from trtq.onnx_walk import all_nodes
from trtq.progress import Progress, or_silent
from trtq.records.advise import AdviseRecord, Int8Advice
from trtq.specs import AdviseSpec, changed_words, option_name
from trtq.workspace import Workspace, file_records

FOR_FLOAT = ("data", "budget", "task", "min_accuracy", "train", "result", "checkpoint", "model_arg")
STRATEGIES = {
    "FP16": "FP16 engine, no quantization",
    "INT8 / FP16": "INT8, losing regions in FP16",
    "INT8": "INT8 everywhere",
}  # by precision
ROLES = ("input", "weight", "lhs", "rhs")  # of a layer's quantizers; one that reads the same tensor
# as another one has no node of its own
DEQUANTIZE = "/DequantizeLinear"  # what trtq appends to the name of a quantizer


def quantized_file(model: str) -> Path | None:
    """Return the file of a quantized model: Q/DQ ONNX or an engine; None for other models.

    Args:
        model: as it was typed; a folder counts by its ``model.qdq.onnx``.

    Raises:
        TrtqError: it cannot be read.
    """
    path = Path(model)
    if path.is_dir() and (path / QDQ).is_file():
        return path / QDQ
    if path.suffix != ".onnx" and not is_engine(path):
        return None
    if not path.is_file():
        raise ArtifactError(f"Cannot read {path}", "there is no such file")
    return path if is_quantized(path) else None


def advise_int8(spec: AdviseSpec, path: Path, progress: Progress | None = None) -> AdviseRecord:
    """Return which regions of a quantized model lose from INT8, and leave them in FP16.

    Args:
        spec: what was asked for.
        path: Q/DQ ONNX file, or an engine of one.
        progress: receives what happens.

    Raises:
        UsageError: options of a float model, no target, or a device without INT8.
        ArtifactError: an engine or a record is of another model.
        TrtqError: a file cannot be read or written.
    """
    _require_options(spec)
    subject = open_subject(spec, path)
    basis = basis_of(spec, subject)
    losing = [r for r in basis.choice.regions if r.loses]
    writes = spec.keep_winners and bool(losing) and not basis.every
    if spec.keep_winners and not writes:
        which = "every region loses" if basis.every else "no region loses"
        subject.notes.append(f"no new file was written: {which} from INT8")
    precision = "FP16" if basis.every else "INT8 / FP16" if losing else "INT8"
    record = AdviseRecord(
        **header("advise", spec),
        model=str(subject.path),
        facts=None,
        rows=[],
        strategy=STRATEGIES[precision],
        precision=precision,
        commands=_commands(
            spec, subject, precision, Path(spec.out) if writes and spec.out else None
        ),
        notes=subject.notes,
        environment=environment(),
        int8=_advice(subject, basis),
    )
    if spec.out is None:
        return record
    work = Workspace(Path(spec.out), ADVISE_JSON, or_silent(progress))
    with work.locked():
        if writes:
            return _write(work, record, subject, losing)
        work.save(record)
    return record


def _require_options(spec: AdviseSpec) -> None:
    given = [n for n in FOR_FLOAT if getattr(spec, n)]
    if given:
        raise UsageError(
            f"{option_name(given[0])} is for a float model",
            f"{spec.model} is quantized already",
            "Leave it out, or give the float model",
        )
    if spec.keep_winners and not spec.out:
        raise UsageError(
            "--keep-winners needs --out", "it writes a new Q/DQ file", "Add --out FOLDER"
        )


def _advice(subject: Subject, basis: Basis) -> Int8Advice:
    choice, compared = basis.choice, basis.compared
    unnamed = compared.unnamed if compared is not None else []
    launches = sum(len(r.int8.kernels) for r in choice.regions) * subject.device.launch * 1e3
    if basis.basis == "predicted" and launches > choice.int8_ms / 2:
        subject.notes.append(
            f"{launches / choice.int8_ms:.0%} of the predicted time are launches, "
            f"{subject.device.launch * 1e6:g} us a kernel (fitted to published latencies): measure "
            "the layers on the device (trtq bench --profile, --measured)"
        )
    left = basis.left
    if left:
        subject.notes.append(
            f"{len(left)} quantized layers remain in INT8, {basis.source} does not name them:  "
            f"{', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"
        )
    return Int8Advice(
        onnx_sha256=subject.sha256,
        device=subject.device.title,
        batch=subject.batch,
        basis=basis.basis,
        source=basis.source,
        how=basis.how,
        regions=choice.regions,
        int8_ms=choice.int8_ms,
        fp16_ms=choice.fp16_ms,
        chosen_ms=choice.chosen_ms,
        undecided=left,
        unnamed=len(unnamed),
        unnamed_ms=sum(p.ms for p in unnamed),
    )


def _commands(spec: AdviseSpec, subject: Subject, precision: str, out: Path | None) -> list[str]:
    """Return what to type next.

    Args:
        spec: what was asked for; a command that advises again has its options.
        subject: the model.
        precision: that is advised.
        out: folder of the new file; None without one.
    """
    target = ("--target", subject.target.text)
    if precision == "INT8 / FP16" and out is None:
        given = changed_words(spec, "model", "target", "keep_winners", "out")
        return [_line("advise", spec.model, *target, *given, "--keep-winners", "--out", "winners")]
    source = subject.path.with_name(FP32) if precision == "FP16" else subject.path
    source = source if out is None else out / QDQ
    engine = source.with_suffix(".engine")
    return [_line("build", source, *target, "--precision", "fp16", "--out", engine)]


def _line(*words: object) -> str:
    return shlex.join(["trtq", *map(str, words)])


def keep_float(model: Int8Model, layers: Sequence[str]) -> onnx.ModelProto:
    """Return the Q/DQ file of a model with some quantized layers in float.

    The other pairs are not changed. A pair on another operand of what such a layer's kernel
    computes, such as the shortcut of an Add, is removed as well.

    Args:
        model: of a Q/DQ file; not changed.
        layers: labels of ONNX nodes.
    """
    return strip_at(model.model, {*layers, *model.riders(frozenset(layers))})


def _write(
    work: Workspace, record: AdviseRecord, subject: Subject, losing: Sequence[Region]
) -> AdviseRecord:
    """Write the new Q/DQ file, its encodings, the float file and the record."""
    assert record.int8 is not None
    work.remove_leftovers(MODEL_FILES)
    reasons = {n: _reason(record.int8, r) for r in losing for n in r.layers}
    model = keep_float(subject.model, list(reasons))
    removed = quantizers(subject.onnx) - quantizers(model)
    set_metadata_(model, {"kept_float": reasons})
    staging = work.staging()
    why = f"INT8 is slower there, {record.int8.basis} (trtq advise)"
    shared = {f"{label.rpartition('/')[0]}.{r}" for label in reasons for r in ROLES}
    paths = _save_encodings_(subject, model, dict.fromkeys(removed | shared, why), staging)
    paths.append(save_onnx(model, staging / QDQ))
    beside = subject.path.with_name(FP32)
    if beside.is_file():
        paths.append(save_onnx(load_onnx(beside), staging / FP32))
    before, after = count_qdq(subject.onnx), count_qdq(model)
    record.notes.append(
        f"{before - after} of {before} Q/DQ pairs were removed; the others have the scales of "
        f"{subject.path}"
    )
    files = file_records(paths)
    advice = msgspec.structs.replace(record.int8, removed=sorted(removed), files=files)
    done = msgspec.structs.replace(record, int8=advice)
    work.publish(files, done, outdated=[QUANTIZE_JSON])
    return done


def quantizers(model: onnx.ModelProto) -> set[str]:
    """Return the names of the quantizers of a file.

    Args:
        model: with Q/DQ pairs; those in branches count.
    """
    nodes = (n for n in all_nodes(model) if n.op_type == "DequantizeLinear")
    return {label_of(n).removesuffix(DEQUANTIZE) for n in nodes}


def _reason(advice: Int8Advice, region: Region) -> str:
    """Return why a layer was left in FP16."""
    return f"{advice.basis} for the {advice.device} ({advice.source}): {region.why}"


def _save_encodings_(
    subject: Subject, model: onnx.ModelProto, removed: dict[str, str], folder: Path
) -> list[Path]:
    """Write the encodings of the new file, and their digest into it, where the old ones are known.

    Args:
        subject: the old file.
        model: the new one; its metadata changes.
        removed: quantizers that it does not have, and why.
        folder: to write to.
    """
    path = subject.path.with_name(ENCODINGS)
    digest = get_metadata(model).get("encodings_sha256")
    if digest is None:
        return []
    from trtq.quant.encodings import Encodings

    encodings = Encodings.load(path) if path.is_file() else None
    if encodings is None or encodings.digest() != digest:
        subject.notes.append(f"no {ENCODINGS} was written: those of the file are not beside it")
        set_metadata_(model, {"encodings_sha256": None})
        return []
    for name in removed.keys() & encodings.amax.keys():
        for values in (encodings.amax, encodings.amin, encodings.formats):
            values.pop(name, None)
        encodings.left_in_float[name] = removed[name]
    set_metadata_(model, {"encodings_sha256": encodings.digest()})
    return [encodings.save(folder / ENCODINGS)]
