"""State dicts with ranges as other toolkits write them."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.quantize import CNN
from trtq import ImportCheckpointSpec
from trtq.testing.models import tiny_cnn

LAYERS = ("stem", "conv1", "depthwise", "pointwise", "head")


def quantized_state(
    prefix: str, *, per_channel: bool = True
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a model and its state dict as pytorch-quantization and ModelOpt write it.

    The prefix is "_" for pytorch-quantization and "" for ModelOpt. BatchNorm is separate, and the
    ranges are those of the unfolded weights.
    """
    torch.manual_seed(3)
    model = tiny_cnn().eval()
    state = dict(model.state_dict())
    for i, layer in enumerate(LAYERS):
        weight = state[f"{layer}.weight"]
        dims = list(range(1, weight.ndim))
        amax = weight.abs().amax(dims, keepdim=True) if per_channel else weight.abs().max()
        state[f"{layer}.{prefix}weight_quantizer._amax"] = amax
        state[f"{layer}.{prefix}input_quantizer._amax"] = torch.tensor(2.0 + i)
    return model, state


def asked(images: Path, ranges: Path, out: Path, **changes) -> ImportCheckpointSpec:
    values = {
        "model": CNN,
        "data": str(images),
        "ranges": str(ranges),
        "out": str(out),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "parity_images": 8,
    }
    return ImportCheckpointSpec.make({**values, **changes})


def fake(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    step = amax / 127
    return (x / step).round().clamp(-128, 127) * step
