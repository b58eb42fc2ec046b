"""A small classifier with images and its own answers as labels."""

from __future__ import annotations

import pytest
import torch

from tests.support.small_net import Net


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels(net, images) -> torch.Tensor:
    with torch.no_grad():
        return net(images).argmax(1)
