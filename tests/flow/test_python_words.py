"""Errors of the Python API name its arguments."""

import numpy as np
import pytest
import torch
from torch import nn

import trtq
from trtq.errors import TrtqError
from trtq.python_words import as_arguments
from trtq.specs import QuantizeSpec


def said(call):
    with pytest.raises(TrtqError) as caught:
        call()
    assert caught.value.hint in str(caught.value)
    return str(caught.value)


def test_a_model_that_fails_names_input_size_as_an_argument():
    net = nn.Sequential(nn.Conv2d(4, 2, 1)).eval()
    text = said(lambda: trtq.load(net, input_size=(3, 8, 8)))
    assert "Give the size it expects with input_size=(C, H, W), or an example" in text
    assert 'example={"NAME": tensor}' in text
    assert "--" not in text


def test_options_of_quantize_are_arguments():
    net = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    samples = [torch.randn(3, 8, 8) for _ in range(4)]
    text = said(lambda: trtq.quantize(net, samples, bits="w9a8"))
    assert "--" not in text


def test_a_spec_keeps_the_options_of_the_command_line(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.float32))
    spec = QuantizeSpec(
        model="timm:resnet18", data=str(tmp_path), out=str(tmp_path / "o"), mean=(0.0, 0.0, 0.0)
    )
    assert "--mean" in said(lambda: trtq.quantize(spec))


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("--preset yolo", 'preprocess="yolo"'),
        ("--calib-images 64", "calib_images=64"),
        ("--min-score mAP=-1.0", 'min_score={"mAP": -1.0}'),
        ("Leave --mean and --std out", "Leave mean and std out"),
        ("(--reference, --masks)", "(reference, masks)"),
        ("--input ids=1x128:int64", 'example={"ids": tensor}'),
        ("--dynamic ids=batch,length", 'dynamic={"ids": ["batch", "length"]}'),
        (
            "--dynamic x=batch,3,h:64..:32,8",
            'dynamic={"x": ["batch", 3, "h", 8]}, ranges={"h": SizeRange(least=64, multiple=32)}',
        ),
        ("1e-05 -- a dash", "1e-05 -- a dash"),
        (
            "Use --bits w8a8, or take them over: trtq import-checkpoint m.onnx --data IMAGES",
            'Use bits="w8a8", or take them over: trtq import-checkpoint m.onnx --data IMAGES',
        ),
    ],
)
def test_forms(option, argument):
    assert as_arguments(option) == argument
