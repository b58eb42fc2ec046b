"""The history of measurements."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest
from matplotlib.figure import Figure

from tests.support.bench import QUICK
from trtq import BenchSpec, CompareSpec, bench, compare
from trtq.bench.history import _moment, plot, recall, remember
from trtq.errors import ArtifactError, UsageError
from trtq.progress import Silent


def test_comparisons_stand_in_the_history(cnn_out, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "h.sqlite"))
    files = (f"{cnn_out}/model.fp32.onnx", f"{cnn_out}/model.qdq.onnx")
    record = compare(CompareSpec(file=files, max_loads=8, block=0.005, profile=False))
    [entry] = recall(mode="compare")
    assert (entry.file, entry.median_ms, entry.batch) == (
        record.verdicts[0].second,
        record.verdicts[0].second_ms,
        1,
    )


def test_history_filters_and_survives_damage(record, cnn_out, tmp_path, monkeypatch):
    bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), repeat=2, **QUICK))
    found = recall()
    assert [(Path(e.file).name, e.mode, e.batch) for e in found] == [
        ("model.qdq.onnx", "latency", 1)
    ]
    assert recall(file="model.fp32*") == []
    assert recall(since="2999-01-01") == []
    assert recall(device="CPU*") == found
    assert plot(found, tmp_path / "h.svg").is_file()
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database, not at all" * 100)
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "bad.sqlite"))
    with pytest.raises(ArtifactError, match="Cannot use the history"):
        recall()
    told = []

    class Told(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    assert bench(
        BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), **QUICK), Told()
    ).rows  # what was measured is not lost with it
    assert "not in the history" in told[0]


def test_files_of_one_name_have_lines_of_their_own(record, tmp_path, monkeypatch):
    row = record[0].rows[0]
    for file in ("v1/a/m.onnx", "v2/a/m.onnx", "./v2/a/m.onnx", "n.onnx", "x/n.onnx"):
        one = msgspec.structs.replace(row, file=file)
        remember(msgspec.structs.replace(record[0], rows=[one]))
    shown = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, path, **_: (
            shown.extend(t.get_text() for t in figure.axes[0].get_legend().get_texts()),
            Path(path).write_text("drawn"),
        ),
    )
    plot(recall(), tmp_path / "h.svg")
    assert sorted(label.split(", ")[0] for label in shown) == [
        *("n.onnx", "v1/a/m.onnx", "v2/a/m.onnx", "x/n.onnx")
    ]


def test_history_is_in_the_order_of_time_whatever_the_zone(record, tmp_path):
    """A record from New York at 23:30 is younger than one from London at 3 on the next day."""
    row = msgspec.structs.replace(record[0].rows[0], file="model.onnx")
    for time, file in (("2026-11-30T23:30:00-0500", "ny"), ("2026-12-01T03:00:00+0000", "london")):
        environment = msgspec.structs.replace(record[0].environment, time=time)
        one = msgspec.structs.replace(row, file=file)
        remember(msgspec.structs.replace(record[0], rows=[one], environment=environment))
    assert [e.file for e in recall()] == ["london", "ny"]
    assert plot(recall(), tmp_path / "h.svg").is_file()


def test_a_since_that_is_no_date_is_refused():
    with pytest.raises(UsageError, match="Cannot read --since 'yesterday': expected a date"):
        recall(since="yesterday")


@pytest.mark.parametrize(
    ("time", "text"),
    [("2026-11-01T12:00:00", None), ("yesterday", "Cannot read the time 'yesterday' of an entry")],
)
def test_a_time_without_a_zone_is_of_this_machine_and_others_are_named(time, text):
    if text is None:
        assert _moment(time) == datetime.datetime.fromisoformat(time).astimezone()
        return
    with pytest.raises(ArtifactError, match=text):
        _moment(time)
