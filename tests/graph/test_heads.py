"""The last layers of a model, and the families that they tell apart."""

from __future__ import annotations

import torch
from torch import nn

from trtq.graph.blocks import family_of
from trtq.graph.capture import capture
from trtq.graph.heads import head_nodes, last_layers, scales
from trtq.quant.placement import matching, place


class TinyDetector(nn.Module):
    """Two scales; boxes as YOLO has them: a distribution's mean beside class scores."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.box = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))
        self.cls = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(2))
        self.dfl = nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x):
        first = self.stem(x).relu()
        maps = first, self.down(first).relu()
        boxes = torch.cat([b(m).flatten(2) for b, m in zip(self.box, maps, strict=True)], 2)
        scores = torch.cat([c(m).flatten(2) for c, m in zip(self.cls, maps, strict=True)], 2)
        n, _, anchors = boxes.shape
        sides = self.dfl(boxes.view(n, 4, 4, anchors).transpose(2, 1).softmax(1))
        return torch.cat([sides.view(n, 4, anchors), scores.sigmoid()], 1)


class TinyDetr(nn.Module):
    """Queries that attend to a map, with a box and classes each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.queries = nn.Parameter(torch.randn(6, 8))
        self.cls, self.box = nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, x):
        keys = self.stem(x).flatten(2).transpose(1, 2)
        weights = (self.queries @ keys.transpose(1, 2)).softmax(-1)
        found = weights @ keys
        return {"logits": self.cls(found), "pred_boxes": self.box(found).sigmoid()}


def test_the_last_layers_are_those_that_no_other_one_follows():
    torch.manual_seed(0)
    graph = capture(TinyDetector().eval(), (3, 32, 32)).module
    last = last_layers(graph.graph)
    assert [n.meta["trtq_name"] for n in last] == ["box.0", "box.1", "cls.0", "cls.1"]
    assert scales(last) == 2
    assert "sigmoid" in {n.name.rstrip("_0123456789") for n in head_nodes(graph.graph)}
    kept = {q.layer for q in matching(place(graph), "@head")}
    assert kept == {"box.0", "box.1", "cls.0", "cls.1", "dfl"}


def test_detectors_are_found_by_what_they_compute():
    torch.manual_seed(0)
    conv, detr = (capture(m().eval(), (3, 32, 32)).module for m in (TinyDetector, TinyDetr))
    assert family_of(conv)[0] == "detector-conv"
    assert "4 last layers at 2 sizes" in family_of(conv)[1]
    assert family_of(detr)[0] == "detector-transformer"


def test_one_map_is_a_detector_only_where_the_task_says_so():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()
    graph = capture(net, (3, 32, 32)).module
    assert family_of(graph)[0] == "cnn"
    assert family_of(graph, detects=True)[0] == "detector-conv"


def test_stages_of_one_trunk_are_no_heads():
    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x):
            first = self.a(x).relu()
            return first, self.b(first).relu()

    torch.manual_seed(0)
    assert family_of(capture(Stages().eval(), (3, 32, 32)).module)[0] == "cnn"
