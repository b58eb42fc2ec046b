"""The lint rules for what TensorRT refuses, or accepts and silently computes in float.

Some of the findings can be repaired.

The evidence: facts of the ONNX parser by release, and builds whose layer reports were read
(docs/targets.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq.export.lint_view import (
    COMPUTE,
    Finding,
    Severity,
    View,
    add_named,
    dequantized,
    in_blocks,
    named,
    replace_node_,
    weight_axis,
)
from trtq.onnx_walk import QDQ, all_nodes, all_tensors, axis_of

HALF_LARGEST = 65504.0
SYMMETRIC = (
    "int8",
    "int4",
    "float8_e4m3fn",
    "float4_e2m1fn",
)  # types of codes around 0 that TensorRT has
FLOAT_POOLS = ("AveragePool", "GlobalAveragePool")

Check = Callable[[View], Iterator[Finding]]
Fix = Callable[[View], int]


def _zero_points(view: View) -> Iterator[Finding]:
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
    zero = view.zero_point(node)
    if zero is None or zero.dtype != np.uint8 or not np.all(zero == 128):
        return False
    codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    if codes in view.constants:
        return view.constants[codes].data_type == TensorProto.UINT8
    maker = view.producer.get(codes)
    if (
        maker is None
        or maker.op_type != "QuantizeLinear"
        or codes in {o.name for o in view.graph.output}
    ):
        return False
    both = [maker, *view.readers.get(codes, [])]
    zeros = [view.zero_point(n) if n.op_type in QDQ else None for n in both]
    return all(z is not None and z.dtype == np.uint8 and bool(np.all(z == 128)) for z in zeros)


def _fix_zero_points(view: View) -> int:
    found = [n for n in view.nodes(*QDQ) if _shifts(view, n)]
    shifted = []
    for node in found:
        zero, codes = view.zero_point(node), view.constants.get(node.input[0])
        assert zero is not None
        stored = codes is not None and node.op_type == "DequantizeLinear"
        values = view.value(node.input[0]) if stored else None
        shifted.append((node, zero, values))
    for node, zero, values in shifted:
        node.input[2] = add_named(
            view, f"{node.input[2]}/int8", np.zeros(zero.shape, dtype=np.int8)
        )
        if values is not None:  # stored codes move along
            node.input[0] = add_named(
                view, f"{node.input[0]}/int8", (values.astype(np.int16) - 128).astype(np.int8)
            )
    return len(found)


def _activation_scales(view: View) -> Iterator[Finding]:
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


def _single_scales(view: View) -> Iterator[Finding]:
    """L25: activation scales of shape [1].

    Parsers up to 10.1 take such a scale as one scale, newer ones as a scale for each channel.
    """
    if view.reader.before((10, 2)):
        return
    for node in _single(view):
        why = (
            "an activation scale of shape [1], which is taken for a scale for each channel: the "
            "layer behind it runs in float"
        )
        severity: Severity = (
            "error" if view.reader.rtx else "float"
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
    found = []
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is None or scale.size != 1 or scale.ndim == 0 or in_blocks(node):
            continue
        source = view.scope.moved(node.input[0])[0]
        q = view.scope.maker(source) if node.op_type == "DequantizeLinear" else node
        if q is not None and not view.is_constant(q.input[0]):
            found.append(node)
    return found


def _fix_single_scales(view: View) -> int:
    found = _single(view)
    for node in found:
        scale, zero = view.value(node.input[1]), view.zero_point(node)
        assert scale is not None
        node.input[1] = add_named(view, f"{node.input[1]}/scalar", scale.reshape(()))
        if zero is not None:
            node.input[2] = add_named(view, f"{node.input[2]}/scalar", zero.reshape(()))
        _remove_axis_(node)
    return len(found)


def _remove_axis_(node: onnx.NodeProto) -> bool:
    kept = [a for a in node.attribute if a.name != "axis"]
    changed = len(kept) < len(node.attribute)
    del node.attribute[:]
    node.attribute.extend(kept)
    return changed


def _weight_axes(view: View) -> Iterator[Finding]:
    for node in view.nodes(*COMPUTE):
        found = view.pair(node.input[1]) if len(node.input) > 1 else None
        if found is None or not view.is_constant(found.source) or in_blocks(found.dq):
            continue
        along = view.scope.channels(found)
        if along is not None and along[0] != weight_axis(node, along[1]):
            wanted = weight_axis(node, along[1])
            why = (
                f"its weight has scales along axis {along[0]}, and {node.op_type} takes axis "
                f"{wanted}: it runs in float"
            )
            yield Finding(
                rule="L05",
                severity="float",
                where=named(node),
                why=why,
                mend=f"Quantize the weight along axis {wanted}",
            )


def _missing_axis(view: View) -> Iterator[Finding]:
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is not None and scale.size > 1 and axis_of(node) is None:
            why = (
                "a scale for each channel and no axis: parsers up to 10.1 take axis 0, later ones 1"
            )
            yield Finding(
                rule="L06",
                severity="error",
                where=named(node),
                why=why,
                mend="Write the axis: 1 is what ONNX means",
                repairable=True,
            )


def _fix_missing_axis(view: View) -> int:
    found = [n for n in view.nodes(*QDQ) if axis_of(n) is None and _several(view, n)]
    for node in found:
        node.attribute.append(helper.make_attribute("axis", 1))
    return len(found)


def _several(view: View, node: onnx.NodeProto) -> bool:
    scale = view.value(node.input[1])
    return scale is not None and scale.size > 1


def _scalar_axis(view: View) -> Iterator[Finding]:
    if not view.reader.before((8, 2)):
        return
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
        if scale is not None and scale.ndim == 0 and axis_of(node) is not None:
            why = "an axis beside a single scale, which TensorRT 8.0 rejects"
            yield Finding(
                rule="L07",
                severity="error",
                where=named(node),
                why=why,
                mend="Leave the axis out",
                repairable=True,
            )


def _fix_scalar_axis(view: View) -> int:
    scalars = [
        n for n in view.nodes(*QDQ) if (v := view.value(n.input[1])) is not None and v.ndim == 0
    ]
    return sum(_remove_axis_(n) for n in scalars)


def _no_zero_point(view: View) -> Iterator[Finding]:
    for node in view.nodes(*QDQ):
        if len(node.input) > 2 and node.input[2]:
            continue
        kind = next(
            (a.i for a in node.attribute if a.name == "output_dtype"), TensorProto.UNDEFINED
        )
        if node.op_type == "QuantizeLinear" and kind in (TensorProto.UNDEFINED, TensorProto.UINT8):
            why = "no zero point: ONNX means UINT8 codes from 0 then, TensorRT INT8 around 0"
            yield Finding(
                rule="L08",
                severity="error",
                where=named(node),
                why=why,
                mend="Quantize to INT8 with a zero point of 0",
            )
        elif node.op_type == "QuantizeLinear" and _code_type(kind) not in SYMMETRIC:
            why = f"its codes are {_code_type(kind)}; TensorRT has none of that type"
            yield Finding(
                rule="L03",
                severity="error",
                where=named(node),
                why=why,
                mend="Quantize symmetrically: INT8, zero point 0",
            )
        elif node.op_type == "DequantizeLinear" and view.reader.before((8, 6)):
            why, stored = "no zero point, which TensorRT needs up to 8.5", _stored_int8(view, node)
            mend = "Write INT8 zeros of the scale's shape"
            yield Finding(
                rule="L08",
                severity="error",
                where=named(node),
                why=why,
                mend=mend,
                repairable=stored,
            )


def _code_type(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _stored_int8(view: View, node: onnx.NodeProto) -> bool:
    held = view.constant(node.input[0])
    return (
        node.op_type == "DequantizeLinear"
        and held is not None
        and held.data_type == TensorProto.INT8
    )


def _fix_no_zero_point(view: View) -> int:
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


def _int32_bias(view: View) -> Iterator[Finding]:
    for node in _int32(view):
        why = "an INT32 bias with a DequantizeLinear, which every TensorRT rejects"
        mend = "Keep biases in float (QuantizeBias=False)"
        yield Finding(
            rule="L09",
            severity="error",
            where=named(node),
            why=why,
            mend=mend,
            repairable=_readable(view, node),
        )


def _int32(view: View) -> list[onnx.NodeProto]:
    return [n for n in view.nodes("DequantizeLinear") if _stored_as(view, n) == np.int32]


def _stored_as(view: View, node: onnx.NodeProto) -> np.dtype | None:
    """Return the type of the codes that a DequantizeLinear reads from constants.

    Returns None for computed codes.
    """
    codes = view.value(node.input[0])
    return codes.dtype if codes is not None else None


def _readable(view: View, node: onnx.NodeProto) -> bool:
    """Whether the values of stored codes can be written as a constant."""
    return not in_blocks(node) and view.value(node.input[1]) is not None


def _fix_int32_bias(view: View) -> int:
    found = [n for n in _int32(view) if _readable(view, n)]
    for node in found:
        replace_node_(view, node, dequantized(view, node))
    return len(found)


def _stored_weights(view: View) -> Iterator[Finding]:
    if not view.reader.before((10, 0)):
        return
    for node in view.nodes("DequantizeLinear"):
        if _stored_as(view, node) in (np.int8, np.uint8):
            why = (
                "stored INT8 weights with a DequantizeLinear alone, which TensorRT rejects "
                "before 10"
            )
            mend, can = "Float weights in front of Q and DQ", _readable(view, node)
            yield Finding(
                rule="L10", severity="error", where=named(node), why=why, mend=mend, repairable=can
            )


def _fix_stored_weights(view: View) -> int:
    found = [
        n
        for n in view.nodes("DequantizeLinear")
        if _stored_as(view, n) in (np.int8, np.uint8) and _readable(view, n)
    ]
    for node in found:
        value = dequantized(view, node)
        if (
            _stored_as(view, node) == np.uint8
        ):  # no INT8 codes hold it: its values stay, its pair is removed
            replace_node_(view, node, value)
            continue
        name = add_named(view, f"{node.output[0]}/float", value)
        made = helper.make_node(
            "QuantizeLinear",
            [name, *node.input[1:]],
            [f"{node.output[0]}/codes"],
            name=f"{node.name or node.output[0]}/Q",
        )
        axis = axis_of(node)
        if axis is not None:
            made.attribute.append(helper.make_attribute("axis", axis))
        node.input[0] = made.output[0]
        place = next(i for i, n in enumerate(view.graph.node) if n == node)
        view.graph.node.insert(place, made)
    return len(found)


def _concat(view: View) -> Iterator[Finding]:
    for node in view.nodes("Concat"):
        pairs = [p for n in node.input if (p := view.pair(n)) is not None]
        scales = {
            float(np.asarray(s).reshape(-1)[0])
            for p in pairs
            if (s := view.value(p.dq.input[1])) is not None
        }
        behind = _readers_behind(view, node.output[0])
        if (
            len(pairs) == len(node.input)
            and len(scales) > 1
            and any(n.op_type in COMPUTE for n in behind)
        ):
            why = (
                f"its inputs have {len(scales)} scales and no pair follows: the layer behind it "
                "runs in float"
            )
            mend = "Give its inputs one scale, or put a pair behind it"
            yield Finding(rule="L11", severity="float", where=named(node), why=why, mend=mend)


def _readers_behind(view: View, name: str) -> list[onnx.NodeProto]:
    """Return the readers of a tensor, through ops that only move values."""
    found, left = list[onnx.NodeProto](), [name]
    while left:
        for node in view.readers.get(left.pop(), []):
            moves = node.output and view.scope.moved(node.output[0])[1]
            if moves and node.op_type not in COMPUTE:
                left += node.output[:1]
            else:
                found.append(node)
    return found


def _average_pool(view: View) -> Iterator[Finding]:
    for node in view.nodes(*FLOAT_POOLS):
        if view.pair(node.input[0]) is None:
            continue
        behind = [n for n in _readers_behind(view, node.output[0]) if n.op_type in COMPUTE]
        inputs = [n for n in behind if view.scope.moved(n.input[0])[0] == node.output[0]]
        if inputs:
            why = f"an average pool between a pair and {named(inputs[0])}, which then runs in float"
            yield Finding(
                rule="L12",
                severity="float",
                where=named(node),
                why=why,
                mend="Put a pair directly in front of that layer",
            )


def _transposed(view: View) -> Iterator[Finding]:
    for node in view.nodes("ConvTranspose"):
        if any(view.pair(n) is not None for n in node.input[:2]):
            why = "a transposed convolution never runs in INT8; its pairs cost kernels and accuracy"
            mend = "Leave it in float: --fix does that with --allow-value-changes"
            yield Finding(
                rule="L13",
                severity="float",
                where=named(node),
                why=why,
                mend=mend,
                changes_values=True,
            )


def _fix_transposed(view: View) -> int:
    done = 0
    for node in view.nodes("ConvTranspose"):
        for i, name in enumerate(node.input[:2]):
            found = view.pair(name)
            if found is None or found.path:  # what moves the values reads the pair, too
                continue
            if found.q is not None:
                node.input[i] = found.q.input[0]
            elif view.value(found.dq.input[0]) is not None and _readable(view, found.dq):
                node.input[i] = add_named(view, f"{name}/float", dequantized(view, found.dq))
            else:
                continue
            done += 1
    return done


def _residual(view: View) -> Iterator[Finding]:
    for node in view.nodes("Add"):
        convs = [
            i
            for i, n in enumerate(node.input)
            if (p := view.producer.get(n)) is not None
            and p.op_type == "Conv"
            and view.pair(p.input[0])
        ]
        if len(convs) != 1 or len(node.input) != 2:
            continue
        other = node.input[1 - convs[0]]
        if not view.is_constant(other) and view.pair(other) is None:
            why = (
                "the shortcut of a residual add has no pair: the add does not fuse into its "
                "INT8 convolution"
            )
            yield Finding(
                rule="L14",
                severity="slow",
                where=named(node),
                why=why,
                mend="Quantize the shortcut, not the convolution's output",
            )


def _inside_fusion(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear"):
        before = view.producer.get(node.input[0])
        if before is None or before.op_type != "Conv":
            continue
        behind = [
            r
            for d in view.readers.get(node.output[0], [])
            for r in view.readers.get(d.output[0], [])
        ]
        inside = next(
            (
                r
                for r in behind
                if r.op_type in ("Relu", "Clip", "BatchNormalization", "HardSwish", "Sigmoid")
            ),
            None,
        )
        if inside is not None:
            why = f"a pair between {named(before)} and {named(inside)}: the two no longer fuse"
            yield Finding(
                rule="L15",
                severity="slow",
                where=named(node),
                why=why,
                mend="Put the pair behind the activation",
            )


def _sensitive(view: View) -> Iterator[Finding]:
    for node in view.nodes(
        "LayerNormalization", "Softmax", "Gelu", "InstanceNormalization", "GroupNormalization"
    ):
        if view.pair(node.input[0]) is not None:
            why = (
                f"a pair in front of {node.op_type}, which computes in float anyway: accuracy "
                "lost for nothing"
            )
            yield Finding(
                rule="L16", severity="slow", where=named(node), why=why, mend="Take the pair away"
            )


def _names(view: View) -> Iterator[Finding]:
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


def _fix_names(view: View) -> int:
    seen, taken = set[str](), {n.name for n in view.nodes()}
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


def _scales(view: View) -> Iterator[Finding]:
    for node in view.nodes(*QDQ):
        scale = view.value(node.input[1])
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


def _read_floats(view: View) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the float constants that something reads."""
    outputs = {o.name for o in view.graph.output}
    for name, held in view.constants.items():
        read = name in view.readers or name in outputs
        if read and held.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            yield name, numpy_helper.to_array(held)


