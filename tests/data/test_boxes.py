"""Images with boxes, letterboxes, and images of any number of channels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trtq
from trtq.data.boxes import Boxes
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.errors import DataError, UsageError
from trtq.testing.images import write_images


def yolo_preset(size: tuple[int, int, int] = (3, 64, 96)) -> Preprocess:
    return resolve_preprocess(input_size=size, preset="yolo")[0]


def write_coco(folder: Path, **changes: object) -> Path:
    """Write three images of 40x40 and annotations of two of them."""
    write_images(folder / "images", 3, size=40)
    content = {
        "images": [
            {"id": 7, "file_name": "000.png", "width": 40, "height": 40},
            {"id": 9, "file_name": "001.png", "width": 40, "height": 40},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 30, "bbox": [1, 2, 10, 20], "iscrowd": 1},
            {"image_id": 7, "category_id": 4, "bbox": [0, 0, 5, 5]},
            {"image_id": 9, "category_id": 4, "bbox": [0, 0, 0, 5]},
        ],
        "categories": [{"id": 30, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    (folder / "annotations.json").write_text(json.dumps({**content, **changes}))
    return folder


def targets_of(data: str, lines: list[str] | None = None) -> list[Boxes]:
    note = None if lines is None else lines.append
    samples = trtq.samples(data, preprocess=yolo_preset(), note=note)
    assert samples.boxed and samples.has_targets
    return [box for batch in samples.batches(2) for box in batch.targets()]


def test_coco(tmp_path):
    lines: list[str] = []
    first, second = targets_of(f"coco:{write_coco(tmp_path)}", lines)
    assert first.xyxy.tolist() == [[1, 2, 11, 22], [0, 0, 5, 5]]
    assert first.classes.tolist() == [1, 0] and first.crowd.tolist() == [True, False]
    assert len(second) == 0 and first.xyxy.dtype == np.float32
    assert any("1 annotations of annotations.json have no box" in line for line in lines)
    assert any("1 images of coco:" in line and "left out" in line for line in lines)
    samples = trtq.samples(f"coco:{tmp_path}/annotations.json", preprocess=yolo_preset())
    assert samples.describe()["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"images": [{"id": 7, "file_name": "gone.png"}, {"id": 9, "file_name": "001.png"}]},
            "lacks images that its annotations name: 1 of 2 in annotations.json: gone.png",
        ),
        ({"categories": []}, "category_id 30, 4 is not listed in the file"),
        ({"annotations": [{"image_id": 1, "category_id": 4}]}, "image_id 1 is not listed"),
        ({"annotations": 3}, "Cannot read the annotations annotations.json"),
        ({"images": [], "annotations": []}, "its annotations name no image"),
        (
            {
                "categories": [
                    {"id": 4, "name": "a"},
                    {"id": 4, "name": "b"},
                    {"id": 30, "name": "c"},
                ]
            },
            "two of its categories have one id",
        ),
        (
            {
                "images": [
                    {"id": 7, "file_name": "000.png", "width": 40, "height": 40},
                    {"id": 7, "file_name": "001.png", "width": 40, "height": 40},
                ],
                "annotations": [],
            },
            "two of its images have one id",
        ),
    ],
)
def test_annotations_that_do_not_fit(tmp_path, changes, text):
    with pytest.raises(DataError, match=text):
        targets_of(f"coco:{write_coco(tmp_path, **changes)}")


def test_annotation_files_that_are_missing_or_ambiguous(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="has 2 annotation files.*Choose one: coco:"):
        targets_of(f"coco:{tmp_path}")
    with pytest.raises(DataError, match="There are no annotations in coco:"):
        targets_of(f"coco:{tmp_path}/images")
    write_coco(
        tmp_path,
        images=[
            {"id": i, "file_name": f"00{i // 9}.png", "width": 30, "height": 30} for i in (7, 9)
        ],
    )
    (tmp_path / "other.json").unlink()
    with pytest.raises(DataError, match="for 30x30 pixels, the upright image has 40x40"):
        targets_of(f"coco:{tmp_path}")


def write_yolo(folder: Path, line: str = "1 0.5 0.5 0.25 0.5") -> Path:
    write_images(folder / "images/val", 2, size=40)
    (folder / "labels/val").mkdir(parents=True)
    (folder / "labels/val/000.txt").write_text(line + "\n")
    (folder / "data.yaml").write_text(
        "path: .\nval: images/val\nnames:\n  0: cat\n  1: dog\nnc: 2\n"
    )
    return folder / "data.yaml"


def test_yolo(tmp_path):
    lines: list[str] = []
    first, second = targets_of(f"yolo:{write_yolo(tmp_path)}", lines)
    assert first.xyxy.tolist() == [[15, 10, 25, 30]] and first.classes.tolist() == [1]
    assert len(second) == 0
    assert any("its split 'val'" in line for line in lines)
    assert any("1 images" in line and "have no label file" in line for line in lines)
    (tmp_path / "labels/val/000.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    polygon = targets_of(f"yolo:{tmp_path}/data.yaml/val")[0]
    np.testing.assert_allclose(polygon.xyxy, [[4, 4, 20, 24]], rtol=1e-5)
    (tmp_path / "list.txt").write_text("images/val/000.png\nimages/val/gone.png\n")
    (tmp_path / "data.yaml").write_text("val: list.txt\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="lacks images that it names: 1 of 2: .*gone.png"):
        targets_of(f"yolo:{tmp_path}/data.yaml")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("2 0.5 0.5 0.1 0.1", "has the class 2, there are 2"),
        ("0 0.5 0.5 0.1", "a line has 4 numbers"),
        ("0 50 50 10 10", "no shares of the image"),
        ("cat 0.5 0.5 0.1 0.1", "could not convert"),
    ],
)
def test_labels_that_are_damaged(tmp_path, line, text):
    with pytest.raises(DataError, match=text):
        targets_of(f"yolo:{write_yolo(tmp_path, line)}")


def test_yolo_files_that_are_damaged(tmp_path):
    path = write_yolo(tmp_path)
    with pytest.raises(UsageError, match="has the splits val.*Write it like yolo:"):
        targets_of(f"yolo:{path}/train")
    (tmp_path / "labels/val/000.txt").unlink()
    with pytest.raises(DataError, match="No image of .* has labels"):
        targets_of(f"yolo:{path}")
    path.write_text("names: 3\n")
    with pytest.raises(DataError, match=r"Cannot read .*data.yaml"):
        targets_of(f"yolo:{path}")


def in_input(place, xyxy):
    return xyxy * np.tile(place.scale, 2) + np.tile(place.offset, 2)


@pytest.mark.data
def test_pages_of_documents(trtq_data):
    samples = trtq.samples(f"coco:{trtq_data}/pages.zip", preprocess=yolo_preset((3, 256, 256)))
    assert len(samples) == 128 and len(samples.describe()["class_names"]) == 11
    batch = next(samples.batches(2))
    assert batch.input.shape == (2, 3, 256, 256)
    for box, place in zip(batch.targets(), batch.places, strict=True):
        assert len(box) and box.xyxy.max() <= max(place.size)
        np.testing.assert_allclose(
            place.to_original(in_input(place, box.xyxy)), box.xyxy, atol=1e-3
        )


def test_a_letterbox_keeps_proportions_and_its_place(tmp_path):
    picture = yolo_preset()  # 64 high, 96 wide
    image = Image.new("RGB", (50, 100), (255, 0, 0))
    out = picture.apply(image)
    assert out.shape == (3, 64, 96)
    assert out[0, :, 32:64].min() == 1.0 and out[1, :, 32:64].max() == 0.0
    assert torch.all((out[:, :, :32] * 255).round() == 114)
    place = picture.place(50, 100)
    assert place.scale == (0.64, 0.64) and place.offset == (32, 0)
    assert place.to_original(np.array([[32.0, 0.0, 64.0, 64.0]])).tolist() == [[0, 0, 50, 100]]
    assert place.to_original(np.array([[0.0, 0.0, 96.0, 64.0]])).tolist() == [[0, 0, 50, 100]]
    masked = picture.apply_mask(np.ones((100, 50), dtype=np.uint8), 255)
    assert masked[0, 0] == 255 and masked[0, 40] == 1
    crop = resolve_preprocess(input_size=(3, 100, 100), preset="imagenet")[0].place(200, 400)
    centre = crop.to_original(np.array([[50.0, 50.0, 50.0, 50.0]]))
    np.testing.assert_allclose(centre, [[100, 200, 100, 200]], atol=1.0)
    with pytest.raises(UsageError, match="Cannot use --resize with a letterbox"):
        resolve_preprocess(input_size=(3, 8, 8), preset="yolo", resize=9)


def test_blue_first_and_pixels_as_they_are():
    red = Image.new("RGB", (8, 8), (255, 0, 51))
    bgr, _ = resolve_preprocess(input_size=(3, 8, 8), preset="yolo", channel_order="bgr")
    assert [float(v) for v in bgr.apply(red)[:, 0, 0]] == pytest.approx([0.2, 0.0, 1.0])
    known, _ = resolve_preprocess(preset="imagenet", channel_order="bgr")
    assert known.mean == (0.406, 0.456, 0.485)
    plain, notes = resolve_preprocess(input_size=(3, 8, 8), input_dtype="uint8")
    assert plain.apply(red).dtype == torch.uint8 and plain.apply(red)[:, 0, 0].tolist() == [
        255,
        0,
        51,
    ]
    assert notes == []
    with pytest.raises(UsageError, match="--mean have no effect on a uint8 input"):
        resolve_preprocess(input_dtype="uint8", mean=(0.5,))
    with pytest.raises(UsageError, match="--channel-order bgr is for three colours"):
        resolve_preprocess(input_size=(1, 8, 8), channel_order="bgr")


def many(channels: int) -> Preprocess:
    size = (channels, 8, 8)
    return resolve_preprocess(input_size=size, mean=(0.0,), std=(1.0,))[0]


def test_any_number_of_channels(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 51)).save(tmp_path / "a.png")
    four = next(trtq.samples(str(tmp_path), preprocess=many(4)).batches(1)).input
    assert four[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.2])
    with pytest.raises(DataError, match="a.png .*: it has 4 channels .*, the model takes 2"):
        next(trtq.samples(str(tmp_path), preprocess=many(2)).batches(1))
    pages = tmp_path / "pages"
    pages.mkdir()
    layers = [Image.new("L", (8, 8), 51 * i) for i in range(5)]
    layers[0].save(pages / "p.tif", save_all=True, append_images=layers[1:])
    five = next(trtq.samples(str(pages), preprocess=many(5)).batches(1)).input
    assert five[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.full((6, 6, 2), 51, np.uint8), 0.2),
        (np.full((6, 6, 2), 13107, np.uint16), 0.2),
        (np.full((6, 6, 2), 0.2, np.float32), 0.2),
        (np.full((6, 6, 2), 7.0, np.float32), "its floats are 7 to 7"),
        (np.full((6, 6, 2), 7, np.int32), "its values are int32"),
        (np.zeros(3, np.uint8), r"its shape is \[3\]"),
        (np.array([[None]]), "Python objects"),
    ],
)
def test_arrays_as_images(tmp_path, array, value):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    samples = trtq.samples(f"images:{tmp_path}", preprocess=many(2))
    if isinstance(value, str):
        with pytest.raises(DataError, match=value):
            next(samples.batches(1))
    else:
        got = next(samples.batches(1)).input
        assert got.shape == (1, 2, 8, 8)
        assert float(got.mean()) == pytest.approx(value, abs=1e-4)
