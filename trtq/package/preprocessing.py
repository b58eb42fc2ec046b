"""How images become a model's input, as files and manifests say it; without torch."""

from __future__ import annotations

from typing import Literal

import msgspec

FULL = 255.0  # the largest pixel


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stored form of :class:`trtq.data.preprocess.Preprocess`, which explains the fields.

    Attributes:
        input_size: channels, height, width.
        mean, std: for pixels in 0 to 1; one number counts for all channels.
        resize: length of the short side, pixels; None squeezes the image to the input's size.
        crop: side of the square that is cut from the centre, pixels; None is the input's size.
        fill: of the borders of a letterbox, 0 to 255.
        dtype: ``uint8`` for pixels as they are, without mean and std.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    crop: int | None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    fit: Literal["crop", "letterbox"] = "crop"
    fill: int = 0
    channel_order: Literal["rgb", "bgr"] = "rgb"
    dtype: Literal["float32", "uint8"] = "float32"
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.input_size[0]

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each channel, for pixels in 0 to 1."""
        return self.mean * self.channels if len(self.mean) == 1 else self.mean

    @property
    def stds(self) -> tuple[float, ...]:
        """The standard deviation of each channel, for pixels in 0 to 1."""
        return self.std * self.channels if len(self.std) == 1 else self.std

    @property
    def crops(self) -> bool:
        """Whether a part of the image is cut away."""
        return self.fit == "crop" and self.resize is not None

    @property
    def words(self) -> str:
        """The preprocessing as a person reads it."""
        channels, height, width = self.input_size
        colors = {1: "gray", 3: self.channel_order.upper()}.get(channels, f"{channels} channels")
        kept = f"{self.crop}x{self.crop}" if self.crop else f"{width}x{height}"
        place = f"squeezed to {width}x{height}"
        if self.fit == "letterbox":
            place = f"letterbox {width}x{height} with borders of {self.fill}"
        elif self.resize is not None:
            place = f"short side {self.resize}, centre {kept}, {width}x{height}"
        if self.dtype == "uint8":
            return f"{colors}, {place} ({self.interpolation}), pixels of 0 to 255"
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        values = f"(pixel / 255 - mean) / std with mean {mean} and std {std}"
        return f"{colors}, {place} ({self.interpolation}), {values}"