def _finite(view: View) -> Iterator[Finding]:
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


def _half(view: View) -> Iterator[Finding]:
    for name, values in _read_floats(view):
        finite = values[np.isfinite(values)].astype(np.float64)
        largest = float(np.abs(finite).max()) if finite.size else 0.0
        if largest > HALF_LARGEST:
            why = f"a constant of magnitude {largest:.3g}: what reads it cannot compute in FP16"
            yield Finding(
                rule="L20",
                severity="slow",
                where=name,
                why=why,
                mend="Clip it at 65504 if it is a bound",
            )


def _hardware(view: View) -> Iterator[Finding]:
    if not view.main:
        return
    pairs = any(n.op_type in QDQ for n in all_nodes(view.model))
    if pairs and "INT8" not in view.reader.formats:
        why = f"Q/DQ pairs, and {view.reader.name} has no INT8 arithmetic: the build fails"
        yield Finding(
            rule="L21",
            severity="error",
            where="the file",
            why=why,
            mend="Build FP16 of the same model: trtq build ... --fallback",
        )
    fp8 = any(h.data_type == TensorProto.FLOAT8E4M3FN for h in all_tensors(view.model))
    if fp8 and "FP8" not in view.reader.formats:
        why = f"FP8 codes, and {view.reader.name} has no FP8 arithmetic"
        yield Finding(
            rule="L21",
            severity="error",
            where="the file",
            why=why,
            mend="Quantize to INT8, or build for compute capability 8.9 and later",
        )


