"""Every command that the documents show, run unchanged, page by page.

The folder has the files that the page takes as given. ResNet-18 and MobileViT take 64x64 pixels
instead of 224x224 and 256x256: otherwise learning how to round takes an hour on two cores.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.docs.test_pages import AFTER_COMMANDS, ROOT, blocks
from tests.support.detector import pictures
from tests.support.onnx_files import open_sizes, pyramid_detector, text_encoder, two_images
from trtq.models.fcn import fcn_resnet18
from trtq.testing.images import write_classes, write_scenes
from trtq.testing.trtexec import write_fake_trtexec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if re.search(r"^    trtq ", p.read_text(), re.M)
]
# What needs another machine; boards are the whole of tests/deploy, engines on a GPU and
# reports of trtexec have tests of their own.
ELSEWHERE = (
    r"trtq (device|deploy|fleet) |--device cuda:0|trtq bench \S+\.engine|audit layers\.json|"
    r"--on (ray|slurm)|s3://|--mlflow"
)
# 3: finished and not valid, or a constraint does not hold: both depend on the machine and on
# weights that nobody trained.
FINE = dict.fromkeys(("bench", "run", "sweep", "search", "compare"), (0, 3)) | {
    "lint": (0, 1),
    "gate": (0, 1),
}
TRTEXEC = {"nano": ("v8201", "5.3"), "xavier": ("v8502", "7.2")}


SHALLOW = {
    "deit_small_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
}
SMALL = f"""
import runpy
import timm

create, shallow = timm.create_model, {SHALLOW}


def smaller(name, *args, **kwargs):
    model = create(name, *args, **shallow.get(name, {{}}), **kwargs)
    if name in ("resnet18", "mobilevit_xxs"):
        model.pretrained_cfg = {{**model.pretrained_cfg, "input_size": (3, 64, 64)}}
    return model


