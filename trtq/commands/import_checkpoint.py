"""``trtq import-checkpoint``: another tool's ranges on trtq's graph and in its files.

The other tool calibrated or trained them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save

from trtq.artifact import (
    Environment,
    FileRecord,
    Record,
    environment,
    header,
    sha256_file,
    write_bytes,
)
from trtq.commands.loading import input_of, open_given, open_model
from trtq.data.opened import Data
from trtq.errors import EncodingsError
from trtq.export.parity import ParityRecord
from trtq.files import IMPORT_JSON, MODEL_FILES
from trtq.flow.data import samples_from
from trtq.flow.encoded import quantized_from
from trtq.flow.inputs import Inputs
from trtq.flow.model import placed
from trtq.flow.pair import save_pair
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.graph.device import choose_device
from trtq.graph.naming import module_name, node_name
from trtq.graph.nodes import get_constant
from trtq.models.load import LoadedModel
from trtq.progress import Progress, or_silent
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.formats import Format
from trtq.quant.imported_ranges import Foreign, read_foreign
from trtq.quant.placement import Quantizer, module_quantizers, place
from trtq.reader import read_onnx
from trtq.specs import ImportCheckpointSpec, QuantizeOptions
from trtq.workspace import Workspace, file_records

WEIGHTS = "weights.safetensors"
FILES = (*MODEL_FILES, WEIGHTS)
EXACT = 1e-3  # how far a folded channel may be from a multiple of the channel before


class ImportRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq import-checkpoint``.

    Attributes:
        tool: whose ranges they are.
        quantizers: how many are in use.
        left_in_float: by quantizer, the reason.
        unused: ranges of the file that the model has no place for, and why.
        parity: torch against ONNX Runtime on the exported file.
        random: it was compared on random inputs; unset for data.
        notes: every automatic choice.
        files: written, by name.
        environment: software and machine.
    """

    tool: str
    quantizers: int
    left_in_float: dict[str, str]
    unused: dict[str, str]
    parity: ParityRecord
    random: bool | msgspec.UnsetType = msgspec.UNSET
    notes: list[str]
    files: dict[str, FileRecord]
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        p = self.parity
        images = "random inputs (NOT CALIBRATED)" if self.random is True else "images"
        return (
            f"{self.quantizers} ranges of {self.tool} in use, {len(self.left_in_float)} tensors "
            f"left in float, {len(self.unused)} ranges unused; against float on {p.images} "
            f"{images}: {p.answer.words}; parity torch/ONNX Runtime passed"
        )


def import_checkpoint(spec: ImportCheckpointSpec, progress: Progress | None = None) -> ImportRecord:
    """Write the files of a model with another tool's ranges to ``OUT``.

    The files are ``model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors``,
    ``weights.safetensors`` and ``import.json``.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        TrtqError: the file has no ranges, they are of another model, or the exported file does not
            compute what was simulated.
    """
    run = Run(or_silent(progress))
    choose_device(spec.device)
    work = Workspace(Path(spec.out), IMPORT_JSON, run.progress, run.clock)
    # Without a checkpoint the weights are those beside the ranges, and so is the part of the file
    # that was asked for.
    foreign_ranges = _read_ranges(spec)
    data = open_given(spec, run.note, limit=spec.parity_images)
    with work.locked():
        work.remove_leftovers(FILES)
        staging = work.staging()
        beside = _write_weights(spec, foreign_ranges, staging)
        final = spec if beside is None else _with_checkpoint(spec, work.folder / WEIGHTS)
        loaded = open_model(spec if beside is None else _with_checkpoint(spec, beside))
        if beside is not None:
            loaded = replace(
                loaded, weights=loaded.weights.replace(str(beside), str(work.folder / WEIGHTS))
            )
        quantized, unused = _take_over(final, (loaded, data), foreign_ranges, run)
        paths = save_pair(quantized.fp32, quantized.done.qdq, quantized.encodings, staging)
        if beside is not None:
            paths[WEIGHTS] = beside
        record = ImportRecord(
            **header("import-checkpoint", final),
            tool=foreign_ranges.tool,
            quantizers=len(quantized.encodings.amax),
            left_in_float=dict(quantized.encodings.left_in_float),
            unused=unused,
            parity=quantized.done.parity,
            random=quantized.inputs.samples.drawn or msgspec.UNSET,
            notes=run.note.lines,
            files=file_records(paths.values()),
            environment=environment(),
        )
        work.publish(paths, record)
    return record


