"""``trtq cost``: what a model costs, layer by layer, by counting. Nothing here is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from trtq.artifact import Environment, Record, environment, header
from trtq.commands.allocation import read_allocation
from trtq.commands.loading import inputs_of, open_model
from trtq.cost.count import LayerCost, count_layers, list_kernels, list_ops
from trtq.cost.devices import Device, find_device
from trtq.cost.energy import layer_bitops, layer_energy, layer_picojoules
from trtq.cost.onnx_file import list_onnx_ops, onnx_kernels
from trtq.cost.ops import COUNTED, WEIGHTED, Kernel, Op, floats_of
from trtq.cost.profile import Correction, correct
from trtq.cost.roofline import HOW as ROOFLINE
from trtq.cost.roofline import KernelTime, predict_all
from trtq.data.preprocess import resolve_preprocess
from trtq.engine.manifest import read_engine
from trtq.engine.plan_kernels import PlanKernel, read_plan_kernels
from trtq.engine.shapes import inputs_of as shapes_of
from trtq.engine.sizes import Request, choose_sizes
from trtq.errors import ArtifactError, UsageError
from trtq.export.onnx_file import load_onnx
from trtq.graph.capture import capture_inputs
from trtq.onnx_walk import FLOATS, QDQ, Scope, scopes
from trtq.quant.digest import weights_digest
from trtq.quant.formats import EIGHT, FULL, HALF, BitConfig
from trtq.specs import CostSpec

NOT_FOR_FILES = (
    "allocation",
    "bits",
    "checkpoint",
    "checkpoint_key",
    "input_size",
    "input",
    "dynamic",
    "outputs",
    "model_arg",
    "ort_library",
)
REALS = (*FLOATS, onnx.TensorProto.DOUBLE)
FLOAT_BITS = {"fp32": FULL, "fp16": HALF}


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One layer at its width, for one image.

    Energy and pJ are predictions of a model of a chip, not measurements.

    Attributes:
        layer: its counts.
        weight_bits, input_bits: widths; 16 and 32 are floats.
        bytes_moved: weights, inputs and outputs, each once.
        bitops: MACs times both widths.
        energy: in S1's unit, one 32-bit MAC (S1 eq. 7).
        picojoules: of a 45 nm chip (Horowitz 2014).
    """

    layer: LayerCost
    weight_bits: int
    input_bits: int
    bytes_moved: float
    bitops: float
    energy: float
    picojoules: float


class LatencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The roofline's prediction for one device.

    Attributes:
        device, title: of the hardware table.
        batch: images a call.
        ms: predicted time of a call.
        kernels: one by one, in order.
        precisions: kernels by what they compute in.
        notes: what the device cannot do as asked.
        source: of its figures.
        fitted_to: of the two fitted numbers.
        how: what the figure is.
        correction: with --profile, how far it is off.
    """

    device: str
    title: str
    batch: int
    ms: float
    kernels: list[KernelTime]
    precisions: dict[str, int]
    notes: list[str]
    source: str
    fitted_to: str
    how: str = ROOFLINE
    correction: Correction | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The sums over all layers for one image.

    Attributes:
        macs: multiply-accumulates.
        parameters: values of all parameters, also of layers that are no row; the scales and zero
            points of Q/DQ pairs are none.
        bytes_moved: weights, inputs and outputs, each once.
        bitops: MACs times both widths.
        energy: in S1's unit: one 32-bit MAC.
        picojoules: of a 45 nm chip.
    """

    macs: float
    parameters: float
    bytes_moved: float
    bitops: float
    energy: float
    picojoules: float


class Relative(msgspec.Struct, frozen=True, kw_only=True):
    """BitOps and energy over those of FP32, 1 for the float model.

    Attributes:
        bitops: MACs times both widths.
        energy: by S1 eq. 7.
    """

    bitops: float
    energy: float


