"""The parity gate: torch's simulation must agree with ONNX Runtime on the exported file.

The two sum float32 in different orders, so a value on the edge between two codes may fall to either
side. Two rules:

* Predictions: equal on at least 99.5 % of the images whose two best classes are further apart than
  the drift explains.
* Codes: torch runs with ONNX Runtime's own quantized tensors as inputs of every step; the codes it
  finds at each quantizer must equal ONNX Runtime's except for scattered ties of one code. This
  locates a wrong scale, axis or op.

How far the two answers drift apart at the output (``margin_db``) is reported, and below 8 dB noted,
but it does not decide: in a deep network one tie makes others, so the drift grows with depth until
it approaches the rounding noise, and the smaller the systematic part of the quantization error, the
smaller the margin (docs/decisions.md has the measurement).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import fx

from trtq import ops
from trtq.data.answers import Kind, OutputComparison, compare_answers, percent_words
from trtq.data.metrics import Array, predictions, ratio_db
from trtq.errors import DataError, ExportError, ParityError
from trtq.export.divergence import first_divergence, same_answer
from trtq.export.feeds import concatenated
from trtq.export.ort import open_session, run_batch
from trtq.export.probe import Probe, QuantizerStats
from trtq.graph.feed import Feed, arrays_of, as_feed, channels_last, computed, count_of

MIN_EQUAL = 99.5
USUAL_MARGIN_DB = 8.0
LEAST_RUNTIME_DB = 0.0  # drift of ties grows with depth, but an answer of the other sign is none
FORCED_IMAGES = 4
DECISIVE = 6.0  # distance of the two best logits in units of the root mean square drift
MIN_AXES = 2
# of a selection's rows: those at its end, and those that rounding to two digits tells apart
MAX_OTHER_ROWS = 0.2


class ParityRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of the parity gate.

    Attributes:
        name: of the output.
        images: how many calibration images were compared.
        kind: what the output is; only ``classes`` and ``pixels`` have predictions.
        equal_predictions: share of equal predictions of simulation and ONNX Runtime, percent; None
            where there are none.
        near_ties: predictions that differ although nothing is wrong: their two best classes are
            closer than the drift.
        quantization_sqnr_db: signal to (float - simulation); None when they are equal.
        runtime_sqnr_db: signal to (simulation - ONNX Runtime); None when they are equal bit by bit.
        margin_db: how far the runtimes' difference is below the quantization error; None when
            either is zero.
        agreement: share of equal predictions of float and simulation, percent; None where there are
            none.
        equal: share of equal integers of float and simulation, percent; None for floats.
        cosine: of float and simulation over all values; None for integers, and where either is
            zero.
        comparable: float and simulation give the same shapes, all finite.
        constant: the float model gave the same answer for every image.
        first_divergence: the first quantizer whose codes differ by more than ties; None when there
            is none.
        passed: both rules hold.
        reason: which rule failed, empty when none did.
        others: the same of each further output.
    """

    name: str = "output"
    images: int
    kind: Kind = "classes"
    equal_predictions: float | None
    near_ties: int
    quantization_sqnr_db: float | None
    runtime_sqnr_db: float | None
    margin_db: float | None
    agreement: float | None
    equal: float | None = None
    cosine: float | None = None
    comparable: bool = True
    constant: bool = False
    first_divergence: str | None
    passed: bool
    reason: str = ""
    others: list[ParityRecord] = []

    @property
    def answers(self) -> list[OutputComparison]:
        """The comparison of every output."""
        return [self.answer, *(o.answer for o in self.others)]

    @property
    def answer(self) -> OutputComparison:
        """The comparison of the simulation's answers with the float model's."""
        return OutputComparison(
            name=self.name,
            kind=self.kind,
            sqnr_db=self.quantization_sqnr_db,
            cosine=self.cosine,
            agreement=self.agreement,
            equal=self.equal,
            finite=self.comparable,
            constant=self.constant,
        )


def check_parity(
    graph: fx.GraphModule,
    simulated: fx.GraphModule,
    exported: onnx.ModelProto,
    batches: Sequence[torch.Tensor | Feed],
    *,
    known: Kind | None = None,
    progress: Callable[[int], None] | None = None,
    seen: Callable[[Mapping[str, Array], Mapping[str, Array]], None] | None = None,
) -> tuple[ParityRecord, dict[str, QuantizerStats]]:
    """Compare float, simulation and exported file on ``batches``.

    The second result is what each activation quantizer did.

    Args:
        graph: captured, float.
        simulated: with fake-quantize calls.
        exported: the Q/DQ model.
        batches: a tensor, or one an input, samples first.
        known: what the first output is.
        progress: called with the number of images after each batch.
        seen: called with the outputs of the float model and of the simulation for each batch, by
            name.
    """
    session = open_session(exported)
    probe = Probe(simulated)
    names, answers = [o.name for o in session.get_outputs()], list[_Answers]()
    with torch.inference_mode():
        for batch in map(as_feed, batches):
            fast = channels_last(batch)
            answers.append(
                _Answers(
                    arrays_of(graph(*fast)),
                    arrays_of(probe.run(*fast)),
                    run_batch(session, arrays_of(batch)),
                )
            )
            if seen is not None:
                wanted, simulation, _ = (
                    dict(zip(names, side, strict=True)) for side in answers[-1]
                )
                seen(wanted, simulation)
            if progress:
                progress(count_of(batch))
    some = tuple(t[:FORCED_IMAGES] if t.ndim else t for t in as_feed(batches[0]))
    where = first_divergence(simulated, exported, some)
    records, count = list[ParityRecord](), sum(count_of(as_feed(b)) for b in batches)
    for i, name in enumerate(names):
        full, sim, run = (concatenated([batch[side][i] for batch in answers]) for side in range(3))
        record = judge(full, sim, run, where, None if i else known, name=name)
        records.append(msgspec.structs.replace(record, images=count))
    return _together(records), probe.stats()


