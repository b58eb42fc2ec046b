from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from trtq.errors import CaptureError, ModelError
from trtq.graph.capture import capture
from trtq.graph.feed import outputs_of
from trtq.graph.naming import node_name
from trtq.models.load import load_model
from trtq.quant.placement import place
from trtq.testing.models import data_dependent, dict_output, tiny_cnn, tiny_vit

SIZE = (3, 32, 32)


def targets(graph):
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


def names(graph):
    return [node_name(n) for n in graph.graph.nodes if n.op == "call_function"]


def test_graph_equals_the_model_and_is_normalised():
    model = tiny_cnn().eval()
    captured = capture(model, SIZE)
    assert captured.max_rel_diff <= 1e-5
    assert captured.dynamic_batch
    text = " ".join(targets(captured.module))
    assert "batch_norm" not in text
    assert "dropout" not in text
    assert "relu6_" not in text
    x = torch.randn(5, *SIZE)
    with torch.no_grad():
        assert torch.allclose(captured.module(x), model(x), atol=1e-5)


def test_attention_is_split_and_named():
    captured = capture(tiny_vit().eval(), SIZE)
    found = names(captured.module)
    for name in ("blocks.0.qk", "blocks.0.softmax", "blocks.0.av", "blocks.1.fc2"):
        assert name in found


def test_names_are_stable_between_two_captures():
    first, second = (names(capture(tiny_vit().eval(), SIZE).module) for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)


def test_dict_output_keeps_module_names():
    captured = capture(dict_output().eval(), SIZE)
    assert names(captured.module) == ["conv"]


class _Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)


class _AnyNumber(_Linear):
    def forward(self, *tensors):
        return self.fc(tensors[0])


class _KeyNamedOutput(_Linear):
    def forward(self, x):
        return {"output": self.fc(x)}


class _WritesToInput(_Linear):
    def forward(self, x):
        x += 1
        return x


class _GivesBoth(_Linear):
    def forward(self, x):
        answer = self.fc(x)
        x[:, 0] = 0
        return answer, x.mul_(2)


@pytest.mark.parametrize("kind", [_AnyNumber, _KeyNamedOutput, _WritesToInput, _GivesBoth])
def test_a_forward_of_an_unusual_form_is_captured_as_it_computes(kind):
    model, example = kind().eval(), torch.randn(2, 4)
    before = example.clone()
    captured = capture(model, example)
    assert captured.dynamic_batch
    assert torch.equal(example, before)
    with torch.no_grad():
        got = captured.module(example)
        wanted = model(example.clone())
    wanted = wanted["output"] if isinstance(wanted, dict) else wanted
    pairs = zip(outputs_of(got), outputs_of(wanted), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert not any("copy_" in t or "mul_" in t for t in targets(captured.module))


def test_a_counter_that_forward_changes_is_refused_as_an_output():
    class Counts(_Linear):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls.add_(1)
            return self.fc(x), self.calls

    with pytest.raises(CaptureError, match="does not equal the model: the output out.1 differs"):
        capture(Counts().eval(), torch.randn(2, 4))


def test_weight_computed_from_weights_becomes_a_constant():
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            w = self.conv.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-6)
            return nn.functional.conv2d(x, w).mean((2, 3))

    captured = capture(Standardised().eval(), SIZE)
    roles = {q.role: q.float_reason for q in place(captured.module).quantizers}
    assert roles == {"input": None, "weight": None}


def test_batch_norm_without_a_convolution_before_it_becomes_scale_and_shift():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    model[0].running_mean.fill_(0.3)
    captured = capture(model, SIZE)
    assert captured.passes["batch norm folded"] == 1
    assert "batch_norm" not in " ".join(targets(captured.module))


def test_a_layer_used_twice_keeps_one_weight_quantizer_per_use_and_unique_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x))).mean((2, 3))

    found = [q.name for q in place(capture(Twice().eval(), SIZE).module).quantizers]
    assert len(found) == len(set(found)) == 4


def test_a_batch_the_model_ties_itself_to_is_captured_at_one_and_said():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            n = int(x.shape[0])
            y = self.conv(x)
            return torch.stack([y[i].mean((1, 2)) for i in range(n)])

    captured = capture(Fixed().eval(), SIZE)
    assert not captured.dynamic_batch
    line = inspect.getsourcelines(Fixed.forward)[1] + 1  # where the batch becomes an int
    assert f"fixed batch of 1: module (top) (Fixed), {__file__}:{line} " in captured.notes[0]


