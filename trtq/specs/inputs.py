"""The model to quantize, and its images."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict, cast

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, Spec
from trtq.specs.fields import (
    Checkpoint,
    CheckpointKey,
    CheckpointMatch,
    Dynamic,
    Input,
    InputSize,
    ModelArg,
    ModelName,
    OrtLibrary,
    Outputs,
    Preset,
    Tokenizer,
)


class Picture(TypedDict, total=False):
    """Preprocessing given by the user; None where a value is not given."""

    input_size: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    preset: Preset | None
    resize: int | None
    crop: int | None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None
    fit: Literal["crop", "letterbox"] | None
    channel_order: Literal["rgb", "bgr"] | None
    input_dtype: Literal["float32", "uint8"] | None


class PictureSpec(Spec, frozen=True, kw_only=True):
    """How images become the model's input."""

    input_size: InputSize = None
    mean: Annotated[
        tuple[float, ...] | None, Doc(description="Per channel, for pixels in 0..1.")
    ] = None
    std: Annotated[
        tuple[float, ...] | None, Doc(description="Per channel, for pixels in 0..1.")
    ] = None
    preset: Annotated[
        Preset | None,
        Doc(description="Normalisation by name; default: the model's own, else imagenet."),
    ] = None
    resize: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(
            description="Short side after resizing, pixels; default: input size / 0.875, or no "
            "crop for "
            "small inputs."
        ),
    ] = None
    crop: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="Side of the centre crop, pixels; default: the input size."),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic"] | None,
        Doc(description="Resampling; default: the model's own, else bilinear."),
    ] = None
    fit: Annotated[
        Literal["crop", "letterbox"] | None,
        Doc(
            description="crop: --resize and --crop. letterbox: the whole image with its "
            "proportions kept and gray borders; default: the preset's, else crop."
        ),
    ] = None
    channel_order: Annotated[
        Literal["rgb", "bgr"] | None,
        Doc(description="Order of three colours, also of --mean and --std.  [default: rgb]"),
    ] = None
    input_dtype: Annotated[
        Literal["float32", "uint8"] | None,
        Doc(description="Type of the model's image input; uint8 takes pixels as they are."),
    ] = None

    @property
    def picture(self) -> Picture:
        """The fields that say how images become the input; None is not said."""
        return cast("Picture", {n: getattr(self, n) for n in Picture.__annotations__})


class InputSpec(PictureSpec, frozen=True, kw_only=True):
    """The samples a model is looked at with."""

    data: Annotated[
        str,
        PathDoc(
            description="Images: a folder of class folders, a flat folder, a .zip of either or "
            "a folder inside one, cifar10:DIR, digits. Tensors: a folder of .npz or .npy files, "
            "one such file with samples first, file.py:factory. Texts: a .txt file. Boxes: "
            "coco:FOLDER, yolo:data.yaml, voc:FOLDER. Numbers that calibrate nothing: random."
        ),
    ] = ""
    class_index: Annotated[
        str | None,
        PathDoc(
            description="JSON list of folder names in class order, or text or numeric; default: "
            "folder "
            "names in text order."
        ),
    ] = None
    tokenizer: Tokenizer = None


class ModelInputSpec(InputSpec, frozen=True, kw_only=True):
    """A model and the images it is looked at with."""

    model: ModelName
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    checkpoint_key: CheckpointKey = None
    model_arg: ModelArg = {}
    input: Input = ()
    dynamic: Dynamic = ()
    outputs: Outputs = ()
    ort_library: OrtLibrary = None


class BlocksSpec(Spec, frozen=True, kw_only=True):
    """List what a model is made of."""

    model: ModelName
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    checkpoint_key: CheckpointKey = None
    model_arg: ModelArg = {}
    input_size: InputSize = None
    input: Input = ()
    dynamic: Dynamic = ()
    outputs: Outputs = ()
    ort_library: OrtLibrary = None
