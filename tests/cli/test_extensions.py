"""Methods and calibrators from outside the tree: by entry point, by module, by file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from msgspec import Meta

from tests.conftest import run_cli, spec
from trtq import extensions, quantize, specs
from trtq.errors import CalibrationError, UsageError
from trtq.methods.registry import choose, get_method
from trtq.specs import QuantizeSpec
from trtq.specs.base import Spec

DOCS = Path(__file__).parents[2] / "docs/extending.md"
METHOD, CALIBRATOR = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)[:2]
ENTRY_POINTS = """
[trtq.methods]
widen = wide_package:METHOD
broken = broken_package:METHOD
missing = wide_package:NOTHING
function = half_package:half

[trtq.calibrators]
half = half_package:half
negative = half_package:negative
"""


@pytest.fixture()
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on sys.path with an installed distribution, as pip leaves it."""
    site = tmp_path / "site"
    info = site / "wide_package-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "wide_package.py").write_text(METHOD)
    (site / "broken_package.py").write_text("import sys\nsys.exit('no licence')\n")
    negative = "\n\ndef negative(hist, qmax):\n    return -1.0\n"
    older = METHOD.replace("METHOD", "OLD").replace("=Arguments()", "={'factor': 1.1}")
    (site / "half_package.py").write_text(CALIBRATOR + negative + older)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    yield site
    for name in ("wide_package", "broken_package", "half_package"):
        sys.modules.pop(name, None)


def test_an_entry_point_is_a_method(images, package: Path, tmp_path: Path):
    plain = quantize(spec(images, tmp_path / "a"))
    wide = quantize(
        spec(images, tmp_path / "b", method=["widen"], method_arg={"widen.factor": 1.5})
    )
    before, after = (
        {q.name: q.amax for q in r.quantizers if q.role == "input"} for r in (plain, wide)
    )
    assert all(after[n] == pytest.approx(1.5 * before[n], rel=2e-3) for n in before)
    assert (wide.methods[0].name, wide.methods[0].did) == ("widen", {"factor": 1.5})
    assert wide.model["methods"] == "widen"


@pytest.mark.parametrize("by_file", [False, True])
def test_a_place_is_a_method(package: Path, by_file):
    name = f"{package}/wide_package.py:METHOD" if by_file else "wide_package:METHOD"
    ((method, arguments),) = choose([name], {f"{name}.factor": "1.25"})
    assert (method.name, arguments.factor) == (name, 1.25)
    names = [m.name for m, _ in choose([name, "smooth"], {})]
    assert names == ["smooth", name]  # after trtq's own


def test_a_calibrator_from_outside(images, package: Path, tmp_path: Path):
    cache = str(tmp_path / "cache")
    largest = quantize(spec(images, tmp_path / "a", calibrator="max", calib_cache=cache))
    for i, name in enumerate(("half", "half_package:half")):
        half = quantize(spec(images, tmp_path / f"b{i}", calibrator=name, calib_cache=cache))
        before, after = (
            {q.name: q.amax for q in r.quantizers if q.role == "input"} for r in (largest, half)
        )
        assert all(after[n] == pytest.approx(0.5 * before[n], rel=2e-3) for n in before)
        assert half.calibration.calibrator.startswith(f"{name} (")
        assert half.calibration.cache.startswith("not used")
    again = quantize(spec(images, tmp_path / "c", calibrator="half", calib_cache=cache))
    assert again.calibration.cache.startswith("used")
    code = package / "half_package.py"
    code.write_text(code.read_text().replace("0.5", "0.25"))
    sys.modules.pop("half_package")
    other = quantize(spec(images, tmp_path / "d", calibrator="half", calib_cache=cache))
    assert other.calibration.cache.startswith("not used")
    with pytest.raises(CalibrationError, match=r"negative chose no range: it returned -1\.0"):
        quantize(spec(images, tmp_path / "e", calibrator="negative", calib_cache=cache))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "broken",
            r"Cannot load the method 'broken': importing broken_package:METHOD of wide-package "
            r"1\.2 raised SystemExit: no licence .*\. Repair or uninstall that package",
        ),
        ("missing", r"Cannot load the method 'missing': importing wide_package:NOTHING.*NOTHING"),
        ("function", r"it is of type function, expected trtq\.methods\.base\.Method"),
        (
            "half_package:OLD",
            r"its arguments are a dict, expected a msgspec\.Struct\. Declare them as in docs",
        ),
        ("widden", r"Unknown method 'widden'\. Did you mean widen"),
        ("wide_package:METHODS", r"has no callable 'METHODS'|has no .*'METHODS'"),
        ("no_such_package:METHOD", r"importing no_such_package raised ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_loaded_is_said(package: Path, name, message):
    with pytest.raises(UsageError, match=message):
        get_method(name)


def test_two_packages_with_one_name(package: Path):
    info = package / "other-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[trtq.methods]\nwiden = other:METHOD\n")
    with pytest.raises(UsageError, match=r"two packages offer it: other:METHOD of other 3\.0 and"):
        get_method("widen")


def test_an_unknown_calibrator_is_refused_before_any_work(images, package: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"--calibrator 'hal': found 'hal', expected one of"):
        spec(images, tmp_path, calibrator="hal")
    known = QuantizeSpec.make({"model": "m", "data": "d", "out": "o", "calibrator": "half"})
    assert known.calibrator == "half"
    done = run_cli("quantize", "m", "--data", "d", "--out", "o", "--calibrator", "hal")
    assert (
        done.returncode == 2
        and "entropy, mse, ema, half, negative. Did you mean half" in done.stderr
    )


def test_the_list_shows_a_broken_extension_and_the_others(package: Path):
    done = run_cli("methods", "--json")
    assert done.returncode == 0
    names = [row["name"] for row in json.loads(done.stdout)]
    assert "smooth" in names and "widen" in names and "broken" not in names
    assert "broken  [broken]  Cannot load the method 'broken'" in done.stderr


def test_nothing_is_imported_before_it_is_named(package: Path):
    code = (
        "import sys; from trtq.specs import QuantizeSpec; from trtq.methods.registry import choose;"
        "QuantizeSpec(model='m', data='d', out='o', calibrator='half'); choose(['smooth'], {});"
        "print([m for m in sys.modules if m in ('wide_package', 'broken_package', 'half_package')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(extensions.installed("methods")) == {"widen", "broken", "missing", "function"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("device", "gpu", "found 'gpu', expected a value such as auto, cpu, cuda, cuda:1"),
        ("bits", "int8", "found 'int8', expected a value such as w8a8, w4a8, w4a16:128, fp8"),
        ("fit", "stretch", "found 'stretch', expected one of crop, letterbox"),
    ],
)
def test_values_of_patterns_and_choices_are_listed(field, value, words):
    given = {"model": "m", "data": "d", "out": "o", field: value}
    for make in (lambda: QuantizeSpec(**given), lambda: QuantizeSpec.make(given)):
        with pytest.raises(UsageError, match=f"Cannot use --{field} '{value}': {words}"):
            make()


def test_every_pattern_has_examples():
    """A person is never shown a regex."""
    for kind in (s for s in vars(specs).values() if isinstance(s, type) and issubclass(s, Spec)):
        for name, hint in get_type_hints(kind, include_extras=True).items():
            assert _patterns_are_explained(hint), f"{kind.__name__}.{name}"


def _patterns_are_explained(hint):
    metas = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta)]
    own = all(m.examples for m in metas if m.pattern)
    return own and all(_patterns_are_explained(part) for part in get_args(hint))
