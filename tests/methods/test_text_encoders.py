"""Text encoders: masks, an open length, embeddings in float, the methods of transformers."""

from __future__ import annotations

import pytest
import torch

import trtq
from trtq.flow.encoded import require_own
from trtq.graph.blocks import family_of
from trtq.graph.signature import SizeRange
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize
from trtq.testing.models import tiny_text_encoder

AXES = ["batch", "length"]


def _text(length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 100, (length,), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones(length, dtype=torch.int64)}


def _load():
    torch.manual_seed(0)
    return trtq.load(
        tiny_text_encoder().eval(),
        example={n: v.repeat(2, 1) for n, v in _text(12).items()},
        dynamic={"input_ids": AXES, "attention_mask": AXES},
        ranges={"length": SizeRange(least=2, most=64)},
    )


@pytest.fixture(scope="module")
def encoder():
    return _load()


@pytest.fixture(scope="module")
def quantized(encoder, tmp_path_factory):
    texts = [_text(5 + i % 7, i) for i in range(16)]
    return trtq.quantize(encoder, texts, calib_cache=str(tmp_path_factory.mktemp("c")))


def test_the_family_is_that_of_transformers(encoder):
    family, reason = family_of(encoder.graph.module)
    assert family == "vit"
    assert reason.endswith("12 linears, 2 attentions")


def test_attention_and_mlp_are_quantized_and_embeddings_are_not(quantized):
    names = {q.name for q in quantized.placement.active}
    layers = ("query", "key", "value", "proj", "fc1", "fc2")
    for block in ("blocks.0", "blocks.1"):
        assert {
            f"{block}.{layer}.{role}" for layer in layers for role in ("input", "weight")
        } <= names
        assert {f"{block}.qk.lhs", f"{block}.qk.rhs", f"{block}.av.rhs"} <= names
    assert not [n for n in names if n.startswith(("words", "places"))]
    assert quantized.done.parity.passed
    assert quantized.done.parity.quantization_sqnr_db > 25


def test_smoothing_applies_and_its_encodings_fit_a_new_capture(quantized):
    (smooth,) = quantized.done.methods
    assert (smooth.name, smooth.label) == ("smooth", "ops")
    assert len(smooth.did["restored"]) == 4
    encodings, graph = quantized.encodings, _load().graph.module
    require_own(encodings, graph, "e.safetensors", "train from")
    again = insert_fake_quantize(graph, placement_of(graph, encodings), encodings)
    inputs = [v[None] for v in _text(9, 3).values()]
    torch.testing.assert_close(again(*inputs), quantized.simulate()(*inputs))


def test_attention_in_float_means_all_of_it(encoder, tmp_path):
    texts = [_text(8, i) for i in range(8)]
    kept = trtq.quantize(
        encoder, texts, attention="float", preset_quant="none", calib_cache=str(tmp_path)
    )
    left = {
        q.name
        for q in kept.placement.quantizers
        if q.float_reason and "--attention" in q.float_reason
    }
    assert len(left) == 8
