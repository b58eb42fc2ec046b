"""The rules: what TensorRT would refuse, or accept and silently compute in float, and what of it can be repaired.

Their evidence: facts of the ONNX parser by release, and builds whose layer reports were read (docs/targets.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq.export.lint_view import (
    COMPUTE,
    Finding,
    Version,
    View,
    add_named,
    axis_of,
    dequantized,
    in_blocks,
    named,
    replace_node_,
    weight_axis,
)
from trtq.export.onnx_file import opset_of

HALF_LARGEST = 65504.0
SYMMETRIC = ("int8", "int4", "float8_e4m3fn")  # types of codes around 0 that TensorRT has
# First release whose parser has the op; None: none has.
OPS: dict[str, Version | None] = {
    "HardSwish": (8, 4), "LayerNormalization": (8, 6), "GroupNormalization": (8, 6), "GridSample": (8, 5), "RoiAlign": (8, 5),
    "OneHot": (8, 5), "Trilu": (8, 5), "Mod": (8, 5), "NonZero": (8, 5), "Gelu": (10, 0), "Mish": (10, 0), "CastLike": (10, 0),
    "QLinearConv": None, "QLinearMatMul": None, "QGemm": None, "ConvInteger": None, "MatMulInteger": None, "DynamicQuantizeLinear": None,
}  # fmt: skip

Check = Callable[[View], Iterator[Finding]]
Fix = Callable[[View], int]


def _opset(view: View) -> Iterator[Finding]:
    found = opset_of(view.model)
    if found > view.reader.opset:
        why = f"opset {found}; {view.reader.name} reads up to {view.reader.opset}"
        yield Finding(rule="L01", severity="error", where="the file", why=why, mend=f"Export it with opset {view.reader.opset}")


def _ops(view: View) -> Iterator[Finding]:
    for node in view.nodes():
        if node.op_type not in OPS:
            continue
        first = OPS[node.op_type]
        if first is None:
            why = f"no TensorRT reads {node.op_type}"
            yield Finding(
                rule="L02", severity="error", where=named(node), why=why, mend="Export in Q/DQ format, not with quantized operators"
            )
        elif view.reader.before(first):
            why = f"{node.op_type} exists from TensorRT {first[0]}.{first[1]} on, this is for {view.reader.name}"
            yield Finding(rule="L02", severity="error", where=named(node), why=why, mend="Export that op decomposed")


def _zero_points(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is None or zero.dtype == np.int32 or (not np.any(zero.astype(np.float32)) and str(zero.dtype) in SYMMETRIC):
            continue
        shift = zero.dtype == np.uint8 and bool(np.all(zero == 128))
        why = f"its zero point is {zero.dtype} {int(np.asarray(zero).reshape(-1)[0])}; TensorRT's codes are INT8 around 0"
        mend = "Shift the codes: INT8 with zero point 0 holds the same values" if shift else "Quantize symmetrically, INT8, zero point 0"
        yield Finding(rule="L03", severity="error", where=named(node), why=why, mend=mend, repairable=shift)


def _fix_zero_points(view: View) -> int:
    done = 0
    shifted: dict[str, str] = {}
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is None or zero.dtype != np.uint8 or not np.all(zero == 128):
            continue
        node.input[2] = add_named(view, f"{node.input[2]}/int8", np.zeros(zero.shape, dtype=np.int8))
        codes = view.value(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.dtype == np.uint8:  # stored codes move along
            if node.input[0] not in shifted:
                shifted[node.input[0]] = add_named(view, f"{node.input[0]}/int8", (codes.astype(np.int16) - 128).astype(np.int8))
            node.input[0] = shifted[node.input[0]]
        done += 1
    return done


def _activation_scales(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear"):
        scale = view.value(node.input[1])
        if node.input[0] not in view.constants and scale is not None and scale.size > 1:
            why = f"an activation with {scale.size} scales: the layer behind it runs in float"
            yield Finding(rule="L04", severity="float", where=named(node), why=why, mend="Give activations one scale")


def _weight_axes(view: View) -> Iterator[Finding]:
    for node in view.nodes(*COMPUTE):
        found = view.pair(node.input[1]) if len(node.input) > 1 else None
        if found is None or not view.is_weight(node.input[1]):
            continue
        scale = view.value(found[1].input[1])
        held = view.value(found[0].input[0] if found[0] is not None else found[1].input[0])
        if scale is None or held is None or scale.size <= 1:
            continue
        axis = axis_of(found[1])
        wanted = weight_axis(node, held.ndim)
        if axis is not None and axis % held.ndim != wanted:
            why = f"its weight has scales along axis {axis}, and {node.op_type} takes axis {wanted}: it runs in float"
            yield Finding(rule="L05", severity="float", where=named(node), why=why, mend=f"Quantize the weight along axis {wanted}")


def _missing_axis(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        scale = view.value(node.input[1])
        if scale is not None and scale.size > 1 and axis_of(node) is None:
            why = "a scale for each channel and no axis: parsers up to 10.1 take axis 0, later ones 1"
            yield Finding(
                rule="L06", severity="error", where=named(node), why=why, mend="Write the axis: 1 is what ONNX means", repairable=True
            )


def _fix_missing_axis(view: View) -> int:
    found = [n for n in view.nodes("QuantizeLinear", "DequantizeLinear") if axis_of(n) is None and _several(view, n)]
    for node in found:
        node.attribute.append(helper.make_attribute("axis", 1))
    return len(found)


def _several(view: View, node: onnx.NodeProto) -> bool:
    scale = view.value(node.input[1])
    return scale is not None and scale.size > 1


def _scalar_axis(view: View) -> Iterator[Finding]:
    if not view.reader.before((8, 2)):
        return
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        scale = view.value(node.input[1])
        if scale is not None and scale.ndim == 0 and axis_of(node) is not None:
            why = "an axis beside a single scale, which TensorRT 8.0 rejects"
            yield Finding(rule="L07", severity="error", where=named(node), why=why, mend="Leave the axis out", repairable=True)


def _fix_scalar_axis(view: View) -> int:
    done = 0
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        scale = view.value(node.input[1])
        kept = [a for a in node.attribute if a.name != "axis"]
        if scale is not None and scale.ndim == 0 and len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
            done += 1
    return done


def _no_zero_point(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        if len(node.input) > 2 and node.input[2]:
            continue
        if node.op_type == "QuantizeLinear" and not any(a.name == "output_dtype" for a in node.attribute):
            why = "no zero point: ONNX means UINT8 codes from 0 then, TensorRT INT8 around 0"
            yield Finding(rule="L08", severity="error", where=named(node), why=why, mend="Quantize to INT8 with a zero point of 0")
        elif node.op_type == "DequantizeLinear" and view.reader.before((8, 6)):
            why, stored = "no zero point, which TensorRT needs up to 8.5", _stored_int8(view, node)
            mend = "Write INT8 zeros of the scale's shape"
            yield Finding(rule="L08", severity="error", where=named(node), why=why, mend=mend, repairable=stored)


def _stored_int8(view: View, node: onnx.NodeProto) -> bool:
    held = view.constants.get(node.input[0])
    return node.op_type == "DequantizeLinear" and held is not None and held.data_type == TensorProto.INT8


def _fix_no_zero_point(view: View) -> int:
    done = 0
    for node in view.nodes("DequantizeLinear"):
        scale = view.value(node.input[1])
        if (len(node.input) < 3 or not node.input[2]) and scale is not None and _stored_int8(view, node):
            name = add_named(view, f"{node.input[1]}/zero", np.zeros(scale.shape, dtype=np.int8))
            del node.input[2:]
            node.input.append(name)
            done += 1
    return done


def _int32_bias(view: View) -> Iterator[Finding]:
    for node in view.nodes("DequantizeLinear"):
        held = view.constants.get(node.input[0])
        if held is not None and held.data_type == TensorProto.INT32:
            why = "an INT32 bias with a DequantizeLinear, which every TensorRT rejects"
            yield Finding(
                rule="L09", severity="error", where=named(node), why=why, mend="Keep biases in float (QuantizeBias=False)", repairable=True
            )


def _fix_int32_bias(view: View) -> int:
    found = [
        n for n in view.nodes("DequantizeLinear") if (h := view.constants.get(n.input[0])) is not None and h.data_type == TensorProto.INT32
    ]
    for node in found:
        replace_node_(view, node, dequantized(view, node))
    return len(found)


def _stored_weights(view: View) -> Iterator[Finding]:
    if not view.reader.before((10, 0)):
        return
    for node in view.nodes("DequantizeLinear"):
        held = view.constants.get(node.input[0])
        if held is not None and held.data_type in (TensorProto.INT8, TensorProto.UINT8):
            why, mend = (
                "stored INT8 weights with a DequantizeLinear alone, which TensorRT rejects before 10",
                "Float weights in front of Q and DQ",
            )
            yield Finding(rule="L10", severity="error", where=named(node), why=why, mend=mend, repairable=not in_blocks(node))


def _fix_stored_weights(view: View) -> int:
    done = 0
    for node in view.nodes("DequantizeLinear"):
        held = view.constants.get(node.input[0])
        if held is None or in_blocks(node) or held.data_type not in (TensorProto.INT8, TensorProto.UINT8):
            continue
        if held.data_type == TensorProto.UINT8:  # no INT8 codes hold it: its values stay, its pair goes
            replace_node_(view, node, dequantized(view, node))
            done += 1
            continue
        name = add_named(view, f"{node.output[0]}/float", dequantized(view, node))
        made = helper.make_node(
            "QuantizeLinear", [name, *node.input[1:]], [f"{node.output[0]}/codes"], name=f"{node.name or node.output[0]}/Q"
        )
        axis = axis_of(node)
        if axis is not None:
            made.attribute.append(helper.make_attribute("axis", axis))
        node.input[0] = made.output[0]
        place = list(view.model.graph.node).index(node)
        view.model.graph.node.insert(place, made)
        done += 1
    return done


def _concat(view: View) -> Iterator[Finding]:
    for node in view.nodes("Concat"):
        found = [view.pair(n) for n in node.input]
        scales = {float(np.asarray(s).reshape(-1)[0]) for p in found if p is not None and (s := view.value(p[1].input[1])) is not None}
        behind = view.readers.get(node.output[0], [])
        if all(found) and len(scales) > 1 and any(n.op_type in COMPUTE for n in behind):
            why = f"its inputs have {len(scales)} scales and no pair follows: the layer behind it runs in float"
            yield Finding(
                rule="L11", severity="float", where=named(node), why=why, mend="Give its inputs one scale, or put a pair behind it"
            )


def _average_pool(view: View) -> Iterator[Finding]:
    for node in view.nodes("AveragePool", "GlobalAveragePool"):
        behind = [n for n in view.readers.get(node.output[0], []) if n.op_type in COMPUTE and n.input[0] == node.output[0]]
        if view.pair(node.input[0]) is not None and behind:
            why = f"an average pool between a pair and {named(behind[0])}, which then runs in float"
            yield Finding(rule="L12", severity="float", where=named(node), why=why, mend="Put a pair directly in front of that layer")


def _transposed(view: View) -> Iterator[Finding]:
    for node in view.nodes("ConvTranspose"):
        if any(view.pair(n) is not None for n in node.input[:2]):
            why = "a transposed convolution never runs in INT8; its pairs cost kernels and accuracy"
            yield Finding(rule="L13", severity="float", where=named(node), why=why, mend="Leave it in float", repairable=True)


def _fix_transposed(view: View) -> int:
    done = 0
    for node in view.nodes("ConvTranspose"):
        for i, name in enumerate(node.input[:2]):
            found = view.pair(name)
            if found is not None and found[0] is not None:
                node.input[i] = found[0].input[0]
                done += 1
            elif found is not None:
                node.input[i] = add_named(view, f"{name}/float", dequantized(view, found[1]))
                done += 1
    return done


def _residual(view: View) -> Iterator[Finding]:
    for node in view.nodes("Add"):
        convs = [
            i for i, n in enumerate(node.input) if (p := view.producer.get(n)) is not None and p.op_type == "Conv" and view.pair(p.input[0])
        ]
        if len(convs) != 1 or len(node.input) != 2:
            continue
        other = node.input[1 - convs[0]]
        if other not in view.constants and view.pair(other) is None:
            why = "the shortcut of a residual add has no pair: the add does not fuse into its INT8 convolution"
            yield Finding(
                rule="L14", severity="slow", where=named(node), why=why, mend="Quantize the shortcut, not the convolution's output"
            )


def _inside_fusion(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear"):
        before = view.producer.get(node.input[0])
        if before is None or before.op_type != "Conv":
            continue
        behind = [r for d in view.readers.get(node.output[0], []) for r in view.readers.get(d.output[0], [])]
        inside = next((r for r in behind if r.op_type in ("Relu", "Clip", "BatchNormalization", "HardSwish", "Sigmoid")), None)
        if inside is not None:
            why = f"a pair between {named(before)} and {named(inside)}: the two no longer fuse"
            yield Finding(rule="L15", severity="slow", where=named(node), why=why, mend="Put the pair behind the activation")


def _sensitive(view: View) -> Iterator[Finding]:
    for node in view.nodes("LayerNormalization", "Softmax", "Gelu", "InstanceNormalization", "GroupNormalization"):
        if view.pair(node.input[0]) is not None:
            why = f"a pair in front of {node.op_type}, which computes in float anyway: accuracy lost for nothing"
            yield Finding(rule="L16", severity="slow", where=named(node), why=why, mend="Take the pair away")


def _dynamic(view: View) -> Iterator[Finding]:
    for value in view.model.graph.input:
        if value.name in view.constants:
            continue
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if i and not dim.HasField("dim_value"):
                why = f"axis {i} has no size: a build needs a profile for it"
                yield Finding(
                    rule="L17", severity="error", where=value.name, why=why, mend="Export it with a fixed size; only the batch may be open"
                )


def _names(view: View) -> Iterator[Finding]:
    seen: set[str] = set()
    for node in view.nodes():
        if node.name and node.name in seen:
            why = "another node has the same name: layer reports and precisions by name mix them up"
            yield Finding(rule="L18", severity="slow", where=node.name, why=why, mend="Give it a name of its own", repairable=True)
        if any(c in node.name for c in '"\\'):
            why = "a quote or backslash in the name breaks trtexec's profile JSON"
            yield Finding(rule="L18", severity="slow", where=node.name, why=why, mend="Rename it", repairable=True)
        seen.add(node.name)


def _fix_names(view: View) -> int:
    seen: set[str] = set()
    done = 0
    for node in view.nodes():
        wanted = clean = node.name.replace('"', "_").replace("\\", "_")
        k = 1
        while wanted and wanted in seen:
            wanted, k = f"{clean}_{k}", k + 1
        done += wanted != node.name
        node.name = wanted
        seen.add(wanted)
    return done


def _scales(view: View) -> Iterator[Finding]:
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        scale = view.value(node.input[1])
        if scale is None:
            why = "its scale is computed, and a computed scale crashes the builder"
            yield Finding(rule="L19", severity="error", where=named(node), why=why, mend="Write the scale as a constant")
        elif not np.isfinite(scale.astype(np.float32)).all() or not (scale.astype(np.float32) > 0).all():
            why = "a scale that is not finite and above 0"
            yield Finding(rule="L19", severity="error", where=named(node), why=why, mend="Calibrate it again")


def _half(view: View) -> Iterator[Finding]:
    for name, held in view.constants.items():
        if held.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            values = numpy_helper.to_array(held).astype(np.float64)
            largest = float(np.abs(values[~np.isinf(values)]).max()) if np.isfinite(values).any() else 0.0
            if held.data_type == TensorProto.FLOAT16 and not np.isfinite(values).all():
                why = "an FP16 constant that is infinite"
                yield Finding(rule="L20", severity="error", where=name, why=why, mend="Keep what reads it in FP32")
            elif largest > HALF_LARGEST:
                why = f"a constant of magnitude {largest:.3g}: what reads it cannot compute in FP16"
                yield Finding(rule="L20", severity="slow", where=name, why=why, mend="Clip it at 65504 if it is a bound")


def _hardware(view: View) -> Iterator[Finding]:
    pairs = len(view.nodes("QuantizeLinear", "DequantizeLinear"))
    if pairs and "INT8" not in view.reader.formats:
        why = f"Q/DQ pairs, and {view.reader.name} has no INT8 arithmetic: the build fails"
        yield Finding(
            rule="L21", severity="error", where="the file", why=why, mend="Build FP16 of the same model: trtq build ... --fallback"
        )
    fp8 = any(h.data_type == TensorProto.FLOAT8E4M3FN for h in view.constants.values())
    if fp8 and "FP8" not in view.reader.formats:
        why = f"FP8 codes, and {view.reader.name} has no FP8 arithmetic"
        yield Finding(
            rule="L21", severity="error", where="the file", why=why, mend="Quantize to INT8, or build for compute capability 8.9 and later"
        )


def _halves(view: View) -> Iterator[Finding]:
    for node in view.nodes(*COMPUTE):
        pairs = [view.pair(name) is not None for name in node.input[:2]]
        four = any(h.data_type in (TensorProto.INT4, TensorProto.UINT4) for n in node.input[:2] if (h := _codes(view, n)) is not None)
        if len(pairs) == 2 and pairs[0] != pairs[1] and not four:
            which = ("input", "weight")[pairs.index(True)] if node.input[1] in view.constants or pairs[1] else "one operand"
            why = f"only its {which} has a pair: it computes in float"
            yield Finding(rule="L22", severity="float", where=named(node), why=why, mend="Quantize both operands, or neither")


def _codes(view: View, name: str) -> onnx.TensorProto | None:
    found = view.pair(name)
    return view.constants.get(found[1].input[0]) if found is not None else None


RULES: tuple[tuple[str, str, Check, Fix | None], ...] = (
    ("L01", "opset newer than the parser reads", _opset, None),
    ("L02", "op that the release does not have", _ops, None),
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
    ("L17", "dynamic axis other than the batch", _dynamic, None),
    ("L18", "node names that clash or break reports", _names, _fix_names),
    ("L19", "scale that is no positive constant", _scales, None),
    ("L20", "constant beyond FP16", _half, None),
    ("L21", "codes that the hardware does not multiply in", _hardware, None),
    ("L22", "layer with a pair on one operand only", _halves, None),
)
