"""A link that can be slow and can be cut: a TCP relay on loopback in front of an sshd."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

CHUNK = 1 << 14


class ShapedLink:
    """Relays connections to a port of the loopback interface.

    Args:
        port: where to.
        rate: bytes a second in each direction; None for no limit.

    Attributes:
        port: to connect to.
        sent: bytes that went towards the server.
    """

    def __init__(self, port: int, *, rate: float | None = None) -> None:
        self.rate, self.sent, self._to = rate, 0, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> ShapedLink:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection; new ones are taken at once."""
        with self._lock:
            gone, self._open = self._open | self._frozen, set()
        for end in gone:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def freeze(self) -> None:
        """Pass nothing more on over the open connections, and close none.

        A pulled cable does the same.
        """
        with self._lock:
            self._frozen |= self._open

    def drop_frozen(self) -> None:
        """Let the client notice; the server does not."""
        with self._lock:
            gone = self._frozen & self._clients
        for end in gone:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to), 5.0)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
                self._clients.add(client)
            for source, to in ((client, server), (server, client)):
                threading.Thread(
                    target=self._relay, args=(source, to, to is server), daemon=True
                ).start()

    def _relay(self, source: socket.socket, to: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(CHUNK):
                if self.rate is not None:
                    time.sleep(len(block) / self.rate)
                if to in self._frozen:
                    continue
                to.sendall(block)
                self.sent += len(block) * upwards
        if source in self._frozen:
            return  # the other end hears nothing of it
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._open -= {source, to}
