"""A worker in a process of its own, as on another host, and the Label Studio in memory that it reaches over HTTP.

python -m tests.far NAME DATABASE_URL DATA_DIR ARRAYS_URL LABEL_STUDIO
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx

from neat_backend.errors import LabelStudioUnavailable, NeatError
from neat_backend.settings import Settings
from neat_backend.stopping import Stopping
from neat_backend.store.database import Database
from neat_backend.worker.worker import Worker
from tests.fake_label_studio import FakeLabelStudio
from tests.living import FakeEncoder

PAGED = {"tasks", "annotations", "changed_tasks", "task_ids"}
ANSWER_SECONDS = 3.0


class FarLabelStudio:
    """The client's side: every method of `FakeLabelStudio`, called over there."""

    def __init__(self, name: str, url: str) -> None:
        self._name, self._url = name, url

    def clock(self) -> None:
        """Not known without asking."""

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            body = pickle.dumps((self._name, method, args, named))
            try:
                answer = httpx.post(self._url, content=body, timeout=ANSWER_SECONDS, trust_env=False)
            except httpx.HTTPError as error:
                raise LabelStudioUnavailable(f"Label Studio does not answer: {error}") from error
            found = pickle.loads(answer.content)
            if isinstance(found, NeatError):
                raise found
            return iter(found) if method in PAGED else found

        return call


@contextmanager
def served(label_studio: FakeLabelStudio, address: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Its URL, and who has called which method, in order."""
    calls: list[tuple[str, str]] = []
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name, method, args, named = pickle.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with one_at_a_time:
                calls.append((name, method))
                try:
                    found = getattr(label_studio, method)(*args, **named)
                    found = list(found) if method in PAGED else found
                except NeatError as error:
                    found = error
            body = pickle.dumps(found)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_address[1]}", calls
    finally:
        server.shutdown()
        server.server_close()


def say(there: FarLabelStudio) -> None:
    """A sign of life, as soon as there is a way."""
    while True:
        with suppress(LabelStudioUnavailable):
            there.now()
            return


def main(name: str, database_url: str, data_dir: str, arrays_url: str, label_studio: str) -> None:
    settings = Settings.from_env(
        {},
        data_dir=Path(data_dir),
        arrays_url=arrays_url,
        k=2,
        batch_size=4,
        image_size=16,
        epochs=1,
        seed=3,
        encode_batch_size=4,
        downloads=2,
        publish_interval_seconds=0,
        publish_tail=0,
        reconcile_seconds=0,
        device="cpu",
    )
    there = FarLabelStudio(name, label_studio)
    worker = Worker(settings, Database(database_url))
    worker.owner = f"{name}:{worker.owner}"
    worker._connect = lambda project: cast(Any, there)  # type: ignore[method-assign]
    worker._shared_encoder = lambda: cast(Any, FakeEncoder())  # type: ignore[method-assign]
    put_away = worker._put_away

    def recorded_call(*of: Any) -> None:
        put_away(*of)
        say(there)

    worker._put_away = recorded_call  # type: ignore[method-assign]
    say(there)  # it is up: the test waits for this
    stopping = Stopping()
    with stopping.on_signals():
        worker.run(stopping)
        worker.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
