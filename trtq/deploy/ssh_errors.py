"""Meaning of OpenSSH's messages, and what to do."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trtq.errors import DeviceError, HostKeyError, LinkError, SshError, TrtqError, last_line

if TYPE_CHECKING:
    from trtq.deploy.ssh import Link

FAILED = 255  # ssh's own exit status: the link, never the command


def settings(*pairs: str) -> list[str]:
    """Return settings as options of ssh.

    >>> settings("BatchMode=yes")
    ['-o', 'BatchMode=yes']
    """
    return [word for pair in pairs for word in ("-o", pair)]


class Diagnosis:
    """Finds out why a device cannot be reached.

    Args:
        link: the way to it; asked again where ssh's words leave something open.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.device = link.device

    def explain(self, own: str, errors: str = "") -> TrtqError:
        """Return the error that OpenSSH's own words mean.

        Where the words leave something open, ssh is asked again: about a jump host, or a locked
        key.

        Args:
            own: what this machine's ssh said.
            errors: standard error of the device, shown but never read as ssh's words.

        Returns:
            a :class:`LinkError` for what may pass, a :class:`HostKeyError` or another
            :class:`SshError` for what will not.
        """
        words = _own_words(own)
        if any(JUMP_FAILED.fullmatch(ln) for ln in words) and self._has_proxy():
            words = [*self._words_of_proxy(), *words]
        text = "\n".join(words)
        for meaning in (
            self._changed_key,
            self._unknown_key,
            self._open_key_file,
            self._refused_login,
            self._unknown_name,
            self._refused_port,
            self._bad_configuration,
        ):
            error = meaning(text)
            if error is not None:
                return error
        # All else passes: a cut connection leaves the last output of the board.
        output = last_line(errors)
        end = (
            f"the connection ended; the board wrote: {output}" if output else "the connection ended"
        )
        return LinkError(
            self._title, words[-1][:400] if words else end, "Is the board on, and in this network?"
        )

    @property
    def _title(self) -> str:
        return f"Cannot reach {self.device.name} ({self.device.address})"

    def _changed_key(self, text: str) -> TrtqError | None:
        changed = (
            r"^@ +WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! +@$|^Host key for .+ has "
            r"changed and "
        )
        if not re.search(changed, text, re.MULTILINE):
            return None
        entry = re.search(r"^Offending \S+ key in (.+):(\d+)$", text, re.MULTILINE)
        place = f"{entry[1]}, line {entry[2]}" if entry else "the list of known hosts"
        file = ["-f", entry[1]] if entry else []
        remove = shlex.join(["ssh-keygen", "-R", self._key_name(), *file])
        return HostKeyError(
            self._title,
            f"its host key is not the one in {place}: the board was reflashed, or this is "
            "another machine",
            f"If you know why, remove the old key ({remove}), then: "
            f"{shlex.join(self.device.add_command)}",
        )

    def _key_name(self) -> str:
        """Return the name under which known_hosts has the device's key."""
        device = self.device
        if device.jump:
            return f"trtq-{device.name}"
        return device.host if device.port in (None, 22) else f"[{device.host}]:{device.port}"

    def _unknown_key(self, text: str) -> TrtqError | None:
        unknown = (
            r"^Host key verification failed\.$|host key is known for \S+ and you have requested"
        )
        if not re.search(unknown, text, re.MULTILINE):
            return None
        match = re.search(r"host key is known for (\S+)", text)
        host = match[1] if match is not None and self.device.jump else ""
        if host and host.strip("[]").split("]")[0].lower() not in self._names():
            hint = f"Log in to {shlex.quote(host)} once with ssh and accept its key"
        else:
            host = "this host"
            hint = f"Look at its key and accept it: {shlex.join(self.device.add_command)}"
        return HostKeyError(self._title, f"the host key of {host} has not been accepted yet", hint)

    def _open_key_file(self, text: str) -> TrtqError | None:
        unprotected = r"^@ +WARNING: UNPROTECTED PRIVATE KEY FILE! +@$|: bad permissions$"
        if not re.search(unprotected, text, re.MULTILINE):
            return None
        named = re.search(r"^Load key \"(.+)\": bad permissions$", text, re.MULTILINE)
        key = self.device.identity or (named[1] if named else "")
        hint = shlex.join(["chmod", "600", key]) if key else "chmod 600 ~/.ssh/id_*"
        return SshError(self._title, "the private key can be read by others", hint)

    def _refused_login(self, text: str) -> TrtqError | None:
        denied = re.search(r"^\S+: Permission denied \(([\w,-]+)\)\.$", text, re.MULTILINE)
        many = r"^Received disconnect from \S+ port \d+:\d+: Too many authentication failures"
        if not denied and not re.search(many, text, re.MULTILINE):
            return None
        locked_key = self._locked_key()
        if locked_key is not None:
            return SshError(
                self._title,
                f"the board knows the key {locked_key}, but it has a passphrase and no agent has "
                "it; trtq never asks for one",
                f"Unlock it once: {shlex.join(['ssh-add', locked_key])} (without an agent, before "
                "it: eval $(ssh-agent))",
            )
        device = self.device
        identity = ["-i", device.identity] if device.identity else []
        port = ["-p", str(device.port)] if device.port else []
        user = f"{device.user}@{device.host}" if device.user else device.host
        copy = shlex.join(["ssh-copy-id", *identity, *port, user])
        ways = f" (it offers {denied[1]})" if denied else ""
        return SshError(
            self._title,
            f"it refuses the login{ways}; trtq never asks for passwords",
            f"Give it your key: {copy}; or name another with --identity",
        )

    def _unknown_name(self, text: str) -> TrtqError | None:
        if not re.search(r"Could not resolve hostname|Name or service not known", text):
            return None
        return LinkError(
            self._title,
            "its name is not known in this network",
            f"Use its address: trtq device add {shlex.quote(self.device.name)} user@192.168.x.y",
        )

    def _refused_port(self, text: str) -> TrtqError | None:
        refused = re.search(
            r"^ssh: connect to host (\S+) port (\d+): Connection refused$", text, re.MULTILINE
        )
        if refused is None:
            return None
        return LinkError(
            self._title,
            f"nothing listens on port {refused[2]} of {refused[1]}",
            "Is sshd running on the board (sudo systemctl start ssh), and is this its port?",
        )

    def _bad_configuration(self, text: str) -> TrtqError | None:
        bad = (
            r"^.+: line \d+: Bad configuration option: |terminating, \d+ bad configuration "
            r"options$"
        )
        if not re.search(bad, text, re.MULTILINE):
            return None
        return SshError(
            self._title,
            f"ssh cannot read its configuration: {text.splitlines()[0][:300]}",
            "Correct that line",
        )

    def _locked_key(self) -> str | None:
        """Return the private key that the board would take and that nothing here can open.

        The result is None where there is none.
        """
        with tempfile.NamedTemporaryFile(dir=self.link.folder, prefix="log-") as log:
            options = settings("LogLevel=DEBUG1", "ControlPath=none", "ConnectTimeout=5")
            with contextlib.suppress(DeviceError):
                self.link.run_here(self.link.line("true", "-E", log.name, *options))
            text = Path(log.name).read_text(encoding="utf-8", errors="replace")
        if re.search(r"^debug1: Authenticated to |^Authenticated to ", text, re.MULTILINE):
            return None
        accepted = re.findall(
            r"^debug1: Server accepts key: (.+) \S+ SHA256:\S+(?: explicit| agent)*$",
            text,
            re.MULTILINE,
        )
        # Without its public half nothing can be offered.
        tried = re.findall(r"^debug1: Trying private key: (.+)$", text, re.MULTILINE)
        return next(
            (k for k in (*accepted, *tried) if Path(k).is_file() and self._has_passphrase(k)), None
        )

    def _has_passphrase(self, key: str) -> bool:
        """Whether a private key needs a passphrase.

        ``ssh-keygen`` says which of its failures it is.
        """
        done = self.link.run_here(["ssh-keygen", "-y", "-P", "", "-f", key])
        return done.returncode != 0 and "incorrect passphrase" in done.stderr

    def _has_proxy(self) -> bool:
        """Whether another program, such as the ssh of a jump host, leads to the device."""
        return (
            re.search(
                r"^proxy(?:jump|command) (?!none$)",
                self.link.run_here(self.link.line(None, "-G")).stdout,
                re.MULTILINE,
            )
            is not None
        )

    def _words_of_proxy(self) -> list[str]:
        """Return the messages of a jump host's ssh.

        A kept connection discards them, so this connects once without one.

        Nothing else writes to standard error until the device itself is reached.
        """
        with tempfile.NamedTemporaryFile(dir=self.link.folder, prefix="log-") as log:
            options = settings("ControlPath=none", "ControlMaster=no", "ControlPersist=no")
            done = self.link.run_here(self.link.line("true", "-E", log.name, *options))
            own = _own_words(Path(log.name).read_text(encoding="utf-8", errors="replace"))
        reached = done.returncode != FAILED or not any(JUMP_FAILED.fullmatch(ln) for ln in own)
        return [] if reached else _own_words(done.stderr)

    def _names(self) -> set[str]:
        """Return the names that OpenSSH may use for the device.

        They are what was typed, what the user's configuration makes of it, and the device's alias.
        """
        resolved = re.search(
            r"^hostname (\S+)$", self.link.run_here(self.link.line(None, "-G")).stdout, re.MULTILINE
        )
        return {
            self.device.host.lower(),
            f"trtq-{self.device.name}".lower(),
            *([resolved[1].lower()] if resolved else []),
        }


# Lines of ssh's own log which say that no session came about because the way there, another ssh,
# failed.
JUMP_FAILED = re.compile(
    r"Connection closed by UNKNOWN port 65535|kex_exchange_identification: "
    r".+|ssh_exchange_identification: .+|banner exchange: .+"
)


def _own_words(text: str) -> list[str]:
    """Return ssh's lines up to the first that carries words of the other side.

    Such words could hold anything.
    """
    words: list[str] = []
    for line in text.splitlines():
        if line.strip():
            words.append(line.rstrip())
        if line.startswith("Received disconnect from "):
            break
    return words
