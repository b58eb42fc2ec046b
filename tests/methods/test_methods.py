"""Bit widths below 8 and the quantization methods, through the verb and by hand-worked values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.conftest import run_cli, spec
from tests.support.quantize import CNN, VIT
from trtq import quantize
from trtq.errors import CalibrationError, UsageError
from trtq.methods.registry import METHODS, choose, get_method
from trtq.quant.encodings import Encodings

# ---- widths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8", "w4a4", "w2a8", "w3a5"])
@pytest.mark.parametrize("model", [CNN, VIT])
def test_torch_and_onnxruntime_agree_at_every_width(images, tmp_path, bits, model):
    record = quantize(spec(images, tmp_path, model=model, bits=bits))
    assert record.parity.passed
    assert record.parity.first_divergence is None
    weight_bits, input_bits = (int(v) for v in bits[1:].split("a"))
    narrow = [
        q
        for q in record.quantizers
        if q.layer not in ("stem", "patch", "head") and q.role != "residual"
    ]
    assert {q.format for q in narrow if q.role == "weight"} == {f"int{weight_bits}"}
    assert all(f"int{input_bits}" in q.format for q in narrow if q.role == "input")
    weights = [q.sqnr_db for q in narrow if q.role == "weight"]
    assert all(v is not None and 4 < v < 7 * weight_bits for v in weights)
    assert {q.format for q in record.quantizers if q.layer in ("stem", "patch", "head")} == {"int8"}


def test_codes_below_eight_bits_are_exact_in_their_container(images, tmp_path):
    quantize(spec(images, tmp_path, bits="w4a4"))
    model = onnx.load(tmp_path / "model.qdq.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    by_name = {n.name: n for n in model.graph.node}
    pair = by_name["conv1.weight/QuantizeLinear"]
    codes = constants[pair.input[0]] / constants[pair.input[1]].reshape(-1, 1, 1, 1)
    assert np.allclose(codes, codes.round(), atol=1e-4)
    assert codes.min() >= -8.01
    assert codes.max() <= 7.01
    clip = by_name["conv1.input/Clip"]
    step = constants[by_name["conv1.input/QuantizeLinear"].input[1]]
    low, high = (constants[name] for name in clip.input[1:])
    assert (low, high) == (0.0, np.float32(15) * step)  # a ReLU's output takes the unsigned codes
    assert "conv1.weight/Clip" not in by_name
    plain = {
        i.name: numpy_helper.to_array(i)
        for i in onnx.load(tmp_path / "model.fp32.onnx").graph.initializer
    }
    assert len(np.unique(plain["conv1.weight"])) > 1000


def test_fewer_bits_cost_more(images, tmp_path):
    sqnr = [
        quantize(spec(images, tmp_path / b, bits=b)).parity.quantization_sqnr_db
        for b in ("w8a8", "w6a6", "w4a4", "w2a4")
    ]
    assert sqnr == sorted(sqnr, reverse=True)


def test_bits_outside_their_range_are_refused(images, tmp_path):
    for bits in ("w1a8", "w4a9", "8", "w4"):
        with pytest.raises(
            UsageError, match=f"Cannot use .*bits.*|Cannot use these settings.*{bits}|bits"
        ):
            spec(images, tmp_path, bits=bits)


# ---- methods through the verb ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "bits", "method"),
    [
        (VIT, "w8a8", "smooth"),
        (VIT, "w4a8", "smooth"),
        (CNN, "w8a8", "equalize"),
        (CNN, "w4a4", "bias-correction"),
        (VIT, "w4a4", "ranking"),
        (CNN, "w4a4", "reconstruct"),
        (VIT, "w4a8", "reconstruct"),
    ],
)
def test_a_method_alone_passes_parity_and_is_in_the_record(images, tmp_path, model, bits, method):
    arguments = {"reconstruct.steps": "20"} if method == "reconstruct" else {}
    record = quantize(
        spec(images, tmp_path, model=model, bits=bits, method=[method], method_arg=arguments)
    )
    assert record.parity.passed
    (done,) = record.methods
    assert (done.name, done.label) == (method, "folded")
    assert done.source
    encodings = Encodings.load(tmp_path / "encodings.safetensors")
    assert bool(encodings.constants) == (method != "ranking")
    assert encodings.origin["methods"] == method


def test_methods_together_and_again(images, tmp_path):
    asked = spec(
        images,
        tmp_path,
        model=VIT,
        bits="w4a4",
        method=["reconstruct", "bias-correction", "smooth"],
        method_arg={"reconstruct.steps": 10},
    )
    first = quantize(asked)
    assert [m.name for m in first.methods] == ["smooth", "reconstruct", "bias-correction"]
    digest = Encodings.load(tmp_path / "encodings.safetensors").digest()
    second = quantize(asked)
    assert second.calibration.cache.startswith("used: ")
    assert Encodings.load(tmp_path / "encodings.safetensors").digest() == digest


def test_the_float_file_does_not_depend_on_methods(images, tmp_path):
    plain = quantize(spec(images, tmp_path / "a", model=VIT))
    smoothed = quantize(spec(images, tmp_path / "b", model=VIT, method=["smooth"]))
    assert plain.files["model.fp32.onnx"].sha256 == smoothed.files["model.fp32.onnx"].sha256
    assert plain.files["model.qdq.onnx"].sha256 != smoothed.files["model.qdq.onnx"].sha256


def test_the_report_says_where_each_method_runs(images, tmp_path):
    from trtq.report.page import write_page

    record = quantize(spec(images, tmp_path, model=VIT, bits="w4a8", method=["smooth"]))
    text = write_page(tmp_path, tmp_path / "report.html", title="t").read_text()
    assert "W4A8 (in INT8 containers) with smooth" in text
    assert "folded into the numbers: nothing more runs" in text
    assert "--bits w4a8 --method smooth" in text
    assert "tensors in W4A8, INT8 containers" in record.summary


def test_a_method_that_moves_the_function_is_stopped(images, tmp_path, monkeypatch):
    from trtq.methods import smooth

    def wrong(context, pair, factors):
        node = pair.consumers[0].args[1]
        context.fold(node, context.graph.get_parameter(str(node.target)).detach() * 1.5)

    monkeypatch.setattr(smooth, "fold_factors", wrong)
    with pytest.raises(
        CalibrationError,
        match=r"The method smooth changed what the model computes: outputs moved by",
    ):
        quantize(
            spec(
                images, tmp_path, model=VIT, method=["smooth"], method_arg={"smooth.strength": 0.5}
            )
        )


ONE_AT_A_TIME = """
import torch


