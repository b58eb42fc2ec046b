"""Comparison of records, and the gate."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.conftest import read, run_cli
from trtq import CompareSpec, GateSpec, compare, gate
from trtq.bench.machine_card import differences
from trtq.errors import ArtifactError, UsageError

# ---- compare records, gate ---------------------------------------------------------------------


def put(folder: Path, made, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [msgspec.structs.replace(r, reasons=[], valid=True) for r in made.rows[:1]]
    value = msgspec.to_builtins(msgspec.structs.replace(made, rows=rows))
    median = {"q": 0.5, "value": 10.0, "low": 9.99, "high": 10.01, "needs": 6}
    value["rows"][0]["e2e"]["median"] = {**median, **changes.pop("median", {})}
    value["rows"][0] |= changes.pop("row", {})
    value["card"] |= changes.pop("card", {})
    path = folder / "bench.json"
    path.write_text(json.dumps({**value, **changes}))
    return path


def test_pain_9_records_without_a_card_are_refused_and_other_machines_are_named(record, tmp_path):
    a = put(tmp_path / "a", record[0], valid=True)
    held = read(a)
    del held["card"]["affinity"]
    (tmp_path / "bad.json").write_text(json.dumps(held))
    with pytest.raises(
        ArtifactError, match="cannot be compared: its machine card says nothing of affinity"
    ):
        compare(CompareSpec(file=(str(a), str(tmp_path / "bad.json"))))
    other = put(tmp_path / "b", record[0], card={"governor": "powersave", "cores": 64})
    found = compare(CompareSpec(file=(str(a), str(other))))
    assert not found.valid
    assert any("governor: None and powersave" in d for d in found.differences)
    assert compare(CompareSpec(file=(str(a), str(a)))).valid
    thrice = put(tmp_path / "thrice", record[0], valid=True, row={"batch": 3})
    with pytest.raises(
        UsageError,
        match="no latency of one kind, mode and batch in common: .* e2e of latency, batch 1.*, "
        "batch 3",
    ):
        compare(CompareSpec(file=(str(a), str(thrice))))
    later = put(
        tmp_path / "later", record[0], valid=True, row={"state": {"loop_overhead_us": 9.9}}
    )  # what a run was like is no setting
    assert compare(CompareSpec(file=(str(a), str(later)))).differences == []
    with pytest.raises(UsageError, match="Cannot compare records with files"):
        compare(CompareSpec(file=(str(a), "x.onnx")))
    with pytest.raises(UsageError, match="needs two files"):
        compare(CompareSpec(file=("x.onnx",)))
    assert differences({"load": [1]}, {"load": [2]}) == []


@pytest.mark.parametrize(
    ("median", "code", "text"),
    [
        ({}, 0, "passed"),
        ({"value": 10.2, "low": 10.19, "high": 10.21}, 0, "passed"),
        ({"value": 10.5, "low": 10.45, "high": 10.55}, 1, "failed"),
        ({"value": 10.3, "low": 10.0, "high": 10.6}, 3, "the limit is inside the interval"),
        ({"value": None, "low": None, "high": None}, 3, "too few samples"),
    ],
)
def test_gate_exit_codes(record, tmp_path, median, code, text):
    base, new = put(tmp_path / "a", record[0]), put(tmp_path / "b", record[0], median=median)
    summary = tmp_path / "summary.md"
    done = run_cli("gate", str(new), "--baseline", str(base), "--summary", str(summary))
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout
    assert summary.read_text().startswith("### trtq gate: ")


def test_gate_is_not_valid_on_another_machine_or_a_record_that_is_not(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    made = gate(
        GateSpec(record=str(put(tmp_path / "b", record[0], card={"cores": 64})), baseline=str(base))
    )
    assert made.exit_code == 3
    assert any("the machines differ: cores" in r for r in made.reasons)
    bad = put(tmp_path / "c", record[0], row={"reasons": ["the machine was busy"], "valid": False})
    made = gate(GateSpec(record=str(bad), baseline=str(base)))
    assert made.exit_code == 3
    assert any("the machine was busy" in r for r in made.reasons)
    made = gate(
        GateSpec(record=str(put(tmp_path / "d", record[0], row={"batch": 7})), baseline=str(base))
    )
    assert made.exit_code == 3
    assert any(
        "the candidate has no row for model.fp32.onnx, latency, batch 1" in r for r in made.reasons
    )
    other = put(tmp_path / "e", record[0], row={"input_shape": [1, 3, 64, 64]})
    assert any(
        "input_shape" in r for r in gate(GateSpec(record=str(other), baseline=str(base))).reasons
    )
    held = read(base)["environment"]
    other = put(
        tmp_path / "f",
        record[0],
        environment={**held, "packages": {**held["packages"], "onnxruntime": "0.1"}},
    )
    assert any(
        "the packages differ: onnxruntime" in r
        for r in gate(GateSpec(record=str(other), baseline=str(base))).reasons
    )


def test_gate_holds_each_file_against_its_own_name(record, tmp_path):
    """INT8 got slower and the float file faster.

    A comparison in the order of the rows would see no change.
    """

    def two(folder: str, order: list[tuple[str, float]]) -> Path:
        path = put(tmp_path / folder, record[0])
        held = read(path)
        row = held["rows"][0]
        held["rows"] = []
        for name, ms in order:
            median = {**row["e2e"]["median"], "value": ms, "low": ms - 0.01, "high": ms + 0.01}
            held["rows"].append({**row, "file": name, "e2e": {**row["e2e"], "median": median}})
        path.write_text(json.dumps(held))
        return path

    base, new = (
        two("a", [("fp32.onnx", 10.0), ("int8.onnx", 5.0)]),
        two("b", [("int8.onnx", 9.0), ("fp32.onnx", 5.1)]),
    )
    made = gate(GateSpec(record=str(new), baseline=str(base)))
    assert [c.outcome for c in made.checks] == ["passed", "failed"]
    assert made.exit_code == 1


def test_gate_on_memory_energy_and_accuracy(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    grown = read(base)["rows"][0]["memory"]
    more = put(
        tmp_path / "b", record[0], row={"memory": {**grown, "process": 2 * grown["process"]}}
    )
    assert gate(GateSpec(record=str(more), baseline=str(base), max_memory="10%")).exit_code == 1
    made = gate(GateSpec(record=str(base), baseline=str(base), max_energy="10%"))
    if record[0].rows[0].energy is None:
        assert made.exit_code == 3
        assert made.checks[-1].why == "the baseline has no energy"
    accuracy = tmp_path / "acc.json"
    for drop, code in ((0.4, 0), (0.6, 1)):
        accuracy.write_text(
            json.dumps({"top1": 80.0 - drop, "reference_top1": 80.0, "images": 500})
        )
        made = gate(
            GateSpec(
                record=str(base), baseline=str(base), accuracy=str(accuracy), max_accuracy_drop=0.5
            )
        )
        assert made.exit_code == code
    other = tmp_path / "old.json"
    other.write_text(json.dumps({"top1": 80.0, "images": 400}))
    made = gate(
        GateSpec(
            record=str(base),
            baseline=str(base),
            accuracy=str(accuracy),
            baseline_accuracy=str(other),
            max_accuracy_drop=5.0,
        )
    )
    assert made.checks[-1].why == "the two evaluations saw other images"
    with pytest.raises(UsageError, match="needs --accuracy"):
        gate(GateSpec(record=str(base), baseline=str(base), max_accuracy_drop=0.5))
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ArtifactError, match="There is no accuracy"):
        gate(
            GateSpec(
                record=str(base),
                baseline=str(base),
                accuracy=str(tmp_path / "none.json"),
                max_accuracy_drop=0.5,
            )
        )


def test_gate_limits_each_score_by_its_name(record, tmp_path):
    base, accuracy = put(tmp_path / "a", record[0]), tmp_path / "acc.json"
    own = [("mAP", 57.0, "higher"), ("RMSE", 0.5, "lower")]
    reference = [("mAP", 57.9, "higher"), ("RMSE", 0.3, "lower")]
    fields = {
        key: [{"name": n, "value": v, "better": b} for n, v, b in values]
        for key, values in (("figures", own), ("reference_figures", reference))
    }
    accuracy.write_text(json.dumps({**fields, "images": 96}))

    def outcomes(**limits):
        spec = GateSpec(record=str(base), baseline=str(base), accuracy=str(accuracy), **limits)
        return [(c.what, c.limit, c.outcome) for c in gate(spec).checks[1:]]

    assert outcomes(max_drop={"mAP": 0.5, "RMSE": 0.3}) == [
        ("mAP on 96 images", "-0.5", "failed"),
        ("RMSE on 96 images", "+0.3", "passed"),
    ]
    assert outcomes(max_accuracy_drop=1.0) == [("mAP on 96 images", "-1", "passed")]
    with pytest.raises(UsageError, match="has scores of both sides for mAP, RMSE"):
        outcomes(max_drop={"map": 0.5})


def test_gate_refuses_what_is_no_record(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    (tmp_path / "x.json").write_text('{"verb": "quantize"}')
    with pytest.raises(ArtifactError, match="is no record of trtq bench"):
        gate(GateSpec(record=str(tmp_path / "x.json"), baseline=str(base)))
    (tmp_path / "x.json").write_text('{"verb": "bench"}')
    with pytest.raises(ArtifactError, match="Cannot read the bench record"):
        gate(GateSpec(record=str(tmp_path / "x.json"), baseline=str(base)))
    with pytest.raises(ArtifactError, match="it is a folder.*Name the JSON file in it"):
        gate(GateSpec(record=str(tmp_path), baseline=str(base)))
    with pytest.raises(UsageError, match="Cannot read --max-slowdown 'much'"):
        gate(GateSpec(record=str(base), baseline=str(base), max_slowdown="much"))


def rows(path: Path, *changes: dict) -> Path:
    """Give a record a row for each of the changes to its first row."""
    content = read(path)
    first = content["rows"][0]
    content["rows"] = [
        {**first, **{k: v for k, v in c.items() if k != "ms"}, "e2e": slower(first["e2e"], c)}
        for c in changes
    ]
    path.write_text(json.dumps(content))
    return path


def slower(timing: dict, change: dict) -> dict:
    ms = change.get("ms", 10.0)
    return {**timing, "median": {**timing["median"], "value": ms, "low": ms, "high": ms}}


def test_gate_tells_files_of_one_name_apart_by_their_folders(record, tmp_path):
    """The file in ``a`` got twice as slow, and the one in ``b`` did not change."""
    base = rows(
        put(tmp_path / "old", record[0]),
        {"file": "a/model.onnx", "ms": 5.0},
        {"file": "b/model.onnx"},
    )
    new = rows(put(tmp_path / "new", record[0]), {"file": "a/model.onnx"}, {"file": "b/model.onnx"})
    made = gate(GateSpec(record=str(new), baseline=str(base)))
    assert [(c.what.partition(",")[0], c.outcome) for c in made.checks] == [
        ("a/model.onnx", "failed"),
        ("b/model.onnx", "passed"),
    ]


def test_gate_names_the_rows_that_the_baseline_lacks(record, tmp_path):
    base = put(tmp_path / "old", record[0])
    new = rows(put(tmp_path / "new", record[0]), {}, {"batch": 8})
    made = gate(GateSpec(record=str(new), baseline=str(base)))
    assert made.outcome == "passed"
    assert any(n.endswith("latency, batch 8") and "not compared" in n for n in made.notes)


def test_gate_does_not_divide_by_a_figure_of_zero(record, tmp_path):
    memory = read(put(tmp_path / "x", record[0]))["rows"][0]["memory"]
    base = put(tmp_path / "a", record[0], row={"memory": {**memory, "process": 0}})
    made = gate(GateSpec(record=str(base), baseline=str(base), max_memory="10%"))
    assert made.checks[-1].why == "the baseline's memory is not above 0"
    assert made.exit_code == 3


@pytest.mark.parametrize("limit", ["nan", "inf%", "-1"])
def test_gate_refuses_a_limit_that_limits_nothing(record, tmp_path, limit):
    base = put(tmp_path / "a", record[0])
    with pytest.raises(UsageError, match="Cannot read --max-slowdown"):
        gate(GateSpec(record=str(base), baseline=str(base), max_slowdown=limit))


def test_records_of_other_input_sizes_are_not_compared(record, tmp_path):
    a = put(tmp_path / "a", record[0], valid=True)
    b = put(tmp_path / "b", record[0], valid=True, row={"input_shape": [1, 3, 64, 64]})
    made = compare(CompareSpec(file=(str(a), str(b))))
    assert not made.valid
    assert any("input_shape: " in d and "[1, 3, 64, 64]" in d for d in made.differences)


def test_records_of_several_files_are_compared_by_name(record, tmp_path):
    two = ({"file": "fp32.onnx"}, {"file": "int8.onnx", "ms": 5.0})
    a = rows(put(tmp_path / "a", record[0], valid=True), *two)
    made = compare(CompareSpec(file=(str(a), str(a))))
    assert [n.partition(",")[0] for n in made.notes] == [
        "fp32.onnx to fp32.onnx",
        "int8.onnx to int8.onnx",
    ]


def test_gate_fails_on_accuracy_where_the_latencies_are_not_valid(record, tmp_path):
    """Scores of 91.8 against 92.5 lose 0.7 points: above 0.5, on a busy machine, too."""
    quiet = put(tmp_path / "a", record[0])
    busy = put(tmp_path / "b", record[0], row={"reasons": ["other processes used 51% of the CPU"]})
    accuracy = tmp_path / "evaluate.json"
    scores = {"verb": "evaluate", "schema": 1, "top1": 91.8, "reference_top1": 92.5}
    accuracy.write_text(json.dumps({**scores, "images": 96, "data": {}}))
    files = {"record": str(busy), "baseline": str(quiet), "accuracy": str(accuracy)}
    failed = gate(GateSpec(**files, max_accuracy_drop=0.5))
    assert (failed.outcome, failed.exit_code) == ("failed", 1)
    assert gate(GateSpec(**files, max_accuracy_drop=0.8)).exit_code == 3


def test_gate_refuses_accuracy_without_a_limit(record, tmp_path):
    base = put(tmp_path / "a", record[0])
    given = {"record": str(base), "baseline": str(base)}
    for name in ("accuracy", "baseline_accuracy"):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"{option} has no limit.*--max-accuracy-drop 0.5"):
            gate(GateSpec(**given, **{name: "evaluate.json"}))


def evaluated(path: Path, **scores) -> str:
    path.write_text(
        json.dumps({"verb": "evaluate", "schema": 1, "images": 96, "data": {}} | scores)
    )
    return str(path)


def agreeing(value: float) -> list[dict[str, object]]:
    return [{"name": "agreement mAP", "value": value}]


@pytest.mark.parametrize(("score", "code"), [(92.1, 0), (91.8, 1)])
def test_gate_compares_accuracy_alone(tmp_path, score, code):
    """92.1 and 91.8 lose 0.4 and 0.7 points against 92.5: one is above the limit of 0.5."""
    accuracy = evaluated(tmp_path / "evaluate.json", top1=score, reference_top1=92.5)
    done = run_cli("gate", "--accuracy", accuracy, "--max-accuracy-drop", "0.5")
    assert done.returncode == code, done.stdout + done.stderr
    assert "top-1 on 96 images | 92.50 |" in done.stdout
    assert "- accuracy alone: without RECORD no latency is compared" in done.stdout


def test_gate_takes_agreement_as_a_score(tmp_path):
    """Without labels the float model agrees with itself by 100 %: 98.2 % lose 1.8 points."""
    new = evaluated(tmp_path / "new.json", agreement_figures=agreeing(98.2))
    old = evaluated(tmp_path / "old.json", agreement_figures=agreeing(98.5))
    classes = evaluated(tmp_path / "classes.json", agreement=98.2)
    for file, drop, code in ((new, 2.0, 0), (new, 1.0, 1), (classes, 2.0, 0), (classes, 1.0, 1)):
        assert gate(GateSpec(accuracy=file, max_accuracy_drop=drop)).exit_code == code
    assert gate(GateSpec(accuracy=new, max_drop={"agreement mAP": 1.0})).exit_code == 1
    beside = gate(GateSpec(accuracy=new, baseline_accuracy=old, max_accuracy_drop=0.5))
    assert (beside.exit_code, beside.checks[0].change) == (0, "-0.30")
    both = evaluated(
        tmp_path / "both.json", top1=92.0, reference_top1=92.1, agreement_figures=agreeing(98.2)
    )
    assert gate(GateSpec(accuracy=both, max_accuracy_drop=0.5)).checks[0].what.startswith("top-1")


def test_gate_names_the_record_that_is_missing(record, tmp_path):
    base = str(put(tmp_path / "a", record[0]))
    accuracy = evaluated(tmp_path / "evaluate.json", top1=92.0, reference_top1=92.5)
    scores = {"accuracy": accuracy, "max_accuracy_drop": 0.5}
    for given, missing in (
        ({}, "RECORD and --baseline"),
        ({"record": base, **scores}, "--baseline"),
        ({"baseline": base, **scores}, "RECORD"),
    ):
        with pytest.raises(UsageError, match=f"trtq gate needs {missing}: latencies are compared"):
            gate(GateSpec(**given))
    with pytest.raises(UsageError, match="--max-memory needs RECORD and --baseline.*trtq bench"):
        gate(GateSpec(**scores, max_memory="5%"))
