"""Several processes calibrate together: each sees a run of the samples, the ranges are the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import read, run_cli
from tests.support.processes import FORKS, free_port, start_two
from tests.support.quantize import CNN
from trtq.errors import TrtqError, UsageError
from trtq.graph.capture import capture
from trtq.quant.calibrate import summarize_all
from trtq.quant.calibrators import CALIBRATORS, Calibrator, Chosen, require_merge
from trtq.quant.encodings import Encodings
from trtq.quant.formats import BitConfig
from trtq.quant.observe import merge_, observe
from trtq.quant.placement import place
from trtq.workers import Workers

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
COUNT = 100  # more than the samples whose moments are taken


def images() -> torch.Tensor:
    """Return images that grow, so that every order and every share of them matters."""
    noise = torch.randn(COUNT, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(1.0, 9.0, COUNT).reshape(-1, 1, 1, 1)


def numbers(bits: str, calibrator: str, workers: Workers) -> dict[str, list[float]]:
    """Return what calibration finds of each activation, with a run of the images each."""
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    graph = capture(torch.nn.Sequential(*layers).eval(), (3, 12, 12)).module
    placement = place(graph, bits=BitConfig.parse(bits))
    rows = workers.run_of(COUNT)
    batches = images()[rows.start : rows.stop].split(7)
    seen = observe(graph, placement, batches, mode=calibrator, before=rows.start)
    merge_(seen, workers)
    stats = summarize_all(placement, seen, calibrator, 99.9)
    return {
        k: [
            s.amax,
            s.low,
            s.high,
            s.bulk_rms or 0.0,
            float(s.lowest or 0),
            *s.mean.tolist(),
            *s.variance.tolist(),
        ]
        for k, s in stats.items()
        if s.mean is not None and s.variance is not None
    }


def settings(folder: Path) -> list[tuple[str, str]]:
    """Return widths and calibrators: trtq's own, and the one that the documentation shows."""
    shown = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "SIGMA" in b)
    (folder / "sigma.py").write_text(shown)
    return [(b, c) for b in ("w8a8", "w4a4") for c in (*CALIBRATORS, f"{folder}/sigma.py:SIGMA")]


def _one_of(rank: int, world: int, port: int, every: list[tuple[str, str]], folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    workers = Workers(rank=rank, world=world)
    with workers.joined():
        found = {f"{b}/{c}": numbers(b, c, workers) for b, c in every}
    torch.save(found, folder / f"{rank}.pt")


def test_every_calibrator_finds_what_one_process_finds(tmp_path: Path):
    port, world, every = free_port(), 3, settings(tmp_path)
    each = [
        FORKS.Process(target=_one_of, args=(rank, world, port, every, tmp_path))
        for rank in range(world)
    ]
    for process in each:
        process.start()
    alone = {f"{b}/{c}": numbers(b, c, Workers()) for b, c in every}
    for process in each:
        process.join(120)
    assert [p.exitcode for p in each] == [0] * world
    for rank in range(world):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for setting, wanted in alone.items():
            assert wanted, setting
            for name, values in wanted.items():
                assert together[setting][name] == pytest.approx(values, 1e-6, 1e-7), (setting, name)


def _leave(rank: int, port: int, file: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    workers = Workers(rank=rank, world=2)
    with workers.joined():
        if rank:
            os._exit(7)
        try:
            workers.wait()
        except TrtqError as exc:
            file.write_text(str(exc))
            os._exit(0)


def test_a_process_whose_other_one_ended_says_so(tmp_path: Path):
    port = free_port()
    both = [FORKS.Process(target=_leave, args=(r, port, tmp_path / "said")) for r in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [p.exitcode for p in both] == [0, 7]
    text = (tmp_path / "said").read_text()
    assert text.startswith("Another of the processes ended before this one: ")
    assert text.endswith(" See what it wrote.")


def words(images: Path, out: Path) -> list[str]:
    options = {
        "data": images,
        "input-size": "3x32x32",
        "preset": "imagenet",
        "calib-images": 24,
        "parity-images": 8,
        "calibrator": "ema",
        "calib-cache": out / "cache",
        "out": out,
    }
    return ["quantize", CNN, *(w for k, v in options.items() for w in (f"--{k}", str(v)))]


def test_torchrun_of_quantize(images: Path, tmp_path: Path):
    both = start_two(*words(images, tmp_path / "two"))
    done = run_cli(*words(images, tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    texts = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert texts[0][0].replace("two", "one").splitlines()[1:] == done.stdout.splitlines()[1:]
    assert texts[1][0] == ""  # the first of them speaks
    one, two = (read(tmp_path / n / "quantize.json") for n in ("one", "two"))
    line = "2 processes calibrate, each on its share of the samples"
    assert line in two["notes"] and line not in one["notes"]
    first, second = (Encodings.load(tmp_path / n / "encodings.safetensors") for n in ("one", "two"))
    assert first.amax.keys() == second.amax.keys()
    for name, value in first.amax.items():
        torch.testing.assert_close(second.amax[name], value, rtol=1e-6, atol=0.0)
    again = [p.communicate(timeout=300) for p in start_two(*words(images, tmp_path / "two"))]
    assert "calibration cache used" in again[0][1]


def test_more_processes_than_samples_are_refused():
    import trtq

    net = torch.nn.Conv2d(3, 4, 3).eval()
    samples = [torch.randn(3, 8, 8) for _ in range(2)]
    from trtq.flow.quantize import quantize_model
    from trtq.specs import QuantizeOptions

    model = trtq.load(net, example=torch.randn(2, 3, 8, 8))
    with pytest.raises(
        UsageError,
        match=r"Cannot calibrate with 3 processes: there are 2 calibration samples\. Start at "
        r"most 2: torchrun --nproc-per-node 2",
    ):
        quantize_model(
            model, trtq.samples(samples, model), QuantizeOptions(), workers=Workers(world=3)
        )


class Own:
    """A statistic that nobody can merge."""

    def add(self, seen: object) -> None:
        """Count nothing."""


OWN = Calibrator(gather=lambda _: Own(), choose=lambda _, asked: Chosen(asked.amax, None))


def test_a_statistic_that_cannot_be_merged_is_refused_before_any_work():
    name = f"{__name__}:OWN"
    require_merge(name, Workers())
    with pytest.raises(
        UsageError,
        match=r"cannot be used by 2 processes: its statistic Own has no method merge_\. Run trtq "
        r"quantize without torchrun, or give the statistic merge_\(workers\)",
    ):
        require_merge(name, Workers(world=2))
