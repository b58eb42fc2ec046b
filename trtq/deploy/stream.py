"""The output of a command on a device, read with limits.

A board is not trusted to end, to be brief, or to be alive.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trtq.errors import BoardError, LinkError, last_line

MIB = 1 << 20
BLOCK = MIB
SILENCE_S = 90.0  # the agent says a word every five seconds in every state
CALL_S = 900.0
SLOWEST_BYTES_S = 16384  # of a transfer that counts as one
KEPT_ERRORS = 8192  # of standard error, its end


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a command is waited for and read.

    Attributes:
        line_bytes: of one line.
        total_bytes: of standard output; ``error_bytes``: of standard error.
        silence_s: longest time without a byte of standard output.
        call_s: longest duration of the command.
    """

    line_bytes: int = 8 * MIB
    total_bytes: int = 64 * MIB
    error_bytes: int = 4 * MIB
    silence_s: float = field(default_factory=lambda: SILENCE_S)
    call_s: float = field(default_factory=lambda: CALL_S)


def transfer_limits(size: int) -> Limits:
    """Return the limits of a call that moves ``size`` bytes: 900 s, and as long as 16 kB/s take."""
    return Limits(total_bytes=Limits().total_bytes + size, call_s=CALL_S + size / SLOWEST_BYTES_S)


