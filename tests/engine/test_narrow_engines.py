"""Engines of INT4 weights, FP8 and NVFP4: the plan itself says what it stores and computes in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trtq
from tests.support.narrow import Layers, vectors
from trtq.commands.audit import audit
from trtq.engine.lint_target import reader_of
from trtq.engine.manifest import manifest_path
from trtq.errors import EngineError
from trtq.export.codes import codes_of, count_qdq
from trtq.export.lint import lint
from trtq.platform.target import Target
from trtq.specs import AuditSpec, CostSpec

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The network in each format, as ONNX files."""
    folder = tmp_path_factory.mktemp("narrow")
    made = {}
    for bits in ("w4a16:128", "fp8", "nvfp4"):
        done = trtq.quantize(
            Layers().eval(), vectors(), bits=bits, preset_quant="none", calib_cache=str(folder)
        )
        made[bits] = folder / f"{bits.replace(':', '-')}.onnx"
        done.export().save(made[bits])
    return made


@pytest.mark.parametrize(
    ("bits", "target", "codes", "said"),
    [
        ("w4a16:128", "rtx3080", "INT4", "2 weights in INT4"),
        ("fp8", "rtx4090", "FP8", "4 of 4 quantized layers in FP8"),
        ("nvfp4", "rtx5090", "NVFP4", "2 of 2 quantized layers in NVFP4"),
    ],
)
def test_the_plan_stores_and_computes_what_was_asked_for(
    files, tmp_path, bits, target, codes, said
):
    engine = tmp_path / "e.engine"
    built = trtq.build(str(files[bits]), target=target, precision="fp16", out=str(engine))
    manifest = built if hasattr(built, "audit") else built.manifest
    assert manifest.codes == codes and said in manifest.summary
    assert manifest_path(engine).is_file()
    stored = {"w4a16:128": ("int4", 2), "fp8": ("fp8", 4), "nvfp4": ("fp4", 2)}
    kind, count = stored[bits]
    assert manifest.audit.weights[kind] == count
    rows = audit(AuditSpec(file=str(engine), onnx=str(files[bits]))).modules
    asked = [r for r in rows if r.requested != "float"]
    assert len(asked) == {"w4a16:128": 0, "fp8": 4, "nvfp4": 2}[bits]
    assert all(r.actual == r.requested for r in asked)


def test_a_card_without_the_format_is_refused_before_the_build(files, tmp_path):
    with pytest.raises(
        EngineError, match=r"Cannot build NVFP4 for GeForce RTX 4090: .* no FP4 .*12\.0"
    ):
        trtq.build(str(files["nvfp4"]), target="rtx4090", out=str(tmp_path / "e.engine"))
    with pytest.raises(EngineError, match=r"Cannot build FP8 for GeForce RTX 3080"):
        trtq.build(str(files["fp8"]), target="rtx3080", out=str(tmp_path / "e.engine"))


def test_lint_and_counts_know_the_formats(files):
    model = onnx.load(files["nvfp4"])
    assert codes_of(model) == "NVFP4" and count_qdq(model) == 4
    assert lint(model, reader_of(Target.parse("rtx5090"))) == []
    found = lint(model, reader_of(Target.parse("rtx4090")))
    assert [f.rule for f in found] == ["L21"] and "FP4 arithmetic" in found[0].why
    model = onnx.load(files["w4a16:128"])
    assert codes_of(model) == "INT4" and count_qdq(model) == 2
    assert lint(model, reader_of(Target.parse("rtx3080"))) == []


def test_costs_count_four_bits_and_the_sizes_behind_them(files):
    cost = trtq.cost(CostSpec(model=str(files["nvfp4"]), device="rtx5090"))
    rows = {row.layer.name: row for row in cost.rows}
    assert rows["second"].layer.macs == 256 * 256
    assert rows["second"].bytes_moved < rows["first"].bytes_moved
    assert {k.name: k.precision for k in cost.latency.kernels}["second"] == "fp4"


def test_stored_codes_of_8_bits_make_a_file_quantized():
    """A file with INT8 weights and a DequantizeLinear alone is not float."""
    constants = [
        numpy_helper.from_array(np.ones((4, 4), np.int8), "codes"),
        numpy_helper.from_array(np.float32(0.5), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    x, y = (value(n, onnx.TensorProto.FLOAT, [1, 4]) for n in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants))
    assert codes_of(model) == "INT8" and count_qdq(model) == 1
