"""The built pages: opened as files, searched, and fetching nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_has_a_picture_drawn_by_hand():
    assert [p.name for p in PAGES if "<svg" in p.read_text()] == []
    assert not [*(ROOT / "docs").rglob("*.svg"), *(ROOT / "docs").rglob("*.png")]


@pytest.mark.slow
def test_the_search_works_on_a_page_that_is_opened_as_a_file(site, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    fetched, errors = [], []
    page.on("request", lambda request: fetched.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("calibration cache")
    first = page.locator(".md-search-result__link").first
    first.wait_for(timeout=20_000)
    assert "matching documents" in page.locator(".md-search-result__meta").inner_text()
    assert {"targets.html", "migrating.html", "commands.html"} & {
        link.get_attribute("href").rpartition("/")[2].partition("?")[0]
        for link in page.locator(".md-search-result__link").all()
    }
    first.click()
    page.locator("mark").first.wait_for(timeout=20_000)
    assert errors == []
    assert [url for url in fetched if not url.startswith("file://")] == []


@pytest.mark.slow
def test_no_page_names_a_script_or_style_of_another_host(site):
    tags = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        assert tags.findall(page.read_text()) == [], page.name
        assert 'class="mermaid"' not in page.read_text()  # its script is fetched


@pytest.mark.slow
def test_pictures_are_drawn_and_their_words_fit(site, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((site / "concepts.html").as_uri())
    pictures = page.locator(".trtq-picture svg").all()
    assert len(pictures) == 3
    for picture in pictures:
        frame, label = picture.bounding_box(), picture.get_attribute("aria-label")
        assert label and frame["width"] > 600
        boxes = [box.bounding_box() for box in picture.locator("rect.box").all()]
        words = [word.bounding_box() for word in picture.locator("text").all()]
        assert words
        for word in words:
            assert inside(word, frame), label
            for box in boxes:  # in one box, or beside it
                assert inside(word, box) or apart(word, box), label


def inside(a: dict[str, float], b: dict[str, float]) -> bool:
    return (
        b["x"] <= a["x"]
        and a["x"] + a["width"] <= b["x"] + b["width"]
        and b["y"] <= a["y"]
        and a["y"] + a["height"] <= b["y"] + b["height"]
    )


def apart(a: dict[str, float], b: dict[str, float]) -> bool:
    return (
        a["x"] + a["width"] <= b["x"]
        or b["x"] + b["width"] <= a["x"]
        or a["y"] + a["height"] <= b["y"]
        or b["y"] + b["height"] <= a["y"]
    )
