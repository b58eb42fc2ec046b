"""Ranges that other tools left in their files: pytorch-quantization, ModelOpt, AIMET."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from trtq.artifact import decode_json
from trtq.errors import EncodingsError, reason
from trtq.models.checkpoint import read_state_dict

# layer._input_quantizer._amax (pytorch-quantization), layer.input_quantizer._amax (ModelOpt); other
# quantizers of theirs are listed.
RANGE = re.compile(r"(?P<layer>.+)\.(?P<old>_?)(?P<role>\w+?)_quantizer\.(?P<what>.+)")
ROLES = ("input", "weight", "output", "residual")
# Quantizers around the matmuls of an attention module, as ModelOpt calls them: trtq's matmul and
# operand.
ATTENTION = {"q_bmm": "qk.lhs", "k_bmm": "qk.rhs", "v_bmm": "av.rhs", "softmax": "av.lhs"}


class Foreign(msgspec.Struct, kw_only=True):
    """Imported ranges.

    Attributes:
        tool: whose file it is.
        amax: float32 [] or [C], by ``layer.input`` and ``layer.weight``.
        bits: by the same names; 8 where the file does not say.
        axes: by the same names: the axis that a range per channel runs along, where the file says
            it.
        weights: the model's own tensors, without those of quantizers; empty for AIMET.
        unread: names in the file that trtq has no place for, and why.
        notes: what a user must know.
    """

    tool: str
    amax: dict[str, torch.Tensor] = {}
    bits: dict[str, int] = {}
    axes: dict[str, int] = {}
    weights: dict[str, torch.Tensor] = {}
    unread: dict[str, str] = {}
    notes: list[str] = []

    def rename(self, modules: Collection[str]) -> None:
        """Take the prefix of wrappers off the names of layers, where that makes them the model's.

        Args:
            modules: names of the model's modules.
        """
        counts: Counter[str] = Counter()
        for name in self.amax:
            parts = name.split(".")[:-1]
            for i in range(len(parts)):
                if ".".join(parts[i:]) in modules:
                    counts["".join(f"{p}." for p in parts[:i])] += 1
        prefix = max(counts, key=lambda p: (counts[p], -len(p)), default="")
        if prefix:
            self.notes.append(f"the prefix {prefix!r} came off the names of the ranges")
            self.amax = {n.removeprefix(prefix): v for n, v in self.amax.items()}
            self.bits = {n.removeprefix(prefix): v for n, v in self.bits.items()}
            self.axes = {n.removeprefix(prefix): v for n, v in self.axes.items()}


def read_foreign(path: Path, key: str | None = None) -> Foreign:
    """Return the ranges that another tool stored.

    The file is a checkpoint of pytorch-quantization or ModelOpt, or AIMET's ``.encodings`` (with
    module names).

    Args:
        path: the file.
        key: where in a checkpoint the state dict is.

    Raises:
        ModelError: a checkpoint cannot be read.
        EncodingsError: there are no ranges in it, or one is no positive number.
    """
    return _aimet(path) if path.suffix in (".json", ".encodings") else _checkpoint(path, key)


def _checkpoint(path: Path, key: str | None) -> Foreign:
    foreign_ranges, old = (
        Foreign(tool="", amax={}, bits={}, axes={}, weights={}, unread={}, notes=[]),
        False,
    )
    for name, value in read_state_dict(path, key).items():
        match = RANGE.fullmatch(name)
        if match is None:
            foreign_ranges.weights[name] = value
            continue
        old = old or bool(match["old"])
        if match["what"].endswith("pre_quant_scale") and not bool((value == 1).all()):
            raise EncodingsError(
                f"Cannot take {path} over",
                f"{name}: SmoothQuant or AWQ divided weights by it, and multiplies inputs",
                "Quantize again without smoothing, or with trtq quantize --method smooth",
            )
        if match["what"] in ("_amax", "amax"):  # others are masks, counters and the like
            _add_range(foreign_ranges, match, value, path)
    foreign_ranges.tool = "pytorch-quantization" if old else "ModelOpt"
    if not foreign_ranges.amax:
        raise EncodingsError(
            f"There are no ranges in {path}",
            "no tensor is called LAYER.input_quantizer._amax",
            "Give the state dict of the quantized model: torch.save(model.state_dict(), FILE)",
        )
    foreign_ranges.notes.append(
        "a state dict does not say how many bits its quantizers have: 8 are assumed"
    )
    return foreign_ranges


def _add_range(
    foreign_ranges: Foreign, match: re.Match[str], value: torch.Tensor, path: Path
) -> None:
    """Add a range of a state dict."""
    role = ATTENTION.get(match["role"], match["role"])
    if role not in (*ROLES, *ATTENTION.values()):
        foreign_ranges.unread[match[0]] = f"trtq has no place for the {role} of a layer"
        return
    name = f"{match['layer']}.{role}"
    wide = [d for d, size in enumerate(value.shape) if size > 1]
    if len(wide) == 1:
        foreign_ranges.axes[name] = wide[0]
    _put(foreign_ranges, name, value.float().reshape(-1), match[0], path)


def _put(foreign_ranges: Foreign, name: str, value: torch.Tensor, key: str, path: Path) -> None:
    if not bool(torch.isfinite(value).all()) or not bool((value >= 0).all()) or not value.numel():
        raise EncodingsError(
            f"Cannot use {key} of {path}",
            "a range must be finite and not below 0",
            "Calibrate it again",
        )
    # A channel of zeros, or a tensor that was never active: any range holds it.
    value = torch.where(value > 0, value, torch.ones_like(value))
    foreign_ranges.amax[name], foreign_ranges.bits[name] = (
        value[0] if value.numel() == 1 else value,
        8,
    )


def _aimet(path: Path) -> Foreign:
    try:
        data = decode_json(path.read_bytes(), Any)
    except (OSError, msgspec.DecodeError) as exc:
        raise EncodingsError(f"Cannot read the encodings {path}", reason(exc)) from exc
    if not isinstance(data, dict) or not isinstance(data.get("activation_encodings"), dict):
        raise EncodingsError(
            f"{path} holds no encodings of AIMET",
            "it has no activation_encodings by name",
            "Give the file NAME_torch.encodings",
        )
    foreign_ranges = Foreign(
        tool="AIMET", amax={}, bits={}, axes={}, weights={}, unread={}, notes=[]
    )
    for layer, sides in data["activation_encodings"].items():
        inputs = sides.get("input") if isinstance(sides, dict) else None
        if not inputs:
            foreign_ranges.unread[layer] = (
                "it has a range of its output only; TensorRT takes those of inputs"
            )
            continue
        first, *others = _mapping(inputs, f"{layer}.input", path).items()
        _aimet_range(foreign_ranges, f"{layer}.input", [first[1]], path)
        for place, _ in others:
            foreign_ranges.unread[f"{layer}.input[{place}]"] = (
                "only a layer's first input is taken over"
            )
    for name, values in _mapping(data.get("param_encodings", {}), "param_encodings", path).items():
        if name.endswith(".weight"):
            _aimet_range(foreign_ranges, name, values, path)
        else:
            foreign_ranges.unread[name] = "biases remain in float"
    if not foreign_ranges.amax:
        raise EncodingsError(
            f"There are no ranges in {path}", "no layer has one of its input or weight"
        )
    return foreign_ranges


def _mapping(value: object, name: str, path: Path) -> dict[str, Any]:
    """Return a part of AIMET's file that has names.

    Raises:
        EncodingsError: it has none.
    """
    if isinstance(value, dict):
        return value
    raise EncodingsError(
        f"Cannot read {name} of {path}",
        f"expected an object with names, found a {type(value).__name__}",
        "Give the file NAME_torch.encodings",
    )


def _aimet_range(
    foreign_ranges: Foreign, name: str, values: list[Mapping[str, Any]], path: Path
) -> None:
    """Add a range of AIMET, which may be anywhere around 0.

    Symmetric codes must reach its largest magnitude.

    Args:
        foreign_ranges: receives the range, or why it is not read.
        name: of the range: ``layer.input`` or ``layer.weight``.
        values: ``bitwidth``, ``min``, ``max``, ``is_symmetric`` of the tensor or of each channel.
        path: for errors.

    Raises:
        EncodingsError: a number is missing, or ``values`` is no list of such objects.
    """
    try:
        widths = {int(v.get("bitwidth", 8)) for v in values}
        if widths - set(range(2, 9)):
            foreign_ranges.unread[name] = f"it has {max(widths)} bits"
            return
        ends = torch.tensor([[float(v["min"]), float(v["max"])] for v in values])
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise EncodingsError(
            f"Cannot read {name} of {path}", f"no numbers for min and max ({exc})"
        ) from exc
    if not widths:
        raise EncodingsError(f"Cannot read {name} of {path}", "it has no ranges")
    bits = max(widths)
    # The lowest of its symmetric codes is one further out than the highest: min = -128 steps, max =
    # 127.
    steps = torch.maximum(ends[:, 1] / (2 ** (bits - 1) - 1), -ends[:, 0] / 2 ** (bits - 1))
    if any(
        str(v.get("is_symmetric", "True")) == "False"
        and not math.isclose(abs(float(v["min"])), float(v["max"]), rel_tol=0.02)
        for v in values
    ):
        foreign_ranges.notes.append(
            f"{name} was asymmetric; TensorRT's codes are symmetric and reach its largest magnitude"
        )
    _put(foreign_ranges, name, steps * (2 ** (bits - 1) - 1), name, path)
    foreign_ranges.bits[name] = bits
