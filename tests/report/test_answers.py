"""The report of a task: rows and verdict of its scores, curve, classes, and pictures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from trtq.files import EVALUATE_JSON
from trtq.records.evaluate import EvaluateRecord
from trtq.report import answers
from trtq.report.page import write_page, write_runs_page
from trtq.report.summary import measure_of, summarize_run


@pytest.fixture()
def run(detector_run: Path) -> Path:
    return detector_run


def record_of(folder: Path) -> EvaluateRecord:
    return msgspec.json.decode((folder / EVALUATE_JSON).read_bytes(), type=EvaluateRecord)


def changed(run: Path, folder: Path, **fields) -> Path:
    shutil.copytree(run, folder)
    record = json.loads((run / EVALUATE_JSON).read_text())
    (folder / EVALUATE_JSON).write_text(json.dumps({**record, **fields}))
    return folder


def test_the_rows_and_the_verdict_have_the_scores_of_the_task(run):
    summary = summarize_run(run)
    rows = {row.label: row for row in summary.rows}
    assert list(rows)[:2] == ["mAP", "mAP50"]
    own, float_ = measure_of(summary)
    assert own.name == "mAP"
    assert rows["mAP"].fp32 == f"{float_.value:.2f} %" and rows["mAP"].int8 == f"{own.value:.2f} %"
    assert rows["agreement mAP"].fp32 == ""
    assert f"{own.value - float_.value:+.2f} points of mAP against float on 8" in summary.verdict


def test_without_labels_the_verdict_is_the_agreement(run, tmp_path):
    bare = changed(run, tmp_path / "bare", figures=[], reference_figures=[])
    alike = record_of(run).agreement_figures[0]
    assert f"has, against float, {alike.words} on 8 images" in summarize_run(bare).verdict


def test_the_page_shows_the_curve_the_classes_and_the_pictures(run, tmp_path):
    page = write_page(run, tmp_path / "page.html", title="Cells").read_text()
    record = record_of(run)
    assert record.pictures
    assert page.count("data:image/jpeg;base64,") == len(record.pictures)
    assert 'aria-label="Precision against recall"' in page
    assert "Score of each class" in page and "mAP, %, FP32</th>" in page
    (red,) = re.findall(r"<tr><td>red</td>(.*?)</tr>", page)
    both = zip(record.reference_by_class, record.by_class, strict=True)
    assert re.findall(r">([\d.]+)</td>", red) == [f"{v:.2f}" for v in next(both)]
    for row in record.pictures:
        assert row.score and f"{row.score.words} (float {row.reference_score.amount})" in page
    assert "Where the answers differ most" in page


def test_classes_of_a_record_without_the_float_models_scores(run, tmp_path):
    record = json.loads((run / EVALUATE_JSON).read_text())
    del record["reference_by_class"]
    for row in record["pictures"]:
        del row["score"], row["reference_score"], row["agreement"]
    shutil.copytree(run, tmp_path / "old")
    (tmp_path / "old" / EVALUATE_JSON).write_text(json.dumps(record))
    page = write_page(tmp_path / "old", tmp_path / "page.html", title="Cells").read_text()
    assert "mAP, %, FP32</th>" not in page and page.count("<td>red</td><td") == 1
    assert f"difference {record['pictures'][0]['difference']:.3g}" in page


def test_pictures_beyond_the_limit_and_missing_ones_are_said(run, tmp_path, monkeypatch):
    folder = changed(run, tmp_path / "few")
    names = [row.file for row in record_of(run).pictures]
    (folder / "pictures" / names[0]).unlink()
    limit = sum((folder / "pictures" / n).stat().st_size for n in names[1:2])
    monkeypatch.setattr(answers, "PAGE_BYTES", limit)
    found = answers.answers_of(record_of(folder), folder, "INT8")
    assert [p.sample for p in found.pictures] == [record_of(run).pictures[1].sample]
    assert f"1 of {len(names)} pictures are not in pictures/." in found.left_out
    if len(names) > 2:
        assert f"{len(names) - 2} more are in pictures/: the page" in found.left_out


def test_a_picture_outside_of_its_folder_is_not_read(run, tmp_path):
    rows = [{"file": "../evaluate.json", "sample": "x", "difference": 1.0}]
    folder = changed(run, tmp_path / "out", pictures=rows)
    found = answers.answers_of(record_of(folder), folder, "INT8")
    assert not found.pictures and "1 of 1 pictures are not in" in found.left_out


def test_a_file_that_is_no_picture_is_left_out(run, tmp_path):
    folder = changed(run, tmp_path / "damaged")
    names = [row.file for row in record_of(run).pictures]
    (folder / "pictures" / names[0]).write_text("no picture")
    found = answers.answers_of(record_of(folder), folder, "INT8")
    assert len(found.pictures) == len(names) - 1
    assert found.left_out == f"1 of {len(names)} files in pictures/ are no pictures."


def test_runs_are_compared_by_the_score_that_all_have(run, tmp_path):
    lower = [{"name": "RMSE", "value": 2.0, "unit": "m", "better": "lower"}]
    first = changed(run, tmp_path / "first", figures=lower, reference_figures=lower)
    lower = [{**lower[0], "value": 1.5}]
    second = changed(run, tmp_path / "second", figures=lower, reference_figures=lower)
    said = write_runs_page([first, second], tmp_path / "runs.html", title="Two")
    assert said.startswith("2 runs: second keeps most (1.50 m RMSE)")
    assert "RMSE, m" in (tmp_path / "runs.html").read_text()
    said = write_runs_page([run, second], tmp_path / "mixed.html", title="Two")
    assert "agreement mAP" in said
