"""The rows of a report, from the records of one run; shared by the terminal and the page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trtq.artifact import size_words
from trtq.bench.record import BenchRecord, BenchRow, Verdict
from trtq.data.answers import OutputComparison, percent_words
from trtq.data.metrics import sqnr_words
from trtq.engine.manifest import EngineManifest
from trtq.records.evaluate import EvaluateRecord
from trtq.report.contents import RunRecords, machine_of, read_run
from trtq.tasks import Figure

INT8_SIZE = "computed: 4 bytes a value, 1 where the layer is quantized"
SIMULATED_SIZE = (
    "computed: 1 byte a value of a quantized layer, as an archive could store it; the engine "
    "holds floats"
)
TITLES = {"mIoU": "Mean intersection over union", "top-1": "Top-1 accuracy"}
UNSHOWN = ("top-5", "pixel accuracy", "agreement")  # top-5 and pixels: in the record
NOT_COMPARABLE = "not comparable: shapes differ, or values are NaN or infinite"


class Row(NamedTuple):
    """One line of the table: FP32 against INT8.

    Attributes:
        label: what it is of.
        fp32: of the float file, with its unit; "" where it has none.
        int8: of the quantized one.
        how: how the two were measured.
    """

    label: str
    fp32: str
    int8: str
    how: str


class Score(NamedTuple):
    """A score of the evaluated file, and of the float one where that was measured.

    Attributes:
        title: for a person.
        own: of the evaluated file.
        reference: of the float one; None where it was not measured.
    """

    title: str
    own: Figure
    reference: Figure | None

    @property
    def change(self) -> float | None:
        """Points against the float file's; below 0 it is worse."""
        if self.reference is None or self.reference.value is None:
            return None
        return self.own.gain(self.reference.value)


@dataclass(slots=True)
class RunSummary(RunRecords):
    """Records of one folder.

    Attributes:
        width: INT8, or the widths below it.
        simulated: no tensor of it runs on integer kernels.
        rows: of the table.
        verdict: one sentence.
        speed: another one, about latency.
    """

    width: str = "INT8"
    simulated: bool = False
    rows: tuple[Row, ...] = ()
    verdict: str = ""
    speed: str = ""


def summarize_run(folder: Path) -> RunSummary:
    """Return the summary of the records in ``folder``.

    Args:
        folder: as for :func:`trtq.report.contents.read_run`.

    Raises:
        ArtifactError: there is no quantize.json, or a record is damaged.
    """
    records = read_run(folder)
    bits = records.model.bits
    run = RunSummary(
        **{name: getattr(records, name) for name in RunRecords.__slots__},
        width={"w8a8": "INT8", "mixed": "mixed widths"}.get(bits, bits.upper()),
        simulated=not any(
            q.computes_in.startswith(("INT8", "FP8")) for q in records.quantize.quantizers
        ),
    )
    run.rows = (*_accuracy_rows(run), *_size_rows(run), *_latency_rows(run))
    run.verdict, run.speed = _verdict(run), _speed(run)
    return run


def _calibration_row(run: RunSummary) -> tuple[list[Row], str]:
    p = run.quantize.parity
    where = f"{p.images} {run.quantize.images_words}"
    return _against_float(p.answer, f"{where}, torch simulation"), where


def _accuracy_rows(run: RunSummary) -> list[Row]:
    e = run.evaluate
    if e is None:
        return _calibration_row(run)[0]
    seen = e.calibration_images
    overlap = (
        "overlap with calibration unknown"
        if seen is None
        else f"{seen or 'none'} of them used for calibration"
    )
    how = f"{e.images_words}, {overlap}; {e.runtime}"
    rows = [Row(s.title, _reference(e, s), _value(s.own), how) for s in _shown(e)]
    outputs = _outputs(e)
    for output in outputs:
        named = f" ({output.name})" if len(outputs) > 1 else ""
        rows += [r._replace(label=f"{r.label}{named}") for r in _against_float(output, how)]
    return rows


def _outputs(e: EvaluateRecord) -> list[OutputComparison]:
    """Return the outputs against the reference's; older records have figures of the first only."""
    if e.outputs or e.agreement is None:
        return e.outputs
    first = OutputComparison(
        name="output",
        kind="classes",
        sqnr_db=e.sqnr_db,
        cosine=None,
        agreement=e.agreement,
        equal=None,
    )
    return [first]


def _scores(e: EvaluateRecord) -> list[Score]:
    """Return the scores against targets, the one that counts first."""
    alike = {f.name for f in e.agreement_figures or ()}
    pairs = [
        (own, theirs)
        for name, (own, theirs) in e.scores.items()
        if own.value is not None and not (theirs is None and name in alike)
    ]
    known = [Score(TITLES.get(own.name, own.name), own, theirs) for own, theirs in pairs]
    return [s for s in known if s.own.name not in UNSHOWN]


