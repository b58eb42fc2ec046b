from __future__ import annotations

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import CaptureError, DataError, UsageError
from trtq.graph.inputs import read_inputs


def test_examples_are_made_of_what_is_typed():
    examples, axes, ranges = read_inputs(["images=1x3x4x4", "ids=1x7:int64", "on=2:bool"], [])
    assert {n: (list(t.shape), t.dtype) for n, t in examples.items()} == {
        "images": ([1, 3, 4, 4], torch.float32),
        "ids": ([1, 7], torch.int64),
        "on": ([2], torch.bool),
    }
    assert axes is None and ranges == {}
    assert int(examples["ids"].min()) >= 0 and int(examples["ids"].max()) < 10


def test_open_axes_with_and_without_a_range():
    given = ["images=batch,3,height:320..1280:32,width:320..1280:32", "ids=batch,length:1.."]
    _, axes, ranges = read_inputs([], given)
    assert axes == {"images": ["batch", 3, "height", "width"], "ids": ["batch", "length"]}
    assert {n: r.words for n, r in ranges.items()} == {
        "height": "320..1280:32",
        "width": "320..1280:32",
        "length": "1..",
    }
    assert 352 in ranges["height"] and 350 not in ranges["height"] and 1312 not in ranges["height"]


@pytest.mark.parametrize(
    ("inputs", "dynamic", "text"),
    [
        (["images"], [], "Cannot read --input images: expected NAME=SIZES"),
        (["images=1x-3"], [], "Cannot read --input images=1x-3"),
        (["images=1x0"], [], "every size must be 1 or more"),
        (["ids=1x2:int46"], [], "Cannot use the type int46 for the input ids.*Did you mean"),
        (["a=1", "a=2"], [], "The input a is given twice"),
        ([], ["images"], "Cannot read --dynamic images: expected NAME=AXIS"),
        ([], ["images=batch,3 4"], "Cannot read --dynamic"),
        ([], ["images=batch,h:9..3"], "the range of h is 9..3, expected 1 or more"),
        ([], ["a=n:1..4", "b=n:1..8"], "The axis n has two ranges: 1..4 and 1..8"),
        (["a=1"], ["b=n"], "There is no input b: --input names a"),
    ],
)
def test_what_reads_otherwise_is_refused(inputs, dynamic, text):
    with pytest.raises(UsageError, match=text):
        read_inputs(inputs, dynamic)


class Places(torch.nn.Module):
    """Looks up the size of a box, as LayoutLM does."""

    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 2)

    def forward(self, box):
        return self.head(self.table(box[:, 1] - box[:, 0]))


def test_an_index_that_the_model_makes_of_samples_is_beyond_its_table():
    model = trtq.load(Places().eval(), example={"box": torch.tensor([[1, 3], [0, 2]])})
    samples = [{"box": torch.tensor([5, 2])} for _ in range(4)]  # its end is before its start
    with pytest.raises(DataError, match="cannot compute the samples: IndexError: index out of"):
        trtq.quantize(model, samples)


def test_types_that_do_not_fit_are_no_matter_of_sizes():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x.double())

    with pytest.raises(CaptureError, match=r"same dtype.*remove \.double\(\)"):
        trtq.load(Wide().eval(), example=torch.randn(2, 4))
