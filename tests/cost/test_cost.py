"""The hardware table, kernels, the roofline, and formats that only some targets run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.conftest import spec
from tests.support.onnx_files import model_of
from tests.support.quantize import CNN, SMALL, VIT
from trtq import CostSpec, cost, quantize
from trtq.cost.count import list_kernels, list_ops
from trtq.cost.devices import devices, find_device
from trtq.cost.onnx_file import list_onnx_ops, onnx_kernels
from trtq.cost.ops import Kernel, Op, fuse
from trtq.cost.roofline import computes_in, predict
from trtq.errors import UsageError
from trtq.graph.capture import capture
from trtq.platform.catalogue import catalogue
from trtq.quant.formats import BitConfig
from trtq.testing.models import tiny_cnn, tiny_vit


def kernel(**changes):
    values = {"name": "k", "kind": "conv", "macs": 0, "weights": 0, "reads": 0, "writes": 0}
    return Kernel(**{**values, **changes})


# ---- the hardware table ------------------------------------------------------------------------


def test_every_device_is_a_target_and_its_precisions_fit_its_capability():
    for name, device in devices().items():
        base = next(
            (
                n
                for n in sorted(catalogue().targets, key=len, reverse=True)
                if name == n or name.startswith(f"{n}-")
            ),
            None,
        )
        assert base is not None, name
        capability = catalogue().targets[base].sm
        assert ("int8" in device.peaks) == (capability not in (53, 62)), name
        assert ("fp8" in device.peaks) == (capability >= 89), name
        assert device.source
        assert device.fitted_to


@pytest.mark.parametrize(
    ("name", "sms", "mhz", "per_clock"),
    [
        ("xavier", 8, 1377, {"fp32": 128, "fp16": 1024, "int8": 2048}),
        ("t4", 40, 1590, {"fp32": 128, "fp16": 1024, "int8": 2048}),
        ("a100", 108, 1410, {"fp32": 128, "fp16": 2048, "int8": 4096}),
        ("orin", 16, 1301, {"fp32": 256, "fp16": 2048, "int8": 4096}),
        ("rtx3080", 68, 1710, {"fp32": 256, "fp16": 512, "int8": 2048}),
        ("rtx4090", 128, 2520, {"fp32": 256, "fp16": 512, "int8": 2048}),
        ("h200", 132, 1830, {"fp16": 4096, "int8": 8192}),
        ("l4", 58, 2040, {"fp32": 256, "fp16": 1024, "int8": 2048}),
    ],
)
def test_peaks_are_multiprocessors_times_clock(name, sms, mhz, per_clock):
    for precision, operations in per_clock.items():
        assert find_device(name).peaks[precision] == pytest.approx(
            sms * mhz * 1e6 * operations, rel=0.012
        ), precision


def test_an_unknown_device_suggests_the_nearest():
    with pytest.raises(
        UsageError,
        match=r"Unknown device 'xavyer' in the hardware table: known are nano.*Did you "
        r"mean.*xavier",
    ):
        find_device("xavyer")


def test_slices_of_one_tensor_are_separate_reads():
    ops = [
        Op(name="qkv", kind="linear", macs=9, reads={"x": 4}, writes={"qkv": 12}),
        Op(name="q", kind="alias", reads={"qkv": 12}, writes={"q": 4}),
        Op(name="k", kind="alias", reads={"qkv": 12}, writes={"k": 4}),
        Op(name="qk", kind="matmul", macs=8, reads={"q": 4, "k": 4}, writes={"s": 2}),
    ]
    assert [(k.name, k.reads) for k in fuse(ops, ["s"])] == [("qkv", 4), ("qk", 8)]


# ---- the roofline ------------------------------------------------------------------------------


def test_the_roofline_by_hand():
    t4 = find_device("t4")
    launch, share = t4.launch * 1e3, t4.efficiency
    assert (t4.memory, share) == (0.8, 0.2)
    dense = predict(
        kernel(macs=10**9, weights=10**3, reads=10**3, writes=10**3), t4, BitConfig(8, 8)
    )
    assert (dense.precision, dense.bound) == ("int8", "launch")
    dense = predict(
        kernel(macs=10**11, weights=10**3, reads=10**3, writes=10**3), t4, BitConfig(8, 8)
    )
    assert (dense.ms, dense.bound) == (
        pytest.approx(2e11 / (130e12 * share) * 1e3 + launch),
        "compute",
    )
    moved = predict(kernel(macs=1, weights=10**8, reads=10**8, writes=10**8), t4, BitConfig(32, 32))
    assert (moved.ms, moved.bound) == (pytest.approx(12e8 / (320e9 * 0.8) * 1e3 + launch), "memory")
    deep = predict(kernel(macs=10**10, depthwise=True), t4, BitConfig(8, 8))
    assert deep.ms == pytest.approx(
        2e10 / (8.1e12 * share) * 1e3 + launch
    )  # no tensor core multiplies one channel a group


def test_what_a_device_computes_in():
    assert (
        computes_in(find_device("t4"), BitConfig(4, 6)) == "int8"
    )  # narrow widths lie in INT8 containers
    assert computes_in(find_device("t4"), BitConfig(4, 16)) == "fp16"
    assert computes_in(find_device("nano"), BitConfig(8, 8)) == "fp16"
    assert computes_in(find_device("nano"), BitConfig(32, 32)) == "fp32"
    per_byte, launch = 1e3 / (320e9 * 0.8), find_device("t4").launch * 1e3
    for widths, moved in (
        (BitConfig(4, 16), 5e8),
        (BitConfig(8, 16), 1e9),
        (BitConfig(16, 16), 2e9),
    ):
        assert predict(
            kernel(kind="linear", weights=10**9), find_device("t4"), widths
        ).ms == pytest.approx(moved * per_byte + launch)


def test_pointwise_ops_join_the_kernel_before_them():
    ops = [
        Op(name="a", kind="conv", macs=9, weights=3, reads={"x": 10}, writes={"a": 20}),
        Op(name="relu", kind="pointwise", reads={"a": 20}, writes={"r": 20}),
        Op(name="view", kind="alias", reads={"r": 20}, writes={"v": 20}),
        Op(name="b", kind="conv", macs=8, weights=2, reads={"v": 20}, writes={"b": 20}),
        Op(name="add", kind="pointwise", reads={"b": 20, "r": 20}, writes={"s": 20}),
        Op(name="pool", kind="avg_pool2d", reads={"s": 20}, writes={"p": 5}),
    ]
    found = fuse(ops, ["p"])
    assert [(k.name, k.reads, k.writes) for k in found] == [
        ("a", 10, 20),
        ("b", 20, 20),
        ("pool", 20, 5),
    ]


def test_constants_are_no_kernels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.conv(x) * self.scale.exp().reshape(1, 4, 1, 1)

    captured = capture(Net().eval(), SMALL)
    kernels = list_kernels(captured.module, list_ops(captured.module, captured.examples))
    assert [k.name for k in kernels] == ["conv"]
    assert (kernels[0].reads, kernels[0].writes) == (3 * 1024, 4 * 1024)


@pytest.mark.parametrize("make", [tiny_cnn, tiny_vit])
def test_an_onnx_file_counts_as_its_model(make, images, tmp_path):
    name = {tiny_cnn: CNN, tiny_vit: VIT}[make]
    quantize(spec(images, tmp_path / "o", model=name))
    model, captured = onnx.load(tmp_path / "o/model.fp32.onnx"), capture(make().eval(), SMALL)
    ops, mine = list_onnx_ops(model, "m"), list_ops(captured.module, captured.examples)
    for kinds in (("conv",), ("linear",), ("matmul",), ("softmax",)):
        ours = (
            sum(o.macs for o in mine if o.kind in kinds),
            sum(o.weights for o in mine if o.kind in kinds),
        )
        assert (
            sum(o.macs for o in ops if o.kind in kinds),
            sum(o.weights for o in ops if o.kind in kinds),
        ) == ours, kinds
    qdq = list_onnx_ops(onnx.load(tmp_path / "o/model.qdq.onnx"), "m")
    assert {(o.weight_bits, o.input_bits) for o in qdq if o.kind in ("conv", "linear")} == {(8, 8)}
    assert {(o.weight_bits, o.input_bits) for o in ops if o.kind in ("conv", "linear")} == {
        (32, 32)
    }
    # Q/DQ pairs are folded: both files have as many kernels.
    counts = [
        len(onnx_kernels(m, o))
        for m, o in ((model, ops), (onnx.load(tmp_path / "o/model.qdq.onnx"), qdq))
    ]
    assert counts[0] == counts[1]


def small_file(path: Path, nodes, inputs, held, output) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(
                np.ones(s, np.int64 if n == "shape" else np.float32)
                if n != "shape"
                else np.array(s, np.int64),
                n,
            )
            for n, s in held.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_onnx_products_by_hand(tmp_path):
    from onnx import helper

    node = helper.make_node
    for nodes, inputs, held, output, macs in (
        (
            [node("MatMul", ["w", "x"], ["y"])],
            {"x": [1, 32, 10]},
            {"w": [64, 32]},
            "y",
            64 * 32 * 10,
        ),
        (
            [node("MatMul", ["x", "w"], ["y"])],
            {"x": [4, 10, 32]},
            {"w": [4, 32, 16]},
            "y",
            10 * 32 * 16,
        ),
        (
            [node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
            {"x": [1, 32]},
            {"w": [10, 32], "b": [10]},
            "y",
            320,
        ),
        (
            [node("Gemm", ["x", "z", "b"], ["y"])],
            {"x": [1, 32], "z": [32, 10]},
            {"b": [10]},
            "y",
            320,
        ),
        (
            [node("Reshape", ["x", "shape"], ["f"]), node("Gemm", ["f", "w"], ["y"], transB=1)],
            {"x": [8, 3, 8, 8]},
            {"shape": [8, 192], "w": [10, 192]},
            "y",
            1920,
        ),
        (
            [node("Conv", ["x", "w"], ["y"], group=2)],
            {"x": [1, 4, 8, 8]},
            {"w": [6, 2, 3, 3]},
            "y",
            6 * 36 * 18,
        ),
    ):
        ops = list_onnx_ops(
            onnx.load(small_file(tmp_path / "m.onnx", nodes, inputs, held, output)), "m"
        )
        assert sum(o.macs for o in ops) == macs, nodes


def test_rows_and_kernels_agree_on_widths(images, tmp_path):
    quantize(spec(images, tmp_path / "o", model=VIT))
    record = cost(CostSpec(model=str(tmp_path / "o/model.qdq.onnx"), device="t4"))
    linear = [(r.weight_bits, r.input_bits) for r in record.rows if r.layer.kind == "linear"]
    assert set(linear) == {(8, 8)}
    assert record.latency is not None
    assert record.latency.precisions["int8"] >= len(linear)


def test_cost_of_a_file_on_a_device(cnn_out: Path):
    fp32, qdq = (
        cost(CostSpec(model=str(cnn_out / f"model.{n}.onnx"), device="rtx3080"))
        for n in ("fp32", "qdq")
    )
    assert fp32.latency is not None
    assert qdq.latency is not None
    assert "int8" not in fp32.latency.precisions
    assert qdq.latency.precisions["int8"] >= 3
    assert fp32.total.macs == qdq.total.macs
    assert fp32.total.bytes_moved > 3 * qdq.total.bytes_moved
    twice = cost(
        CostSpec(model=str(cnn_out / "model.qdq.onnx"), device="rtx3080", batch=64)
    ).latency
    assert twice is not None
    assert qdq.latency.ms < twice.ms < 64 * qdq.latency.ms
    assert "ms on the GeForce RTX 3080 10 GB in" in qdq.summary
    nano = cost(CostSpec(model=str(cnn_out / "model.qdq.onnx"), device="nano")).latency
    assert nano is not None
    assert nano.notes == ["the Jetson Nano has no INT8 kernels: such layers are predicted in FP16"]


def test_cost_refuses_what_makes_no_sense(cnn_out: Path, tmp_path: Path):
    path = str(cnn_out / "model.qdq.onnx")
    with pytest.raises(UsageError, match="--bits does not go with an ONNX file"):
        cost(CostSpec(model=path, bits="w8a8"))
    with pytest.raises(UsageError, match="--engine needs --device"):
        cost(CostSpec(model=path, engine="x.engine"))
    with pytest.raises(UsageError, match="Unknown device 'rtx9999'"):
        cost(CostSpec(model=path, device="rtx9999"))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(
        UsageError, match=r"Cannot count .*: axis 2 \(h\) of input is open"
    ) as caught:
        cost(CostSpec(model=str(tmp_path / "open.onnx")))
    assert "Add --shapes input=1x3x640x32" in caught.value.hint
    with pytest.raises(UsageError, match="--input does not go with an ONNX file") as caught:
        cost(CostSpec(model=path, input=("input=1x3x32x32",)))
    assert "--shapes" in caught.value.hint
    with pytest.raises(UsageError, match="--shapes is for ONNX files"):
        cost(CostSpec(model=CNN, shapes=("input=1x3x32x32",)))


def open_file(path: Path) -> Path:
    """A convolution, a flatten by computed sizes and a linear; height and width have no name."""
    from onnx import helper

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], "stem/Conv", pads=[1] * 4, strides=[2, 2]),
        node("Shape", ["c"], ["s"], "shape"),
        node("Gather", ["s", "first"], ["n"], "first/Gather"),
        node("Concat", ["n", "rest"], ["t"], "sizes/Concat", axis=0),
        node("Reshape", ["c", "t"], ["f"], "flat/Reshape"),
        node("MatMul", ["f", "v"], ["y"], "head/MatMul"),
        node("Softmax", ["y"], ["p"], "head/Softmax"),
    ]
    weights = {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "v": np.ones((16, 5), np.float32),
        "first": np.array([0]),
        "rest": np.array([4, 16]),
    }
    given = [("x", onnx.TensorProto.FLOAT, ["N", 3, "?", "?"])]
    model = model_of(
        nodes, given, [("p", onnx.TensorProto.FLOAT, None)], weights, opset=11, check=False
    )
    onnx.save(model, path)
    return path


def test_a_file_with_open_axes_is_counted_at_the_sizes_that_are_given(tmp_path):
    path = str(open_file(tmp_path / "open.onnx"))
    record = cost(CostSpec(model=path, shapes=("x=1x3x8x8",)))
    assert [(r.layer.name, r.layer.macs) for r in record.rows] == [
        ("stem/Conv", 27 * 4 * 16),
        ("head/MatMul", 4 * 16 * 5),
        ("head/Softmax", 0),
    ]
    assert cost(CostSpec(model=path, shapes=("x=2x3x8x8",))).rows == record.rows
    with pytest.raises(UsageError, match="axis 1 of x is 3 in .*open.onnx, not 4"):
        cost(CostSpec(model=path, shapes=("x=1x4x8x8",)))


def test_a_profile_names_the_nodes_of_another_tools_file(tmp_path):
    path = open_file(tmp_path / "open.onnx")
    rows = [
        {"count": 10},
        {"name": "stem/Conv", "averageMs": 0.2},
        {"name": "head/MatMul + head/Softmax", "averageMs": 0.1},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    asked = {"model": str(path), "shapes": ("x=1x3x8x8",), "device": "rtx3080"}
    record = cost(CostSpec(**asked, profile=str(tmp_path / "p.json")))
    matched = [m.kernels for m in record.latency.correction.matched]
    assert matched[0] == ["stem/Conv"] and "head/MatMul" in matched[1]
    assert record.latency.correction.unmatched == len(record.latency.kernels) - sum(
        len(m) for m in matched
    )
