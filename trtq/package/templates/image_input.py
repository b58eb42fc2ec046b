"""From the bytes of an image file to a model's input, as the manifest of the model says."""

# Python 3.8, NumPy and Pillow.
import io

import numpy as np
from PIL import Image, ImageOps

# ---- body ----


def read_image(data):
    """Return an upright image of 8 bits, gray or RGB; transparency is dropped.

    Samples of more than 8 bits are refused: what they mean depends on the file.
    """
    image = Image.open(io.BytesIO(data))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            "the image has samples of mode %s; convert it to 8 bits first" % image.mode
        )
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def steps(how, w, h):
    """Return the size that an image of w x h is resized to, and the box of it that is kept."""
    _, height, width = how["input_size"]
    if how.get("fit", "crop") == "letterbox":
        ratio = min(width / w, height / h)
        size = (max(1, round(w * ratio)), max(1, round(h * ratio)))
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        return size, (-left, -top, width - left, height - top)
    if how["resize"] is None:
        return (width, height), (0, 0, width, height)
    short = min(w, h)
    size = (how["resize"] * w // short, how["resize"] * h // short)
    kept = (how["crop"], how["crop"]) if how["crop"] else (width, height)
    left, top = round((size[0] - kept[0]) / 2.0), round((size[1] - kept[1]) / 2.0)
    return size, (left, top, left + kept[0], top + kept[1])


def prepared(image, how):
    """Return an image as the model takes it, [C, H, W]."""
    channels, height, width = how["input_size"]
    if channels not in (1, 3):
        raise ValueError("images have 1 or 3 channels, the model takes %d" % channels)
    method = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[
        how.get("interpolation", "bilinear")
    ]
    image = image.convert("L" if channels == 1 else "RGB")
    size, box = steps(how, *image.size)
    if image.size != size:
        image = image.resize(size, method)
    if box != (0, 0) + size:
        canvas = Image.new(
            image.mode,
            (box[2] - box[0], box[3] - box[1]),
            (how.get("fill", 0),) * channels if channels > 1 else how.get("fill", 0),
        )
        canvas.paste(image, (-box[0], -box[1]))
        image = canvas
    if image.size != (width, height):
        image = image.resize((width, height), method)
    pixels = np.asarray(image).reshape(height, width, channels)
    if how.get("channel_order", "rgb") == "bgr":
        pixels = pixels[..., ::-1]
    if how.get("dtype", "float32") != "uint8":
        mean, std = (np.asarray(how[k], dtype=np.float32) for k in ("mean", "std"))
        pixels = (pixels.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
