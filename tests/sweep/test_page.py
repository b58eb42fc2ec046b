"""The page and the record of a sweep, from rows."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.sweep.test_tracking import record
from trtq.artifact import read_record, write_json
from trtq.records.sweep import Measured, SweepRecord, SweepRow
from trtq.report.sweep import write_sweep_page
from trtq.tasks import Figure


def row(number: int, score: float | None, size: int, target: str = "", **more) -> SweepRow:
    figures = [] if score is None else [Figure(name="mAP", value=score, unit="")]
    sizes = {"weights": size} | ({f"engine {target} int8": 10 * size} if target else {})
    return SweepRow(
        name=f"{number:05d}",
        key=f"{number:064x}",
        settings={"quantize.bits": f"w{number}a8", "build.target": target},
        **{
            "state": "done",
            "seconds": 1.0,
            "measured": Measured(scores=figures, sizes=sizes, targets=[target] if target else []),
            **more,
        },
    )


ROWS = [
    row(1, 50.0, 1_000_000, "t4"),
    row(2, 40.0, 2_000_000, "t4"),
    row(3, 60.0, 3_000_000, "orin"),
    row(4, 60.0, 2_500_000, "orin"),
    row(5, None, 0, state="failed", measured=None, seconds=None, reason="<b>no</b> \u202eimages"),
    row(6, None, 0, state="waiting", measured=None, reason="the sweep was interrupted"),
]


@pytest.fixture()
def page(tmp_path) -> str:
    return write_sweep_page(record(ROWS), tmp_path / "sweep.html").read_text()


def test_the_front_and_the_best_of_each_target(page):
    assert re.findall(r"(\d{5}) <span class=.good.>front", page) == ["00001", "00004"]
    best = page[page.index("Best run for each target") : page.index("<h2>Runs")]
    found = re.findall(r'row">(\w+)</th><td>(\d+)</td>.*?num">mAP (\d+)</td><td.*?>(.*?)<', best)
    assert found == [("orin", "00004", "60", "25.00 MB"), ("t4", "00001", "50", "10.00 MB")]


def test_what_others_wrote_is_text(page):
    assert "&lt;b&gt;no&lt;/b&gt; \\u202eimages" in page
    assert "6 runs: 4 done, 1 failed, 1 waiting" in page


def test_runs_without_a_common_score_are_not_compared(tmp_path):
    other = Measured(scores=[Figure(name="top-1", value=1.0)], sizes={"weights": 1})
    rows = [ROWS[0], row(2, 0, 1, measured=other)]
    text = write_sweep_page(record(rows), tmp_path / "sweep.html").read_text()
    assert "The runs have no score in common: nothing is compared." in text
    assert "Best run" not in text


def test_lower_scores_may_be_better(tmp_path):
    def error(number: int, value: float) -> SweepRow:
        figure = Figure(name="RMSE", value=value, unit="m", better="lower")
        return row(number, 0, 7, measured=Measured(scores=[figure], sizes={"weights": 7}))

    text = write_sweep_page(record([error(1, 2.0), error(2, 1.0)]), tmp_path / "s.html").read_text()
    assert "no engine was built</th><td>00002</td>" in text


def test_thousands_of_runs_are_a_page(tmp_path):
    rows = [row(i, float(i % 97), 1000 + i * 7 % 5003) for i in range(1, 3001)]
    text = write_sweep_page(record(rows), tmp_path / "sweep.html").read_text()
    assert "Only some of the beaten runs are drawn" in text
    assert text.count('<tr><th scope="row">0') == 3000


def test_a_record_is_read_again(tmp_path):
    write_json(tmp_path / "sweep.json", record(ROWS))
    again = read_record(tmp_path / "sweep.json", SweepRecord)
    assert again.rows == ROWS
    assert again.failed == ["00005 (bits=w5a8 target=): <b>no</b> \u202eimages"]
    assert "\\u202e" in again.summary
    assert again.valid
    doubtful = row(1, 1.0, 1, measured=Measured(valid=False))
    assert not record([doubtful]).valid
    assert "NOT VALID: 00001" in record([doubtful]).summary


SCRIPT = """
const bits = document.querySelector('select[data-column="2"]');
bits.value = "w4a8"; bits.dispatchEvent(new Event("change"));
document.title = document.getElementById("find-run-count").textContent;
"""


def test_the_page_filters_by_setting(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    file = tmp_path / "tried.html"
    file.write_text(page.replace("</body>", f"<script>{SCRIPT}</script></body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{file}"]
    done = subprocess.run([browser, *words], capture_output=True, text=True, check=False)
    assert "<title>1 of 6 rows</title>" in done.stdout
