"""Samples that are run in parts."""

from __future__ import annotations

import numpy as np
import pytest

from trtq.errors import UsageError
from trtq.export.feeds import run_in_parts


def test_parts_are_joined_and_the_last_is_filled_up():
    sizes = []

    def run(feed):
        sizes.append(len(feed["x"]))
        return {"y": feed["x"] * 2}

    answer = run_in_parts(run, {"x": np.arange(5.0)}, ["x"], 2, 2)
    assert answer["y"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert sizes == [2, 2, 2]


def test_an_output_without_an_axis_of_samples_is_not_joined():
    with pytest.raises(
        UsageError,
        match=r"Cannot join the output y of several batches: it has the shape \[7, 2\] for 2 "
        r"samples\. Give --batch-size 2",
    ):
        run_in_parts(lambda _: {"y": np.zeros((7, 2))}, {"x": np.zeros((4, 3))}, ["x"], 1, 2)
