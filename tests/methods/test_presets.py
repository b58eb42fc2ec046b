"""Presets by family, and fallbacks."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import trtq
from tests.conftest import spec
from tests.support.quantize import VIT
from trtq import quantize
from trtq.methods.presets import start
from trtq.progress import Silent
from trtq.specs import QuantizeOptions
from trtq.testing.models import tiny_cnn, tiny_vit


def test_the_report_shows_preset_attempts_and_where_each_tensor_runs(images, tmp_path):
    from trtq.report.page import write_page

    own = _with_a_checkpoint(images, tmp_path)
    quantize(
        spec(
            images,
            tmp_path / "o",
            **own,
            bits="w2a2",
            preset_quant="cnn",
            min_agreement=100,
            method=["equalize"],
        )
    )
    text = write_page(tmp_path / "o", tmp_path / "report.html", title="t").read_text()
    assert "Family <strong>cnn</strong>: asked for." in text
    assert "first and last layer in float" in text
    assert "INT8" in text
    quantize(spec(images, tmp_path / "e", model=VIT, method=["efficientquant"]))
    text = write_page(tmp_path / "e", tmp_path / "e.html", title="t").read_text()
    assert "simulated: engines compute it in float" in text
    assert "float: the weights are stored as rounded values" in text


# ---- presets -----------------------------------------------------------------------------------


def test_the_preset_follows_the_family_and_says_so(images, tmp_path):
    record = quantize(spec(images, tmp_path / "a", model=VIT, preset_quant="auto"))
    assert (record.preset.family, record.preset.methods) == ("vit", ["smooth"])
    assert "attentions" in record.preset.reason
    assert [m.name for m in record.methods] == ["smooth"]
    record = quantize(spec(images, tmp_path / "b", preset_quant="auto"))
    assert (record.preset.family, record.preset.methods, len(record.preset.tried)) == ("cnn", [], 1)
    record = quantize(spec(images, tmp_path / "c", preset_quant="vit", method=["equalize"]))
    assert record.preset.reason == "asked for"
    assert record.preset.methods == ["equalize"]  # what is asked for replaces the family's methods
    assert quantize(spec(images, tmp_path / "d", preset_quant="none")).preset is None


def _as_allocated(*widths):
    layers = {f"layer{i}": width for i, width in enumerate(widths)}
    return start(QuantizeOptions(layer_bits=layers), "vit").method


def test_an_allocation_gets_the_methods_of_its_widths():
    for bits in ("w8a8", "w4a8", "fp8", "w4a16:128"):
        alone = start(QuantizeOptions(bits=bits), "vit").method
        assert _as_allocated(bits, bits) == _as_allocated(bits, "fp16") == alone
    assert _as_allocated("w8a8", "w4a8") == _as_allocated("w4a8", "w4a8")
    assert "reconstruct" in _as_allocated("w8a8", "w4a8")
    assert "reconstruct" not in _as_allocated("w8a8", "w8a8")


def test_the_line_about_a_preset_says_that_rounding_is_learned():
    class Heard(Silent):
        def __init__(self):
            self.lines = []

        def note(self, text):
            self.lines.append(text)

    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for width, wanted in (("w4a8", 1), ("w8a8", 0)):
        heard, layers = Heard(), ("stem", "conv1", "depthwise", "pointwise", "head")
        trtq.quantize(
            tiny_cnn().eval(),
            images,
            layer_bits=dict.fromkeys(layers, width),
            time_budget=0.01,
            parity_images=4,
            progress=heard,
        )
        line = next(n for n in heard.lines if n.startswith("preset cnn"))
        assert (
            line.count("learn their rounding for up to 0.01 min in each attempt (--time") == wanted
        )


def _with_a_checkpoint(images, tmp_path):
    """A model with weights of its own, so that its agreement means something.

    Its classes depend on the image.
    """
    from safetensors.torch import save_file

    from trtq.data.preprocess import batches, resolve_preprocess
    from trtq.data.source import open_source

    (tmp_path / "deep.py").write_text(
        "import torch\nfrom torch import nn\nclass Deep(nn.Module):\n    def __init__(self):\n  "
        "      super().__init__()\n"
        "        widths = [3, 8, 8, 8, 8, 8, 8, 4]\n"
        "        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, bias=b == 4) for a, b in "
        "zip(widths, widths[1:]))\n"
        "    def forward(self, x):\n        for layer in self.layers[:-1]:\n            x = "
        "torch.relu(layer(x))\n"
        "        return self.layers[-1](x).mean((2, 3))\n"
        "def make():\n    torch.manual_seed(3)\n    return Deep()\n"
    )
    found = importlib.util.spec_from_file_location("deep", tmp_path / "deep.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    model, source = module.make(), open_source(str(images), None)
    preprocess, _ = resolve_preprocess(
        input_size=(3, 32, 32),
        mean=None,
        std=None,
        preset="imagenet",
        resize=None,
        crop=None,
        interpolation=None,
        hints={},
    )
    with torch.no_grad():
        seen = torch.cat([model(x) for x in batches(source, range(len(source.ids)), preprocess, 8)])
        model.layers[-1].bias -= seen.mean(0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return {"model": f"{tmp_path / 'deep.py'}:make", "checkpoint": str(tmp_path / "w.safetensors")}


def test_fallbacks_are_tried_in_order_and_listed(images, tmp_path):
    own = _with_a_checkpoint(images, tmp_path)
    asked = spec(
        images,
        tmp_path / "o",
        **own,
        bits="w2a2",
        preset_quant="cnn",
        min_agreement=100,
        method=["equalize"],
    )
    record = quantize(asked)
    steps = [t.step for t in record.preset.tried]
    assert steps[0] == "as asked"
    assert set(steps[1:]) <= {
        "shortcuts of residual adds in float",
        "bias correction",
        "first and last layer in float",
        "the worst tenth of the layers in float",
        "the worst quarter in float",
    }
    assert "first and last layer in float" in steps
    assert "shortcuts of residual adds in float" not in steps  # it has none
    assert "fell back on" in record.summary
    assert any("trying first and last layer in float" in n for n in record.notes)
    best = max(t.agreement for t in record.preset.tried)
    assert record.parity.agreement == best
    plain = quantize(
        spec(images, tmp_path / "p", **own, bits="w2a2", preset_quant="none", method=["equalize"])
    )
    assert record.parity.agreement >= plain.parity.agreement


@pytest.mark.parametrize("method", ["qads", "ranking"])
def test_a_fallback_that_contradicts_what_was_asked_for_is_left_out(images, tmp_path, method):
    from safetensors.torch import save_file

    save_file(tiny_vit().state_dict(), tmp_path / "w.safetensors")
    own = {"model": VIT, "checkpoint": str(tmp_path / "w.safetensors"), "attention": "int8"}
    record = quantize(
        spec(
            images,
            tmp_path / "o",
            **own,
            bits="w2a2",
            preset_quant="auto",
            min_agreement=100,
            method=[method],
        )
    )
    steps = [t.step for t in record.preset.tried]
    assert ("smoothing" in steps) == (method != "qads" and len(steps) > 1)
    assert "attention in float" not in steps  # the user said int8
    assert record.preset.taken in steps


def test_random_weights_do_not_fall_back(images, tmp_path):
    record = quantize(
        spec(
            images,
            tmp_path,
            bits="w2a2",
            preset_quant="cnn",
            min_agreement=100,
            method=["equalize"],
        )
    )
    assert [t.step for t in record.preset.tried] == ["as asked"]
