"""Tasks from quantization to figures, notes and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trtq
from trtq import EvaluateSpec, evaluate
from trtq.artifact import read_json
from trtq.data.image_files import open_images
from trtq.data.image_place import ImagePlace
from trtq.data.opened import Request
from trtq.data.preprocess import resolve_preprocess
from trtq.errors import DataError, UsageError
from trtq.flow.gallery import View, visible
from trtq.testing.images import write_scenes

SIDE = 32


class Body(nn.Module):
    """A map of features at half the size, and a head on it."""

    def __init__(self, head: nn.Module, channels: int):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, 2, 1)
        self.score, self.head = nn.Conv2d(8, channels, 1), head

    def forward(self, x):
        return self.head(self.score(self.body(x).relu()))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.score = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.score(self.body(x).relu().mean(2).transpose(1, 2))


@pytest.fixture(autouse=True)
def _seed(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


def quantized(model, data, task, **options):
    return trtq.quantize(model.eval(), data, task=task, parity_images=4, calib_images=8, **options)


def test_masks_of_another_size_and_pictures(tmp_path):
    images, masks = map(str, write_scenes(tmp_path / "scenes", 8))
    picture, _ = resolve_preprocess(input_size=(3, SIDE, SIDE))
    done = trtq.quantize(
        trtq.load(Body(nn.Identity(), 4).eval(), preprocess=picture),
        images,
        bits="w2a2",
        task="segmentation",
        preset_quant="none",
        parity_images=4,
    )
    assert [f.name for f in done.done.alike] == ["agreement", "agreement mIoU"]
    done.save(tmp_path / "out")
    record = trtq.evaluate(
        trtq.EvaluateSpec(
            onnx=str(tmp_path / "out/model.qdq.onnx"),
            reference=str(tmp_path / "out/model.fp32.onnx"),
            data=images,
            masks=masks,
            out=str(tmp_path / "scores"),
            save_pictures=str(tmp_path / "pictures"),
        )
    )
    note = "the scores of 16x16 are resized to the masks of 32x32, bilinear"
    assert [n for n in record.notes if "resized" in n] == [note]
    assert record.miou is not None
    assert record.summary.count("agreement ") == 1 + record.summary.count("agreement mIoU")
    rows = record.pictures
    assert rows
    assert rows[0].difference >= rows[-1].difference > 0.0
    with Image.open(tmp_path / "pictures" / rows[0].file) as shown:
        assert shown.size == (2 * SIDE, SIDE + 18)
    assert read_json(tmp_path / "scores/evaluate.json")["pictures"][0]["file"] == "01.jpg"


def test_agreement_is_named_once_where_the_model_says_that_it_has_classes():
    net = Body(nn.Identity(), 4)
    net.num_classes = 4
    done = quantized(net, torch.randn(8, 3, SIDE, SIDE), "segmentation")
    assert done.done.parity.answer.agreement is not None
    assert done.summary.count("agreement ") == 1 + done.summary.count("agreement mIoU") == 2


def test_a_picture_shows_what_the_model_sees():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    place = ImagePlace(scale=(0.5, 0.5), offset=(0.0, 5.0), size=(40, 20))
    seen = visible(image, View(place, (20, 20)))
    assert seen.size == (20, 20)
    assert [seen.getpixel((2, y)) for y in (1, 10, 18)] == [(0, 0, 0), (255, 0, 0), (0, 0, 0)]
    assert seen.getpixel((17, 10)) == (0, 0, 255)


def test_depth_from_files_with_targets(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        sample = {
            "input": rng.normal(size=(3, SIDE, SIDE)).astype(np.float32),
            "target": rng.uniform(0.5, 2.0, (SIDE, SIDE)).astype(np.float32),
        }
        np.savez(tmp_path / f"{i}.npz", **sample)
    model = Body(nn.Softplus(), 1)
    done = quantized(model, str(tmp_path), "depth", input_size=(3, SIDE, SIDE))
    seen = done.evaluate(str(tmp_path))
    assert list(seen.figures) == ["AbsRel", "RMSE", "delta1"]
    assert seen.agreement["agreement within 10 %"].value > 99.0
    assert "the maps of 16x16 are resized to the targets of 32x32, bilinear" in seen.notes
    assert f"AbsRel {seen.figures['AbsRel'].value:.4g}" in str(seen)


def test_depth_of_images_with_maps_beside_them(tmp_path):
    """One ``.npy`` of [H, W] for each image, cropped and turned as its image is."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / n for n in ("images", "depths")]
    for folder in folders:
        folder.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
            folders[0] / f"{i}.png"
        )
        np.save(folders[1] / f"{i}.npy", rng.uniform(0.5, 2.0, (40, 48)).astype(np.float32))
    model = Body(nn.Softplus(), 1)
    done = quantized(model, str(folders[0]), "depth", input_size=(3, SIDE, SIDE))
    path = done.export().save(tmp_path / "m.onnx")
    spec = {"onnx": str(path), "data": str(folders[0]), "masks": str(folders[1])}
    record = evaluate(EvaluateSpec(**spec, task="depth"))
    names = [f.name for f in record.figures]
    assert names == ["AbsRel", "RMSE", "delta1"] and record.images == 4
    picture, _ = resolve_preprocess(input_size=(3, SIDE, SIDE))
    given = open_images(Request(text=str(folders[0]), masks=str(folders[1])))
    samples = given.make(None, picture)
    (batch,) = samples.batches(4)
    first = np.load(folders[1] / "0.npy")
    maps = batch.targets()
    assert (maps.dtype, list(maps.shape)) == (torch.float32, [4, SIDE, SIDE])
    assert set(maps[0].unique().tolist()) <= {*first.ravel().tolist(), 0.0}
    with pytest.raises(DataError, match="they hold numbers, the model has 4 classes"):
        samples.expect(4, "m")
    for wrong, why in (
        (np.zeros((2, 3, 4), np.float32), r"it is float32 \[2, 3, 4\]"),
        (np.array(["a"]), "it is <U1"),
    ):
        np.save(folders[1] / "1.npy", wrong)
        with pytest.raises(DataError, match=f"Cannot use the map 1.npy of .*: {why}"):
            next(samples.batches(4)).targets()
    (folders[1] / "1.npy").write_bytes(b"damaged")
    with pytest.raises(DataError, match="it is no array of NumPy"):
        next(samples.batches(4)).targets()
    (folders[1] / "1.npy").unlink()
    with pytest.raises(DataError, match="1.png of .* has no mask in .*depths"):
        given.make(None, picture)