class _Answers(NamedTuple):
    """Every output for one batch, in the order of the model.

    Attributes:
        full: of the float model.
        sim: of the simulation.
        run: of ONNX Runtime on the exported file.
    """

    full: list[Array]
    sim: list[Array]
    run: list[Array]


def _together(records: Sequence[ParityRecord]) -> ParityRecord:
    """Return the first output's record with the others in it; it fails where any of them does."""
    first, *others = records
    failed = next((r for r in others if not r.passed), None)
    reason = first.reason or (f"{failed.name}: {failed.reason}" if failed is not None else "")
    return msgspec.structs.replace(first, others=others, passed=not reason, reason=reason)


def require_same_float(
    graph: fx.GraphModule, exported: onnx.ModelProto, batch: torch.Tensor | Feed
) -> None:
    """Refuse a float file that does not compute what the graph computes.

    This check precedes any calibration.

    Args:
        graph: captured, float.
        exported: the same as ONNX.
        batch: some samples: a tensor, or one an input.

    Raises:
        ExportError: says how far apart the two are.
        DataError: the model cannot compute the samples.
    """
    feed, session = as_feed(batch), open_session(exported)
    _require_numbers(feed, [i.name for i in session.get_inputs()])
    answer = arrays_of(computed(graph, feed))
    runtime = run_batch(session, arrays_of(feed))
    pairs = zip(session.get_outputs(), answer, runtime, strict=True)
    differ = [(o.name, a, b) for o, a, b in pairs if not same_answer(a, b)]
    if differ and _selects(graph):
        differ = [d for d in differ if not _same_rows(*d[1:])]
        if differ and first_divergence(graph, exported, feed) is None:
            return  # equal values were selected in another order
    for name, wanted, got in differ:
        raise _differs("" if len(answer) == 1 else f" {name}", wanted, got)


def _require_numbers(feed: Feed, names: Sequence[str]) -> None:
    """Refuse samples with NaN: nothing can be compared on them.

    Raises:
        DataError: names the input.
    """
    for name, tensor in zip(names, feed, strict=True):
        count = int(torch.isnan(tensor).sum()) if tensor.is_floating_point() else 0
        if count:
            raise DataError(
                f"The first samples hold NaN in the input {name}",
                f"{count} of {tensor.numel()} values are NaN",
                "Check the data and their preprocessing",
            )


def _differs(name: str, wanted: Array, got: Array) -> ExportError:
    far = f"its output{name} is {list(got.shape)}, the model's {list(wanted.shape)}"
    if wanted.shape == got.shape:
        off = np.abs(np.subtract(wanted, got, dtype=np.float64)).max(initial=0.0)
        far = (
            f"outputs{name} differ by {off:.2e}, their largest value is "
            f"{np.abs(wanted).max(initial=0.0):.2e}"
        )
    return ExportError(
        "The float ONNX file does not compute what the model computes",
        far,
        "Write the ops that torch.onnx wrote (named above) with others, or report this: it is "
        "an error of trtq or of torch.onnx",
    )


def _selects(graph: fx.GraphModule) -> bool:
    """Whether a graph selects among its values.

    Where two values are nearly equal, rounding decides which comes first.
    """
    return any("selects" in ops.of(n).traits for n in graph.graph.nodes)


