"""``trtq audit``: requested against actual precision of every module of an engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from trtq.artifact import Record, header, sha256_file
from trtq.cost.onnx_file import is_own, list_onnx_ops, op_name
from trtq.engine.audit import UNKNOWN, LayerRow, ModuleRow, match, read_layer_info, read_plan_layers
from trtq.engine.lint_target import why_float
from trtq.engine.manifest import read_engine
from trtq.errors import EngineError, TrtqError
from trtq.export.onnx_file import read_onnx
from trtq.files import MANIFEST_SUFFIX
from trtq.onnx_node import label_of
from trtq.onnx_walk import all_nodes
from trtq.platform.target import Target
from trtq.specs import AuditSpec


class AuditRecord(Record, frozen=True, kw_only=True):
    """The types that an engine computes in.

    Attributes:
        engine_sha256: of the engine, the manifest or the report that was given.
        onnx_sha256: of the ONNX file, with its external data.
        source: what was read, in words.
        modules: every convolution and product of the ONNX file.
        shares: share of their multiply-accumulates by precision, percent; ``folded`` are modules
            that no layer names. Empty where they could not be counted.
        moving: layers that only change a layout or a type.
        layers: of the engine, how many.
        notes: what could not be known.
    """

    engine_sha256: str
    onnx_sha256: str
    source: str
    modules: list[ModuleRow]
    shares: dict[str, float]
    moving: int
    layers: int
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether every module that asks for codes computes in them, as far as that is known."""
        return not any(m.short for m in self.modules)

    @property
    def summary(self) -> str:
        """One line for a person."""
        quantized_modules = [m for m in self.modules if m.requested != "float"]
        got = sum(m.actual == m.requested for m in quantized_modules)
        unknown = sum(m.actual in (None, UNKNOWN) for m in quantized_modules)
        shares = ", ".join(f"{v:.1f} % {k}" for k, v in self.shares.items())
        modules_text = (
            f"{got} of {len(quantized_modules)} modules compute in what was asked for"
            + (f", of {unknown} it cannot be told" if unknown else "")
        )
        return (
            f"{modules_text}; multiply-accumulates: {shares or 'not counted'}; {self.moving} of "
            f"{self.layers} layers only move data"
        )


def audit(spec: AuditSpec) -> AuditRecord:
    """Compare what an ONNX file asks for with what an engine, or TensorRT's report about one, says.

    Args:
        spec: what was asked for.

    Raises:
        EngineError: the file is no engine of trtq's or no layer report, or the engine was built
            from another ONNX file.
        ExportError: the ONNX file cannot be read.
    """
    path, notes = Path(spec.file), list[str]()
    model, _, digest = read_onnx(Path(spec.onnx))
    layers, source = _layers(path, spec.onnx, digest, notes)
    macs = _macs(model, spec.onnx, notes)
    reasons = why_float(model, Target.parse(spec.target)) if spec.target else {}
    modules = match(model, layers, macs, reasons)
    if all(layer.precision == UNKNOWN for layer in layers):
        notes.append(
            "the report has layer names alone: build with --profilingVerbosity=detailed to know "
            "precisions"
        )
    total, shares = sum(m.macs for m in modules), Counter[str]()
    for m in modules:
        shares[m.actual or "folded"] += m.macs
    return AuditRecord(
        **header("audit", spec),
        engine_sha256=sha256_file(path),
        onnx_sha256=digest,
        source=source,
        modules=modules,
        shares={k: round(100.0 * v / total, 2) for k, v in shares.most_common()} if total else {},
        moving=sum(layer.moves for layer in layers),
        layers=len(layers),
        notes=notes,
    )


def _layers(path: Path, source: str, digest: str, notes: list[str]) -> tuple[list[LayerRow], str]:
    if path.suffix == ".json" and not path.name.endswith(MANIFEST_SUFFIX):
        return read_layer_info(path), f"TensorRT's layer report {path.name}"
    engine = path.with_suffix("") if path.name.endswith(MANIFEST_SUFFIX) else path
    manifest, plan = read_engine(engine)
    if manifest.onnx_sha256 != digest:
        raise EngineError(
            f"{engine} was not built from {source}",
            f"it was built from a file with SHA-256 {manifest.onnx_sha256[:12]}",
            "Give that ONNX file",
        )
    if manifest.builder.backend != "tensorrt-rtx":
        raise EngineError(
            f"Cannot read the layers of {engine}",
            "only plans of TensorRT-RTX say what they compute in",
            "Give the report of trtexec --exportLayerInfo, built with "
            "--profilingVerbosity=detailed",
        )
    layers = read_plan_layers(plan, manifest.builder.version)
    if layers is None:
        raise EngineError(
            f"Cannot read the layers of {engine}",
            f"the rows of TensorRT-RTX {manifest.builder.version} are not those trtq knows",
        )
    notes.append("read from the operation rows inside the plan, an undocumented format")
    return layers, f"the plan of TensorRT-RTX {manifest.builder.version}"


def _macs(model: onnx.ModelProto, path: str, notes: list[str]) -> dict[str, int]:
    try:
        counted = {op.name: op.macs for op in list_onnx_ops(model, path)}
    except TrtqError as exc:
        notes.append(f"multiply-accumulates are not counted: {exc}")
        return {}
    own = is_own(model)
    return {label_of(n): counted.get(op_name(n, own=own), 0) for n in all_nodes(model)}
