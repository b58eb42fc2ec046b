"""The closed loop, its frontier and its report, candidates, and the decision matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import read, run_cli
from trtq import AdviseSpec, EvaluateSpec, SearchSpec, advise, evaluate, search
from trtq.errors import ArtifactError, UsageError
from trtq.search.budgets import AS_ASKED, NONE, budgets_at, smallest
from trtq.search.frontier import dominated
from trtq.testing.images import write_classes

CNN, VIT = "trtq.testing.models:tiny_cnn", "trtq.testing.models:tiny_vit"


def wanted(images: Path, folder: Path, **changes):
    values = {
        "model": CNN,
        "data": str(images),
        "out": str(folder / "out"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "metric": "l2",
        "images": 8,
        "calib_images": 16,
        "calib_cache": str(folder / "cache"),
        "methods": "never",
        "rounds": 6,
    }
    return SearchSpec.make({**values, **changes})


# ---- the arithmetic ----------------------------------------------------------------------------


@given(st.floats(0, 2), st.floats(1, 10), st.floats(0, 10), st.floats(0, 10))
def test_the_line_of_budgets_rises_from_the_narrowest_to_the_widest(t, least, above, further):
    asked, most = {"b": least + above}, {"b": least + above + further}
    got = budgets_at(t, asked, {"b": least}, most)["b"]
    assert least - 1e-9 <= got <= most["b"] + 1e-9
    assert budgets_at(AS_ASKED, asked, {"b": least}, most) == pytest.approx(asked)
    assert budgets_at(NONE, asked, {"b": least}, most)["b"] == pytest.approx(most["b"])


@given(st.floats(0.01, 0.99))
def test_bisection_ends_close_above_the_threshold(threshold):
    asked = []

    def holds(t):
        asked.append(t)
        return t >= threshold

    found = smallest(holds, 0.0, 1.0, 10)
    assert threshold <= found <= threshold + 2**-9
    assert len(asked) == 10


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=12))
def test_somebody_is_never_dominated_and_each_dominated_point_has_a_better_one(points):
    flags = dominated(points)
    assert not all(flags)
    front = [p for p, flag in zip(points, flags, strict=True) if not flag]
    for (cost, accuracy), flag in zip(points, flags, strict=True):
        assert flag == (not any((cost, accuracy) == p for p in front))
        assert any(c <= cost and a >= accuracy for c, a in front)


# ---- the verb ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(images: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    record = search(
        wanted(images, folder, budget=("size=0.2", "latency@xavier=50ms"), min_accuracy=-100.0)
    )
    assert record.met
    return folder


def test_a_search_leaves_the_chosen_model_and_its_proof(found: Path):
    out = found / "out"
    record, frontier, allocation = (
        read(out / f"{n}.json") for n in ("search", "frontier", "allocation")
    )
    assert {c["name"]: c["met"] for c in record["constraints"]} == {
        "size": True,
        "latency@xavier": True,
        "accuracy": True,
    }
    assert allocation["costs"]["size"] <= allocation["budgets"]["size"]
    made = read(out / "quantize.json")
    assert made["parity"]["passed"]
    assert made["files"]["model.qdq.onnx"]["bytes"] == (out / "model.qdq.onnx").stat().st_size
    assert (
        read(out / "evaluate.json")["calibration_images"] == 0
    )  # measured on images that calibration did not see
    chosen = next(t for t in record["tries"] if t["label"] == record["chosen"])
    assert chosen["within"]
    assert chosen["accurate"]
    assert [t["label"] for t in record["tries"]] == ["uniform w8a8", "at the budgets"]
    assert len(frontier["points"]) == 2
    costs = [p["cost"] for p in frontier["predicted"]["front"]]
    losses = [p["loss"] for p in frontier["predicted"]["front"]]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    for axis in ("size", "energy", "latency-xavier"):
        picture = (out / f"frontier.{axis}.svg").read_text()
        assert picture.startswith("<svg")
        assert "uniform w8a8" in picture
    wider = [v["wider"] for v in allocation["layers"] if v["wider"]]
    assert wider
    assert all(w["loss"] <= 0 or w["costs"]["size"] >= 0 for w in wider)


def test_the_report_of_a_search_says_why(found: Path):
    page = (found / "out/report.html").read_text()
    for text in (
        "Every constraint holds",
        "Why each layer got its width",
        "Frontier",
        "narrower would be",
        "latency@xavier",
    ):
        assert text in page


def test_a_second_search_measures_nothing_again(found: Path, images: Path):
    folders = sorted((found / "out/tries").iterdir())
    times = [(f / "evaluate.json").stat().st_mtime_ns for f in folders]
    again = search(
        wanted(images, found, budget=("size=0.2", "latency@xavier=50ms"), min_accuracy=-100.0)
    )
    assert again.met
    assert [
        (f / "evaluate.json").stat().st_mtime_ns for f in sorted((found / "out/tries").iterdir())
    ] == times


def test_minimizing_goes_down_as_far_as_accuracy_holds(images: Path, tmp_path: Path):
    record = search(
        wanted(images, tmp_path, min_accuracy=-30.0, minimize="energy", bits=("4,8",), rounds=7)
    )
    assert record.met
    good = [t for t in record.tries if t.accurate]
    chosen = next(t for t in record.tries if t.label == record.chosen)
    assert chosen.costs["energy"] == min(t.costs["energy"] for t in good)
    assert len(record.tries) > 2
    assert len(record.tries) <= 7 + 1


def test_what_cannot_hold_is_said_with_what_it_would_take(images: Path, tmp_path: Path):
    done = run_cli(
        "search",
        CNN,
        "--data",
        str(images),
        "--out",
        str(tmp_path / "o"),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--metric",
        "l2",
        "--images",
        "8",
        "--calib-images",
        "16",
        "--calib-cache",
        str(tmp_path / "c"),
        "--methods",
        "never",
        "--bits",
        "2,8",
        "--rounds",
        "6",
        "--budget",
        "size=0.1",
        "--min-accuracy",
        "0",
    )
    record = read(tmp_path / "o/search.json")
    chosen = next(t for t in record["tries"] if t["label"] == record["chosen"])
    assert chosen[
        "within"
    ]  # the folder holds the most accurate model within the budgets, not one that breaks them
    if record["met"]:  # the tiny model may keep its four classes even at 2 bits
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 3
    assert "DOES NOT HOLD" in done.stdout
    labels = [t["label"] for t in record["tries"]]
    assert "without budgets" in labels
    if any(t["accurate"] for t in record["tries"]):
        assert "times the budget" in done.stdout
    else:
        assert any("does not hold even without budgets" in n for n in record["notes"])


@pytest.mark.slow
def test_candidates_share_the_budgets_of_the_first(images: Path, tmp_path: Path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make(width):\n    torch.manual_seed(width)\n"
        "    layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(width, 4))\n\n\n"
        "def small():\n    return make(8)\n\n\ndef large():\n    return make(64)\n"
    )
    names = [f"{tmp_path / 'nets.py'}:{n}" for n in ("small", "large")]
    record = search(
        wanted(
            images,
            tmp_path,
            model="",
            candidates=(",".join(names),),
            budget=("size=0.9",),
            min_accuracy=-100.0,
        )
    )
    assert {t.model for t in record.tries} == {names[0]}
    assert any("left out" in n and "large" in n for n in record.notes)
    large = search(
        wanted(
            images,
            tmp_path,
            model="",
            candidates=tuple(reversed(names)),
            budget=("size=1KB",),
            min_accuracy=-100.0,
        )
    )
    assert {t.model for t in large.tries} == {names[0]}
    assert (
        large.reference.model == names[1]
    )  # the reference stays the first, though it is too big itself
    assert large.reference.costs["size"] > 100_000
    both = search(
        wanted(
            images,
            tmp_path,
            model="",
            candidates=tuple(reversed(names)),
            budget=("size=0.5",),
            min_accuracy=-100.0,
        )
    )
    assert {t.model for t in both.tries} == set(names)
    assert both.reference.model == names[1]
    assert (tmp_path / "out/model.qdq.onnx").is_file()


def test_searches_that_make_no_sense(images: Path, tmp_path: Path):
    for changes, error in (
        ({}, "There is nothing to search for: neither a budget nor an accuracy"),
        ({"model": "", "budget": ("size=0.2",)}, "needs a MODEL or --candidates: it got neither"),
        ({"candidates": (CNN,), "budget": ("size=0.2",)}, "it got both"),
        (
            {"model": "", "candidates": (CNN,), "checkpoint": "x.pt", "budget": ("size=0.2",)},
            "Write each as MODEL=CHECKPOINT",
        ),
        ({"minimize": "size", "budget": ("energy=0.2",)}, "--minimize needs --min-accuracy"),
        ({"minimize": "sice", "min_accuracy": -1.0}, "Cannot minimize 'sice'.*size"),
        ({"budget": ("size=0.01",)}, "The budget size cannot be met: .* at its narrowest widths"),
        ({"budget": ("latency@xavier=1us",)}, "The budget latency@xavier cannot be met"),
        ({"budget": ("latency@xaviar=1ms",)}, "Unknown device 'xaviar'"),
        (
            {"budget": ("size=0.2",), "bits": ("fp8", "8"), "target": "orin"},
            "fp8 for Jetson AGX Orin",
        ),
        (
            {"budget": ("latency@xavier=0.9",), "bits": ("fp8", "8")},
            "Cannot run fp8 for Jetson AGX Xavier",
        ),
        (
            {"model": "timm:nothing", "budget": ("size=huge",)},
            "Cannot read the budget 'size=huge'",
        ),  # before the model is looked for
        (
            {"budget": ("size=0.2",), "min_accuracy": 0.76},
            "--min-accuracy 0.76 would be 0.76 %.*Write -0.76 for points",
        ),
    ):
        with pytest.raises(UsageError, match=error):
            search(wanted(images, tmp_path, **changes))
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(
        sorted(images.rglob("*.png"))[:24]
        or sorted(p for p in images.rglob("*") if p.is_file())[:24]
    ):
        (flat / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"Cannot hold an accuracy of 90 %: .* has no labels"):
        search(wanted(flat, tmp_path, budget=("size=0.3",), min_accuracy=90.0))
    with pytest.raises(UsageError, match="Cannot compare --candidates: .* has no labels"):
        search(wanted(flat, tmp_path, model="", candidates=(CNN,), budget=("size=0.3",)))
    record = search(wanted(flat, tmp_path, budget=("size=0.3",), min_accuracy=-100.0))
    assert record.reference.measure == "agreement"
    loose = search(wanted(flat, tmp_path, budget=("size=0.3",)))
    assert loose.notes == ["no --min-accuracy: accuracy is measured, and any would do"]


def test_a_budget_and_another_cost_to_minimize(images: Path, tmp_path: Path):
    asked = {
        "budget": ("latency@xavier=1s",),
        "minimize": "size",
        "min_accuracy": -100.0,
        "bits": ("4,8",),
        "rounds": 5,
    }
    record = search(wanted(images, tmp_path, **asked))
    chosen = next(t for t in record.tries if t.label == record.chosen)
    assert chosen.costs["size"] == min(t.costs["size"] for t in record.tries)
    assert chosen.widths["w4a4"] >= 3
    assert all(t.within for t in record.tries)


def test_rounds_are_a_limit(images: Path, tmp_path: Path):
    record = search(
        wanted(
            images,
            tmp_path,
            budget=("size=0.2",),
            min_accuracy=0.0,
            rounds=1,
            methods="auto",
            bits=("2,8",),
        )
    )
    assert len(record.tries) <= 2  # one, besides 8 bits everywhere


def test_other_images_are_measured_again(images: Path, tmp_path: Path):
    val = write_classes(tmp_path / "val", 4, 6)
    asked = {"val": str(val), "budget": ("size=0.2",), "min_accuracy": -100.0}
    before = search(wanted(images, tmp_path, **asked))
    folders = sorted(p for p in val.iterdir() if p.is_dir())
    for source, target in (
        (folders[0], folders[1]),
        (folders[1], folders[0]),
    ):  # as many images, other labels
        picture = sorted(p for p in source.iterdir() if not p.name.startswith("moved"))[0]
        picture.rename(target / f"moved-{picture.name}")
    after = search(wanted(images, tmp_path, **asked))
    assert [t.folder for t in before.tries] != [t.folder for t in after.tries]


def test_two_checkpoints_of_one_model_are_two_candidates(images: Path, tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    from trtq.testing.models import tiny_cnn

    names = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.safetensors"
        save_file(tiny_cnn().state_dict(), str(path))
        names.append(f"{CNN}={path}")
    record = search(
        wanted(
            images,
            tmp_path,
            model="",
            candidates=tuple(names),
            budget=("size=0.3",),
            min_accuracy=-100.0,
        )
    )
    chosen = next(t for t in record.tries if t.label == record.chosen)
    assert len({t.label for t in record.tries}) == len(record.tries)
    made = read(tmp_path / "out/quantize.json")["model"]["weights_sha256"]
    assert read(tmp_path / "out/analysis.json")["model"]["weights_sha256"] == made
    assert read(tmp_path / "out/evaluate.json")["top1"] == chosen.accuracy


def test_layers_that_cannot_have_a_width_stay_out_of_the_search(images: Path, tmp_path: Path):
    (tmp_path / "spiky.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Spiky(nn.Module):\n    def "
        "__init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), "
        "nn.Linear(8, 4)\n"
        "        spike = torch.ones(1, 8, 30, 30)\n        spike[0, 0, 3, 3] = 1e6\n        "
        "self.register_buffer('spike', spike)\n\n"
        "    def forward(self, x):\n        y = self.b(torch.relu(self.a(x)) * self.spike)\n    "
        "    return self.head(y.mean((2, 3)))\n\n\n"
        "def make():\n    torch.manual_seed(0)\n    return Spiky()\n"
    )
    for bits in ("4,8", "8,fp8", "8,w4a16"):
        record = search(
            wanted(
                images,
                tmp_path / bits,
                model=f"{tmp_path / 'spiky.py'}:make",
                budget=("size=0.999",),
                bits=(bits,),
            )
        )
        analysis = read(tmp_path / bits / "out/analysis.json")
        assert "b" not in [layer["name"] for layer in analysis["layers"]]
        assert record.met
        assert "b" in analysis["left_out"]


# ---- advice ------------------------------------------------------------------------------------


def asked(images: Path, **changes):
    return advise(
        AdviseSpec.make(
            {
                "model": CNN,
                "data": str(images),
                "input_size": "3x32x32",
                "preset": "imagenet",
                **changes,
            }
        )
    )


def test_the_decision_matrix(images: Path, tmp_path: Path):
    many = write_classes(tmp_path / "many", 2, 70)
    assert asked(images).strategy == "Standard PTQ"  # 32 images are few
    assert asked(many).strategy == "PTQ + Clipping"
    assert asked(many, target="nano").strategy == "FP16 engine, no quantization"
    strict = asked(many, min_accuracy=-0.2, target="orin")
    assert (strict.strategy, strict.facts.strict) == ("QAOF Selection", True)
    assert "--minimize latency@orin" in strict.commands[0]
    narrow = asked(many, budget=("size=0.18",))
    assert (narrow.strategy, narrow.facts.bits) == ("QAOF Selection", 4)
    assert "--budget size=0.18" in narrow.commands[0]
    assert any("INT8 containers" in n for n in narrow.notes)
    assert asked(many, budget=("size=0.0301",)).facts.bits is None


def test_enough_labelled_images_and_few_bits_ask_for_training(
    images: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("trtq.commands.advise.MANY", 30)
    record = asked(images, budget=("size=0.15",))
    assert (record.strategy, record.precision) == ("QAT Fine-Tuning", "INT8 / INT4")
    assert [c.split()[1] for c in record.commands] == ["search", "finetune"]
    assert "--encodings out/encodings.safetensors" in record.commands[1]


def test_a_measured_int8_model_decides(images: Path, tmp_path: Path, cnn_out: Path):
    many, result = write_classes(tmp_path / "many", 2, 70), tmp_path / "r"
    result.mkdir()
    made = read(cnn_out / "quantize.json")
    qdq, fp32 = (str(cnn_out / f"model.{n}.onnx") for n in ("qdq", "fp32"))
    evaluate(EvaluateSpec(onnx=qdq, reference=fp32, data=str(images), out=str(result)))
    scored = read(result / "evaluate.json")
    (result / "quantize.json").write_text(json.dumps(made))
    for top1, strategy in ((79.9, "PTQ + Clipping"), (78.0, "QAOF Selection")):
        (result / "evaluate.json").write_text(
            json.dumps({**scored, "top1": top1, "reference_top1": 80.0})
        )
        assert asked(many, result=str(result)).strategy == strategy
    (result / "quantize.json").write_text(
        json.dumps({**made, "model": {**made["model"], "bits": "w4a4"}})
    )
    with pytest.raises(ArtifactError, match="Cannot take the INT8 accuracy from .*: it is of w4a4"):
        asked(many, result=str(result))


def test_advice_on_the_command_line(images: Path):
    done = run_cli(
        "advise", CNN, "--data", str(images), "--input-size", "3x32x32", "--preset", "imagenet"
    )
    assert done.returncode == 0, done.stderr
    assert "* Rapid Prototyping: Standard PTQ, FP16" in done.stdout
    assert "$ trtq quantize" in done.stdout


def test_no_image_is_left_for_accuracy(images: Path, tmp_path: Path):
    with pytest.raises(
        UsageError,
        match="left to measure accuracy on: it has 32 images, and calibration takes 32. Give "
        "others",
    ):
        search(wanted(images, tmp_path, budget=["size=0.2"], calib_images=64))
    assert not (tmp_path / "out/tries").exists()