class CostRecord(Record, frozen=True, kw_only=True):
    """The counts of ``trtq cost`` for one image.

    Attributes:
        model: its name, or the ONNX file.
        rows: convs, linears, matmuls, norms and softmaxes, in graph order.
        total: over the rows.
        relative: against FP32.
        how: what the figures are.
        environment: software and machine.
        latency: with --device, the roofline over the kernels that the graph should become.
        engine: with --engine, the roofline over the kernels the plan has.
        notes: what was done to read the model and its weights.
    """

    model: str
    rows: list[CostRow]
    total: Totals
    relative: Relative
    how: str
    environment: Environment
    latency: LatencyRecord | None = None
    engine: LatencyRecord | None = None
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for a person."""
        t, r = self.total, self.relative
        text = (
            f"{self.model}: {t.macs / 1e6:,.1f} M MACs, {t.parameters / 1e6:,.2f} M "
            f"parameters, {t.bytes_moved / 1e6:,.2f} MB moved; of FP32: {r.bitops:.4f} "
            f"BitOps, {r.energy:.4f} energy (predicted)"
        )
        if self.latency is not None:
            text += (
                f"; {self.latency.ms:.3f} ms on the {self.latency.title} in "
                f"{len(self.latency.kernels)} kernels (predicted)"
            )
        if self.latency is not None and self.latency.correction is not None:
            c = self.latency.correction
            advice = f"--correct {self.latency.device}={c.factor:.3f}"
            text += (
                f"; the profile measured {c.measured_ms:.3f} ms, {c.factor:.2f} times the "
                f"prediction ({advice})"
            )
        if self.engine is not None:
            text += (
                f"; over the plan's {len(self.engine.kernels)} kernels {self.engine.ms:.3f} ms "
                "(predicted)"
            )
        return text


HOW = (
    "Counted for one image. Every weight is read once, every input read and every output written "
    "once, from DRAM. energy: S1 eq. 7, MACs by the product of the widths, accesses by the "
    "width, 1:200. picojoules: Horowitz 2014, 45 nm, 20 pJ a bit of DRAM. Predicted, not "
    "measured: a GPU has no datapath for widths between 4 and 8, and its energy must be metered."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """A model's ops, its kernels and the widths they run at."""

    name: str
    ops: Sequence[Op]
    kernels: Sequence[Kernel]
    widths: Callable[[Op | Kernel], BitConfig]
    parameters: int
    notes: tuple[str, ...] = ()


def cost(spec: CostSpec) -> CostRecord:
    """Count the model's layers.

    Args:
        spec: what was asked for.

    Raises:
        TrtqError: the model cannot be loaded or captured, the allocation is of another one, or the
            device is unknown.
    """
    device = find_device(spec.device) if spec.device else None
    _require_consistent(spec)
    counted = _count_onnx(spec) if spec.model.endswith(".onnx") else _count_model(spec)
    shown = [op for op in counted.ops if op.kind in COUNTED]
    rows = [
        _row(layer, counted.widths(op))
        for layer, op in zip(count_layers(shown), shown, strict=True)
    ]
    return CostRecord(
        **header("cost", spec),
        model=counted.name,
        rows=rows,
        total=_total(rows, counted.parameters),
        relative=_relative(rows),
        how=HOW,
        environment=environment(),
        latency=None if device is None else _latency(counted.kernels, device, counted.widths, spec),
        engine=_engine(Path(spec.engine), device, spec.batch) if spec.engine and device else None,
        notes=counted.notes,
    )


def _require_consistent(spec: CostSpec) -> None:
    """Refuse options that contradict each other, before any work.

    Raises:
        UsageError: names them.
    """
    for option in ("engine", "profile"):
        if getattr(spec, option) and not spec.device:
            raise UsageError(
                f"--{option} needs --device",
                "only a device gives a latency",
                f"Name the one the {option} is of",
            )
    if spec.allocation and spec.bits is not None:
        raise UsageError(
            "Give --bits or --allocation, not both",
            f"found --bits {spec.bits} and --allocation {spec.allocation}",
        )


def _total(rows: Sequence[CostRow], parameters: int) -> Totals:
    return Totals(
        macs=float(sum(r.layer.macs for r in rows)),
        parameters=float(parameters),
        bytes_moved=sum(r.bytes_moved for r in rows),
        bitops=sum(r.bitops for r in rows),
        energy=sum(r.energy for r in rows),
        picojoules=sum(r.picojoules for r in rows),
    )


def _relative(rows: Sequence[CostRow]) -> Relative:
    """Return BitOps and energy over those of FP32."""
    bitops = sum(layer_bitops(r.layer, 32, 32) for r in rows)
    energy = sum(layer_energy(r.layer, 32, 32) for r in rows)
    return Relative(
        bitops=sum(r.bitops for r in rows) / max(bitops, 1.0),
        energy=sum(r.energy for r in rows) / max(energy, 1.0),
    )


def _row(layer: LayerCost, widths: BitConfig) -> CostRow:
    w, x = widths.weight, widths.input
    return CostRow(
        layer=layer,
        weight_bits=w,
        input_bits=x,
        bytes_moved=(layer.weights * w + (layer.reads + layer.writes) * x) / 8,
        bitops=layer_bitops(layer, w, x),
        energy=layer_energy(layer, w, x),
        picojoules=layer_picojoules(layer, w, x),
    )