class Net(torch.nn.Module):
    def __init__(self, loops):
        super().__init__()
        torch.manual_seed(0)
        self.loops = loops
        sizes = (3, 8), (8, 8), (8, 8)
        self.a, self.b, self.c = (torch.nn.Conv2d(i, o, 3, 2) for i, o in sizes)

    def forward(self, x):
        y = self.c(self.b(self.a(x)).relu())
        if self.loops:  # which ties the batch
            return torch.stack([y[i].mean((1, 2)) for i in range(int(x.shape[0]))])
        return y.mean((2, 3))


def one():
    return Net(True)


def many():
    return Net(False)
"""


@pytest.fixture
def one_at_a_time(images, tmp_path):
    (tmp_path / "one.py").write_text(ONE_AT_A_TIME)

    def run(factory, method, **given):
        out, model = tmp_path / f"{factory}-{method}", f"{tmp_path}/one.py:{factory}"
        return quantize(spec(images, out, model=model, bits="w4a4", method=[method], **given))

    return run


def test_a_model_of_one_image_at_a_time_is_refused_where_batches_are_needed(one_at_a_time):
    with pytest.raises(
        UsageError, match="ranking does not fit this model: the model takes one image at a time"
    ):
        one_at_a_time("one", "ranking")


def test_biases_are_corrected_one_image_at_a_time_as_in_a_batch(one_at_a_time, tmp_path):
    reports = [one_at_a_time(m, "bias-correction").methods[0] for m in ("one", "many")]
    folders = (tmp_path / f"{m}-bias-correction" for m in ("one", "many"))
    one, many = (Encodings.load(f / "encodings.safetensors") for f in folders)
    assert reports[0].did["images"] == reports[1].did["images"]
    assert one.constants.keys() == many.constants.keys() and one.constants
    for name, value in many.constants.items():
        assert torch.allclose(one.constants[name], value, atol=1e-5)


def test_rounding_is_learned_one_image_at_a_time(one_at_a_time, tmp_path):
    few = {"method_arg": {"reconstruct.steps": 4, "reconstruct.batch": 4}}
    reports = [one_at_a_time(m, "reconstruct", **few) for m in ("one", "many")]
    assert any("takes one sample at a time; a step is 4 samples" in n for n in reports[0].notes)
    first = [r.methods[0].did["loss"][0] for r in reports]
    assert first[0] == pytest.approx(first[1], rel=0.1)  # the mean over the same four images


# ---- asking wrongly ----------------------------------------------------------------------------


def test_wrong_requests():
    with pytest.raises(UsageError, match=r"Unknown method 'smoth'.*smooth"):
        choose(["smoth"], {})
    with pytest.raises(UsageError, match="asked for twice"):
        choose(["smooth", "smooth"], {})
    with pytest.raises(UsageError, match=r"expected NAME\.K=V"):
        choose(["smooth"], {"strength": 1})
    with pytest.raises(
        UsageError, match="is for a method that was not asked for: *|Add --method equalize"
    ):
        choose(["smooth"], {"equalize.rounds": 1})
    with pytest.raises(UsageError, match=r"has no argument 'strenth'.*strength"):
        choose(["smooth"], {"smooth.strenth": 1})
    with pytest.raises(UsageError, match=r"Cannot use smooth.strength=much: expected float"):
        choose(["smooth"], {"smooth.strength": "much"})
    off = [choose(["repq"], {"repq.softmax": v})[0][1].softmax for v in ("false", False, 0, "0")]
    assert off == [False] * 4  # not the truth of a text that is not empty


def test_a_method_that_does_not_fit_says_so_before_calibration(images, tmp_path):
    with pytest.raises(
        UsageError,
        match="The method reconstruct does not fit this model: every quantizer has 8 bits",
    ):
        quantize(spec(images, tmp_path, method=["reconstruct"]))
    with pytest.raises(
        UsageError,
        match="ranking does not fit this model: it has no attention with quantized queries and "
        "keys",
    ):
        quantize(spec(images, tmp_path, method=["ranking"]))
    with pytest.raises(
        UsageError, match="equalize does not fit this model: no two convs or linears have only ReLU"
    ):
        quantize(
            spec(images, tmp_path, model="trtq.testing.models:dict_output", method=["equalize"])
        )
    with pytest.raises(
        UsageError,
        match="smooth does not fit this model: no norm, conv or linear hands its channels on",
    ):
        quantize(spec(images, tmp_path, model="trtq.testing.models:dict_output", method=["smooth"]))
    assert not list(tmp_path.glob("*.onnx"))


def test_the_list_names_every_method_with_its_label():
    shown = run_cli("methods")
    assert shown.returncode == 0
    for name in METHODS:
        assert f"{name}  [{get_method(name).label}]" in shown.stdout


@pytest.mark.parametrize(
    ("method", "bits", "label"),
    [
        ("repq", "w8a8", "ops"),
        ("repq", "w4a4", "ops"),
        ("qads", "w8a8", None),
        ("qads", "w4a8", None),
        ("integer-softmax", "w8a8", "ops"),
        ("integer-softmax", "w6a6", "ops"),
        ("efficientquant", "w4a8", "simulated"),
        ("attention-percentile", "w8a8", "folded"),
        ("layernorm-ema", "w4a4", "folded"),
    ],
)
def test_each_method_passes_parity(images, tmp_path, method, bits, label):
    record = quantize(spec(images, tmp_path, model=VIT, bits=bits, method=[method]))
    assert record.parity.passed
    assert record.parity.first_divergence is None
    assert record.methods[0].label == (label or record.methods[0].label)
    assert Encodings.load(tmp_path / "encodings.safetensors").origin["methods"] == method


def test_arguments_that_make_no_sense(images, tmp_path):
    for method, argument, value, text in (
        ("attention-percentile", "percentile", 30, "expected more than 50 and at most 100"),
        ("integer-softmax", "segments", 0, "expected 1 or more"),
    ):
        asked = spec(
            images,
            tmp_path,
            model=VIT,
            attention="int8",
            method=[method],
            method_arg={f"{method}.{argument}": value},
        )
        with pytest.raises(UsageError, match=text):
            quantize(asked)


def test_contradictions_are_refused_before_any_work(tmp_path, images):
    with pytest.raises(
        UsageError,
        match="The methods qads and smooth contradict each other|The methods smooth and qads "
        "contradict",
    ):
        choose(["smooth", "qads"], {})
    with pytest.raises(UsageError, match="efficientquant and reconstruct contradict each other"):
        choose(["efficientquant", "reconstruct"], {})
    with pytest.raises(
        UsageError, match="ONNX has INT4 from opset 21 on, asked for 20. Give --opset 21"
    ):
        quantize(spec(images, tmp_path, bits="w4a8", weight_storage="int4"))
    with pytest.raises(
        UsageError, match="they have other widths with --bits w8a8. Give --bits w4a8 or w4a4"
    ):
        quantize(spec(images, tmp_path, weight_storage="int4", opset=21))


def test_int4_weights_are_stored_in_half_bytes_and_computed_as_simulated(images, tmp_path):
    record = quantize(
        spec(images, tmp_path, model=VIT, bits="w4a8", weight_storage="int4", opset=21)
    )
    assert record.parity.passed
    assert record.parity.first_divergence is None
    model = onnx.load(tmp_path / "model.qdq.onnx")
    narrow = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT4]
    wide = [q for q in record.quantizers if q.role == "weight" and q.format == "int4"]
    assert len(narrow) == len(wide) > 0
    assert all(q.computes_in == "float: INT4 weights are dequantized first" for q in wide)
    plain = quantize(spec(images, tmp_path / "b", model=VIT, bits="w4a8"))
    assert record.files["model.qdq.onnx"].bytes < 0.6 * plain.files["model.qdq.onnx"].bytes
    assert record.parity.quantization_sqnr_db == pytest.approx(
        plain.parity.quantization_sqnr_db, abs=0.01
    )


# ---- odd values --------------------------------------------------------------------------------


def _odd_cnn(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch\nfrom trtq.testing.models import tiny_cnn\ndef make():\n    "
        "torch.manual_seed(0)\n    m = tiny_cnn()\n"
        "    with torch.no_grad():\n        m.conv1.weight[2] = 0.0\n        m.conv1.weight[3] "
        "= 0.25\n        m.bn1.weight[5] = 0.0\n"
        "        m.bn1.bias[5] = 0.0\n        m.pointwise.weight[:, 4] = 0.0\n    return m\n"
    )
    return f"{tmp_path / 'odd.py'}:make"


@pytest.mark.parametrize(
    ("bits", "method"),
    [
        ("w8a8", "equalize"),
        ("w4a8", "smooth"),
        ("w8a8", "qads"),
        ("w8a8", "efficientquant"),
        ("w4a4", "reconstruct"),
        ("w4a4", "bias-correction"),
    ],
)
def test_zero_constant_and_dead_channels(images, tmp_path, bits, method):
    arguments = {"reconstruct.steps": "5"} if method == "reconstruct" else {}
    record = quantize(
        spec(
            images,
            tmp_path,
            model=_odd_cnn(tmp_path),
            bits=bits,
            method=[method],
            method_arg=arguments,
        )
    )
    assert record.parity.passed
    encodings = Encodings.load(tmp_path / "encodings.safetensors")
    assert all(bool(torch.isfinite(encodings.scale(q)).all()) for q in encodings.amax)


def test_calibration_images_of_other_sizes_are_resized(tmp_path):
    from PIL import Image

    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i, size in enumerate([(20, 50), (64, 32), (32, 32), (100, 33)]):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    record = quantize(spec(tmp_path / "images", tmp_path / "out", model=VIT, method=["smooth"]))
    assert record.parity.passed
