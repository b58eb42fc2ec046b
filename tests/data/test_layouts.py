"""Where annotation files, images and lists of splits may lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import trtq
from tests.data.test_annotations import voc_object, write_voc
from tests.data.test_boxes import targets_of, write_coco, write_yolo
from trtq.errors import DataError


def test_the_annotation_file_that_was_named_is_read(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "annotations.json", tmp_path / "old")
    assert len(targets_of(f"coco:{tmp_path}/annotations.json")) == 2


def test_the_hint_at_annotation_files_in_other_folders_is_no_path(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "a").mkdir()
    shutil.copy(tmp_path / "annotations.json", tmp_path / "a/b.json")
    shutil.move(tmp_path / "annotations.json", tmp_path / "a")
    hint = f"Move the one to use into {tmp_path}/annotations"
    with pytest.raises(DataError, match="has 2 annotation files") as caught:
        targets_of(f"coco:{tmp_path}")
    assert caught.value.hint == hint
    (tmp_path / "annotations").mkdir()
    shutil.move(tmp_path / "a/b.json", tmp_path / "annotations")
    with pytest.raises(DataError, match="Choose one: coco:.*/annotations/b.json"):
        targets_of(f"coco:{tmp_path}")
    assert len(targets_of(f"coco:{tmp_path}/annotations/b.json")) == 2


def test_annotations_beyond_the_limit_are_refused_and_not_cut(tmp_path, monkeypatch):
    write_coco(tmp_path / "c")
    shutil.make_archive(str(tmp_path / "c"), "zip", tmp_path / "c")
    size = (tmp_path / "c/annotations.json").stat().st_size
    monkeypatch.setattr("trtq.data.source.MAX_ANNOTATIONS", size - 1)
    for place in ("c", "c.zip"):
        with pytest.raises(DataError, match=f"annotations.json .* has {size} bytes, the limit is"):
            targets_of(f"coco:{tmp_path}/{place}")
    monkeypatch.setattr("trtq.data.source.MAX_ANNOTATIONS", size)
    assert len(targets_of(f"coco:{tmp_path}/c.zip")) == 2


def test_two_entries_for_one_image_are_refused(tmp_path):
    images = [{"id": i, "file_name": "000.png", "width": 40, "height": 40} for i in (7, 9)]
    write_coco(tmp_path, images=images)
    with pytest.raises(DataError, match="two of its images are images/000.png"):
        targets_of(f"coco:{tmp_path}")


def test_annotations_may_begin_with_a_byte_order_mark(tmp_path):
    file = write_coco(tmp_path) / "annotations.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(targets_of(f"coco:{tmp_path}")) == 2


def test_yolo_images_may_be_here_and_elsewhere(tmp_path, monkeypatch):
    here, there = (write_yolo(tmp_path / name).parent for name in ("here", "there"))
    (here / "data.yaml").write_text(f"names: [cat, dog]\nval: [images, {there}/images]\n")
    monkeypatch.chdir(tmp_path)
    ids = trtq.samples("yolo:here/data.yaml").ids
    assert ids and all(i.startswith(("here/images/", "there/images/")) for i in ids)


def test_yolo_classes_without_a_name_are_refused(tmp_path):
    file = write_yolo(tmp_path)
    file.write_text("val: images/val\nnames: {1: cat, 2: dog}\n")
    with pytest.raises(DataError, match="has the indices 1, 2, expected 0 to 1"):
        trtq.samples(f"yolo:{file}")


def two_sets(tmp_path: Path) -> list[Path]:
    """Two sets side by side, as VOC2007 and VOC2012 are, with the same names of files."""
    roots = [tmp_path / "VOC1", tmp_path / "VOC2"]
    for root, left in zip(roots, (3, 7), strict=True):
        write_voc(root, voc_object(left, 2, 20, 20))
    return roots


def test_voc_sets_side_by_side_keep_their_own_images(tmp_path):
    two_sets(tmp_path)
    samples = trtq.samples(f"voc:{tmp_path}")
    boxes = {i: b for x in samples.batches(1) for i, b in zip(x.ids, x.targets(), strict=True)}
    lefts = {i: b.xyxy[:, 0].tolist() for i, b in boxes.items() if len(b)}
    assert lefts == {"VOC1/JPEGImages/000.jpg": [2], "VOC2/JPEGImages/000.jpg": [6]}


def test_a_split_of_a_voc_set_has_the_annotations_of_that_set(tmp_path):
    _, second = two_sets(tmp_path)
    (second / "ImageSets/Main/val.txt").unlink()
    samples = trtq.samples(f"voc:{tmp_path}/val")
    assert list(samples.ids) == ["VOC1/JPEGImages/000.jpg"]
    (boxes,) = (b for batch in samples.batches(1) for b in batch.targets())
    assert boxes.xyxy.tolist() == [[2, 1, 20, 20]]


def test_a_number_of_yolo_classes_that_is_not_that_of_their_names_is_refused(tmp_path):
    file = write_yolo(tmp_path)
    text = file.read_text()
    file.write_text(f"{text}\nnc: 7\n")
    with pytest.raises(DataError, match=r"nc in .* is 7, and names has \d. Write the number"):
        trtq.samples(f"yolo:{file}")


def test_a_yolo_image_that_is_listed_twice_counts_once(tmp_path):
    file = write_yolo(tmp_path)
    image = min((tmp_path / "images/val").glob("*.png"))
    (tmp_path / "val.txt").write_text(f"{image}\n{image}\n")
    file.write_text("val: val.txt\nnames: [cat, dog]\n")
    notes = []
    samples = trtq.samples(f"yolo:{file}", note=notes.append)
    assert len(samples) == 1
    assert any(note.startswith("1 images of yolo:") for note in notes)