def _same_rows(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> bool:
    """Whether two answers share nearly all rows (along the last axis), in any order."""
    if wanted.ndim < MIN_AXES or wanted.shape[-1:] != got.shape[-1:]:
        return False
    size = max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
    a, b = (
        np.round(v.reshape(-1, v.shape[-1]).astype(np.float64) / size, 2) for v in (wanted, got)
    )
    missing = len({row.tobytes() for row in a} ^ {row.tobytes() for row in b})
    return missing <= max(2.0, MAX_OTHER_ROWS * len(a))


def judge(
    full: Array,
    sim: Array,
    run: Array,
    where: str | None,
    known: Kind | None = None,
    *,
    name: str = "output",
) -> ParityRecord:
    """Apply the gate's rules.

    Args:
        full: outputs of the float model, [N, ...].
        sim: of the simulation.
        run: of the runtime.
        where: what :func:`first_divergence` found.
        known: what the output is; predictions are compared where it is scores of classes.
        name: of the output.
    """
    quantized = compare_answers(name, full, sim, known)
    runtime = compare_answers(name, sim, run, known)
    drift = _Drift.of(sim, run, runtime)
    runtime_db = None
    if runtime.finite and runtime.kind != "indices":
        runtime_db = ratio_db(_squares(full), _squares(np.subtract(sim, run, dtype=np.float64)))
    margin = (
        None if runtime_db is None or quantized.sqnr_db is None else runtime_db - quantized.sqnr_db
    )
    reason = ""
    if not all(np.isfinite(a).all() for a in (full, sim, run)):
        reason = "the outputs are NaN or infinite"
    elif where is not None:
        reason = "given the same quantized tensors, torch and ONNX Runtime find different codes"
    else:
        reason = drift.reason or _far_apart(sim, run, runtime.equal, runtime_db)
    return ParityRecord(
        name=name,
        images=len(full) if full.ndim else 1,
        kind=quantized.kind,
        near_ties=drift.near_ties,
        equal_predictions=runtime.agreement,
        agreement=quantized.agreement,
        equal=quantized.equal,
        cosine=quantized.cosine,
        quantization_sqnr_db=quantized.sqnr_db,
        runtime_sqnr_db=_finite(runtime_db),
        margin_db=_finite(margin),
        comparable=quantized.finite,
        constant=quantized.constant,
        first_divergence=where,
        passed=not reason,
        reason=reason,
    )


class _Drift(NamedTuple):
    """Predictions of the simulation and the runtime that differ.

    Attributes:
        decided: those that were no near ties.
        near_ties: those whose two best classes are closer than the drift.
        allowed: how many decided ones may differ.
    """

    decided: int = 0
    near_ties: int = 0
    allowed: int = 0

    @classmethod
    def of(cls, sim: Array, run: Array, runtime: OutputComparison) -> _Drift:
        """Return the counts; all 0 where the outputs are no scores of classes.

        A prediction is decided where the simulation's two best classes are more than
        :data:`DECISIVE` times the root mean square difference of the two runtimes apart.

        Args:
            sim: of the simulation, [N, classes, ...].
            run: of the runtime, of the same shape.
            runtime: the comparison of the two.
        """
        if runtime.agreement is None:
            return cls()
        p_sim, p_run = predictions(sim), predictions(run)
        best = np.partition(sim, -2, axis=1)
        drift = float(np.sqrt(np.mean(np.square(np.subtract(sim, run, dtype=np.float64)))))
        decisive = best.take(-1, axis=1) - best.take(-2, axis=1) > DECISIVE * drift
        decided = int(((p_sim != p_run) & decisive).sum())
        # Below 200 predictions one near tie is more than 0.5 %: one is always allowed.
        allowed = max(1, math.floor((100.0 - MIN_EQUAL) / 100.0 * p_sim.size))
        return cls(decided, int((p_sim != p_run).sum()) - decided, allowed)

    @property
    def reason(self) -> str:
        """Why the gate fails, empty where it does not."""
        if self.decided <= self.allowed:
            return ""
        return (
            f"{self.decided} predictions differ that were no near ties, at most {self.allowed} may"
        )


def _far_apart(sim: Array, run: Array, equal: float | None, runtime_db: float | None) -> str:
    """Return why the answers of simulation and runtime are too far apart, empty if they are not."""
    if equal is not None and equal < MIN_EQUAL and (sim != run).sum() > 1:
        return (
            f"only {percent_words(equal, 2)} of the integers are equal, at least {MIN_EQUAL} % "
            "must be"
        )
    if runtime_db is not None and runtime_db < LEAST_RUNTIME_DB and sim.shape == run.shape:
        return f"torch and ONNX Runtime differ by more than the signal: {runtime_db:.1f} dB"
    return ""


def _squares(values: Array) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def _finite(value: float | None) -> float | None:
    return round(value, 3) if value is not None and math.isfinite(value) else None


def require_varying(record: ParityRecord) -> None:
    """Refuse a model whose answer does not depend on the image: nothing can be measured on it.

    Raises:
        ParityError: all answers are the same.
    """
    if record.constant:
        raise ParityError(
            "The model gives the same answer for every image",
            f"{record.images} calibration images, bit by bit the same output",
            "Check its weights and its checkpoint",
        )


def require_parity(record: ParityRecord) -> None:
    """Raise when the gate failed.

    Raises:
        ParityError: says which rule failed and the first quantizer where the two diverge.
    """
    if record.passed:
        return
    where = record.first_divergence
    place = (
        f"they part first at {where}"
        if where
        else "no single quantizer is the cause; ties of many quantizers add up"
    )
    raise ParityError(
        "The exported model does not compute what was simulated",
        f"{record.reason}; {place}",
        f"Keep that layer in float: --high-precision {where.rsplit('.', 1)[0]}"
        if where and "." in where
        else "Try another --calibrator, or more --calib-images",
    )
