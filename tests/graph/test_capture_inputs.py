"""Capture of several inputs and outputs, and of open axes."""

import pytest
import torch
from torch import nn

from trtq.errors import CaptureError
from trtq.graph import tracing
from trtq.graph.axes import Open
from trtq.graph.capture import capture
from trtq.graph.flat import call_of
from trtq.graph.inputs import read_inputs
from trtq.graph.naming import node_name
from trtq.graph.signature import SizeRange


class Several(nn.Module):
    """Two images and indices in; a dict of nested outputs out."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.table = nn.Embedding(10, 8)

    def forward(self, left, right, ids, scale=None):
        a, b = (self.conv(x).mean((2, 3)) for x in (left, right))
        x = a - b + self.table(ids).mean(1)
        x = x if scale is None else x * scale
        return {"logits": self.head(x), "ends": [a, b], "version": 3, "loss": None}


def pair(n=2, length=5):
    images = torch.randn(2, n, 3, 8, 8)
    return {"left": images[0], "right": images[1], "ids": torch.randint(0, 10, (n, length))}


def test_all_outputs_are_kept_and_named_by_their_keys():
    captured = capture(Several().eval(), pair())
    assert [t.words for t in captured.signature.inputs] == [
        "left float32 [batch, 3, 8, 8]",
        "right float32 [batch, 3, 8, 8]",
        "ids int64 [batch, 5]",
    ]
    assert [t.words for t in captured.signature.outputs] == [
        "logits float32 [batch, 4]",
        "ends.0 float32 [batch, 8]",
        "ends.1 float32 [batch, 8]",
    ]
    assert captured.notes == ("outputs that are no tensors are left out: version",)
    names = {node_name(n) for n in captured.module.graph.nodes}
    assert {"conv", "conv_1", "head"} <= names  # the model's own names, without a wrapper's


def test_inputs_by_position_get_the_names_of_the_parameters():
    one = pair(1)  # an example of one sample serves as two, so that the batch stays open
    captured = capture(Several().eval(), tuple(one.values()))
    assert [t.name for t in captured.signature.inputs] == ["left", "right", "ids"]
    assert captured.dynamic_batch and len(captured.examples[0]) == 2
    with pytest.raises(CaptureError, match=r"Cannot call Several with left, rihgt.*takes left, ri"):
        capture(Several().eval(), {"left": one["left"], "rihgt": one["right"]})
    with pytest.raises(CaptureError, match="there is no tensor in it"):
        capture(Several().eval(), {"left": 1})


def test_a_tuple_of_outputs_and_a_dict_of_inputs_inside_an_argument():
    class Two(nn.Module):
        def forward(self, images, more):
            return images + more["a"], more["b"] * 2

    x = torch.randn(2, 3)
    captured = capture(Two().eval(), {"images": x, "more": {"a": x, "b": x.double()}})
    assert [t.name for t in captured.signature.inputs] == ["images", "more.a", "more.b"]
    assert [t.name for t in captured.signature.outputs] == ["out.0", "out.1"]
    first, second = captured.module(x, x + 1, x.double())
    assert torch.allclose(first, 2 * x + 1) and torch.equal(second, 2 * x.double())


def test_open_axes_with_names_and_ranges():
    axes = {
        "left": ["batch", 3, "height", "width"],
        "right": ["batch", 3, "height", "width"],
        "ids": ["batch", "length"],
    }
    ranges = {"height": SizeRange(least=8, most=64, multiple=8), "length": SizeRange(most=32)}
    captured = capture(Several().eval(), pair(length=6), axes=axes, ranges=ranges)
    assert captured.signature.inputs[0].words == "left float32 [batch, 3, height, width]"
    assert captured.signature.ranges["height"].words == "8..64:8"
    other = pair(3, 9)
    other["left"] = other["right"] = torch.randn(3, 3, 16, 24)
    assert captured.module(*other.values())[0].shape == (3, 4)
    with pytest.raises(CaptureError, match="length is 6, expected 8 or more"):
        capture(Several().eval(), pair(length=6), axes=axes, ranges={"length": SizeRange(least=8)})
    with pytest.raises(CaptureError, match="There is no input images: the inputs are left, right"):
        capture(Several().eval(), pair(), axes={"images": ["batch"]})
    with pytest.raises(CaptureError, match=r"asked for \[batch, 4, 8, 8\], the example has \[2, 3"):
        capture(Several().eval(), pair(), axes={"left": ["batch", 4, 8, 8]})


def test_outputs_can_be_chosen_unless_weights_would_be_lost():
    captured = capture(Several().eval(), pair(), outputs=["logits"])
    assert [t.name for t in captured.signature.outputs] == ["logits"]
    assert captured.notes[0] == "outputs that were not asked for are dropped: ends.0, ends.1"
    assert captured.module(*captured.examples).shape == (2, 4)
    with pytest.raises(
        CaptureError, match=r"4 weights serve.*lost: head.bias|3 weights.*head.bias"
    ):
        capture(Several().eval(), pair(), outputs=["ends.0"])
    with pytest.raises(CaptureError, match="no output scores: its outputs are logits, ends.0"):
        capture(Several().eval(), pair(), outputs=["scores"])


def test_a_model_that_decides_by_its_batch_says_how_far_its_graph_holds():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(x) * 2 if x.shape[0] > 4 else self.linear(x)

    captured = capture(Decides().eval(), torch.randn(2, 6))
    assert captured.signature.ranges["batch"].meaning == "1 to 4"
    assert captured.notes == ("the model decides by batch: its graph holds for 1 to 4",)


def test_inputs_keep_the_order_of_forward_and_outputs_names_of_their_own():
    class Two(nn.Module):
        def forward(self, a, b):
            return {"a": a - b, "sum": a + b}

    captured = capture(Two().eval(), {"b": torch.randn(2, 3), "a": torch.randn(2, 3)})
    assert [t.name for t in captured.signature.inputs] == ["a", "b"]
    assert [t.name for t in captured.signature.outputs] == ["a.out", "sum"]
    assert captured.notes == ("the output a is called a.out: another tensor has its name",)
    with pytest.raises(CaptureError, match="The output sum is asked for twice"):
        capture(Two().eval(), captured.examples, outputs=["sum", "sum"])


def test_axes_of_one_input_leave_the_batch_of_the_others_open():
    captured = capture(Several().eval(), pair(), axes={"ids": ["batch", "length"]})
    assert captured.dynamic_batch
    assert captured.signature.inputs[0].words == "left float32 [batch, 3, 8, 8]"


def test_a_second_input_is_refused_with_the_way_out():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(CaptureError, match="or an example of each input with --input NAME=SIZES"):
        capture(Two().eval(), (3, 32, 32))


class _Pyramid(nn.Module):
    """Halves its maps and joins them again."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(3))
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x):
        maps = [x]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        for one in maps[-2::-1]:
            maps[-1] = self.up(maps[-1]) + one
        return maps[-1]


