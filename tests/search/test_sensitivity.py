"""Counting, sensitivity and allocation through the verbs; the estimators against exact values."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import trtq
from tests.conftest import run_cli, spec
from tests.support.processes import start_two
from tests.support.quantize import CNN, VIT, analysis
from trtq import AllocateSpec, AnalyzeSpec, CostSpec, allocate, analyze, cost, quantize
from trtq.errors import ArtifactError, CalibrationError, DataError, UsageError
from trtq.graph.capture import capture
from trtq.quant.formats import BitConfig, read_options
from trtq.quant.placement import place
from trtq.search.gradients import hutchinson, omega
from trtq.search.layers import groups, prepare_layers
from trtq.search.sensitivity import class_loss
from trtq.search.work_cache import WorkCache
from trtq.tasks.distances import jensen_shannon
from trtq.testing.models import tiny_cnn

# ---- estimators --------------------------------------------------------------------------------


def test_pixels_that_are_all_ignored_have_a_loss_of_0_and_no_gradient():
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    mask = torch.full((1, 4, 4), 255)
    loss = class_loss((scores,), (mask,), 255)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss == 0 and not gradient.any()
    mask[0, 1, 2] = 1
    one = torch.nn.functional.cross_entropy(scores[:, :, 1, 2], torch.tensor([1]))
    torch.testing.assert_close(class_loss((scores,), (mask,), 255), one)


def test_hutchinson_finds_the_exact_trace_of_every_block():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3), torch.randint(0, 3, (12,))
    weights = [torch.randn(4, 3, requires_grad=True), torch.randn(3, 4, requires_grad=True)]

    def loss(a, b):
        return nn.functional.cross_entropy(torch.tanh(x @ a.T) @ b.T, y)

    exact = []
    for i in range(2):

        def of_one(w, i=i):
            return loss(*(w if j == i else v.detach() for j, v in enumerate(weights)))

        exact.append(
            float(
                torch.autograd.functional.hessian(of_one, weights[i].detach())
                .reshape(12, 12)
                .trace()
            )
        )
    value = loss(*weights)
    estimates = np.array(
        [hutchinson(value, weights, np.random.default_rng(seed)) for seed in range(200)]
    )
    for column, wanted in zip(estimates.T, exact, strict=True):
        error = column.std(ddof=1) / math.sqrt(len(column))
        assert abs(column.mean() - wanted) < 3 * error


def test_omega_by_hand():
    weight = torch.tensor([1.0, 2.0])
    assert omega(3.0, weight, torch.tensor([1.5, 2.0])) == pytest.approx(0.75)
    assert (
        omega(-1.0, weight, torch.zeros(2)) == 0.0
    )  # a saddle: no sign that the layer may be ruined for free


def test_divergence_is_symmetric_and_bounded():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(50, 7, generator=generator).softmax(1) for _ in range(2))
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    assert float(jensen_shannon(p, q).max()) <= math.log(2)
    assert float(jensen_shannon(p, p).abs().max()) < 1e-7


def test_jsd_from_the_cached_prefix_is_that_of_the_whole_model(images, tmp_path):
    record = analyze(analysis(images, tmp_path, metric="jsd", bits=("4",)))
    from trtq.data.preprocess import batches, resolve_preprocess
    from trtq.data.source import open_source

    torch.manual_seed(0)
    asked = analysis(images, tmp_path)
    source = open_source(str(images), None)
    preprocess, _ = resolve_preprocess(input_size=(3, 32, 32), preset="imagenet")
    indices = source.sample(16, 0)
    from trtq.models.load import load_model

    graph = capture(load_model(CNN, seed=asked.seed).module, (3, 32, 32)).module
    images_seen = batches(source, indices, preprocess, 8)
    layers = prepare_layers(
        graph, read_options(["4"]), images_seen, calibrator="mse", percentile=99.99
    )
    layer = next(v for v in layers if v.name == "conv1")
    x = next(iter(batches(source, indices[:8], preprocess, 8)))

    class Whole(torch.fx.Interpreter):
        def run_node(self, n):
            if n is layer.node:
                arguments, keywords = self.fetch_args_kwargs_from_env(n)
                return layer.call(arguments, keywords, "w4a4")
            return super().run_node(n)

    with torch.inference_mode():
        wanted = float(jensen_shannon(graph(x).softmax(1), Whole(graph).run(x).softmax(1)).mean())
    got = next(v.loss["w4a4"] for v in record.layers if v.name == "conv1")
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-9)


# ---- through the verbs -------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "gradient", "hessian", "jsd", "combined"])
@pytest.mark.parametrize("model", [CNN, VIT])
def test_every_metric_ranks_layers_and_widths(images, tmp_path, metric, model):
    record = analyze(analysis(images, tmp_path, model=model, metric=metric, probes=4, trials=2))
    assert list(record.bits) == ["w2a2", "w4a4", "w8a8"]
    assert len(record.layers) == len({v.name for v in record.layers}) > 3
    assert all(math.isfinite(x) and x >= 0 for v in record.layers for x in v.loss.values())
    total = {o: sum(v.loss[o] for v in record.layers) for o in record.bits}
    assert total["w2a2"] > total["w4a4"] > total["w8a8"]
    if metric in ("gradient", "hessian"):
        assert any(v.stderr is not None for v in record.layers)
    assert json.loads((tmp_path / "S.json").read_text())["metric"] == metric


def test_from_analysis_to_a_mixed_model(images, tmp_path):
    analyze(analysis(images, tmp_path, metric="l2", bits=("2", "4", "6", "8")))
    chosen = allocate(
        AllocateSpec(
            analysis=str(tmp_path / "S.json"),
            out=str(tmp_path / "A.json"),
            budget=("size=0.25", "energy=0.2"),
        )
    )
    assert chosen.costs["size"] <= 0.25 * chosen.full["size"]
    assert chosen.costs["energy"] <= 0.2 * chosen.full["energy"]
    assert "predicted" in chosen.summary
    record = quantize(spec(images, tmp_path / "q", allocation=str(tmp_path / "A.json")))
    assert record.parity.passed
    assert record.model["bits"] == "mixed"
    widths = {q.layer: q.format for q in record.quantizers if q.role == "weight"}
    for layer in chosen.layers:
        bits = layer.option[1]
        assert widths[layer.name] == f"int{bits}"
    assert "mixed widths" in record.summary
    counted = cost(CostSpec(model=CNN, input_size=(3, 32, 32)))
    assert counted.rows


def test_fp16_stays_in_float(images, tmp_path):
    analyze(analysis(images, tmp_path, metric="l2", bits=("4", "fp16")))
    chosen = allocate(
        AllocateSpec(
            analysis=str(tmp_path / "S.json"), out=str(tmp_path / "A.json"), budget=("size=0.49",)
        )
    )
    names = {v.name for v in chosen.layers if v.option == "fp16"}
    assert names
    record = quantize(spec(images, tmp_path / "q", allocation=str(tmp_path / "A.json")))
    assert names <= {
        f.layer for f in record.left_in_float if f.reason == "the allocation keeps it in float"
    }


def test_queries_keys_and_values_that_read_one_tensor_share_a_width():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.q, self.k, self.v = (
                nn.Conv2d(3, 8, 8, stride=8),
                nn.Linear(8, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 8),
            )
            self.tied = self.v

        def forward(self, x):
            y = self.stem(x).flatten(2).transpose(1, 2)
            return (torch.softmax(self.q(y) @ self.k(y).mT, -1) @ self.v(y)).mean(1) + self.tied(
                torch.relu(y.mean(1))
            )

    graph = capture(Apart().eval(), (3, 32, 32)).module
    layers = prepare_layers(
        graph, read_options(["4"]), [torch.randn(4, 3, 32, 32)], calibrator="max", percentile=99.9
    )
    found = groups(layers)
    assert sorted(map(len, found)) == [
        1,
        4,
    ]  # the tied layer reads something else, but its weight is that of the values


class Once(nn.Module):
    """A linear that is applied to two halves of a batch of vectors at once."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 4)

    def forward(self, x):
        first, second = self.a(torch.stack((x, x.square()))).unbind(0)
        return torch.tanh(first) + torch.relu(second)


