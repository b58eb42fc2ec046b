"""The quick check of a preset, and the fallbacks when it fails."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec

from trtq.data.answers import OutputComparison
from trtq.errors import UsageError
from trtq.flow.extremes import handle_extremes
from trtq.flow.inputs import Inputs
from trtq.flow.ptq import Attempt, attempt, fitting
from trtq.graph.blocks import Family, family_of
from trtq.graph.device import device_of
from trtq.methods.presets import CHECK_SQNR_DB, LEAST_SQNR_DB, PRESETS, Preset, add, start
from trtq.records.quantize import PresetRecord, TryRecord
from trtq.specs import QuantizeOptions
from trtq.workers import Workers

LEARN = ("reconstruct",)  # methods whose steps take the time
USUAL_MIN = 5.0  # that each attempt of a preset learns on a CPU


def attempt_preset(inputs: Inputs, options: QuantizeOptions) -> tuple[Attempt, PresetRecord | None]:
    """Attempt what was asked, with the family's preset.

    When the quick check fails, the preset's fallbacks are attempted and the best attempt is taken.

    Args:
        inputs: the model and its samples.
        options: as asked.

    Returns:
        The attempt that was taken, and the preset with what was tried; None where no preset was
        wanted.

    Raises:
        TrtqError: any of its branches.
    """
    if options.preset_quant == "none":
        return attempt(inputs, options), None
    detects = inputs.task is not None and inputs.task.finds_boxes
    likely, counted = family_of(inputs.model.graph.module, detects=detects)
    family: Family = likely if options.preset_quant == "auto" else options.preset_quant
    reason = counted if options.preset_quant == "auto" else "asked for"
    current = fitting(inputs, start(options, family), options.method, inputs.run.note)
    current, extremes = handle_extremes(inputs, current)
    current = _timed(inputs, options, current)
    names = ", ".join(current.method)
    kept = PRESETS[family].high_precision
    floats = f"; in float: {', '.join(kept)}" if kept else ""
    learns = _learns_words(options, current)
    inputs.run.tell(f"preset {family} ({reason}): {names or 'no method'}{floats}{learns}")
    best = attempt(inputs, current)
    inputs = replace(inputs, workers=Workers())  # the others have done their share
    added = names or f"{', '.join(current.high_precision)} in float"
    tried = [_tried("as asked" if current == options else f"with {added}", best)]
    if not inputs.model.random_weights:
        best, more = _fall_back(inputs, options, PRESETS[family], best)
        tried += more
    floor = options.min_agreement
    return best, PresetRecord(
        family=family,
        reason=reason,
        methods=list(best.options.method),
        check=f"{_check_words(best, floor)} on {best.parity.images} "
        + ("random inputs" if inputs.samples.drawn else "calibration images"),
        passed=_passes(best, floor),
        tried=tried,
        taken=next(t.step for t in reversed(tried) if t == _tried(t.step, best)),
        high_precision=list(best.options.high_precision),
        attention=best.options.attention,
        extremes=extremes or msgspec.UNSET,
    )


def _learns_words(user_options: QuantizeOptions, current: QuantizeOptions) -> str:
    """Say that rounding is learned where nobody asked for it, and for how long; "" otherwise."""
    if not set(current.method) & set(LEARN) - set(user_options.method):
        return ""
    limit = "" if current.time_budget is None else f" for up to {current.time_budget:g} min"
    return (
        f"; layers below 8 bits learn their rounding{limit} in each attempt (--time-budget MIN "
        "changes that, --method bias-correction leaves it out)"
    )


def _timed(
    inputs: Inputs, user_options: QuantizeOptions, current: QuantizeOptions
) -> QuantizeOptions:
    """Return ``current`` with the usual time for a method that learns, on a CPU.

    A method that was asked for does all of its steps.
    """
    own = [m for m in current.method if m in LEARN and m not in user_options.method]
    on_cpu = device_of(inputs.model.graph.module).type == "cpu"
    if not own or not on_cpu or user_options.time_budget is not None:
        return current
    return msgspec.structs.replace(current, time_budget=USUAL_MIN)


def _fall_back(
    inputs: Inputs, user_options: QuantizeOptions, preset: Preset, first: Attempt
) -> tuple[Attempt, list[TryRecord]]:
    """Return the first attempt that passes the quick check, else the best one.

    The second value is what was tried after the first attempt.
    """
    note, floor = inputs.run.note, user_options.min_agreement
    best = last = first
    tried: list[TryRecord] = []
    for step in preset.fallback:
        if _passes(best, floor):
            break
        sqnr = {k: v.sqnr_db for k, v in last.measured.items() if v.sqnr_db is not None}
        following = fitting(
            inputs, add(last.options, step, last.placement, sqnr), user_options.method
        )
        if following == last.options:
            continue  # the step changes nothing on this model
        if user_options.layer_bits and following.high_precision != last.options.high_precision:
            note(f"the fallback {step.name} leaves the allocation: its budgets no longer hold")
        note(
            f"the quick check asks for {_check_words(best, floor)}, found "
            f"{_found(best)}: trying {step.name}"
        )
        try:
            last = attempt(inputs, following)
        except UsageError as exc:  # a method that was asked for has nothing left to do
            note(f"{step.name} is left out: {exc}")
            continue
        tried.append(_tried(step.name, last))
        if _rank(last) >= _rank(best):
            best = last
    if not _passes(best, floor):
        note(
            f"the quick check failed after every fallback: {_found(best)}; it "
            f"asks for {_check_words(best, floor)}"
        )
    return best, tried


def _tried(name: str, done: Attempt) -> TryRecord:
    """Return the figures of an attempt, each of the output where it is lowest."""
    answers, worst = done.parity.answers, _worst(done)
    return TryRecord(
        step=name,
        figures=list(done.alike) or msgspec.UNSET,
        agreement=min((a.agreement for a in answers if a.agreement is not None), default=None),
        equal=min((a.equal for a in answers if a.equal is not None), default=None),
        sqnr_db=worst.sqnr_db,
        exact=worst.exact,
    )


def _shared(done: Attempt) -> float | None:
    """Return how alike the answers are, percent: as the task says, else equal predictions.

    None for outputs that are only numbers.
    """
    if done.alike:
        return done.alike[0].value
    shares = [a.agreement if a.agreement is not None else a.equal for a in done.parity.answers]
    return min((s for s in shares if s is not None), default=None)


def _rank(done: Attempt) -> tuple[bool, float, float]:
    """Return how good an attempt is: whether torch and ONNX Runtime agree, and the worst output."""
    share = _shared(done)
    sqnr = [a.sqnr_db for a in done.parity.answers if a.sqnr_db is not None]
    finite = all(a.finite for a in done.parity.answers)
    return (
        done.parity.passed,
        0.0 if share is None else share,
        min(sqnr, default=math.inf) if finite else -math.inf,
    )


def _passes(done: Attempt, floor: float) -> bool:
    """Whether the quick check passes.

    It takes equal predictions without ruined numbers behind them, or numbers that are close.
    """
    passed, share, sqnr = _rank(done)
    if floor == 0.0:  # asked for: nothing is to be checked
        return passed
    agrees = _shared(done) is not None and share >= floor and sqnr >= LEAST_SQNR_DB
    if done.alike and done.parity.answer.agreement is None:  # numbers close, and boxes gone
        return passed and (_shared(done) is None or share >= floor)
    return passed and (sqnr >= CHECK_SQNR_DB or agrees)


def _worst(done: Attempt) -> OutputComparison:
    """Return the comparison of the output that is the farthest from the float model's."""
    return min(done.parity.answers, key=lambda a: _db(a) if a.finite else -math.inf)


def _db(answer: OutputComparison) -> float:
    return math.inf if answer.sqnr_db is None else answer.sqnr_db


def _found(done: Attempt) -> str:
    worst = _worst(done)
    words = [*(f.words for f in done.alike[:1]), worst.words]
    where = f" (output {worst.name})" if done.parity.others else ""
    return ", ".join(words) + where


def _check_words(done: Attempt, floor: float) -> str:
    answer = done.parity.answer
    if done.alike:
        return f"{floor:g} % {done.alike[0].name}"
    if answer.equal is not None:
        return f"{floor:g} % equal integers"
    close = f"{CHECK_SQNR_DB:g} dB of output SQNR"
    if answer.agreement is None:
        return close
    return f"{floor:g} % agreement at {LEAST_SQNR_DB:g} dB or more, or {close}"
