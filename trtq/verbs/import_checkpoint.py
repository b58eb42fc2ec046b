"""``trtq import-checkpoint``: the ranges that another tool calibrated or trained, on trtq's graph and in its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save

from trtq.artifact import SCHEMA, ensure_writable_dir, environment, locked, sha256_file, write_bytes, write_json
from trtq.data.preprocess import batches
from trtq.data.source import open_source
from trtq.errors import EncodingsError
from trtq.export.parity import ParityRecord
from trtq.graph.capture import capture
from trtq.graph.normalize import get_constant
from trtq.progress import Progress, Silent
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.foreign import Foreign, read_foreign
from trtq.quant.formats import Format
from trtq.quant.placement import Quantizer, place
from trtq.specs import ImportCheckpointSpec
from trtq.verbs.opening import open_model, open_preprocess
from trtq.verbs.records import FileRecord
from trtq.verbs.shipping import ship

RECORD, WEIGHTS = "import.json", "weights.safetensors"
EXACT = 1e-3  # how far a folded channel may lie from a multiple of the channel before


class ImportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trtq import-checkpoint`` took over.

    Attributes:
        tool: whose ranges they are.
        quantizers: how many are in use.
        left_in_float: by quantizer, the reason.
        unused: ranges of the file that the model has no place for, and why.
        parity: torch against ONNX Runtime on the exported file.
    """

    schema: int
    verb: str
    spec: dict[str, Any]
    tool: str
    quantizers: int
    left_in_float: dict[str, str]
    unused: dict[str, str]
    parity: ParityRecord
    notes: list[str]
    files: dict[str, FileRecord]
    environment: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for a person."""
        p = self.parity
        return (
            f"{self.quantizers} ranges of {self.tool} in use, {len(self.left_in_float)} tensors left in float, "
            f"{len(self.unused)} ranges unused; {p.agreement:.1f} % agreement with float on {p.images} images; "
            "parity torch/ONNX Runtime passed"
        )


def import_checkpoint(spec: ImportCheckpointSpec, progress: Progress | None = None) -> ImportRecord:
    """Write ``OUT/model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors``, ``weights.safetensors`` and ``import.json``.

    Raises:
        TrtqError: the file has no ranges, they are of another model, or the exported file does not compute what was simulated.
    """
    told, out, notes = progress or Silent(), ensure_writable_dir(Path(spec.out)), list[str]()

    def note(text: str) -> None:
        notes.append(text)
        told.note(text)

    found = read_foreign(Path(spec.ranges))
    for line in found.notes:
        note(line)
    source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None, note)
    with locked(out / ".trtq.lock", waiting=told.note):
        (out / RECORD).unlink(missing_ok=True)
        if spec.checkpoint is None and found.weights:
            # The weights of the same file, without the tensors of its quantizers: what later commands take as --checkpoint.
            write_bytes(out / WEIGHTS, save({k: v.contiguous().clone() for k, v in found.weights.items()}))
            spec = msgspec.structs.replace(spec, checkpoint=str(out / WEIGHTS))
        loaded = open_model(spec)
        preprocess, said = open_preprocess(spec, loaded)
        for line in said:
            note(line)
        before = {k: v.detach().clone() for k, v in loaded.module.state_dict().items()}
        captured = capture(loaded.module, preprocess.input_size)
        encodings, unused = _encodings(found, before, captured.module, spec)
        size = 16 if captured.dynamic_batch else 1
        images = list(batches(source, source.sample(spec.parity_images, spec.seed), preprocess, size))
        parity, paths = ship(
            captured, encodings, images, out, origin={"preprocess": preprocess, "model": loaded.name, "weights": loaded.weights},
            opset=spec.opset, int4=False, records=(RECORD,), told=told, note=note,
        )  # fmt: skip
        if spec.checkpoint == str(out / WEIGHTS):
            paths[WEIGHTS] = out / WEIGHTS
        record = ImportRecord(
            schema=SCHEMA, verb="import-checkpoint", spec=msgspec.to_builtins(spec), tool=found.tool, quantizers=len(encodings.amax),
            left_in_float=dict(encodings.left_in_float), unused=unused, parity=parity, notes=notes,
            files={n: FileRecord(sha256=sha256_file(p), bytes=p.stat().st_size) for n, p in paths.items()}, environment=environment(),
        )  # fmt: skip
        write_json(out / RECORD, record)
    return record


def _encodings(
    found: Foreign, before: dict[str, torch.Tensor], graph: torch.fx.GraphModule, spec: ImportCheckpointSpec
) -> tuple[Encodings, dict[str, str]]:
    """Return the encodings of trtq's graph, and the ranges of the file that it has no place for."""
    amax: dict[str, torch.Tensor] = {}
    formats: dict[str, Format] = {}
    left: dict[str, str] = {}
    taken: set[str] = set()
    for q in place(graph, attention="float").quantizers:
        name = f"{q.layer}.{q.role}"
        if q.float_reason is not None:
            left[q.name] = q.float_reason
        elif name not in found.amax:
            left[q.name] = f"{found.tool} has no range for it"
        elif q.is_weight:
            taken.add(name)
            value = _folded(q, found.amax[name], before, graph, either=found.tool == "AIMET")
            if value is None:
                left[q.name] = "capture changed this weight by more than a factor a channel: its range is of another tensor"
            else:
                amax[q.name], formats[q.name] = value, Format(bits=found.bits[name], axis=0)
        elif found.amax[name].ndim:
            taken.add(name)
            left[q.name] = "its range is one for each channel, which TensorRT does not take for activations"
        else:
            taken.add(name)
            amax[q.name], formats[q.name] = found.amax[name], Format(bits=found.bits[name])
    _together_(amax, formats, left)
    if not amax:
        first = next(iter(found.amax))
        raise EncodingsError(
            f"The ranges of {spec.ranges} are of another model", f"{spec.model} has no {first}", "Give the model they were made with"
        )
    origin = {
        "weights_sha256": weights_digest(graph), "structure_sha256": structure_digest(graph), "methods": f"import {found.tool}",
        "ranges_sha256": sha256_file(Path(spec.ranges)),
    }  # fmt: skip
    unused = {**found.unread, **{n: "the model has no such layer" for n in found.amax if n not in taken}}
    return Encodings(amax=amax, formats=formats, left_in_float=left, origin=origin), unused


