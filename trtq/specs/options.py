"""How a model is quantized: options that the command line, recipes and Python share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from trtq.specs.base import AUTO_TASK, Doc, Spec, open_choice
from trtq.specs.fields import CalibCache, Calibrator, FilesFor, Opset, Percentile

CalibrationImages = Annotated[
    int, Meta(ge=1), Doc(description="How many images calibration looks at.")
]
ImagesPerPass = Annotated[
    int,
    Meta(ge=1, le=4096),
    Doc(description="Images per forward pass; changes memory, not results."),
]
Bits = Annotated[
    str,
    Meta(
        pattern=r"^(w[2-8]a([2-8]|16)|w4a16:(16|32|64|128|256)|fp8|nvfp4)$",
        examples=["w8a8", "w4a8", "w4a16:128", "fp8", "nvfp4"],
    ),
    Doc(
        description="Width of weights and activations, w8a8 to w2a2; the first and the last layer "
        "and residual shortcuts keep 8. w4a16:128 has weights of linear layers as INT4 in blocks, "
        "fp8 E4M3, nvfp4 linear layers in E2M1 in blocks of 16."
    ),
]
Methods = Annotated[
    tuple[str, ...],
    Doc(
        description="A quantization method to apply, by name (trtq methods lists them); repeatable."
    ),
]
MethodArguments = Annotated[
    dict[str, str | int | float | bool],
    Doc(description="Argument of a method, NAME.K=V; repeatable."),
]
FamilyPreset = Annotated[
    Literal[
        "auto",
        "none",
        "cnn",
        "mobile",
        "vit",
        "windowed",
        "hybrid",
        "detector-conv",
        "detector-transformer",
    ],
    Doc(
        description="Methods and fallbacks by family of models: auto takes the family from the "
        "graph, none does what is asked and nothing else. Methods that are asked for replace the "
        "family's."
    ),
]
RecipeQuant = Annotated[
    Literal["qaof", "energy-aware"] | None,
    Doc(
        description="A paper's recipe in place of the preset: qaof (S2), or energy-aware (S1: a "
        "width for every layer at the bytes and the energy of one width, w6a6 without --bits). "
        "Each component is kept only where it pays on held-out calibration samples."
    ),
]
MinAgreement = Annotated[
    float,
    Meta(ge=0, le=100),
    Doc(
        description="Quick check: agreement with float on calibration images below which "
        "fallbacks are tried, percent; 0 tries none."
    ),
]
WeightStorage = Annotated[
    Literal["int8", "int4"],
    Doc(
        description="How weights of 4 bits are stored: int4 halves the file, needs --opset 21, "
        "and engines then compute in float."
    ),
]
TASK_NAMES = (
    "classification",
    "segmentation",
    "detection",
    "instances",
    "keypoints",
    "depth",
    "embedding",
    "text-classification",
    "multi-label",
    "text-lines",
    "tensors",
)
TaskName = Annotated[
    Annotated[str, open_choice("tasks", AUTO_TASK, *TASK_NAMES)] | None,
    Doc(
        description="Meaning of the outputs; default, and auto: what the file or the labels say. "
        "detection:HEAD chooses how boxes are read, embedding:OUTPUT the output. Also "
        "file.py:NAME, module:NAME or an entry point."
    ),
]
Requantize = Annotated[
    bool,
    Doc(description="For an ONNX file with Q/DQ pairs: calibrate again, do not keep its ranges."),
]
Attention = Annotated[
    Literal["auto", "int8", "float"],
    Doc(
        description="Quantize attention matmuls: auto (where INT8 is fine enough for the softmax), "
        "always (int8) or never (float)."
    ),
]
HighPrecision = Annotated[
    tuple[str, ...],
    Doc(
        description="Layers to leave in float: a shell pattern, @first, @last, @anchors (both), "
        "@head (the layers that no other one follows, as a detector's) or @decoder (those on the "
        "queries of a DETR); repeatable."
    ),
]
DeviceName = Annotated[
    str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$", examples=["auto", "cpu", "cuda", "cuda:1"])
]
ComputeDevice = Annotated[
    DeviceName,
    Doc(
        description="Where torch computes: cpu, cuda, cuda:N, or auto for a GPU where there is one."
    ),
]
TimeBudget = Annotated[
    Annotated[float, Meta(gt=0)] | None,
    Doc(
        description="Minutes that a method which learns (reconstruct) may take: it does the steps "
        "that fit. Default: all of them; 5 where a preset chose the method on a CPU."
    ),
]
ParityImages = Annotated[
    int,
    Meta(ge=1),
    Doc(description="Calibration images the parity gate compares torch and ONNX Runtime on."),
]


T = TypeVar("T", bound="Options")


class Options(Spec, frozen=True, kw_only=True):
    """How something is done, without what and with which data."""

    @classmethod
    def of(cls: type[T], spec: Spec, **more: Any) -> T:
        """Return the options that a spec has under the same names, and ``more``."""
        own = set(spec.__struct_fields__)
        shared = {f: getattr(spec, f) for f in cls.__struct_fields__ if f in own}
        return cls(**{**shared, **more})

    def without(self, *names: str) -> dict[str, object]:
        """Return the options as plain values but for some."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return {k: v for k, v in values.items() if k not in names}


class QuantizeOptions(Options, frozen=True, kw_only=True):
    """How to quantize, without what and with which data.

    Attributes:
        layer_bits: a width for single layers, such as ``{"layer1.0.conv1": "w4a8"}``, in place of
            ``bits``; ``fp16`` leaves a layer in float.
    """

    calibrator: Annotated[Calibrator, Doc(description="How activations get their range.")] = "mse"
    percentile: Percentile = 99.99
    calib_images: CalibrationImages = 256
    batch_size: ImagesPerPass = 16
    bits: Bits = "w8a8"
    layer_bits: dict[str, str] = {}
    method: Methods = ()
    method_arg: MethodArguments = {}
    task: TaskName = None
    preset_quant: FamilyPreset = "auto"
    recipe_quant: RecipeQuant = None
    min_agreement: MinAgreement = 90.0
    weight_storage: WeightStorage = "int8"
    attention: Attention = "auto"
    high_precision: HighPrecision = ()
    requantize: Requantize = False
    opset: Opset = None
    target: FilesFor = None
    seed: Annotated[int, Meta(ge=0)] = 0
    parity_images: ParityImages = 32
    calib_cache: CalibCache = None
    device: ComputeDevice = "cpu"
    time_budget: TimeBudget = None
