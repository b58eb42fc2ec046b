from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import ModelError
from trtq.models.deployed import deployed_


class Branches(nn.Module):
    """Two convolutions side by side, one when deployed, as RepVGG's authors write it."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.one = None

    def forward(self, x):
        return self.wide(x) + self.narrow(x) if self.one is None else self.one(x)

    def switch_to_deploy(self):
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.one.weight.copy_(self.wide.weight)
        self.one.weight[:, :, 1:2, 1:2] += self.narrow.weight
        self.one.bias.copy_(self.wide.bias + self.narrow.bias)
        del self.wide, self.narrow


class Fused(Branches):
    """As ultralytics writes it (RepConv, RepVGGDW): whoever joins it also changes its forward."""

    def forward(self, x):
        return self.wide(x) + self.narrow(x)

    def forward_fuse(self, x):
        return self.one(x)

    def fuse_convs(self):
        Branches.switch_to_deploy(self)

    switch_to_deploy = None


class Head(nn.Module):
    """Gives its maps, too, unless it is to be exported; remembers the last size."""

    export = dynamic = False
    format = shape = None

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, x):
        y = self.conv(x)
        if not self.dynamic and self.shape != x.shape:
            self.shape = x.shape
        return y.flatten(2) if self.export else (y.flatten(2), [y])


def test_training_branches_become_one_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(Branches(), nn.ReLU(), Branches()).eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        wanted = model(x)
        said = deployed_(model)
        torch.testing.assert_close(model(x), wanted)
    assert said == ["training branches of 2 parts were joined: 4 convolutions became 2"]
    assert deployed_(nn.Sequential(nn.Conv2d(3, 4, 1))) == []


def test_a_joined_part_computes_in_its_joined_form():
    torch.manual_seed(0)
    model = nn.Sequential(Fused(), nn.ReLU()).eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        wanted = model(x)
        assert deployed_(model) == [
            "training branches of 1 parts were joined: 2 convolutions became 1"
        ]
        torch.testing.assert_close(model(x), wanted)
        torch.testing.assert_close(copy.deepcopy(model)(x), wanted)


def test_branches_that_cannot_be_joined_are_named():
    class Broken(Branches):
        def switch_to_deploy(self):
            raise ValueError("no kernel")

    with pytest.raises(ModelError, match="training branches at 0: ValueError: no kernel"):
        deployed_(nn.Sequential(Broken()).eval())


def test_a_head_is_captured_as_its_own_exporter_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Head()).eval()
    loaded = trtq.load(model, input_size=(3, 8, 8))
    assert [t.words for t in loaded.graph.signature.outputs] == ["output float32 [batch, 6, 64]"]
    assert "the head Head gives its predictions alone, as ultralytics exports it" in loaded.notes
    assert model[1].export is False  # the program's own module stays as it is


def test_timm_models_are_deployed_when_they_are_loaded():
    loaded = trtq.load("timm:repvgg_a0", input_size=(3, 32, 32))
    assert any("44 convolutions became 22" in n for n in loaded.notes)
    assert sum(isinstance(m, nn.Conv2d) for m in loaded.module.modules()) == 22


def test_constants_of_integers_beside_branches_are_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Branches()).eval()
    net.order = nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
    assert deployed_(net) == ["training branches of 1 parts were joined: 3 convolutions became 2"]
    assert not net.order.requires_grad and net[1].one.weight.requires_grad
