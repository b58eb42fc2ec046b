"""A detector whose answers are known: it finds the cells of a picture that are red or green."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

CELL, SIZE = 16, 64
COLORS = ((255, 0, 0), (0, 255, 0))
NAMES = ("red", "green")


class CellDetector(nn.Module):
    """Answers as YOLO does, [N, 4 + 2, anchors]: a box and how red and green it is for each cell.

    The cells of 16 pixels find what fills them; those of 32 are only half as sure.
    """

    def __init__(self):
        super().__init__()
        self.mean = nn.Conv2d(3, 3, CELL, stride=CELL, groups=3, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.score = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(2))
        weight = torch.tensor([[8.0, -8, -8], [-8, 8, -8]])[..., None, None]
        with torch.no_grad():
            self.mean.weight.fill_(1.0 / CELL**2)
            for layer in self.score:
                layer.weight.copy_(weight)
                layer.bias.fill_(-4.0)
        self.register_buffer("boxes", torch.cat([_cells(CELL), _cells(2 * CELL)], 1))

    def forward(self, images):
        means = self.mean(images)
        maps = means, self.pool(means)
        scores = [s(m).flatten(2) for s, m in zip(self.score, maps, strict=True)]
        boxes = self.boxes.expand(images.shape[0], -1, -1)
        return torch.cat([boxes, torch.cat(scores, 2).sigmoid()], 1)


class TinyDetr(nn.Module):
    """A memory of an image, queries that attend to it, and a box and classes for each query.

    Args:
        queries_first: queries along the first axis, samples along the second, as torch's own
            transformers have them.
        spread: how much larger the values of the last query are than those of the first.
    """

    def __init__(self, *, queries_first: bool = False, spread: float = 1.0):
        super().__init__()
        self.first = queries_first
        self.stem, self.memory = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8)
        self.queries = nn.Parameter(torch.randn(6, 8))
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.hidden, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.cls, self.box = nn.Linear(8, len(NAMES)), nn.Linear(8, 4)
        self.register_buffer("sizes", torch.linspace(1.0, spread, 6)[:, None])

    def forward(self, x):
        keys = self.memory(self.stem(x).flatten(2).transpose(1, 2))
        queries = self.query(self.queries.expand(x.shape[0], -1, -1))
        weights = (queries @ keys.transpose(1, 2)).softmax(-1)
        attended = queries + weights @ self.value(keys)
        if self.first:
            attended = attended.transpose(0, 1)
            found = attended + self.out(self.hidden(attended).relu())
            found = self.cls(found).transpose(0, 1), self.box(found).transpose(0, 1)
        else:
            attended = attended * self.sizes
            found = attended + self.out(self.hidden(attended).relu())
            found = self.cls(found / self.sizes), self.box(found / self.sizes)
        return {"logits": found[0], "pred_boxes": found[1].sigmoid()}


def _cells(cell: int) -> torch.Tensor:
    """Return centre, width and height of the cells of a picture, [4, cells]."""
    side = SIZE // cell
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = torch.stack([columns.flatten(), rows.flatten()]) * cell + cell / 2
    return torch.cat([centres, torch.full_like(centres, cell)])


def pictures(folder: Path, count: int = 12, *, wide: bool = False) -> Path:
    """Write pictures with coloured cells, and COCO's annotations of them.

    Args:
        folder: for the files.
        count: of pictures.
        wide: twice as wide as high, which a letterbox halves.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    width, height = (2 * SIZE, SIZE) if wide else (SIZE, SIZE)
    cell = 2 * CELL if wide else CELL
    for i in range(count):
        pixels = rng.integers(0, 12, (height, width, 3)).astype(np.uint8)
        for place in rng.choice((height // cell) * (width // cell), 2, replace=False):
            x, y = int(place % (width // cell)) * cell, int(place // (width // cell)) * cell
            color = int(rng.integers(0, 2))
            pixels[y : y + cell, x : x + cell] = COLORS[color]
            annotations.append(
                {"image_id": i, "category_id": color + 1, "bbox": [x, y, cell, cell]}
            )
        name = f"{i:02d}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": i, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(whole))
    return folder
