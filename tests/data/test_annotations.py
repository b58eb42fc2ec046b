"""Masks, keypoints and areas of COCO and YOLO files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trtq
from tests.data.test_boxes import targets_of, write_coco, write_yolo, yolo_preset
from trtq.data.boxes import Boxes
from trtq.errors import DataError, UsageError


def one(**changes: object) -> dict[str, object]:
    """An object of the first image."""
    return {"image_id": 7, "category_id": 4, "bbox": [4, 8, 10, 20], **changes}


def coco(folder: Path, *annotations: dict[str, object], **changes: object) -> str:
    return f"coco:{write_coco(folder, annotations=list(annotations), **changes)}"


def test_masks_and_areas_of_coco(tmp_path):
    square = [[4, 8, 14, 8, 14, 28, 4, 28]]
    runs = {"size": [40, 40], "counts": [4 * 40 + 8, 2, 1600 - 4 * 40 - 10]}
    lines: list[str] = []
    data = coco(
        tmp_path,
        one(segmentation=square, area=150.5),
        one(segmentation=runs, iscrowd=1),
        one(segmentation=[1, 2, 3]),
    )
    first, second = targets_of(data, lines)
    assert first.areas is not None and first.areas.tolist() == [150.5, 200, 200]
    assert first.masks is not None and first.masks.size == (40, 40)
    masks = first.masks.decoded()
    assert masks[0, 8:28, 4:14].all() and masks.sum(axis=(1, 2)).tolist() == [200, 2, 0]
    assert masks[1, 8:10, 4].all() and first.keypoints is None
    assert second.masks is not None and second.masks.decoded().shape == (0, 40, 40)
    assert any(
        "1 annotations of annotations.json have no polygons or run" in line for line in lines
    )
    assert targets_of(coco(tmp_path / "b", one(segmentation=[])))[0].masks is None


def test_masks_that_are_damaged_name_their_image(tmp_path):
    first, _ = targets_of(coco(tmp_path, one(segmentation=[[1, 2, 3, 4]])))
    assert first.masks is not None
    with pytest.raises(DataError, match="object in images/000.png of coco:.*: a polygon has 4 num"):
        first.masks.packed()


def test_keypoints_of_coco(tmp_path):
    first, second = targets_of(coco(tmp_path, one(keypoints=[1, 2, 2, 3, 4, 0]), one()))
    assert first.keypoints is not None
    assert first.keypoints.tolist() == [[[1, 2, 2], [3, 4, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert second.keypoints is not None and second.keypoints.shape == (0, 2, 3)
    wrong = coco(tmp_path / "b", one(keypoints=[1, 2, 2]), one(keypoints=[1, 2, 2, 3, 4, 0]))
    with pytest.raises(DataError, match="Cannot read the keypoints of annot.*have 3, 6 numbers"):
        targets_of(wrong)


def test_annotations_that_are_there_twice(tmp_path):
    lines: list[str] = []
    other = one(id=3, bbox=[0, 0, 5, 5])
    first, _ = targets_of(coco(tmp_path, one(id=3), one(id=3), other, one(id=4), one()), lines)
    assert len(first) == 4
    assert "1 annotations of annotations.json are in it twice and count once" in lines
    assert any("different annotations of annotations.json have one id" in line for line in lines)


@pytest.mark.parametrize("sized", [True, False])
def test_boxes_at_and_beyond_the_border(tmp_path, sized):
    images = [{"id": 7, "file_name": "000.png"}, {"id": 9, "file_name": "001.png"}]
    if sized:
        images = [{**i, "width": 40, "height": 40} for i in images]
    lines: list[str] = []
    inside = one(bbox=[-1, 10, 10, 40])
    first, _ = targets_of(coco(tmp_path, inside, images=images), lines)
    assert first.xyxy.tolist() == [[0, 10, 9, 40]]
    assert sum("a little outside" in line for line in lines) == 1
    beyond = coco(tmp_path / "b", one(bbox=[30, 10, 30, 10]), images=images)
    with pytest.raises(
        DataError,
        match=r"A box of images/000.png of coco:.* is outside its image: it is 30, 10, 60, 20 "
        r"\(left, top, right, bottom\) in an image of 40x40 pixels. Correct the annotation",
    ):
        targets_of(beyond)


def test_content_of_annotations_tells_data_apart(tmp_path):
    from trtq.data.adapters import fingerprint

    data = coco(tmp_path, one())
    first = fingerprint(data)
    assert first == fingerprint(data)
    same = trtq.samples(data, preprocess=yolo_preset()).targets_identity()
    coco(tmp_path, one(iscrowd=1))
    assert fingerprint(data) != first
    other = trtq.samples(data, preprocess=yolo_preset()).targets_identity()
    assert other != same and other is not None


def test_polygons_of_yolo(tmp_path):
    data = f"yolo:{write_yolo(tmp_path, '0 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5')}"
    first, second = targets_of(data)
    assert first.xyxy.tolist() == [[10, 10, 30, 20]]
    assert first.masks is not None and first.masks.decoded()[0, 10:20, 10:30].all()
    assert first.masks.decoded().sum() == 200
    assert second.masks is not None and len(second.masks) == 0
    lines: list[str] = []
    (tmp_path / "labels/val/001.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    _, second = targets_of(data, lines)
    assert second.masks is not None and second.masks.decoded()[0].sum() == 400
    assert any("1 of 2 objects of yolo:" in line and "filled boxes" in line for line in lines)


def posed(folder: Path, line: str, shape: str = "[2, 3]") -> str:
    path = write_yolo(folder, line)
    path.write_text(path.read_text() + f"kpt_shape: {shape}\n")
    return f"yolo:{path}"


def test_keypoints_of_yolo(tmp_path):
    first, second = targets_of(posed(tmp_path, "1 0.5 0.5 0.25 0.5 0.25 0.5 2 0 0 0"))
    assert first.xyxy.tolist() == [[15, 10, 25, 30]] and first.masks is None
    assert first.keypoints is not None
    assert first.keypoints.tolist() == [[[10, 20, 2], [0, 0, 0]]]
    assert second.keypoints is not None and second.keypoints.shape == (0, 2, 3)
    flat, _ = targets_of(posed(tmp_path / "b", "1 0.5 0.5 0.25 0.5 0.25 0.5 -1 -1", "[2, 2]"))
    assert flat.keypoints is not None
    assert flat.keypoints.tolist() == [[[10, 20, 2], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1 0.5 0.5 0.25 0.5", "a line has 5 numbers, expected 11.*keypoints that kpt_shape says"),
        ("1 0.5 0.5 0.25 0.5 5 5 2 0 0 0", r"a keypoint outside the image: \[5.0, 5.0, 2.0\]"),
        ("1 0.5 0.5 0.25 0.5 0.1 nan 2 0 0 0", "a number that is not finite"),
    ],
)
def test_keypoints_that_are_damaged(tmp_path, line, text):
    with pytest.raises(DataError, match=text):
        targets_of(posed(tmp_path, line))


def test_yolo_boxes_outside_the_picture(tmp_path):
    lines: list[str] = []
    first, _ = targets_of(f"yolo:{write_yolo(tmp_path, '0 0.05 0.5 0.2 0.5')}", lines)
    np.testing.assert_allclose(first.xyxy, [[0, 10, 6, 30]], rtol=1e-5)
    assert any("1 boxes of yolo:" in line and "cut at the borders" in line for line in lines)
    with pytest.raises(DataError, match="is outside its image: it is -0.5, .* of 1x1, in shares"):
        targets_of(f"yolo:{write_yolo(tmp_path / 'b', '0 0 0 1 0.5')}")
    with pytest.raises(DataError, match="a line has 6 numbers"):
        targets_of(f"yolo:{write_yolo(tmp_path / 'c', '0 0.1 0.1 0.2 0.2 0.9')}")


def test_files_beside_the_annotations_are_told(tmp_path):
    data = coco(tmp_path, one())
    (tmp_path / "README.md").write_text("pages")
    lines: list[str] = []
    targets_of(data, lines)
    assert any("1 files in coco:" in line and "such as README.md" in line for line in lines)
    assert not any("annotations.json" in line for line in lines)


VOC = """<annotation><folder>VOC</folder><filename>{file}</filename>
<size><width>40</width><height>40</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def voc_object(*corners: object, name: str = "cat", difficult: object = 0) -> str:
    return OBJECT.format(*corners, name=name, difficult=difficult)


