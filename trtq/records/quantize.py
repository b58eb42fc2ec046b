"""The result of ``trtq quantize``."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from trtq.artifact import Environment, FileRecord, Record
from trtq.data.preprocess import Preprocess
from trtq.export.parity import ParityRecord
from trtq.tasks.base import Figure

WIDTHS = {"w8a8": "INT8", "mixed": "mixed widths, INT8 containers"}


class QuantizerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One quantizer in quantize.json.

    Attributes:
        name: such as ``layer1.0.conv1.input``.
        layer: the op it belongs to.
        role: what the tensor is to the op, such as ``input`` or ``weight``.
        format: label of the format, such as ``int8``.
        granularity: ``per-tensor``, ``per-channel`` or ``per-block``.
        amax, amax_min: largest and smallest range over the channels or blocks; equal for one range.
        channels: how many ranges there are; None for one of the whole tensor.
        sqnr_db: of the tensor itself, dB; None where its values are exact.
        saturated: share of values beyond the outermost code, 0 to 1.
        low, high: smallest and largest value seen.
        histogram: counts of magnitudes in bins of equal width from 0 on; empty where none were
            kept.
        histogram_limit: upper end of the last bin.
        runs: ``engine``: TensorRT has the kernel; ``ops``: extra float ops run; ``simulated``:
            there is no kernel anywhere.
        extra_ops: how many.
        computes_in: what the engine multiplies with.
    """

    name: str
    layer: str
    role: str
    format: str
    granularity: str
    amax: float
    amax_min: float
    channels: int | None
    sqnr_db: float | None
    saturated: float
    low: float
    high: float
    histogram: list[int]
    histogram_limit: float
    runs: str
    extra_ops: int
    computes_in: str


class FloatRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor left in float in quantize.json.

    Attributes:
        name: of its quantizer.
        layer: the op it belongs to.
        role: what the tensor is to the op.
        reason: why it is not quantized.
        low, high: smallest and largest value seen; None where it was not observed, as for a weight.
    """

    name: str
    layer: str
    role: str
    reason: str
    low: float | None
    high: float | None


class MethodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One quantization method that was applied.

    Attributes:
        name: as ``--method`` takes it.
        label: where it runs: ``engine``, ``folded``, ``ops`` or ``simulated``.
        source: of the method, such as a paper.
        arguments: by name.
        did: what it reports of itself; the keys depend on the method.
    """

    name: str
    label: str
    source: str
    arguments: dict[str, str | int | float | bool]
    did: dict[str, Any]


class TryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt and what the quick check saw.

    Attributes:
        step: what was done, for a person.
        figures: what the task says of the answers against the float model's; unset without a task.
        agreement: equal predictions, percent; None where outputs are no scores of classes.
        equal: equal integers, percent; None for float outputs.
        sqnr_db: of the outputs, dB; None where there is no difference, or none that can be
            computed.
        exact: the outputs do not differ from the float ones.
    """

    step: str
    figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    agreement: float | None
    equal: float | None = None
    sqnr_db: float | None
    exact: bool = False


class ExtremeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor whose channel ranges differ by orders of magnitude.

    Attributes:
        tensor: name of the activation.
        layers: that read it.
        ratio: largest over low channel range.
            A tenth of the channels is below the low range.
        sqnr_db: of the layers' outputs at 8 bits before anything is done, mean of outputs.
        action: ``balanced`` by factors that move into the next layer; ``scaled`` by a method that
            was chosen anyway; ``float``: the layers remain in float.
        why: of the action.
    """

    tensor: str
    layers: list[str]
    ratio: float
    sqnr_db: float
    action: Literal["balanced", "scaled", "float"]
    why: str

    @property
    def words(self) -> str:
        """The tensor for a person."""
        return (
            f"the channel ranges of {self.tensor} differ {self.ratio:,.0f}:1 (largest to lowest "
            f"tenth; {', '.join(self.layers)} read it): {self.action}, {self.why}"
        )


class PresetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The preset: what was applied, and what was tried.

    More is tried when the quick check fails.

    Attributes:
        family: of the model.
        reason: why it is of that family.
        methods: of the attempt that was written.
        check: what was asked of it, and on what.
        passed: whether it holds.
        tried: in order; the first is the plain preset.
        taken: step of the attempt that was written.
        high_precision: patterns of what it leaves in float.
        attention: its ``--attention``.
        extremes: tensors whose channel ranges differ by orders of magnitude; unset for none.
    """

    family: str
    reason: str
    methods: list[str]
    check: str
    passed: bool
    tried: list[TryRecord]
    taken: str
    high_precision: list[str]
    attention: str
    extremes: list[ExtremeRecord] | msgspec.UnsetType = msgspec.UNSET


class RecipeStep(msgspec.Struct, frozen=True, kw_only=True):
    """One component of a paper's recipe.

    Attributes:
        name: of the component; the first is plain quantization.
        source: of the idea.
        kept: whether the result has it.
        distance: of the answers to held-out samples from the float model's, beside the components
            that were kept before; None where it was not tried.
        weight_bytes: of the layers' weights, two bytes for each value in float; None where it was
            not tried.
        reason: why it was not tried, "" where it was.
    """

    name: str
    source: str
    kept: bool
    distance: float | None = None
    weight_bytes: float | None = None
    reason: str = ""

    @property
    def words(self) -> str:
        """The component for a person."""
        if self.distance is None:
            return f"{self.name}: not tried, {self.reason}"
        return f"{self.name}: {self.distance:.3g} ({'kept' if self.kept else 'left out'})"


class RecipeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A paper's recipe, component by component.

    Attributes:
        name: as ``--recipe-quant`` takes it.
        source: the paper.
        held_out: calibration samples that judged the components and did not calibrate them.
        steps: plain quantization, then the components in order.
    """

    name: str
    source: str
    held_out: int
    steps: list[RecipeStep]

    @property
    def words(self) -> str:
        """One line for a person."""
        first, *others = self.steps
        steps = "; ".join(s.words for s in others)
        return (
            f"recipe {self.name}: distance to the float model's answers on {self.held_out} "
            f"held-out samples: {first.name} {first.distance:.3g}; {steps}"
        )


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that trtq reads of ``model`` in quantize.json.

    Attributes:
        name: as it was given, or the class of a module.
        bits: ``w8a8``, another width, or ``mixed``.
        weights: where they are from, in words.
        weights_sha256: of the captured weights, 64 hex digits.
        weight_values: number of values of each layer's weight.
    """

    name: str
    bits: str
    weights: str
    weights_sha256: str
    weight_values: dict[str, int] = {}


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that trtq reads of ``data`` in quantize.json.

    Attributes:
        source: the data, as they were named.
        ids_digest: of the names of all images; None for other samples.
        calibration_sha256: content of each calibration sample, 16 hex digits; None where unknown.
        random: true for random inputs.
    """

    source: str
    ids_digest: str | None = None
    calibration_sha256: list[str] | str | None = None
    random: object = None


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """How ranges were computed.

    Attributes:
        calibrator: of activations.
        images: how many.
        cache: what the calibration cache had, for a person.
        weights: how weights got theirs.
    """

    calibrator: str
    images: int
    cache: str
    weights: str


