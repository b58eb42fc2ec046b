"""Tasks and data adapters from outside the tree, as docs/extending.md shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import trtq
from tests.support.small_net import Net
from trtq.errors import DataError, UsageError
from trtq.tasks import Task, find_task

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()


def block(title: str) -> str:
    """Return the first Python block below a heading of the page."""
    section = PAGE[PAGE.index(f"# {title}") :]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


@pytest.fixture
def net(tmp_path, monkeypatch) -> Net:
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return Net().eval()


def test_a_task_of_a_file(net, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(block("Adding a task"))
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    quantized = trtq.quantize(net, images)
    labels = net(images).argmax(1)
    scored = quantized.evaluate(list(zip(images, labels, strict=True)), task=f"{own}:BALANCED")
    assert scored.task.name == "balanced classification"
    assert scored.reference["balanced accuracy"].value == 100.0
    assert 0.0 < scored.figures["balanced accuracy"].value <= 100.0


def test_a_task_of_a_module_and_of_an_installed_package(net, tmp_path, monkeypatch):
    info = tmp_path / "balanced_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: balanced-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[trtq.tasks]\neven = balanced_package:BALANCED\n")
    (tmp_path / "balanced_package.py").write_text(block("Adding a task"))
    monkeypatch.syspath_prepend(str(tmp_path))
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    pairs = list(zip(images, net(images).argmax(1), strict=True))
    for name in ("balanced_package:BALANCED", "even"):
        scored = trtq.quantize(net, images, task=name).evaluate(pairs)
        assert scored.task.name == "balanced classification"
        assert scored.reference["balanced accuracy"].value == 100.0


class Turned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Linear(8, 5)

    def forward(self, x):
        answer = self.head(self.body(x).relu().mean((2, 3)))
        return {"scores": answer[:, :4], "angle": answer[:, 4:] * 90}


def test_a_task_of_several_outputs(net, tmp_path):
    code = block("A task of several outputs")
    assert sum(bool(line.strip()) for line in code.splitlines()) < 30
    own = tmp_path / "own.py"
    own.write_text(code)
    model, images = Turned().eval(), torch.randn(12, 3, 16, 16)
    with torch.inference_mode():
        answers = model(images)
    right = torch.cat([answers["scores"].argmax(1, keepdim=True), answers["angle"]], 1)
    right[:3, 1] += 30.0
    quantized = trtq.quantize(model, images, task=f"{own}:Turned")
    assert [f.name for f in quantized.done.alike] == ["agreement"]
    seen = quantized.evaluate(list(zip(images, right, strict=True)))
    assert seen.reference["right"].value == 75.0
    assert seen.agreement["agreement"].value > 50.0


def test_a_data_adapter_of_a_file(net, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(block("Adding a data adapter"))
    (tmp_path / "arrays").mkdir()
    torch.manual_seed(1)
    import numpy as np

    for i in range(12):
        np.save(tmp_path / f"arrays/{i:02d}.npy", torch.randn(3, 16, 16).numpy())
    source = own.read_text().replace('"arrays"', repr(str(tmp_path / "arrays")))
    own.write_text(source)
    quantized = trtq.quantize(net, f"{own}:arrays", input_size=(3, 16, 16))
    assert len(quantized.inputs.samples) == 12
    assert quantized.inputs.samples.name == f"{own}:arrays"


def test_what_is_no_task_or_adapter_says_so(net, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("NUMBER = 7\n")
    with pytest.raises(UsageError, match="it is of type int, expected trtq.tasks.Task"):
        find_task(f"{own}:NUMBER")
    with pytest.raises(UsageError, match="Unknown task 'classificaton'.*classification"):
        find_task("classificaton")
    with pytest.raises(UsageError, match="has no MISSING|Cannot load"):
        find_task(f"{own}:MISSING")
    with pytest.raises(DataError, match="it is no tensor, list, Dataset"):
        trtq.samples(f"{own}:NUMBER")
    assert isinstance(find_task("tensors"), Task)
