"""The board's agent: tegrastats of every board, on the Pythons that boards have."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.agent import AGENT, old_python
from trtq import agent as agent_code
from trtq.agent import parse_tegrastats, total_power
from trtq.artifact import sha256_file
from trtq.deploy.bootstrap import command

EMPTY = {
    "ram_used_mb": None,
    "ram_total_mb": None,
    "swap_used_mb": None,
    "gr3d_pct": None,
    "cpu": None,
    "temps_c": {},
    "rails_mw": {},
}


def run(python: str, lines: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [python, str(AGENT), "parse-tegrastats"],
        input=lines.encode(),
        capture_output=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_recorded_line(trtq_data: Path):
    fixture = trtq_data.parent / "fixtures/tegrastats.jsonl"
    if not fixture.is_file():
        pytest.skip(f"{fixture} is not there")
    cases = [json.loads(line) for line in fixture.read_text().splitlines()]
    assert len(cases) == 38
    for python in (sys.executable, old_python()):
        if python is not None:
            assert run(python, "\n".join(c["line"] for c in cases) + "\n") == [
                c["expect"] for c in cases
            ]


NANO = (
    "RAM 534/3964MB (lfb 98x4MB) SWAP 5/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) CPU "
    "[16%@204,off] EMC_FREQ 0%@204 GR3D_FREQ 7%@76"
)


def test_a_nano_without_a_power_monitor():
    found = parse_tegrastats(f"{NANO} APE 25 PLL@34C CPU@36.5C PMIC@100C")
    assert found["cpu"] == [[16, 204], None]
    assert (found["ram_used_mb"], found["swap_used_mb"], found["gr3d_pct"], found["rails_mw"]) == (
        534,
        5,
        7,
        {},
    )
    assert total_power(found["rails_mw"]) == (None, "the line has no power rails")


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("GR3D_FREQ 27%", 27),
        ("GR3D_FREQ 27%@921", 27),
        ("GR3D_FREQ 0%@114 GR3D2_FREQ 9%@114", 0),
        ("GR3D_FREQ 0%@[114]", 0),
        ("GR3D_FREQ 14%@[407,407]", 14),
        ("GR3D_FREQ @[314,314,314]", None),
        ("GR3D_FREQ 87%@[1,off,N/A]", 87),
        ("GR3D 39%@76", 39),
        ("GR3D_FREQ N/A", None),
        ("GR3D_FREQ off", None),
        ("GR3D_FREQ 2", None),
        ("", None),
        ("EMC_FREQ 3%@204", None),
    ],
)
def test_forms_of_the_gpu_load(text: str, load: int | None):
    assert parse_tegrastats(f"RAM 1/2MB {text} APE 25")["gr3d_pct"] == load


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        ("POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406", (1750, "rail POM_5V_IN")),
        (
            "VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW",
            (2763, "rail VDD_IN"),
        ),
        (
            "GPU 1mW/0mW CPU 2mW/0mW SOC 3mW/0mW CV 4mW/0mW VDDRQ 5mW/0mW SYS5V 6mW/0mW",
            (21, "sum of monitored rails GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
        ),
        (
            "VDD_GPU_SOC 10mW/1mW VDD_CPU_CV 20mW/1mW VIN_SYS_5V0 30mW/1mW NC 9mW/9mW "
            "VDDQ_VDD2_1V8AO 99mW/99mW NC 0mW/0mW",
            (60, "sum of monitored rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
        ),
        (
            "VDD_GPU 1mW/1mW/1mW VDD_CPU_SOC_MSS 2mW/2mW/2mW VIN_SYS_5V0 3mW/3mW/3mW VIN "
            "87426mW/43713mW/87426mW",
            (87426, "rail VIN"),
        ),
        (
            "VDD_GPU 1mW/1mW VDD_CPU_SOC_MSS 2mW/2mW VIN_SYS_5V0 3mW/3mW",
            (6, "sum of monitored rails VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"),
        ),
        ("VDD_SOC 5/5", (None, "no total among the rails VDD_SOC")),
    ],
)
def test_pain_11_the_total_of_each_board(rails: str, total: tuple[int | None, str]):
    assert (
        total_power(parse_tegrastats(f"RAM 1/2MB GPU@35C CPU [1%@2] {rails}")["rails_mw"]) == total
    )


def test_cut_lines_give_what_they_have_and_no_line_raises():
    whole = f"{NANO} CPU@36.5C gpu@-256C VDD_IN 5299mW/5300mW/5301mW VDD_SOC 1424mW/1425mW/1426mW"
    for end in range(len(whole) + 1):
        for text in (whole[:end], whole[end:]):
            found = parse_tegrastats(text)
            assert found.keys() == EMPTY.keys()
            assert set(map(tuple, found["rails_mw"].values())) <= {(5299, 5300), (1424, 1425)}
    assert parse_tegrastats("RAM 1/2MB VDD_IN 5299mW/53")["rails_mw"] == {}
    assert parse_tegrastats("CPU [1%@2,3%@")["cpu"] is None
    assert run(sys.executable, "\xff garbage\n\n") == [EMPTY, EMPTY]


def test_zones_and_names():
    found = parse_tegrastats(
        "CV0@-256C iwlwifi@57C tj@34.312C/34.843C GPU@31C GPU 467mW/468mW CPU 1mW/2mW "
        "NVENC0_FREQ @1556"
    )
    assert found["temps_c"] == {"CV0": None, "iwlwifi": 57.0, "tj": 34.312, "GPU": 31.0}
    assert found["rails_mw"] == {"GPU": [467, 468], "CPU": [1, 2]}
    assert parse_tegrastats("cpu [17%,off]@1734")["cpu"] == [[17, 1734], None]


def test_it_runs_on_the_python_of_jetpack_4():
    python = old_python()
    if python is None:
        pytest.skip("there is no Python 3.6 here")
    assert run(python, f"{NANO}\n")[0]["ram_used_mb"] == 534


def test_other_commands_say_how_it_is_used():
    done = subprocess.run(
        [sys.executable, str(AGENT), "bench"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "usage: agent.py parse-tegrastats < LOG\n")


def test_a_folder_that_several_make_at_once_is_ours_to_all(tmp_path: Path):
    """The first call of two workstations: whoever comes second may find the folder half made."""
    line = (
        "import sys, time; from agent import open_home; time.sleep(max(0.0, float(sys.argv[2]) "
        "- time.time()))\n"
    )
    line += "for i in range(60): open_home(sys.argv[1] + str(i))"
    start = str(time.time() + 1.0)
    folder = Path(agent_code.__file__).resolve().parent
    command = [sys.executable, "-c", line, f"{tmp_path}/home", start]
    many = [
        subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [p.communicate()[1] for p in many] == [""] * 4
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.tex").write_text("x")
    with pytest.raises(agent_code.Refused, match="is not empty, and trtq did not make it"):
        agent_code.open_home(str(tmp_path / "theirs"))


def started(how: str, home: Path, arguments: str, python: str, **more) -> list[dict[str, object]]:
    """Return what the agent answers when it is started as on a board."""
    folder = home.parent / "path"
    folder.mkdir(exist_ok=True)
    (folder / "python3").unlink(missing_ok=True)
    (folder / "python3").symlink_to(python)
    line = ["/bin/sh", "-c", command(how, DIGEST[:16], str(home), arguments)]
    done = subprocess.run(
        line,
        capture_output=True,
        cwd=home.parent,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        check=False,
        **more,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return [json.loads(ln[len("@trtq ") :]) for ln in done.stdout.splitlines()]


DIGEST = sha256_file(AGENT)


def test_it_is_put_there_and_started_on_each_python(tmp_path: Path):
    for i, found in enumerate(filter(None, (sys.executable, old_python()))):
        home = tmp_path / f'{i}/it\'s a "home" $HOME'
        home.parent.mkdir()
        for name in ("json", "glob", "base64", "os"):
            (home.parent / f"{name}.py").write_text(
                "raise SystemExit('a module of the home was run')"
            )
        asked = agent_code.encode({"agent": DIGEST, "home": str(home)})
        python = str(Path(found).resolve())
        assert started("run", home, f"list {asked}", python) == [{"event": "missing"}]
        code = AGENT.read_bytes()
        assert started("install", home, f"install {asked}", python, input=code)[-1] == {
            "event": "installed",
            "whole": True,
        }
        assert not started("install", home, f"install {asked}", python, input=code + b"#")[-1][
            "whole"
        ]
        first, last = started("run", home, f"list {asked}", python)
        assert (first["agent"], last) == (DIGEST, {"event": "listing", "engines": [], "jobs": []})
        (home / "agents").chmod(0o777)
        assert started("run", home, f"list {asked}", python) == [{"event": "missing"}]
        refused = started("install", home, f"install {asked}", python, input=code)[-1]
        assert refused["why"] == f"others can write to {home}/agents (mode 777)"
        (home / "agents").chmod(0o700)
        failed = started("run", home, f"have {asked}", python)[-1]  # what no workstation asks
        assert failed["event"] == "refused" and failed["why"].startswith(
            "the agent failed: KeyError: 'name' ("
        )
        broken = started(
            "install", home, f"install {asked}", python, input=b"import no_such_module"
        )[0]
        why, where = (bytes.fromhex(broken[k]).decode() for k in ("why", "python"))
        assert "No module named 'no_such_module'" in why and where.split()[1].startswith("3.")


def test_it_says_that_it_is_still_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(agent_code, "BEAT_S", 0.05)
    monkeypatch.setitem(agent_code.VERBS, "list", lambda home, asked: time.sleep(0.5))
    asked = agent_code.encode({"agent": DIGEST, "home": str(tmp_path / "home")})
    assert agent_code.main(["list", asked]) == 0
    assert capsys.readouterr().out.count('{"event": "beat"}') >= 3


def test_a_job_that_ends_while_it_is_stopped_is_done(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    states = iter([{"state": "running", "pid": child.pid, "started": "1"}, {"state": "done"}])
    monkeypatch.setattr(agent_code, "status", lambda *_: next(states))
    (tmp_path / "jobs/k1").mkdir(parents=True)
    assert agent_code.stop(str(tmp_path), "k1") == {"state": "done"}
