"""Comparison of two models: interleaved runs and the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.conftest import read
from tests.support.bench import QUICK, Ticks
from trtq import BenchSpec, CompareSpec, bench, compare
from trtq.bench import harness
from trtq.bench.interleaved import TurnSettings, judge, take_turns
from trtq.bench.workload import LoadOptions
from trtq.errors import BenchError


def groups(rng: np.random.Generator, gap: float, *, n: int = 32) -> np.ndarray:
    """Return logarithms of ratios.

    Loads differ by 1 % each, turns differ by 0.4 %, and one of twelve has a burst of
    something else.
    """
    first, copy, second = rng.normal(0.0, 0.01, (3, n))
    noise, bursts = rng.normal(0.0, 0.004, (2, n)), (rng.random(n) < 0.08) * rng.normal(0.0, 0.1, n)
    return np.stack(
        [second + np.log1p(gap) - (first + copy) / 2 + noise[0] + bursts, copy - first + noise[1]],
        axis=1,
    )


def test_pain_13_equal_is_called_equal_and_a_gap_is_found():
    rng = np.random.default_rng(0)
    same = [judge(groups(rng, 0.0))[4] for _ in range(200)]
    slower = [judge(groups(rng, 0.05))[4] for _ in range(100)]
    small = [judge(groups(rng, 0.03))[4] for _ in range(100)]
    faster = [judge(groups(rng, -0.05))[4] for _ in range(100)]
    assert same.count("no measurable difference") >= 190
    assert slower.count("slower") >= 95
    assert small.count("slower") >= 90
    assert faster.count("faster") >= 95


def test_the_interval_of_the_ratio_holds_the_truth():
    rng = np.random.default_rng(1)
    found = [judge(groups(rng, 0.03, n=16)) for _ in range(400)]
    assert 0.92 <= np.mean([low <= 1.03 <= high for _, low, high, _, _ in found]) <= 0.995


def test_turns_find_a_planted_slowdown_by_a_simulated_clock():
    rng = np.random.default_rng(1)
    clock = Ticks(0)

    def opener(ms: float):
        def load():
            lies = rng.lognormal(0.0, 0.01)  # each load lies elsewhere in memory

            def run() -> None:
                clock.now += int(1e6 * ms * lies * rng.lognormal(0.0, 0.05))

            return run

        return load

    found = take_turns(opener(1.0), opener(1.03), TurnSettings(block_s=0.02), clock=clock)
    assert found.outcome == "slower"
    assert found.low <= 1.03 <= found.high
    assert found.ratio == pytest.approx(1.03, abs=0.01)
    assert (
        take_turns(opener(1.0), opener(1.0), TurnSettings(block_s=0.02), clock=clock).outcome
        == "no measurable difference"
    )


def test_a_request_that_fails_while_taking_turns():
    calls = iter(range(10_000))

    def fails() -> None:
        if next(calls) > 2000:
            raise RuntimeError("gone")

    with pytest.raises(BenchError, match="A request failed.*RuntimeError: gone"):
        take_turns(lambda: lambda: None, lambda: fails, TurnSettings(block_s=0.001))


@pytest.mark.alone
def test_pain_1_int8_that_does_not_win_is_told_to_stay_float(cnn_out, tmp_path, monkeypatch):
    """The quantized file is its own baseline: no gain, so the advice is to keep the float one."""
    from trtq.bench import int8_verdict as verdict

    monkeypatch.setattr(verdict, "is_quantized", lambda path: path.name == "model.qdq.onnx")
    monkeypatch.setattr(verdict, "_doubts", lambda *_: [])  # of a busy machine
    monkeypatch.setattr(verdict.Watch, "reasons", lambda self: [])
    (tmp_path / "float.onnx").write_bytes((cnn_out / "model.qdq.onnx").read_bytes())
    files = (str(tmp_path / "float.onnx"), f"{cnn_out}/model.qdq.onnx")
    spec = CompareSpec(file=files, block=0.02, max_loads=8, margin=0.5, out=str(tmp_path))
    found = compare(spec).verdicts[0]
    assert found.outcome == "no measurable difference"
    assert found.advice.startswith(
        "Keep the float file: INT8 does not win in ONNX Runtime here (an engine may differ)"
    )
    assert read(tmp_path / "compare.json")["verdicts"][0]["loads"] == 8


@pytest.mark.parametrize(
    ("noise", "half", "reasons"), [(0.001, 0.001, 0), (0.08, 0.001, 1), (0.001, 0.2, 1)]
)
def test_a_wide_margin_is_not_noise_and_a_wide_interval_is_no_answer(
    cnn_out, monkeypatch, noise, half, reasons
):
    from trtq.bench import int8_verdict as verdict
    from trtq.bench.interleaved import Turns

    turns = Turns(
        first_ms=1.0,
        second_ms=1.0,
        ratio=1.0,
        low=1.0 - half,
        high=1.0 + half,
        noise=noise,
        outcome="no measurable difference",
        groups=8,
        stopped="",
    )
    monkeypatch.setattr(verdict, "take_turns", lambda *_, **__: turns)
    monkeypatch.setattr(verdict.Watch, "reasons", lambda self: [])
    files = (cnn_out / "model.fp32.onnx", cnn_out / "model.qdq.onnx")
    found = verdict.judge_files(
        *files, LoadOptions(), settings=TurnSettings(margin=0.08), profile=False
    )
    assert len(found.reasons) == reasons
    assert found.valid is (reasons == 0)
    assert bool(found.advice) is found.valid  # nothing follows from a busy machine


def test_files_on_the_cpu_are_judged_without_the_gpu(cnn_out, monkeypatch):
    """The GPU is that of an engine among the files of the same call."""
    from trtq.bench import int8_verdict as verdict

    watched = []

    class Watch(verdict.Watch):
        def __init__(self, device: str, gpu: object = None) -> None:
            watched.append((device, gpu))
            super().__init__(device, None)

    monkeypatch.setattr(verdict, "Watch", Watch)
    file = cnn_out / "model.fp32.onnx"
    settings = TurnSettings(max_groups=8, block_s=0.005)
    verdict.judge_files(file, file, LoadOptions(), gpu=object(), settings=settings, profile=False)
    assert watched == [("cpu", None)]


def test_bench_judges_a_quantized_file_against_the_float_one_beside_it(cnn_out, monkeypatch):
    from trtq.bench import int8_verdict as verdict

    seen = []
    real = verdict.judge_files

    def judge_files(a: Path, b: Path, options, **given):
        seen.append((a.name, b.name))
        return real(
            a, b, options, **{**given, "settings": TurnSettings(max_groups=8, block_s=0.02)}
        )

    monkeypatch.setattr(harness, "judge_files", judge_files)
    made = bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), **{**QUICK, "verdict": True}))
    assert seen == [("model.fp32.onnx", "model.qdq.onnx")]
    assert made.verdicts[0].loads == 8
    assert "taking turns" in made.summary
    busy = replace(made.verdicts[0], advice="", valid=False, reasons=["the machine was busy"])
    assert busy.summary.endswith("%); NOT VALID: the machine was busy")
    assert replace(busy, advice="Keep it.", valid=True).summary.endswith("%). Keep it.")


def test_a_quantized_file_without_a_baseline_gets_no_verdict_and_the_reason(cnn_out, tmp_path):
    (tmp_path / "alone.onnx").write_bytes((cnn_out / "model.qdq.onnx").read_bytes())
    made = bench(BenchSpec(file=(str(tmp_path / "alone.onnx"),), **{**QUICK, "verdict": True}))
    assert made.verdicts == []
    assert made.notes == [
        "no verdict on alone.onnx: no model.fp32.onnx beside it; name one with --baseline"
    ]


def test_the_baseline_of_an_engine_is_the_fp16_one_for_the_same_target(tmp_path, cnn_out):
    pytest.importorskip("tensorrt_rtx")
    from trtq import BuildSpec, build
    from trtq.bench.int8_verdict import find_baseline, is_quantized

    build(
        BuildSpec(
            onnx=str(cnn_out / "model.qdq.onnx"),
            target="rtx3080",
            out=str(tmp_path / "made/e.engine"),
        )
    )
    whole = read(tmp_path / "made/e.engine.json")

    def put(name: str, quantized: int, precision: str, target: str) -> Path:
        path = tmp_path / f"{name}.engine"
        path.write_bytes(b"x")
        (tmp_path / f"{name}.engine.json").write_text(
            json.dumps(
                {
                    **whole,
                    "quantized_tensors": quantized,
                    "precision": precision,
                    "target": {**whole["target"], "name": target},
                    "spec": {**whole["spec"], "onnx": "out/model.qdq.onnx"},
                }
            )
        )
        return path

    int8 = put("int8", 8, "fp16", "rtx3080")
    put("other", 0, "fp16", "t4")
    put("full", 0, "fp32", "rtx3080")
    found, why = find_baseline(int8)
    assert found is None
    assert "trtq build out/model.fp32.onnx --target rtx3080 --precision fp16" in why
    cached = put("cached", 0, "fp16", "rtx3080")  # INT8 by a calibration cache is no float baseline
    held = read(Path(f"{cached}.json"))
    Path(f"{cached}.json").write_text(
        json.dumps({**held, "spec": {**held["spec"], "calibration": "c.cache"}})
    )
    assert is_quantized(cached)
    assert find_baseline(int8)[0] is None
    stranger = Path(f"{put('another', 0, 'fp16', 'rtx3080')}.json")  # of another model
    stranger.write_text(json.dumps({**read(stranger), "model": "another"}))
    assert find_baseline(int8)[0] is None
    half = put("half", 0, "fp16", "rtx3080")
    assert find_baseline(int8) == (half, "")
