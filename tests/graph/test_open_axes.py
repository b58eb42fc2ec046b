"""Captured graphs: they hold for every size that is open, and give what their names say."""

import pytest
import torch
from torch import nn

from trtq.errors import CaptureError
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        samples, length, _ = x.shape
        parts = self.qkv(x).reshape(samples, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2).reshape(samples, length, 8)


def test_a_causal_attention_holds_for_every_length():
    torch.manual_seed(0)
    model = Causal().eval()
    captured = capture(model, torch.randn(2, 6, 8), axes={"input": ["batch", "length", 8]})
    assert captured.signature.inputs[0].shape == ("batch", "length", 8)
    session = open_session(export_onnx(captured.module, opset=17))
    for length in (1, 4, 6, 9):
        x = torch.randn(3, length, 8)
        with torch.no_grad():
            wanted = model(x)
            torch.testing.assert_close(captured.module(x), wanted, rtol=1e-5, atol=1e-6)
        (answer,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), wanted, rtol=1e-5, atol=1e-6)


class Rows(nn.Module):
    def forward(self, x):
        return (x * 2).flatten(2)


def test_names_of_axes_that_look_like_sizes_of_torch_stay_whole():
    axes = {"input": ["batch", 3, "boxes0", "s1"]}
    captured = capture(Rows().eval(), torch.randn(2, 3, 8, 16), axes=axes)
    size = captured.signature.outputs[0].shape[2]
    assert set(size.split("*")) == {"boxes0", "s1"}


class KeysWithDots(nn.Module):
    def forward(self, x):
        return {"a.b": x * 2, "a": {"b": x * 3}}


def test_outputs_whose_keys_read_alike_have_names_of_their_own():
    x = torch.ones(2, 4)
    captured = capture(KeysWithDots().eval(), x)
    assert [t.name for t in captured.signature.outputs] == ["a.b", "a.b.1"]
    (first,) = capture(KeysWithDots().eval(), x, outputs=["a.b"]).module(x).unique().tolist()
    assert first == 2.0


class LosesItself(nn.Module):
    def forward(self, x):
        y = x * 2
        return y, y * float("nan") if torch.compiler.is_exporting() else y


def test_a_graph_that_gives_nan_in_a_later_output_is_not_the_model():
    with pytest.raises(CaptureError, match=r"the output out\.1 differs by inf"):
        capture(LosesItself().eval(), torch.randn(2, 4))
