"""An attention is found, and treated as one, where masks lie around its softmax."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.export.test_attention_masks import Padded
from tests.support.workbench import bench_of
from trtq.graph.capture import capture
from trtq.graph.naming import node_name
from trtq.methods.registry import get_method
from trtq.quant.placement import attention_of, place


class Written(Padded):
    """An attention written out, with the mask given in one of the forms that models use."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x):
        y = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.transpose(-2, -1)
        bright = (y.mean(-1) > 0)[:, None, None]
        if self.form == "where":
            probs = torch.where(bright, logits, torch.full_like(logits, -1e4)).softmax(-1)
        elif self.form == "bias first":
            probs = ((~bright) * -1e4 + logits).softmax(-1)
        elif self.form == "fill":
            probs = logits.masked_fill(~bright, -torch.inf).softmax(-1)
            probs = probs.masked_fill(~bright, 0.0)
        else:  # rows without a key, as torch.onnx writes them
            probs = logits.masked_fill(~bright, -torch.inf).softmax(-1)
            probs = torch.where(probs.isnan(), 0.0, probs)
        return self.fc((y + self.proj((probs @ v).transpose(1, 2).reshape(b, n, c))).mean(1))


FORMS = {
    **{f: lambda f=f: Written(f) for f in ("where", "bias first", "fill", "nan")},
    **{f"sdpa {k}": lambda k=k: Padded(k) for k in ("rows", "keys", "computed")},
}


@pytest.fixture(params=FORMS)
def masked(request) -> nn.Module:
    return FORMS[request.param]()


def test_both_matmuls_belong_to_the_attention(masked):
    graph = capture(masked.eval(), (3, 32, 32)).module
    names = {node_name(n) for n in graph.graph.nodes}
    assert {"qk", "av"} <= names
    placement = place(graph, attention="float")
    of_attention = [q for q in placement.quantizers if attention_of(q) is not None]
    assert len(of_attention) == 4
    assert {q.float_reason for q in of_attention} == {"asked for by --attention float"}


def test_an_attention_keeps_together(masked):
    placement = place(capture(masked.eval(), (3, 32, 32)).module, high_precision=["qk"])
    whys = {q.name: q.float_reason for q in placement.quantizers if q.layer == "av"}
    assert len(whys) == 2
    assert all(w and "an attention is one kernel" in w for w in whys.values()), whys


@pytest.mark.parametrize("name", ["integer-softmax", "efficientquant"])
def test_methods_for_softmaxes_take_masks(masked, name):
    context = bench_of(masked)
    x = next(context.images(4))[0]
    with torch.no_grad():
        before = context.graph(x)
    method = get_method(name)
    report = method.run(context, method.values({}))
    with torch.no_grad():
        after = context.graph(x)
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after, before, atol=0.05, rtol=0.05)
    log2 = [q for q in context.placement.quantizers if q.format.kind == "log2"]
    if name == "integer-softmax":
        assert report["softmaxes"] == 1
    else:
        assert [(q.layer, q.role) for q in log2] == [("av", "lhs")]
