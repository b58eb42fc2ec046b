"""Every torch path on a GPU that is pretended: no operator meets two devices, results are equal.

What a real GPU adds, other rounding and memory, is tested in tests/gpu.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import asdict

import trtq
from tests.conftest import spec
from tests.support.hybrid import SETTINGS, hybrid, images, options
from tests.support.pretend_gpu import pretend_gpu
from trtq import ExportSpec
from trtq.errors import CalibrationError, UsageError, explain_system
from trtq.graph.device import choose_device, device_of, with_smaller_batches

# Where trtq may wait for a GPU to read a value, and why that is no loss: once a batch, once a
# tensor after the pass, or once a step of a search.
MAY_READ = {
    "once a batch": ["quant/observe.py:_finite", "export/parity.py", "export/divergence.py"],
    "after the pass": [
        "quant/calibrate.py",
        "quant/calibrators.py:amax",
        "quant/histogram.py:amax",
        "quant/histogram.py:counts",
        "quant/histogram.py:limit",
        "quant/observe.py:low",
        "quant/observe.py:high",
        "export/probe.py:stats",
        "flow/profiles.py",
    ],
    "once a constant": [
        "graph/device.py:to_device_",
        "graph/nodes.py:add_constant",
        "quant/digest.py",
        "quant/encodings.py",
        "train/training_graph.py",
        "train/learning_state.py",
        "train/run_state.py",
    ],
    "once a sample of files": ["flow/pair.py", "flow/analyze.py", "methods/reconstruct.py"],
    "once a step of a search": [
        "flow/ptq.py",
        "methods/",
        "search/",
        "train/",
        "tasks/",
        "quant/fake_quantize.py",
    ],
}


@pytest.fixture(scope="module")
def net():
    return hybrid()


@pytest.fixture(scope="module")
def data():
    return images()


@pytest.fixture
def on_both(tmp_path, monkeypatch):
    """Return what a function gives on the CPU, and on the pretended GPU."""

    def run(work):
        monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cpu"))
        here = work("cpu")
        monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "gpu"))
        with pretend_gpu() as reads:
            there = work("cuda")
        allowed = tuple(place for places in MAY_READ.values() for place in places)
        assert [where for where in reads if not where.startswith(allowed)] == []
        return here, there

    return run


FAST = {"smooth, max"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in SETTINGS]
)
def test_quantize(net, data, on_both, name):
    here, there = on_both(lambda device: trtq.quantize(net, data, device=device, **options(name)))
    assert there.inputs.model.device.type == "cuda"
    assert there.encodings.amax.keys() == here.encodings.amax.keys()
    for key, value in there.encodings.amax.items():
        assert value.device.type == "cpu"
        assert torch.equal(value, here.encodings.amax[key])
    for key, value in there.encodings.constants.items():
        assert torch.equal(value, here.encodings.constants[key])
    assert there.done.parity.passed
    assert there.encodings.origin["device"] == "cuda"
    assert {q: s.sqnr_db for q, s in there.done.measured.items()} == pytest.approx(
        {q: s.sqnr_db for q, s in here.done.measured.items()}, abs=1e-3
    )


def test_export(tmp_path, on_both):
    ptq, samples = tmp_path / "ptq", tmp_path / "samples.npy"
    np.save(samples, torch.nn.functional.interpolate(images(), size=32).numpy())
    asked = asdict(spec(samples, ptq, input_size=None, preset=None))
    trtq.quantize(trtq.QuantizeSpec.make(asked))
    given = {k: v for k, v in asked.items() if k in ExportSpec.__struct_fields__}

    def work(device):
        own = {"encodings": f"{ptq}/encodings.safetensors", "out": str(tmp_path / device)}
        more = {"target": ("orin@10.3",), "images": 8, "device": device}
        return trtq.export_profiles(ExportSpec.make({**given, **own, **more}))

    here, there = on_both(work)
    assert there.profiles == here.profiles
    assert [there.files[p.file] for p in there.profiles] == [
        here.files[p.file] for p in here.profiles
    ]
    assert any("cuda" in note for note in there.notes)


@pytest.mark.parametrize(
    "metric",
    ["combined", *(pytest.param(m, marks=pytest.mark.slow) for m in ("l2", "jsd", "hessian"))],
)
def test_analyze(net, data, on_both, metric):
    pairs = [(x, i % 10) for i, x in enumerate(data)]
    few = {"images": 8, "calib_images": 8, "probes": 2, "trials": 2, "bits": ("4", "8")}
    here, there = on_both(
        lambda device: trtq.analyze(net, pairs, metric=metric, device=device, **few)
    )
    assert [layer.loss for layer in there.layers] == [
        pytest.approx(layer.loss, rel=1e-6) for layer in here.layers
    ]


@pytest.mark.slow
def test_search(net, data, on_both):
    pairs = [(x, i % 10) for i, x in enumerate(data)]
    few = {"images": 8, "calib_images": 8, "rounds": 1, "metric": "l2", "bits": ("4", "8")}
    here, there = on_both(
        lambda device: trtq.search(net, pairs, budget=("size=0.6",), device=device, **few)
    )
    assert there.record.tries == here.record.tries


@pytest.mark.parametrize("learn_amax", [pytest.param(True, marks=pytest.mark.slow), False])
def test_finetune(net, data, on_both, learn_amax):
    pairs = [(x, i % 10) for i, x in enumerate(data)]

    def work(device):
        start = trtq.quantize(net, data, bits="w4a8", preset_quant="none", device=device)
        return trtq.finetune(
            start, pairs, epochs=1, batch_size=8, device=device, learn_amax=learn_amax
        )

    here, there = on_both(work)
    assert there.record.history[0].loss == pytest.approx(here.record.history[0].loss, rel=1e-6)
    moved = there.quantized.encodings.constants["stem.weight"]
    assert not torch.equal(moved, net.stem.weight)


def test_a_batch_that_does_not_fit_is_halved(net, data, on_both, monkeypatch):
    from trtq.flow import ptq

    sizes, whole = [], ptq.observe

    def small(graph, placement, images, **options):
        batches = list(images)
        sizes.append(len(batches[0][0]))
        if sizes[-1] > 4 and device_of(graph).type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(graph, placement, batches, **options)

    monkeypatch.setattr(ptq, "observe", small)
    here, there = on_both(
        lambda device: trtq.quantize(net, data, device=device, batch_size=16, preset_quant="none")
    )
    assert sizes == [16, 16, 8, 4]
    assert [n for n in there.inputs.run.note.lines if "memory" in n] == [
        "calibration: the GPU's memory is too small for 16 samples, 8 at once now",
        "calibration: the GPU's memory is too small for 8 samples, 4 at once now",
    ]
    for key, value in there.encodings.amax.items():
        if not value.ndim:  # an activation's; sums for the weights' round differently
            torch.testing.assert_close(value, here.encodings.amax[key], rtol=1e-5, atol=0.0)


def test_one_sample_that_does_not_fit_is_an_error():
    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(CalibrationError, match=r"calibration does not fit .* Tried to allocate"):
        with_smaller_batches(never, 2, print, "calibration")


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (8, 6), True),  # kernels of 8.0 run on 8.6
        (["sm_86"], (8, 0), False),
        (["sm_75", "sm_90"], (8, 9), False),
        (["sm_75", "compute_80"], (12, 0), True),  # PTX is compiled for what is newer
        (["compute_90"], (8, 9), False),
        (["sm_90a", "sm_120"], (12, 1), True),
    ],
)
def test_a_gpu_that_this_torch_has_no_kernels_for(monkeypatch, built, capability, runs):
    with pretend_gpu():
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        if runs:
            assert choose_device("cuda").type == "cuda"
            return
        number = rf"{capability[0]}\.{capability[1]}"
        why = rf"Cannot use cuda: it has compute capability {number}, and torch"
        with pytest.raises(UsageError, match=why):
            choose_device("cuda")


def test_a_gpu_that_fails_in_the_middle():
    said = explain_system(RuntimeError("CUDA error: unspecified launch failure\nmore"))
    assert str(said) == (
        "The GPU failed: CUDA error: unspecified launch failure. Finished work is kept: give "
        "the same command again, with --device cpu if the GPU is gone."
    )


def test_a_torch_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"torch sees 0 GPUs: torch .* is built without CUDA"):
        choose_device("cuda")