def _format_words(label: str) -> str:
    """Return what a format that all tensors have is called in a sentence, "" for INT8 and others.

    >>> _format_words("nvfp4"), _format_words("int4:128")
    ('NVFP4', 'INT4 in blocks of 128 (products in float)')
    """
    width, _, block = label.partition(":")
    if block:
        return f"{width.upper()} in blocks of {block} (products in float)"
    return label.upper() if label in ("fp8", "nvfp4") else ""


class QuantizeRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq quantize``; written as quantize.json.

    Attributes:
        model: :class:`ModelFacts`, and what else is known of it.
        data: :class:`DataFacts`, and what else samples say of themselves.
        preprocess: how images became the input; None for inputs.
        calibration: how ranges were computed.
        preset: None where none was asked for.
        recipe: of a paper (``--recipe-quant``); unset without.
        methods: that were applied, in order.
        quantizers: of quantized tensors, in graph order.
        left_in_float: tensors that a quantizer could have had.
        parity: torch against ONNX Runtime on the exported file.
        task: what the outputs mean; unset where nothing says so.
        alike: what the task says of the answers against the float model's, without labels.
        files: written, by name.
        notes: every automatic choice.
        seconds: by step.
        environment: software and machine.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    preprocess: Preprocess | None
    calibration: Calibrated
    preset: PresetRecord | None
    recipe: RecipeRecord | msgspec.UnsetType = msgspec.UNSET
    methods: list[MethodRecord]
    quantizers: list[QuantizerRecord]
    left_in_float: list[FloatRecord]
    parity: ParityRecord
    task: str | msgspec.UnsetType = msgspec.UNSET
    alike: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    files: dict[str, FileRecord]
    notes: list[str]
    seconds: dict[str, float]
    environment: Environment

    def __post_init__(self) -> None:
        msgspec.convert(self.model, ModelFacts)
        msgspec.convert(self.data, DataFacts)

    @property
    def facts(self) -> ModelFacts:
        """The model."""
        return msgspec.convert(self.model, ModelFacts)

    @property
    def samples(self) -> DataFacts:
        """The samples of the calibration."""
        return msgspec.convert(self.data, DataFacts)

    @property
    def summary(self) -> str:
        """One line: what was quantized, what was not, and whether torch and ONNX Runtime agree."""
        p = self.parity
        bits = self.facts.bits
        width = WIDTHS.get(bits, f"{bits.upper()}, INT8 containers")
        labels = {q.format for q in self.quantizers}
        if len(labels) == 1 and (named := _format_words(*labels)):
            width = named
        elif not any(q.computes_in.startswith(("INT8", "FP")) for q in self.quantizers):
            width = "codes that no engine has a kernel for (it computes in float)"
        return (
            f"{len(self.quantizers)} tensors in {width}, {len(self.left_in_float)} left in float; "
            f"output against float on {p.images} {self.images_words}: {self._alike}"
            f"{p.answer.words}; "
            f"parity torch/ONNX Runtime {'passed' if p.passed else 'FAILED'}{self._extremes}"
            f"{self._tried()}"
        )

    @property
    def _extremes(self) -> str:
        extremes = (self.preset.extremes if self.preset is not None else None) or []
        if not extremes:
            return ""
        worst = max(e.ratio for e in extremes)
        return f"; {len(extremes)} tensors with extreme channels (up to {worst:,.0f}:1)"

    @property
    def _alike(self) -> str:
        known = "agreement" if self.parity.answer.agreement is not None else ""
        return "".join(f"{f.words}, " for f in self.alike or () if f.name != known)

    @property
    def images_words(self) -> str:
        """The source of the ranges in words."""
        if self.samples.random:
            return "random inputs (NOT CALIBRATED)"
        return f"calibration {'samples' if self.preprocess is None else 'images'}"

    def _tried(self) -> str:
        more = self.preset.tried[1:] if self.preset is not None else []
        if not more or self.preset is None:
            return ""
        last = (
            "which was enough"
            if self.preset.passed
            else f"NONE of which was enough: {self.preset.taken} was taken"
        )
        return f"; fell back on {', '.join(t.step for t in more)}, {last}"