def _read_ranges(spec: ImportCheckpointSpec) -> Foreign:
    """Return the ranges of a file, whichever tool wrote it.

    Raises:
        EncodingsError: there are none in it.
    """
    path = Path(spec.ranges)
    if path.suffix != ".onnx":
        return read_foreign(path, None if spec.checkpoint else spec.checkpoint_key)
    foreign_ranges = read_onnx(path).ranges
    if foreign_ranges is None:
        raise EncodingsError(
            f"There are no ranges in {path}",
            "it has no Q/DQ pairs",
            f"Calibrate it: trtq quantize {path} --data IMAGES --out OUT",
        )
    return foreign_ranges


def _write_weights(
    spec: ImportCheckpointSpec, foreign_ranges: Foreign, folder: Path
) -> Path | None:
    """Write the weights beside the ranges, which later commands take as --checkpoint.

    They are without the tensors of the other tool's quantizers. Returns None where a checkpoint was
    given, or there are none.
    """
    if spec.checkpoint is not None or not foreign_ranges.weights:
        return None
    tensors = {k: v.contiguous().clone() for k, v in foreign_ranges.weights.items()}
    return write_bytes(folder / WEIGHTS, save(tensors))


def _with_checkpoint(spec: ImportCheckpointSpec, path: Path) -> ImportCheckpointSpec:
    return msgspec.structs.replace(spec, checkpoint=str(path), checkpoint_key=None)


def _take_over(
    spec: ImportCheckpointSpec, opened: tuple[LoadedModel, Data], foreign_ranges: Foreign, run: Run
) -> tuple[Quantized, dict[str, str]]:
    """Return the model with the other tool's ranges, and the ranges that have no place in it."""
    loaded, data = opened
    modules = dict(loaded.module.named_modules())
    foreign_ranges.rename(modules)
    run.note(*foreign_ranges.notes)
    given = input_of(spec, loaded, data)
    before = {k: v.detach().clone() for k, v in loaded.module.state_dict().items()}
    model = given.capture(loaded)
    run.note(*model.notes)
    samples = samples_from(data, model)
    encodings, unused, lines = _encodings(foreign_ranges, before, model.graph.module, spec, modules)
    run.note(*lines)
    inputs = Inputs(
        model=placed(model, spec.device, run),
        samples=samples.take(spec.parity_images, spec.seed),
        answer=model.answer_kind(samples.classes),
        run=run,
    )
    options = QuantizeOptions(opset=spec.opset, parity_images=spec.parity_images)
    return quantized_from(inputs, encodings, options), unused


def _encodings(
    foreign_ranges: Foreign,
    before: dict[str, torch.Tensor],
    graph: torch.fx.GraphModule,
    spec: ImportCheckpointSpec,
    modules: Collection[str],
) -> tuple[Encodings, dict[str, str], list[str]]:
    """Return the encodings of trtq's graph, the unplaced ranges, and what the user must know.

    An unplaced range of the file has no counterpart in the graph.
    """
    taken = _Taken(foreign_ranges, before, graph)
    for q in place(graph, attention="float").quantizers:
        taken.add(q, _range_name(q, foreign_ranges.amax))
    for name in foreign_ranges.amax:
        if name not in taken.names:
            for q in module_quantizers(graph, name):
                taken.add(q, name)
    if not taken.amax:
        first = next(iter(foreign_ranges.amax))
        raise EncodingsError(
            f"The ranges of {spec.ranges} are of another model",
            f"{spec.model} has no {first}",
            "Give the model they were made with",
        )
    origin = {
        "weights_sha256": weights_digest(graph),
        "structure_sha256": structure_digest(graph),
        "methods": f"import {foreign_ranges.tool}",
        "ranges_sha256": sha256_file(Path(spec.ranges)),
    }
    unused = {
        **foreign_ranges.unread,
        **{n: _why_unused(n, graph, modules) for n in foreign_ranges.amax if n not in taken.names},
    }
    encodings = Encodings(
        amax=taken.amax, formats=taken.formats, left_in_float=taken.left, origin=origin
    )
    return encodings, unused, _alone(taken)


def _why_unused(name: str, graph: torch.fx.GraphModule, modules: Collection[str]) -> str:
    """Return why a range has no place in the graph."""
    layer, _, role = name.rpartition(".")
    if role == "output" and any(
        node_name(n) == layer and "batch_norm" in n.meta for n in graph.graph.nodes
    ):
        return "a BatchNorm was folded into that layer: its own output is not computed any more"
    return (
        "capture removed that module, which computes nothing"
        if layer in modules
        else "the model has no such layer"
    )


