"""Samples that are run in parts, and answers that are compared."""

from __future__ import annotations

import numpy as np
import pytest

from trtq.errors import UsageError
from trtq.export.divergence import same_answer
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


def test_a_batch_without_samples_is_refused():
    with pytest.raises(
        UsageError,
        match=r"Cannot run a batch without samples: its arrays have the shapes \[0, 3\]\. "
        r"Give one sample or more",
    ):
        run_in_parts(lambda _: {}, {"x": np.zeros((0, 3))}, ["x"], 1, 2)


def test_infinities_in_the_same_places_are_the_same_answer():
    masked = np.array([-np.inf, 1.0, 2.0], dtype=np.float32)
    assert same_answer(masked, masked.copy())
    assert not same_answer(masked, np.array([-np.inf, 1.0, 2.1], dtype=np.float32))
    assert not same_answer(masked, np.array([np.inf, 1.0, 2.0], dtype=np.float32))
    assert not same_answer(masked, np.array([0.0, 1.0, 2.0], dtype=np.float32))
    assert not same_answer(masked[1:], np.array([1.0, np.nan], dtype=np.float32))