def write_voc(folder: Path, *objects: str, file: str = "000.jpg") -> Path:
    """Write two pictures of 40x40; the second one is empty."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for n in ("000", "001"):
        Image.new("RGB", (40, 40)).save(folder / f"JPEGImages/{n}.jpg")
        text = VOC.format(file=f"{n}.jpg", objects="")
        (folder / f"Annotations/{n}.xml").write_text(text)
    text = VOC.format(file=file, objects="".join(objects))
    (folder / "Annotations/000.xml").write_text(text)
    (folder / "ImageSets/Main/val.txt").write_text("000\n")
    return folder


def test_voc(tmp_path):
    dog = voc_object(5, 6, 20, 30, name="dog", difficult=1)
    lines: list[str] = []
    folder = write_voc(tmp_path / "voc", voc_object(1, 1, 10, 20), dog)
    first, second = targets_of(f"voc:{folder}", lines)
    assert first.xyxy.tolist() == [[0, 0, 10, 20], [4, 5, 20, 30]]  # the first pixel is 1
    assert first.classes.tolist() == [0, 1] and first.difficult.tolist() == [False, True]
    assert len(second) == 0 and not first.crowd.any() and first.masks is None
    assert any("2 classes of voc:" in line and "order of their names" in line for line in lines)
    assert len(lines) == 1
    (only,) = targets_of(f"voc:{folder}/val")
    assert only.xyxy.tolist() == first.xyxy.tolist()
    (folder / "classes.txt").write_text("dog\nbird\ncat\n")
    lines.clear()
    samples = trtq.samples(f"voc:{folder}", preprocess=yolo_preset(), note=lines.append)
    assert samples.describe()["class_names"] == ["dog", "bird", "cat"] and lines == []


def test_voc_with_pixels_from_zero_and_boxes_without_area(tmp_path):
    lines: list[str] = []
    objects = (voc_object(0, 5, 10, 20), voc_object(5, 5, 5, 20), voc_object(9, 9, 8, 20))
    first, _ = targets_of(f"voc:{write_voc(tmp_path, *objects)}", lines)
    assert first.xyxy.tolist() == [[0, 5, 10, 20]]
    assert any("begin at 0: pixels are counted from 0" in line for line in lines)
    assert any("2 objects of voc:" in line and "no box with an area" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a/>", "it begins with <a>, expected <annotation>"),
        ("<annotation>", "it is not XML"),
        ("", "it is not XML"),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
            "it declares a document type 'a', which annotations do not need",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            "it declares a document type",
        ),
        (f"<annotation>{' ' * 2**20}</annotation>", "it has 1048601 bytes, the limit is 1048576"),
        (VOC.format(file="", objects="<object><name/></object>"), "an object has no name"),
        (
            VOC.format(file="", objects="<object><name>a</name></object>"),
            "the a has no bndbox",
        ),
        (VOC.format(file="", objects=voc_object(1, "x", 3, 4)), "cat has 'x', expected a number"),
        (VOC.format(file="", objects=voc_object(1, "nan", 3, 4)), "'nan', expected a number"),
        (
            VOC.format(file="", objects=voc_object(1, 1, 9, 9)).replace("40<", "8<"),
            "are for 8x8 pixels, the upright image has 40x40",
        ),
        (
            VOC.format(file="", objects=voc_object(100, 1, 200, 9)),
            "outside its image: it is 99, ",
        ),
    ],
)
def test_voc_files_that_are_damaged(tmp_path, text, message):
    folder = write_voc(tmp_path)
    (folder / "Annotations/000.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        targets_of(f"voc:{folder}")


def test_voc_data_that_do_not_fit(tmp_path):
    folder = write_voc(tmp_path / "a", voc_object(1, 1, 9, 9))
    with pytest.raises(UsageError, match="no ImageSets/Main/train.txt; known: val. Leave /train"):
        targets_of(f"voc:{folder}/train")
    (folder / "ImageSets/Main/val.txt").write_text("000 1\n009 -1\n")
    with pytest.raises(DataError, match="lists images without annotations: 1 of 2 in .*: 009"):
        targets_of(f"voc:{folder}/val")
    (folder / "labels.txt").write_text("dog\n")
    with pytest.raises(DataError, match="list labels.txt of voc:.*: it lacks cat. Write one name"):
        targets_of(f"voc:{folder}")
    (folder / "labels.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match="it has a name twice"):
        targets_of(f"voc:{folder}")
    (folder / "labels.txt").unlink()
    (folder / "Annotations/b").mkdir()
    (folder / "Annotations/000.xml").rename(folder / "Annotations/b/001.xml")
    with pytest.raises(DataError, match="has two annotation files for JPEGImages/001.jpg"):
        targets_of(f"voc:{folder}")
    (folder / "JPEGImages/001.jpg").unlink()
    with pytest.raises(DataError, match="lacks images that its annotations name: 1 of 2.*001.jpg"):
        targets_of(f"voc:{folder}")
    bare = tmp_path / "b"
    bare.mkdir()
    Image.new("RGB", (8, 8)).save(bare / "a.png")
    with pytest.raises(DataError, match="There are no annotations in voc:.*no .xml file"):
        targets_of(f"voc:{bare}")


def test_voc_names_its_image_where_the_stems_differ(tmp_path):
    folder = write_voc(tmp_path, voc_object(1, 1, 9, 9))
    (folder / "Annotations/000.xml").rename(folder / "Annotations/other.xml")
    first, _ = targets_of(f"voc:{folder}")
    assert first.xyxy.tolist() == [[0, 0, 9, 9]]


def own(*targets: object) -> list[tuple[np.ndarray, object]]:
    return [(np.zeros((3, 8, 8), np.float32), t) for t in targets]


ONE = {"boxes": [[1, 2, 3, 4]], "labels": [5]}


def test_boxes_of_a_program():
    torchvision = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([5])}
    crowd = {**torchvision, "iscrowd": torch.tensor([1]), "image_id": 7}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    samples = trtq.samples(own(torchvision, crowd, none, Boxes.of([[1, 2, 3, 4]], [6])))
    assert samples.boxed and samples.has_targets and not samples.dense
    first, second, third, fourth = next(samples.batches(4)).targets()
    assert first.xyxy.tolist() == [[1, 2, 3, 4]] and first.classes.tolist() == [5]
    assert second.crowd.tolist() == [True] and len(third) == 0 and fourth.classes.tolist() == [6]
    assert not trtq.samples(own(1, 2)).boxed
    other = trtq.samples(own(torchvision, crowd, none, Boxes.of([[1, 2, 3, 4]], [7])))
    assert other.targets_identity() != samples.targets_identity()


def test_masks_keypoints_and_areas_of_a_program():
    """Nothing of torchvision's targets is lost: masks are the pixels that were given."""
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, 2:4, 1:3] = 1
    points = torch.tensor([[[1.0, 2, 2], [3, 4, 0]]])
    given = {**ONE, "masks": mask, "keypoints": points, "area": torch.tensor([4.0])}
    (found,) = next(trtq.samples(own(given)).batches(1)).targets()
    assert found.masks.decoded().tolist() == mask.bool().tolist()
    assert found.keypoints.tolist() == points.tolist()
    assert found.areas.tolist() == [4.0]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            {"boxes": [[1, 2, 3]], "labels": [1]},
            r"its boxes are \[1, 3\] and its labels \[1\]",
        ),
        ({"boxes": [[1, 2, 3, np.nan]], "labels": [1]}, "not finite. Give trtq.data.boxes.Boxes"),
        ({"boxes": [["a"] * 4], "labels": [1]}, "Cannot use the targets of list of the program"),
        ({"boxes": [[5, 5, 2, 9]], "labels": [1]}, r"its box \[5, 5, 2, 9\] ends before it begins"),
        ({"boxes": [[1, 2, 3, 4]], "labels": [0.5]}, "its labels are fractions"),
        (3, "the first target has boxes, another is a int"),
        ({**ONE, "masks": np.zeros((2, 8, 8))}, r"its masks are \[2, 8, 8\], expected \[1, H, W\]"),
        ({**ONE, "masks": np.full((1, 8, 8), 0.5)}, "its masks hold more than 0 and 1"),
        ({**ONE, "keypoints": [[[1, 2]]]}, r"its keypoints are \[1, 1, 2\], expected \[1, K, 3\]"),
        ({**ONE, "keypoints": [[[1, np.nan, 2]]]}, "its keypoints are not finite"),
        ({**ONE, "area": [-1]}, r"its areas are \[1\], expected \[1\] from 0 on"),
    ],
)
def test_boxes_of_a_program_that_are_none(target, text):
    samples = trtq.samples(own(Boxes.none(), target))
    with pytest.raises(DataError, match=text):
        next(samples.batches(2)).targets()