def _range_name(q: Quantizer, known: Collection[str]) -> str:
    """Return the other tool's name for the range of a quantizer.

    Residual adds are named by their block, matmuls of an ONNX file by their node alone.

    Args:
        q: of trtq's graph.
        known: names of the file's ranges.
    """
    own, of_module = f"{q.layer}.{q.role}", f"{module_name(q.consumer)}.{q.role}"
    of_node = q.role in ("lhs", "rhs") and own not in known and of_module in known
    return of_module if q.role == "residual" or of_node else own


class _Taken:
    """Ranges and weights taken over so far.

    Args:
        foreign_ranges: of the file.
        before: tensors of the model before capture, by name.
        graph: captured.
    """

    def __init__(
        self, foreign_ranges: Foreign, before: dict[str, torch.Tensor], graph: torch.fx.GraphModule
    ) -> None:
        self.found, self.before, self.graph = foreign_ranges, before, graph
        self.amax: dict[str, torch.Tensor] = {}
        self.formats: dict[str, Format] = {}
        self.left: dict[str, str] = {}
        self.names: set[str] = set()

    def add(self, q: Quantizer, name: str) -> None:
        """Give a quantizer the range called ``name``, or the reason why it has none.

        A tensor that trtq would leave in float has codes where the file has a range for it, because
        the answers must be the other tool's.
        """
        foreign_ranges = self.found
        if name not in foreign_ranges.amax:
            self.left[q.name] = q.float_reason or f"{foreign_ranges.tool} has no range for it"
            return
        self.names.add(name)
        value, axis = foreign_ranges.amax[name], None
        if q.is_weight:
            given, axis = self._weight(q, name)
            if given is None:
                self.left[q.name] = (
                    "its range does not fit it, or capture changed this weight by more than a "
                    "factor a channel"
                )
                return
            value = given
        elif value.ndim:
            self.left[q.name] = (
                "its range is one for each channel, which TensorRT does not take for activations"
            )
            return
        self.amax[q.name], self.formats[q.name] = (
            value,
            Format(bits=foreign_ranges.bits[name], axis=axis),
        )

    def _weight(self, q: Quantizer, name: str) -> tuple[torch.Tensor | None, int | None]:
        """Return the range of a weight and its axis."""
        given, axis = self.found.amax[name], self.found.axes.get(name, 0)
        now, was = get_constant(self.graph, q.source), self.before.get(f"{q.layer}.weight")
        if now is not None and was is not None and torch.equal(now, was):
            if not given.ndim:
                return given.expand(len(now)).clone(), 0
            fits = axis < now.ndim and now.shape[axis] == given.numel()
            return (given if fits else None), axis
        return _folded(q, given, self.before, self.graph, either=self.found.tool == "AIMET"), 0


def _alone(taken: _Taken) -> list[str]:
    """Return a line for each layer with codes for one operand only: it computes in float."""
    lines = []
    for name in taken.amax:
        layer, _, role = name.rpartition(".")
        other = {"input": "weight", "weight": "input"}.get(role)
        if other is not None and f"{layer}.{other}" in taken.left:
            lines.append(
                f"{layer} has a range of its {role} alone: engines compute it in float "
                f"({taken.left[f'{layer}.{other}']})"
            )
    return lines


def _folded(
    q: Quantizer,
    amax: torch.Tensor,
    before: dict[str, torch.Tensor],
    graph: torch.fx.GraphModule,
    *,
    either: bool,
) -> torch.Tensor | None:
    """Return the range of a weight after BatchNorm was folded into it, float32 [C].

    Folding multiplies each output channel by a factor f, so a range r becomes |f| r. The factor of
    a channel is the least-squares one between the weight before (w) and now (v): f = (v . w) / (w .
    w).

    Args:
        q: the weight's quantizer; its channels are the first axis.
        amax: range of the weight before, one number or [C].
        before: tensors of the model before capture, by name.
        graph: captured.
        either: the range may already be that of the folded weight: it is treated as the one whose
            values it fits.

    Returns:
        None where the folded weight is no multiple of the one before.
    """
    now, was = get_constant(graph, q.source), before.get(f"{q.layer}.weight")
    if (
        now is None
        or was is None
        or was.shape != now.shape
        or (amax.ndim and amax.numel() != now.shape[0])
    ):
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
