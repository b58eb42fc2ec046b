"""Every kind of figure, drawn: one SVG with its labels as text, and numbers on its axes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from trtq.cost.count import LayerCost
from trtq.records.analyze import AnalyzedLayer
from trtq.records.quantize import QuantizerRecord
from trtq.records.search import FrontierPoint, LossAt, Predicted
from trtq.report import figures
from trtq.train.epoch import Epoch

COST = LayerCost(name="a", kind="conv", macs=1, weights=1, reads=1, writes=1)
LAYERS = [
    AnalyzedLayer(
        name=n, loss={"w4": v, "w8": v / 100}, raw=None, stderr=None, group=[n], cost=COST
    )
    for n, v in (("stem", 2.0), ("head$^2$", 0.003))
]
POINTS = [
    FrontierPoint(label=n, accuracy=a, costs={"size": c}, dominated={"size": d})
    for n, a, c, d in (
        ("all $8$", 90.0, 4.0, False),
        ("mixed", 88.0, 2.0, False),
        ("w", 80, 3, True),
    )
]
PREDICTED = Predicted(
    axis="size",
    metric="l2",
    at=LossAt(cost=2.0, loss=0.1),
    front=[LossAt(cost=1.0, loss=10.0), LossAt(cost=3.0, loss=0.001)],
)
QUANTIZER = QuantizerRecord(
    name="stem.input",
    layer="stem",
    role="input",
    format="int8",
    granularity="tensor",
    amax=2.5,
    amax_min=2.5,
    channels=None,
    sqnr_db=31.0,
    saturated=0.0,
    low=-3.0,
    high=3.0,
    histogram=[100_000, 5_000, 0, 20],
    histogram_limit=3.2,
    runs="engine",
    extra_ops=0,
    computes_in="int8",
)
EPOCHS = [Epoch(loss=x, lr=0.1, score=50 + x, images_per_s=1.0) for x in (3.0, 2.0)]
DRAWINGS = {
    "sqnr": (lambda: figures.sqnr_figure([QUANTIZER]), ["SQNR, dB", "activations"]),
    "sensitivity": (
        lambda: figures.sensitivity_figure(LAYERS, ["w8", "w4"], "l2"),
        ["loss by l2", "head$^2$", "w4", "0.01"],
    ),
    "frontier": (
        lambda: figures.frontier_figure(
            POINTS, "size", measure="top-1, %", unit="MB", chosen="mixed", limit=3.5
        ),
        ["size, MB", "top-1, %, measured", "all $8$", "mixed"],
    ),
    "predicted": (
        lambda: figures.predicted_figure(PREDICTED, unit="MB"),
        ["size, MB, predicted", "0.001", "10"],
    ),
    "histogram": (
        lambda: figures.histogram_figure(QUANTIZER),
        ["magnitude", "amax 2.5", "100", "100000"],
    ),
    "training": (
        lambda: figures.training_figure(EPOCHS, "top-1"),
        ["training loss", "top-1, %, quantized"],
    ),
    "precision": (
        lambda: figures.precision_figure({"float": [(0.0, 1.0), (1.0, 0.5)]}),
        ["recall", "precision, overlap 0.5", "float"],
    ),
}


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_figure_is_one_picture_with_its_labels_as_text(kind):
    draw, wanted = DRAWINGS[kind]
    picture = draw()
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label")
    texts = {"".join(t.itertext()).strip() for t in root.iter() if t.tag.endswith("text")}
    assert texts >= set(wanted), texts
    assert "mathdefault" not in picture
    assert sum(t.tag.endswith("path") for t in root.iter()) > 3
