"""The table of operators: every row exists, every question has one answer, no list repeats it."""

from __future__ import annotations

import ast
import operator
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
import torchvision  # registers its ops
from onnx import helper
from torch import fx, nn

import trtq
import trtq.graph.opaque  # registers its op, too
from trtq import ops
from trtq.cost.count import list_ops
from trtq.cost.onnx_file import list_onnx_ops
from trtq.export import write_base
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture
from trtq.ops.lookup import TABLE, UNKNOWN
from trtq.ops.row import pointwise
from trtq.quant.fake_quantize import FAKE_QUANTIZE, FakeQuantizeCall

PACKAGE = Path(trtq.__file__).parent
FORMS = [form for row in TABLE for form in row.aten]
ONNX_TYPES = [kind for row in TABLE for kind in row.onnx]


def resolve(form):
    """Return what a form of the table names."""
    first, *rest = form.split(".")
    if first == "operator":
        return getattr(operator, *rest)
    namespace, name, overload = (first, *rest) if len(rest) == 2 else ("aten", first, *rest)
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def call(target, *args):
    return fx.Graph().call_function(target, args)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_exists_in_torch_and_is_found_by_its_call(form):
    assert torchvision.__version__
    target = resolve(form)
    assert ops.form_of(target) == form
    assert form in ops.as_written(call(target)).aten


@pytest.mark.parametrize("kind", ONNX_TYPES)
def test_an_op_type_exists_in_onnx_and_is_found_by_its_node(kind):
    assert onnx.defs.has(kind)
    assert kind in ops.of(helper.make_node(kind, [], [])).onnx


def test_names_forms_and_op_types_belong_to_one_row():
    for values in ([row.name for row in TABLE], FORMS, ONNX_TYPES):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("row", [r for r in TABLE if r.write], ids=lambda r: r.name)
def test_a_row_names_a_function_that_writes_it(row):
    assert row.aten
    for form in row.aten:
        assert callable(write_base.writer_of(call(resolve(form))))


def test_pointwise_rows_are_those_that_torch_calls_pointwise():
    untagged = {"hardswish", "prelu", "rsub", "floor_divide", "bitwise_and", "bitwise_or"}
    for row in TABLE:
        targets = [resolve(f) for f in row.aten if not f.startswith("operator.")]
        tagged = any(torch.Tag.pointwise in t.tags for t in targets)
        if row.cost == "pointwise":
            assert tagged or not targets or row.name in untagged | {"where_scalar"}, row.name
        elif tagged:
            assert row.name in ("cast", "identity"), row.name


def test_a_general_convolution_is_what_its_flag_says():
    args = (None, None, None, [1], [0], [1], True, [0], 1)
    target = torch.ops.aten.convolution.default
    assert ops.kind(call(target, *args)) == "conv_transpose"
    assert ops.kind(call(target, *args[:6], False, *args[7:])) == "conv"
    assert ops.as_written(call(target, *args)).name == "convolution"


def test_what_is_no_call_of_the_table_is_unknown():
    graph = fx.Graph()
    assert ops.of(graph.placeholder("relu")) is UNKNOWN
    assert ops.of(graph.get_attr("relu")) is UNKNOWN
    assert ops.of(call(torch.ops.aten.cumprod.default)) is UNKNOWN
    assert ops.of(helper.make_node("Unique", [], [])) is UNKNOWN
    assert not UNKNOWN.traits and not UNKNOWN.kind


def test_questions_about_onnx_need_no_torch():
    code = (
        "import sys, onnx; from trtq import ops, onnx_walk;"
        "assert ops.kind(onnx.helper.make_node('Conv', [], [])) == 'conv';"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_new_activation_is_one_row(monkeypatch):
    """The documents say so: logit-like activations that ONNX has need nothing but a row."""
    row = pointwise("celu", "celu.default", "Celu", attributes={"alpha": 1.0})
    monkeypatch.setitem(ops.lookup._BY_FORM, "celu.default", row)
    monkeypatch.setitem(ops.lookup._BY_ONNX, "Celu", row)
    captured = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.CELU(0.5)).eval(), (3, 8, 8))
    model = export_onnx(captured.module)
    assert [n.op_type for n in model.graph.node][-1] == "Celu"
    assert model.graph.node[-1].attribute[0].f == 0.5
    for found in (list_ops(captured.module, captured.examples), list_onnx_ops(model, "m.onnx")):
        assert [op.kind for op in found] == ["conv", "pointwise"]


def test_a_fake_quantize_call_names_its_arguments():
    graph = fx.Graph()
    x = graph.get_attr("weight")
    node = graph.call_function(FAKE_QUANTIZE, (x, None, None, 0, -8, 7, "a.weight"))
    found = FakeQuantizeCall.of(node)
    assert found is not None and found.of_constant
    assert (found.axis, found.qmin, found.name, found.kind) == (0, -8, "a.weight", "uniform")
    assert FakeQuantizeCall.of(x) is None


# What a module may list by itself: the forms that one normalisation pass rewrites, what releases
# of TensorRT read, which sums overflow in FP16, and where old calibration caches have their ranges.
OWN_LISTS = (
    "graph/normalize.py",
    "export/lint",
    "export/fp16_ranges.py",
    "engine/versions.py",
    "platform/",
    "export/cache_ranges.py",
    "testing/",
    "reader/",  # its rules are of op types: what a row's reading function does for each of them
)


def listed(node):
    """Return the ATen forms and the ONNX op types that a literal lists."""
    items = [k for k in node.keys if k] if isinstance(node, ast.Dict) else node.elts
    forms = [ast.unparse(i) for i in items if isinstance(i, ast.Attribute)]
    texts = [i.value for i in items if isinstance(i, ast.Constant)]
    aten = [f for f in forms if f.startswith(("aten.", "torch.ops.aten."))]
    return aten if len(aten) > 1 else [t for t in texts if t in ONNX_TYPES]


def test_no_other_module_lists_operators():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("ops/") or name.startswith(OWN_LISTS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)) and len(listed(node)) > 1:
                found[f"{name}:{node.lineno}"] = listed(node)
    assert not found
