"""Preprocessing: from an image to the tensor that the model was trained on.

It is one value that is stored in every ONNX file that trtq writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from trtq.data.ahead import ahead
from trtq.data.decode import MAX_PIXELS, to_eight_bits
from trtq.data.image_place import ImagePlace
from trtq.data.source import Source
from trtq.errors import DataError, UsageError
from trtq.layouts import Layout
from trtq.specs.fields import Preset
from trtq.specs.inputs import Picture

if TYPE_CHECKING:
    from typing_extensions import Unpack

Interpolation = Literal["nearest", "bilinear", "bicubic"]
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "cifar10": {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    },
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "yolo": {"mean": (0.0,), "std": (1.0,), "fit": "letterbox", "interpolation": "bilinear"},
}
GRAY_FILL = 114  # the border of a letterbox, as the YOLO family trains with
UNKNOWN_NORMALISATION = (
    "the model does not say how its input is normalised: ImageNet's mean and std are used "
    "(--preset, --mean, --std)"
)
SMALL = 96  # inputs below this are whole small images (CIFAR, digits), not crops of photographs


class Preprocess(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Fit an image to the input's size, scale it to [0, 1], then normalise.

    Normalising subtracts ``mean`` and divides by ``std``.

    Attributes:
        input_size: (C, H, W) of the model.
        mean, std: per channel in the order of the model's channels, for values in [0, 1]; without
            effect on a ``uint8`` input.
        resize: length of the short side after resizing, in pixels; None squeezes the whole image to
            ``input_size``.
        crop: side of the central square that is kept, in pixels; resized to ``input_size`` when it
            differs.
        interpolation: how pixels are resampled.
        fit: ``crop`` as ``resize`` and ``crop`` say; ``letterbox`` scales the whole image into
            ``input_size``, keeps its proportions and fills the border.
        fill: value of the border of a letterbox, 0 to 255.
        channel_order: of three colours.
        dtype: of the input; ``uint8`` takes pixels as they are.
        layout: of the model's axes; ``NHWC`` has channels last.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    crop: int | None
    # Written even where it is the default: files from before ``fit`` have it.
    interpolation: Interpolation = msgspec.field(default_factory=lambda: _BILINEAR)
    fit: Literal["crop", "letterbox"] = "crop"
    fill: int = 0
    channel_order: Literal["rgb", "bgr"] = "rgb"
    dtype: Literal["float32", "uint8"] = "float32"
    layout: Layout = "NCHW"

    def apply(self, image: Image.Image) -> torch.Tensor:
        """Return the image as ``dtype`` in ``layout``, for models of one or three channels.

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
        return self._normalised(np.asarray(image).reshape(*image.size[::-1], channels))

    def apply_bands(self, bands: npt.NDArray[Any]) -> torch.Tensor:
        """Return pixels of any number of channels as ``dtype`` in ``layout``.

        Args:
            bands: uint8 [H, W, C], or float32 of values 0 to 255.
        """
        method = RESAMPLING[self.interpolation]
        layers = [Image.fromarray(np.ascontiguousarray(b)) for b in np.moveaxis(bands, -1, 0)]
        placed = [np.asarray(self._place(layer, method)) for layer in layers]
        return self._normalised(np.stack(placed, axis=-1))

    def _normalised(self, pixels: npt.NDArray[Any]) -> torch.Tensor:
        """Return pixels [H, W, C] of values 0 to 255 as the model takes them."""
        if self.channel_order == "bgr":
            pixels = pixels[..., ::-1]
        if self.dtype == "uint8":
            values = np.rint(pixels).astype(np.uint8)
        else:
            scaled = pixels.astype(np.float32) / np.float32(255.0)
            mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
            values = (scaled - mean) / std
        image = torch.from_numpy(np.ascontiguousarray(values))
        return image if self.layout == "NHWC" else image.permute(2, 0, 1).contiguous()

    def apply_mask(self, mask: np.ndarray, ignore: int) -> torch.Tensor:
        """Return a mask of class indices, resized and cropped as its image is, int64 [H, W].

        No two classes are mixed; what a crop or a letterbox adds beyond the image is ``ignore``.
        """
        # Pillow fills with 0, which is a class: classes are counted from 1 on the way.
        layer = Image.fromarray(mask.astype(np.int32) + 1)
        placed = self._place(layer, Image.Resampling.NEAREST, fill=0)
        classes = torch.from_numpy(np.asarray(placed).astype(np.int64)) - 1
        return torch.where(classes < 0, ignore, classes)

    def apply_map(self, values: np.ndarray) -> torch.Tensor:
        """Return a map of numbers, resized and cropped as its image is, float32 [H, W].

        No two numbers are mixed; what a crop or a letterbox adds beyond the image is 0.
        """
        layer = Image.fromarray(values.astype(np.float32))
        placed = self._place(layer, Image.Resampling.NEAREST, fill=0)
        return torch.from_numpy(np.array(placed, dtype=np.float32))

    def place(self, width: int, height: int) -> ImagePlace:
        """Return where an upright image of a size is in the input, for boxes and points.

        Args:
            width: of the image, pixels.
            height: of the image, pixels.
        """
        resized, box = self._steps(width, height)
        cut = (box[2] - box[0], box[3] - box[1])
        again = [n / c for n, c in zip(self.input_size[:0:-1], cut, strict=True)]
        scale = [r / o * a for r, o, a in zip(resized, (width, height), again, strict=True)]
        return ImagePlace(
            scale=(scale[0], scale[1]),
            offset=(-box[0] * again[0], -box[1] * again[1]),
            size=(width, height),
        )

    def require_room(self, width: int, height: int, owner: str) -> None:
        """Refuse an image so long and thin that its short side makes it huge.

        Raises:
            DataError: names ``owner`` and the size.
        """
        resized, _ = self._steps(width, height)
        if math.prod(resized) > MAX_PIXELS:
            raise DataError(
                f"Cannot resize {owner}",
                f"its {width}x{height} pixels would become {resized[0]}x{resized[1]}, the limit is "
                f"{MAX_PIXELS} pixels",
                "Remove it, or take whole images: --fit letterbox",
            )

    def _steps(self, w: int, h: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """Return the size that an image is resized to, and the box of that which is kept.

        A box beyond the resized image is filled. The kept part is resized to the input where it has
        another size. Where a size changes, trtq.data.source.PIXELS is raised.
        """
        _, height, width = self.input_size
        if self.fit == "letterbox":
            ratio = min(width / w, height / h)
            size = (max(1, round(w * ratio)), max(1, round(h * ratio)))
            # The smaller half of an odd border is left and on top, as in training.
            left, top = (width - size[0]) // 2, (height - size[1]) // 2
            return size, (-left, -top, width - left, height - top)
        if self.resize is None:
            return (width, height), (0, 0, width, height)
        short = min(w, h)
        size = (self.resize * w // short, self.resize * h // short)  # as torchvision's Resize
        kept = (self.crop, self.crop) if self.crop else (width, height)
        left, top = (round((a - b) / 2.0) for a, b in zip(size, kept, strict=True))
        return size, (left, top, left + kept[0], top + kept[1])

    def _place(
        self, image: Image.Image, method: Image.Resampling, *, fill: int | None = None
    ) -> Image.Image:
        """Resize, then cut or fill up."""
        _, height, width = self.input_size
        size, box = self._steps(*image.size)
        image = image if image.size == size else image.resize(size, method)
        if box != (0, 0, *size):
            image = _cut(image, box, self.fill if fill is None else fill)
        return image if image.size == (width, height) else image.resize((width, height), method)


_BILINEAR: Interpolation = "bilinear"


def _cut(image: Image.Image, box: tuple[int, int, int, int], fill: int) -> Image.Image:
    """Return a box of an image; what is beyond the image is ``fill``."""
    if not fill:
        return image.crop(box)
    bands = len(image.getbands())
    canvas = Image.new(image.mode, (box[2] - box[0], box[3] - box[1]), (fill,) * bands)
    canvas.paste(image, (-box[0], -box[1]))
    return canvas


def resolve_preprocess(
    *, hints: Mapping[str, Any] | None = None, **given: Unpack[Picture]
) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing and what the user should know about it.

    Given values win over the preset, the preset over what the model's authors say (``hints``),
    and that over ImageNet's.

    Args:
        hints: fields of :class:`Preprocess`, ``crop_pct`` and ``size_words``.
        given: as options; None is not given.

    Raises:
        UsageError: numbers of channels differ, or a standard deviation is not greater than 0.
    """
    hints = {k: v for k, v in (hints or {}).items() if v is not None}
    preset, dtype = given.get("preset"), given.get("input_dtype") or "float32"
    defaults = {**PRESETS["imagenet"], **hints, **(PRESETS[preset] if preset else {})}
    size = _input_size(given.get("input_size") or defaults.get("input_size") or (3, 224, 224))
    options = {"mean": given.get("mean"), "std": given.get("std")}
    order = given.get("channel_order") or "rgb"
    plain = dtype == "uint8"
    _require_channels(size[0], options, order, plain=plain)
    values = _normalisation(options, defaults, size[0], reverse=order == "bgr", plain=plain)
    preprocess = _placed(given, defaults, size, values, order, dtype)
    open_size = hints.get("size_words") if given.get("input_size") is None else None
    notes = [] if open_size is None else [str(open_size)]
    known = "mean" in hints or preset is not None or options["mean"] is not None
    if not known and not plain:
        return preprocess, [*notes, UNKNOWN_NORMALISATION]
    chosen = {n: values[n] for n, option in options.items() if option is not None}
    own = {n: tuple(hints[n])[:: -1 if order == "bgr" else 1] for n in options if n in hints}
    return preprocess, [*notes, *_differences(chosen, own)]


def _normalisation(
    options: Mapping[str, tuple[float, ...] | None],
    defaults: Mapping[str, Any],
    channels: int,
    *,
    reverse: bool,
    plain: bool,
) -> dict[str, tuple[float, ...]]:
    """Return mean and standard deviation of each channel.

    Args:
        options: what is given.
        defaults: of red, green and blue.
        channels: of the input.
        reverse: the input is blue, green, red.
        plain: pixels are not changed.
    """
    known = {n: tuple(defaults[n]) for n in options}
    if reverse:
        known = {n: tuple(reversed(v)) for n, v in known.items()}
    if plain:
        known = {"mean": (0.0,), "std": (1.0,)}
    values = {n: _per_channel(n, v, known[n], channels) for n, v in options.items()}
    _require_usable(values["mean"], values["std"])
    return values


def _placed(
    given: Picture,
    defaults: Mapping[str, Any],
    size: tuple[int, int, int],
    values: Mapping[str, tuple[float, ...]],
    order: Literal["rgb", "bgr"],
    dtype: Literal["float32", "uint8"],
) -> Preprocess:
    """Return the preprocessing with the place of an image in the input."""
    resize, crop = given.get("resize"), given.get("crop")
    resampling = given.get("interpolation") or defaults.get("interpolation")
    boxed = (given.get("fit") or defaults.get("fit")) == "letterbox"
    if boxed:
        _require_whole(resize, crop)
    ratio = float(defaults.get("crop_pct") or 0.875)
    return Preprocess(
        input_size=size,
        mean=values["mean"],
        std=values["std"],
        resize=None if boxed else _resize(resize, crop, size, ratio),
        crop=crop,
        interpolation=resampling if resampling in RESAMPLING else "bilinear",
        fit="letterbox" if boxed else "crop",
        fill=GRAY_FILL if boxed else 0,
        channel_order=order,
        dtype=dtype,
        layout=defaults.get("layout") or "NCHW",
    )


def _require_channels(
    channels: int, options: Mapping[str, Sequence[float] | None], order: str, *, plain: bool
) -> None:
    """Refuse what has no meaning for a number of channels, or for pixels that are not scaled."""
    given = [f"--{n}" for n, v in options.items() if v is not None]
    if plain and given:
        raise UsageError(
            f"{' and '.join(given)} have no effect on a uint8 input",
            "the model takes pixels of 0 to 255 as they are",
            f"Leave {' and '.join(given)} out",
        )
    if order == "bgr" and channels != 3:
        raise UsageError(
            "--channel-order bgr is for three colours", f"the input has {channels} channels"
        )
    lacking = [f"--{n}" for n, v in options.items() if v is None]
    if channels not in (1, 3) and lacking and not plain:
        raise UsageError(
            f"The normalisation of {channels} channels is not known",
            f"{' and '.join(lacking)} are missing, and presets are for one or three channels",
            f"Give {' and '.join(lacking)}: one value for all channels, or {channels}",
        )


def _require_whole(resize: int | None, crop: int | None) -> None:
    wrong = [n for n, v in (("--resize", resize), ("--crop", crop)) if v is not None]
    if wrong:
        raise UsageError(
            f"Cannot use {' and '.join(wrong)} with a letterbox",
            "it takes the whole image at the size of the input",
            f"Leave {' and '.join(wrong)} out, or give --fit crop",
        )


def _differences(
    chosen: Mapping[str, Sequence[float]], own: Mapping[str, Sequence[float]]
) -> list[str]:
    """Return a line for each of the user's numbers that is not the model's own.

    Both are in the order of the model's channels. Numbers for other channels are not comparable.
    """
    pairs = [(n, values, own[n]) for n, values in chosen.items() if n in own]
    return [
        f"--{name} {_join(values)} differs from the model's own {_join(known)}"
        for name, values, known in pairs
        if len(values) == len(known) or 1 in (len(values), len(known))
        if not np.allclose(values, known, atol=1e-3)
    ]


def _input_size(values: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (int(v) for v in values)
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
    return ahead(
        parts, lambda part: torch.stack([read_image(source, i, preprocess)[0] for i in part])
    )


def read_image(
    source: Source, index: int, preprocess: Preprocess
) -> tuple[torch.Tensor, ImagePlace]:
    """Return one image as the model takes it, and where it is in the input.

    Raises:
        DataError: it is damaged, has another number of channels, or is too long and thin.
    """
    channels, owner = preprocess.input_size[0], f"{source.ids[index]} of {source.name}"
    if channels in (1, 3) and not source.is_array(index):
        image = source.image(index)
        preprocess.require_room(image.width, image.height, owner)
        return preprocess.apply(image), preprocess.place(*image.size)
    bands = source.bands(index, channels)
    height, width, _ = bands.shape
    preprocess.require_room(width, height, owner)
    return preprocess.apply_bands(bands), preprocess.place(width, height)
