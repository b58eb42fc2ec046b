"""Where models come from.

Users' own files do not collide with other modules, wrappers are removed, and there is no network.
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from trtq.errors import ModelError
from trtq.graph.capture import capture
from trtq.models.load import _torchvision, load_model
from trtq.models.unwrap import out_of_inference_mode_, unwrap
from trtq.user_code import import_named

LAYER = "from torch import nn\ndef make(n={n}):\n    return nn.Conv2d(3, n, 1)\n"


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class Around(nn.Module):
    def __init__(self, body: nn.Module, other: nn.Module | None = None):
        super().__init__()
        self.body, self.other, self.head = body, other, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


# What a factory may return, and which wrapper is said to have come off.
WRAPPED = {
    "compiled": (lambda: torch.compile(net()), "torch.compile"),
    "compile()": (lambda: [m := net(), m.compile()][0], "torch.compile"),
    "parallel": (lambda: nn.DataParallel(net()), "DataParallel"),
    "compiled parallel": (lambda: torch.compile(nn.DataParallel(net())), "DataParallel"),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(net()), "AveragedModel"),
    "part compiled": (lambda: Around(torch.compile(net())), "body: .*torch.compile"),
    "part parallel": (lambda: Around(nn.DataParallel(net())), "body: .*DataParallel"),
    "shared": (
        lambda: [c := torch.compile(net()), Around(c, c)][1],
        "body, other: .*torch.compile",
    ),
}


def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory) -> str:
    """Return the name of a module that holds a factory, as a user would write it."""
    module = types.ModuleType("trtq_test_factory")
    module.make = factory
    monkeypatch.setitem(sys.modules, "trtq_test_factory", module)
    return "trtq_test_factory:make"


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_come_off_and_are_said(tmp_path, monkeypatch, case):
    factory, text = WRAPPED[case]
    model = load_model(named(tmp_path, monkeypatch, factory))
    assert re.search(text, " ".join(model.notes)) and not model.module.training
    assert not any("_orig_mod" in n or "module" in n for n in model.module.state_dict())
    captured = capture(model.module, (3, 32, 32))
    assert captured.dynamic_batch
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(captured.module(x), model.module(x), atol=1e-5)


EXPORTED = (
    "a graph of torch.export, which has its batch and its training mode fixed. Return the "
    "module that was given to torch.export"
)
X = torch.zeros(1, 3, 32, 32)
REFUSED = {
    "scripted": (
        lambda: torch.jit.script(net()),
        "it is a ScriptModule.*Return the module that it was made from",
    ),
    "traced": (lambda: torch.jit.trace(net().eval(), X), "it is a ScriptModule"),
    "part scripted": (lambda: Around(torch.jit.script(net())), "its part 'body' is a ScriptModule"),
    "exported": (lambda: torch.export.export(net().eval(), (X,)).module(), f"it is {EXPORTED}"),
    "part exported": (
        lambda: Around(torch.export.export(net().eval(), (X,)).module()),
        f"its part 'body' is {EXPORTED}",
    ),
    "unflattened": (
        lambda: torch.export.unflatten(torch.export.export(net().eval(), (X,))),
        f"it is {EXPORTED}",
    ),
    "program": (
        lambda: torch.export.export(net().eval(), (X,)),
        "returned ExportedProgram, not a torch.nn.Module",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(3, 1)),
        "'0.weight' has no shape yet.*Run the model once",
    ),
    "meta": (lambda: nn.Conv2d(3, 3, 1, device="meta"), "'weight' has no values"),
    "quantized": (lambda: torch.ao.nn.quantized.dynamic.Linear(4, 4), "it is quantized already"),
    "nothing": (lambda: None, "returned NoneType"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_plain_module_in_it(tmp_path, monkeypatch, case):
    factory, text = REFUSED[case]
    with pytest.raises(ModelError, match=text):
        load_model(named(tmp_path, monkeypatch, factory))


def test_weights_of_inference_mode_that_are_shared_stay_shared():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net[1].weight = net[0].weight
    out_of_inference_mode_(net)
    assert net[0].weight is net[1].weight and not net[0].weight.is_inference()


def test_types_and_inference_mode(tmp_path, monkeypatch):
    half = load_model(named(tmp_path, monkeypatch, lambda: net().half()))
    assert half.notes == ("parameters of the model were float16: converted to float32",)

    def made():
        with torch.inference_mode():
            return net()

    model = load_model(named(tmp_path, monkeypatch, made)).module
    assert capture(model, (3, 32, 32)).dynamic_batch
    assert unwrap(model, "x") == (model, [])


def test_a_ready_made_module_is_not_changed(tmp_path, monkeypatch):
    ready = net().double()
    model = load_model(named(tmp_path, monkeypatch, ready))
    assert model.module is not ready and ready.training and ready[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sys.exit()", r"raised SystemExit \(the code ended the program\)"),
        ("sys.exit(3)", r"raised SystemExit: 3 \(the code ended the program\)"),
        ("raise SystemExit('bye')", "raised SystemExit: bye"),
        ("class E(BaseException): pass\nraise E('x')", "raised E: x"),
        ("raise GeneratorExit", "raised GeneratorExit"),
        ("raise ValueError('one\\n\\ttwo' + 'x' * 5000)", r"raised ValueError: one two"),
    ],
)
@pytest.mark.parametrize("where", ["import", "factory"])
def test_a_users_code_that_fails_or_ends_the_program(tmp_path, code, text, where):
    path = tmp_path / "m.py"
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    path.write_text(
        f"import sys\n{code}\n" if where == "import" else f"import sys\ndef make():\n{indented}\n"
    )
    with pytest.raises(ModelError, match=text) as caught:
        load_model(f"{path}:make")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("where", ["import", "factory"])
def test_ctrl_c_stays_ctrl_c(tmp_path, where):
    (tmp_path / "m.py").write_text(
        "raise KeyboardInterrupt\n"
        if where == "import"
        else "def make():\n    raise KeyboardInterrupt\n"
    )
    with pytest.raises(KeyboardInterrupt):
        load_model(f"{tmp_path}/m.py:make")


def test_neighbours_do_not_shadow_the_standard_library(tmp_path):
    for name in ("profile", "types", "random", "colorsys", "onnxruntime", "trtq"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "layers.py").write_text(LAYER.format(n=5))
    (tmp_path / "model.py").write_text("import random, colorsys, types\nfrom layers import make\n")
    assert load_model(f"{tmp_path}/model.py:make").module.out_channels == 5
    for name in ("colorsys", "profile"):
        sys.modules.pop(name, None)
        assert str(tmp_path) not in __import__(name).__file__
    assert random.__file__ != str(tmp_path / "random.py")


@pytest.mark.parametrize("stem", ["types", "random", "profile", "torch", "two words", "1st"])
def test_a_model_file_may_have_any_name(tmp_path, stem):
    before = sys.modules.get(stem)
    (tmp_path / f"{stem}.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class C:\n    x: int = 6\n"
        "from torch import nn\ndef make():\n    return nn.Conv2d(3, C().x, 1)\n"
    )
    assert load_model(f"{tmp_path}/{stem}.py:make").module.out_channels == 6
    assert sys.modules.get(stem) is before or before is None


def test_files_of_one_name_are_not_confused(tmp_path):
    """Two folders with model.py, layers.py and a package parts; loaded in turns."""
    for n in (4, 7):
        folder = tmp_path / str(n)
        (folder / "parts").mkdir(parents=True)
        (folder / "parts/__init__.py").write_text("")
        (folder / "parts/width.py").write_text(f"WIDTH = {n}\n")
        (folder / "layers.py").write_text(
            "import model\n" + LAYER.format(n=f"{n} if model.MARK == {n} else 1")
        )
        (folder / "model.py").write_text(
            f"MARK = {n}\nfrom layers import make\ndef lazy():\n    from parts.width import "
            "WIDTH\n    return make(WIDTH)\n"
        )
    for _ in range(2):
        for n in (4, 7):
            for factory in ("make", "lazy"):
                assert load_model(f"{tmp_path}/{n}/model.py:{factory}").module.out_channels == n


@pytest.mark.slow
def test_code_that_has_just_changed_is_the_code_that_runs(tmp_path):
    """Same second, same size: a cached .pyc would be taken for the new file's."""
    (tmp_path / "parts").mkdir()
    for n in (4, 7, 5):
        for name, code in (
            ("model.py", f"from layers import make\nMARK = {n}\n"),
            ("layers.py", "from parts.width import make\n"),
        ):
            (tmp_path / name).write_text(code)
        (tmp_path / "parts/width.py").write_text(LAYER.format(n=n))
        code = (
            "from trtq.models.load import load_model; "
            f"print(load_model('{tmp_path}/model.py:make').module.out_channels)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(n)
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_neighbour_comes_before_an_installed_package(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "trtq_helpers.py").write_text(LAYER.format(n=1))
    monkeypatch.syspath_prepend(site)
    (tmp_path / "importlib").mkdir()
    (tmp_path / "importlib/trtq_helpers.py").write_text(LAYER.format(n=9))
    (tmp_path / "importlib/m.py").write_text("from trtq_helpers import make\n")
    assert load_model(f"{tmp_path}/importlib/m.py:make").module.out_channels == 9


def test_a_package_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "trtq_pkg").mkdir()
    (tmp_path / "trtq_pkg/__init__.py").write_text("")
    (tmp_path / "trtq_pkg/zoo.py").write_text("from .inner import make\n")
    (tmp_path / "trtq_pkg/inner.py").write_text(LAYER.format(n=8))
    (tmp_path / "random.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    assert load_model("trtq_pkg.zoo:make").module.out_channels == 8


def test_a_file_with_relative_imports_names_the_form_that_works(tmp_path, monkeypatch):
    (tmp_path / "trtq_zoo/nets").mkdir(parents=True)
    for folder in ("trtq_zoo", "trtq_zoo/nets"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "trtq_zoo/nets/net.py").write_text("from .layers import make\n")
    (tmp_path / "trtq_zoo/nets/layers.py").write_text(LAYER.format(n=8))
    with pytest.raises(
        ModelError, match=f"cd {tmp_path}, and give trtq_zoo.nets.net:make"
    ) as caught:
        load_model(f"{tmp_path}/trtq_zoo/nets/net.py:make")
    monkeypatch.chdir(tmp_path)
    name = str(caught.value).rpartition("give ")[2].removesuffix(".")
    assert load_model(name).module.out_channels == 8


def test_the_home_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.py").write_text(LAYER.format(n=8))
    assert load_model("~/m.py:make").module.out_channels == 8
    assert callable(import_named("~/m.py:make", "loss"))
    from trtq import BlocksSpec
    from trtq.commands.loading import open_model

    torch.save(
        {k: torch.ones_like(v) for k, v in nn.Conv2d(3, 8, 1).state_dict().items()},
        tmp_path / "w.pt",
    )
    model = open_model(BlocksSpec(model="~/m.py:make", checkpoint="~/w.pt"))
    assert model.module.weight.sum().item() == 24


@pytest.mark.slow
def test_python_m_trtq_in_a_folder_with_files_of_the_librarys_names(tmp_path):
    for name in (
        "random",
        "profile",
        "colorsys",
    ):  # Python itself imports others before any code of ours
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "model.py").write_text(
        "def make():\n    from trtq.testing.models import tiny_cnn\n    return tiny_cnn()\n"
    )
    command = [sys.executable, "-m", "trtq", "blocks", "model.py:make", "--input-size", "3x32x32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.parametrize(
    "package", ["detection", "segmentation", "quantization", "video", "optical_flow"]
)
@pytest.mark.filterwarnings("ignore")
def test_no_torchvision_model_asks_the_network(no_network, package):
    from torchvision import models

    for name in models.list_models(module=getattr(models, package)):
        with torch.device("meta"):  # their structure alone
            assert isinstance(_torchvision(name)(), nn.Module)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_classifier_of_torchvision_asks_the_network(no_network):
    from torchvision import models

    made = [
        n
        for n in models.list_models(module=models)
        if not n.startswith("regnet") or n.endswith("400mf")
    ]
    for name in made:
        with torch.device(
            "cpu" if name.startswith("regnet") else "meta"
        ):  # RegNet computes its widths with tensors
            assert isinstance(_torchvision(name)(), nn.Module)


@pytest.mark.parametrize(
    "model", ["timm:test_resnet", "torchvision:resnet18", "torchvision:fcn_resnet50"]
)
def test_arguments_that_ask_for_weights(no_network, model):
    for argument in ("pretrained", "weights", "weights_backbone", "pretrained_backbone"):
        with pytest.raises(
            ModelError,
            match=rf"with {argument}=True: trtq downloads nothing.*--checkpoint weights.pt",
        ):
            load_model(model, args={argument: "true"})
    with pytest.raises(ModelError, match="Give --checkpoint a.pth"):
        load_model(model, args={"checkpoint_path": "a.pth"})
    if model == "timm:test_resnet":
        assert (
            load_model(model, args={"pretrained": "false", "weights": "none"}).weights
            == "random (seed 0)"
        )


def test_files_that_are_no_models_say_what_they_are(tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(2)}, weights)
    with pytest.raises(ModelError, match="it holds weights without a model") as caught:
        load_model(str(weights))
    assert f"timm:NAME --checkpoint {weights}" in caught.value.hint
    script = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    with pytest.raises(ModelError, match="TorchScript archive, and its code is not run") as caught:
        load_model(str(script))
    assert "torch.export.save" in caught.value.hint
