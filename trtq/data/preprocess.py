"""Preprocessing: from an image to the tensor that the model was trained on.

It is one value that is stored in every ONNX file that trtq writes.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import torch
from PIL import Image

from trtq.data.decode import to_eight_bits
from trtq.data.source import Source
from trtq.errors import UsageError

T = TypeVar("T")
Interpolation = Literal["nearest", "bilinear", "bicubic"]
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "cifar10": {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    },
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}
UNKNOWN_NORMALISATION = (
    "the model does not say how its input is normalised: ImageNet's mean and std are used "
    "(--preset, --mean, --std)"
)
SMALL = 96  # inputs below this are whole small images (CIFAR, digits), not crops of photographs


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resize the short side, crop the centre, scale to [0, 1], then normalise.

    Normalising subtracts ``mean`` and divides by ``std``.

    Attributes:
        input_size: (C, H, W) of the model.
        mean, std: per channel, for values in [0, 1].
        resize: length of the short side after resizing, in pixels; None squeezes the whole image to
            ``input_size``.
        crop: side of the central square that is kept, in pixels; resized to ``input_size`` when it
            differs.
        interpolation: how pixels are resampled.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    crop: int | None
    interpolation: Interpolation = "bilinear"

    def apply(self, image: Image.Image) -> torch.Tensor:
        """Return the image as float32, shape [C, H, W].

        Raises:
            UndecodableError: its samples have no known range.
        """
        channels = self.input_size[0]
        # A source gives L and RGB; an image of a program's own can have any mode.
        if image.mode not in ("L", "RGB"):
            image = to_eight_bits(image).image
        image = self._place(
            image.convert("L" if channels == 1 else "RGB"), RESAMPLING[self.interpolation]
        )
        pixels = np.asarray(image, dtype=np.float32) / np.float32(255.0)
        pixels = (pixels - np.asarray(self.mean, dtype=np.float32)) / np.asarray(
            self.std, dtype=np.float32
        )
        tensor = torch.from_numpy(np.ascontiguousarray(pixels))
        return tensor[None] if channels == 1 else tensor.permute(2, 0, 1).contiguous()

    def apply_mask(self, mask: np.ndarray, ignore: int) -> torch.Tensor:
        """Return a mask of class indices, resized and cropped as its image is, int64 [H, W].

        No two classes are mixed; what a crop adds beyond the image is ``ignore``.
        """
        # Pillow fills with 0, which is a class: classes are counted from 1 on the way.
        placed = self._place(Image.fromarray(mask.astype(np.int32) + 1), Image.Resampling.NEAREST)
        classes = torch.from_numpy(np.asarray(placed).astype(np.int64)) - 1
        return torch.where(classes < 0, ignore, classes)

    def _place(self, image: Image.Image, method: Image.Resampling) -> Image.Image:
        """Resize and crop."""
        _, height, width = self.input_size
        if self.resize is not None:
            w, h = image.size
            ratio = self.resize / min(w, h)
            size = (max(1, int(w * ratio)), max(1, int(h * ratio)))
            size = (self.resize, size[1]) if w <= h else (size[0], self.resize)
            image = image if image.size == size else image.resize(size, method)
            image = _centre_crop(image, (self.crop, self.crop) if self.crop else (width, height))
        return image if image.size == (width, height) else image.resize((width, height), method)


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    w, h = image.size
    left, top = round((w - size[0]) / 2.0), round((h - size[1]) / 2.0)
    return image.crop((left, top, left + size[0], top + size[1]))


def resolve_preprocess(
    *,
    input_size: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    preset: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    interpolation: Interpolation | None = None,
    hints: Mapping[str, Any] | None = None,
) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing and what the user should know about it.

    What is given wins over the preset, the preset over what the model's authors say (``hints``),
    and that over ImageNet's.

    Raises:
        UsageError: numbers of channels differ, or a standard deviation is not greater than 0.
    """
    hints = {k: v for k, v in (hints or {}).items() if v is not None}
    defaults = {**PRESETS["imagenet"], **hints, **(PRESETS[preset] if preset else {})}
    size = _input_size(input_size or defaults.get("input_size") or (3, 224, 224))
    options = {"mean": mean, "std": std}
    values = {n: _per_channel(n, v, defaults[n], size[0]) for n, v in options.items()}
    _require_usable(values["mean"], values["std"])
    resampling = interpolation or defaults.get("interpolation")
    preprocess = Preprocess(
        input_size=size,
        mean=values["mean"],
        std=values["std"],
        resize=_resize(resize, crop, size, float(defaults.get("crop_pct") or 0.875)),
        crop=crop,
        interpolation=resampling if resampling in RESAMPLING else "bilinear",
    )
    if not hints and preset is None and mean is None:
        return preprocess, [UNKNOWN_NORMALISATION]
    chosen = {n: values[n] for n, option in options.items() if option is not None}
    return preprocess, _differences(chosen, hints)


