"""Rules for names, constants, and formats that the hardware does not multiply in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, numpy_helper

from trtq.export.fp16 import HALF_MAX
from trtq.export.lint_view import COMPUTE, Finding, View
from trtq.onnx_node import names_of
from trtq.onnx_walk import QDQ, all_nodes, all_tensors
from trtq.platform.target import capabilities_with


def names(view: View) -> Iterator[Finding]:
    """L18: node names that clash or break reports."""
    seen: set[str] = set()  # names of other branches may be the same: the parser keeps them apart
    for node in view.nodes():
        if node.name and node.name in seen:
            why = "another node has the same name: layer reports and precisions by name mix them up"
            yield Finding(
                rule="L18",
                severity="slow",
                where=node.name,
                why=why,
                mend="Give it a name of its own",
                repairable=True,
            )
        if any(c in node.name for c in '"\\'):
            why = "a quote or backslash in the name breaks trtexec's profile JSON"
            yield Finding(
                rule="L18",
                severity="slow",
                where=node.name,
                why=why,
                mend="Rename it",
                repairable=True,
            )
        seen.add(node.name)


def fix_names(view: View) -> int:
    """Repair L18 and return at how many places."""
    seen, taken = set[str](), names_of(view.nodes())
    done = 0
    for node in view.nodes():
        wanted = clean = node.name.replace('"', "_").replace("\\", "_")
        k = 1
        while wanted and (wanted in seen or (wanted != node.name and wanted in taken)):
            wanted, k = f"{clean}_{k}", k + 1
        done += wanted != node.name
        node.name = wanted
        seen.add(wanted)
    return done


def _read_floats(view: View) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the float constants that something reads."""
    outputs = names_of(view.graph.output)
    for name, tensor in view.constants.items():
        read = name in view.readers or name in outputs
        if read and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            yield name, numpy_helper.to_array(tensor)


def finite(view: View) -> Iterator[Finding]:
    """L26: constant that is NaN, or an infinite weight."""
    for name, values in _read_floats(view):
        lost = int(np.isnan(values).sum())
        infinite = int(np.isinf(values).sum())
        if not lost and not infinite:
            continue
        weight = any(n.op_type in (*COMPUTE, "ConvTranspose") for n in view.readers.get(name, []))
        if lost or weight:
            why = (
                f"{lost or infinite} of its {values.size} values are "
                f"{'NaN' if lost else 'infinite'}"
            )
            mend = "Export it again from weights that are finite"
            yield Finding(rule="L26", severity="error", where=name, why=why, mend=mend)
        elif values.dtype == np.float16:
            why = "an FP16 constant that is infinite"
            yield Finding(
                rule="L20", severity="error", where=name, why=why, mend="Keep what reads it in FP32"
            )


def half(view: View) -> Iterator[Finding]:
    """L20: constant beyond FP16."""
    for name, values in _read_floats(view):
        finite = values[np.isfinite(values)].astype(np.float64)
        largest = float(np.abs(finite).max()) if finite.size else 0.0
        if largest > HALF_MAX:
            why = f"a constant of magnitude {largest:.3g}: what reads it cannot compute in FP16"
            yield Finding(
                rule="L20",
                severity="slow",
                where=name,
                why=why,
                mend="Clip it at 65504 if it is a bound",
            )


def hardware(view: View) -> Iterator[Finding]:
    """L21: codes that the hardware does not multiply in."""
    if not view.main:
        return
    pairs = any(n.op_type in QDQ for n in all_nodes(view.model))
    data_types = {h.data_type for h in all_tensors(view.model)}
    fp4 = TensorProto.FLOAT4E2M1 in data_types  # whose scales are FP8
    fallback = "Build FP16 of the same model: trtq build ... --fallback"
    newer = "Quantize to INT8, or build for compute capability {}"
    for needs, codes, name, ends, mend in (
        (pairs, "Q/DQ pairs", "INT8", ": the build fails", fallback),
        (fp4, "NVFP4 codes", "FP4", "", newer.format(capabilities_with("FP4"))),
        (
            TensorProto.FLOAT8E4M3FN in data_types and not fp4,
            "FP8 codes",
            "FP8",
            "",
            newer.format(capabilities_with("FP8")),
        ),
    ):
        if needs and name not in view.reader.formats:
            why = f"{codes}, and {view.reader.name} has no {name} arithmetic{ends}"
            yield Finding(rule="L21", severity="error", where="the file", why=why, mend=mend)
