"""Files for a target, and engines from them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, Spec
from trtq.specs.fields import Backend, Tokenizer
from trtq.specs.inputs import ModelInputSpec
from trtq.specs.options import ComputeDevice


class ExportSpec(ModelInputSpec, frozen=True, kw_only=True):
    """One set of encodings as ONNX for several targets."""

    encodings: Annotated[
        str,
        PathDoc(
            description="encodings.safetensors of trtq quantize, finetune, search or an import."
        ),
    ]
    target: Annotated[
        tuple[str, ...],
        Doc(description="A device, @ a TensorRT version where it matters; repeatable."),
    ]
    out: Annotated[
        str, PathDoc(description="Folder for the files, one for each target, named after it.")
    ]
    precision: Annotated[
        Literal["fp32", "fp16"],
        Doc(
            description="Precision of tensors that are not quantized. fp16: in FP32 "
            "where the images show that FP16 would harm."
        ),
    ] = "fp16"
    half_sqnr: Annotated[
        Annotated[float, Meta(gt=0)],
        Doc(description="fp16: a tensor that would keep less than this SQNR remains in FP32, dB."),
    ] = 30.0
    images: Annotated[
        int,
        Meta(ge=1),
        Doc(description="Images that ranges are taken from and the files are compared on."),
    ] = 16
    seed: Annotated[int, Meta(ge=0), Doc(description="Chooses those images.")] = 0
    fallback: Annotated[
        bool, Doc(description="For a device without INT8, write the float model, and record it.")
    ] = False
    device: ComputeDevice = "cpu"


class ExportCalibSpec(Spec, frozen=True, kw_only=True):
    """Write the ranges of a Q/DQ file as a calibration cache of TensorRT."""

    onnx: Annotated[str, PathDoc(description="The Q/DQ file.")]
    target: Annotated[
        str, Doc(description="The device, @ the TensorRT version that will read it: xavier@8.5.")
    ]
    out: Annotated[
        str, PathDoc(description="The cache file; OUT.json says what is in it and what is not.")
    ]
    network: Annotated[
        str | None,
        PathDoc(
            description="The float ONNX that will be built with it; default: model.fp32.onnx "
            "beside the "
            "Q/DQ file."
        ),
    ] = None
    release_number: Annotated[
        Annotated[int, Meta(ge=8000, le=999999)] | None,
        Doc(
            description="The number in the header, down to the patch (8502 for 8.5.2): other "
            "releases "
            "ignore the cache.  [default: patch 0]"
        ),
    ] = None


class ImportCalibSpec(Spec, frozen=True, kw_only=True):
    """Make a Q/DQ file from a calibration cache of TensorRT and the float ONNX it was made for."""

    cache: Annotated[str, PathDoc(description="The calibration cache, such as calibration.cache.")]
    onnx: Annotated[str, PathDoc(description="The float ONNX file it was calibrated with.")]
    out: Annotated[str, PathDoc(description="Folder for the results.")]


class BuildOptions(Spec, frozen=True, kw_only=True):
    """How an engine is built, from any source."""

    backend: Annotated[
        Backend,
        Doc(
            description="Builder; auto takes tensorrt-rtx where it covers the target, else "
            "tensorrt."
        ),
    ] = "auto"
    precision: Annotated[
        Literal["fp32", "fp16"], Doc(description="Precision of what is not quantized.")
    ] = "fp32"
    batch: Annotated[
        tuple[int, int, int] | None,
        Doc(description="MIN:OPT:MAX for a dynamic batch.  [default: 1:8:32]"),
    ] = None
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="NAME=MIN:OPT:MAX of an input with open axes, such as "
            "images=1x3x320x320:1x3x640x640:8x3x1280x1280; one shape fixes them; repeatable: the "
            "same input again adds a profile, which Triton takes where it fits."
        ),
    ] = ()
    fallback: Annotated[
        bool,
        Doc(
            description="Where the device or the builder lacks what the model needs (INT8 on a "
            "Nano, a "
            "kernel for one layer), build what it can "
            "instead, and record it."
        ),
    ] = False
    workspace: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(
            description="Most scratch memory of a kernel, MiB; halved by itself when the "
            "builder runs "
            "out. Default: what the device has."
        ),
    ] = None
    optimization_level: Annotated[
        Annotated[int, Meta(ge=0, le=5)] | None,
        Doc(description="Builder optimization level.  [default: 3, TensorRT's own]"),
    ] = None
    timing_cache: Annotated[
        str | None,
        PathDoc(
            description="Timing cache to read and write: the next build is fast, and takes the "
            "same "
            "kernels."
        ),
    ] = None
    dla: Annotated[
        Annotated[int, Meta(ge=0, le=1)] | None,
        Doc(description="Build for this DLA core of Xavier or Orin."),
    ] = None
    gpu_fallback: Annotated[
        bool, Doc(description="With --dla: what the DLA cannot do runs on the GPU.")
    ] = True
    version_compatible: Annotated[
        bool, Doc(description="The engine also loads in later releases of the same major version.")
    ] = False
    hardware_compatible: Annotated[
        Literal["none", "ampere+"],
        Doc(
            description="ampere+: the engine also loads on other GPUs from compute capability "
            "8.0 on."
        ),
    ] = "none"
    strip_weights: Annotated[
        bool, Doc(description="Leave the weights out of the engine; refit it before use.")
    ] = False
    data: Annotated[
        str | None,
        PathDoc(
            description="Data of any form (as for quantize), or random: what was built is compared "
            "with the ONNX file on them."
        ),
    ] = None
    tokenizer: Tokenizer = None
    check_images: Annotated[int, Meta(ge=1), Doc(description="How many samples of it.")] = 32


class BuildSpec(BuildOptions, frozen=True, kw_only=True):
    """Build a TensorRT engine from an ONNX file."""

    onnx: Annotated[str, PathDoc(description="The ONNX file.")]
    target: Annotated[
        str | None,
        Doc(
            description="A device (trtq targets lists them) or a compute capability (sm86), @ a "
            "TensorRT version where it matters: nano@8.2. Default: the target that the file was "
            "written for."
        ),
    ] = None
    out: Annotated[
        str,
        PathDoc(
            description="The engine file; its manifest is written beside it as FILE.engine.json."
        ),
    ]
    calibration: Annotated[
        str | None,
        PathDoc(
            description="A calibration cache, for implicit INT8 of a float file: trtexec up to "
            "10.16 "
            "(trtq export-calib writes one)."
        ),
    ] = None


class LintSpec(Spec, frozen=True, kw_only=True):
    """Look for what TensorRT would refuse in an ONNX file, or silently compute in float."""

    onnx: Annotated[str, PathDoc(description="An ONNX file of any origin.")]
    target: Annotated[
        str,
        Doc(description="The device that will read it, @ a TensorRT version: rtx3080, orin@10.3."),
    ]
    fix: Annotated[
        str | None,
        PathDoc(description="Write a repaired copy here, without any change of values."),
    ] = None
    allow_value_changes: Annotated[
        bool,
        Doc(
            description="With --fix: also the repairs that change values (pairs of transposed "
            "convolutions go)."
        ),
    ] = False


class AuditSpec(Spec, frozen=True, kw_only=True):
    """Compare what an ONNX file asks for with what an engine computes in."""

    file: Annotated[
        str,
        PathDoc(
            description="An engine that trtq built with TensorRT-RTX, or the .json of trtexec "
            "--exportLayerInfo (8.2 to 11)."
        ),
    ]
    onnx: Annotated[str, PathDoc(description="The ONNX file it was built from.")]
    target: Annotated[
        str | None,
        Doc(
            description="A device, @ a TensorRT version: name the rule that probably keeps a "
            "module in "
            "float."
        ),
    ] = None
