"""Names of parts that Python has words for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trtq.errors import CaptureError
from trtq.graph.capture import capture


def test_a_part_with_the_name_of_a_python_word_is_refused_before_any_work():
    parts = nn.ModuleDict({"in": nn.Conv2d(3, 4, 3)})
    with pytest.raises(
        CaptureError,
        match=r"Cannot capture the tensor in\.weight: 'in' is a word of Python, and torch\.fx "
        r"writes the model as Python\. Give that part another name, such as in_",
    ):
        capture(parts, torch.randn(2, 3, 8, 8))
