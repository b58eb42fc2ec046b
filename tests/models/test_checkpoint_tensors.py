"""Tensors of checkpoints: types, kinds, order, zeros and NaN.

No tensor ends up where it does not belong.
"""

from __future__ import annotations

import collections
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.conftest import spec
from tests.support.checkpoints import equal, filled, loaded, prefixed, refused
from trtq import quantize
from trtq.errors import ModelError
from trtq.models.checkpoint import load_checkpoint_
from trtq.models.load import load_model
from trtq.progress import Silent
from trtq.testing.models import tiny_cnn


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: v.half(), "converted from float16 to float32 (8 tensors)"),
        (lambda v: v.bfloat16(), "converted from bfloat16 to float32 (8 tensors)"),
        (lambda v: v.double(), "converted from float64 to float32 (8 tensors)"),
        (lambda v: v.round().to(torch.int8), "converted from int8 to float32 (8 tensors)"),
        (lambda v: v.to_sparse(), "made dense (8 sparse, 'conv.weight' is the first)"),
        (
            lambda v: v.to_sparse_csr() if v.ndim == 2 else v,
            "made dense (1 sparse, 'fc.weight' is the first)",
        ),
        (nn.Parameter, ""),
        (lambda v: v.numpy(), ""),
        (lambda v: np.asfortranarray(v.numpy()), ""),
        (lambda v: v.numpy().astype(">f8"), "converted from float64 to float32 (8 tensors)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_kinds_of_tensors(state, tmp_path, change, text):
    content = {k: change(v) if v.is_floating_point() else v for k, v in state.items()}
    model, done = loaded(tmp_path, content)
    wanted = {k: v.round() if "int8" in text else v for k, v in state.items()}
    assert all(
        torch.allclose(a.float(), b.float(), atol=1e-2)
        for a, b in zip(model.state_dict().values(), wanted.values(), strict=True)
    )
    assert text in done.text and bool(text) == ("; " in done.text) == any(
        text in n for n in done.notes if text
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            "'fc.weight'.*it is quantized .torch.qint8.*float model",
        ),
        (lambda v: v.to(torch.complex64), "'fc.weight'.*it is complex .torch.complex64"),
        (lambda v: v.to("meta"), "'fc.weight'.*on the meta device"),
        (
            lambda v: v.reshape(-1),
            r"'fc.weight' has shape \[4, 8\], the file's 'fc.weight' has \[32\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_no_weights(state, tmp_path, change, text):
    torch.save(
        {k: change(v) if k == "fc.weight" else v for k, v in state.items()}, tmp_path / "w.pt"
    )
    assert re.search(text, refused(tmp_path / "w.pt"))


def test_tensors_in_lists_are_left_out_with_a_note(state, tmp_path):
    shadows = {"shadow_params": [*state.values()], "decay": 0.9}
    beside = {"losses": [torch.tensor(0.5)], "rng": [torch.get_rng_state()], "numpy": [np.ones(3)]}
    _, done = loaded(tmp_path, {"state_dict": state, "ema": shadows, **beside})
    note = next(n for n in done.notes if "in lists" in n)
    assert "left out: ema.shadow_params.0, ema.shadow_params.1" in note
    _, done = loaded(tmp_path, {"s": state, **beside})
    assert [n for n in done.notes if "in lists" in n] == [
        "tensors in lists have no names and were left out: numpy.0 (save them in a dict by name if "
        "they are weights)"
    ]
    del beside["numpy"]  # neither losses nor states of random numbers are weights
    assert not any("in lists" in n for n in loaded(tmp_path, {"s": state, **beside})[1].notes)


def test_half_of_the_tensors_are_missing(state, tmp_path):
    torch.save({"state_dict": prefixed(dict(list(state.items())[:4]), "model.")}, tmp_path / "w.pt")
    text = refused(tmp_path / "w.pt")
    assert (
        "4 of 8 tensors of the model are missing and 0 names are not the model's; missing "
        "'bn.running_mean'" in text
    )
    torch.save({**state, "extra.weight": torch.ones(2)}, tmp_path / "w.pt")
    assert "unexpected 'extra.weight'" in refused(tmp_path / "w.pt")


def test_tensors_that_the_model_lacks_are_left_out_where_that_is_asked_for(state, tmp_path):
    more = {**state, "pooler.weight": torch.ones(2, 2), "pooler.bias": torch.ones(2)}
    torch.save(more, tmp_path / "w.pt")
    assert "leave the other tensors of the file out: --checkpoint-match subset" in refused(
        tmp_path / "w.pt"
    )
    model, done = loaded(tmp_path, more, match="subset")
    assert equal(model, state)
    assert done.notes == ("not the model's, left out: pooler.weight, pooler.bias",)
    assert done.notes[0] in done.text
    model, done = loaded(tmp_path, prefixed(more, "module."), match="subset")
    assert equal(model, state)
    assert done.prefix == "module."
    del more["fc.weight"]
    torch.save(more, tmp_path / "w.pt")
    text = refused(tmp_path / "w.pt", match="subset")
    assert "missing 'fc.weight'" in text and "subset" not in text


class Pair(nn.Module):
    """Two layers of one shape, in this order or the other."""

    def __init__(self, *names: str):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Conv2d(3, 3, 1))

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def misfit(model: nn.Module, content, path: Path, **options) -> str:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(ModelError) as caught:
        load_checkpoint_(model, path, **options)
    return str(caught.value)


def test_order_is_advised_only_where_it_is_certain_and_then_it_works(tmp_path):
    path = tmp_path / "w.pt"
    for own, theirs in ((("a_0", "a_1"), ("b_0", "b_1")), (("up", "a_1"), ("down", "a_1"))):
        source = filled(Pair(*theirs)).state_dict()
        text = misfit(Pair(*own), source, path)
        assert "--checkpoint-match order" in text
        model = Pair(*own)
        done = load_checkpoint_(model, path, "order")
        assert equal(model, source) and "matched in order" in done.text and "takes" in done.notes[0]
    for own, theirs in (
        (("q", "k"), ("key", "query")),
        (("a_0", "a_1"), ("b_1", "b_0")),
        (("first", "second"), ("up", "down")),
    ):
        text = misfit(Pair(*own), filled(Pair(*theirs)).state_dict(), path)
        assert "--checkpoint-match" not in text and "Check the model name" in text
    text = misfit(
        Pair("a_0", "a_1"),
        {"net": filled(Pair("b_0", "b_1")).state_dict(), "other": {"x": torch.ones(3)}},
        path,
    )
    key = text.rpartition("--checkpoint-key ")[2].rstrip(".")
    load_checkpoint_(Pair("a_0", "a_1"), path, "order", key)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"x.bias": torch.ones(3), "x.weight": torch.ones(3)},
            "'norm.weight' would get the values of 'x.bias'",
        ),
        ({"x.weight": torch.ones(3)}, "expected 2 tensors, found 1"),
        ({"x.weight": torch.ones(3), "x.bias": torch.ones(4)}, "'norm.bias' has shape"),
    ],
)
def test_what_order_refuses(tmp_path, content, text):
    model = nn.Sequential(collections.OrderedDict(norm=nn.GroupNorm(1, 3)))
    assert text in misfit(model, content, tmp_path / "w.pt", match="order")
    advice = misfit(
        model,
        {"x.weight": torch.ones(3), "x.bias": torch.ones(3)},
        tmp_path / "w.safetensors",
        match="order",
    )
    assert "keeps no order" in advice and "Rename the tensors" in advice


