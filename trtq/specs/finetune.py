"""Quantization-aware training."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.errors import UsageError
from trtq.specs.base import Doc, PathDoc
from trtq.specs.fields import FilesFor, IgnoreIndex, Masks, Opset
from trtq.specs.inputs import ModelInputSpec
from trtq.specs.options import DeviceName, Options, TaskName

ValLimit = Annotated[
    Annotated[int, Meta(ge=1)] | None,
    Doc(description="Measure on at most this many images, drawn evenly."),
]
Epochs = Annotated[int, Meta(ge=1), Doc(description="Passes over the images.")]
Limit = Annotated[
    Annotated[int, Meta(ge=1)] | None,
    Doc(description="Images per epoch, drawn again for each."),
]
BatchSize = Annotated[
    int, Meta(ge=1, le=4096), Doc(description="Images a step, over all processes.")
]
Accumulate = Annotated[
    int, Meta(ge=1), Doc(description="Steps whose gradients are added before the weights move.")
]
Optimizer = Annotated[Literal["sgd", "adamw"], Doc(description="sgd: with momentum 0.9.")]
Lr = Annotated[float, Meta(gt=0), Doc(description="Learning rate of weights and biases.")]
LrAmax = Annotated[
    float,
    Meta(gt=0),
    Doc(description="Learning rate of ranges, which are learned as logarithms (Adam)."),
]
WeightDecay = Annotated[float, Meta(ge=0), Doc(description="Weight decay of the weights.")]
Schedule = Annotated[
    Literal["cosine", "onecycle", "plateau", "constant"],
    Doc(
        description="Schedule of both learning rates; plateau divides them by ten when "
        "validation does not improve."
    ),
]
LearnAmax = Annotated[bool, Doc(description="Ranges learn, too (LSQ).")]
Loss = Annotated[
    str | None,
    PathDoc(
        description="A loss of your own in place of cross-entropy, package.module:function or "
        "file.py:function of (answer, wanted)."
    ),
]
ClassWeights = Annotated[
    Literal["none", "log", "median"],
    Doc(
        description="Weigh classes by how rare they are: 1 / ln(1.02 + share), or median "
        "share / "
        "share."
    ),
]
Distill = Annotated[
    float,
    Meta(ge=0, le=1),
    Doc(
        description="Distillation weight: share of the loss against the float model's outputs "
        "instead of the labels."
    ),
]
Temperature = Annotated[
    float, Meta(gt=0), Doc(description="Softmax temperature of the answers that are compared.")
]
Ema = Annotated[
    float,
    Meta(ge=0, lt=1),
    Doc(description="Average the weights over steps with this decay; 0: do not."),
]
Patience = Annotated[
    Annotated[int, Meta(ge=1)] | None,
    Doc(description="Stop when validation on --val does not improve for this many epochs."),
]
Freeze = Annotated[
    tuple[str, ...],
    Doc(description="Layers to freeze, weights and ranges: a shell pattern; repeatable."),
]
Worst = Annotated[
    Annotated[float, Meta(gt=0, le=1)] | None,
    Doc(
        description="Share of the layers to train, the most sensitive first. Needs "
        "--sensitivity.  [default: 0.25]"
    ),
]
BatchNorm = Annotated[
    Literal["folded", "kept"],
    Doc(
        description="folded: into its convolution before training. kept: taken up again "
        "behind it, "
        "and folded at the end; bears higher rates."
    ),
]
FreezeBn = Annotated[
    Annotated[int, Meta(ge=0)] | None,
    Doc(
        description="With --batch-norm kept: its statistics are frozen from this epoch on, "
        "counted from 0."
    ),
]
LowerBits = Annotated[
    tuple[int, ...],
    Doc(
        description="Bits that narrower layers take in the first epochs, one number an "
        "epoch: 8,6 "
        "then their own."
    ),
]
Codebook = Annotated[
    Annotated[int, Meta(ge=2, le=8)] | None,
    Doc(
        description="Weights as one of 2^N learned values a layer (k-means by moving "
        "averages): "
        "simulated, no engine has a kernel for it."
    ),
]
Device = Annotated[
    DeviceName,
    Doc(description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."),
]
Amp = Annotated[
    Literal["none", "bf16", "fp16"],
    Doc(description="Compute convolutions and products in 16 bits; fp16 scales its gradients."),
]
Compile = Annotated[
    bool, Doc(description="Let torch.compile fuse the step; the first one takes a minute.")
]
WeightStorage = Annotated[
    Literal["int8", "int4"],
    Doc(description="How weights of 4 bits are stored, as for trtq quantize."),
]
Augment = Annotated[
    Literal["flip-crop", "flip", "none"],
    Doc(
        description="flip-crop: mirrored at random, and moved by up to an eighth; samples that are "
        "no images are not augmented."
    ),
]
ParityImages = Annotated[
    int,
    Meta(ge=1),
    Doc(description="Images the parity gate compares torch and ONNX Runtime on."),
]
Seed = Annotated[int, Meta(ge=0), Doc(description="Orders the images and draws the augmentation.")]


class FinetuneOptions(Options, frozen=True, kw_only=True):
    """How a quantized model is trained, without which one and with which data."""

    task: TaskName = None
    val_limit: ValLimit = None
    epochs: Epochs = 3
    limit: Limit = None
    batch_size: BatchSize = 64
    accumulate: Accumulate = 1
    optimizer: Optimizer = "sgd"
    lr: Lr = 1e-3
    lr_amax: LrAmax = 1e-3
    weight_decay: WeightDecay = 0.0
    schedule: Schedule = "cosine"
    learn_amax: LearnAmax = True
    loss: Loss = None
    class_weights: ClassWeights = "none"
    distill: Distill = 0.5
    temperature: Temperature = 2.0
    ema: Ema = 0.0
    patience: Patience = None
    freeze: Freeze = ()
    worst: Worst = None
    batch_norm: BatchNorm = "folded"
    freeze_bn: FreezeBn = None
    lower_bits: LowerBits = ()
    codebook: Codebook = None
    device: Device = "auto"
    amp: Amp = "none"
    compile: Compile = False
    weight_storage: WeightStorage = "int8"
    augment: Augment = "flip-crop"
    opset: Opset = None
    target: FilesFor = None
    parity_images: ParityImages = 32
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_lower_bits()
        entropy = self.loss is None and self.distill < 1.0
        cross = "the cross-entropy: no --loss, and --distill below 1"
        kept = self.batch_norm == "kept"
        for given, option, possible, needed in (
            (self.freeze_bn is not None, "--freeze-bn", kept, "--batch-norm kept"),
            (self.class_weights != "none", "--class-weights", entropy, cross),
        ):
            if given and not possible:
                raise UsageError(f"{option} needs {needed}")

    def _require_lower_bits(self) -> None:
        """Refuse widths that do not fall, or that leave no epoch for the last ones.

        Raises:
            UsageError: names the option.
        """
        bits = list(self.lower_bits)
        if not all(2 <= b <= 8 for b in bits) or bits != sorted(bits, reverse=True):
            raise UsageError(
                f"Cannot use --lower-bits {','.join(map(str, bits))}",
                "expected falling numbers from 8 to 2",
                "Write 8,6",
            )
        if len(bits) >= self.epochs:
            why = (
                f"{len(bits)} of {self.epochs} epochs would be at wider widths, and none at "
                "their own"
            )
            raise UsageError("Cannot use --lower-bits", why, "Give more --epochs")


class FinetuneSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Train a quantized model further (quantization-aware training)."""

    out: Annotated[str, PathDoc(description="Folder for the results.")]
    encodings: Annotated[
        str,
        PathDoc(
            description="Where training starts: the encodings.safetensors of trtq quantize or "
            "search."
        ),
    ]
    task: TaskName = None
    masks: Masks = None
    ignore_index: IgnoreIndex = 255
    val: Annotated[
        str | None,
        PathDoc(
            description="Labelled images that every epoch and the result are measured on; with "
            "--task also without labels, by the agreement with the float model."
        ),
    ] = None
    val_class_index: Annotated[
        str | None, PathDoc(description="Like --class-index, for --val; default: the same.")
    ] = None
    val_masks: Annotated[str | None, PathDoc(description="Like --masks, for --val.")] = None
    val_limit: ValLimit = None
    epochs: Epochs = 3
    limit: Limit = None
    batch_size: BatchSize = 64
    accumulate: Accumulate = 1
    optimizer: Optimizer = "sgd"
    lr: Lr = 1e-3
    lr_amax: LrAmax = 1e-3
    weight_decay: WeightDecay = 0.0
    schedule: Schedule = "cosine"
    learn_amax: LearnAmax = True
    loss: Loss = None
    class_weights: ClassWeights = "none"
    distill: Distill = 0.5
    temperature: Temperature = 2.0
    ema: Ema = 0.0
    patience: Patience = None
    freeze: Freeze = ()
    sensitivity: Annotated[
        str | None,
        PathDoc(
            description="Record of trtq analyze: train the layers that --worst ranks by it, "
            "and leave "
            "the others as they are."
        ),
    ] = None
    worst: Worst = None
    batch_norm: BatchNorm = "folded"
    freeze_bn: FreezeBn = None
    lower_bits: LowerBits = ()
    codebook: Codebook = None
    device: Device = "auto"
    amp: Amp = "none"
    compile: Compile = False
    weight_storage: WeightStorage = "int8"
    augment: Augment = "flip-crop"
    opset: Opset = None
    target: FilesFor = None
    parity_images: ParityImages = 32
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        FinetuneOptions.of(self)  # which checks them
        for given, option, possible, needed in (
            (bool(self.val_masks), "--val-masks", self.val is not None, "--val"),
            (self.worst is not None, "--worst", self.sensitivity is not None, "--sensitivity"),
        ):
            if given and not possible:
                raise UsageError(f"{option} needs {needed}")
