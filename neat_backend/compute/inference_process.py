"""`Inference` in a process of its own, which is started at first need and ends when it has rested.

`InferenceProcess` is the side that asks: it imports no torch. The other side is `python -m
neat_backend.compute.inference_process JSON`. Between them are sockets, each for one request at a time: JSON, with the
contents of arrays sent as they lie in memory. The process ends when its standard input does, so with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BufferedRWPair
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import neat_backend
from neat_backend.compute.inference import EncoderFacts, Inference
from neat_backend.compute.remembered import Remembered
from neat_backend.errors import ClassifierDamaged, ComputeError, EncoderError, SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

REST_SECONDS = 300.0  # without a request, until the process is ended
STOP_SECONDS = 5.0
CHANNELS = 10  # requests at a time; more wait
ARRAY = "array"  # key of an array in a message
_CARRIED = (ClassifierDamaged, EncoderError, SettingsError, ValueError, FileNotFoundError)
ERRORS = {error.__name__: error for error in _CARRIED}


class InferenceProcess:
    """Encoders and classifiers for all projects of a worker. Any thread may call it.

    pid: of the process; None while there is none.
    """

    def __init__(self, name: str, weights: Path | None, device: str, folder: Path, log_form: str = "plain") -> None:
        """name, weights, device: as for `build_encoder`. folder: where facts about encoders are kept."""
        self._given = {
            "name": name,
            "weights": None if weights is None else str(weights),
            "device": device,
            "log_level": logging.getLevelName(logging.getLogger().level),
            "log_form": log_form,
        }
        self._remembered = Remembered(folder, name, weights, device)
        self._changed = threading.Condition()
        self._child: _Child | None = None
        self._busy = 0  # requests
        self._used = 0.0  # time.monotonic()

    @property
    def pid(self) -> int | None:
        child = self._child
        return None if child is None else child.process.pid

    def encoder(self, backend: str, stored: str) -> RemoteEncoder:
        """The encoder that `with_backend` chooses; without the process where its facts are remembered.

        Raises EncoderError, SettingsError, ComputeError.
        """
        facts = self._remembered.find(backend, stored)
        if facts is None:
            facts = EncoderFacts.of(self.ask("facts", backend, stored))
            self._remembered.keep(backend, stored, facts)
        return RemoteEncoder(self, facts, backend)

    def warm_up(self, backend: str) -> None:
        """Start the process and build the encoder of a project without features in it. It rests from then on.

        Raises as `encoder`.
        """
        self._remembered.keep(backend, "", EncoderFacts.of(self.ask("facts", backend, "")))

    def classify(self, path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Inference.classify`. Raises ComputeError when the process dies."""
        found: NDArray[np.float32] = self.ask("classify", path.absolute(), images)
        return found

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the process's `Inference`. Raises its exceptions, and ComputeError if the process dies."""
        with self._in_use() as child:
            return child.ask(method, args)

    def stop(self) -> None:
        """End the process, with whatever it is doing."""
        with self._changed:
            child, self._child = self._child, None
            self._changed.notify_all()
        if child is not None:
            child.stop()

    @contextmanager
    def _in_use(self) -> Iterator[_Child]:
        with self._changed:
            if self._child is not None and self._child.process.poll() is not None:
                self._child.stop()
                self._child = None
            if self._child is None:
                self._child = _Child(self._given)
                threading.Thread(target=self._end_at_rest, args=(self._child,), name="inference", daemon=True).start()
            child = self._child
            self._busy += 1
        try:
            yield child
        finally:
            with self._changed:
                self._busy -= 1
                self._used = time.monotonic()
                self._changed.notify_all()

    def _end_at_rest(self, child: _Child) -> None:
        """Wait until the process has rested long enough, and end it."""
        with self._changed:
            while self._child is child:
                left = self._used + REST_SECONDS - time.monotonic()
                if not self._busy and left <= 0:
                    self._child = None
                    break
                self._changed.wait(None if self._busy else left)
            else:
                return  # another has ended it
        child.stop()
        log.info("the process that encodes has rested for %g s and is ended", REST_SECONDS)


