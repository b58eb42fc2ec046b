"""The last layers of a model, and the families that they tell apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.detector import TinyDetr
from trtq.errors import UsageError
from trtq.graph.blocks import family_of
from trtq.graph.capture import capture
from trtq.graph.heads import decoder_nodes, head_nodes, last_layers, scales
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


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("axes", [None, {"input": [2, 3, 32, 32]}])
def test_a_decoder_is_what_works_on_queries(first, axes):
    """The layers of the encoder, and those that read its memory, are none of it."""
    torch.manual_seed(0)
    net = TinyDetr(queries_first=first).eval()
    placement = place(capture(net, torch.randn(2, 3, 32, 32), axes=axes).module)
    layers = dict.fromkeys(q.layer for q in matching(placement, "@decoder"))
    decoder = ["query", "qk", "av", "add", "hidden", "out", "add_1", "cls", "box"]
    constant = [] if axes is None else ["query", "add"]  # of a batch of a known size
    assert list(layers) == [name for name in decoder if name not in constant]
    others = dict.fromkeys(q.layer for q in placement.quantizers if q.layer not in layers)
    assert list(others) == ["stem", "memory", "value"]


def test_rows_that_all_layers_have_are_no_queries():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    graph = capture(net, torch.randn(2, 6, 8)).module
    assert decoder_nodes(graph.graph) == set()
    with pytest.raises(UsageError, match="--high-precision '@decoder' matches no layer"):
        place(graph, high_precision=["@decoder"])


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
