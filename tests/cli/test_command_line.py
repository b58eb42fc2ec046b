from __future__ import annotations

import re
import subprocess
import sys

import pytest

import trtq
from tests.conftest import run_cli
from trtq.cli.options import spec_options
from trtq.specs import (
    BenchSpec,
    BuildSpec,
    CompareSpec,
    EvaluateSpec,
    GateSpec,
    QuantizeSpec,
    option_name,
)
from trtq.verbs import VERBS

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "timm",
    "matplotlib",
    "rich",
    "tensorrt_rtx",
    "tensorrt",
    "PIL",
)


WITHOUT_HEAVY = """
import contextlib, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from trtq.cli import main
for words in [[], *([c] for c in sys.argv[2].split(","))]:
    print("asked", *words, flush=True)
    sys.argv = ["trtq", *words, "--help"]
    with contextlib.suppress(SystemExit):
        main()
"""


def test_help_needs_no_heavy_package():
    line = [sys.executable, "-c", WITHOUT_HEAVY, ",".join(HEAVY), ",".join(VERBS)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = dict(re.findall(r"^asked ?(.*)\n(Usage: trtq)?", done.stdout, re.M))
    assert answers == dict.fromkeys(["", *VERBS], "Usage: trtq"), done.stderr


def test_help_imports_click_and_nothing_else_from_outside():
    code = """import sys
before = set(sys.modules)
from trtq.cli import cli
cli.main(["--help"], standalone_mode=False)
print("imported", *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(done.stdout.rpartition("imported ")[2].split())
    assert names - set(sys.stdlib_module_names) == {"click", "trtq"}


def test_engines_are_built_and_measured_without_torch():
    """Boards and build machines may have none, and its import takes longer than most builds."""
    rooms = "engine.build", "bench.harness", "bench.workload", "deploy.record", "commands.audit"
    rooms += "commands.package", "commands.inspect", "package.check"
    code = f"import importlib, sys; sys.modules['torch'] = None\nfor m in {rooms!r}:\n    "
    line = [sys.executable, "-c", f"{code}importlib.import_module(f'trtq.{{m}}')"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_trtq_imports_no_heavy_package():
    code = f"import sys, trtq; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_public_names_resolve_and_are_sorted():
    assert trtq.__all__ == sorted(trtq.__all__, key=lambda n: (n.islower() or n.startswith("_"), n))
    for name in trtq.__all__:
        assert getattr(trtq, name) is not None
    assert dir(trtq) == trtq.__all__


def test_bench_is_the_verb_also_after_its_room_was_imported():
    code = "import trtq.bench.latency, trtq; print(callable(trtq.bench))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "True"
    )


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = trtq.quantise


@pytest.mark.parametrize(
    ("command", "spec"),
    [
        ("quantize", QuantizeSpec),
        ("evaluate", EvaluateSpec),
        ("build", BuildSpec),
        ("bench", BenchSpec),
        ("compare", CompareSpec),
        ("gate", GateSpec),
    ],
)
def test_every_field_of_a_spec_is_an_option(command, spec):
    text = run_cli(command, "--help").stdout
    argument = {
        "quantize": "model",
        "evaluate": "onnx",
        "build": "onnx",
        "bench": "file",
        "compare": "file",
        "gate": "record",
    }[command]
    for name in spec.__struct_fields__:
        if name != argument:
            assert option_name(name) in text
    assert spec_options is not None


@pytest.mark.parametrize(
    ("args", "text", "code"),
    [
        (["quantise"], "Unknown command 'quantise'. Did you mean quantize", 2),
        (["quantize"], "trtq quantize needs MODEL, --data, --out", 2),
        (
            ["quantize", "m:f", "--data", "x", "--out", "y", "--model-arg", "classes"],
            "Cannot read --model-arg 'classes': expected K=V",
            2,
        ),
        (
            ["quantize", "m:f", "--data", "x", "--out", "y", "--input-size", "big"],
            "Cannot read --input-size 'big'",
            2,
        ),
        (
            ["quantize", "m:f", "--data", "x", "--out", "y", "--percentile", "20"],
            "Expected `float` > 50",
            2,
        ),
        (
            ["quantize", "m:f", "--data", "x", "--out", "y", "--calibrator", "median"],
            "Cannot use --calibrator median: known are auto, max",
            2,
        ),
        (["run", "nowhere.toml"], "Cannot read the recipe nowhere.toml: there is no such file", 2),
        (
            ["inspect", "nowhere.onnx"],
            "Cannot inspect nowhere.onnx: there is no such file or folder",
            1,
        ),
        (
            ["build", "nowhere.onnx", "--target", "rtx3080", "--out", "e"],
            "Cannot read nowhere.onnx: there is no such file",
            1,
        ),
        (
            ["evaluate", "nowhere.onnx", "--data", "digits"],
            "Cannot read nowhere.onnx: there is no such file",
            1,
        ),
        (
            ["build", "nowhere.onnx", "--target", "rtx3808", "--out", "e"],
            "Unknown target 'rtx3808'. Did you mean rtx3080",
            2,
        ),
    ],
)
def test_wrong_usage_is_one_clear_line(args, text, code, tmp_path):
    done = run_cli(*args, cwd=tmp_path)
    assert text in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_doctor_lists_what_is_here_and_what_is_missing():
    done = run_cli("doctor")
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "NVIDIA GPU" in done.stdout
    for extra in ("ray", "s3fs", "mlflow-skinny"):
        assert f"\n{extra} " in done.stdout