timm.create_model = smaller
runpy.run_module("trtq", run_name="__main__", alter_sys=True)
"""


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def with_open_sizes(file: onnx.ModelProto) -> onnx.ModelProto:
    """Return a file whose images have an open height and width."""
    for value in (*file.graph.input, *file.graph.output):
        for dim, name in zip(
            value.type.tensor_type.shape.dim[2:], ("height", "width"), strict=True
        ):
            if dim.dim_value != 1:
                dim.dim_param = name if value in file.graph.input else f"{name}_out"
    return file


def commands_of(page: Path) -> list[str]:
    text = re.sub(r"\\\n\s+", "", page.read_text())
    lines = re.findall(r"^    (trtq [^\n]+)$", text, re.M)
    return [line.split("  #")[0] for line in lines if not re.search(ELSEWHERE, line)]


def trtq(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    target = re.search(r"--target (\w+)", line)
    version, sm = TRTEXEC.get(target[1] if target else "", TRTEXEC["xavier"])
    stand_in = folder / ".trtexec" / version
    stand_in.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "TRTQ_TRTEXEC": str(write_fake_trtexec(stand_in, version, sm=sm))}
    (folder / ".small.py").write_text(SMALL)
    start = (
        [str(folder / ".small.py")]
        if re.search("timm:(resnet18|mobilevit_xxs|deit_small|swin_tiny)", line)
        else ["-m", "trtq"]
    )
    words = [sys.executable, *start, *shlex.split(line)[1:]]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)


def must(line: str, folder: Path) -> None:
    done = trtq(line, folder)
    assert done.returncode in FINE.get(line.split()[1], (0,)), (
        f"{line}\n{done.stdout}\n{done.stderr}"
    )
    assert not re.search(r"^trtq: ", done.stderr, re.M), (
        f"{line}\n{done.stderr}"
    )  # findings of lint are no error


def weights(name: str, folder: Path, **arguments) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    state = timm.create_model(name, **arguments).state_dict()
    save_file(state, folder / f"{name.partition('_')[0]}.safetensors")
    return state


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Return a folder with the files that the pages take as given.

    These are images, weights of every model that a page names, and the results of the commands that
    the pages have in common.
    """
    folder = tmp_path_factory.mktemp("given")
    for name, size in (
        ("train", 224),
        ("val", 256),
    ):  # not the same pictures: those of calibration are left out of evaluation
        write_classes(folder / "images" / name, 4, 8, size=size)
    write_classes(folder / "classed", 4, 25, size=96)
    for name in ("pictures", "other"):  # no labels
        (folder / name).mkdir()
    for i, path in enumerate(sorted((folder / "classed").rglob("*.*"))):
        path.rename(folder / ("other" if i % 5 == 0 else "pictures") / f"{i:03d}{path.suffix}")
    state = weights("resnet18", folder)
    for name, shape in SHALLOW.items():
        weights(name, folder, **shape)
    weights("mobilevit_xxs", folder)
    for layer in [
        k.removesuffix(".weight")
        for k, v in state.items()
        if k.endswith(".weight") and v.ndim in (2, 4)
    ]:
        state[f"{layer}._input_quantizer._amax"] = torch.tensor(4.0)
        state[f"{layer}._weight_quantizer._amax"] = state[f"{layer}.weight"].abs().max()
    torch.save(state, folder / "resnet18_int8.pth")
    (folder / "own.py").write_text(f"from torch import nn\n\n\n{inspect.getsource(model)}")
    torch.manual_seed(0)
    save_file(model().state_dict(), folder / "own.safetensors")
    save_file(fcn_resnet18(11).state_dict(), folder / "fcn.safetensors")
    onnx.save(pyramid_detector(), folder / "yolov8n.onnx")
    onnx.save(open_sizes(), folder / "yolo.onnx")
    for name, count in (("pages", 40), ("val", 8)):  # more than a page calibrates on
        pictures(folder / name, count)
    rng = np.random.default_rng(0)
    for name in ("calib", "test"):  # of model.onnx
        np.savez(folder / name, input=rng.standard_normal((8, 3, 64, 64), np.float32))
    onnx.save(text_encoder(), folder / "encoder.onnx")
    onnx.save(with_open_sizes(two_images()), folder / "pair.onnx")
    for part in ("train", "val"):
        write_scenes(folder / "camvid" / part, 8, size=64, void=11)
    with zipfile.ZipFile(folder / "camvid.zip", "w") as packed:
        for path in sorted((folder / "camvid").rglob("*.png")):
            part, kind, name = path.relative_to(folder / "camvid").parts
            packed.write(path, f"{part if kind == 'images' else f'{part}annot'}/{name}")
    for line in (
        "trtq quantize timm:resnet18 --checkpoint resnet18.safetensors --data images/train "
        "--out out",
        "trtq quantize timm:swin_tiny_patch4_window7_224 --checkpoint swin.safetensors --data "
        "images/train --calib-images 4 --out swin",
        "trtq quantize own.py:model --checkpoint own.safetensors --data images/train --out own",
        "trtq export-calib out/model.qdq.onnx --target xavier@8.5 --release-number 8502 --out "
        "calibration.cache",
    ):
        must(line, folder)
    for name in ("rtx4090", "model", "rtx3080-int8"):
        must(
            "trtq build out/model.qdq.onnx --target "
            f"{'rtx3080' if '3080' in name else 'rtx4090'} --out out/{name}.engine",
            folder,
        )
    for suffix in ("", ".json"):
        shutil.copy(folder / f"out/rtx4090.engine{suffix}", folder / f"rtx4090.engine{suffix}")
    shutil.copy(folder / "out/model.fp32.onnx", folder / "model.onnx")
    for run in ("int8", "mixed", "w4a8"):
        shutil.copytree(folder / "out", folder / "runs" / run)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_command_of_a_page_runs(page, given, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(given, project)
    for text, name in re.findall(r"```toml\n(# (\w+\.toml)\n.*?)```", page.read_text(), re.S):
        (project / name).write_text(text)
    for line in commands_of(page):
        must(line, project)
    for _, body in blocks(page.name, "python") if page.name in AFTER_COMMANDS else ():
        done = subprocess.run(
            [sys.executable, "-c", body], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{body}\n{done.stderr}"


def test_what_is_left_out_is_what_needs_another_machine():
    left = [
        line
        for page in PAGES
        for line in re.findall(r"^    (trtq [^\n]+)$", page.read_text(), re.M)
        if re.search(ELSEWHERE, line)
    ]
    assert {line.split()[1] for line in left} == {
        "device",
        "deploy",
        "fleet",
        "bench",
        "compare",
        "evaluate",
        "audit",
        "sweep",
    }
