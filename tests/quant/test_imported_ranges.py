"""Ranges from the files of other tools, on trtq's graph.

BatchNorm is folded, codes are unchanged, and no range is invented.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import read, run_cli
from tests.support.quantize import CNN
from tests.support.toolkits import LAYERS, asked, fake, quantized_state
from trtq import Encodings, import_checkpoint
from trtq.errors import EncodingsError
from trtq.export.ort import open_session, run_batch
from trtq.graph.capture import capture
from trtq.quant.imported_ranges import read_foreign
from trtq.testing.models import tiny_cnn


def simulated(
    model: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, x: torch.Tensor
) -> torch.Tensor:
    """What those tools compute: fake quantization in front of every layer, BatchNorm apart."""
    hooks = []
    for layer in LAYERS:
        module = model.get_submodule(layer)
        module.weight.data = fake(
            state[f"{layer}.weight"], state[f"{layer}.{prefix}weight_quantizer._amax"]
        )
        amax = state[f"{layer}.{prefix}input_quantizer._amax"]
        hooks.append(
            module.register_forward_pre_hook(lambda _, args, amax=amax: (fake(args[0], amax),))
        )
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(("prefix", "tool"), [("_", "pytorch-quantization"), ("", "ModelOpt")])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_file_computes_what_the_other_tool_computed(
    prefix, tool, per_channel, images: Path, tmp_path: Path
):
    model, state = quantized_state(prefix, per_channel=per_channel)
    torch.save(
        {"modelopt_state": {"version": "0.47"}, "model_state_dict": state} if not prefix else state,
        tmp_path / "q.pth",
    )
    record = import_checkpoint(asked(images, tmp_path / "q.pth", tmp_path / "o"))
    assert record.tool == tool
    assert record.quantizers == 10
    assert record.unused == {}
    assert set(record.left_in_float.values()) <= {f"{tool} has no range for it"}
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = simulated(model, state, prefix, x).numpy()
    got = run_batch(open_session(tmp_path / "o/model.qdq.onnx"), x.numpy())[0]
    plain = run_batch(open_session(tmp_path / "o/model.fp32.onnx"), x.numpy())[0]
    assert np.abs(got - wanted).max() < 0.1 * np.abs(plain - wanted).max()  # what is left are ties
    encodings = Encodings.load(tmp_path / "o/encodings.safetensors")
    assert float(encodings.amax["conv1.input"]) == 3.0
    assert encodings.amax["stem.weight"].shape == (16,)
    # The weights lie there without the tensors of quantizers, for every other command.
    again = import_checkpoint(
        asked(
            images,
            tmp_path / "q.pth",
            tmp_path / "p",
            checkpoint=f"{tmp_path}/o/weights.safetensors",
        )
    )
    assert Encodings.load(tmp_path / "p/encodings.safetensors").digest() == encodings.digest()
    assert again.parity.passed


def test_training_goes_on_from_imported_ranges(images: Path, tmp_path: Path):
    from trtq import FinetuneSpec, finetune

    _, state = quantized_state("_")
    torch.save(state, tmp_path / "q.pth")
    import_checkpoint(asked(images, tmp_path / "q.pth", tmp_path / "o"))
    values = {
        "model": CNN,
        "checkpoint": f"{tmp_path}/o/weights.safetensors",
        "data": str(images),
        "encodings": f"{tmp_path}/o/encodings.safetensors",
        "out": str(tmp_path / "qat"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "epochs": 1,
        "batch_size": 8,
        "parity_images": 8,
    }
    assert finetune(FinetuneSpec.make(values)).parity.passed


def test_what_has_no_place_is_listed(images: Path, tmp_path: Path):
    _, state = quantized_state("_")
    state["conv1._strange_quantizer._amax"] = torch.tensor(1.0)
    state["elsewhere._input_quantizer._amax"] = torch.tensor(1.0)
    state["depthwise._input_quantizer._amax"] = torch.ones(16)
    del state["head._weight_quantizer._amax"]
    torch.save(state, tmp_path / "q.pth")
    record = import_checkpoint(asked(images, tmp_path / "q.pth", tmp_path / "o"))
    assert record.unused == {
        "conv1._strange_quantizer._amax": "trtq has no place for the strange of a layer",
        "elsewhere.input": "the model has no such layer",
    }
    left = record.left_in_float
    assert (
        left["depthwise.input"]
        == "its range is one for each channel, which TensorRT does not take for activations"
    )
    assert left["head.weight"] == "pytorch-quantization has no range for it"
    encodings = Encodings.load(tmp_path / "o/encodings.safetensors")
    assert {"depthwise.weight", "head.input"} <= set(encodings.amax), (
        "what the tool quantized has its codes here"
    )
    assert (
        "head has a range of its input alone: engines compute it in float (pytorch-quantization "
        "has no range for it)" in record.notes
    )
    assert any("8 are assumed" in n for n in record.notes)


def test_files_without_ranges(images: Path, tmp_path: Path):
    torch.save(dict(tiny_cnn().state_dict()), tmp_path / "plain.pth")
    with pytest.raises(
        EncodingsError,
        match="There are no ranges in .*plain.pth: no tensor is called LAYER.input_quantizer._amax",
    ):
        read_foreign(tmp_path / "plain.pth")
    _, state = quantized_state("_")
    torch.save(
        {**state, "stem._input_quantizer._amax": torch.tensor(float("nan"))}, tmp_path / "nan.pth"
    )
    with pytest.raises(
        EncodingsError,
        match="Cannot use stem._input_quantizer._amax of .*: a range must be finite and not below "
        "0",
    ):
        read_foreign(tmp_path / "nan.pth")
    torch.save(
        {k: v for k, v in state.items() if not k.startswith(LAYERS)}
        | {"x._input_quantizer._amax": torch.tensor(1.0)},
        tmp_path / "other.pth",
    )
    with pytest.raises(
        EncodingsError, match="The ranges of .* are of another model: .* has no x.input"
    ):
        torch.save(
            {**tiny_cnn().state_dict(), "x._input_quantizer._amax": torch.tensor(1.0)},
            tmp_path / "other.pth",
        )
        import_checkpoint(asked(images, tmp_path / "other.pth", tmp_path / "o"))
    for text, why in (
        ("{", "Cannot read the encodings"),
        ("[]", "holds no encodings of AIMET"),
        ('{"activation_encodings": {}}', "There are no ranges"),
    ):
        (tmp_path / "a.encodings").write_text(text)
        with pytest.raises(EncodingsError, match=why):
            read_foreign(tmp_path / "a.encodings")
    (tmp_path / "a.encodings").write_text(
        json.dumps({"activation_encodings": {"conv": {"input": {"0": {"bitwidth": 8}}}}})
    )
    with pytest.raises(
        EncodingsError, match="Cannot read conv.input of .*: no numbers for min and max"
    ):
        read_foreign(tmp_path / "a.encodings")


ONE = {"bitwidth": 8, "min": -1.28, "max": 1.27, "is_symmetric": "True"}


@pytest.mark.parametrize(
    ("inputs", "parameters", "why"),
    [
        ([ONE], {}, "Cannot read conv.input of .*: expected an object with names, found a list"),
        ({"0": ONE}, [ONE], "Cannot read param_encodings of .*: expected an object with names"),
        ({"0": ONE}, {"conv.weight": ONE}, "Cannot read conv.weight of .*: no numbers for min and"),
        ({"0": ONE}, {"conv.weight": []}, "Cannot read conv.weight of .*: it has no ranges"),
        ({"0": {**ONE, "bitwidth": "x"}}, {}, "Cannot read conv.input of .*: no numbers for min"),
    ],
)
def test_another_form_of_aimets_file_is_refused(tmp_path: Path, inputs, parameters, why):
    path = tmp_path / "a.encodings"
    sides = {"conv": {"input": inputs}}
    path.write_text(json.dumps({"activation_encodings": sides, "param_encodings": parameters}))
    with pytest.raises(EncodingsError, match=why):
        read_foreign(path)


def test_aimets_ranges_of_further_inputs_are_listed_as_unread(tmp_path: Path):
    path = tmp_path / "a.encodings"
    sides = {"add": {"input": {"0": ONE, "1": {**ONE, "max": 9.0}}}}
    path.write_text(json.dumps({"activation_encodings": sides, "param_encodings": {}}))
    found = read_foreign(path)
    assert float(found.amax["add.input"]) == pytest.approx(1.27)
    assert found.unread == {"add.input[1]": "only a layer's first input is taken over"}


def test_smoothing_that_a_state_dict_hides_is_refused(tmp_path: Path):
    _, state = quantized_state("")
    torch.save(
        {**state, "head.input_quantizer._pre_quant_scale": torch.ones(32)}, tmp_path / "one.pth"
    )
    assert read_foreign(tmp_path / "one.pth").amax
    torch.save(
        {**state, "head.input_quantizer._pre_quant_scale": torch.full((32,), 2.0)},
        tmp_path / "two.pth",
    )
    with pytest.raises(
        EncodingsError,
        match="head.input_quantizer._pre_quant_scale: SmoothQuant or AWQ divided weights by it",
    ):
        read_foreign(tmp_path / "two.pth")


def test_aimet(images: Path, tmp_path: Path):
    model = tiny_cnn().eval()

    def one(low: float, high: float, symmetric: bool = True, bits: int = 8) -> dict[str, object]:
        return {
            "bitwidth": bits,
            "min": low,
            "max": high,
            "is_symmetric": str(symmetric),
            "dtype": "int",
            "offset": -128,
            "scale": high / 127,
        }

    activations = {layer: {"input": {"0": one(-128 / 127 * 3.0, 3.0)}} for layer in LAYERS}
    activations["pointwise"] = {"input": {"0": one(0.0, 4.0, symmetric=False)}}
    activations["relu"] = {"output": {"0": one(-1, 1)}}
    params = {
        f"{layer}.weight": [
            one(-128 / 127 * v, v)
            for v in model.get_submodule(layer).weight.detach().abs().flatten(1).amax(1).tolist()
        ]
        for layer in LAYERS
    }
    params["head.bias"] = [one(-1, 1)]
    params["stem.weight"] = [one(-1, 1, bits=16)]
    (tmp_path / "q.encodings").write_text(
        json.dumps(
            {"version": "0.6.1", "activation_encodings": activations, "param_encodings": params}
        )
    )
    torch.manual_seed(0)
    record = import_checkpoint(asked(images, tmp_path / "q.encodings", tmp_path / "o"))
    encodings = Encodings.load(tmp_path / "o/encodings.safetensors")
    assert record.tool == "AIMET"
    assert float(encodings.amax["conv1.input"]) == pytest.approx(3.0, rel=1e-5)
    assert float(encodings.amax["pointwise.input"]) == pytest.approx(4.0, rel=1e-5)
    assert any("pointwise.input was asymmetric" in n for n in record.notes)
    assert record.unused["head.bias"] == "biases remain in float"
    assert record.unused["stem.weight"] == "it has 16 bits"
    assert "relu" in record.unused
    assert any(n.startswith("stem has a range of its input alone") for n in record.notes)


def test_on_the_command_line(images: Path, tmp_path: Path):
    _, state = quantized_state("_")
    torch.save(state, tmp_path / "q.pth")
    done = run_cli(
        "import-checkpoint",
        CNN,
        "--ranges",
        str(tmp_path / "q.pth"),
        "--data",
        str(images),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--parity-images",
        "8",
        "--out",
        str(tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    assert "10 ranges of pytorch-quantization in use" in done.stdout
    assert read(tmp_path / "o/import.json")["parity"]["passed"]


def test_aimet_ranges_of_folded_weights_are_not_folded_again(images: Path, tmp_path: Path):
    from trtq.graph.nodes import get_constant

    torch.manual_seed(0)
    graph = capture(tiny_cnn().eval(), (3, 32, 32)).module
    folded = {
        str(n.target): get_constant(graph, n) for n in graph.graph.nodes if n.op == "get_attr"
    }
    stem = next(
        v for k, v in folded.items() if k.startswith("stem") and v is not None and v.ndim == 4
    )

    def one(v: float) -> dict[str, object]:
        return {"bitwidth": 8, "min": -128 / 127 * v, "max": v, "is_symmetric": "True"}

    data = {
        "activation_encodings": {"stem": {"input": {"0": one(3.0)}}},
        "param_encodings": {
            "stem.weight": [one(v) for v in stem.abs().flatten(1).amax(1).tolist()]
        },
    }
    (tmp_path / "q.encodings").write_text(json.dumps(data))
    import_checkpoint(asked(images, tmp_path / "q.encodings", tmp_path / "o"))
    got = Encodings.load(tmp_path / "o/encodings.safetensors").amax["stem.weight"]
    torch.testing.assert_close(got, stem.abs().flatten(1).amax(1), rtol=1e-4, atol=0)
