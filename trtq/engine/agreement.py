"""After a build, compare what was built with the ONNX file.

Both compute the same images, with the runtimes available here.

The yardstick is the model in ONNX Runtime, every Q/DQ pair as written. Two things are compared with
it: the model that was really built (FP16 types, pairs taken out), in ONNX Runtime with every FP16
result rounded, and the engine, where its GPU is. A difference may be 6 dB above the quantization
error of the file itself, and must be 30 dB below the signal for a float file. When it exceeds that,
intermediate tensors are compared, and the first that differs is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from trtq.data.answers import Kind, OutputComparison, compare_answers, kind_in, percent_words
from trtq.data.metrics import Array, ratio_db, sqnr_words
from trtq.engine.audit import AUDITED
from trtq.engine.meaning import meaning_of
from trtq.engine.runner import OnnxRunner, Runner
from trtq.errors import AgreementError, TrtqError
from trtq.export.codes import count_qdq
from trtq.export.feeds import Given, concatenated, count_of
from trtq.export.fp16 import elem_types, has_half, rounded
from trtq.export.lint_view import View
from trtq.export.onnx_file import get_metadata
from trtq.export.strip import strip_qdq
from trtq.onnx_node import label_of, names_of
from trtq.tasks import Figure

FLOAT_SQNR_DB, LEAST_SQNR_DB = 30.0, 10.0  # the latter however bad the file itself is
# FP16 between two quantizers moves a value near the end of the range by 3 % of a code: as many
# codes flip, each by a whole step, which is a third of the quantization noise for every layer, and
# flips make flips.
SLACK_DB = 6.0
PARTING_DB = 10.0
MIN_EQUAL = 99.0  # percent of integers: where two classes tie, rounding decides
Outputs = dict[str, Array]
Opener = Callable[[onnx.ModelProto], Runner]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One runner against the file in ONNX Runtime.

    Attributes:
        runner: what ran.
        agreement: share of equal predictions of the first output, percent; None where it is no
            scores of classes.
        sqnr_db: signal to difference of the worst output; None when there is none, or when one is
            missing or not finite.
        outputs: each by itself.
        finite: every output is there and finite.
        margin_db: how far the difference is below the file's own quantization error; None for a
            float file.
        alike: what the task of the file says of the answers against the file's; unset without one,
            and for inputs that are no real data.
        limit: of the first of these figures, and how it was set.
        parts_at: the first tensor that differs, "" when it agrees.
        passed: within the margin.
    """

    runner: str
    agreement: float | None
    sqnr_db: float | None
    outputs: list[OutputComparison] = []
    finite: bool
    margin_db: float | None
    alike: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    limit: str | msgspec.UnsetType = msgspec.UNSET
    parts_at: str
    passed: bool

    @property
    def words(self) -> str:
        """The figures as a person reads them."""
        return ", ".join([*(f.words for f in self.alike or ()), self._numbers])

    @property
    def _numbers(self) -> str:
        if len(self.outputs) == 1 and self.finite:
            return self.outputs[0].words
        first = "" if self.agreement is None else f"agreement {percent_words(self.agreement, 2)}, "
        worst = sqnr_words(self.sqnr_db, finite=self.finite)
        return f"{first}{worst}" + (
            f" of the worst of {len(self.outputs)} outputs" if len(self.outputs) > 1 else ""
        )


class AgreementRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison: of what, on how many images, and what was left out.

    Attributes:
        images: how many.
        yardstick: what the others were compared with.
        comparisons: one for each runner.
        missing: what did not run, and why.
    """

    images: int
    yardstick: str
    comparisons: list[Comparison]
    missing: list[str]

    @property
    def summary(self) -> str:
        """A few words for a person."""
        phrases = [f"{c.runner}: {c.words}" for c in self.comparisons]
        return "; ".join([*(phrases or ["nothing but the file itself ran"]), *self.missing])


def check_agreement(
    model: onnx.ModelProto,
    source: onnx.ModelProto,
    images: Sequence[Given],
    *,
    engine: Runner | None,
    rebuild: Opener,
    missing: Sequence[str],
    yardstick: str,
    real: bool = True,
    task: str | None = None,
) -> AgreementRecord:
    """Compare on the same images.

    Args:
        model: the ONNX file.
        source: the model that was built.
        images: batches: arrays by input name, or one array for a model of one input.
        engine: runs the very engine that was built; None where it cannot run.
        rebuild: builds a model like ``source`` with other outputs and runs it, to find where an
            engine parts.
        missing: why something is not compared, for the record.
        yardstick: what ``model`` is, for the record.
        real: the images are no random numbers, so that answers are meaningful.
        task: what the answers mean; default: what the file says.
    """
    wanted, known = answers(OnnxRunner(model), images), kind_in(get_metadata(model))
    plain = answers(OnnxRunner(strip_qdq(model)), images) if count_qdq(model) else None
    error = None if plain is None else worst_sqnr(plain, wanted)
    meaning = meaning_of(model, images[0], wanted, plain, task) if real else None
    runners: list[tuple[str, Runner, Opener]] = []
    if source.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True):
        label = "what was built, in ONNX Runtime" + (
            ", every FP16 result rounded" if has_half(source) else ""
        )
        runners.append((label, run_rounded(source), run_rounded))
    if engine is not None:
        runners.append(("engine", engine, rebuild))
    comparisons = []
    for name, runner, opener in runners:
        got = answers(runner, images)
        comparison = compare(name, wanted, got, error, known)
        if meaning is not None and comparison.finite:
            alike = meaning.alike(got)
            passed = comparison.passed and meaning.holds(alike)
            limit = meaning.limit(alike) or msgspec.UNSET
            comparison = msgspec.structs.replace(
                comparison, alike=alike, passed=passed, limit=limit
            )
        if not comparison.passed:
            comparison = msgspec.structs.replace(
                comparison, parts_at=_located(opener, model, source, images[0])
            )
        comparisons.append(comparison)
    return AgreementRecord(
        images=sum(map(count_of, images)),
        yardstick=yardstick,
        comparisons=comparisons,
        missing=list(missing),
    )


def run_rounded(model: onnx.ModelProto) -> Runner:
    """Return a model in ONNX Runtime, every FP16 result rounded as hardware does.

    A model without FP16 types runs as it is.
    """
    return OnnxRunner(rounded(model) if has_half(model) else model)


def require_agreement(record: AgreementRecord) -> None:
    """Raise when something that ran computes something else.

    Raises:
        AgreementError: says how far apart, and the first tensor that differs.
    """
    for c in record.comparisons:
        if not c.passed:
            far = "an output is missing, NaN or infinite"
            if c.sqnr_db is not None:
                far = f"the difference is {-c.sqnr_db:.1f} dB of the signal"
                far = ", ".join([*(f.words for f in c.alike or ()), far])
            elif c.finite:
                far = c.words
            expectation = f" (expected {c.limit})" if c.limit else ""
            own = (
                ""
                if c.margin_db is None
                else f", {-c.margin_db:.1f} dB above the quantization error of the file itself"
            )
            raise AgreementError(
                "The engine does not compute what the ONNX file says",
                f"{c.runner}: {far}{expectation}{own}; they part first at {c.parts_at}",
                "Keep that layer in float: trtq quantize ... --high-precision LAYER, or build "
                "with --precision fp32",
            )


def answers(runner: Runner, images: Sequence[Given]) -> Outputs:
    """Return every output by name over all images.

    Args:
        runner: of a file or an engine.
        images: batches, at least one: arrays by input name, or one array.

    Returns:
        [N, ...] over all batches: integers in their own dtype, the others float64. An output whose
        shapes differ between batches, such as texts of several lengths, is flat.
    """
    outputs = [runner.run(b) for b in images]
    return {n: as_float64(concatenated([np.atleast_1d(m[n]) for m in outputs])) for n in outputs[0]}


def as_float64(values: Array) -> Array:
    """Return floats in double precision, integers as they are."""
    return values if values.dtype.kind in "iub" else values.astype(np.float64)


def worst_sqnr(wanted: Outputs, got: Outputs) -> float:
    """Return the lowest SQNR over the outputs, dB.

    Args:
        wanted: of the yardstick, by name.
        got: by the same names.

    Returns:
        10 log10(sum of wanted^2 / sum of (wanted - got)^2): 20 dB where the difference is a tenth
        of the signal. It is infinite for equal floats and for any integers, and minus infinity
        where an output is missing, of another shape or not finite.
    """
    return min(_sqnr_of(w, got.get(n)) for n, w in wanted.items())


def _sqnr_of(wanted: Array, got: Array | None) -> float:
    if got is None or got.shape != wanted.shape:
        return -math.inf
    return math.inf if wanted.dtype.kind in "iub" else _sqnr(wanted, got)


def compare(
    name: str, wanted: Outputs, got: Outputs, error: float | None, known: Kind | None = None
) -> Comparison:
    """Compare outputs with the yardstick's.

    A float file must reach :data:`FLOAT_SQNR_DB`; a Q/DQ file the SQNR of its own quantization less
    :data:`SLACK_DB`, at least :data:`LEAST_SQNR_DB` and at most :data:`FLOAT_SQNR_DB`. A file that
    keeps 22 dB asks for 16 dB. For integers :data:`MIN_EQUAL` percent must be equal.

    Args:
        name: of what gave ``got``, for the record.
        wanted: of the yardstick.
        got: by the same names.
        error: the file's own quantization error as SQNR, dB; None for a float file.
        known: what the first output is.
    """
    sqnr = worst_sqnr(wanted, got)
    floor = (
        FLOAT_SQNR_DB if error is None else min(max(error - SLACK_DB, LEAST_SQNR_DB), FLOAT_SQNR_DB)
    )
    comparable = sqnr > -math.inf  # the same shapes, and finite
    nothing = np.empty(0)
    outputs = [
        compare_answers(n, w, got.get(n, nothing), None if i else known)
        for i, (n, w) in enumerate(wanted.items())
    ]
    whole = all(o.equal is None or o.equal >= MIN_EQUAL for o in outputs)
    margin = sqnr - error if error is not None else math.inf
    return Comparison(
        runner=name,
        agreement=outputs[0].agreement,
        outputs=outputs,
        sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None,
        finite=comparable,
        margin_db=round(margin, 3) if math.isfinite(margin) else None,
        parts_at="",
        passed=sqnr >= floor and whole,
    )


def _sqnr(wanted: Array, got: Array) -> float:
    if not (np.isfinite(wanted).all() and np.isfinite(got).all()):
        return -math.inf
    return ratio_db(float(np.sum(wanted**2)), float(np.sum((wanted - got) ** 2)))


def _located(opener: Opener, model: onnx.ModelProto, source: onnx.ModelProto, batch: Given) -> str:
    try:
        return first_parting(opener, model, source, batch)
    except (
        TrtqError
    ) as exc:  # what is wrong was found; that its place was not is no reason to hide it
        return f"a tensor that could not be found ({exc.message})"


def first_parting(
    opener: Opener, model: onnx.ModelProto, source: onnx.ModelProto, batch: Given
) -> str:
    """Return the first tensor on the way that differs by much more than those before it.

    Results of convolutions and products, and what every Q/DQ pair gives, are made outputs of both;
    in an engine that can change what is fused, so an answer of "the output" means that the tapped
    engine computes the right thing.

    Args:
        opener: builds and runs a model like ``source``.
        model: the yardstick, run in ONNX Runtime.
        source: the model that was built.
        batch: samples to run.

    Returns:
        The label of the node whose result is below :data:`FLOAT_SQNR_DB`, and :data:`PARTING_DB`
        below the lowest before it; else words for the output.

    Raises:
        TrtqError: one of the two cannot be built or run.
    """
    taps = _taps(model, source)
    ours, theirs = (
        run(_tapped(m, list(taps))).run(batch) for run, m in ((OnnxRunner, model), (opener, source))
    )
    best = math.inf
    for tensor, name in taps.items():
        sqnr = _sqnr(ours[tensor].astype(np.float64), theirs[tensor].astype(np.float64))
        if sqnr < FLOAT_SQNR_DB and sqnr < best - PARTING_DB:
            return str(name)
        best = min(best, sqnr)
    return "the output, after the last of them"


def _taps(model: onnx.ModelProto, source: onnx.ModelProto) -> dict[str, str]:
    """Return the tensors to compare that both files have, with the names of their nodes."""
    source_tensors = {o for n in source.graph.node for o in n.output}
    view = View(model)

    def is_tap(node: onnx.NodeProto) -> bool:
        if node.op_type == "DequantizeLinear":
            return not view.is_weight(node.output[0])
        return node.op_type in AUDITED

    return {
        n.output[0]: label_of(n)
        for n in model.graph.node
        if n.output[0] in source_tensors and is_tap(n)
    }


def _tapped(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    types = elem_types(model)
    known = names_of(model.graph.output)
    result.graph.output.extend(
        helper.make_tensor_value_info(t, types.get(t, TensorProto.FLOAT), None)
        for t in tensors
        if t not in known
    )
    return result
