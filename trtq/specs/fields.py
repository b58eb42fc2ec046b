"""Fields that several specs share."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, open_choice

Percentile = Annotated[float, Meta(gt=50, le=100), Doc(description="For --calibrator percentile.")]
Calibrator = Annotated[
    str, open_choice("calibrators", "auto", "max", "percentile", "entropy", "mse", "ema")
]
Preset = Literal["imagenet", "cifar10", "half", "yolo"]
# of the ONNX files where nothing asks for less: ONNX Runtime and TensorRT 10, 11 and RTX read it
OPSET = 20
Backend = Literal["auto", "tensorrt-rtx", "tensorrt", "trtexec"]
ModelName = Annotated[
    str,
    PathDoc(
        description="timm:NAME, torchvision:NAME, trtq:fcn_resnet18, package.module:factory, "
        "path/to/file.py:factory, FILE.onnx or FILE.pt2."
    ),
]
Checkpoint = Annotated[
    str | None,
    PathDoc(
        description="Weights: .safetensors, .pt, .pth, .ckpt, .bin, TorchScript, an index of "
        "shards, or "
        "a folder; read without running code."
    ),
]
CheckpointMatch = Annotated[
    Literal["name", "order", "subset"],
    Doc(
        description="Match checkpoint tensors by name or by order. subset: by name, and tensors "
        "that the model lacks are left out."
    ),
]
CheckpointKey = Annotated[
    str | None,
    Doc(
        description="Where the weights are in the checkpoint, such as state_dict_ema or "
        "ema.module; "
        "default: the plain weights that fit."
    ),
]
ModelArg = Annotated[
    dict[str, str | int | float | bool],
    Doc(
        description="Keyword argument of the model's factory, K=V; of an ONNX file, an input that "
        "becomes a constant, such as sr=16000. Repeatable."
    ),
]
AnalyzeMetric = Annotated[
    Literal["l2", "gradient", "hessian", "jsd", "combined"],
    Doc(
        description="l2: each layer's own output. jsd: the model's output distribution with one "
        "layer "
        "quantized. gradient: of the loss "
        "under perturbed weights. hessian: trace times weight error. combined: hessian and jsd."
    ),
]
Budgets = Annotated[
    tuple[str, ...],
    Doc(
        description="size=1.9MB or size=0.2, bitops=0.1, energy=0.15, latency@xavier=3ms; a number "
        "without a unit is a share of the float "
        "model; repeatable."
    ),
]
Correct = Annotated[
    tuple[str, ...],
    Doc(
        description="DEVICE=FACTOR on predicted latencies, the factor that trtq cost --profile "
        "found; "
        "repeatable."
    ),
]
Target = Annotated[
    str | None,
    Doc(
        description="A device of the hardware table: widths it has no kernels for are refused, "
        "such as "
        "fp8 on orin."
    ),
]
Masks = Annotated[
    str | None,
    PathDoc(
        description="Masks of class indices, one of the same name for each image: a folder, or one "
        "inside a .zip (camvid.zip/trainannot). For --task depth: maps of numbers in .npy files."
    ),
]
IgnoreIndex = Annotated[
    Annotated[int, Meta(ge=0, le=65535)],
    Doc(description="Ignored class index."),
]
Tokenizer = Annotated[
    str | None,
    PathDoc(
        description="For a text file as data: tokenizer.json of the model, as Hugging Face's "
        "tokenizers writes it."
    ),
]
Input = Annotated[
    tuple[str, ...],
    Doc(
        description="An example of an input where the data do not give one: NAME=SIZES or "
        "NAME=SIZES:DTYPE, such as ids=1x128:int64; repeatable."
    ),
]
Dynamic = Annotated[
    tuple[str, ...],
    Doc(
        description="Open axes of an input: NAME=AXIS,AXIS,..., each a size, a name, or a name "
        "with its range, such as images=batch,3,height:320..1280:32,width; default: the batch is "
        "open. Repeatable."
    ),
]
Outputs = Annotated[
    tuple[str, ...],
    Doc(description="An output to keep; default: all of them. Repeatable."),
]
OrtLibrary = Annotated[
    str | None,
    PathDoc(description="A library of custom ops for ONNX Runtime, for an ONNX file with them."),
]
InputSize = Annotated[
    tuple[int, int, int] | None, Doc(description="CxHxW; default: the model's own, else 3x224x224.")
]
Percentiles = Annotated[
    tuple[Annotated[float, Meta(gt=0, lt=100)], ...],
    Doc(
        description="Shown beside the median; n/a with the number needed where there are too few "
        "samples."
    ),
]
Opset = Annotated[
    Annotated[int, Meta(ge=13, le=21)] | None,
    Doc(
        description="Opset of the ONNX files: 13 for TensorRT 8.0 to 8.3, 16 for 8.4 and 8.5, "
        "17 for 8.6 and 9, 20 for 10 and later; default: "
        "what --target reads, else 20."
    ),
]
FilesFor = Annotated[
    str | None,
    Doc(
        description="A device the files are for, @ a TensorRT version (xavier, nano@8.2): "
        "chooses the "
        "opset, refuses INT8 where there is none."
    ),
]
BatchSize = Annotated[int, Meta(ge=1, le=4096), Doc(description="Images per forward pass.")]
CalibImages = Annotated[int, Meta(ge=1), Doc(description="How many images give the ranges.")]
CalibCache = Annotated[
    str | None,
    PathDoc(
        description="Folder of the calibration cache; default: $TRTQ_CALIB_CACHE, else "
        "./calib_cache."
    ),
]
