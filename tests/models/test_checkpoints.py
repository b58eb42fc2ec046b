"""Checkpoints: every form is loaded right, or named for what it is.

Nothing in a file is ever run.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import os
import pickle
import random
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import trtq
from tests.support.checkpoints import Holder, Small, equal, filled, loaded, prefixed, refused
from trtq import QuantizeSpec
from trtq.commands.loading import open_model
from trtq.errors import ModelError, UsageError
from trtq.models.checkpoint import load_checkpoint_

CHAINS = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.module.",
    "net._orig_mod.model.",
)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("prefix", CHAINS)
def test_prefixes_of_wrappers_come_off(state, tmp_path, prefix, name):
    model, done = loaded(tmp_path, prefixed(state, prefix), name=name)
    assert equal(model, state)
    assert done.prefix == prefix
    assert (f"the prefix {prefix!r} came off" in done.text) == bool(prefix) == bool(done.notes)


@pytest.mark.parametrize("own", ["module", "model", "net", "_orig_mod", "backbone"])
@pytest.mark.parametrize("prefix", ["", "OWN.", "module.OWN.", "_orig_mod.module.OWN."])
def test_a_child_of_the_models_own_keeps_its_name(state, tmp_path, own, prefix):
    prefix = prefix.replace("OWN", own)
    model, done = loaded(tmp_path, prefixed(state, prefix), Holder(own))
    assert equal(model, state)
    assert done.prefix == prefix.removesuffix(f"{own}.")
    assert done.added == ("" if prefix else f"{own}.")


def test_names_with_a_wrappers_part_on_some_only(state, tmp_path):
    """A model that really has a child called module beside others loads by its own names.

    A checkpoint of one wrapped inside loads as well.
    """

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.head = Small(), nn.Linear(4, 2)

    truth = filled(Both()).state_dict()
    for content in (
        truth,
        prefixed(truth, "module."),
        {k.replace("module.", "module._orig_mod."): v for k, v in truth.items()},
    ):
        model, _ = loaded(tmp_path, content, Both())
        assert equal(model, truth)
    bare = {k.removeprefix("module."): v for k, v in truth.items()}
    model, done = loaded(tmp_path, bare, Both())
    assert equal(model, truth) and "inside of names" in done.text


def test_two_names_that_become_one_without_wrappers_are_not_mixed(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.module = nn.Conv2d(3, 3, 1), nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1)})

    truth = filled(Twice()).state_dict()
    model, _ = loaded(tmp_path, truth, Twice())
    assert equal(model, truth)
    model, _ = loaded(tmp_path, prefixed(truth, "module."), Twice())
    assert equal(model, truth)


LIGHTNING = {
    "epoch": 3,
    "global_step": 120,
    "pytorch-lightning_version": "2.4.0",
    "loops": {},
    "callbacks": {},
    "optimizer_states": [],
}


class Config:
    """A class that a checkpoint names and that is not loaded."""

    def __init__(self):
        self.rate = 0.1


class Table(dict):
    """A dict of somebody's own, and a list below."""


