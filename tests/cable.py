"""The way to a server, which a test can cut or unplug."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time


class Cable:
    """A port of this machine whose connections lead to the server.

    cut: while it is set, all data is dropped and neither side notices.
    unplugged: while it is set, connections end, and new ones do so at once.
    """

    def __init__(self, host: str, port: int, listen_on: str = "127.0.0.1") -> None:
        self.target = host, port
        self.cut, self.unplugged = threading.Event(), threading.Event()
        self._listener = socket.create_server((listen_on, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(self.target) as far:
            while not self.unplugged.is_set():
                for one in select.select([near, far], [], [], 0.05)[0]:
                    while self.cut.is_set():
                        time.sleep(0.05)
                    data = one.recv(65536)
                    if not data:
                        return
                    (far if one is near else near).sendall(data)

    def close(self) -> None:
        self._listener.close()
