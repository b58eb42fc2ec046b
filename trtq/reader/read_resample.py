"""Resampling: the modes and coordinate transforms that torch computes exactly."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from trtq.reader.call import Call
from trtq.reader.values import UnreadError, shortest

LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


class Spatial(NamedTuple):
    """Sizes or factors of the axes behind batch and channels; the other ones are None.

    Attributes:
        size: numbers or symbolic sizes.
        factors: shortest decimals of float32 numbers.
    """

    size: list[Any] | None
    factors: list[float] | None

    @property
    def named(self) -> dict[str, Any]:
        """The arguments of torch's interpolation."""
        return {"size": self.size, "scale_factor": self.factors}


def resize(call: Call) -> torch.Tensor:
    """To sizes or by scales."""
    x = call.x()
    scales, sizes = _targets(call)
    mode = call.get("mode", "nearest")
    place = call.get(
        "coordinate_transformation_mode", "half_pixel" if call.opset > 10 else "asymmetric"
    )
    if call.get("antialias", 0) or call.get("exclude_outside", 0):
        raise UnreadError("resampling with antialias or exclude_outside")
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnreadError("resampling that keeps the aspect ratio")
    scales, sizes = _of_all_axes(call, x, scales, sizes)
    if _unchanged(scales[:2] if scales else None, sizes[:2] if sizes else None, x) is False:
        raise UnreadError("resampling of batch or channels")
    spatial = Spatial(sizes and sizes[2:], scales and scales[2:])
    _require_one_rounding(x, spatial.factors or [])
    return _interpolate(call, x, mode, place, spatial)


def _require_one_rounding(x: torch.Tensor, factors: list[float]) -> None:
    """Refuse factors that give another size in float32, where ONNX computes it, than here.

    Raises:
        UnreadError: such a factor, of an axis of known size.
    """
    for size, factor in zip(x.shape[2:], factors, strict=False):
        if isinstance(size, int) and int(size * np.float32(factor)) != math.floor(size * factor):
            raise UnreadError(f"a size of {size} x {factor:g}, which float32 rounds elsewhere")


def resized(call: Call) -> list[Any]:
    """Return the sizes of the result of a resampling, none where only its data give them.

    Args:
        call: a Resize or Upsample.

    Returns:
        One for each axis: numbers or symbolic sizes.
    """
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return []
    x = call.x()
    try:
        scales, sizes = _of_all_axes(call, x, *_targets(call))
    except UnreadError:
        return []
    if sizes is not None:
        return sizes
    pairs = list(zip(x.shape, scales or [], strict=True))
    if not all(float(f).is_integer() or isinstance(size, int) for size, f in pairs):
        return []
    return [
        size * int(f) if float(f).is_integer() else int(size * np.float32(f)) for size, f in pairs
    ]


def _targets(call: Call) -> tuple[list[float] | None, list[Any] | None]:
    """Return the scales and the sizes of a node, one of them None."""
    if call.get("scales") is not None:  # Upsample 7
        return [shortest(f) for f in call.get("scales")], None
    if call.opset < 11 or call.node.op_type == "Upsample":
        return call.value(1).floats(), None
    if call.has(3):
        return None, call.ints(3)
    scales = call.value(2)
    if scales.host is None:
        raise UnreadError("scales that are computed from data")
    return scales.floats(), None


def _of_all_axes(
    call: Call, x: torch.Tensor, scales: list[float] | None, sizes: list[Any] | None
) -> tuple[list[float] | None, list[Any] | None]:
    """Return scales and sizes with those of axes that the node does not name."""
    axes = call.get("axes")
    if axes is None:
        return scales, sizes
    places = [a % x.ndim for a in axes]
    if scales is not None:
        by_axis = dict(zip(places, scales, strict=True))
        return [by_axis.get(i, 1.0) for i in range(x.ndim)], None
    by_size = dict(zip(places, sizes or [], strict=True))
    return None, [by_size.get(i, s) for i, s in enumerate(x.shape)]


def _unchanged(scales: list[float] | None, sizes: list[Any] | None, x: torch.Tensor) -> bool:
    if x.ndim not in LINEAR:
        return False
    if scales is not None:
        return all(s == 1 for s in scales)
    return all(bool(s == h) for s, h in zip(sizes or [], x.shape, strict=False))


