"""The order of the axes of a batch of images: channels first, or last as TensorFlow has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

Layout = Literal["NCHW", "NHWC"]
IMAGE_AXES = 4
COLOURS = (1, 3, 4)  # gray, three colours, and alpha

T = TypeVar("T")


def layout_of(shape: Sequence[object]) -> Layout | None:
    """Return the order of the axes of a batch of images; None where it has other axes.

    Channels are last where the last size is a number of colours and the second is none.

    Args:
        shape: sizes, the batch included; open ones are texts.

    >>> layout_of((1, 3, 224, 224)), layout_of(("batch", 224, 224, 3)), layout_of((1, 512))
    ('NCHW', 'NHWC', None)
    """
    if len(shape) != IMAGE_AXES:
        return None
    return "NHWC" if shape[3] in COLOURS and shape[1] not in COLOURS else "NCHW"


def channels_first(sizes: Sequence[T], layout: Layout) -> tuple[T, T, T]:
    """Return the sizes of one image as channels, height and width.

    Args:
        sizes: three, without the batch, in the order of ``layout``.
        layout: ``NCHW`` or ``NHWC``.
    """
    first, second, third = sizes
    return (third, first, second) if layout == "NHWC" else (first, second, third)


def in_layout(sizes: Sequence[T], layout: Layout) -> tuple[T, T, T]:
    """Return channels, height and width in the order in which a model has them.

    Args:
        sizes: channels, height and width.
        layout: ``NCHW`` or ``NHWC``.
    """
    channels, height, width = sizes
    return (height, width, channels) if layout == "NHWC" else (channels, height, width)


def pixels_of(shape: Sequence[T]) -> tuple[T, T]:
    """Return height and width of a batch of images by its shape.

    Args:
        shape: four sizes, the batch included.
    """
    _, height, width = channels_first(shape[1:], layout_of(shape) or "NCHW")
    return height, width
