"""Wrong inputs of quantize, and runs that fail or are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import read, run_cli, spec
from tests.support.quantize import FILES
from trtq import quantize
from trtq.errors import ArtifactError, CalibrationError, DataError, ModelError, UsageError
from trtq.graph.capture import capture
from trtq.models.load import load_model
from trtq.quant.observe import observe
from trtq.quant.placement import place
from trtq.testing.images import write_images
from trtq.testing.models import tiny_cnn

# ---- bad input ---------------------------------------------------------------------------------


def test_missing_empty_and_split_folders(images, tmp_path):
    with pytest.raises(
        DataError, match="Cannot read images from .*/imagse: there is no such folder"
    ):
        quantize(spec(images.parent / "imagse", tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        quantize(spec(tmp_path / "empty", tmp_path / "o"))
    write_images(tmp_path / "set/train/a", 1)
    write_images(tmp_path / "set/val/a", 1)
    with pytest.raises(DataError, match="Choose one: .*/set/train or .*/set/val"):
        quantize(spec(tmp_path / "set", tmp_path / "o"))


def test_corrupt_image_names_the_file_and_nothing_stays_behind(tmp_path):
    folder = write_images(tmp_path / "i", 4)
    (folder / "zz.png").write_bytes((folder / "000.png").read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"Cannot decode the image zz.png of .*Remove it or replace it"
    ):
        quantize(spec(folder, tmp_path / "o"))
    assert not set(os.listdir(tmp_path / "o")) & FILES


def test_other_files_are_ignored_and_said_and_one_image_is_few(tmp_path):
    folder = write_images(tmp_path / "i", 1)
    (folder / "notes.txt").write_text("x")
    notes = quantize(spec(folder, tmp_path / "o", calib_images=256)).notes
    assert any("1 files in" in n and "notes.txt" in n for n in notes)
    assert any("1 calibration images are few" in n for n in notes)
    assert any("has 1 images, fewer than the default of 256: all are used" in n for n in notes)
    notes = quantize(spec(folder, tmp_path / "p", calib_images=9)).notes
    assert any("has 1 images, 9 were asked for: all are used" in n for n in notes)


def test_text_file_called_png(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "i/a.png").write_text("not an image")
    with pytest.raises(DataError, match=r"Cannot decode the image a.png"):
        quantize(spec(tmp_path / "i", tmp_path / "o"))


def test_nan_weights_and_infinite_activations(images, tmp_path):
    model = tiny_cnn()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = float("nan")
    torch.save(model.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(
        ModelError, match="weights of 'conv1.weight' cannot be quantized: 1 of 2304 values are NaN"
    ):
        quantize(spec(images, tmp_path / "o", checkpoint=str(tmp_path / "nan.pt")))

    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(torch.log(self.a(x).abs() - 0.05)).mean((2, 3))

    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)).eval(), (3, 8, 8))
    assert graph.dynamic_batch
    graph = capture_anyway(Explodes())
    with pytest.raises(CalibrationError, match="log gives NaN or infinity"):
        observe(graph, place(graph), [torch.zeros(1, 3, 8, 8)], mode="max")


def capture_anyway(model):
    with torch.no_grad():
        model.a.weight.fill_(10.0)
        model.a.bias.fill_(0.0)
    import trtq.graph.capture as c

    real = torch.isfinite
    try:
        c.torch.isfinite = lambda x: torch.ones_like(x, dtype=torch.bool)
        c.MAX_REL_DIFF, old = float("inf"), c.MAX_REL_DIFF
        return c.capture(model.eval(), (3, 8, 8)).module
    finally:
        c.torch.isfinite, c.MAX_REL_DIFF = real, old


def test_checkpoints(images, tmp_path):
    model = tiny_cnn()
    state = model.state_dict()
    make = lambda s, n: torch.save(s, tmp_path / n) or str(tmp_path / n)  # noqa: E731
    for name, content in (
        ("plain.pt", state),
        ("wrapped.pth", {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        ("model.pt", {"model": state, "epoch": 3}),
    ):
        load_model(
            "trtq.testing.models:tiny_cnn",
            checkpoint=__import__("pathlib").Path(make(content, name)),
        )
    renamed = {k.replace("stem", "first"): v for k, v in state.items()}
    path = __import__("pathlib").Path(make(renamed, "renamed.pt"))
    with pytest.raises(ModelError, match=r"missing 'stem.weight'.*--checkpoint-match order"):
        load_model("trtq.testing.models:tiny_cnn", checkpoint=path)
    load_model("trtq.testing.models:tiny_cnn", checkpoint=path, match="order")
    wider = __import__("pathlib").Path(make(tiny_cnn(7).state_dict(), "wider.pt"))
    with pytest.raises(
        ModelError,
        match=r"'head.weight' has shape \[4, 32\], the file's 'head.weight' has \[7, "
        r"32\].*num_classes",
    ):
        load_model("trtq.testing.models:tiny_cnn", checkpoint=wider)
    whole = __import__("pathlib").Path(make(model, "whole.pt"))
    assert (
        "no code was run" in load_model("trtq.testing.models:tiny_cnn", checkpoint=whole).notes[0]
    )
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model("trtq.testing.models:tiny_cnn", checkpoint=tmp_path / "torn.safetensors")
    with pytest.raises(ModelError, match="there is no such file"):
        load_model("trtq.testing.models:tiny_cnn", checkpoint=tmp_path / "none.pt")
    (tmp_path / "torn.pt").write_bytes(b"\x08\x00\x00")
    with pytest.raises(ModelError, match="Cannot read the checkpoint"):
        load_model("trtq.testing.models:tiny_cnn", checkpoint=tmp_path / "torn.pt")


def test_out_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="it is a file, not a folder"):
        quantize(spec(images, tmp_path / "file", calib_cache=str(tmp_path / "c")))


def test_nothing_to_quantize(images, tmp_path):
    (tmp_path / "none.py").write_text("import torch\ndef make():\n    return torch.nn.Flatten()\n")
    with pytest.raises(CalibrationError, match="There is nothing to quantize"):
        quantize(spec(images, tmp_path / "o", model=f"{tmp_path}/none.py:make"))


def test_contradictory_preprocessing(images, tmp_path):
    with pytest.raises(UsageError, match="--mean has 2 values: the input has 3 channels"):
        quantize(spec(images, tmp_path, mean="0.1,0.2"))
    with pytest.raises(UsageError, match="std must be greater than 0"):
        quantize(spec(images, tmp_path, mean="0,0,0", std="1,0,1"))
    with pytest.raises(UsageError, match="--resize 16 is smaller than the crop of 32"):
        quantize(spec(images, tmp_path, resize="16", crop="32"))


def test_a_failed_run_leaves_the_results_of_the_one_before(images, tmp_path):
    quantize(spec(images, tmp_path))
    before = {n: (tmp_path / n).read_bytes() for n in FILES}
    with pytest.raises(UsageError, match="matches no layer"):
        quantize(spec(images, tmp_path, high_precision=["nothing"]))
    assert {n: (tmp_path / n).read_bytes() for n in FILES} == before


def test_disk_full(images, tmp_path, small_disk):
    with pytest.raises(ArtifactError, match=r"No space left on device. Free some space"):
        quantize(spec(images, small_disk, calib_cache=str(tmp_path / "cache")))
    assert not [n for n in os.listdir(small_disk) if n.endswith(".tmp")]
    assert not (small_disk / "quantize.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [3.0, 4.5, 6.0, 7.0, 8.0, 9.0])
def test_kill_at_any_moment_and_run_again(images, tmp_path, delay):
    args = [
        "quantize",
        "trtq.testing.models:tiny_vit",
        "--data",
        str(images),
        "--out",
        str(tmp_path / "o"),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--calib-cache",
        str(tmp_path / "c"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "trtq", *args], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    out = tmp_path / "o"
    if (out / "quantize.json").exists():  # a record vouches for whole files
        assert run_cli("inspect", str(out), "--json").stdout.count('"altered_or_missing": []') == 1
    done = run_cli(*args)
    assert done.returncode == 0, done.stderr
    assert set(os.listdir(out)) >= FILES


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder(images, tmp_path):
    args = [
        sys.executable,
        "-m",
        "trtq",
        "quantize",
        "trtq.testing.models:tiny_cnn",
        "--data",
        str(images),
        "--out",
        str(tmp_path / "o"),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--calib-cache",
        str(tmp_path / "c"),
    ]
    both = [
        subprocess.Popen(args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sum("Another trtq is at work here" in err for _, err in results) <= 1
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 1


def test_class_index(images, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('["class3", "class2", "class1", "class0", "class9"]')
    bad.write_text('["class3"]')
    quantize(spec(images, tmp_path / "o", class_index=str(good)))
    with pytest.raises(DataError, match=r"does not name the folder 'class0'"):
        quantize(spec(images, tmp_path / "o", class_index=str(bad)))


def test_rgba_and_palette_images(tmp_path):
    folder = tmp_path / "i"
    folder.mkdir()
    Image.new("RGBA", (40, 40), (200, 10, 10, 128)).save(folder / "a.png")
    Image.new("P", (40, 50), 3).save(folder / "b.png")
    Image.new("L", (50, 40), 99).save(folder / "c.jpg")
    assert quantize(spec(folder, tmp_path / "o")).parity.images == 3


def test_recipe_file_gives_what_is_not_typed(images, tmp_path):
    (tmp_path / "r.toml").write_text(
        f'[quantize]\nmodel="trtq.testing.models:tiny_cnn"\ndata="{images}"\n'
        'input_size="3x32x32"\npreset="imagenet"\ncalib_images=8\n'
    )
    done = run_cli(
        "quantize",
        "--recipe",
        str(tmp_path / "r.toml"),
        "--out",
        str(tmp_path / "o"),
        "--calibrator",
        "max",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "o/quantize.json")["spec"]["calibrator"] == "max"
    assert shutil.which("true")
