"""Lint: one small wrong graph and one right one for every rule; repairs change no value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.conftest import run_cli
from tests.support.lint_graphs import (
    RNG,
    Build,
    activation,
    bare_axis,
    bias,
    cast_through,
    computed_scale,
    concat,
    constant,
    fused,
    half,
    names,
    no_zero,
    plain,
    pooled,
    residual,
    scalar_axis,
    scale_of,
    softmax,
    stored,
    transposed,
    with_op,
    zero_point,
)
from trtq import LintSpec, run_lint
from trtq.commands.lint import reader_of
from trtq.errors import UsageError
from trtq.export.lint import RULES, lint, repair
from trtq.export.ort import open_session, run_batch
from trtq.platform.target import Target

CASES = {
    "L01": (lambda: with_op("Relu"), plain, "xavier@8.5"),
    "L02": (lambda: with_op("Gelu"), lambda: with_op("Relu"), "sm86@8.6"),
    "L03": (lambda: zero_point(np.uint8(128)), lambda: zero_point(np.int8(0)), "rtx3080"),
    "L04": (lambda: activation(np.full(3, 0.05), 1), lambda: activation(0.05), "rtx3080"),
    "L05": (lambda: plain(axis=1), lambda: plain(axis=0), "rtx3080"),
    "L06": (bare_axis, plain, "rtx3080"),
    "L07": (lambda: scalar_axis(1), lambda: scalar_axis(None), "sm86@8.0"),
    "L08": (lambda: stored("codes, no zero"), lambda: no_zero(True), "xavier@8.5"),
    "L09": (lambda: bias("int32"), lambda: bias("float"), "rtx3080"),
    "L10": (lambda: stored("codes"), lambda: stored("float"), "xavier@8.5"),
    "L11": (lambda: concat(0.1), lambda: concat(0.05), "rtx3080"),
    "L12": (lambda: pooled(False), lambda: pooled(True), "rtx3080"),
    "L13": (lambda: transposed(True), lambda: transposed(False), "rtx3080"),
    "L14": (lambda: residual(False), lambda: residual(True), "rtx3080"),
    "L15": (lambda: fused(True), lambda: fused(False), "rtx3080"),
    "L16": (lambda: softmax(True), lambda: softmax(False), "rtx3080"),
    "L17": (lambda: plain(size=None), plain, "rtx3080"),
    "L18": (lambda: names("first"), lambda: names("second"), "rtx3080"),
    "L19": (lambda: scale_of(-0.1), lambda: scale_of(0.1), "rtx3080"),
    "L20": (lambda: constant(1e6), lambda: constant(10.0), "rtx3080"),
    "L21": (plain, lambda: constant(1.0), "nano"),
    "L22": (lambda: half("input"), lambda: half("both"), "rtx3080"),
    "L23": (
        lambda: cast_through(TensorProto.DOUBLE),
        lambda: cast_through(TensorProto.FLOAT16),
        "rtx3080",
    ),
    "L24": (
        lambda: with_op("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
        lambda: with_op("MaxPool", kernel_shape=[2, 2]),
        "rtx3080",
    ),
    "L25": (lambda: activation(np.full(1, 0.05)), lambda: activation(0.05), "rtx3080"),
    "L26": (lambda: constant(np.nan), lambda: constant(1.0), "rtx3080"),
    "L27": (lambda: with_op("EfficientNMS_TRT"), lambda: with_op("Relu"), "rtx3080"),
}


def found(model: onnx.ModelProto, target: str) -> set[str]:
    return {f.rule for f in lint(model, reader_of(Target.parse(target)))}


def test_every_rule_has_a_case():
    assert sorted(CASES) == [r for r, *_ in RULES]


@pytest.mark.parametrize("rule", CASES)
def test_pain_7_a_wrong_graph_and_a_right_one(rule):
    wrong, right, target = CASES[rule]
    assert rule in found(wrong(), target)
    assert rule not in found(right(), target)


@pytest.mark.parametrize("rule", [r for r, _, _, fix in RULES if fix is not None])
def test_pain_19_repairs_change_no_value(rule):
    wrong, _, target = CASES[rule]
    model, reader = wrong(), reader_of(Target.parse(target))
    before = model.SerializeToString()
    fixed, done = repair(model, reader, change_values=rule == "L13")
    assert model.SerializeToString() == before
    assert done[rule] >= 1
    assert rule not in {f.rule for f in lint(fixed, reader)}
    onnx.checker.check_model(fixed, full_check=True)
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    if rule == "L18":  # ONNX Runtime refuses the file before
        model = names("second")
    got, wanted = (run_batch(open_session(m), x)[0] for m in (fixed, model))
    if rule == "L13":  # what was quantized is float again: near, not equal
        assert np.abs(got - wanted).max() < 0.5
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def broken() -> onnx.ModelProto:
    """Return a model with what several tools do at once.

    It has an axis beside a single scale, stored codes without a zero point, and an INT32 bias.
    """
    b = Build()
    x = b.pair("x", "in", axis=1)
    codes = b.const("w", RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8))
    weight = b.node(
        "DequantizeLinear",
        [codes, b.const("ws", np.linspace(0.01, 0.04, 4).astype(np.float32))],
        "w_dq",
        axis=0,
    )
    held = b.const("b", np.arange(4, dtype=np.int32) * 100)
    bias = b.node(
        "DequantizeLinear",
        [held, b.const("bs", np.full(4, 0.0015, dtype=np.float32))],
        "b_dq",
        axis=0,
    )
    return b.model(b.node("Conv", [x, weight, bias], "c", pads=[1, 1, 1, 1]))


def test_pain_19_all_violations_of_a_file_are_listed_in_one_pass_and_repaired():
    model, reader = broken(), reader_of(Target.parse("xavier@8.0"))
    assert {"L07", "L08", "L09", "L10"} <= {f.rule for f in lint(model, reader)}
    fixed, done = repair(model, reader)
    assert {"L07", "L09", "L10"} <= set(done)
    assert not {"L07", "L08", "L09", "L10"} & {f.rule for f in lint(fixed, reader)}
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    got, wanted = (run_batch(open_session(m), x)[0] for m in (fixed, model))
    np.testing.assert_allclose(got, wanted, atol=0.05)  # one step of the input's codes


def test_more_wrong_graphs():
    assert "L03" in found(zero_point(np.int8(3)), "rtx3080")
    assert not any(
        f.repairable
        for f in lint(zero_point(np.int8(3)), reader_of(Target.parse("rtx3080")))
        if f.rule == "L03"
    )
    assert "L11" not in found(concat(0.1, behind=True), "rtx3080")
    assert "L19" in found(computed_scale(), "rtx3080")
    assert "L18" in found(names('a"b'), "rtx3080")
    for kind in ("ConvInteger", "QLinearConv"):
        model = with_op("Relu")
        model.graph.node[0].op_type = kind
        assert "L02" in found(model, "rtx3080@11.4")
    assert "L22" in found(half("weight"), "rtx3080")
    assert "L03" in found(zero_point(np.int16(0)), "rtx3080")
    # what one release rejects another takes
    assert "L08" not in found(stored("codes, no zero"), "orin@10.3")
    bare = [
        f for f in lint(no_zero(False), reader_of(Target.parse("orin@10.3"))) if f.rule == "L08"
    ]
    assert (
        len(bare) == 1
    )  # a Q without a zero point means UINT8 to ONNX, whoever reads it: nothing mechanical
    assert not bare[0].repairable
    assert "L10" not in found(stored("codes"), "rtx3080@11.4")
    assert "L07" not in found(scalar_axis(1), "xavier@8.2")


def test_what_trtq_writes_passes(cnn_out: Path):
    for target in ("rtx3080@11.4", "orin@10.3", "h200"):
        record = run_lint(LintSpec(onnx=f"{cnn_out}/model.qdq.onnx", target=target))
        assert record.passed, record.findings
        assert not record.findings


def test_on_the_command_line(tmp_path: Path):
    onnx.save(stored("codes"), tmp_path / "m.onnx")
    wrong = run_cli("lint", str(tmp_path / "m.onnx"), "--target", "xavier")
    assert wrong.returncode == 1
    assert "L10 error" in wrong.stdout
    assert "[--fix]" in wrong.stdout
    assert "for Jetson AGX Xavier, TensorRT 8.5: 1 would not build" in wrong.stdout
    fixed = run_cli(
        "lint",
        str(tmp_path / "m.onnx"),
        "--target",
        "xavier",
        "--fix",
        str(tmp_path / "f.onnx"),
        "--json",
    )
    assert fixed.returncode == 0, fixed.stdout
    assert json.loads(fixed.stdout)["repaired"] == {"L10": 1}
    with pytest.raises(UsageError, match="--fix would overwrite the file it reads"):
        run_lint(
            LintSpec(onnx=str(tmp_path / "m.onnx"), target="xavier", fix=str(tmp_path / "m.onnx"))
        )


def test_a_file_of_onnx_runtimes_own_quantizer(cnn_out: Path, tmp_path: Path):
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [
                {"input": RNG.standard_normal((4, 3, 32, 32)).astype(np.float32)} for _ in range(2)
            ]

        def get_next(self):
            return self.left.pop() if self.left else None

    made = tmp_path / "ort.onnx"
    quantize_static(
        str(cnn_out / "model.fp32.onnx"),
        str(made),
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    record = run_lint(LintSpec(onnx=str(made), target="xavier"))
    rules = {f.rule for f in record.findings}
    assert {
        "L03",
        "L09",
        "L10",
    } <= rules  # asymmetric activations, INT32 biases, stored weights: its defaults
    assert not record.passed
    fixed = run_lint(LintSpec(onnx=str(made), target="xavier", fix=str(tmp_path / "fixed.onnx")))
    assert {"L09", "L10"}.isdisjoint({f.rule for f in fixed.findings})
    x = RNG.standard_normal((4, 3, 32, 32)).astype(np.float32)
    got, wanted = (run_batch(open_session(p), x)[0] for p in (tmp_path / "fixed.onnx", made))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_repairs_that_once_went_wrong(tmp_path: Path):
    """Repairs that once were wrong.

    Two scales on one set of codes; annotated shapes that are out of date; names that clash after
    cleaning; codes in blocks.
    """
    b = Build()
    codes = b.const("w", RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8))
    zero = b.const("z", np.int8(0))
    both = [
        b.node("DequantizeLinear", [codes, b.const(f"s{i}", np.float32(s)), zero], f"w{i}")
        for i, s in enumerate((0.01, 0.04))
    ]
    total = b.node(
        "Add", [b.node("Conv", ["x", both[0]], "c0"), b.node("Conv", ["x", both[1]], "c1")], "sum"
    )
    model = onnx.shape_inference.infer_shapes(b.model(total))
    fixed, done = repair(model, reader_of(Target.parse("xavier")))
    assert done["L10"] == 2
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        *(run_batch(open_session(m), x)[0] for m in (fixed, model)), rtol=1e-5, atol=1e-5
    )
    inferred = onnx.shape_inference.infer_shapes(zero_point(np.uint8(128)))
    onnx.checker.check_model(
        repair(inferred, reader_of(Target.parse("rtx3080")))[0], full_check=True
    )
    b = Build()
    clash = b.model(b.node("Relu", [b.node("Relu", ["x"], "a", name='a"b')], "b", name='a"b'))
    assert [
        n.name for n in repair(clash, reader_of(Target.parse("rtx3080")))[0].graph.node[:2]
    ] == ["a_b", "a_b_1"]
    b = Build(opset=21)
    stored = b.const("w", RNG.integers(-127, 127, (4, 4)).astype(np.int8))
    dq = b.node(
        "DequantizeLinear",
        [stored, b.const("s", np.full((2, 4), 0.1, dtype=np.float32))],
        "dq",
        block_size=2,
        axis=0,
    )
    blocks = b.model(b.node("MatMul", ["x", dq], "m"))
    found_in_blocks = lint(blocks, reader_of(Target.parse("xavier")))
    assert not any(f.repairable for f in found_in_blocks if f.rule == "L10")
    repair(blocks, reader_of(Target.parse("xavier")))


def test_fp8_needs_its_hardware(images, tmp_path: Path):
    from tests.conftest import spec
    from trtq import AllocateSpec, AnalyzeSpec, allocate, analyze, quantize

    values = {
        "model": "trtq.testing.models:tiny_cnn",
        "data": str(images),
        "input_size": "3x32x32",
        "preset": "imagenet",
    }
    analyze(
        AnalyzeSpec.make(
            {
                **values,
                "out": str(tmp_path / "S.json"),
                "metric": "l2",
                "images": 8,
                "calib_images": 16,
                "bits": ["fp8"],
            }
        )
    )
    allocate(
        AllocateSpec.make(
            {
                "analysis": str(tmp_path / "S.json"),
                "out": str(tmp_path / "A.json"),
                "budget": ["size=0.9"],
            }
        )
    )
    quantize(spec(images, tmp_path / "o", allocation=str(tmp_path / "A.json")))
    model = onnx.load(tmp_path / "o/model.qdq.onnx")
    assert "L21" in found(model, "rtx3080")
    assert "L21" not in found(model, "rtx4090")