class Twice(Once):
    """The same function: two linears have one weight."""

    def __init__(self):
        super().__init__()
        self.b = nn.Linear(8, 4)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x):
        return torch.tanh(self.a(x)) + torch.relu(self.b(x.square()))


@pytest.mark.parametrize("metric", ["gradient", "hessian"])
def test_a_weight_that_two_layers_read_counts_once(metric):
    rows = [(torch.randn(8, generator=torch.Generator().manual_seed(i)), i % 4) for i in range(8)]
    options = {"metric": metric, "bits": ["4"], "images": 8, "calib_images": 8}
    options |= {"epsilon": 1e-6, "trials": 2, "probes": 100}
    once, twice = (trtq.analyze(m().eval(), rows, **options) for m in (Once, Twice))
    assert [layer.group for layer in twice.layers] == [["a", "b"], ["a", "b"]]
    wanted, got = (sum(v.loss["w4a4"] for v in r.layers) for r in (once, twice))
    assert got == pytest.approx(wanted, rel=1e-3 if metric == "gradient" else 0.3)


def test_an_interrupted_analysis_goes_on(images, tmp_path, monkeypatch):
    from trtq.search import work_cache as units

    whole = analyze(analysis(images, tmp_path / "a", metric="jsd"))

    class StopError(Exception):
        pass

    class Stops:
        def __init__(self):
            self.count = 0

        def begin(self, label, total):
            self.counting = label.startswith("Quantizing")

        def advance(self, count):
            self.count += count if self.counting else 0
            if self.count == 5:
                raise StopError

        def note(self, text):
            pass

    monkeypatch.setattr(units, "EVERY_S", 0.0)
    asked = analysis(images, tmp_path / "b", metric="jsd")
    with pytest.raises(StopError):
        analyze(asked, Stops())
    (kept,) = (tmp_path / "b" / "cache").glob("analysis-*.json")
    assert len(json.loads(kept.read_text())["units"]) == 5
    assert [v.loss for v in analyze(asked).layers] == [v.loss for v in whole.layers]
    kept.write_text("{torn")
    assert [v.loss for v in analyze(asked).layers] == [v.loss for v in whole.layers]


