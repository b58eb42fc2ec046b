from __future__ import annotations

import msgspec
import pytest

from trtq.errors import UsageError
from trtq.platform.target import opset_of
from trtq.recipe import load_recipe
from trtq.specs import BuildSpec, QuantizeSpec


def test_texts_become_tuples():
    spec = QuantizeSpec.make(
        {"model": "timm:x", "out": "o", "input_size": "3x8x16", "mean": "0.1,0.2,0.3"}
    )
    assert spec.input_size == (3, 8, 16)
    assert spec.mean == (0.1, 0.2, 0.3)
    assert BuildSpec.make({"onnx": "a", "target": "t4", "out": "e", "batch": "1:4:8"}).batch == (
        1,
        4,
        8,
    )


def test_specs_are_checked_when_made_in_python_too():
    with pytest.raises(UsageError, match="Cannot use --calib-images 0"):
        QuantizeSpec(model="timm:x", out="o", calib_images=0)


def test_specs_are_frozen_and_round_trip_through_json():
    spec = QuantizeSpec.make(
        {
            "model": "timm:x",
            "out": "o",
            "high_precision": ["@first"],
            "model_arg": {"num_classes": "10"},
        }
    )
    assert msgspec.json.decode(msgspec.json.encode(spec), type=QuantizeSpec) == spec
    with pytest.raises(AttributeError):
        spec.out = "p"


def test_training_writes_for_the_target_of_the_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        '[quantize]\nmodel="timm:resnet18"\ndata="d"\ntarget="xavier@8.5"\n[finetune]\n'
    )
    recipe = load_recipe(path)
    assert recipe.finetune.target == "xavier@8.5"
    assert opset_of(recipe.finetune) == opset_of(recipe.quantize) == 16


def test_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        '[quantize]\nmodel="timm:resnet18"\ndata="d"\n[evaluate]\n[[build]]\ntarget="rtx3080"\n'
        "[bench]\n"
    )
    recipe = load_recipe(path)
    assert recipe.out == "runs/r"
    assert recipe.quantize.out == "runs/r"
    assert recipe.build[0].target == "rtx3080"
    assert recipe.evaluate.held_out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[quantise]\nmodel='a'",
            "Unknown table or setting 'quantise' in .* Did you mean quantize?",
        ),
        ("[bench]", r"has no \[quantize\] table"),
        (
            "[quantize]\nmodel='a'\ncalibratr='max'",
            "Unknown setting 'calibratr' in .quantize. of .*r.toml. Did you mean calibrator",
        ),
        ("[quantize]\nmodel='a'\ncalibrator='median'", "found 'median', expected one of"),
        ("[quantize\n", "Cannot read the recipe"),
        ("[quantize]\ndata='d'", "missing required field `model`"),
    ],
)
def test_wrong_recipes(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(path)