def _shown(e: EvaluateRecord) -> list[Score]:
    """Return the scores that have a row: those against targets, then those against the float."""
    alike = [
        Score(f"{f.name} with FP32" if not f.name.startswith("agreement") else f.name, f, None)
        for f in e.agreement_figures or ()
        if f.value is not None
    ]
    labelled = _scores(e)
    if not e.figures:  # of the fields: top-1 is above mIoU
        labelled.reverse()
    return [*labelled, *alike]


def _against_float(answer: OutputComparison, how: str) -> list[Row]:
    """Return the rows of one output against the float model's."""
    if not answer.finite:
        return [Row("Outputs", "", NOT_COMPARABLE, how)]
    if answer.equal is not None:
        return [Row("Equal integers", "", percent_words(answer.equal, 2), how)]
    sqnr = Row("SQNR of the outputs", "", sqnr_words(answer.sqnr_db), how)
    if answer.agreement is not None:
        return [Row("Agreement with FP32", "", percent_words(answer.agreement, 2), how), sqnr]
    if answer.cosine is None:
        return [sqnr]
    return [sqnr, Row("Cosine of the outputs", "", f"{answer.cosine:.6f}", how)]


def _reference(e: EvaluateRecord, score: Score) -> str:
    """Return the float file's score; "" for what compares the two files."""
    alike = {f.name for f in e.agreement_figures or ()}
    if score.reference is None and score.own.name in alike:
        return ""
    return _value(score.reference)