def _interpolate(
    call: Call, x: torch.Tensor, mode: str, place: str, spatial: Spatial
) -> torch.Tensor:
    """Let torch resample, where it does what the node asks for."""
    if mode == "nearest":
        return _nearest(call, x, place, spatial)
    one_wide = any(v == 1 for v in spatial.size or () if isinstance(v, int))
    if place == "align_corners":
        aligned = True
    elif place == "half_pixel" or (place == "pytorch_half_pixel" and not one_wide):
        aligned = False
    else:
        raise UnreadError(f"resampling with coordinates by {place}")
    if aligned:
        spatial = Spatial(_sizes(x, spatial), None)
    if mode == "linear":
        return functional.interpolate(
            x, mode=LINEAR[x.ndim], align_corners=aligned, **spatial.named
        )
    if mode == "cubic" and x.ndim == 4 and call.get("cubic_coeff_a", -0.75) == -0.75:
        return functional.interpolate(x, mode="bicubic", align_corners=aligned, **spatial.named)
    raise UnreadError(f"resampling by {mode}")


def _sizes(x: torch.Tensor, spatial: Spatial) -> list[Any]:
    if spatial.size is not None:
        return spatial.size
    pairs = list(zip(x.shape[2:], spatial.factors or (), strict=True))
    if not all(float(f).is_integer() or float(size * f).is_integer() for size, f in pairs):
        raise UnreadError("aligned corners of a size that is no whole number")
    return [size * int(f) if float(f).is_integer() else int(size * f) for size, f in pairs]


def _nearest(call: Call, x: torch.Tensor, place: str, spatial: Spatial) -> torch.Tensor:
    """Nearest neighbours: torch has two kinds."""
    rounding = call.get("nearest_mode", "round_prefer_floor" if call.opset > 10 else "floor")
    if call.opset < 11 or call.node.op_type == "Upsample":
        place, rounding = "asymmetric", "floor"
    whole = _factors(x, spatial)
    if place == "asymmetric" and rounding == "floor":
        return functional.interpolate(x, mode="nearest", **_exact(spatial, whole).named)
    centred = place in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    if whole is not None and centred and rounding.startswith("round"):
        # At a whole multiple of the size no result is half-way between two values.
        return functional.interpolate(x, mode="nearest", **_exact(spatial, whole).named)
    if place in ("half_pixel", "pytorch_half_pixel") and rounding == "round_prefer_ceil":
        return functional.interpolate(x, mode="nearest-exact", **spatial.named)
    raise UnreadError(f"nearest neighbours by {place} and {rounding}")


def _exact(spatial: Spatial, whole: list[int] | None) -> Spatial:
    """Return whole factors where they are known: they need no size."""
    if whole is None:
        return spatial
    return Spatial(None, [float(f) for f in whole])


def _factors(x: torch.Tensor, spatial: Spatial) -> list[int] | None:
    """Return the factors of a resampling to whole multiples of each size, None for any other."""
    if spatial.factors is not None:
        whole = all(float(f).is_integer() and f >= 1 for f in spatial.factors)
        return [int(f) for f in spatial.factors] if whole else None
    factors = []
    for have, want in zip(x.shape[2:], spatial.size or (), strict=True):
        if isinstance(have, int) and isinstance(want, int):
            if want % have:
                return None
            factors.append(want // have)
        else:
            factor = next((f for f in (1, 2, 3, 4, 8) if _equal(want, have * f)), None)
            if factor is None:
                return None
            factors.append(factor)
    return factors


def _equal(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every size of the inputs."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(a == b))


GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(call: Call) -> torch.Tensor:
    """Sample at computed positions."""
    mode = call.get("mode", "linear" if call.opset >= 20 else "bilinear")
    x = call.x(0)
    mode = GRID_MODES.get(mode, mode)
    if x.ndim == 5 and mode == "bicubic":
        raise UnreadError("cubic sampling of volumes")
    padding = call.get("padding_mode", "zeros")
    aligned = bool(call.get("align_corners", 0))
    return functional.grid_sample(x, call.x(1), mode, padding, aligned)


def affine_grid(call: Call) -> torch.Tensor:
    """Positions of an affine map."""
    return functional.affine_grid(
        call.x(0), call.value(1).ints(), bool(call.get("align_corners", 0))
    )


def roi_align(call: Call) -> torch.Tensor:
    """Features of boxes; torchvision computes the mean of each bin."""
    if call.get("mode", "avg") != "avg":
        raise UnreadError("RoiAlign of maxima")
    from torchvision.ops import roi_align as align

    ratio = call.get("sampling_ratio", 0) or -1
    place = call.get("coordinate_transformation_mode", "half_pixel" if call.opset >= 16 else "")
    boxes = torch.cat([call.x(2).to(call.x(1).dtype).unsqueeze(1), call.x(1)], 1)
    size = (call.get("output_height", 1), call.get("output_width", 1))
    result: torch.Tensor = align(
        call.x(0), boxes, size, call.get("spatial_scale", 1.0), ratio, place == "half_pixel"
    )
    return result
