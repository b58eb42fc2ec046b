"""Cost of a model, and recommendations for it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, Spec
from trtq.specs.fields import (
    Budgets,
    Checkpoint,
    CheckpointKey,
    CheckpointMatch,
    Dynamic,
    Input,
    InputSize,
    ModelArg,
    OrtLibrary,
    Outputs,
    Target,
)
from trtq.specs.inputs import ModelInputSpec
from trtq.specs.options import TaskName


class AdviseSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Say which way of quantizing fits, or which layers of a quantized model lose from INT8."""

    model: Annotated[
        str,
        PathDoc(
            description="A float model as for trtq quantize; or a quantized one: a Q/DQ ONNX file, "
            "the folder of trtq quantize, or an engine of it."
        ),
    ]
    target: Target = None
    budget: Budgets = ()
    task: TaskName = None
    min_accuracy: Annotated[
        float | None,
        Doc(description="Points of top-1 against the float model that may go, such as -1.0."),
    ] = None
    train: Annotated[
        str | None,
        PathDoc(
            description="Labelled images one may train on; default: --data, when it has labels and "
            "enough of them."
        ),
    ] = None
    result: Annotated[
        str | None,
        PathDoc(
            description="Folder of a trtq run at w8a8 with [evaluate]: its measured accuracy "
            "decides "
            "whether PTQ is enough."
        ),
    ] = None
    engine: Annotated[
        str | None,
        PathDoc(
            description="Quantized model: its TensorRT-RTX engine; default: one beside the file. "
            "Its kernels are compared with those of --baseline."
        ),
    ] = None
    baseline: Annotated[
        str | None,
        PathDoc(description="Quantized model: the FP16 engine; default: one beside --engine."),
    ] = None
    measured: Annotated[
        tuple[str, ...],
        PathDoc(
            description="Quantized model: bench.json of trtq bench --profile with the layer times "
            "of the INT8 and of the FP16 file on one device (compare.json has none); repeatable."
        ),
    ] = ()
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="Quantized model: NAME=SHAPE of an input with open axes, such as "
            "images=1x3x640x640; repeatable."
        ),
    ] = ()
    batch: Annotated[int, Meta(ge=1), Doc(description="Quantized model: samples in a call.")] = 1
    keep_winners: Annotated[
        bool,
        Doc(
            description="Quantized model: write it with Q/DQ pairs only where INT8 wins. Needs "
            "--out."
        ),
    ] = False
    out: Annotated[
        str | None, PathDoc(description="Quantized model: folder for advise.json and new files.")
    ] = None


class CostSpec(Spec, frozen=True, kw_only=True):
    """Count what a model costs."""

    model: Annotated[
        str,
        PathDoc(
            description="timm:NAME, torchvision:NAME, trtq:fcn_resnet18, package.module:factory, "
            "path/to/file.py:factory, or FILE.onnx."
        ),
    ]
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    checkpoint_key: CheckpointKey = None
    model_arg: ModelArg = {}
    seed: Annotated[
        int, Meta(ge=0), Doc(description="Seed of random weights where there is no checkpoint.")
    ] = 0
    input_size: InputSize = None
    input: Input = ()
    dynamic: Dynamic = ()
    outputs: Outputs = ()
    ort_library: OrtLibrary = None
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="NAME=SHAPE of an ONNX file's input with open axes, such as "
            "images=1x3x640x640; repeatable."
        ),
    ] = ()
    allocation: Annotated[
        str | None, PathDoc(description="Record of trtq allocate: the widths to count with.")
    ] = None
    bits: Annotated[
        Annotated[
            str,
            Meta(pattern=r"^(w[2-8]a[2-8]|fp16|fp32)$", examples=["w8a8", "w4a8", "fp16", "fp32"]),
        ]
        | None,
        Doc(description="Widths of every layer without an allocation.  [default: fp32]"),
    ] = None
    device: Annotated[
        str | None,
        Doc(
            description="Predict the latency there: a device of the hardware table, such as t4, "
            "xavier "
            "or rtx3080."
        ),
    ] = None
    batch: Annotated[int, Meta(ge=1), Doc(description="Images a call, for the latency.")] = 1
    engine: Annotated[
        str | None,
        PathDoc(
            description="A TensorRT-RTX engine of the model: predict over its own fused "
            "kernels, too. "
            "Needs --device."
        ),
    ] = None
    profile: Annotated[
        str | None,
        PathDoc(
            description="Measured layer times on that device (trtexec --exportProfile): say how "
            "far the "
            "prediction is off. Needs --device."
        ),
    ] = None
