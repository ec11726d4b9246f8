"""Starting weights of a ResNet-18's training: ImageNet's, those of a file, or none (from scratch).

`starting_weights` reads NEAT_CLASSIFIER_WEIGHTS. ImageNet's are torchvision's ResNet18_Weights.IMAGENET1K_V1, in
torch.hub's cache or downloaded into it. A machine without a network waits CONNECT_SECONDS at most, once a day: the
failure is kept in this process and in a file beside the place in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from neat_backend.errors import TrainingError

AUTO, SCRATCH = "auto", "scratch"
IMAGENET = "imagenet"
IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
CONNECT_SECONDS = 4.0  # to look the host up, connect and get the answer's head
DOWNLOAD_SECONDS = 600.0  # for all 45 MB
RETRY_SECONDS = 24 * 3600.0
FAILED = ".failed"  # after the weights' name: the file with the last failure
_CHUNK_BYTES = 1 << 18

# What reading a file of weights, or loading it into a network it does not fit, may raise.
WEIGHT_ERRORS: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError)
WEIGHT_ERRORS += (AttributeError, SafetensorError, pickle.UnpicklingError)

_failures: dict[Path, str] = {}  # of this process: place in the cache → reason


@dataclass(frozen=True)
class StartingWeights:
    """The starting weights of a training."""

    state: Mapping[str, torch.Tensor] | None  # None = from scratch
    origin: str  # "imagenet", "scratch" or the file's path
    note: str = ""  # why it is from scratch although ImageNet's weights were wanted, with the remedy


def starting_weights(
    choice: str,
    *,
    cache: Path | None = None,
    download: Callable[[str, Path], None] | None = None,
    now: Callable[[], float] = time.time,
) -> StartingWeights:
    """The weights that `choice` names: auto, scratch, or the path of a state dict of ResNet-18.

    cache: folder of ImageNet's weights, None = torch.hub's. download: None = `download_file`. now: seconds since
    1970. With auto, weights that can't be had are no error: `state` is None and `note` says why. Raises TrainingError
    for a file that can't be read or holds another network.
    """
    if choice == SCRATCH:
        return StartingWeights(None, SCRATCH)
    if choice != AUTO:
        return StartingWeights(_of_file(Path(choice)), choice)
    path = place_of(IMAGENET_URL, cache)
    try:
        if not path.is_file():
            _fetch(path, download or download_file, now)
        return StartingWeights(_read_fitting(path), IMAGENET)
    except WEIGHT_ERRORS as error:
        note = (
            f"ImageNet's weights can't be had ({reason_of(error)}), so training begins from scratch; put"
            f" {IMAGENET_URL} at {path}, or name a file in NEAT_CLASSIFIER_WEIGHTS"
        )
    return StartingWeights(None, SCRATCH, note)


def place_of(url: str, cache: Path | None = None) -> Path:
    """Where a download lies; cache: the folder, None = torch.hub's."""
    folder = cache if cache is not None else Path(torch.hub.get_dir()) / "checkpoints"
    return folder / url.rpartition("/")[2]


def _of_file(path: Path) -> Mapping[str, torch.Tensor]:
    remedy = "give a state dict of torchvision's ResNet-18 (.pth or .safetensors), or set auto or scratch"
    if not path.is_file():
        raise TrainingError(f"NEAT_CLASSIFIER_WEIGHTS={path}: there is no such file; {remedy}")
    try:
        return _read_fitting(path)
    except WEIGHT_ERRORS as error:
        raise TrainingError(f"NEAT_CLASSIFIER_WEIGHTS={path} can't be used ({reason_of(error)}); {remedy}") from error


def _read_fitting(path: Path) -> Mapping[str, torch.Tensor]:
    from neat_backend.models.networks import ORDINARY_STEM_FROM, build_network, load_fitting

    state = read_state(path)
    with torch.device("meta"):  # shapes without values
        load_fitting(build_network("resnet18", 1, ORDINARY_STEM_FROM), state)
    return state


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a local file; never runs code in the file. Raises one of WEIGHT_ERRORS."""
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"holds a {type(state).__name__}, not a state dict")
    return state


def _fetch(path: Path, download: Callable[[str, Path], None], now: Callable[[], float]) -> None:
    """Download to `path`, unless that has failed in this process or within RETRY_SECONDS. Raises OSError."""
    failed = path.with_name(path.name + FAILED)
    reason = _failures.get(path) or _last_failure(failed, now())
    if not reason:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            download(IMAGENET_URL, path)
        except OSError as error:
            reason = reason_of(error)
            with contextlib.suppress(OSError):  # where it can't be kept, the next process tries again
                failed.write_text(json.dumps({"at": now(), "reason": reason}))
        else:
            failed.unlink(missing_ok=True)
            return
    _failures[path] = reason
    raise OSError(reason)


def _last_failure(path: Path, now: float) -> str:
    """Why the last download failed, if that was less than RETRY_SECONDS ago; else empty."""
    try:
        said = json.loads(path.read_text())
        return str(said["reason"]) if 0 <= now - float(said["at"]) < RETRY_SECONDS else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def download_file(url: str, path: Path) -> None:
    """Download `url`, whose name has its SHA-256's first digits after the last hyphen, to `path`: whole or not at all.

    Raises OSError: no answer within CONNECT_SECONDS, silence of as long, DOWNLOAD_SECONDS in all, other bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file, _answer(url) as answer:  # opened first: don't request what can't be stored
            end = time.monotonic() + DOWNLOAD_SECONDS
            while chunk := answer.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                if time.monotonic() > end:
                    raise TimeoutError(f"the download took more than {DOWNLOAD_SECONDS:g} s")
        if not digest.hexdigest().startswith(Path(url).stem.rpartition("-")[2]):
            raise OSError(f"what came from {url} has another checksum")
        os.replace(temporary, path)
    except HTTPException as error:
        raise OSError(f"the download broke off: {reason_of(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def reach(url: str) -> None:
    """Raise OSError unless a server answers within CONNECT_SECONDS, with any status."""
    with contextlib.suppress(HTTPError):
        _answer(url, "HEAD").close()


def _answer(url: str, method: str = "GET") -> HTTPResponse:
    """The server's answer. In a thread, because the time-out of a socket does not bound the look-up of its host."""
    answers: queue.Queue[HTTPResponse | Exception] = queue.Queue()

    def ask() -> None:
        try:
            request = Request(url, headers={"User-Agent": "neat-backend"}, method=method)
            answers.put(urlopen(request, timeout=CONNECT_SECONDS))
        except (OSError, HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer from {urlsplit(url).hostname} within {CONNECT_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def reason_of(error: Exception) -> str:
    """The error's first line."""
    text = str(error.reason) if isinstance(error, URLError) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]