def test_a_model_of_one_image_says_the_line_that_fails_on_two():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).reshape(1, -1, 2)[:, :, 0].reshape(1, 4 * 15 * 30)

    captured = capture(One().eval(), SIZE)
    assert not captured.dynamic_batch
    assert [len(t) for t in captured.examples] == [1]
    line = inspect.getsourcelines(One.forward)[1] + 1
    assert f"fails on two samples at module (top) (One), {__file__}:{line}: " in captured.notes[0]


def test_data_dependent_control_flow_names_module_and_line():
    with pytest.raises(
        CaptureError, match=r"DataDependent\), .*models.py:\d+.*decides by the values.*torch.where"
    ):
        capture(data_dependent().eval(), SIZE)


def test_wrong_input_size_says_which_option():
    with pytest.raises(CaptureError, match=r"fails on input \[1, 1, 32, 32\].*--input-size"):
        capture(tiny_cnn().eval(), (1, 32, 32))


def test_output_that_is_no_tensor():
    class Text(nn.Module):
        def forward(self, x):
            return "x"

    with pytest.raises(CaptureError, match="expected a tensor, found str"):
        capture(Text(), SIZE)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet18", "it has no source before a colon.*timm:resnet18"),
        ("timm:resnet81", "Unknown timm model 'resnet81'. Did you mean resnet"),
        ("torchvision:resnet81", "Did you mean resnet"),
        ("trtq:fcn_resnet81", "Did you mean fcn_resnet18"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("trtq.testing.models:tiny_cn", "has no callable 'tiny_cn'. Did you mean tiny_cnn"),
        ("trtq.nowhere:make", "importing trtq.nowhere raised ModuleNotFoundError"),
        ("trtq.errors:suggest", "its factory raised TypeError"),
    ],
)
def test_unknown_models_suggest(name, text):
    with pytest.raises(ModelError, match=text):
        load_model(name)


def test_own_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import torch\ndef make(k=3):\n    return torch.nn.Conv2d(3, 4, k)\n")
    assert load_model(f"{path}:make", args={"k": "5"}).module.kernel_size == (5, 5)


class Masked(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.proj, self.head = kind, nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 4)

    def forward(self, x):
        t = self.proj(x).flatten(2).transpose(1, 2)[:, None]
        n = t.shape[-2]
        mask = {
            "bool": torch.ones(n, n).tril().bool(),
            "float": torch.zeros(n, n).masked_fill(torch.ones(n, n).triu(1).bool(), -1e9),
            "computed": (t @ t.transpose(-1, -2)) > -1.0,
            "causal": None,
        }[self.kind]
        out = nn.functional.scaled_dot_product_attention(
            t, t, t, attn_mask=mask, is_causal=self.kind == "causal"
        )
        return self.head(out.mean((1, 2)))


@pytest.mark.parametrize("kind", ["bool", "float", "computed", "causal"])
def test_attention_masks(kind):
    captured = capture(Masked(kind).eval(), SIZE)
    assert captured.max_rel_diff <= 1e-5
    assert "scaled_dot_product_attention" not in " ".join(targets(captured.module))


def test_names_stay_unique_when_a_module_is_called_like_a_counter():
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.conv_1 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv_1(self.conv(self.conv(x))).mean((2, 3))

    found = names(capture(Clash().eval(), SIZE).module)
    assert len(found) == len(set(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet18",
        "timm:resnet50",
        "timm:mobilenetv2_100",
        "timm:tf_efficientnet_lite0",
        "timm:mobilevit_xxs",
        "timm:mobilevit_s",
        "timm:mobilevitv2_050",
        "timm:deit_tiny_patch16_224",
        "timm:swin_tiny_patch4_window7_224",
        "trtq:fcn_resnet18",
    ],
)
def test_named_models_are_captured_exactly_with_stable_names(name):
    model = load_model(name)
    size = tuple(model.input_hints.get("input_size", (3, 224, 224)))
    first, second = capture(model.module, size), capture(model.module, size)
    assert first.max_rel_diff <= 1e-5
    assert names(first.module) == names(second.module)
    assert first.dynamic_batch
