"""Reports are really drawn, and opened in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trtq
from tests.support.detector import CellDetector, pictures
from trtq import EvaluateSpec, evaluate
from trtq.files import FP32, QDQ


@pytest.fixture(autouse=True)
def _drawn(drawn: None) -> None:
    """See ``drawn``."""


@pytest.fixture(scope="module")
def detector_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector in few bits, evaluated beside its float file, with pictures."""
    folder = tmp_path_factory.mktemp("run")
    cells, out = pictures(folder / "cells", 8), folder / "out"
    quantized = trtq.quantize(
        CellDetector().eval(),
        f"coco:{cells}",
        input_size=(3, 64, 64),
        task="detection",
        bits="w3a3",
        preset_quant="none",
        calib_images=4,
        calib_cache=str(folder),
    )
    quantized.save(out)
    evaluate(
        EvaluateSpec(
            onnx=str(out / QDQ), reference=str(out / FP32), data=f"coco:{cells}", out=str(out)
        )
    )
    return out


@pytest.fixture()
def opened(browser: Any) -> Iterator[Any]:
    """Return a function that opens a page.

    At the end its console must have had no error, and it must have fetched nothing but itself and
    pictures beside it.
    """
    said, fetched, contexts = [], [], []

    def show(path: Path, **given: Any) -> Any:
        given = {"viewport": {"width": 1200, "height": 900}, **given}
        contexts.append(browser.new_context(**given))
        page = contexts[-1].new_page()
        page.on(
            "console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: fetched.append(r.url))
        page.goto(path.resolve().as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert said == []
    assert all(u.startswith("file://") and u.endswith((".html", ".jpg")) for u in fetched), fetched
