"""The verb end to end on small models, with the real ONNX Runtime; its errors on bad input."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.conftest import read, spec
from tests.support.quantize import FILES
from trtq import Encodings, quantize
from trtq.errors import EncodingsError, ParityError
from trtq.export.divergence import first_divergence
from trtq.export.onnx_file import get_metadata
from trtq.graph.capture import capture
from trtq.models.load import load_model
from trtq.quant.observe import observe
from trtq.quant.placement import place
from trtq.quant.simulate import insert_fake_quantize
from trtq.testing.models import DictOutput, tiny_cnn


def test_it_writes_four_files_and_a_record_that_names_every_quantizer(cnn_out):
    assert set(os.listdir(cnn_out)) >= FILES
    record = read(cnn_out / "quantize.json")
    assert {q["name"] for q in record["quantizers"]} >= {
        "stem.input",
        "stem.weight",
        "add.residual",
        "head.weight",
    }
    for q in record["quantizers"]:
        assert q["amax"] > 0
        assert q["sqnr_db"] is None or q["sqnr_db"] > 20
        assert 0 <= q["saturated"] < 0.05
    assert record["parity"]["passed"]
    assert record["parity"]["images"] == 16
    assert record["left_in_float"] == []
    assert len(record["data"]["calibration_ids"]) == 24


def test_the_onnx_is_what_tensorrt_wants(cnn_out):
    model = onnx.load(cnn_out / "model.qdq.onnx")
    onnx.checker.check_model(model, full_check=True)
    made = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert not any("BatchNorm" in n.op_type for n in model.graph.node)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero, scale = constants[node.input[2]], constants[node.input[1]]
            assert zero.dtype == np.int8
            assert not zero.any()
            assert scale.shape == zero.shape
            assert (scale.ndim == 1) == any(a.name == "axis" for a in node.attribute)
        if node.op_type == "Conv":
            assert node.input[0] in made
            weight = made[node.input[1]]
            assert next(a.i for a in weight.attribute if a.name == "axis") == 0
            assert node.input[2] in constants  # the bias is float, and BatchNorm is in it
            assert constants[node.input[2]].dtype == np.float32
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {n.name.split("/")[0] for n in model.graph.node if n.op_type == "Conv"} == {
        "stem",
        "conv1",
        "depthwise",
        "pointwise",
    }
    assert "/root/" not in str(model.SerializeToString())
    meta = get_metadata(model)
    assert meta["encodings_sha256"] == Encodings.load(cnn_out / "encodings.safetensors").digest()
    assert meta["preprocess"]["input_size"] == [3, 32, 32]


def test_a_linear_of_a_transformer_gets_weights_per_output_channel_on_axis_one(images, tmp_path):
    quantize(spec(images, tmp_path, model="trtq.testing.models:tiny_vit"))
    model = onnx.load(tmp_path / "model.qdq.onnx")
    assert not any(
        n.op_type == "Transpose" and n.input[0].startswith("val_w") for n in model.graph.node
    )
    weights = [n for n in model.graph.node if n.name.endswith("qkv.weight/DequantizeLinear")]
    assert [next(a.i for a in n.attribute if a.name == "axis") for n in weights] == [1, 1]


def test_float_file_is_the_quantized_one_without_its_pairs(cnn_out):
    quantized, plain = (onnx.load(cnn_out / f"model.{kind}.onnx") for kind in ("qdq", "fp32"))
    assert [n.name for n in quantized.graph.node if "uantizeLinear" not in n.op_type] == [
        n.name for n in plain.graph.node
    ]
    assert not any("uantizeLinear" in n.op_type for n in plain.graph.node)
    weights = {
        i.name: i.raw_data for i in plain.graph.initializer if not i.name.startswith("constant_")
    }
    assert "conv1.weight" in weights
    assert {i.name: i.raw_data for i in quantized.graph.initializer if i.name in weights} == weights


@pytest.mark.parametrize("calibrator", ["max", "ema", "percentile", "entropy", "mse"])
def test_every_calibrator_gives_a_usable_model(images, tmp_path, calibrator):
    record = quantize(spec(images, tmp_path, calibrator=calibrator))
    assert record.parity.passed
    assert record.parity.quantization_sqnr_db > 15


def test_calibrators_differ_and_batch_size_does_not_matter(images):
    graph = capture(tiny_cnn().eval(), (3, 32, 32)).module
    placement = place(graph)
    x = torch.randn(20, 3, 32, 32)
    one = observe(graph, placement, x.split(1), mode="mse")
    many = observe(graph, placement, x.split(7), mode="mse")
    for name in one:
        assert one[name].statistic.hist.limit == many[name].statistic.hist.limit
        assert one[name].amax == pytest.approx(many[name].amax, rel=1e-6)
        assert (
            np.abs(one[name].statistic.hist.counts - many[name].statistic.hist.counts).sum()
            <= 0.001 * one[name].statistic.hist.num_values
        )
    ema = [observe(graph, placement, x.split(k), mode="ema") for k in (1, 20)]
    for name in ema[0]:
        first, second = (seen[name].statistic.amax for seen in ema)
        assert first == pytest.approx(second, rel=1e-5)
        assert first <= ema[0][name].amax


def test_outliers_in_the_residual_stream_stay_in_float_and_are_named(images, tmp_path):
    plain = quantize(spec(images, tmp_path / "a", model="trtq.testing.models:tiny_vit"))
    wild = quantize(
        spec(
            images,
            tmp_path / "b",
            model="trtq.testing.models:tiny_vit",
            model_arg={"outlier": "1000"},
        )
    )
    assert plain.parity.quantization_sqnr_db > 20
    assert wild.parity.agreement == 100.0
    named = {f.name: f for f in wild.left_in_float if "set by outliers" in f.reason}
    assert "blocks.0.add.residual" in named
    assert named["blocks.0.add.residual"].high > 900


def test_high_precision_and_dead_activations_are_listed_with_their_reason(images, tmp_path):
    record = quantize(spec(images, tmp_path, high_precision=["@first"]))
    assert {f.name: f.reason for f in record.left_in_float} == {
        "stem.input": "asked for by --high-precision @first",
        "stem.weight": "asked for by --high-precision @first",
    }


def test_pain_16_the_cache_says_why_it_was_used_or_not_and_survives_damage(images, tmp_path):
    said = lambda **k: quantize(spec(images, tmp_path, **k)).calibration.cache  # noqa: E731
    assert said() == "not used: there is no entry yet"
    assert said().startswith("used: ")
    assert said(calibrator="max") == "not used: calibrator changed since the nearest entry"
    assert (
        said(mean="0.1,0.1,0.1", std="1,1,1")
        == "not used: preprocessing changed since the nearest entry"
    )
    assert said(seed=1, checkpoint=None).startswith("not used: ")
    entries = sorted((tmp_path / "cache").glob("*.safetensors"))
    before = {p: p.read_bytes() for p in entries}
    for path in entries:
        path.write_bytes(before[path][: len(before[path]) // 2])
    assert "is damaged" in said()
    for path in entries:
        content = bytearray(before[path])
        content[-9] ^= 0x40
        path.write_bytes(bytes(content))
    assert "was altered since it was written" in said()
    assert said().startswith("used: ")


def test_pain_16_weights_that_change_by_one_value_miss_the_cache(images, tmp_path):
    model = tiny_cnn()
    for i, value in enumerate((0.0, 1e-3)):
        with torch.no_grad():
            model.head.weight[0, 0] += value
        torch.save(model.state_dict(), tmp_path / f"{i}.pt")
    first = quantize(spec(images, tmp_path, checkpoint=str(tmp_path / "0.pt")))
    second = quantize(spec(images, tmp_path, checkpoint=str(tmp_path / "1.pt")))
    assert first.calibration.cache == "not used: there is no entry yet"
    assert second.calibration.cache == "not used: weights changed since the nearest entry"


def test_dense_outputs(images, tmp_path):
    record = quantize(spec(images, tmp_path, model="trtq.testing.models:dict_output"))
    assert (record.parity.kind, record.parity.agreement) == ("values", None)
    assert record.parity.quantization_sqnr_db > 20


def test_digits_grayscale(tmp_path):
    (tmp_path / "gray.py").write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n    return torch.nn.Sequential("
        "torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), "
        "torch.nn.Linear(8 * 64, 10))\n"
    )
    made = spec(
        tmp_path,
        tmp_path / "o",
        model=f"{tmp_path}/gray.py:make",
        data="digits",
        input_size="1x8x8",
        preset=None,
    )
    record = quantize(made)
    assert record.preprocess.input_size == (1, 8, 8)
    assert record.parity.passed


def test_a_sharp_softmax_leaves_its_attention_in_float(images, tmp_path):
    (tmp_path / "sharp.py").write_text(
        "import torch\nfrom trtq.testing.models import TinyViT\ndef make():\n    "
        "torch.manual_seed(0)\n    model = TinyViT()\n"
        "    model.blocks[0].qkv.weight.data *= 12\n    return model\n"
    )
    record = quantize(
        spec(images, tmp_path / "o", model=f"{tmp_path}/sharp.py:make", input_size="3x64x64")
    )
    left = {f.name: f.reason for f in record.left_in_float}
    assert "one INT8 step would be" in left["blocks.0.softmax.output"]
    assert (
        left["blocks.0.av.rhs"]
        == "blocks.0.softmax.output remains in float, and an INT8 kernel needs both operands"
    )
    assert (
        left["blocks.0.qk.lhs"]
        == "blocks.0.softmax.output remains in float, and an attention is one kernel, all INT8 "
        "or none"
    )
    assert "blocks.1.softmax.output" in {q.name for q in record.quantizers}


# ---- the parity gate ---------------------------------------------------------------------------


def test_a_wrong_scale_in_the_file_is_found_where_it_is(cnn_out):
    graph = capture(load_model("trtq.testing.models:tiny_cnn").module, (3, 32, 32)).module
    placement, encodings = place(graph), Encodings.load(cnn_out / "encodings.safetensors")
    simulated = insert_fake_quantize(graph, placement, encodings)
    model = onnx.load(cnn_out / "model.qdq.onnx")
    batch = torch.randn(2, 3, 32, 32)
    assert first_divergence(simulated, model, batch) is None
    node = next(n for n in model.graph.node if n.name == "depthwise.input/QuantizeLinear")
    other = next(n for n in model.graph.node if n.name == "depthwise.input/DequantizeLinear")
    tensor = next(i for i in model.graph.initializer if i.name == node.input[1])
    wrong = onnx.TensorProto()
    wrong.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2.0), "wrong")
    )
    model.graph.initializer.append(wrong)
    node.input[1] = other.input[1] = "wrong"
    assert first_divergence(simulated, model, batch) == "depthwise.input"


def test_a_failed_gate_stops_the_command_and_names_the_quantizer(images, tmp_path, monkeypatch):
    import trtq.flow.inputs as verb

    real = verb.export_onnx

    def sabotage(*args, **kwargs):
        model = real(*args, **kwargs)
        for value in (
            model.graph.initializer
            if any(n.op_type == "QuantizeLinear" for n in model.graph.node)
            else ()
        ):
            if value.name == "conv1.weight":
                value.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(value), value.name))
        return model

    monkeypatch.setattr(verb, "export_onnx", sabotage)
    with pytest.raises(
        ParityError,
        match=r"part first at conv1.weight. Keep that layer in float: --high-precision conv1",
    ):
        quantize(spec(images, tmp_path))
    assert not set(os.listdir(tmp_path)) & FILES


def test_edited_encodings_are_noticed(cnn_out, tmp_path):
    path = tmp_path / "e.safetensors"
    content = bytearray((cnn_out / "encodings.safetensors").read_bytes())
    content[-2] ^= 0x01
    path.write_bytes(bytes(content))
    with pytest.raises(EncodingsError, match="were changed since trtq wrote them"):
        Encodings.load(path)
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(EncodingsError, match="not a whole safetensors file"):
        Encodings.load(path)
    with pytest.raises(EncodingsError, match="there is no such file"):
        Encodings.load(tmp_path / "none.safetensors")


def test_encodings_of_another_model(cnn_out):
    graph = capture(DictOutput().eval(), (3, 32, 32)).module
    with pytest.raises(EncodingsError, match="There is no encoding for conv.input"):
        insert_fake_quantize(graph, place(graph), Encodings.load(cnn_out / "encodings.safetensors"))


def test_encodings_round_trip_exactly(cnn_out, tmp_path):
    first = Encodings.load(cnn_out / "encodings.safetensors")
    again = Encodings.load(first.save(tmp_path / "copy.safetensors"))
    assert again.digest() == first.digest()
    assert all(torch.equal(again.amax[k], first.amax[k]) for k in first.amax)
