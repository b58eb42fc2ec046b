"""Values drawn for inputs of any type."""

import numpy as np
import pytest

from trtq.random_values import draw


def drawn(dtype, shape, **given):
    return draw(np.random.default_rng(0), dtype, shape, **given)


def test_floats_are_normal():
    values = drawn("float16", [64, 64])
    assert values.dtype == np.float16
    assert abs(float(values.mean())) < 0.1


def test_indices_are_below_the_rows_of_their_table():
    values = drawn("int64", [100], rows=3)
    assert set(values.tolist()) == {0, 1, 2}


def test_bytes_and_integers_of_rank_4_are_pixels():
    assert drawn("uint8", [1000]).max() > 200
    assert drawn("int32", [1, 3, 32, 32]).max() > 200
    assert drawn("int8", [1, 3, 32, 32]).max() <= 127


def test_masks_lengths_and_flags_are_ones():
    assert drawn("int64", [2, 8]).tolist() == np.ones([2, 8]).tolist()
    assert drawn("bool", [2, 8]).all()


@pytest.mark.parametrize("dtype", ["bool", "int64"])
def test_masks_of_coins_have_a_one_in_each_row(dtype):
    values = drawn(dtype, [64, 4], coins=True)
    assert set(values.ravel().tolist()) == {0, 1}
    assert values[:, 0].all()


def test_one_number_a_sample_is_no_mask():
    assert drawn("int64", [16], coins=True).all()


def test_a_seed_repeats_them():
    assert drawn("float32", [8]).tolist() == drawn("float32", [8]).tolist()
