"""Several inputs, other dtypes and open axes, from the runners to the manifest."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.onnx_files import bytes_image, text_encoder, two_images
from trtq.engine.runner import OnnxRunner
from trtq.errors import UsageError

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
    with pytest.raises(UsageError, match=rf"right is missing; its inputs are {inputs}. Give right"):
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
    with pytest.raises(UsageError, match="the input image is uint8, the array is <?U"):
        OnnxRunner(bytes_image()).run(np.full((1, 8, 8, 3), "a"))
