"""Image size from an ONNX file, and the default where the file leaves it open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trtq.layouts import COLOURS, channels_first, layout_of

OPEN_SIZE = 224  # of an image whose height or width is open, where nothing says another
IMGSZ = "imgsz"  # ultralytics' metadata: height and width that the model was exported for


def image_hints(shape: Sequence[object], metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return ``layout`` and ``input_size`` of one image input, and ``size_words`` for open sizes.

    Args:
        shape: sizes, the batch included; open ones are no integers.
        metadata: what the maker of the file wrote into it.
    """
    layout = layout_of(shape)
    if layout is None:
        return {}
    channels, *sizes = channels_first(shape[1:], layout)
    if all(isinstance(s, int) for s in sizes) and isinstance(channels, int):
        return {"input_size": (channels, *sizes), "layout": layout}
    if channels not in COLOURS:
        return {"layout": layout}
    trained = _trained_size(metadata.get(IMGSZ, ""))
    taken = trained or (OPEN_SIZE, OPEN_SIZE)
    height, width = (s if isinstance(s, int) else t for s, t in zip(sizes, taken, strict=True))
    why = "as its metadata says" if trained else "for lack of another size"
    words = (
        f"the file leaves the size of images open: they become {height}x{width}, {why} "
        f"(--input-size {channels}xHxW)"
    )
    return {"input_size": (channels, height, width), "layout": layout, "size_words": words}


def _trained_size(text: str) -> tuple[int, int] | None:
    """Return height and width of a text such as ``[640, 640]`` or ``640``."""
    if re.fullmatch(r"\s*\[?\s*\d{1,5}(\s*,\s*\d{1,5})?\s*\]?\s*", text) is None:
        return None
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    height, width = numbers[0], numbers[-1]
    return (height, width) if height and width else None