def _count_model(spec: CostSpec) -> _Counted:
    if spec.shapes:
        raise UsageError(
            "--shapes is for ONNX files",
            f"{spec.model} is captured on an example",
            "Give --input-size CxHxW, or --input NAME=SIZES",
        )
    loaded = open_model(spec)
    preprocess, _ = resolve_preprocess(input_size=spec.input_size, hints=loaded.input_hints)
    captured = capture_inputs(loaded.module, inputs_of(spec, preprocess.input_size))
    chosen = (
        read_allocation(Path(spec.allocation), weights_digest(captured.module))
        if spec.allocation
        else {}
    )
    bits = spec.bits or "fp32"
    uniform = FLOAT_BITS.get(bits) or BitConfig.parse(bits)

    def widths(op: Op | Kernel) -> BitConfig:
        if op.name in chosen:
            return chosen[op.name]
        # Only products have codes: FP16 is the narrowest the rest runs in. With an allocation the
        # rest is INT8 or FP16, too.
        if spec.allocation:
            return EIGHT if op.kind == "matmul" else FLOAT_BITS["fp16"]
        return (
            uniform
            if op.kind in WEIGHTED
            else BitConfig(max(uniform.weight, 16), max(uniform.input, 16))
        )

    ops = list_ops(captured.module, captured.examples)
    return _Counted(
        name=loaded.name,
        ops=ops,
        kernels=list_kernels(captured.module, ops),
        widths=widths,
        parameters=sum(p.numel() for p in captured.module.parameters()),
        notes=loaded.notes,
    )


def _count_onnx(spec: CostSpec) -> _Counted:
    for name in NOT_FOR_FILES:
        if getattr(spec, name):
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with an ONNX file",
                "its widths, weights and shapes are its own",
                "Leave it out; --shapes gives the sizes of open axes",
            )
    model = load_onnx(Path(spec.model))
    ops = list_onnx_ops(model, spec.model, _sizes(model, spec))

    def widths(op: Op | Kernel) -> BitConfig:
        x = op.input_bits or 32
        return BitConfig(op.weight_bits or x, x, floats_of(op))

    return _Counted(
        name=spec.model,
        ops=ops,
        kernels=onnx_kernels(model, ops),
        widths=widths,
        parameters=sum(map(_parameters, scopes(model))),
    )


def _parameters(scope: Scope) -> int:
    """Return how many values the parameters of a graph have: floats, and stored codes.

    The scales and zero points of Q/DQ pairs are none. Constant nodes count as initializers do.
    """
    pairs = [n for n in scope.graph.node if n.op_type in QDQ]
    codes = {n.input[0] for n in pairs if n.op_type == "DequantizeLinear"}
    of_pairs = {name for n in pairs for name in n.input[1:]}
    tensors = [
        tensor
        for name, tensor in scope.constants.items()
        if name in codes or (tensor.data_type in REALS and name not in of_pairs)
    ]
    return sum(math.prod(t.dims) for t in tensors)


def _sizes(model: onnx.ModelProto, spec: CostSpec) -> dict[str, list[int]]:
    """Return the sizes of a file's inputs; an open batch is one sample.

    Raises:
        UsageError: an open axis that nothing gives, or sizes that the file does not take.
    """
    inputs = shapes_of(model)
    open_batch = any(i.axes and i.axes[0].size is None for i in inputs)
    request = Request(
        texts=spec.shapes,
        batch=(1, 1, 1) if open_batch else None,
        file=spec.model,
        single=True,
        verb="count",
    )
    return choose_sizes(inputs, request).usual


def _latency(
    kernels: Sequence[Kernel], device: Device, widths: Callable[[Kernel], BitConfig], spec: CostSpec
) -> LatencyRecord:
    notes = []
    for name, kind in (("int8", "uniform"), ("fp8", "fp8"), ("fp4", "fp4")):
        if name not in device.peaks and any(
            max(widths(k).weight, widths(k).input) <= 8 and widths(k).kind == kind for k in kernels
        ):
            notes.append(
                f"the {device.title} has no {name.upper()} kernels: such layers are predicted "
                "in FP16"
            )
    times = predict_all(kernels, device, widths, batch=spec.batch)
    record = _record(times, device, spec.batch, notes)
    return (
        msgspec.structs.replace(record, correction=correct(Path(spec.profile), times))
        if spec.profile
        else record
    )


def _record(times: list[KernelTime], device: Device, batch: int, notes: list[str]) -> LatencyRecord:
    precisions: dict[str, int] = {}
    for t in times:
        precisions[t.precision] = precisions.get(t.precision, 0) + 1
    return LatencyRecord(
        device=device.name,
        title=device.title,
        batch=batch,
        ms=sum(t.ms for t in times),
        kernels=times,
        precisions=precisions,
        notes=notes,
        source=device.source,
        fitted_to=device.fitted_to,
    )


def _engine(path: Path, device: Device, batch: int) -> LatencyRecord:
    """Return the roofline over the kernels that a plan says it has."""
    manifest, plan = read_engine(path)
    builder = manifest.builder
    kernels: list[PlanKernel] | None = None
    if builder.backend == "tensorrt-rtx":
        kernels = read_plan_kernels(plan, builder.version, batch)
    if kernels is None:
        raise ArtifactError(
            f"Cannot read the kernels of {path}",
            "only plans of TensorRT-RTX 1.7 say what they hold, this one is of "
            f"{manifest.built_with}",
            "Leave --engine out",
        )
    unknown = sum(k.unknown for k in kernels)
    notes = (
        [
            f"{unknown} fused kernels do not say what they multiply: only their memory and "
            "their launch count"
        ]
        if unknown
        else []
    )
    return _record([k.time(device) for k in kernels], device, batch, notes)
