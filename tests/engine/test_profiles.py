"""Several profiles: the same input again in --shapes."""

from __future__ import annotations

import onnx
import pytest

from tests.support.builds import asked
from tests.support.onnx_files import text_encoder
from trtq import build
from trtq.engine.audit import parse_layer_info
from trtq.engine.build import dry_run
from trtq.engine.manifest import read_manifest
from trtq.errors import EngineError, UsageError
from trtq.testing.tensorrt import read_fake_plan

SMALL, LARGE = "ids=1x4:1x8:1x16", "ids=1x4:8x16:32x16"


@pytest.fixture
def text(tmp_path):
    onnx.save(text_encoder(), tmp_path / "text.onnx")
    return {"onnx": f"{tmp_path}/text.onnx", "shapes": (SMALL, LARGE)}


def test_the_builder_gets_every_profile_and_the_manifest_has_them(text, tmp_path, tensorrt):
    tensorrt("10.3.0")
    build(asked(tmp_path, tmp_path, **text))
    head, _ = read_fake_plan((tmp_path / "e.engine").read_bytes())
    # Both inputs have the same axes in the file.
    small, large = [[1, 4], [1, 8], [1, 16]], [[1, 4], [8, 16], [32, 16]]
    assert head["profiles"] == [{"ids": small, "mask": small}, {"ids": large, "mask": large}]
    made = read_manifest(tmp_path / "e.engine")
    assert [r.most for r in made.inputs] == [[1, 16], [1, 16]]
    assert [[r.most for r in rows] for rows in made.profiles] == [[[32, 16], [32, 16]]]
    build(asked(tmp_path, tmp_path, **text | {"shapes": (SMALL,)}))
    assert b'"profiles"' not in (tmp_path / "e.engine.json").read_bytes()


def test_trtexec_takes_them_by_number(text, files, tmp_path):
    line = dry_run(asked(tmp_path, tmp_path, **text, backend="trtexec", target="sm86@10.3"))
    assert (
        "--profile=0 --minShapes=ids:1x4,mask:1x4 --optShapes=ids:1x8,mask:1x8 "
        "--maxShapes=ids:1x16,mask:1x16 --profile=1 --minShapes=ids:1x4,mask:1x4 "
        "--optShapes=ids:8x16,mask:8x16 --maxShapes=ids:32x16,mask:32x16 " in line
    )
    with pytest.raises(
        EngineError,
        match=r"Cannot build several profiles for compute capability 8.6: TensorRT 8.6 has no "
        r"several profiles \(releases from 9.1 on have it\). Give each input once in --shapes",
    ):
        old = {"backend": "trtexec", "target": "sm86@8.6"}
        dry_run(asked(files, tmp_path, **old, shapes=("input=1x3x32x32", "input=8x3x32x32")))


def test_tensorrt_for_rtx_builds_them(text, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = build(asked(tmp_path, tmp_path, **text, backend="tensorrt-rtx"))
    assert len(made.profiles) == 1


def test_inputs_that_are_given_unequally_often(text, tmp_path):
    shapes = (SMALL, LARGE, *[f"mask=1x{n}" for n in (4, 8, 16)])
    with pytest.raises(
        UsageError,
        match="Cannot make profiles of --shapes: it gives ids 2 times, mask 3 times. Give each "
        "input once, or once for every profile",
    ):
        dry_run(asked(tmp_path, tmp_path, **text | {"shapes": shapes}))


def test_a_layer_report_counts_a_layer_once():
    names = '["conv", "relu", "conv [profile 1]", "relu [profile 1]"]'
    rows = parse_layer_info(f'{{"Layers": {names}}}'.encode(), "report")
    assert [r.name for r in rows] == ["conv", "relu"]
