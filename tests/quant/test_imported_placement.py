"""Imported ranges are quantized where the source quantizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.toolkits import asked, fake, quantized_state
from trtq import Encodings, import_checkpoint
from trtq.export.ort import open_session, run_batch
from trtq.graph.capture import capture
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize


class Block(torch.nn.Module):
    """A residual block whose shortcut may be quantized.

    NVIDIA's own ResNet for pytorch-quantization has such blocks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(width, width, 3, padding=1)
        self.skip = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + self.skip(x))


class Placed(torch.nn.Module):
    """Everything a toolkit quantizes that trtq's own rules leave in float.

    These are pools, shortcuts behind linears, and transposed convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = torch.nn.MaxPool2d(2)
        self.block = Block(8)
        self.up = torch.nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.last = torch.nn.Conv2d(6, 16, 3, stride=2)
        self.mean = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.last(self.up(self.block(self.pool(self.stem(x))))))
        return self.fc(self.mean(y).flatten(1))


def placed() -> torch.nn.Module:
    return Placed()


def toolkit_answers(
    model: Placed, state: dict[str, torch.Tensor], prefix: str, x: torch.Tensor
) -> torch.Tensor:
    """Return the answers of a toolkit.

    It quantizes the input of every module in ``state``, the weights, an output and a shortcut.
    """

    def amax(name: str, role: str) -> torch.Tensor | None:
        return state.get(f"{name}.{prefix}{role}_quantizer._amax")

    for name, module in list(model.named_modules()):
        given, weight, made = (amax(name, role) for role in ("input", "weight", "output"))
        if given is not None:
            module.register_forward_pre_hook(lambda _, args, a=given: (fake(args[0], a),))
        if weight is not None:
            module.weight.data = fake(module.weight.data, weight)
        if made is not None:
            module.register_forward_hook(lambda _m, _a, out, a=made: fake(out, a))
    model.block.skip.register_forward_hook(
        lambda _m, _a, out: fake(out, state[f"block.{prefix}residual_quantizer._amax"])
    )
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("prefix", ["_", ""])
def test_pools_shortcuts_and_transposed_convolutions_are_quantized_where_the_source_is(
    prefix, images: Path, tmp_path: Path
):
    model = Placed().eval()
    state = dict(model.state_dict())
    for i, name in enumerate(("stem", "pool", "block.conv", "up", "last", "mean", "fc")):
        state[f"{name}.{prefix}input_quantizer._amax"] = torch.tensor(1.0 + 0.3 * i)
    for name in ("stem", "block.conv", "last", "fc"):
        weight = state[f"{name}.weight"]
        state[f"{name}.{prefix}weight_quantizer._amax"] = weight.abs().amax(
            list(range(1, weight.ndim)), keepdim=True
        )
    state[f"up.{prefix}weight_quantizer._amax"] = (
        state["up.weight"].abs().amax((0, 2, 3), keepdim=True)
    )
    state[f"up.{prefix}output_quantizer._amax"] = torch.tensor(0.7)
    state[f"block.{prefix}residual_quantizer._amax"] = torch.tensor(0.9)
    torch.save(state, tmp_path / "q.pth")
    record = import_checkpoint(
        asked(images, tmp_path / "q.pth", tmp_path / "o", model=f"{__name__}:placed")
    )
    assert record.unused == {}
    assert record.quantizers == 14
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = toolkit_answers(model, state, prefix, x).numpy()
    encodings = Encodings.load(tmp_path / "o/encodings.safetensors")
    graph = capture(Placed().eval(), (3, 32, 32)).module
    with torch.no_grad():
        same = insert_fake_quantize(graph, placement_of(graph, encodings), encodings)(x).numpy()
    np.testing.assert_allclose(same, wanted, atol=1e-4 * np.abs(wanted).max())
    got = run_batch(open_session(tmp_path / "o/model.qdq.onnx"), x.numpy())[0]
    exact = np.abs(got - wanted).max(1) < 1e-4 * np.abs(wanted).max()
    assert exact.sum() >= 4, (
        "ONNX Runtime sums in another order: a tie of one code may fall to either side"
    )


def test_prefixes_and_a_key_of_the_file_with_the_ranges(images: Path, tmp_path: Path):
    _, state = quantized_state("_")
    torch.save(state, tmp_path / "q.pth")
    plain = import_checkpoint(asked(images, tmp_path / "q.pth", tmp_path / "plain"))
    wrapped = {"ema": {f"model.{k}": v for k, v in state.items()}, "model": {"x": torch.ones(2)}}
    torch.save(wrapped, tmp_path / "w.pth")
    record = import_checkpoint(
        asked(images, tmp_path / "w.pth", tmp_path / "wrapped", checkpoint_key="ema")
    )
    assert record.quantizers == plain.quantizers and not record.unused
    assert "the prefix 'model.' came off the names of the ranges" in record.notes
    first, second = (
        Encodings.load(tmp_path / n / "encodings.safetensors") for n in ("plain", "wrapped")
    )
    assert (
        all(torch.equal(v, second.amax[n]) for n, v in first.amax.items())
        and first.amax.keys() == second.amax.keys()
    )


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.conv, self.bn, self.skip = (
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.BatchNorm2d(8),
            torch.nn.Identity(),
        )
        self.fc = torch.nn.Linear(8, 4)
        self.bn.running_var.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.skip(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def normed() -> torch.nn.Module:
    return Normed()


def test_outputs_of_normalised_and_last_layers(images: Path, tmp_path: Path):
    model = Normed().eval()
    state = dict(model.state_dict())
    for name in ("bn", "fc", "conv"):
        state[f"{name}.output_quantizer._amax"] = torch.tensor(0.9)
    state["skip.input_quantizer._amax"] = torch.tensor(1.0)
    state["fc.input_quantizer._amax"] = torch.tensor(1.1)
    torch.save(state, tmp_path / "q.pth")
    record = import_checkpoint(
        asked(images, tmp_path / "q.pth", tmp_path / "o", model=f"{__name__}:normed")
    )
    assert record.unused == {
        "conv.output": "a BatchNorm was folded into that layer: its own output is not computed "
        "any more",
        "skip.input": "capture removed that module, which computes nothing",
    }
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("bn", "fc"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, _a, out: fake(out, torch.tensor(0.9))
        )
    model.fc.register_forward_pre_hook(lambda _, args: (fake(args[0], torch.tensor(1.1)),))
    with torch.no_grad():
        wanted = model(x).numpy()
    encodings = Encodings.load(tmp_path / "o/encodings.safetensors")
    graph = capture(Normed().eval(), (3, 32, 32)).module
    with torch.no_grad():
        same = insert_fake_quantize(graph, placement_of(graph, encodings), encodings)(x).numpy()
    assert np.mean(np.abs(same - wanted) < 1e-4) > 0.9, "but for ties of folded numbers"


def test_ranges_around_the_matmuls_of_an_attention(images: Path, tmp_path: Path):
    from trtq.testing.models import tiny_vit

    torch.manual_seed(2)
    state = dict(tiny_vit().state_dict())
    for role, amax in (("q_bmm", 2.0), ("k_bmm", 3.0), ("v_bmm", 1.5), ("softmax", 1.0)):
        state[f"blocks.0.{role}_quantizer._amax"] = torch.tensor(amax)
    torch.save(state, tmp_path / "q.pth")
    record = import_checkpoint(
        asked(images, tmp_path / "q.pth", tmp_path / "o", model="trtq.testing.models:tiny_vit")
    )
    assert record.unused == {}
    amax = Encodings.load(tmp_path / "o/encodings.safetensors").amax
    assert {n: float(v) for n, v in amax.items()} == {
        "blocks.0.qk.lhs": 2.0,
        "blocks.0.qk.rhs": 3.0,
        "blocks.0.softmax.output": 1.0,
        "blocks.0.av.rhs": 1.5,
    }
