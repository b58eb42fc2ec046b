"""The folder on a board: owners, links, and modules that are not ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.conftest import run_cli
from tests.support.boards import introduce, needs_sshd, pooling, served, spec
from trtq import agent as agent_code
from trtq.commands.deploy import deploy
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Done, Hint, hint_words
from trtq.deploy.board import probe
from trtq.deploy.devices import find_device, remember_device
from trtq.deploy.jobs import BoardJob, JobStep, do
from trtq.errors import BoardError
from trtq.progress import Silent

# What lies on a board.


def test_a_work_folder_that_is_not_ours(tmp_path):
    ours = tmp_path / "ours"
    assert agent_code.open_home(str(ours)) == str(ours)
    assert ours.stat().st_mode & 0o777 == 0o700
    ours.chmod(0o777)
    with pytest.raises(agent_code.Refused, match=r"others can write to .*ours \(mode 777\)"):
        agent_code.open_home(str(ours))
    ours.chmod(0o700)
    (tmp_path / "link").symlink_to(ours)
    with pytest.raises(agent_code.Refused, match="link is a link") as caught:
        agent_code.open_home(f"{tmp_path}/link/")
    assert (
        hint_words(Hint(**caught.value.mend), "nano")
        == f"Give trtq device add the folder itself: --workdir {ours}"
    )
    (tmp_path / "file").write_text("x")
    with pytest.raises(agent_code.Refused, match="file is no folder"):
        agent_code.open_home(str(tmp_path / "file"))
    shutil.rmtree(ours / "engines")
    (tmp_path / "elsewhere").mkdir()
    (ours / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(agent_code.Refused, match="ours/engines is a link"):
        agent_code.open_home(str(ours))
    marked = tmp_path / "marked"
    marked.mkdir(mode=0o700)
    (marked / ".trtq-agent").symlink_to(tmp_path / "file")
    with pytest.raises(agent_code.Refused, match="is not empty, and trtq did not make it"):
        agent_code.open_home(str(marked))
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 4711, 4711)
        with pytest.raises(
            agent_code.Refused, match=r"theirs belongs to another user \(4711, not root\)"
        ):
            agent_code.open_home(str(tmp_path / "theirs"))


def test_nothing_is_written_through_a_link(tmp_path):
    home = agent_code.open_home(str(tmp_path / "home"))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    digest = "ab" * 32
    for name in (f"files/x.part.{digest[:16]}", f"locks/{digest[:16]}", "engines/m.json.new"):
        (Path(home) / name).symlink_to(victim)
    with pytest.raises((agent_code.Refused, OSError)):
        agent_code.put(home, "files/x", 3, digest, 0, "t", sys.stdin)
    with pytest.raises(FileExistsError):
        agent_code.create(str(tmp_path / "home/engines/m.json.new"))
    agent_code.write_json(f"{home}/engines/m.json", {})
    (Path(home) / "files/out").symlink_to(victim)
    for name in (
        "files/out",
        "files/.hidden",
        "files/a/b",
        "engines/x.sh",
        "engines/../../victim",
        "other/x",
        "jobs/..",
        "board.lock",
        "jobs",
    ):
        with pytest.raises(agent_code.Refused, match=r"is outside of|is no name that trtq gives"):
            agent_code.inside(home, name)
    assert victim.read_text() == "precious"


# NVIDIA's programs are Python here, and take the environment as it is: they do not count.
CANARY = (
    "if '/root/usr/' not in open('/proc/self/cmdline').read(): open({0!r}, 'a').write(__name__ "
    "+ chr(10))\n"
)


@needs_sshd
def test_the_boards_own_modules_do_not_run(place, tmp_path):
    with served(place, "orin") as board:
        introduce(board, "orin")
        canary = board.home / "canary"
        extra = board.home / "lib"
        extra.mkdir()
        user_site = board.home / ".local/lib" / f"python3.{_minor()}" / "site-packages"
        user_site.mkdir(parents=True)
        for folder in (board.home, extra):
            for name in (
                "glob",
                "json",
                "base64",
                "stat",
                "os",
                "agent",
                "sitecustomize",
                "ctypes",
            ):
                (folder / f"{name}.py").write_text(CANARY.format(str(canary)))
        (user_site / "usercustomize.py").write_text(CANARY.format(str(canary)))
        login = board.folder / "login.sh"
        login.write_text(
            login.read_text().replace(
                "exec /bin/sh",
                f"export PYTHONPATH='{extra}' PYTHONSTARTUP='{extra}/os.py'\nexec /bin/sh",
            )
        )
        board._give_away()
        with Agent(find_device("orin"), Silent()) as agent:
            assert probe(agent).board == "orin-nano"
            result, lines = do(
                agent, "abcd", BoardJob(title="t", steps=[JobStep(name="s", argv=["true"])])
            )
            assert result.ok, lines
            agent.ask("manifest", Done, name="engines/x.json", value={})
        assert not canary.exists(), canary.read_text()


def _minor() -> int:
    said = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info[1])"],
        capture_output=True,
        check=True,
        text=True,
    )
    return int(said.stdout)


@needs_sshd
@pytest.mark.parametrize("how", ["read-only", "missing"])
def test_a_work_folder_is_enough(place, how, tmp_path):
    with served(place, "orin") as board:
        introduce(board, "orin")
        work = board.folder / "nvme"
        work.mkdir()
        board._give_away()
        remember_device(
            msgspec.structs.replace(find_device("orin"), workdir=str(work / "it's here"))
        )
        if how == "missing":
            login = board.folder / "login.sh"
            board.home.rmdir()
            login.write_text(login.read_text().replace(f"cd '{board.home}' || exit 1", "cd /"))
        else:
            board.home.chmod(0o555)
        record = deploy(spec(board, pooling(tmp_path / "m.onnx"), tmp_path / "o", bench=False))
        assert record.built and Path(record.engine).parent == work / "it's here/engines"
        assert how == "missing" or list(board.home.iterdir()) == []
        remember_device(msgspec.structs.replace(find_device("orin"), workdir=".trtq"))
        with pytest.raises(
            BoardError,
            match=r"orin refuses to take the agent: cannot write to .*/\.trtq: .*--workdir that "
            r"can be written",
        ):
            deploy(spec(board, pooling(tmp_path / "m.onnx"), tmp_path / "o", bench=False))


@needs_sshd
def test_a_work_folder_of_others_is_refused_before_anything_is_put_there(orin, tmp_path):
    theirs = orin.folder / "open"
    theirs.mkdir()
    orin._give_away()
    theirs.chmod(0o777)
    remember_device(msgspec.structs.replace(find_device("orin"), workdir=str(theirs)))
    done = run_cli("device", "probe", "orin")
    assert (
        f"orin refuses to take the agent: others can write to {theirs} (mode 777)." in done.stderr
    )
    assert (
        f"on the board: chmod go-w {theirs}; or give trtq device add another --workdir"
        in done.stderr
    )
    assert list(theirs.iterdir()) == []


@needs_sshd
def test_b05_a_python_without_a_module_is_named(place):
    hidden = (
        "import sys\nclass Without(object):\n    def find_spec(self, name, path=None, "
        "target=None):\n        if name == '_ctypes':\n"
        "            raise ModuleNotFoundError(\"No module named '_ctypes'\", name='_ctypes')\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    with served(place, "orin") as board:
        introduce(board, "orin")
        (board.folder / "python").mkdir()
        (board.folder / "python/sitecustomize.py").write_text(hidden)
        board._give_away()
        done = run_cli("device", "probe", "orin")
        assert done.returncode == 1
        assert (
            "The agent does not start on orin: ModuleNotFoundError: No module named '_ctypes'"
            in done.stderr
        )
        assert (
            f"({board.folder}/bin/python3 3." in done.stderr and "Repair that Python" in done.stderr
        )
        (board.folder / "bin/python3").unlink()
        login = board.folder / "login.sh"
        login.write_text(login.read_text().replace(":/usr/bin:/bin", ""))
        with pytest.raises(
            BoardError,
            match=r"There is no python3 on orin: .*not found. on the board: sudo apt-get install "
            r"python3",
        ):
            probe(Agent(find_device("orin"), Silent()))
