"""Models of several inputs and outputs: analysed, searched and trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import trtq
from trtq.errors import DataError, UsageError

ASKED = {"images": 8, "calib_images": 16, "batch_size": 4}
TRAINED = {"epochs": 3, "batch_size": 8, "augment": "none", "lr": 1e-3}


class Scorer(nn.Module):
    """An image and a text in; scores of classes and a map out, to which each layer leads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.words = nn.Embedding(11, 8)
        self.text = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image, ids):
        grid = self.conv(image).relu()
        pooled = grid.mean((2, 3)) + self.text(self.words(ids)).mean(1)
        return {"logits": self.head(pooled), "map": grid}


class Stereo(nn.Module):
    """Two images in; a flow and a confidence out, each with a layer of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.flow = nn.Conv2d(8, 6, 1)
        self.trust = nn.Conv2d(8, 2, 1)

    def forward(self, left, right):
        both = (self.stem(left) - self.stem(right)).relu()
        return {"flow": self.flow(both), "trust": self.trust(both).sigmoid()}


class Sequence(nn.Module):
    """Scores of each step, and the best of them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        scores = self.net(x)
        return scores, scores.argmax(-1)


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    return [{"image": torch.randn(3, 8, 8), "ids": torch.randint(0, 11, (5,))} for _ in range(24)]


@pytest.fixture(scope="module")
def scorer(rows):
    torch.manual_seed(0)
    return Scorer().eval()


@pytest.fixture(scope="module")
def pairs(rows, scorer):
    """Each sample with the class that the model itself says."""
    with torch.no_grad():
        said = scorer(*(torch.stack([r[k] for r in rows]) for k in ("image", "ids")))["logits"]
    return list(zip(rows, said.argmax(1).tolist(), strict=True))


@pytest.fixture(scope="module")
def stereo():
    torch.manual_seed(0)
    model = Stereo().eval()
    return model, [{k: torch.randn(3, 8, 8) for k in ("left", "right")} for _ in range(16)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("metric", ["l2", "jsd", "gradient", "hessian", "combined"])
def test_every_metric_of_a_model_with_two_inputs_and_outputs(scorer, pairs, metric):
    record = trtq.analyze(scorer, pairs, metric=metric, probes=2, trials=2, **ASKED)
    assert [layer.name for layer in record.layers] == ["conv", "text", "head"]
    assert all(layer.loss["w2a2"] > layer.loss["w8a8"] > 0 for layer in record.layers)


def test_scores_are_known_by_class_indices_alone(scorer, rows):
    with pytest.raises(UsageError, match="The metric jsd needs scores of classes") as caught:
        trtq.analyze(scorer, rows, metric="jsd", **ASKED)
    assert "pairs of inputs and a class index" in caught.value.hint


def test_a_layer_that_leads_to_another_output_has_no_loss_by_the_first(stereo):
    model, rows = stereo
    labelled = [(row, torch.zeros(8, 8, dtype=torch.int64)) for row in rows]
    with pytest.raises(UsageError, match="The metric jsd looks at the output flow: 1 layers lead"):
        trtq.analyze(model, labelled, metric="jsd", **ASKED)
    assert len(trtq.analyze(model, rows, metric="l2", **ASKED).layers) == 4


def test_a_search_by_the_scores_of_two_inputs(scorer, pairs):
    found = trtq.search(
        scorer,
        pairs,
        budget={"size": 0.5},
        min_accuracy=-100,
        bits=(4, 8),
        methods="never",
        metric="l2",
        **ASKED,
    )
    assert found.record.met and found.record.reference.accuracy == 100.0
    outputs = [o.name for o in found.best.evaluate(pairs).outputs]
    assert outputs == ["logits", "map"]


@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_outputs_beside_the_scores_are_taught(scorer, pairs, rows, distill):
    start = trtq.quantize(scorer, rows, bits="w4a4", calib_images=16)
    data = rows if distill == 1.0 else DataLoader(pairs, batch_size=4)
    trained = trtq.finetune(start, data, distill=distill, **TRAINED)
    said = "only the output logits is trained: --distill above 0 teaches map, too"
    assert (said in trained.record.notes) == (distill == 0.0)
    history = [h.loss for h in trained.record.history]
    assert history[-1] < history[0]


def test_maps_of_any_shape_learn_from_the_float_model(stereo):
    model, rows = stereo
    start = trtq.quantize(model, rows, bits="w4a4", calib_images=16)
    trained = trtq.finetune(start, rows, distill=1.0, **TRAINED)
    before = dict(start.graph.named_parameters())
    for name in ("model.stem.weight", "model.flow.weight", "model.trust.weight"):
        assert not torch.equal(trained.quantized.encodings.constants[name], before[name])


def test_steps_with_scores_and_indices(tmp_path):
    rows = [torch.randn(5, 4) for _ in range(16)]
    start = trtq.quantize(Sequence().eval(), rows, bits="w4a8")
    trained = trtq.finetune(start, rows, distill=1.0, **TRAINED)
    assert "outputs of integers are not distilled: out.1" in trained.record.notes
    with pytest.raises(UsageError, match="Cannot train Sequence on labels") as caught:
        trtq.finetune(start, [(row, 1) for row in rows], **TRAINED)
    assert "distill=1" in caught.value.hint


def test_targets_that_are_no_classes_do_not_hinder_distillation():
    rows = [(torch.randn(5, 4), "a text") for _ in range(16)]
    start = trtq.quantize(Sequence().eval(), rows, bits="w4a8")
    assert trtq.finetune(start, rows, distill=1.0, **TRAINED).record.history
    with pytest.raises((DataError, UsageError)):
        trtq.finetune(start, rows, distill=0.5, **TRAINED)