@pytest.mark.parametrize(
    ("ranges", "least", "line"),
    [
        ({}, "height must be 16 or more, in multiples of 8", "height:16..:8,width:16..:8"),
        (
            {"height": SizeRange(least=4, most=64)},
            "height must be 16 to 64, in multiples of 8",
            "height:16..64:8,width:16..:8",
        ),
    ],
)
def test_the_sizes_that_a_strided_model_takes_are_named(ranges, least, line):
    axes = {"x": ["batch", 3, "height", "width"]}
    given = {"x": torch.randn(2, 3, 32, 32)}
    with pytest.raises(CaptureError, match=least) as caught:
        capture(_Pyramid().eval(), given, axes=axes, ranges=ranges)
    assert caught.value.hint == f"Give --dynamic x=batch,3,{line}"
    _, _, known = read_inputs([], [caught.value.hint.removeprefix("Give --dynamic ")])
    captured = capture(_Pyramid().eval(), given, axes=axes, ranges=known)
    assert captured.signature.inputs[0].shape == ("batch", 3, "height", "width")


def test_a_range_without_a_size_that_fits_is_explained():
    axes = {"x": ["batch", 3, "height", "width"]}
    ranges = {"height": SizeRange(least=30, most=34)}
    with pytest.raises(CaptureError, match="it does not take every size of") as caught:
        capture(_Pyramid().eval(), {"x": torch.randn(2, 3, 32, 32)}, axes=axes, ranges=ranges)
    assert "Or leave these axes fixed" in caught.value.hint


def test_a_length_that_cannot_stay_open_is_named_with_its_size():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            steps = [self.linear(x[:, i]) for i in range(int(x.shape[1]))]
            return torch.stack(steps, 1)

    note = tracing.trace_best(
        Fixed().eval(),
        call_of(Fixed().eval(), torch.randn(2, 5, 4)),
        Open(({0: "batch", 1: "length"},), {"batch": SizeRange(), "length": SizeRange()}),
        "",
    )[-1]
    assert "only captures with fixed sizes, batch 1, length 5 (--input NAME=SIZES" in note
