"""Attention whose mask leaves rows without a key, and masks of -inf in FP16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.conftest import read, spec
from trtq import quantize
from trtq.export.fp16_ranges import find_float_nodes
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture
from trtq.graph.tracing import quiet


class Padded(nn.Module):
    """Patch tokens whose last column is padding.

    Args:
        mask: ``rows``: padded queries attend to nothing; ``keys``: they still look at valid keys;
            ``float``: rows as -inf; ``computed``: rows, by the brightness of the image.
    """

    def __init__(self, mask: str = "rows") -> None:
        super().__init__()
        torch.manual_seed(5)
        self.kind = mask
        self.patch, self.qkv, self.proj, self.fc = (
            nn.Conv2d(3, 16, 8, 8),
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            nn.Linear(16, 4),
        )
        valid = torch.ones(4, 4, dtype=torch.bool)
        valid[:, 3] = False
        valid = valid.flatten()
        both = (valid[:, None] & valid[None, :])[None, None]
        if mask == "keys":
            both = both.any(-2, keepdim=True).expand(1, 1, 16, 16).contiguous()
        if mask == "float":
            both = torch.zeros(both.shape).masked_fill_(~both, -torch.inf)
        self.register_buffer("mask", both)

    def forward(self, x):
        y = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.mask
        if self.kind == "computed":
            bright = (y.mean(-1) > 0)[:, None]
            mask = (bright[..., :, None] & bright[..., None, :]) & mask
        y = y + self.proj(
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, n, c)
        )
        return self.fc(y.mean(1))


class Mha(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patch, self.attn, self.fc = (
            nn.Conv2d(3, 16, 8, 8),
            nn.MultiheadAttention(16, 2, batch_first=True),
            nn.Linear(16, 4),
        )
        self.register_buffer("mask", ~Padded().mask[0, 0])

    def forward(self, x):
        y = self.patch(x).flatten(2).transpose(1, 2)
        return self.fc((y + self.attn(y, y, y, attn_mask=self.mask, need_weights=False)[0]).mean(1))


MODELS = {k: (lambda k=k: Padded(k)) for k in ("rows", "keys", "float", "computed")} | {"mha": Mha}


@pytest.mark.parametrize("kind", MODELS)
def test_rows_without_a_key_answer_0_as_torch_does(kind):
    model = MODELS[kind]().eval()
    captured = capture(model, (3, 32, 32))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with quiet(), torch.no_grad():  # without the fused path, whose answer there is NaN
        wanted = model(x).numpy()
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(captured.module(x).detach().numpy(), wanted, atol=1e-5)
    file = export_onnx(captured.module, opset=13)
    np.testing.assert_allclose(
        open_session(file).run(None, {"input": x.numpy()})[0], wanted, atol=1e-5
    )
    guarded = [
        n for n in captured.module.graph.nodes if n.target is torch.ops.aten.where.ScalarOther
    ]
    assert bool(guarded) == (kind != "keys"), "a mask without empty rows costs nothing"


def test_a_mask_of_minus_infinity_does_not_overflow_in_fp16():
    captured = capture(Padded("keys").eval(), (3, 32, 32))
    found = find_float_nodes(export_onnx(captured.module), [captured.examples[0].numpy()])
    assert found == {}


def test_an_attention_with_empty_rows_is_quantized(images, tmp_path):
    (tmp_path / "padded_net.py").write_text(
        "from tests.export.test_attention_masks import Padded\ndef model():\n    return Padded()\n"
    )
    quantize(spec(images, tmp_path / "out", model=f"{tmp_path}/padded_net.py:model"))
    record = read(tmp_path / "out/quantize.json")
    assert record["parity"]["passed"]
    assert record["parity"]["quantization_sqnr_db"] > 20