def _differences(chosen: Mapping[str, Sequence[float]], hints: Mapping[str, Any]) -> list[str]:
    """Return a line for each of the user's numbers that is not the model's own."""
    return [
        f"--{name} {_join(values)} differs from the model's own {_join(hints[name])}"
        for name, values in chosen.items()
        if name in hints and not np.allclose(values, hints[name], atol=1e-3)
    ]


def _input_size(values: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (int(v) for v in values)
    if channels not in (1, 3):
        raise UsageError(
            f"Cannot read images for {channels} channels",
            "images have 1 (gray) or 3 (RGB)",
            "Give --input-size 3xHxW or 1xHxW",
        )
    return channels, height, width


def _per_channel(
    name: str, option: Sequence[float] | None, default: Sequence[float], channels: int
) -> tuple[float, ...]:
    """Return one value per channel; a default of three colours is averaged for gray images.

    Raises:
        UsageError: the number of values is neither 1 nor that of channels.
    """
    values = tuple(float(v) for v in (default if option is None else option))
    if option is None and channels == 1 and len(values) == 3:
        values = (sum(values) / 3,)
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise UsageError(f"--{name} has {len(values)} values", f"the input has {channels} channels")
    return values


def _require_usable(mean: Sequence[float], std: Sequence[float]) -> None:
    if min(std) <= 0 or not np.isfinite([*mean, *std]).all():
        raise UsageError(
            "Cannot normalise with these numbers",
            f"mean {mean}, std {std}",
            "std must be greater than 0",
        )


def _resize(
    resize: int | None, crop: int | None, size: tuple[int, int, int], ratio: float
) -> int | None:
    """Return the short side after resizing; None where the whole image is squeezed.

    Small images and wide ones (CIFAR, street scenes) are taken whole; of photographs the centre is.

    Raises:
        UsageError: ``resize`` is smaller than the crop.
    """
    _, height, width = size
    if resize is not None:
        side = crop or max(height, width)
        if resize < side:
            raise UsageError(
                f"--resize {resize} is smaller than the crop of {side}",
                hint="Give a larger --resize",
            )
        return resize
    if crop is None and (height != width or height < SMALL or ratio >= 1.0):
        return None
    return math.floor((crop or height) / min(ratio, 1.0))


def _join(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in values)


def batches(
    source: Source, indices: Sequence[int], preprocess: Preprocess, batch_size: int
) -> Iterator[torch.Tensor]:
    """Yield the images ``indices`` as float32 batches of at most ``batch_size``.

    The next batch is decoded in the background.

    Raises:
        DataError: an image is damaged.
    """
    parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return ahead(parts, lambda part: torch.stack([preprocess.apply(source.image(i)) for i in part]))


def ahead(parts: Sequence[Sequence[int]], decode: Callable[[Sequence[int]], T]) -> Iterator[T]:
    """Yield what ``decode`` makes of each part; the next is made in the background.

    Raises:
        Exception: what ``decode`` raised.
    """
    done: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def work() -> None:
        try:
            for part in parts:
                if stop.is_set():
                    return
                done.put((decode(part),))
            done.put(None)
        except BaseException as exc:  # handed to the consumer, which raises it
            done.put(exc)

    thread = threading.Thread(target=work, daemon=True, name="trtq-decode")
    thread.start()
    try:
        while True:
            item = done.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stop.set()
        while thread.is_alive():  # the worker may wait for room in the queue
            try:
                done.get(timeout=0.05)
            except queue.Empty:
                continue
