"""``trtq cost``: what a model costs, layer by layer, by counting. Nothing here is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import SCHEMA, environment
from trtq.cost.count import LayerCost, count_layers
from trtq.cost.energy import layer_bitops, layer_energy, layer_picojoules
from trtq.data.preprocess import resolve_preprocess
from trtq.errors import UsageError
from trtq.graph.capture import capture
from trtq.quant.digest import weights_digest
from trtq.recipe import CostSpec
from trtq.verbs.allocation import read_allocation
from trtq.verbs.opening import open_model

FLOAT_BITS = {"fp32": (32, 32), "fp16": (16, 16)}


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One layer at its width; energy and pJ are predictions of a model of a chip, not measurements."""

    layer: LayerCost
    weight_bits: int
    input_bits: int
    bytes_moved: float
    bitops: float
    energy: float
    picojoules: float


class CostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trtq cost`` counted for one image.

    Attributes:
        rows: convs, linears, matmuls, norms and softmaxes, in graph order.
        total: MACs, parameters, bytes moved, BitOps, energy (S1's unit: one 32-bit MAC), pJ.
        relative: BitOps and energy over those of FP32.
        how: what the figures are.
    """

    schema: int
    verb: str
    spec: dict[str, Any]
    model: str
    rows: list[CostRow]
    total: dict[str, float]
    relative: dict[str, float]
    how: str
    environment: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for a person."""
        t, r = self.total, self.relative
        return (
            f"{self.model}: {t['macs'] / 1e6:,.1f} M MACs, {t['parameters'] / 1e6:,.2f} M parameters, "
            f"{t['bytes_moved'] / 1e6:,.2f} MB moved; of FP32: {r['bitops']:.4f} BitOps, {r['energy']:.4f} energy (predicted)"
        )


HOW = (
    "Counted for one image. Every weight is read once, every input read and every output written once, from DRAM. energy: S1 eq. 7, MACs "
    "by the product of the widths, accesses by the width, 1:200. picojoules: Horowitz 2014, 45 nm, 20 pJ a bit of DRAM. Predicted, not "
    "measured: a GPU has no datapath for widths between 4 and 8, and its energy must be metered."
)


def cost(spec: CostSpec) -> CostRecord:
    """Count the model's layers.

    Raises:
        TrtqError: the model cannot be loaded or captured, or the allocation is of another one.
    """
    loaded = open_model(spec)
    preprocess, _ = resolve_preprocess(input_size=spec.input_size, hints=loaded.input_hints)
    captured = capture(loaded.module, preprocess.input_size)
    if spec.allocation and spec.bits != "fp32":
        raise UsageError("Give --bits or --allocation, not both", f"found --bits {spec.bits} and --allocation {spec.allocation}")
    widths = read_allocation(Path(spec.allocation), weights_digest(captured.module)) if spec.allocation else {}
    uniform = FLOAT_BITS.get(spec.bits) or tuple(int(v) for v in spec.bits[1:].split("a"))
    rows = []
    for layer in count_layers(captured.module, captured.example):
        # Norms and softmaxes have no codes: FP16 is the narrowest they run in. With an allocation the rest is INT8 or FP16, too.
        rest = (8, 8) if layer.kind == "matmul" else FLOAT_BITS["fp16"]
        float_widths = (max(uniform[0], 16), max(uniform[1], 16))
        asked = (uniform[0], uniform[1]) if layer.kind in ("conv", "linear", "matmul") else float_widths
        default = rest if spec.allocation else asked
        w, x = (widths[layer.name] or FLOAT_BITS["fp16"]) if layer.name in widths else default
        rows.append(
            CostRow(
                layer=layer, weight_bits=w, input_bits=x, bytes_moved=(layer.weights * w + (layer.reads + layer.writes) * x) / 8,
                bitops=layer_bitops(layer, w, x), energy=layer_energy(layer, w, x), picojoules=layer_picojoules(layer, w, x),
            )
        )  # fmt: skip
    layers = [r.layer for r in rows]
    return CostRecord(
        schema=SCHEMA, verb="cost", spec=msgspec.to_builtins(spec), model=loaded.name, rows=rows,
        total={
            "macs": float(sum(v.macs for v in layers)), "parameters": float(sum(p.numel() for p in captured.module.parameters())),
            "bytes_moved": sum(r.bytes_moved for r in rows), "bitops": sum(r.bitops for r in rows),
            "energy": sum(r.energy for r in rows), "picojoules": sum(r.picojoules for r in rows),
        },
        relative={
            "bitops": sum(r.bitops for r in rows) / sum(layer_bitops(v, 32, 32) for v in layers),
            "energy": sum(r.energy for r in rows) / sum(layer_energy(v, 32, 32) for v in layers),
        },
        how=HOW, environment=environment(),
    )  # fmt: skip
