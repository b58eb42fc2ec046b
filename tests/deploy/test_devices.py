"""The list of devices, host keys, and jump hosts."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys

import pytest

from tests.conftest import run_cli
from tests.support.boards import introduce, needs_sshd, pooling, served, spec
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.deploy.agent_client import Agent
from trtq.deploy.board import probe
from trtq.deploy.devices import find_device, parse_device, remember_device
from trtq.deploy.ssh import Link
from trtq.errors import DataError, DeviceError, HostKeyError, LinkError, SshError, UsageError
from trtq.progress import Silent

pytestmark = needs_sshd


# What goes wrong.


def test_a_new_host_key_is_shown_and_accepted_once(place, tmp_path):
    with served(place, "orin") as board:
        asked = ["device", "add", "orin", board.address, "--identity", str(board.identity)]
        done = run_cli(*asked)
        assert done.returncode == 1
        assert "must be accepted once: there is no terminal to ask on" in done.stderr
        fingerprint = done.stderr.split("--accept-key ")[1].split(". [")[0]
        assert run_cli("deploy", "orin", "m.onnx").stderr.startswith(
            "trtq: Unknown device 'orin': no device has been added yet"
        )
        wrong = run_cli(*asked, "--accept-key", "SHA256:somethingelse")
        assert "none of them has the fingerprint SHA256:somethingelse" in wrong.stderr
        mine, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "trtq", *asked], stdin=theirs, stderr=subprocess.PIPE, text=True
        ) as process:
            os.write(mine, b"n\n")
            assert (
                "orin was not added: its host key was not accepted"
                in process.communicate(timeout=60)[1]
            )
        assert process.returncode == 1
        done = run_cli(*asked, "--accept-key", fingerprint.removeprefix("SHA256:"))
        assert done.returncode == 0, done.stderr
        assert "Orin Nano" in done.stdout
        # Changed: flashed again, or somebody else.
        board.new_host_key()
        board.switch_off()
        board.switch_on()
        done = run_cli("deploy", "orin", str(pooling(tmp_path / "m.onnx")))
        assert done.returncode == 1
        assert "its host key is not the one in" in done.stderr
        assert "ssh-keygen -R '[127.0.0.1]" in done.stderr
        assert "has been accepted" not in done.stdout


def test_a_wrong_key_is_refused_without_a_prompt(orin, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    remember_device(parse_device("orin", orin.address, identity=str(tmp_path / "other")))
    with pytest.raises(
        SshError,
        match=r"refuses the login \(it offers publickey\); trtq never asks .*ssh-copy-id -i "
        r".*other -p",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_a_board_that_is_off(orin, tmp_path):
    orin.switch_off()
    with pytest.raises(
        DataError, match="Cannot read images from"
    ):  # before anything is asked of the board
        deploy(
            spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", data=str(tmp_path / "nowhere"))
        )
    with pytest.raises(
        UsageError,
        match=r"Unknown device 'orin@10.3': orin is one, and it builds with the TensorRT it has. "
        r"Write orin",
    ):
        find_device("orin@10.3")
    with pytest.raises(
        LinkError,
        match=r"Cannot reach orin .*nothing listens on port \d+ of 127.0.0.1.*Is sshd running",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_names_and_addresses():
    for name, address, text in (
        ("-x", "a@b", "Cannot call a device '-x'"),
        ("n", "-oProxyCommand=x", "Cannot read the address"),
        ("n", "a@b;c", "Cannot read the address"),
        ("n", "a@b:99999", "a port is between"),
        ("n", "a@b c", "Cannot read the address"),
    ):
        with pytest.raises(UsageError, match=text):
            parse_device(name, address)
    with pytest.raises(UsageError, match="Cannot read the jump host '-J'"):
        parse_device("n", "a@b", jump="-J")
    with pytest.raises(UsageError, match="--identity /no: there is no such file"):
        parse_device("n", "a@b", identity="/no")
    with pytest.raises(UsageError, match="Cannot use --workdir '-rf'"):
        parse_device("n", "a@b", workdir="-rf")
    assert find_device("me@board.local:2222").port == 2222
    with pytest.raises(UsageError, match=r"Unknown device 'nano'.*trtq device add nano user@host"):
        find_device("nano")


def test_a_damaged_list_of_devices(config):
    config.mkdir()
    (config / "devices.json").write_text("{")
    with pytest.raises(DeviceError, match="Cannot read the devices in"):
        find_device("nano")


def test_a_jump_host_and_a_stale_agent(place, tmp_path):
    with served(place, "orin") as far, served(place, "nano") as gate:
        shutil.copy(far.identity, tmp_path / "key")
        key = (far.folder / "client_key.pub").read_text()
        (gate.folder / "authorized_keys").write_text(key)
        introduce(gate, "gate")
        introduce(far, "far")
        # The jump host is reached with what SSH finds: here a configuration of the user's.
        home = tmp_path / "home/.ssh"
        home.mkdir(parents=True)
        (home / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {tmp_path}/key\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(tmp_path / "home"))
            behind = parse_device("far", far.address, identity=str(far.identity), jump=gate.address)
            remember_device(behind)
            with pytest.raises(
                HostKeyError, match="the host key of this host has not been accepted yet.*--jump"
            ):
                probe(Agent(behind, Silent()))  # the same address behind a gateway is another board
            Link(behind).accept(Link(behind).offered_key()[0])
            agent = Agent(find_device("far"), Silent())
            assert probe(agent).board == "orin-nano"
            there = next((far.home / ".trtq/agents").glob("*/agent.py"))
            there.write_text(there.read_text().replace("PROTOCOL = 1", "PROTOCOL = 0"))
            assert probe(agent).board == "orin-nano"  # it was replaced
            assert sha256_file(there) == agent.digest
            agent.close()