def _value(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "not measured"
    return figure.amount


def bits_of(label: str) -> int:
    """Return the width that a format's label names.

    Args:
        label: as :attr:`trtq.quant.formats.Format.label`; one of another form counts as 8.

    >>> [bits_of(v) for v in ("int8", "int4[-1,14]", "log2-8", "asymmetric-6", "fp8")]
    [8, 4, 8, 6, 8]
    """
    match = re.match(r"[a-z]+2?-?(\d)", label)
    return int(match.group(1)) if match is not None else 8


def weight_bytes(run: RunRecords, *, packed: bool = False) -> tuple[float, float]:
    """Return the bytes of the weights as floats, and with codes for quantized layers.

    Both are zero where the weights were not counted.

    Args:
        run: its quantizers name the formats.
        packed: codes take their own width; else the byte that an INT8 container has for each.
    """
    widths = {
        q.layer: bits_of(q.format) if packed else 8
        for q in run.quantize.quantizers
        if q.role == "weight"
    }
    weights = run.model.weight_values
    return 4.0 * sum(weights.values()), sum(
        n * widths.get(layer, 32) / 8 for layer, n in weights.items()
    )


def measure_of(run: RunRecords) -> tuple[Figure, Figure] | None:
    """Return the score that models are compared by, of the quantized and of the float file.

    It is ``mAP``, ``mIoU``, ``top-1`` ...; None without labels.

    Args:
        run: its records.
    """
    for score in _scores(run.evaluate) if run.evaluate is not None else ():
        if score.change is not None and score.reference is not None:
            return score.own, score.reference
    return None


def _size_rows(run: RunSummary) -> list[Row]:
    full, small = weight_bytes(run)
    how = SIMULATED_SIZE if run.simulated else INT8_SIZE
    rows = [Row("Weights", size_words(full), size_words(small), how)] if full else []
    by_device: dict[str, dict[str, EngineManifest]] = {}
    for m in run.engines.values():
        by_device.setdefault(m.device, {})["int8" if m.has_codes else m.precision] = m
    return rows + [_engine_row(device, engines) for device, engines in by_device.items()]


def _engine_row(device: str, engines: dict[str, EngineManifest]) -> Row:
    """Return the sizes of the engines for one device, by precision."""
    base, coded = engines.get("fp32") or engines.get("fp16"), engines.get("int8")
    suffix = "" if "fp32" in engines else " (FP16)"
    first = next(iter(engines.values()))
    ahead = first.builder.backend == "tensorrt-rtx"
    place = "built without the GPU" if ahead else "built on that GPU"
    return Row(
        f"Engine for {device}",
        size_words(base.engine_bytes) + suffix if base else "",
        size_words(coded.engine_bytes) if coded else "",
        f"file size; {first.built_with}, {place}",
    )


def _latency_rows(run: RunSummary) -> list[Row]:
    if not run.bench:
        return []
    rows = {key: record.rows[0] for key, record in run.bench.items()}
    first, record = next(iter(rows.values())), next(iter(run.bench.values()))
    on_cpu = first.device.startswith("CPU")
    where = f", {machine_of(record)}: says nothing about a GPU" if on_cpu else ""
    how = f"median and 95 % interval, batch {first.batch}, on the {first.device}{where}"
    cells = {key: _median(rows.get(key)) for key in ("fp32", "qdq")}
    label = f"{first.device.split(' ')[0]} latency"
    return [Row(label, cells["fp32"], cells["qdq"], how), *_verdict_rows(run.bench.values())]


def _median(row: BenchRow | None) -> str:
    """Return the median of a row with its interval, "" where there is none."""
    median = row.e2e.median if row is not None and row.e2e is not None else None
    if row is None or median is None or median.value is None:
        return ""
    interval = "" if median.low is None else f" [{median.low:.2f}, {median.high:.2f}]"
    return f"{median.value:.2f} ms{interval}" + ("" if row.valid else " (NOT VALID)")


def _verdict_rows(records: Iterable[BenchRecord]) -> list[Row]:
    return [_verdict_row(v) for record in records for v in record.verdicts]


def _verdict_row(v: Verdict) -> Row:
    valid = "" if v.valid else " (NOT VALID)"
    return Row(
        "INT8 against float",
        "",
        f"{v.outcome}: x {v.ratio:.3f} [{v.low:.3f}, {v.high:.3f}]{valid}",
        f"{v.second} against {v.first}, {v.loads} loads of each taking turns, "
        f"noise {v.noise:.1%}, {v.device}",
    )


def _speed(run: RunSummary) -> str:
    """Return the latency of both files, and where it was measured."""
    rows = _latency_rows(run)
    if not rows:
        return "Latency was not measured."
    latency, *outcomes = rows
    cells = ((run.width, latency.int8), ("FP32", latency.fp32))
    figures = ", ".join(f"{name} {cell}" for name, cell in cells if cell)
    taking_turns = "".join(f" {row.label}: {row.int8}." for row in outcomes)
    return f"{latency.label}: {figures}; {latency.how}.{taking_turns}"


def _verdict(run: RunSummary) -> str:
    return " ".join([_what(run), *_kept(run), *_covered(run)]) + "."


def _what(run: RunSummary) -> str:
    """Return the model, its width and the methods."""
    methods = [m.name for m in run.quantize.methods]
    if run.training is not None:
        methods.append("training")
    container = "" if run.width == "INT8" else " (in INT8 containers)"
    if run.simulated:
        container = " (simulated: engines compute it in float)"
    named = f" with {', '.join(methods)}" if methods else ""
    return f"{run.model.name} in {run.width}{container}{named}"


def _kept(run: RunSummary) -> list[str]:
    """Return how much of the float model's accuracy is left."""
    e = run.evaluate
    if e is None:
        return [_kept_in_calibration(run)]
    measure, where = measure_of(run), f"on {e.images_words}"
    if measure is not None:
        own, theirs = measure
        assert theirs.value is not None
        change = f"{own.gain(theirs.value):+.2f} points of {own.name}"
        if e.agreement is None:
            return [f"has {change} against float {where}"]
        return [f"keeps {percent_words(e.agreement)} of its predictions ({change} {where})"]
    alike = next((f for f in e.agreement_figures or () if f.value is not None), None)
    if alike is not None:
        return [f"has, against float, {alike.words} {where}"]
    if e.agreement is not None:
        return [f"keeps {percent_words(e.agreement)} of its predictions {where}"]
    if e.outputs:
        first = _against_float(e.outputs[0], "")[0]
        return [f"has, against float, {first.label}: {first.int8}, {where}"]
    parts = [_kept_in_calibration(run)]
    for alone in _scores(e)[:1]:
        parts.append(
            f"and has {_value(alone.own)} {alone.own.name} {where} "
            "(the float model was not measured)"
        )
    return parts


def _kept_in_calibration(run: RunSummary) -> str:
    rows, where = _calibration_row(run)
    if run.quantize.parity.agreement is not None:
        return f"keeps {rows[0].int8} of its predictions on {where}"
    return f"has, against float, {rows[0].label}: {rows[0].int8}, on {where}"


def _covered(run: RunSummary) -> list[str]:
    """Return how many layers the engines compute in INT8, of the one with the fewest."""
    known = [
        m.coverage for m in run.engines.values() if m.quantized_tensors and m.coverage is not None
    ]
    if not known:
        return []
    least = min(known, key=lambda c: c.got)
    return [f"and its engines compute {least.got} of {least.asked} quantized layers in INT8"]
