"""The record of a quantized model: what each quantizer does, and to which samples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import torch
from torch import fx

from trtq.artifact import SCHEMA, FileRecord, environment
from trtq.data.metrics import ratio_db
from trtq.export.kernel_support import where_it_runs
from trtq.export.probe import QuantizerStats
from trtq.flow.ptq import Attempt
from trtq.flow.quantized import Quantized
from trtq.graph.nodes import get_constant
from trtq.quant.calibrate import ActivationStats
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import fake_quantize, positions
from trtq.quant.placement import Placement, Quantizer
from trtq.quant.simulate import shared_names
from trtq.records.quantize import Calibrated, FloatRecord, QuantizeRecord, QuantizerRecord

INT4_BITS = 4


def summary_of(quantized: Quantized) -> str:
    """Return one line about a quantized model that may not be written yet."""
    return record_of(quantized, {}, {}).summary


def record_of(
    quantized: Quantized, spec: Mapping[str, object], files: dict[str, FileRecord]
) -> QuantizeRecord:
    """Return the record of a quantized model.

    Args:
        quantized: the model.
        spec: what was asked for, as plain values.
        files: what was written.
    """
    done, model, samples = quantized.done, quantized.inputs.model, quantized.inputs.samples
    return QuantizeRecord(
        schema=SCHEMA,
        verb="quantize",
        spec=dict(spec),
        model={
            "name": model.name,
            "weights": model.weights,
            **done.encodings.origin,
            "parameters": sum(p.numel() for p in model.module.parameters()),
            "weight_values": {
                q.layer: _values(q) for q in done.placement.quantizers if q.role == "weight"
            },
            "signature": model.graph.signature,
            "dynamic_batch": model.graph.dynamic_batch,
            "capture_max_rel_diff": model.graph.max_rel_diff,
            "normalisation": model.graph.passes,
        },
        data={
            **samples.describe(),
            "calibration_ids": list(samples.ids),
            "calibration_sha256": samples.contents(),
        },
        preprocess=model.preprocess,
        calibration=Calibrated(
            calibrator=str(done.encodings.origin.get("calibrator", "none")),
            images=len(samples),
            cache=done.cache_note,
            weights=_weight_words(done),
        ),
        preset=quantized.preset,
        recipe=msgspec.UNSET if quantized.recipe is None else quantized.recipe,
        methods=done.methods,
        quantizers=_quantizer_records(done, int4=quantized.asked.weight_storage == "int4"),
        left_in_float=_float_records(done.placement, done.stats),
        parity=done.parity,
        task=msgspec.UNSET if quantized.inputs.task is None else quantized.inputs.task.label,
        alike=list(done.alike) or msgspec.UNSET,
        files=files,
        notes=quantized.notes,
        seconds=quantized.inputs.run.clock.seconds,
        environment=environment(),
    )


def _weight_words(done: Attempt) -> str:
    formats = {q.format.kind for q in done.placement.active if q.is_weight}
    words = {
        "uniform": "per output channel, scale searched for the least output error",
        "asymmetric": "asymmetric, lowest to highest value",
    }
    return "; ".join(words[k] for k in sorted(formats) if k in words)


def _values(quantizer: Quantizer) -> int:
    value = quantizer.source.meta.get("val")
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


def _weight_stats(
    graph: fx.GraphModule, quantizer: Quantizer, encodings: Encodings
) -> QuantizerStats:
    """Return what quantization did to a weight: stored values against the original ones.

    The rounding of methods is included.
    """
    weight, fmt = get_constant(graph, quantizer.source), quantizer.format
    assert weight is not None
    scale, zero = encodings.scale(quantizer.name), encodings.zero_point(quantizer.name)
    stored = encodings.constant(graph, quantizer.source)
    values = fake_quantize(
        stored, scale, zero, fmt.axis, fmt.qmin, fmt.qmax, quantizer.name, fmt.kind
    )
    sqnr = ratio_db(float(weight.square().sum()), float((weight - values).square().sum()))
    where = positions(weight, scale, zero, fmt.axis, fmt.kind)
    outside = (where > fmt.qmax + 0.5) | (where < fmt.qmin - 0.5)
    return QuantizerStats(
        sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None,
        saturated=float(outside.float().mean()),
        low=float(weight.min()),
        high=float(weight.max()),
    )


def _quantizer_records(done: Attempt, *, int4: bool) -> list[QuantizerRecord]:
    encodings, shared = done.encodings, shared_names(done.placement, done.encodings)
    mixed = {
        q.consumer
        for q in done.placement.active
        if q.weight_only
        or not q.format.has_kernel
        or (int4 and q.is_weight and q.format.bits == INT4_BITS)
    }
    records = []
    for q in done.placement.active:
        amax = encodings.amax[q.name]
        stats = (
            _weight_stats(done.graph, q, encodings)
            if q.is_weight
            else done.measured[shared[q.name]]
        )
        runs = where_it_runs(
            q.format,
            is_weight=q.is_weight,
            partner=q.role == "residual" or q.consumer not in mixed,
            int4=int4,
        )
        records.append(
            QuantizerRecord(
                name=q.name,
                layer=q.layer,
                role=q.role,
                format=q.format.label,
                granularity=q.format.granularity,
                amax=float(amax.max()),
                amax_min=float(amax.min()),
                channels=amax.numel() if amax.ndim else None,
                sqnr_db=stats.sqnr_db,
                saturated=stats.saturated,
                low=stats.low,
                high=stats.high,
                histogram=stats.histogram,
                histogram_limit=stats.histogram_limit,
                runs=runs.label,
                extra_ops=runs.extra_ops,
                computes_in=runs.computes_in,
            )
        )
    return records


def _float_records(placement: Placement, stats: Mapping[str, ActivationStats]) -> list[FloatRecord]:
    records = []
    for q in placement.quantizers:
        if q.float_reason is not None:
            seen = None if q.is_weight else stats.get(q.stats_key)
            records.append(
                FloatRecord(
                    name=q.name,
                    layer=q.layer,
                    role=q.role,
                    reason=q.float_reason,
                    low=seen.low if seen else None,
                    high=seen.high if seen else None,
                )
            )
    return records
