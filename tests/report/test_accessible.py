"""Every kind of page, light and dark, wide and on a phone: axe-core and no sideways scrolling."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.conftest import run_cli
from tests.sweep.test_page import ROWS
from tests.sweep.test_tracking import record as sweep_of
from trtq.artifact import environment
from trtq.deploy.record import FleetRecord, FleetRow
from trtq.files import FP32, QDQ, bench_json
from trtq.report.fleet import write_fleet_page
from trtq.report.page import write_page, write_runs_page
from trtq.report.sweep import write_sweep_page

WIDE = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 794, "height": 1123}  # A4 at 96 dots an inch


@pytest.fixture(scope="module")
def run(detector_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with scores, pictures, latency and an engine."""
    folder = tmp_path_factory.mktemp("measured")
    out = Path(shutil.copytree(detector_run, folder / "out"))
    quick = ("--duration", "0.1", "--min-samples", "50", "--max-duration", "1", "--no-verdict")
    for name, file in (("qdq", QDQ), ("fp32", FP32)):
        done = run_cli("bench", str(out / file), *quick, "--out", str(folder / name))
        assert done.returncode in (0, 3), done.stderr
        shutil.copy(folder / name / "bench.json", out / bench_json(name))
    engine = ("--target", "rtx3080", "--out", str(out / "rtx3080-int8.engine"))
    done = run_cli("build", str(out / QDQ), *engine)
    assert done.returncode == 0, done.stderr
    return out


def _fleet(page: Path) -> Path:
    figures = {"latency_ms": 2.061, "low_ms": 2.05, "high_ms": 2.07, "memory_bytes": 10**8}
    orin = {"device": "orin", "board": "NVIDIA Jetson AGX Orin", "model": "yolov8n-doclaynet"}
    why = "Cannot reach gone: no answer at gone.example.org:22 within 10 s"
    rows = [
        FleetRow(**orin, batch=1, precision="INT8 + fp16", valid=True, **figures),
        FleetRow(device="gone", board="", model="yolov8n-doclaynet", why=why),
    ]
    record = FleetRecord(
        schema=1,
        verb="fleet",
        spec={"model": "", "devices": "orin,gone"},
        rows=rows,
        environment=environment(),
        records=[],
        seconds=1.0,
    )
    return write_fleet_page(record, page)


PAGES: dict[str, Callable[[Path, Path], object]] = {
    "run": lambda run, page: write_page(run, page, title="Cells"),
    "runs": lambda run, page: write_runs_page([run, run], page, title="Cells, twice"),
    "pictures": lambda run, page: shutil.copytree(run / "pictures", page.parent / "pictures"),
    "fleet": lambda run, page: _fleet(page),
    "sweep": lambda run, page: write_sweep_page(sweep_of(ROWS), page),
}


@pytest.mark.parametrize("kind", PAGES)
def test_no_page_has_a_serious_finding_or_scrolls_sideways(kind, run, tmp_path, opened):
    path = tmp_path / "page.html"
    PAGES[kind](run, path)
    path = path if path.exists() else tmp_path / "pictures/index.html"
    for scheme, size in (("light", WIDE), ("dark", PHONE)):
        page = opened(path, color_scheme=scheme, viewport=size)
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"], scheme
        violations = Axe().run(page).response["violations"]
        serious = [v for v in violations if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], v["nodes"][0]["html"]) for v in serious]


def test_a_page_without_contrast_is_found(tmp_path, opened):
    """The check itself can fail."""
    bad = "<html lang=en><title>t</title><main><h1 style='color:#ddd'>Pale</h1></main></html>"
    (tmp_path / "bad.html").write_text(bad)
    found = Axe().run(opened(tmp_path / "bad.html")).response["violations"]
    assert "color-contrast" in [v["id"] for v in found]


@pytest.mark.parametrize("kind", PAGES)
def test_every_page_prints_whole_and_without_controls(kind, run, tmp_path, opened):
    path = tmp_path / "page.html"
    PAGES[kind](run, path)
    path = path if path.exists() else tmp_path / "pictures/index.html"
    page = opened(path, color_scheme="dark", viewport=PAPER)
    page.emulate_media(media="print")
    assert page.locator("button.copy:visible, .tools:visible, button.hist:visible").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER["width"]
    cut = "e => e.scrollHeight > e.clientHeight + 1"
    parts = f"[...document.querySelectorAll('.scroll, pre')].filter({cut}).length"
    assert page.evaluate(parts) == 0, "a table or a command is cut off"
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")  # white, or none


@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["wide", "phone"])
def test_the_first_screen_says_how_good_how_fast_and_what_next(size, run, tmp_path, opened):
    write_page(run, tmp_path / "page.html", title="Cells")
    page = opened(tmp_path / "page.html", viewport=size)
    parts = {
        "mAP": page.locator(".verdict"),
        " ms": page.locator(".speed"),
        "trtq bench": page.locator("dl.steps pre.command").first,
    }
    for words, part in parts.items():
        box = part.bounding_box()
        assert words in part.inner_text()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"], (words, box)
