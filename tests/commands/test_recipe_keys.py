"""What makes a stage of a recipe run again.

Everything its result depends on does, by content, and nothing else.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trtq.pipeline import run
from trtq.progress import Silent
from trtq.recipe import load_recipe
from trtq.stages import plan

MODEL = """
import torch
from pathlib import Path
from blocks import Tail
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.tail = torch.nn.Conv2d(3, 8, 3), Tail()
        self.num_classes = 4
    def forward(self, x):
        return self.tail(torch.relu(self.conv(x)))
def model():
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return net
"""
TAIL = """
import torch
class Tail(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 4)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))
"""
LOSS = """
import torch
from terms import weigh
def loss(answer, wanted):
    return weigh(torch.nn.functional.cross_entropy(answer, wanted))
"""


@pytest.fixture()
def project(tmp_path: Path, images: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "blocks.py").write_text(TAIL)
    (tmp_path / "loss.py").write_text(LOSS)
    (tmp_path / "terms.py").write_text("def weigh(x):\n    return x\n")
    torch.manual_seed(1)
    parts = {"conv": torch.nn.Conv2d(3, 8, 3), "tail.fc": torch.nn.Linear(8, 4)}
    torch.save(
        {f"{n}.{k}": v for n, m in parts.items() for k, v in m.state_dict().items()},
        tmp_path / "weights.pt",
    )
    (tmp_path / "recipe.toml").write_text(
        f'out = "{tmp_path}/run"\n[quantize]\nmodel = "{tmp_path}/net.py:model"\ndata = '
        f'"{images}"\ninput_size = "3x32x32"\n'
        'preset = "imagenet"\ncalib_images = 16\npreset_quant = "none"\ncalib_cache = '
        f'"{tmp_path}/cache"\n'
        '[finetune]\nepochs = 1\nbatch_size = 8\naugment = "none"\nloss = '
        f'"{tmp_path}/loss.py:loss"\n'
    )
    return tmp_path


def ran(project: Path) -> dict[str, str]:
    """Run the recipe as a new process would and return why each stage ran."""
    for name in ("blocks", "terms"):
        sys.modules.pop(name, None)
    return {r.name: r.why for r in run(load_recipe(project / "recipe.toml")) if r.ran}


def test_a_stage_runs_again_when_what_it_depends_on_changed(project: Path):
    assert list(ran(project)) == ["quantize", "finetune", "report"]
    assert ran(project) == {}
    # A comment changes nothing that is computed.
    (project / "net.py").write_text(MODEL + "# later\n")
    assert ran(project) == {}
    # A module that the model's file imports.
    (project / "blocks.py").write_text(TAIL.replace("x.mean((2, 3))", "x.amax((2, 3))"))
    assert ran(project)["quantize"] == "model changed"
    # A file of weights that the factory opens itself.
    state = torch.load(project / "weights.pt", weights_only=True)
    torch.save({k: v * 1.01 for k, v in state.items()}, project / "weights.pt")
    assert ran(project)["quantize"] == "model changed"
    # A module that the user's loss imports.
    (project / "terms.py").write_text("def weigh(x):\n    return 2 * x\n")
    assert ran(project) == {
        "finetune": "own loss changed",
        "report": "finetune/finetune.json changed",
    }


def test_training_does_not_look_at_how_encodings_are_stored(project: Path):
    ran(project)
    file = project / "run/encodings.safetensors"
    before = training_inputs(project)
    whole = file.read_bytes()
    shutil.copy(file, project / "other.safetensors")
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        meta = handle.metadata()
    tensors = dict(reversed(load_file(file).items()))
    for _ in range(20):  # the order of metadata in the file is not fixed
        save_file(tensors, file, metadata=meta)
        if file.read_bytes() != whole:
            break
    assert file.read_bytes() != whole
    assert training_inputs(project) == before


def training_inputs(project: Path) -> dict:
    """What the training stage says that it depends on."""
    recipe = load_recipe(project / "recipe.toml")
    stage = next(s for s in plan(recipe, Path(recipe.out), Silent()) if s.name == "finetune")
    return stage.inputs()


def test_constants_that_are_no_parameters_count(project: Path):
    ran(project)
    gain = (
        "self.num_classes = 4\n        self.register_buffer('gain', torch.full((1,), 2.0), "
        "persistent=False)"
    )
    own = MODEL.replace("self.num_classes = 4", gain).replace(
        "return self.tail(", "return self.gain * self.tail("
    )
    (project / "net.py").write_text(own)
    assert ran(project)["quantize"] == "model changed"
    text = (project / "net.py").read_text()
    (project / "net.py").write_text(text.replace("2.0), persistent", "3.0), persistent"))
    assert ran(project)["quantize"] == "model changed"
    (project / "net.py").write_text(
        text.replace("2.0), persistent", "3.0), persistent").replace(
            "num_classes = 4", "num_classes = 9"
        )
    )
    assert ran(project)["quantize"] == "model changed"


VECTORS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x)

def model():
    torch.manual_seed(0)
    return Net()
"""


def test_a_stage_on_arrays_runs_again_when_one_changed(tmp_path: Path):
    (tmp_path / "net.py").write_text(VECTORS)
    (tmp_path / "set").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        np.savez(tmp_path / f"set/{i}.npz", x=rng.standard_normal(6).astype(np.float32))
    (tmp_path / "recipe.toml").write_text(
        f'out = "{tmp_path}/run"\n[quantize]\nmodel = "{tmp_path}/net.py:model"\n'
        f'data = "{tmp_path}/set"\npreset_quant = "none"\ncalib_cache = "{tmp_path}/cache"\n'
    )
    assert list(ran(tmp_path)) == ["quantize", "report"]
    assert ran(tmp_path) == {}
    np.savez(tmp_path / "set/2.npz", x=rng.standard_normal(6).astype(np.float32))
    assert ran(tmp_path)["quantize"] == "images changed"
