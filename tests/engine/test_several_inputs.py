"""Several inputs, other dtypes and open axes, from the runners to the manifest."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.onnx_files import bytes_image, open_sizes, text_encoder, two_images
from trtq.engine.random_inputs import random_feed, table_sizes
from trtq.engine.runner import OnnxRunner
from trtq.engine.shapes import inputs_of
from trtq.engine.sizes import Request, choose_sizes
from trtq.errors import EngineError, UsageError
from trtq.export.feeds import InputSlot

RNG = np.random.default_rng(0)


def image(count: int, size: int = 8) -> np.ndarray:
    return RNG.standard_normal((count, 3, size, size)).astype(np.float32)


# ---- runners -----------------------------------------------------------------------------------


def test_a_model_of_two_images_runs_by_name_in_parts_of_its_batch():
    left, right = image(5), image(5)
    whole = OnnxRunner(two_images()).run({"right": right, "left": left})
    assert {n: a.shape for n, a in whole.items()} == {
        "distance": (5, 4, 1, 1),
        "features": (5, 4, 6, 6),
    }
    parts = OnnxRunner(two_images(2)).run({"left": left, "right": right})
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-6)
    same = OnnxRunner(two_images()).run({"left": left, "right": left})
    assert np.abs(same["distance"]).max() == 0


def test_what_a_runner_is_not_given():
    runner = OnnxRunner(two_images())
    inputs = r"left float32 \[\?, 3, 8, 8\]; right float32 \[\?, 3, 8, 8\]"
    with pytest.raises(UsageError, match=rf"right is missing; its inputs are {inputs}. Give rig"):
        runner.run({"left": image(1)})
    with pytest.raises(
        UsageError, match=r"right is missing; it has no rihgt; .*Did you mean right"
    ):
        runner.run({"left": image(1), "rihgt": image(1)})
    with pytest.raises(
        UsageError,
        match=rf"on one array: it has 2 inputs: {inputs}. Give a mapping: "
        r"\{'left': ..., 'right': ...\}",
    ):
        runner.run(image(1))


def test_dtypes_are_those_of_the_model_and_lose_no_value():
    runner = OnnxRunner(text_encoder())
    ids, mask = np.array([[1, 2, 10]], np.int32), np.ones((1, 3), bool)
    wanted = runner.run({"ids": ids.astype(np.int64), "mask": mask.astype(np.int64)})["embedding"]
    np.testing.assert_array_equal(runner.run({"ids": ids, "mask": mask})["embedding"], wanted)
    with pytest.raises(
        UsageError,
        match="the input ids is int64, the array is float32 and would lose values. Give int64",
    ):
        runner.run({"ids": np.full((1, 3), 0.5, np.float32), "mask": mask})
    with pytest.raises(UsageError, match="the input image is uint8, the array is int64"):
        OnnxRunner(bytes_image()).run(np.full((1, 8, 8, 3), 256))
    with pytest.raises(UsageError, match="the input image is uint8, the array is str32"):
        OnnxRunner(bytes_image()).run(np.full((1, 8, 8, 3), "a"))


# ---- sizes -------------------------------------------------------------------------------------


def sizes(model, *texts: str, **more):
    return choose_sizes(inputs_of(model), Request(texts=texts, file="m.onnx", **more))


def test_one_shape_or_three_for_each_open_input():
    wide = "images=1x3x320x320:1x3x640x640:8x3x1280x1280"
    assert sizes(open_sizes(), wide).shapes == {
        "images": [[1, 3, 320, 320], [1, 3, 640, 640], [8, 3, 1280, 1280]]
    }
    fixed = sizes(open_sizes(), "images=2x3x64x48")
    assert fixed.shapes == {"images": [[2, 3, 64, 48]] * 3}
    assert fixed.batch == (2, 2, 2)
    both = sizes(text_encoder(), "ids=1x8:1x16:4x32,mask=1x8:1x16:4x32")
    assert both.shapes == {n: [[1, 8], [1, 16], [4, 32]] for n in ("ids", "mask")}
    assert sizes(two_images()).shapes == {
        n: [[b, 3, 8, 8] for b in (1, 8, 32)] for n in ("left", "right")
    }
    assert sizes(two_images(), batch=(1, 2, 4)).shapes["right"][2] == [4, 3, 8, 8]
    assert (sizes(bytes_image()).shapes, sizes(bytes_image()).batch) == ({}, (1, 1, 1))


def test_axes_of_one_name_have_one_size():
    found = sizes(text_encoder(), "ids=1x8:1x16:4x32")
    assert found.shapes["mask"] == [[1, 8], [1, 16], [4, 32]]
    assert found.notes == [
        "mask takes 1x8:1x16:4x32: --shapes gives axes of the same names",
    ]
    with pytest.raises(
        UsageError,
        match="--shapes for ids and mask: length is 8:16:32 in ids and 8:16:64 in mask, and it is "
        "one size in m.onnx. Give both the same",
    ):
        sizes(text_encoder(), "ids=1x8:1x16:4x32", "mask=1x8:1x16:4x64")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            (),
            r"Cannot build m.onnx: axis 2 \(height\) of images, axis 3 \(width\) of images are "
            r"open, and TensorRT needs the smallest, the usual and the largest size. Add --shapes "
            r"images=1x3x320x320:8x3x640x640:32x3x1280x1280, with your sizes",
        ),
        (
            ("image=1x3x64x64",),
            r"m.onnx has no input image; it has images \[batch, 3, height, width\]. "
            "Did you mean images",
        ),
        (
            ("images=1x4x64x64",),
            "images=1x4x64x64: axis 1 of images is 3 in m.onnx, not 4. Give 3 there",
        ),
        (
            ("images=64x64",),
            r"it has 2 axes, images \[batch, 3, height, width\] of m.onnx has 4. Write it like "
            "--shapes images=1x3x320x320:8x3x640x640:32x3x1280x1280",
        ),
        (
            ("images=1x3x64x64:1x3x32x64:1x3x64x64",),
            "axis 2 of images is 64:32:64, expected 1 <= MIN <= OPT <= MAX. Write it like --shapes "
            "images=1x3x320x320:1x3x640x640:8x3x1280x1280",
        ),
        (("images=0x3x64x64",), "axis 0 of images is 0:0:0, expected 1 <= MIN"),
        (("images=1x3x64x64:1x3x64x64",), "Cannot read --shapes .*expected NAME=MIN:OPT:MAX"),
        (("images=1x3x64:1x3x64x64:1x3x64",), "Cannot read --shapes"),
        (("1x3x64x64",), "Cannot read --shapes 1x3x64x64: expected NAME=MIN:OPT:MAX"),
        (("images=1x3xAx64",), "Cannot read --shapes"),
        (("images=1x3x64x64,images=1x3x8x8",), "images is given twice. Give it once"),
    ],
)
def test_shapes_that_do_not_fit_are_named(texts, words):
    with pytest.raises(UsageError, match=words):
        sizes(open_sizes(), *texts)


def test_the_batch_is_the_short_form_of_the_first_axis():
    with pytest.raises(
        UsageError,
        match="Cannot use --batch 1:2:4: --shapes gives 1 for the first axis of images. Leave "
        "--batch out",
    ):
        sizes(open_sizes(), "images=1x3x64x64", batch=(1, 2, 4))
    with pytest.raises(UsageError, match="--batch 1:2:4: the model has a fixed batch of 1"):
        sizes(bytes_image(), batch=(1, 2, 4))
    with pytest.raises(UsageError, match="--batch 4:2:1: expected 1 <= MIN <= OPT <= MAX"):
        sizes(two_images(), batch=(4, 2, 1))


def test_inputs_that_no_profile_helps():
    model = two_images()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(EngineError, match="Cannot build with the input left: it has no shape"):
        inputs_of(model)
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    with pytest.raises(EngineError, match="the input left: it is a sequence, not a tensor"):
        inputs_of(model)
    del model.graph.input[:]
    with pytest.raises(EngineError, match="Cannot use m.onnx: it has no input"):
        sizes(model)


def test_one_shape_to_run_with():
    assert sizes(open_sizes(), "images=1x3x64x48", single=True).usual == {"images": [1, 3, 64, 48]}
    with pytest.raises(
        UsageError,
        match=r"Cannot run m.onnx: axis 1 \(length\) of ids, axis 1 \(length\) of mask are open, "
        "and a request needs a size. Add --shapes ids=2x64 --shapes mask=2x64, with your sizes",
    ):
        sizes(text_encoder(), batch=(2, 2, 2), single=True)
    with pytest.raises(UsageError, match="a request has one shape. Write it like --shapes im"):
        sizes(open_sizes(), "images=1x3x32x32:1x3x64x64:1x3x64x64", single=True)
    with pytest.raises(UsageError, match="Cannot run m.onnx with --batch 4: its batch is fixed at"):
        sizes(bytes_image(), batch=(4, 4, 4), single=True)
    built = sizes(text_encoder(), "ids=1x8:1x16:4x32").spans
    assert sizes(text_encoder(), batch=(4, 4, 4), single=True, built=built).usual == {
        "ids": [4, 16],
        "mask": [4, 16],
    }
    with pytest.raises(
        UsageError,
        match="Cannot run m.onnx with ids 1x64: axis 1 is 64, the engine was built for 8 to 32. "
        "Build it for that: trtq build ... --shapes ids=1x8:1x16:4x64",
    ):
        sizes(text_encoder(), "ids=1x64", single=True, built=built)


# ---- random inputs -----------------------------------------------------------------------------


def test_random_inputs_are_valid_for_each_dtype_and_table():
    model = text_encoder(vocabulary=11)
    assert table_sizes(model) == {"ids": 11}
    feed = random_feed(OnnxRunner(model).inputs, {"ids": [4, 64], "mask": [4, 64]}, {"ids": 11})
    assert (feed["ids"].min(), feed["ids"].max(), feed["ids"].dtype) == (0, 10, np.int64)
    assert (feed["mask"] == 1).all()
    OnnxRunner(model).run(feed)
    (pixels,) = random_feed(OnnxRunner(bytes_image()).inputs, {"image": [1, 8, 8, 3]}, {}).values()
    assert pixels.dtype == np.uint8
    assert pixels.max() > 200
    flag = [InputSlot("flag", "bool", (1,)), InputSlot("x", "float16", (4,))]
    drawn = random_feed(flag, {"flag": [1], "x": [4]}, {})
    assert (drawn["flag"].tolist(), drawn["x"].dtype) == ([True], np.float16)