class RemoteEncoder:
    """An encoder in the process, as `compute.embedding` and the steps use it; only pictures are cut here."""

    def __init__(self, process: InferenceProcess, facts: EncoderFacts, backend: str) -> None:
        self.key, self.dim, self.preprocessing = facts.key, facts.dim, facts.preprocessing
        self.at_once = facts.at_once + 1  # one is on its way while the others are computed
        self._reads_text, self._process, self._backend = facts.reads_text, process, backend

    def preprocess(self, image: Image) -> NDArray[np.uint8]:
        """One picture of any size -> uint8 [3, side, side]."""
        return self.preprocessing.pixels(image)

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Encoder.encode`. Raises ComputeError when the process dies."""
        found: NDArray[np.float32] = self._process.ask("encode", self.key, self._backend, batch)
        return found

    def encode_names(self, names: Sequence[str]) -> NDArray[np.float32] | None:
        """As `Encoder.encode_names`. Raises ComputeError when the process dies."""
        if not self._reads_text or not names:
            return None
        found: NDArray[np.float32] | None = self._process.ask("read", self.key, list(names))
        return found


class _Child:
    """The process, with the sockets that no request uses."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Raises ComputeError when it can't be started."""
        pairs = [socket.socketpair() for _ in range(CHANNELS)]
        root = str(Path(neat_backend.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        theirs = [end.fileno() for _, end in pairs]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, json.dumps({**given, "sockets": theirs})],
                stdin=subprocess.PIPE,
                pass_fds=theirs,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for the parent, which then stops this one
            )
        except OSError as error:
            for mine, _ in pairs:
                mine.close()
            raise ComputeError(f"the process that encodes can't be started: {error}") from error
        finally:
            for _, end in pairs:
                end.close()
        self._channels: queue.LifoQueue[Any] = queue.LifoQueue()
        for mine, _ in pairs:
            self._channels.put(mine.makefile("rwb"))
            mine.close()  # the file keeps it open

    def ask(self, method: str, args: tuple[Any, ...]) -> Any:
        channel = self._channels.get()
        try:
            _send(channel, (method, args))
            done, answer = _receive(channel)
        except (OSError, EOFError, ValueError) as error:
            raise ComputeError(self._ended()) from error
        finally:
            self._channels.put(channel)
        if not done:
            name, text = answer
            raise ERRORS[name](text) if name in ERRORS else RuntimeError(f"{name}: {text}")
        return answer

    def stop(self) -> None:
        """End it; returns when it has ended."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        with suppress(queue.Empty):
            while True:
                with suppress(OSError):
                    self._channels.get_nowait().close()

    def _ended(self) -> str:
        """The message for a process that is gone."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        code = self.process.returncode
        name = signal.Signals(-code).name if code is not None and -code in set(signal.Signals) else f"status {code}"
        hint = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"the process that encodes and classifies images has ended ({name}{hint}); another one is started"


def _send(file: BufferedRWPair, message: Any) -> None:
    """Write a message: its length, JSON, and the contents of its arrays in the order of the JSON."""
    arrays: list[NDArray[Any]] = []

    def as_json(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays.append(np.ascontiguousarray(value))
            return {ARRAY: [value.dtype.str, value.shape]}
        return asdict(value) if isinstance(value, EncoderFacts) else str(value)  # a path

    data = json.dumps(message, default=as_json).encode()
    file.write(b"%d\n" % len(data) + data)
    for array in arrays:
        file.write(array.reshape(-1).view(np.uint8).data)
    file.flush()


def _receive(file: BufferedRWPair) -> Any:
    """Raises EOFError where the other side has gone."""

    def value_of(found: dict[str, Any]) -> Any:
        if ARRAY not in found:
            return found
        dtype, shape = found[ARRAY]
        array = np.empty(shape, dtype)
        if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise EOFError
        return array

    size = file.readline()
    data = file.read(int(size)) if size else b""
    if not data:
        raise EOFError
    return json.loads(data, object_hook=value_of)


def _serve(inference: Inference, file: BufferedRWPair) -> None:
    """Answer the requests of one socket until it is closed: whether it worked, and the result or the exception."""
    with suppress(OSError, EOFError):
        while True:
            method, args = _receive(file)
            try:
                answer = True, getattr(inference, method)(*args)
            except Exception as error:
                if type(error).__name__ not in ERRORS:
                    log.exception("%s failed", method)
                answer = False, [type(error).__name__, str(error)]
            _send(file, answer)


def main() -> None:
    """`python -m neat_backend.compute.inference_process JSON`: serve the sockets until standard input ends."""
    from neat_backend import logs
    from neat_backend.compute import heap

    given = json.loads(sys.argv[1])
    heap.share_one_arena()
    logs.set_up(given["log_level"], given["log_form"])
    inference = Inference(given["name"], given["weights"] and Path(given["weights"]), given["device"])
    for number in given["sockets"]:
        file = socket.socket(fileno=number).makefile("rwb")
        threading.Thread(target=_serve, args=(inference, file), daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)  # whatever the threads are doing


if __name__ == "__main__":
    main()
