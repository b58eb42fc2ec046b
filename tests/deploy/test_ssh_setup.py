"""The user's own SSH set-up stays in force, whatever it contains and wherever its files are."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_cli
from tests.support.boards import introduce, needs_sshd, served
from trtq.deploy import ssh
from trtq.deploy.agent_client import Agent
from trtq.deploy.board import probe
from trtq.deploy.devices import (
    Device,
    config_folder,
    find_device,
    known_devices,
    parse_device,
    remember_device,
)
from trtq.deploy.ssh import Link
from trtq.errors import DeviceError, HostKeyError, LinkError, SshError, TrtqError, UsageError
from trtq.paths import home_folder
from trtq.progress import Silent
from trtq.testing.board import StandInBoard

pytestmark = needs_sshd
ODD = 'a 100% "odd" pla\'ce [x] $HOME'


@pytest.fixture(scope="module")
def board(place: Path) -> Iterator[StandInBoard]:
    with served(place, "orin") as made:
        yield made


def configured(home: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ssh").mkdir(parents=True, exist_ok=True)
    (home / ".ssh/config").write_text(text)
    monkeypatch.setenv("HOME", str(home))


def resolved(device: Device) -> dict[str, list[str]]:
    """Return what ssh makes of the line that leads to a device."""
    done = subprocess.run(Link(device).line(None, "-G"), capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def test_b01_what_the_user_lets_ssh_ignore(board, tmp_path, monkeypatch):
    introduce(board, "orin")
    text = (
        "IgnoreUnknown UseKeychain,Shiny\nHost *\n  UseKeychain yes\n  Shiny yes\nHost "
        "lab-orin\n  HostName 127.0.0.1\n"
    )
    configured(
        tmp_path / "home",
        f"{text}  Port {board.port}\n  User {board.user}\n  IdentityFile {board.identity}\n",
        monkeypatch,
    )
    device = parse_device("lab", "lab-orin")
    with Agent(device, Silent()) as agent:
        agent.link.accept(agent.link.offered_key()[0])
        assert probe(agent).board == "orin-nano"
    monkeypatch.chdir(tmp_path)  # a home may be relative, as in the report
    monkeypatch.setenv("HOME", "home")
    assert resolved(device)["hostname"] == ["127.0.0.1"]
    configured(tmp_path / "home", "Host *\n  NoSuchThing yes\n", monkeypatch)
    said = (
        r"ssh cannot read its configuration: .*line 2: Bad configuration option: "
        r"nosuchthing.*Correct that line"
    )
    with pytest.raises(SshError, match=said):
        Link(device).run("true")


def test_what_the_user_says_is_in_force_and_what_trtq_promises_too(tmp_path, monkeypatch):
    more = tmp_path / "home/.ssh/more.conf"
    text = (
        f"Include {more}\nHost lab\n  ProxyJump me@gate:2222\n  IdentityAgent /run/other.sock\n "
        " UserKnownHostsFile ~/.ssh/boards_%h\n"
        "  StrictHostKeyChecking no\n  LogLevel DEBUG3\n  RemoteCommand tmux\n  RequestTTY "
        "force\n  LocalForward 8080 localhost:80\n"
        "Match exec true\n  Ciphers aes256-ctr\nMatch exec false\n  User nobody\n"
    )
    configured(tmp_path / "home", text, monkeypatch)
    more.write_text("Host lab\n  HostName 192.0.2.7\n  User jetson\n")
    got = resolved(parse_device("lab", "lab"))
    wanted = {
        "hostname": ["192.0.2.7"],
        "user": ["jetson"],
        "proxyjump": ["me@gate:2222"],
        "identityagent": ["/run/other.sock"],
        "ciphers": ["aes256-ctr"],
        "stricthostkeychecking": ["true"],
        "batchmode": ["yes"],
        "loglevel": ["ERROR"],
        "requesttty": ["false"],
    }
    assert {k: got.get(k) for k in wanted} == wanted
    assert got["userknownhostsfile"][0].endswith("/.ssh/boards_%h") or got["userknownhostsfile"][
        0
    ].endswith("/.ssh/boards_192.0.2.7")
    assert str(config_folder() / "known_hosts") in got["globalknownhostsfile"][0]
    assert "localforward" not in got and got.get("remotecommand", ["none"]) == ["none"]


def test_paths_with_characters_that_ssh_expands(board, tmp_path, monkeypatch):
    odd = tmp_path / ODD
    (odd / "keys").mkdir(parents=True)
    monkeypatch.setenv("TRTQ_CONFIG", str(odd / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(odd))
    monkeypatch.setenv("TMPDIR", str(odd))
    monkeypatch.setattr(tempfile, "tempdir", None)
    key = odd / "keys/my key %h"
    shutil.copy(board.identity, key)
    key.chmod(0o600)
    configured(odd / "home", "Host orin-there\n  HostName 127.0.0.1\n", monkeypatch)
    device = parse_device("orin", f"{board.user}@orin-there:{board.port}", identity=str(key))
    with Agent(device, Silent()) as agent:
        with pytest.raises(HostKeyError, match="has not been accepted"):
            agent.link.run("true")
        agent.link.accept(agent.link.offered_key()[0])
        assert probe(agent).board == "orin-nano"
        assert (odd / "config/known_hosts").is_file()
        # Behind a jump host ssh itself puts the configuration's path into a shell's words.
        (board.folder / "authorized_keys").write_text((board.folder / "client_key.pub").read_text())
        configured(odd / "home", f"Host localhost\n  IdentityFile {board.identity}\n", monkeypatch)
        gate = board.address.replace("127.0.0.1", "localhost")
        jumped = parse_device("far", board.address, identity=str(key), jump=gate)
        link = Link(parse_device("near", gate, identity=str(key)))
        link.accept(link.offered_key()[0])
        far = Link(jumped)
        far.accept(far.offered_key()[0])
        assert far.run("true") == b"Welcome to this board: login scripts may print what they like\n"
        far.close()


def test_a_jump_host_whose_key_is_not_known(board, place, tmp_path, monkeypatch):
    configured(tmp_path / "home", f"Host 127.0.0.1\n  IdentityFile {board.identity}\n", monkeypatch)
    with pytest.raises(
        HostKeyError,
        match=r"the host key of \S+ has not been accepted yet. Log in to '?\[127.0.0.1\]:\d+'? "
        r"once with ssh",
    ):
        Link(parse_device("far", "me@192.0.2.1", jump=board.address)).run("true")


def test_b32_a_key_with_a_passphrase_and_no_agent(board, tmp_path, monkeypatch):
    introduce(board, "orin")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key = tmp_path / "locked key"
    for form in ((), ("-m", "PEM")):
        for path in tmp_path.glob("locked key*"):
            path.unlink()
        kind = ("-t", "rsa") if form else ("-t", "ed25519")
        subprocess.run(
            ["ssh-keygen", "-q", *kind, *form, "-N", "secret", "-f", str(key)], check=True
        )
        with (board.folder / "authorized_keys").open("a") as handle:
            handle.write(Path(f"{key}.pub").read_text())
        if form:
            Path(f"{key}.pub").unlink()  # then ssh has nothing to offer
        device = parse_device("orin", board.address, identity=str(key))
        with pytest.raises(SshError, match="it has a passphrase and no agent has it") as caught:
            Link(device).run("true")
        assert f"ssh-add '{key}'" in str(caught.value) and "ssh-copy-id" not in str(caught.value)
    (tmp_path / "other key").unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other key")],
        check=True,
    )
    said = (
        rf"refuses the login .*ssh-copy-id -i '{tmp_path}/other key' -p {board.port} "
        rf"{board.user}@127.0.0.1"
    )
    with pytest.raises(SshError, match=said):
        Link(parse_device("orin", board.address, identity=str(tmp_path / "other key"))).run("true")


@pytest.mark.parametrize("base", ["/nowhere", "long", "theirs", "open", "file", "relative"])
def test_b02_a_runtime_folder_that_cannot_be_used(base, board, tmp_path, monkeypatch):
    introduce(board, "orin")
    made = {
        "long": tmp_path / ("x" * 90),
        "theirs": tmp_path / "theirs",
        "open": tmp_path / "open",
        "file": tmp_path / "file",
    }
    path = made.get(base, Path(base))
    if base in ("long", "theirs", "open"):
        path.mkdir()
    if base == "theirs" and os.geteuid() == 0:
        os.chown(path, 4711, 4711)
    if base == "open":
        path.chmod(0o777)
    if base == "file":
        path.write_text("x")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    done = run_cli("device", "probe", "orin")
    assert done.returncode == 0, done.stderr
    assert f"XDG_RUNTIME_DIR cannot be used ({path}" in "".join(done.stderr.splitlines()).replace(
        "  ", ""
    )
    assert not (path / f"trtq-ssh-{os.getuid()}").exists()


def test_no_folder_for_sockets_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trtq.deploy.ssh_config._unfit", lambda folder: "it is not this user's alone"
    )
    said = (
        r"Cannot keep SSH connections anywhere: .*/tmp/trtq-ssh-\d+: it is not this user's "
        r"alone.*export XDG_R"
    )
    with pytest.raises(SshError, match=said):
        Link(Device(name="x", host="192.0.2.1"))


def test_no_home(board, tmp_path, monkeypatch):
    introduce(board, "orin")
    before = find_device("orin")
    monkeypatch.delenv("HOME")
    assert Link(before).run("true").startswith(b"Welcome")
    monkeypatch.setattr(pwd, "getpwuid", _no_entry)
    assert home_folder() is None
    assert Link(before).run("true").startswith(b"Welcome")
    monkeypatch.delenv("TRTQ_CONFIG")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "")  # is none, either
    with pytest.raises(
        UsageError,
        match="Cannot tell where devices are kept: this user has no home. Name a folder: export "
        "TRTQ_CONFIG=",
    ):
        find_device("orin")


def test_a_configuration_that_cannot_be_written(board, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TRTQ_CONFIG", str(tmp_path / "file/config"))
    device = parse_device("orin", board.address, identity=str(board.identity))
    link = Link(device)  # needs none
    keys = link.offered_key()[0]
    for write in (lambda: remember_device(device), lambda: link.accept(keys)):
        with pytest.raises(TrtqError, match=r"Cannot \w+ .*file/config.*|Cannot read the devices"):
            write()


def _no_entry(number: int) -> None:
    raise KeyError(number)


def test_addresses_of_ipv6(tmp_path):
    for text, host, port in (
        ("jetson@[::1]:2222", "::1", 2222),
        ("jetson@[fe80::1%eth0]", "fe80::1%eth0", None),
        ("[fe80::1%br-lan.10]", "fe80::1%br-lan.10", None),
    ):
        device = parse_device("orin", text)
        assert (device.host, device.port, device.place) == (host, port, text)
        remember_device(device)
        assert known_devices()["orin"] == device
        found = find_device(text)
        assert (found.host, found.port) == (host, port) and ssh.Link(found).line("true")[-2:] == [
            host,
            "true",
        ]
    assert resolved(parse_device("orin", "jetson@[fe80::1%eth0]:22"))["hostname"] == [
        "fe80::1%eth0"
    ]
    with pytest.raises(
        UsageError,
        match=r"Cannot read the address 'jetson@fe80::1'.*Write an IPv6 address in brackets: "
        r"jetson@\[fe80",
    ):
        parse_device("orin", "jetson@fe80::1")
    with pytest.raises(
        LinkError,
        match="Cannot reach orin .*jetson@.::1.*nothing listens on port 1 of ::1|Cannot "
        "assign|unreachable",
    ):
        Link(parse_device("orin", "jetson@[::1]:1")).run("true")


def test_ipv6_to_the_end(board, place, tmp_path):
    """With a server on ::1 the key is accepted.

    A changed key is named in the form that ssh-keygen takes.
    """
    if (
        not Path("/proc/net/if_inet6").is_file()
        or "00000000000000000000000000000001" not in Path("/proc/net/if_inet6").read_text()
    ):
        pytest.skip("no IPv6 loopback here")
    with served(place, "orin") as six:
        settings = six.folder / "sshd_config"
        settings.write_text(
            settings.read_text().replace(
                "ListenAddress 127.0.0.1", "ListenAddress 127.0.0.1\nListenAddress ::1"
            )
        )
        six.switch_off()
        six.switch_on()
        address = f"{six.user}@[::1]:{six.port}"
        done = run_cli("device", "add", "six", address, "--identity", str(six.identity))
        fingerprint = done.stderr.split("--accept-key ")[1].split(". [")[0]
        done = run_cli(
            "device",
            "add",
            "six",
            address,
            "--identity",
            str(six.identity),
            "--accept-key",
            fingerprint,
        )
        assert done.returncode == 0, done.stderr
        assert run_cli("device", "list").stdout.startswith(f"six: {address}")
        six.new_host_key()
        six.switch_off()
        six.switch_on()
        done = run_cli("device", "probe", "six")
        assert (
            f"(ssh-keygen -R '[::1]:{six.port}' -f {config_folder()}/known_hosts), then: trtq "
            f"device add six '{address}'" in done.stderr
        )


def test_devices_that_somebody_wrote(config):
    config.mkdir()
    for entry in (
        '{"x": {"name": "x", "host": "-oProxyCommand=touch /tmp/x"}}',
        '{"x": {"name": "y", "host": "a"}}',
        '{"x; y": {"name": "x; y", "host": "a"}}',
        '{"x": {"name": "x", "host": "a", "jump": "-x"}}',
        '{"x": {"name": "x", "host": "a", "port": 99}, "b": 1}',
        '{"x": {"name": "x", "host": "a", "workdir": "a\\nb"}}',
        "[" * 5000,
    ):
        (config / "devices.json").write_text(entry)
        with pytest.raises(
            DeviceError, match=r"Cannot read the devices in .*Correct the file, or move it away"
        ):
            known_devices()


def test_words_of_a_server_in_sshs_log(tmp_path):
    """What the other side puts into its goodbye is no word of ssh, with whatever line breaks."""
    link = Link(Device(name="x", host="192.0.2.1", user="me", identity="/a b"))
    bye = "Received disconnect from 192.0.2.1 port 22:2: bye\n"
    denied = "me@192.0.2.1: Permission denied (publickey).\n"
    assert type(link.explain(f"{bye}{denied}Host key verification failed.\n")) is LinkError
    many = link.explain(
        bye.replace("bye", "Too many authentication failures")
        + "Disconnected from 192.0.2.1 port 22\n"
    )
    assert isinstance(many, SshError) and "ssh-copy-id -i '/a b' me@192.0.2.1" in str(many)
    changed = link.explain(
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nOffending RSA key in /a; "
        "b/known_hosts:3\n"
    )
    assert (
        "(ssh-keygen -R 192.0.2.1 -f '/a; b/known_hosts'), then: trtq device add x me@192.0.2.1 "
        "--identity '/a b'" in str(changed)
    )
    bad = link.explain(f'Load key "/a b": bad permissions\n{denied}')
    assert "chmod 600 '/a b'" in str(bad)
    assert isinstance(link.explain("", "evil\n"), TrtqError)


def test_identities(tmp_path):
    for name, text in (
        ("a${HOME}", "ssh expands what is in its name"),
        ("a\nb", "ssh expands what is in its name"),
    ):
        (tmp_path / name).write_text("x")
        with pytest.raises(UsageError, match=text):
            parse_device("n", "a@b", identity=str(tmp_path / name))
    with pytest.raises(UsageError, match="Cannot use --workdir"):
        parse_device("n", "a@b", workdir="a\x1b[2J")


def test_a_server_that_floods_while_its_key_is_asked_for(board, monkeypatch):
    """Nothing runs there before the key is accepted."""
    login = board.folder / "login.sh"
    plain = login.read_text()
    login.write_text("touch '" + str(board.home / "ran") + "'; yes\n")
    try:
        lines, prints = Link(
            parse_device("orin", board.address, identity=str(board.identity))
        ).offered_key()
        assert len(prints) == 1 and lines.startswith("[127.0.0.1]:")
    finally:
        login.write_text(plain)
    assert not (board.home / "ran").exists()