class Stream:
    """The output of one ssh process.

    Args:
        process: with pipes for standard output and standard error.
        name: of the device, for messages.
        limits: what is read at most.
        log: the file with ssh's own words.

    Attributes:
        received: bytes of standard output.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], name: str, limits: Limits, log: Path
    ) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process, self.name, self.limits, self.log = process, name, limits, log
        self._out, self._err = process.stdout.fileno(), process.stderr.fileno()
        os.set_blocking(self._err, False)
        self._poll = select.poll()
        for number in (self._out, self._err):
            self._poll.register(number, select.POLLIN)
        self._buffer, self._at, self._over = bytearray(), 0, False
        self._errors, self._error_bytes = b"", 0
        self.received = 0
        self._began = self._heard = time.monotonic()

    def lines(self) -> Iterator[bytes]:
        """Yield whole lines; a last one without its end is left out: the link was cut in it.

        Raises:
            BoardError: a line, or all of them, are longer than the limit.
            LinkError: nothing came for too long.
        """
        looked = self._at
        while True:
            end = self._buffer.find(b"\n", looked)
            if end >= 0:
                line = bytes(self._buffer[self._at : end + 1])
                self._at = looked = end + 1
                yield line
                continue
            del self._buffer[: self._at]
            self._at, looked = 0, len(self._buffer)
            if looked > self.limits.line_bytes:
                raise self._too_much(f"a line of more than {self.limits.line_bytes // MIB} MiB")
            block = self._read()
            if not block:
                return
            self._buffer += block

    def block(self) -> bytes:
        """Return the next bytes, b"" at the end.

        Raises:
            BoardError, LinkError: as for ``lines``.
        """
        block = bytes(self._buffer[self._at :])
        self._buffer.clear()
        self._at = 0
        return block or self._read()

    def _read(self) -> bytes:
        while not self._over:
            now = time.monotonic()
            left = min(self._heard + self.limits.silence_s, self._began + self.limits.call_s) - now
            if left <= 0:
                raise self._too_slow(now)
            ready = [number for number, _ in self._poll.poll(1000.0 * left)]
            if self._err in ready:
                self._drain()
            if self._out in ready:
                block = os.read(self._out, BLOCK)
                self._over = not block
                self._heard = time.monotonic()
                self.received += len(block)
                if self.received > self.limits.total_bytes:
                    raise self._too_much(f"more than {self.limits.total_bytes // MIB} MiB")
                return block
        return b""

    def _drain(self) -> None:
        """Read what there is of standard error and keep its end."""
        try:
            block = os.read(self._err, BLOCK)
        except BlockingIOError:
            return
        if not block:
            self._poll.unregister(self._err)
            return
        self._errors = (self._errors + block)[-KEPT_ERRORS:]
        self._error_bytes += len(block)
        if self._error_bytes > self.limits.error_bytes:
            raise self._too_much(f"more than {self.limits.error_bytes // MIB} MiB of errors")

    def _too_much(self, what: str) -> BoardError:
        output = last_line(self._errors.decode("utf-8", "replace"))
        return BoardError(
            f"{self.name} sends too much",
            f"{what} in one answer{f', such as: {output}' if output else ''}",
            "Is it the board you mean? Look at what its login scripts and its python3 print",
        )

    def _too_slow(self, now: float) -> LinkError:
        silent = now - self._heard >= self.limits.silence_s
        why = (
            f"no byte in {self.limits.silence_s:g} s"
            if silent
            else f"no end in {self.limits.call_s:g} s"
        )
        return LinkError(
            f"{self.name} does not answer",
            why,
            "Is the board overloaded? Log in and look, or restart it",
        )

    def end(self) -> int:
        """Wait for the process to end and return its exit status.

        The rest of standard error is read.

        Returns:
            the status of the command; 255 is ssh's own, negative ones are signals that ended ssh.

        Raises:
            LinkError: it does not end within the limit of silence.
            BoardError: standard error is longer than its limit.
        """
        try:
            code = self.process.wait(timeout=max(self.limits.silence_s, 1.0))
        except subprocess.TimeoutExpired:
            raise self._too_slow(time.monotonic()) from None
        while any(number == self._err for number, _ in self._poll.poll(0)):
            before = self._error_bytes
            self._drain()
            if self._error_bytes == before:
                break
        return code

    @property
    def errors(self) -> str:
        """The end of the device's standard error, never ssh's own words.

        The device and the programs there wrote it.
        """
        return self._errors.decode("utf-8", "replace")

    @property
    def own(self) -> str:
        """Messages of this machine's ssh itself."""
        try:
            with self.log.open("rb") as handle:
                return handle.read(65536).decode("utf-8", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        """End the process in any state."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            _close(pipe)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()


def gunzip(path: Path, name: str, most: int = 256 * MIB) -> bytes:
    """Return what a gzip file from a device holds.

    Args:
        path: of the file here.
        name: of the device, for messages.
        most: bytes that it may unpack to.

    Raises:
        BoardError: it is damaged, or unpacks to more.
    """
    parts: list[bytes] = []
    size = 0
    unpack = zlib.decompressobj(wbits=31)

    def keep(block: bytes) -> None:
        nonlocal size
        size += len(block)
        if size > most:
            raise BoardError(
                f"{path.name} of {name} unpacks to too much",
                f"more than {most // MIB} MiB out of {path.stat().st_size} bytes",
                "Run the same command again; if it fails again, remove the jobs there with trtq "
                "device clean",
            )
        parts.append(block)

    try:
        with path.open("rb") as handle:
            _unpack(lambda: handle.read(65536), unpack, keep)
    except zlib.error as exc:
        raise BoardError(
            f"Cannot unpack {path.name} of {name}",
            str(exc),
            "Run the same command again; if it fails again, remove the jobs there with trtq "
            "device clean",
        ) from exc
    if not unpack.eof:
        raise BoardError(
            f"Cannot unpack {path.name} of {name}",
            "it ends in the middle",
            "Run the same command again",
        )
    return b"".join(parts)


def _unpack(
    read: Callable[[], bytes], unpack: zlib._Decompress, keep: Callable[[bytes], None]
) -> None:
    """Pass on what a stream unpacks to, a MiB at a time: a few bytes can become gigabytes.

    Args:
        read: returns the next packed bytes, b"" at the end.
        unpack: zlib's object.
        keep: takes unpacked bytes; it raises where they are too many.
    """
    while not unpack.eof and (block := read()):
        keep(unpack.decompress(block, MIB))
        while unpack.unconsumed_tail:
            keep(unpack.decompress(unpack.unconsumed_tail, MIB))