def test_running_mean_never_becomes_running_var(tmp_path):
    own = filled(nn.Sequential(nn.BatchNorm2d(3))).state_dict()
    swapped = {
        k.replace("0.", "n."): own[k]
        for k in ("0.weight", "0.bias", "0.running_var", "0.running_mean")
    }
    text = misfit(nn.Sequential(nn.BatchNorm2d(3)), swapped, tmp_path / "w.pt", match="order")
    assert "'0.running_mean' would get the values of 'n.running_var'" in text


def test_a_sorted_file_is_not_matched_in_order(tmp_path):
    """Saved again from safetensors: layer 10 comes before layer 2."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Conv2d(2, 2, 1, bias=False) for _ in range(12)))

    state = filled(Deep()).state_dict()
    content = {k.replace("layers.", "block"): v for k, v in sorted(state.items())}
    assert "alphabetical order" in misfit(Deep(), content, tmp_path / "w.pt", match="order")
    assert "--checkpoint-match" not in misfit(Deep(), content, tmp_path / "w.pt")
    content = {k.replace("layers.", "block"): v for k, v in state.items()}
    assert "--checkpoint-match order" in misfit(Deep(), content, tmp_path / "w.pt")
    model, _ = loaded(tmp_path, content, Deep(), match="order")
    assert equal(model, state)


def test_order_uses_names_where_they_fit(state, tmp_path):
    model, done = loaded(
        tmp_path,
        prefixed(dict(sorted(state.items())), "_orig_mod."),
        name="w.safetensors",
        match="order",
    )
    assert equal(model, state) and "in order" not in done.text


CNN = "trtq.testing.models:tiny_cnn"


def test_weights_that_are_all_zero_are_said(tmp_path):
    state = tiny_cnn().state_dict()
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, tmp_path / "zero.pt")
    model = load_model(CNN, checkpoint=tmp_path / "zero.pt")
    assert (
        "all weights of the model are zero (stem.weight, conv1.weight, depthwise.weight and 2 more)"
        in model.weights
    )
    assert any("all weights of the model are zero" in n for n in model.notes)
    state["head.weight"].zero_()
    torch.save(state, tmp_path / "one.pt")
    assert (
        "1 of 5 weights are all zero (head.weight)"
        in load_model(CNN, checkpoint=tmp_path / "one.pt").weights
    )


def test_a_buffer_with_nan_is_said_and_a_parameter_refused(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "class M(nn.Conv2d):\n"
        "    def __init__(self, unread=0.0, bias=0.0):\n"
        "        super().__init__(3, 4, 1)\n"
        "        self.register_buffer('unread', torch.full((2,), unread))\n"
        "        self.register_buffer('mask', torch.full((2,), -float('inf')), persistent=False)\n"
        "        with torch.no_grad():\n            self.bias.fill_(bias)\n"
    )
    assert load_model(f"{path}:M").notes == ()
    assert load_model(f"{path}:M", args={"unread": float("nan")}).notes == (
        "the buffer 'unread' holds NaN (2 values)",
    )
    with pytest.raises(ModelError, match="weights of 'bias' cannot be quantized: 4 of 4"):
        load_model(f"{path}:M", args={"bias": float("inf")})


def test_the_record_and_the_user_are_told(images, tmp_path):
    plain, averaged = filled(tiny_cnn(), 1).state_dict(), filled(tiny_cnn(), 2).half().state_dict()
    torch.save(
        {"state_dict": prefixed(plain, "module._orig_mod."), "state_dict_ema": averaged},
        tmp_path / "w.pt",
    )
    told = Told()
    record = quantize(spec(images, tmp_path / "a", checkpoint=str(tmp_path / "w.pt")), told)
    for text in (
        "weights taken from 'state_dict'",
        "the prefix 'module._orig_mod.' came off",
        "fit as well: state_dict_ema",
    ):
        assert any(text in n for n in record.notes) and any(text in n for n in told.notes)
        assert text in record.model["weights"]
    second = load_model(CNN, checkpoint=tmp_path / "w.pt", key="state_dict_ema")
    assert "under 'state_dict_ema'; converted from float16 to float32" in second.weights


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_blocks_and_cost_say_what_was_done(tmp_path):
    from click.testing import CliRunner

    from trtq.cli import blocks_cmd, cost_cmd

    torch.save(prefixed(filled(tiny_cnn()).state_dict(), "model."), tmp_path / "w.pt")
    for module in (blocks_cmd, cost_cmd):
        arguments = [CNN, "--checkpoint", str(tmp_path / "w.pt"), "--input-size", "3x32x32"]
        done = CliRunner().invoke(module.command, arguments)
        assert (
            done.exit_code == 0
            and "the prefix 'model.' came off the names of the checkpoint" in done.output
        )


class Indexed(nn.Module):
    """A weight, and a buffer of positions."""

    def __init__(self, dtype=torch.int64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("at", torch.tensor([0, 1], dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "stored", "why"),
    [
        (torch.int64, torch.tensor([1.75, 0.0]), "'at' .* is float32, .* int64: 1.75 would become"),
        (torch.int32, torch.tensor([2**31 + 5, 0]), "2147483653 would become -2147483643"),
    ],
)
def test_values_that_the_models_type_cannot_hold_are_refused(tmp_path, dtype, stored, why):
    torch.save({"weight": torch.zeros(2), "at": stored}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=why):
        load_checkpoint_(Indexed(dtype), tmp_path / "w.pt")


def test_weights_beyond_float32_are_named_and_not_infinite(tmp_path):
    content = {
        "weight": torch.tensor([1e300, 0.0], dtype=torch.float64),
        "at": torch.tensor([1, 0]),
    }
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="'weight' .*: 1e[+]300 is beyond its range"):
        load_checkpoint_(Indexed(), tmp_path / "w.pt")


def test_two_values_for_a_shared_weight_are_refused(tmp_path):
    def net(shared: bool) -> nn.Module:
        made = filled(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)))
        if shared:
            made[1].weight = made[0].weight
        return made

    torch.save(net(shared=False).state_dict(), tmp_path / "two.pt")
    with pytest.raises(ModelError, match="'0.weight' and '1.weight' are one tensor of the model"):
        load_checkpoint_(net(shared=True), tmp_path / "two.pt")
    one = net(shared=True)
    torch.save(one.state_dict(), tmp_path / "one.pt")
    again = net(shared=True)
    load_checkpoint_(again, tmp_path / "one.pt")
    assert torch.equal(again[0].weight, one[1].weight)
