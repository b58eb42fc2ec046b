"""Calibration, other tools' ranges, and accuracy."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc
from trtq.specs.fields import (
    OPSET,
    CalibCache,
    Calibrator,
    FilesFor,
    IgnoreIndex,
    Masks,
    Opset,
    Percentile,
)
from trtq.specs.inputs import InputSpec, ModelInputSpec
from trtq.specs.options import (
    Attention,
    Bits,
    CalibrationImages,
    ComputeDevice,
    FamilyPreset,
    HighPrecision,
    ImagesPerPass,
    MethodArguments,
    Methods,
    MinAgreement,
    ParityImages,
    RecipeQuant,
    Requantize,
    TaskName,
    TimeBudget,
    WeightStorage,
)


class QuantizeSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Calibrate a model and write Q/DQ ONNX, encodings and a record."""

    out: Annotated[str, PathDoc(description="Folder for the results.")]
    calibrator: Annotated[
        Calibrator,
        Doc(
            description="How activations get their range; auto takes mse, or max, entropy or "
            "percentile where that pays on calibration samples."
        ),
    ] = "mse"
    percentile: Percentile = 99.99
    calib_images: CalibrationImages = 256
    batch_size: ImagesPerPass = 16
    bits: Bits = "w8a8"
    allocation: Annotated[
        str | None,
        PathDoc(
            description="Record of trtq allocate: a width for every layer, in place of --bits."
        ),
    ] = None
    method: Methods = ()
    method_arg: MethodArguments = {}
    task: TaskName = None
    masks: Masks = None
    preset_quant: FamilyPreset = "auto"
    recipe_quant: RecipeQuant = None
    min_agreement: MinAgreement = 90.0
    weight_storage: WeightStorage = "int8"
    attention: Attention = "auto"
    high_precision: HighPrecision = ()
    requantize: Requantize = False
    opset: Opset = None
    target: FilesFor = None
    seed: Annotated[
        int,
        Meta(ge=0),
        Doc(
            description="Chooses the calibration images, and random weights where there is no "
            "checkpoint."
        ),
    ] = 0
    parity_images: ParityImages = 32
    calib_cache: CalibCache = None
    device: ComputeDevice = "cpu"
    time_budget: TimeBudget = None


class ImportCheckpointSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Take over the ranges of a model that another tool quantized."""

    ranges: Annotated[
        str,
        PathDoc(
            description="A state dict of pytorch-quantization or ModelOpt (.pt, .pth, "
            ".safetensors), "
            "AIMET's NAME_torch.encodings, or an ONNX file with Q/DQ pairs."
        ),
    ]
    out: Annotated[str, PathDoc(description="Folder for the results.")]
    opset: Annotated[int, Meta(ge=13, le=21), Doc(description="Opset of the ONNX files.")] = OPSET
    parity_images: Annotated[
        int,
        Meta(ge=1),
        Doc(description="Images the parity gate compares torch and ONNX Runtime on."),
    ] = 32
    seed: Annotated[int, Meta(ge=0), Doc(description="Chooses those images.")] = 0
    device: ComputeDevice = "cpu"


class EvaluateSpec(InputSpec, frozen=True, kw_only=True):
    """Accuracy of an ONNX file or an engine, and its agreement with another ONNX file."""

    onnx: Annotated[
        str,
        PathDoc(
            description="The ONNX file, or an engine (.engine, .plan) on the GPU it was built for."
        ),
    ]
    reference: Annotated[
        str | None, PathDoc(description="ONNX file to compare predictions and logits with.")
    ] = None
    provider: Annotated[
        Literal["CPU", "CUDA", "TensorRT", "NvTensorRTRTX"],
        Doc(
            description="Provider of ONNX Runtime, for an ONNX file; the last two build an "
            "engine of their own."
        ),
    ] = "CPU"
    trust: Annotated[
        bool,
        Doc(
            description="Load an engine that has no manifest: loading one can run code that is "
            "in it."
        ),
    ] = False
    rebuild: Annotated[
        bool,
        Doc(
            description="Build an engine of another TensorRT or GPU again, beside it, from the "
            "file it "
            "came from."
        ),
    ] = False
    limit: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="Evaluate at most this many images, drawn evenly."),
    ] = None
    task: TaskName = None
    masks: Masks = None
    ignore_index: IgnoreIndex = 255
    exclude: Annotated[
        str | None,
        PathDoc(description="A quantize.json: leave out the images it was calibrated on."),
    ] = None
    out: Annotated[
        str,
        PathDoc(
            description="Folder for evaluate.json: that of the run, and trtq report shows the "
            "accuracy."
        ),
    ] = ""
    save_pictures: Annotated[
        str,
        PathDoc(
            description="Folder for pictures of the images where the file and --reference differ "
            "most; default: pictures in --out, for tasks that can be drawn."
        ),
    ] = ""
    batch_size: Annotated[int, Meta(ge=1, le=4096), Doc(description="Images per call.")] = 16