def _halves(view: View) -> Iterator[Finding]:
    for node in view.nodes(*COMPUTE):
        pairs = [view.pair(name) is not None for name in node.input[:2]]
        four = any(
            h.dtype.name in ("int4", "uint4")
            for n in node.input[:2]
            if (h := _codes(view, n)) is not None
        )
        if len(pairs) == 2 and pairs[0] != pairs[1] and not four:
            which = (
                ("input", "weight")[pairs.index(True)]
                if view.is_constant(node.input[1]) or pairs[1]
                else "one operand"
            )
            why = f"only its {which} has a pair: it computes in float"
            yield Finding(
                rule="L22",
                severity="float",
                where=named(node),
                why=why,
                mend="Quantize both operands, or neither",
            )


def _codes(view: View, name: str) -> np.ndarray | None:
    found = view.pair(name)
    return view.value(found.dq.input[0]) if found is not None else None


RULES: tuple[tuple[str, str, Check, Fix | None], ...] = (
    ("L03", "zero point other than INT8 zero", _zero_points, _fix_zero_points),
    ("L04", "activation with a scale for each channel", _activation_scales, None),
    ("L05", "weight scales along the wrong axis", _weight_axes, None),
    ("L06", "scale for each channel without an axis", _missing_axis, _fix_missing_axis),
    ("L07", "axis beside a single scale (8.0)", _scalar_axis, _fix_scalar_axis),
    ("L08", "no zero point: UINT8 to ONNX, INT8 to TensorRT", _no_zero_point, _fix_no_zero_point),
    ("L09", "INT32 bias with a DequantizeLinear", _int32_bias, _fix_int32_bias),
    ("L10", "stored INT8 weights before TensorRT 10", _stored_weights, _fix_stored_weights),
    ("L11", "Concat of unequal scales", _concat, None),
    ("L12", "average pool between a pair and a layer", _average_pool, None),
    ("L13", "quantized transposed convolution", _transposed, _fix_transposed),
    ("L14", "residual add without a pair on its shortcut", _residual, None),
    ("L15", "pair between a convolution and its activation", _inside_fusion, None),
    ("L16", "pair in front of an op that computes in float", _sensitive, None),
    ("L18", "node names that clash or break reports", _names, _fix_names),
    ("L19", "scale that is no positive constant", _scales, None),
    ("L20", "constant beyond FP16", _half, None),
    ("L21", "codes that the hardware does not multiply in", _hardware, None),
    ("L22", "layer with a pair on one operand only", _halves, None),
    ("L26", "constant that is NaN, or an infinite weight", _finite, None),
    ("L25", "activation scale of shape [1]", _single_scales, _fix_single_scales),
)