def test_units_of_another_key_are_not_read(tmp_path):
    first = WorkCache(tmp_path, "a")
    first.put("x", [1.0])
    first.flush()
    assert WorkCache(tmp_path, "a").get("x") == [1.0]
    assert WorkCache(tmp_path, "b").get("x") is None
    assert WorkCache(None, "a").get("x") is None


@pytest.mark.parametrize("metric", [pytest.param("jsd", marks=pytest.mark.slow), "hessian"])
def test_two_processes_share_an_analysis(metric, images, tmp_path):
    asked = [
        "--metric",
        metric,
        "--images",
        "8",
        "--calib-images",
        "16",
        "--bits",
        "4,8",
        "--targets",
        "model",
    ]
    values = {
        "model": CNN,
        "data": str(images),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "metric": metric,
        "images": 8,
        "calib_images": 16,
        "bits": ["4,8"],
        "targets": "model",
        "out": str(tmp_path / "alone.json"),
        "calib_cache": str(tmp_path / "alone"),
    }
    alone = analyze(AnalyzeSpec.make(values))
    both = start_two(
        "analyze",
        CNN,
        "--data",
        str(images),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        *asked,
        "--out",
        str(tmp_path / "S.json"),
        "--calib-cache",
        str(tmp_path / "cache"),
    )
    texts = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    parts = [
        set(json.loads(p.read_text())["units"])
        for p in sorted((tmp_path / "cache").glob("analysis-*.json"))
    ]
    assert len(parts) == 2
    assert parts[0]
    assert parts[1]
    if metric == "jsd":
        assert not parts[0] & parts[1]
        together = {
            v["name"]: v["loss"] for v in json.loads((tmp_path / "S.json").read_text())["layers"]
        }
        # another number of threads sums in another order
        assert together == {v.name: pytest.approx(v.loss, rel=2e-2, abs=2e-8) for v in alone.layers}


# ---- bad input ---------------------------------------------------------------------------------