def test_lines_of_text(tmp_path):
    images = torch.randn(8, 3, SIDE, SIDE)
    done = quantized(Reader(), images, "text-lines")
    alone = done.evaluate(images)
    assert list(alone.agreement) == ["agreement character accuracy", "agreement equal lines"]
    assert alone.figures == {}
    texts = [(x, "text") for x in images]
    with pytest.raises(UsageError, match="its targets are texts, and the file does not say"):
        done.evaluate(texts)
    indices = [(x, [1, 2, -100]) for x in images]
    assert "character accuracy" in done.evaluate(indices).figures


def test_vectors_labels_and_decisions(tmp_path):
    images = torch.randn(8, 3, SIDE, SIDE)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    done = quantized(Body(pool, 6), images, "embedding")
    seen = done.evaluate([(x, i % 2) for i, x in enumerate(images)])
    assert "recall@1" in seen.figures
    assert seen.agreement["mean cosine"].value > 0.99
    with pytest.raises(UsageError, match="expected one label a sample"):
        done.evaluate([(x, [0.5]) for x in images])
    targets = [(x, [1, 0, 0, 1, 0, i % 2]) for i, x in enumerate(images)]
    seen = done.evaluate(targets, task="multi-label:logits")
    assert list(seen.figures) == ["mAP", "F1"]
    with pytest.raises(UsageError, match="a target is 3, expected 0 or 1"):
        done.evaluate([(x, [3] * 6) for x in images], task="multi-label:logits")
    seen = done.evaluate([(x, 1) for x in images], task="text-classification")
    assert list(seen.figures) == ["accuracy"]
    with pytest.raises(UsageError, match="No output fits the task text-lines"):
        done.evaluate(images, task="text-lines")


def test_texts_tell_two_sets_of_targets_apart():
    image = torch.zeros(3, 4, 4)
    one, other, same = (
        trtq.samples([(image, text)]).targets_identity() for text in ("a", "b", "a")
    )
    assert one == same != other
