"""Folders, zips and binary files of images."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from trtq.data.source import open_source
from trtq.errors import DataError, UsageError
from trtq.testing.images import write_classes, write_images

# ---- data --------------------------------------------------------------------------------------


def test_zip_sources(images, tmp_path):
    shutil.copytree(images, tmp_path / "photos")  # a name that says nothing about its content
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path, "photos")
    part = open_source(f"{tmp_path}/set.zip/photos")
    with pytest.raises(DataError, match="holds one folder that holds folders.* Use .*/set.zip/"):
        open_source(f"{tmp_path}/set.zip")
    assert part.classes == ["class0", "class1", "class2", "class3"]
    assert len(part) == 32
    assert part.labels[0] == 0
    assert open_source(str(images)).digest([0, 5]) == part.digest([0, 5])
    with pytest.raises(DataError, match="There is no folder 'trian'"):
        open_source(f"{tmp_path}/set.zip/trian")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a whole zip file"):
        open_source(f"{tmp_path}/bad.zip")


def test_zip_made_on_a_mac_and_hidden_folders(tmp_path):
    import zipfile

    folder = write_classes(tmp_path / "set", 2, 1)
    (folder / ".cache").mkdir()
    shutil.copy(folder / "class0/000.png", folder / ".cache/000.png")
    assert open_source(str(folder)).classes == ["class0", "class1"]
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as z:
        for c in ("class0", "class1"):
            z.write(folder / c / "000.png", f"{c}/000.png")
            z.writestr(f"__MACOSX/{c}/._000.png", b"finder")
    assert open_source(f"{tmp_path}/mac.zip").classes == ["class0", "class1"]


def test_preprocessing_of_wide_inputs_and_of_16_bit_images(tmp_path):
    from PIL import Image

    from trtq.data.preprocess import resolve_preprocess

    wide, _ = resolve_preprocess(input_size=(3, 36, 48), preset="imagenet")
    assert wide.resize is None
    assert wide.apply(Image.new("RGB", (100, 50))).shape == (3, 36, 48)
    photo, _ = resolve_preprocess(input_size=(3, 224, 224), preset="imagenet")
    assert (photo.resize, photo.crop) == (256, None)
    gray, _ = resolve_preprocess(input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))
    deep = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert gray.apply(deep).mean() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="The normalisation of 4 channels is not known"):
        resolve_preprocess(input_size=(4, 8, 8))


def test_cifar10_binary(tmp_path):

    record = np.zeros(3073, dtype=np.uint8)
    record[0], record[1:1025] = 3, 255  # a red cat
    (tmp_path / "data_batch_1.bin").write_bytes(record.tobytes() * 2)
    source = open_source(f"cifar10:{tmp_path}")
    assert len(source) == 2
    assert source.labels == [3, 3]
    assert source.image(0).getpixel((5, 5)) == (255, 0, 0)
    (tmp_path / "data_batch_1.bin").write_bytes(record.tobytes()[:100])
    with pytest.raises(DataError, match="not a multiple of 3073"):
        open_source(f"cifar10:{tmp_path}")
    (tmp_path / "py").mkdir()
    (tmp_path / "py/data_batch_1").write_bytes(b"x")
    with pytest.raises(DataError, match="pickle, which trtq does not read"):
        open_source(f"cifar10:{tmp_path}/py")


def test_mixed_folder_and_flat_folder_with_class_index(images, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    shutil.copy(images / "class0/000.png", mixed / "loose.png")
    with pytest.raises(DataError, match="mixes class folders with images outside of them"):
        open_source(str(mixed))
    flat = write_images(tmp_path / "flat", 2)
    assert open_source(str(flat)).labels is None
    with pytest.raises(DataError, match="has no class folders"):
        open_source(str(flat), tmp_path / "index.json")


@pytest.mark.data
def test_real_images(trtq_data):
    source = open_source(f"{trtq_data}/imagenet-sample.zip", trtq_data / "imagenet-wnids.json")
    assert len(source) == 500
    assert len(source.classes) == 1000
    assert source.image(0).mode == "RGB"
    assert min(source.image(0).size) == 256
    with pytest.raises(DataError, match="Choose one: .*cifar10.zip/test or .*cifar10.zip/train"):
        open_source(f"{trtq_data}/cifar10.zip")
