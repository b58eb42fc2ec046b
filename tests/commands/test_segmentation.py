"""Segmentation: masks beside images, mIoU, training on pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import read, run_cli, spec
from trtq import (
    AnalyzeSpec,
    EvaluateSpec,
    FinetuneSpec,
    SearchSpec,
    analyze,
    evaluate,
    finetune,
    load_recipe,
    quantize,
    run,
    search,
)
from trtq.data.labels import PixelLabels, open_labels
from trtq.data.metrics import confusion, hit_rate, mean_overlap, overlap
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.source import open_source
from trtq.errors import DataError, UsageError
from trtq.progress import Silent
from trtq.recipe import recipe_of
from trtq.stages import plan
from trtq.testing.images import write_scenes

NET = "trtq.testing.models:tiny_segmenter"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 24)


@pytest.fixture(scope="module")
def ptq(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ptq")
    quantize(spec(scenes[0], out, model=NET, bits="w4a4"))
    return out


def asked(scenes, ptq: Path, out: Path, **changes):
    images, masks = map(str, scenes)
    values = {
        "model": NET,
        "data": images,
        "masks": masks,
        "val": images,
        "val_masks": masks,
        "out": str(out),
        "encodings": str(ptq / "encodings.safetensors"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "epochs": 2,
        "batch_size": 8,
        "parity_images": 8,
    }
    return FinetuneSpec.make({**values, **changes})


def test_overlaps_by_hand():
    wanted, found = np.array([[0, 0, 1], [1, 2, 9]]), np.array([[0, 1, 1], [1, 0, 2]])
    counts = confusion(found, wanted, 4, 9)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(overlap(counts), [100 / 3, 200 / 3, 0.0, np.nan])
    assert mean_overlap(counts) == pytest.approx(100 / 3)
    assert hit_rate(counts) == pytest.approx(60.0)
    assert mean_overlap(np.zeros((2, 2), dtype=np.int64)) == 0.0


def test_masks_follow_their_images(tmp_path: Path):
    """A mask painted into the red channel of its image stays equal to that channel.

    It does so through resizing and cropping.
    """
    picture = np.zeros((60, 90, 3), dtype=np.uint8)
    picture[:, :, 0] = np.arange(6).repeat(15)[None] * 40
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(np.arange(6, dtype=np.uint8).repeat(15)[None].repeat(60, 0)).save(
        tmp_path / "m.png"
    )
    for size, extra in (
        ((3, 32, 32), {"resize": 36}),
        ((3, 30, 45), {}),
        ((3, 32, 32), {"resize": 48, "crop": 40}),
    ):
        preprocess, _ = resolve_preprocess(
            input_size=size,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation="nearest",
            **extra,
        )
        image = preprocess.apply(Image.open(tmp_path / "a.png"))
        mask = preprocess.apply_mask(np.asarray(Image.open(tmp_path / "m.png")), 255)
        assert torch.equal((image[0] * 255 / 40).round().long(), mask)
        assert len(mask.unique()) > 1


def test_what_a_crop_adds_counts_for_nothing():
    preprocess = Preprocess(
        input_size=(3, 32, 64), mean=(0.0,) * 3, std=(1.0,) * 3, resize=32, crop=None
    )
    wide = preprocess.apply_mask(
        np.full((36, 48), 7, dtype=np.uint8), 255
    )  # 4:3 into 2:1: both sides are added
    assert sorted(wide.unique().tolist()) == [7, 255]


def test_pairs_are_found_by_name(tmp_path: Path):
    images, masks = write_scenes(tmp_path, 3)
    preprocess, _ = resolve_preprocess(input_size=(3, 32, 32), preset="imagenet")
    assert PixelLabels(open_source(str(images)), str(masks), preprocess, 255).of([0, 2]).shape == (
        2,
        32,
        32,
    )
    city, truth = tmp_path / "leftImg8bit", tmp_path / "gtFine"
    for town in ("aachen", "bochum"):
        for folder, ends in (
            (city, ("leftImg8bit",)),
            (truth, ("gtFine_labelIds", "gtFine_labelTrainIds", "gtFine_color")),
        ):
            (folder / town).mkdir(parents=True)
            for i, end in enumerate(ends):
                Image.fromarray(np.full((8, 8), i, dtype=np.uint8)).save(
                    folder / town / f"{town}_000_{end}.png"
                )
    found = open_labels(open_source(str(city)), str(truth), preprocess, 255)
    assert found is not None
    assert int(found.of([0]).max()) == 1  # labelTrainIds, not labelIds or color
    (masks / "001.png").unlink()
    with pytest.raises(
        DataError,
        match=r"001.png of .* has no mask in .*: 1 of 3 images have none. A mask has the name of "
        r"its image",
    ):
        open_labels(open_source(str(images)), str(masks), preprocess, 255)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(masks / "001.png")
    coloured = open_labels(open_source(str(images)), str(masks), preprocess, 255)
    assert coloured is not None
    with pytest.raises(DataError, match=r"mask 001.png of .*: it holds colours: its mode is RGB"):
        coloured.of([1])


def test_training_on_pixels(scenes, ptq: Path, tmp_path: Path):
    record = finetune(
        asked(
            scenes,
            ptq,
            tmp_path,
            epochs=6,
            lr=0.2,
            batch_norm="kept",
            distill=0.0,
            class_weights="median",
        )
    )
    assert record.measure == "mIoU"
    assert record.history[-1].score > record.history[0].score
    assert record.history[-1].score > 60
    e = record.evaluation
    assert e is not None
    assert e.miou == pytest.approx(record.history[record.best_epoch].score, abs=1.0)
    assert e.top1 is None
    assert e.iou is not None and len(e.iou) == 3
    assert "mIoU" in record.summary
    assert record.parity.passed
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    # the exported file says the same on its own, and the mean of the classes is the mean
    again = evaluate(
        EvaluateSpec(
            onnx=str(tmp_path / "model.qdq.onnx"),
            reference=str(tmp_path / "model.fp32.onnx"),
            data=str(scenes[0]),
            masks=str(scenes[1]),
        )
    )
    assert again.miou == e.miou
    assert again.miou == pytest.approx(np.mean(again.iou), abs=1e-3)
    assert "reference mIoU" in again.summary


def test_targets_that_do_not_fit(scenes, ptq: Path, images: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--val needs --val-masks"):
        finetune(asked(scenes, ptq, tmp_path, val_masks=None))
    with pytest.raises(UsageError, match="--val-masks needs --val"):
        asked(scenes, ptq, tmp_path, val=None)
    with pytest.raises(
        UsageError,
        match=r"on these targets: its output is \[2, 3, 32, 32\]. Give --masks and --val-masks",
    ):
        finetune(asked((images, None), ptq, tmp_path, masks=None, val=None, val_masks=None))
    with pytest.raises(
        UsageError, match=r"on these targets: its output is \[2, 4\]. Leave --masks out"
    ):
        finetune(asked(scenes, ptq, tmp_path, model="trtq.testing.models:tiny_cnn"))
    with pytest.raises(
        DataError,
        match=r"the highest class index is 255, the model has 3 classes. Give the ignored "
        r"class index with --ignore-index",
    ):
        finetune(asked(scenes, ptq, tmp_path, ignore_index=7, distill=0.0))
    with pytest.raises(UsageError, match=r"Cannot compare .* with masks: its output is \[8, 4\]"):
        flat = tmp_path / "flat"
        quantize(spec(images, flat))
        evaluate(
            EvaluateSpec(
                onnx=str(flat / "model.qdq.onnx"),
                data=str(scenes[0]),
                masks=str(scenes[1]),
                batch_size=8,
            )
        )
    with pytest.raises(DataError, match="the highest class index is 255, the model has 3 classes"):
        evaluate(
            EvaluateSpec(
                onnx=str(ptq / "model.qdq.onnx"),
                data=str(scenes[0]),
                masks=str(scenes[1]),
                ignore_index=9,
            )
        )


def test_a_recipe_with_masks(scenes, tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'out = "{tmp_path}/o"\n[quantize]\nmodel = "{NET}"\ndata = "{scenes[0]}"\ninput_size = '
        '"3x32x32"\npreset = "imagenet"\n'
        f'calib_images = 8\ncalib_cache = "{tmp_path}/c"\n[evaluate]\nmasks = "{scenes[1]}"\n'
    )
    run(load_recipe(recipe))
    assert read(tmp_path / "o/evaluate.json")["miou"] is not None
    page = (tmp_path / "o/report.html").read_text()
    assert "Mean intersection over union" in page
    assert "points of mIoU" in page


def test_a_recipe_that_trains(scenes, tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'out = "{tmp_path}/o"\n[quantize]\nmodel = "{NET}"\ndata = "{scenes[0]}"\ninput_size = '
        '"3x32x32"\npreset = "imagenet"\n'
        f'calib_images = 8\ncalib_cache = "{tmp_path}/c"\n[finetune]\nmasks = "{scenes[1]}"\n'
        f"epochs = 2\nbatch_size = 8\nparity_images = 8\n"
        f'[evaluate]\nmasks = "{scenes[1]}"\nheld_out = false\n'
    )
    loaded = load_recipe(recipe)
    first = run(loaded)
    assert [r.name for r in first] == ["quantize", "finetune", "evaluate", "report"]
    made, scored = read(tmp_path / "o/finetune/finetune.json"), read(tmp_path / "o/evaluate.json")
    assert scored["onnx_sha256"] == made["files"]["model.qdq.onnx"]["sha256"]
    page = (tmp_path / "o/report.html").read_text()
    assert "<h2>Training</h2>" in page
    assert "with training" in page
    assert "trtq finetune" in page
    assert "--no-compile" in page
    assert not any(r.ran for r in run(loaded))
    recipe.write_text(recipe.read_text().replace("epochs = 2", "epochs = 1"))
    again = run(load_recipe(recipe))
    assert {r.name: r.ran for r in again} == {
        "quantize": False,
        "finetune": True,
        "evaluate": True,
        "report": True,
    }
    # Without [finetune] the report is about the PTQ file again.
    plain = recipe.with_name("p.toml")
    text = recipe.read_text()
    plain.write_text(text[: text.index("[finetune]")] + text[text.index("[evaluate]") :])
    run(load_recipe(plain))
    assert "<h2>Training</h2>" not in (tmp_path / "o/report.html").read_text()
    # Images that training saw are no test, unless one says so.
    recipe.write_text(text.replace("held_out = false", ""))
    with pytest.raises(UsageError, match="The recipe evaluates on images that training saw"):
        run(load_recipe(recipe))
    val = write_scenes(tmp_path / "val", 8, seed=1)
    recipe.write_text(
        text.replace("held_out = false", "").replace(
            "epochs = 1", f'epochs = 1\nval = "{val[0]}"\nval_masks = "{val[1]}"'
        )
    )
    run(load_recipe(recipe))
    assert read(tmp_path / "o/evaluate.json")["spec"]["masks"] == str(val[1])
    with pytest.raises(UsageError, match=r"\[finetune\] cannot set model: the chain sets it"):
        recipe.write_text(text.replace("epochs = 1", 'epochs = 1\nmodel = "x"'))
        load_recipe(recipe)


def test_masks_on_the_command_line(scenes, ptq: Path):
    done = run_cli(
        "evaluate",
        str(ptq / "model.qdq.onnx"),
        "--reference",
        str(ptq / "model.fp32.onnx"),
        "--data",
        str(scenes[0]),
        "--masks",
        str(scenes[1]),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pixel_accuracy"] > 0


def wordless(folder: Path) -> str:
    """Return the text of a segmenter that does not say how many classes it has."""
    (folder / "net.py").write_text(
        "from trtq.testing.models import tiny_segmenter\n\n\ndef make():\n"
        "    net = tiny_segmenter()\n    del net.num_classes\n    return net\n"
    )
    return f"{folder / 'net.py'}:make"


def test_masks_say_that_an_output_is_scores_of_pixels(scenes, tmp_path: Path):
    images, masks = map(str, scenes)
    asked = {"model": wordless(tmp_path), "parity_images": 8, "preset_quant": "auto"}
    blind = quantize(spec(images, tmp_path / "o", **asked))
    assert any("not known to be scores of classes" in n for n in blind.notes)
    record = quantize(spec(images, tmp_path / "q", **asked, masks=masks))
    assert not any("not known to be scores of classes" in n for n in record.notes)
    assert record.preset.tried[-1].agreement is not None
    assert "masks" not in blind.spec
    assert record.spec["masks"] == masks


def test_a_recipe_quantizes_and_evaluates_with_the_same_masks(scenes, tmp_path: Path):
    tables = {
        "quantize": {
            "model": NET,
            "data": str(scenes[0]),
            "masks": str(scenes[1]),
            "calib_images": 8,
        },
        "evaluate": {},
    }
    recipe = recipe_of(tables, tmp_path / "r.toml")
    quantized, evaluated = plan(recipe, tmp_path / "o", Silent())[:2]
    assert quantized.inputs()["masks"] == evaluated.inputs()["masks"] is not None


def test_a_search_keeps_the_miou_of_masks(scenes, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    images, masks = map(str, scenes)
    asked = {
        "model": wordless(tmp_path),
        "data": images,
        "masks": masks,
        "out": str(tmp_path / "o"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "metric": "l2",
        "images": 4,
        "calib_images": 8,
        "methods": "never",
        "min_score": {"mIoU": -50.0},
        "budget": ["size=0.9"],
        "bits": ["8"],
    }
    record = search(SearchSpec.make(asked))
    assert next(c for c in record.constraints if c.name == "mIoU").met
    with pytest.raises(UsageError, match="--val needs --val-masks: the images of --data have"):
        search(SearchSpec.make({**asked, "val": images}))
    for wrong, message in (
        ({"val_masks": masks}, "--val-masks needs --val"),
        ({"masks": None, "ignore_index": 3}, "--ignore-index needs --masks"),
    ):
        with pytest.raises(UsageError, match=message):
            SearchSpec.make({**asked, **wrong})


def test_an_analysis_takes_the_loss_against_masks(scenes, tmp_path: Path):
    images, masks = map(str, scenes)
    asked = {
        "model": NET,
        "data": images,
        "out": str(tmp_path / "S.json"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "metric": "gradient",
        "trials": 1,
        "images": 4,
        "calib_images": 4,
        "bits": ["4"],
        "calib_cache": str(tmp_path / "c"),
    }
    with pytest.raises(DataError, match="The metric gradient needs labels"):
        analyze(AnalyzeSpec.make(asked))
    with pytest.raises(UsageError, match="--ignore-index needs --masks"):
        AnalyzeSpec.make({**asked, "ignore_index": 3})
    record = analyze(AnalyzeSpec.make({**asked, "masks": masks}))
    assert all(layer.loss["w4a4"] >= 0 for layer in record.layers)


@pytest.mark.data
def test_camvid_pairs(trtq_data: Path):
    preprocess, _ = resolve_preprocess(input_size=(3, 240, 320), preset="imagenet")
    source = open_source(f"{trtq_data}/camvid.zip/test")
    targets = open_labels(source, f"{trtq_data}/camvid.zip/testannot", preprocess, 11)
    assert targets is not None
    assert len(source) == 117
    values = targets.of([0, 50, 116])
    assert values.shape == (3, 240, 320)
    assert set(values.unique().tolist()) <= set(range(12))