def test_labels_that_are_missing_or_do_not_fit(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(
        sorted(images.rglob("*.png"))[:9] or sorted(images.rglob("*.jpg"))[:9]
    ):
        (flat / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    with pytest.raises(
        DataError,
        match=r"The metric hessian needs labels.*Give --targets model.*or use --metric l2 or jsd",
    ):
        analyze(analysis(flat, tmp_path, metric="hessian"))
    assert analyze(analysis(flat, tmp_path, metric="gradient", targets="model", trials=1)).layers
    with pytest.raises(DataError, match="the highest class index is 3, the model has 2"):
        analyze(analysis(images, tmp_path, metric="gradient", model_arg={"num_classes": 2}))


def test_requests_that_make_no_sense(images, tmp_path):
    with pytest.raises(UsageError, match="There is no width to analyse: asked for fp16"):
        analyze(analysis(images, tmp_path, bits=("fp16",)))
    analyze(analysis(images, tmp_path, metric="l2"))
    found = str(tmp_path / "S.json")
    out = str(tmp_path / "A.json")
    with pytest.raises(UsageError, match="The width w6a6 was not analysed"):
        allocate(AllocateSpec(analysis=found, out=out, bits=("6", "8"), budget=("size=0.2",)))
    with pytest.raises(UsageError, match="The strategy milp needs a budget"):
        allocate(AllocateSpec(analysis=found, out=out))
    with pytest.raises(
        UsageError, match=r"The budget energy cannot be met: the cheapest widths need"
    ):
        allocate(AllocateSpec(analysis=found, out=out, budget=("energy=0.05",)))
    with pytest.raises(UsageError, match="kB is needed by parameters that have no width to choose"):
        allocate(AllocateSpec(analysis=found, out=out, budget=("size=100B",)))
    with pytest.raises(
        ArtifactError, match="holds no analysis: it is of quantize|there is no such file"
    ):
        allocate(AllocateSpec(analysis=str(tmp_path / "none.json"), out=out))


def test_an_allocation_of_another_model_or_beside_bits(images, tmp_path):
    analyze(analysis(images, tmp_path, metric="l2"))
    made = str(tmp_path / "A.json")
    allocate(AllocateSpec(analysis=str(tmp_path / "S.json"), out=made, strategy="percentile"))
    with pytest.raises(
        ArtifactError,
        match=r"A.json was made for another model.*Run trtq analyze and trtq allocate on this "
        r"model",
    ):
        quantize(spec(images, tmp_path / "q", model=VIT, allocation=made))
    with pytest.raises(UsageError, match="Give --bits or --allocation, not both"):
        quantize(spec(images, tmp_path / "q", bits="w4a4", allocation=made))
    held = json.loads((tmp_path / "A.json").read_text())
    del held["layers"][0]["option"]
    (tmp_path / "B.json").write_text(json.dumps(held))
    with pytest.raises(ArtifactError, match="Cannot read the allocation .*B.json: it is damaged"):
        quantize(spec(images, tmp_path / "q", allocation=str(tmp_path / "B.json")))
    with pytest.raises(ArtifactError, match="holds no allocation: it is of analyze"):
        quantize(spec(images, tmp_path / "q", allocation=str(tmp_path / "S.json")))


def test_a_loss_that_overflows_names_the_layer(images, tmp_path):
    (tmp_path / "big.py").write_text(
        "import torch\nfrom trtq.testing.models import tiny_cnn\ndef make():\n    "
        "torch.manual_seed(0)\n    m = tiny_cnn()\n"
        "    with torch.no_grad():\n        m.head.weight *= 1e36\n        m.pointwise.weight "
        "*= 1e3\n    return m\n"
    )
    with pytest.raises(CalibrationError, match="NaN or infin"):
        analyze(analysis(images, tmp_path, model=f"{tmp_path / 'big.py'}:make", metric="gradient"))


def test_layer_bits_must_name_layers():
    graph = capture(tiny_cnn().eval(), (3, 32, 32)).module
    with pytest.raises(
        UsageError, match="The allocation names a layer conv9 that the model does not have"
    ):
        place(graph, layer_bits={"conv9": BitConfig(4, 4)})


def test_analyse_and_allocate_on_the_command_line(images, tmp_path):
    done = run_cli(
        "analyze",
        CNN,
        "--data",
        str(images),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--metric",
        "l2",
        "--images",
        "8",
        "--calib-images",
        "8",
        "--bits",
        "4",
        "--bits",
        "8",
        "--out",
        str(tmp_path / "S.json"),
        "--calib-cache",
        str(tmp_path / "c"),
    )
    assert done.returncode == 0, done.stderr
    assert "most sensitive at w4a4" in done.stdout
    done = run_cli(
        "allocate",
        str(tmp_path / "S.json"),
        "--strategy",
        "pareto",
        "--budget",
        "size=0.2",
        "--out",
        str(tmp_path / "A.json"),
    )
    assert done.returncode == 0, done.stderr
    assert "predicted, of the float model" in done.stdout
    assert re.search(r"size: [\d.]+ kB of [\d.]+ kB allowed", done.stdout)
    front = json.loads((tmp_path / "A.json").read_text())["front"]
    assert [p["cost"] for p in front] == sorted(p["cost"] for p in front)
