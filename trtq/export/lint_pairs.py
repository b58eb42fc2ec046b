"""Rules for pairs themselves: zero points, scales, axes, stored codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtq.export.lint_view import (
    Finding,
    Severity,
    View,
    add_named,
    in_blocks,
    named,
)
from trtq.onnx_node import integer, names_of
from trtq.onnx_walk import QDQ, axis_of
from trtq.platform.releases import releases, shown

SYMMETRIC = (
    "int8",
    "int4",
    "float8_e4m3fn",
    "float4_e2m1fn",
)  # types of codes around 0 that TensorRT has


def zero_points(view: View) -> Iterator[Finding]:
    """L03: zero point other than INT8 zero."""
    for node in view.nodes(*QDQ):
        zero = view.zero_point(node)
        if zero is None or zero.size == 0 or zero.dtype == np.int32:
            continue
        if str(zero.dtype) in SYMMETRIC and not np.any(zero.astype(np.float32)):
            continue
        shift = _shifts(view, node)
        first = (
            int(zero.reshape(-1)[0])
            if zero.dtype.kind in "iu"
            else float(zero.astype(np.float32).reshape(-1)[0])
        )
        why = f"its zero point is {zero.dtype} {first}; TensorRT's codes are INT8 around 0"
        mend = (
            "Shift the codes: INT8 with zero point 0 holds the same values"
            if shift
            else "Quantize symmetrically: INT8, zero point 0"
        )
        yield Finding(
            rule="L03", severity="error", where=named(node), why=why, mend=mend, repairable=shift
        )


def _shifts(view: View, node: onnx.NodeProto) -> bool:
    """Whether UINT8 codes around 128 can become INT8 codes around 0.

    This requires that only pairs of the same kind see the codes.
    """
    if not _around_128(view, node):
        return False
    codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    if codes in view.constants:
        return view.constants[codes].data_type == TensorProto.UINT8
    maker = view.producer.get(codes)
    is_output = codes in names_of(view.graph.output)
    if maker is None or maker.op_type != "QuantizeLinear" or is_output:
        return False
    return all(_around_128(view, n) for n in (maker, *view.readers.get(codes, [])))


def _around_128(view: View, node: onnx.NodeProto) -> bool:
    zero = view.zero_point(node) if node.op_type in QDQ else None
    return zero is not None and zero.dtype == np.uint8 and bool(np.all(zero == 128))


def fix_zero_points(view: View) -> int:
    """Repair L03 and return at how many places."""
    nodes = [n for n in view.nodes(*QDQ) if _shifts(view, n)]
    shifted = []
    for node in nodes:
        zero, codes = view.zero_point(node), view.constants.get(node.input[0])
        assert zero is not None
        stored = codes is not None and node.op_type == "DequantizeLinear"
        values = view.value(node.input[0]) if stored else None
        shifted.append((node, zero, values))
    for node, zero, values in shifted:
        node.input[2] = add_named(
            view, f"{node.input[2]}/int8", np.zeros(zero.shape, dtype=np.int8)
        )
        kept = [
            a for a in node.attribute if a.name != "output_dtype"
        ]  # the zero point has the type
        del node.attribute[:]
        node.attribute.extend(kept)
        if values is not None:  # stored codes move along
            node.input[0] = add_named(
                view, f"{node.input[0]}/int8", (values.astype(np.int16) - 128).astype(np.int8)
            )
    return len(nodes)


def activation_scales(view: View) -> Iterator[Finding]:
    """L04: activation with a scale for each channel."""
    for node in view.nodes("QuantizeLinear"):
        scale = view.value(node.input[1])
        if scale is not None and scale.size > 1 and not view.is_constant(node.input[0]):
            why = f"an activation with {scale.size} scales: the layer behind it runs in float"
            yield Finding(
                rule="L04",
                severity="float",
                where=named(node),
                why=why,
                mend="Give activations one scale",
            )


def single_scales(view: View) -> Iterator[Finding]:
    """L25: activation scales of shape [1].

    Parsers up to 10.1 take such a scale as one scale, newer ones as a scale for each channel.
    """
    if view.reader.runtime.parses("one scale of shape [1]"):
        return
    for node in _single(view):
        why = (
            "an activation scale of shape [1], which is read as a scale for each channel: the "
            "layer behind it runs in float"
        )
        severity: Severity = (
            "error" if view.reader.runtime.rtx else "float"
        )  # seen in plans of TensorRT for RTX
        yield Finding(
            rule="L25",
            severity=severity,
            where=named(node),
            why=why,
            mend="Write the scale as a scalar",
            repairable=True,
        )


def _single(view: View) -> list[onnx.NodeProto]:
    """Return the nodes of activation pairs whose scale has one element and an axis."""
    nodes = []
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is None or scale.size != 1 or scale.ndim == 0 or in_blocks(node):
            continue
        source = view.scope.moved(node.input[0])[0]
        q = view.scope.maker(source) if node.op_type == "DequantizeLinear" else node
        if q is not None and not view.is_constant(q.input[0]):
            nodes.append(node)
    return nodes


def fix_single_scales(view: View) -> int:
    """Repair L25 and return at how many places."""
    nodes = _single(view)
    for node in nodes:
        scale, zero = view.value(node.input[1]), view.zero_point(node)
        assert scale is not None
        node.input[1] = add_named(view, f"{node.input[1]}/scalar", scale.reshape(()))
        if zero is not None:
            node.input[2] = add_named(view, f"{node.input[2]}/scalar", zero.reshape(()))
        _remove_axis_(node)
    return len(nodes)


def _remove_axis_(node: onnx.NodeProto) -> bool:
    kept = [a for a in node.attribute if a.name != "axis"]
    changed = len(kept) < len(node.attribute)
    del node.attribute[:]
    node.attribute.extend(kept)
    return changed


def missing_axis(view: View) -> Iterator[Finding]:
    """L06: scale for each channel without an axis."""
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is not None and scale.size > 1 and axis_of(node) is None:
            old = releases().forms["axis 0 where none is written"].last
            assert old is not None
            why = (
                f"a scale for each channel and no axis: parsers up to {shown(old)} take axis 0, "
                "later ones 1"
            )
            yield Finding(
                rule="L06",
                severity="error",
                where=named(node),
                why=why,
                mend="Write the axis: 1 is what ONNX means",
                repairable=True,
            )


def fix_missing_axis(view: View) -> int:
    """Repair L06 and return at how many places."""
    nodes = [n for n in view.nodes(*QDQ) if axis_of(n) is None and _several(view, n)]
    for node in nodes:
        node.attribute.append(helper.make_attribute("axis", 1))
    return len(nodes)


def _several(view: View, node: onnx.NodeProto) -> bool:
    scale = view.value(node.input[1])
    return scale is not None and scale.size > 1


def scalar_axis(view: View) -> Iterator[Finding]:
    """L07: axis beside a single scale (8.0)."""
    form = "axis beside one scale"
    if view.reader.runtime.parses(form):
        return
    span = releases().forms[form].words
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is not None and scale.ndim == 0 and axis_of(node) is not None:
            why = f"an axis beside a single scale, which TensorRT takes {span}"
            yield Finding(
                rule="L07",
                severity="error",
                where=named(node),
                why=why,
                mend="Leave the axis out",
                repairable=True,
            )


def fix_scalar_axis(view: View) -> int:
    """Repair L07 and return at how many places."""
    scalars = [
        n for n in view.nodes(*QDQ) if (v := view.value(n.input[1])) is not None and v.ndim == 0
    ]
    return sum(_remove_axis_(n) for n in scalars)


def no_zero_point(view: View) -> Iterator[Finding]:
    """L08: no zero point: UINT8 to ONNX, INT8 to TensorRT."""
    for node in view.nodes(*QDQ):
        if len(node.input) < 3 or not node.input[2]:
            findings = _no_zero_in_front(node) if node.op_type == QDQ[0] else _no_zero(view, node)
            yield from findings


def _no_zero_in_front(node: onnx.NodeProto) -> Iterator[Finding]:
    """A QuantizeLinear without a zero point: ONNX and TensorRT may mean different codes."""
    kind = integer(node, "output_dtype", TensorProto.UNDEFINED)
    if kind in (TensorProto.UNDEFINED, TensorProto.UINT8):
        yield Finding(
            rule="L08",
            severity="error",
            where=named(node),
            why="no zero point: ONNX means UINT8 codes from 0 then, TensorRT INT8 around 0",
            mend="Quantize to INT8 with a zero point of 0",
        )
    elif _code_type(kind) not in SYMMETRIC:
        yield Finding(
            rule="L03",
            severity="error",
            where=named(node),
            why=f"its codes are {_code_type(kind)}; TensorRT has none of that type",
            mend="Quantize symmetrically: INT8, zero point 0",
        )


def _no_zero(view: View, node: onnx.NodeProto) -> Iterator[Finding]:
    """A DequantizeLinear without a zero point, which old parsers refuse."""
    form = "DequantizeLinear without a zero point"
    if not view.reader.runtime.parses(form):
        yield Finding(
            rule="L08",
            severity="error",
            where=named(node),
            why=f"no zero point, which TensorRT takes {releases().forms[form].words}",
            mend="Write INT8 zeros of the scale's shape",
            repairable=_stored_int8(view, node),
        )


def _code_type(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _stored_int8(view: View, node: onnx.NodeProto) -> bool:
    codes = view.constant(node.input[0])
    return (
        node.op_type == "DequantizeLinear"
        and codes is not None
        and codes.data_type == TensorProto.INT8
    )


def fix_no_zero_point(view: View) -> int:
    """Repair L08 and return at how many places."""
    done = 0
    for node in view.nodes("DequantizeLinear"):
        scale = view.value(node.input[1])
        if (
            (len(node.input) < 3 or not node.input[2])
            and scale is not None
            and _stored_int8(view, node)
        ):
            name = add_named(view, f"{node.input[1]}/zero", np.zeros(scale.shape, dtype=np.int8))
            del node.input[2:]
            node.input.append(name)
            done += 1
    return done


def _is_fp4_scale(view: View, node: onnx.NodeProto) -> bool:
    """Whether the scales of a pair are those of NVFP4's blocks: E4M3 numbers times a constant."""
    maker = view.scope.maker(node.input[1]) if in_blocks(node) else None
    return (
        maker is not None
        and maker.op_type == "DequantizeLinear"
        and view.value(maker.input[1]) is not None
    )


def scales(view: View) -> Iterator[Finding]:
    """L19: scale that is no positive constant."""
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is None and _is_fp4_scale(view, node):
            continue
        if scale is None:
            why = "its scale is computed, and a computed scale crashes the builder"
            yield Finding(
                rule="L19",
                severity="error",
                where=named(node),
                why=why,
                mend="Write the scale as a constant",
            )
        elif (
            not np.isfinite(scale.astype(np.float32)).all()
            or not (scale.astype(np.float32) > 0).all()
        ):
            why = "a scale that is not finite and above 0"
            yield Finding(
                rule="L19", severity="error", where=named(node), why=why, mend="Calibrate it again"
            )