def _folded(
    q: Quantizer, amax: torch.Tensor, before: dict[str, torch.Tensor], graph: torch.fx.GraphModule, *, either: bool
) -> torch.Tensor | None:
    """Return the range of a weight after BatchNorm was folded into it, float32 [C]; None where it is no multiple of the one before.

    With ``either`` the range may be of the folded weight already: it is taken for the one whose values it fits.
    """
    now, was = get_constant(graph, q.source), before.get(f"{q.layer}.weight")
    if now is None or was is None or was.shape != now.shape or (amax.ndim and amax.numel() != now.shape[0]):
        return None
    flat, old = now.reshape(len(now), -1).double(), was.reshape(len(was), -1).double()
    factor = (flat * old).sum(1) / old.square().sum(1).clamp_min(1e-30)
    off = (flat - factor[:, None] * old).norm() / flat.norm().clamp_min(1e-30)
    if either:
        largest = torch.stack([w.abs().amax(1) for w in (flat, old)]).clamp_min(1e-30)
        off_by = (amax.double().clamp_min(1e-30) / largest).log().abs().mean(1)
        factor = torch.ones_like(factor) if off_by[0] < off_by[1] else factor
    result = (factor.abs() * amax.double()).float().expand(len(now)).clone()
    return torch.where(result > 0, result, torch.ones_like(result)) if float(off) <= EXACT else None


def _together_(amax: dict[str, torch.Tensor], formats: dict[str, Format], left: dict[str, str]) -> None:
    """A layer has its input and its weight in codes, or neither: one alone computes in float."""
    for name in list(amax):
        layer, _, role = name.rpartition(".")
        other = {"input": "weight", "weight": "input"}.get(role)
        if other is not None and f"{layer}.{other}" not in amax and f"{layer}.{other}" in left:
            amax.pop(name), formats.pop(name)
            left[name] = f"the {other} of its layer stays in float"