class Row(list):
    pass


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("inside", "names"),
    [
        ({}, ""),
        ({"hyper_parameters": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        (
            {"hyper_parameters": {"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}},
            "functools.partial, torch.optim.sgd.SGD",
        ),
        ({"config": Config()}, "Config"),
        ({"config": Table(a=Row([1, Table(b=2)]))}, "Row.*Table"),
        (
            {"counts": collections.defaultdict(list, a=[1])},
            "builtins.list, collections.defaultdict",
        ),
        ({"where": Path("x"), "best": np.float64(0.5)}, "numpy"),
    ],
)
def test_lightning(state, tmp_path, inside, names, legacy):
    beside = {"criterion.weight": torch.ones(4), "val_acc.correct": torch.zeros(1)}
    content = {**LIGHTNING, **inside, "state_dict": {**prefixed(state, "model."), **beside}}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    model = Small()
    done = load_checkpoint_(model, tmp_path / "w.ckpt")
    assert equal(model, state)
    assert (
        "the prefix 'model.' came off" in done.text
        and "left out: state_dict.criterion.weight, state_dict.val_acc.correct" in done.text
    )
    assert re.search(
        f"no code was run .not loaded: .*{names}" if names else "", " ".join(done.notes)
    )


@pytest.mark.parametrize("function", [os.system, eval, exec, subprocess.Popen])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_runs_code_is_refused_and_runs_none(state, tmp_path, function, legacy):
    mark = tmp_path / "mark"

    class Attack:
        def __reduce__(self):
            code = f"open({str(mark)!r}, 'w')" if function in (eval, exec) else f"touch {mark}"
            return function, (code,)

    torch.save(
        {"state_dict": state, "x": Attack()},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    text = refused(tmp_path / "w.pt")
    assert "would run code" in text and function.__name__ in text
    assert not mark.exists()


@pytest.mark.parametrize("plain", ["state_dict", "model", "params"])
@pytest.mark.parametrize(
    "ema", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"]
)
def test_averaged_weights_beside_plain_ones(state, tmp_path, plain, ema):
    other = filled(Small(), 3).state_dict()
    averaged = {"module": prefixed(other, "module.")} if ema == "ema" else other
    content = {ema: averaged, plain: state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    model, done = loaded(tmp_path, content)
    assert equal(model, state)
    assert (
        f"weights taken from {plain!r}" in done.text
        and f"fit as well: {ema}" in done.text
        and "--checkpoint-key" in done.text
    )
    model, done = loaded(tmp_path, content, key=ema)
    assert equal(model, other) and f"under {ema!r}" in done.text
    model, _ = loaded(tmp_path, {ema: other})
    assert equal(model, other)


def test_averaged_weights_in_one_state_dict(state, tmp_path):
    other = filled(Small(), 3).state_dict()
    content = {"state_dict": {**prefixed(other, "ema_model.module."), **prefixed(state, "model.")}}
    model, done = loaded(tmp_path, content)
    assert equal(model, state) and "state_dict.ema_model.module" in done.text
    model, _ = loaded(tmp_path, content, key="state_dict.ema_model")
    assert equal(model, other)


def test_several_sets_of_weights_without_a_usual_name(state, tmp_path):
    other = filled(Small(), 3).state_dict()
    torch.save({"student": state, "teacher": {"backbone": other}}, tmp_path / "w.pt")
    text = refused(tmp_path / "w.pt")
    assert "several sets of weights that fit the model: under student, teacher.backbone." in text
    key = text.rpartition("--checkpoint-key ")[2].rstrip(".")
    model, _ = loaded(tmp_path, {"student": state, "teacher": {"backbone": other}}, key=key)
    assert equal(model, state)
    assert "no weights under 'techer': it has tensors under" in refused(
        tmp_path / "w.pt", key="techer"
    )
    assert "Did you mean" in refused(tmp_path / "w.pt", key="techer.backbone")


def test_a_key_needs_a_checkpoint():
    with pytest.raises(UsageError, match="--checkpoint-key needs --checkpoint"):
        open_model(
            QuantizeSpec(
                model="trtq.testing.models:tiny_cnn", checkpoint_key="ema", data="x", out="y"
            )
        )


def test_a_way_to_match_needs_a_checkpoint(tmp_path):
    with pytest.raises(UsageError, match="checkpoint_match needs checkpoint"):
        trtq.load("trtq.testing.models:tiny_cnn", checkpoint_match="order")
    with pytest.raises(
        UsageError, match="checkpoint_match with .*m.onnx: the file has its weights"
    ):
        trtq.load(f"{tmp_path}/m.onnx", checkpoint_match="order")


def test_averaged_model_of_torch(state, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(filled(Small()))
    model, done = loaded(tmp_path, averaged.state_dict())
    assert equal(model, state) and "left out: n_averaged" in done.text


def test_one_layer_fits_under_no_other_layers_name(state, tmp_path):
    """``weight`` and ``bias`` alone are in every file.

    They come from the outermost level or a wrapper, never from some layer.
    """
    layer = filled(nn.Linear(8, 4))
    model, _ = loaded(tmp_path, prefixed(layer.state_dict(), "module."), nn.Linear(8, 4))
    assert equal(model, layer.state_dict())
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not fit"):
        load_checkpoint_(nn.Linear(8, 4), tmp_path / "w.pt")


def test_numbers_beside_the_weights(state, tmp_path):
    model, done = loaded(
        tmp_path, {**state, "epoch": torch.tensor(3), "loss": np.float32(1), "note": "x"}
    )
    assert equal(model, state) and "left out: epoch, loss" in done.text


def test_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

    for name in ("a.weight", "b.weight"):
        model, _ = loaded(tmp_path, {name: torch.full((4, 4), 2.0)}, Tied())
        assert model.a.weight.sum().item() == model.b.weight.sum().item() == 32


def test_a_pickled_module_and_torchscript(state, tmp_path):
    net = filled(Holder("module")).eval()
    net.register_buffer("scratch", torch.zeros(3), persistent=False)
    model, done = loaded(tmp_path, net, Holder("module"))
    assert (
        equal(model, state)
        and "pickled module: only its tensors were read" in done.notes[0]
        and "Holder" in done.notes[0]
    )
    model, done = loaded(tmp_path, {"model": nn.DataParallel(net), "epoch": 3}, Holder("module"))
    assert equal(model, state) and done.prefix == "model.module."
    torch.jit.save(
        torch.jit.trace(filled(Small()).eval(), torch.zeros(1, 3, 8, 8)), tmp_path / "w.pt"
    )
    model = Small()
    done = load_checkpoint_(model, tmp_path / "w.pt")
    own = {k: v for k, v in model.state_dict().items() if "tracked" not in k}
    assert all(torch.equal(v, state[k]) for k, v in own.items()) and "TorchScript" in done.notes[0]


def test_an_exported_program_is_named_and_the_way_out_works(state, tmp_path):
    program = torch.export.export(filled(Small()).eval(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "w.pt2")
    text = refused(tmp_path / "w.pt2")
    assert "an archive of torch.export (.pt2)" in text
    command = shlex.split(text.partition("Save its weights: ")[2].removesuffix("."))
    assert subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=False).returncode == 0
    model = Small()
    load_checkpoint_(model, tmp_path / "weights.pt")
    assert torch.equal(model.fc.weight, state["fc.weight"])


def zipped(**files: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return result.getvalue()


def saved(**arrays) -> bytes:
    result = io.BytesIO()
    np.savez(result, **arrays)
    return result.getvalue()


def onnx_model() -> bytes:
    import onnx

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy"]
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", value[:1], value[1:])
    ).SerializeToString()


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.ckpt", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", r"a web page \(HTML\).*resolve"),
        (b'<?xml version="1.0"?><net/>', "an XML file"),
        (b'{"a": 1}', "a JSON file"),
        (b"\xef\xbb\xbf[1, 2]", "a JSON file"),
        ("Zugriff verweigert: Schl\u00fcssel fehlt".encode(), "a text file"),
        (saved(a=np.zeros(3)), r"a NumPy archive \(.npz\)"),
        (zipped(w__pt=b"x"), "a zip archive with w.pt in it: unpack it"),
        (zipped(a__txt=b"x"), r"a zip archive of something else \(it starts with a.txt\)"),
        (zipped(), "an empty zip archive"),
        (onnx_model(), "an ONNX model"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (pickle.dumps({"a": 1}), "a plain pickle.*could run code"),
        (b"PK\x03\x04torn", "cut off or damaged"),
        (b"\x93NUMPY\x01", "a single NumPy array"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    assert re.search(text, refused(tmp_path / name))


def test_content_counts_and_not_the_name(state, tmp_path):
    torch.save(state, tmp_path / "w.safetensors")
    save_file(state, tmp_path / "w.pt")
    for path in tmp_path.iterdir():
        model = Small()
        load_checkpoint_(model, path)
        assert equal(model, state)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_torn_files(state, tmp_path, name, legacy):
    path = tmp_path / name
    save_file(state, path) if name.endswith("s") else torch.save(
        state, path, _use_new_zipfile_serialization=not legacy
    )
    whole = path.read_bytes()
    for end in (1, 9, 40, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:end])
        assert "Cannot read the checkpoint" in refused(path)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(3), {"epoch": 3}, {}, "text", None, {"optimizer": {"state": {}}}]
)
def test_torch_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    assert "state_dict(), 'weights.pt')" in refused(tmp_path / "w.pt")


def sharded(folder: Path, state, kind: str) -> Path:
    names, map_ = list(state), {}
    for i, part in enumerate((names[:3], names[3:]), 1):
        shard = f"model-0000{i}-of-00002.{kind}"
        content = {n: state[n] for n in part}
        save_file(content, folder / shard) if kind == "safetensors" else torch.save(
            content, folder / shard
        )
        map_ |= dict.fromkeys(part, shard)
    index = folder / (
        "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    )
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": map_}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(state, tmp_path, kind):
    index = sharded(tmp_path, prefixed(state, "model."), kind)
    for path in (index, tmp_path):
        model = Small()
        done = load_checkpoint_(model, path)
        assert equal(model, state) and done.prefix == "model."
    renamed = Small()
    renamed.other = renamed._modules.pop("conv")
    with pytest.raises(ModelError, match="keeps no order"):
        load_checkpoint_(renamed, index, "order")
    (tmp_path / f"model-00002-of-00002.{kind}").unlink()
    assert f"its shard model-00002-of-00002.{kind} is missing" in refused(tmp_path)
    data = json.loads(index.read_text())
    index.write_text(
        json.dumps(
            {"weight_map": dict.fromkeys(data["weight_map"], f"model-00001-of-00002.{kind}")}
        )
    )
    assert "has no tensor 'model.bn.bias', which the index says it has" in refused(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert "outside its folder" in refused(index)
    index.write_text(json.dumps({"weight_map": [1]}))
    assert "not a table of file names" in refused(index)


def test_folders(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    torch.save(prefixed(state, "x."), tmp_path / "pytorch_model.bin")
    model = Small()
    load_checkpoint_(model, tmp_path)
    assert equal(model, state)
    save_file(state, tmp_path / "other.safetensors")
    assert "a folder with 3 files of weights: model.safetensors, other.safetensors" in refused(
        tmp_path
    )
    others = {
        ".metadata": "torch.distributed.checkpoint.*dcp_to_torch",
        "saved_model.pb": "a SavedModel",
    }
    others |= {"data.pkl": "unpacked", "a": "without"}
    for name, text in others.items():
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_bytes(b"x")
        assert re.search(text, refused(tmp_path / name[:3]))
    assert "there is no such file" in refused(tmp_path / "nowhere.pt")


@pytest.mark.slow
def test_damaged_files_are_errors_in_one_line(state, tmp_path):
    """Bytes changed, cut and doubled, mostly where the structure is."""
    torch.save(
        {"state_dict": prefixed(state, "model."), "hyper": argparse.Namespace(a=1)},
        tmp_path / "a.pt",
    )
    torch.save(state, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    torch.save(filled(Small()), tmp_path / "c.pt")
    torch.save({k: v.numpy() for k, v in state.items()}, tmp_path / "d.pt")
    torch.jit.save(
        torch.jit.trace(filled(Small()).eval(), torch.zeros(1, 3, 8, 8)), tmp_path / "e.pt"
    )
    save_file(state, tmp_path / "f.safetensors")
    whole = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    index = sharded(tmp_path, state, "bin")
    generator = random.Random(0)
    for i in range(1000):
        content = bytearray(whole[i % len(whole)] if i % 7 else index.read_bytes())
        for _ in range(generator.choice((1, 1, 2, 5, 20))):
            at, kind = (
                generator.randrange(min(len(content), generator.choice((1500, 10**6)))),
                generator.random(),
            )
            end = at + (1 if kind < 0.5 else generator.randrange(40))
            content[at:end] = (
                generator.randbytes(1 if kind < 0.7 else generator.randrange(9)) or b"x"
            )
        path = tmp_path / ("x.bin" if i % 7 else "x.json")
        path.write_bytes(content)
        try:
            load_checkpoint_(Small(), path)
        except ModelError as exc:
            assert "weights_only" not in str(exc) and len(str(exc)) < 1500
