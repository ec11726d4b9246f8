"""What training begins with: ImageNet's weights, a file's, or none; and that no network costs seconds, once a day."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from neat_backend.errors import TrainingError
from neat_backend.models import weights as module
from neat_backend.models.weights import FAILED, IMAGENET_URL, RETRY_SECONDS, download_file, starting_weights
from tests.waiting import HANGS

NAME = IMAGENET_URL.rpartition("/")[2]


class Network:
    """What stands in for a download: a file that it copies, or the words that it fails with."""

    def __init__(self, content: bytes = b"", failure: str = "") -> None:
        self.content, self.failure = content, failure
        self.requested: list[str] = []

    def __call__(self, url: str, path: Path) -> None:
        self.requested.append(url)
        if self.failure:
            raise OSError(self.failure)
        path.write_bytes(self.content)


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """One that has not tried anything yet."""
    failures: dict[Path, str] = {}
    monkeypatch.setattr(module, "_failures", failures)
    return failures


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    return models.resnet18(weights=None).state_dict()


@pytest.fixture(scope="module")
def resnet_file(resnet: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet, path)
    return path


def test_from_scratch_nothing_is_asked_for(tmp_path: Path) -> None:
    network = Network(failure="unreachable")
    begin = starting_weights("scratch", cache=tmp_path, download=network)
    assert (begin.state, begin.origin, begin.note) == (None, "scratch", "")
    assert network.requested == []


def test_imagenets_weights_are_downloaded_once(tmp_path: Path, resnet_file: Path, resnet: dict[str, Any]) -> None:
    network = Network(resnet_file.read_bytes())
    for _ in range(2):
        begin = starting_weights("auto", cache=tmp_path / "new" / "folder", download=network)
        assert (begin.origin, begin.note) == ("imagenet", "")
        assert begin.state is not None
        assert torch.equal(begin.state["conv1.weight"], resnet["conv1.weight"])
    assert network.requested == [IMAGENET_URL]


def test_the_cache_is_torchs_own(tmp_path: Path, resnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / NAME).write_bytes(resnet_file.read_bytes())
    assert starting_weights("auto", download=Network(failure="unreachable")).origin == "imagenet"


def test_weights_that_cannot_be_had_are_no_error_and_the_note_says_why_and_what_to_do(tmp_path: Path) -> None:
    begin = starting_weights("auto", cache=tmp_path, download=Network(failure="Name or service not known"))
    assert (begin.state, begin.origin) == (None, "scratch")
    for words in ("Name or service not known", "from scratch", str(tmp_path / NAME), "NEAT_CLASSIFIER_WEIGHTS"):
        assert words in begin.note


def test_a_process_tries_once(tmp_path: Path, new_process: dict[Path, str]) -> None:
    network = Network(failure="unreachable")
    first = starting_weights("auto", cache=tmp_path, download=network)
    (tmp_path / f"{NAME}{FAILED}").unlink()
    assert starting_weights("auto", cache=tmp_path, download=network) == first
    assert len(network.requested) == 1


def test_other_processes_try_again_a_day_later(tmp_path: Path, resnet_file: Path, new_process: dict[Path, str]) -> None:
    network = Network(resnet_file.read_bytes(), failure="unreachable")
    at = 1_700_000_000.0

    def next_process(seconds: float) -> str:
        new_process.clear()
        return starting_weights("auto", cache=tmp_path, download=network, now=lambda: at + seconds).origin

    assert [next_process(0), next_process(60), next_process(RETRY_SECONDS - 1)] == ["scratch"] * 3
    assert len(network.requested) == 1
    assert next_process(RETRY_SECONDS) == "scratch"
    assert len(network.requested) == 2
    network.failure = ""
    assert next_process(RETRY_SECONDS + 60) == "scratch"
    assert next_process(2 * RETRY_SECONDS) == "imagenet"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("content", ["", "[]", '{"at": "noon", "reason": "x"}', '{"at": 9e99, "reason": "x"}'])
def test_a_record_of_a_failure_that_makes_no_sense_is_none(tmp_path: Path, resnet_file: Path, content: str) -> None:
    (tmp_path / f"{NAME}{FAILED}").write_text(content)
    network = Network(resnet_file.read_bytes())
    assert starting_weights("auto", cache=tmp_path, download=network).origin == "imagenet"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    begin = starting_weights("auto", cache=tmp_path / "file" / "folder", download=Network(b"x"))
    assert begin.origin == "scratch"
    assert "Not a directory" in begin.note


@pytest.mark.parametrize("content", [b"", b"<html>", "wrong"])
def test_a_file_in_the_cache_that_is_no_resnet18_is_not_used(tmp_path: Path, content: bytes | str) -> None:
    if isinstance(content, bytes):
        (tmp_path / NAME).write_bytes(content)
    else:
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / NAME)
    begin = starting_weights("auto", cache=tmp_path, download=Network(failure="unreachable"))
    assert (begin.state, begin.origin) == (None, "scratch")
    assert str(tmp_path / NAME) in begin.note


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_is_used(tmp_path: Path, resnet: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    save_file(resnet, path) if suffix == ".safetensors" else torch.save({"state_dict": resnet}, path)
    begin = starting_weights(str(path), download=Network(failure="unreachable"))
    assert (begin.origin, begin.note) == (str(path), "")
    assert begin.state is not None
    assert torch.equal(begin.state["layer4.1.conv2.weight"], resnet["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"no weights", "can't be used"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "100 of 100 weights are missing"),
        (models.resnet34(weights=None).state_dict(), "weights more than it has"),
        (models.resnet50(weights=None).state_dict(), "of another shape"),
    ],
    ids=["missing", "text", "list", "other keys", "resnet34", "resnet50"],
)
def test_a_bad_file_is_an_error_that_names_the_setting_and_the_remedy(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(TrainingError) as raised:
        starting_weights(str(path))
    for each in (f"NEAT_CLASSIFIER_WEIGHTS={path}", words, "state dict of torchvision's ResNet-18", "scratch"):
        assert each in str(raised.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Code()}, tmp_path / "evil.pth")
    with pytest.raises(TrainingError, match="can't be used"):
        starting_weights(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


# the download itself, from a server on this machine


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a server, and what it serves by path."""
    monkeypatch.setattr(module, "CONNECT_SECONDS", HANGS)
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", files
    server.shutdown()
    server.server_close()


def test_a_download_is_checked_and_put_in_place_whole(tmp_path: Path, served: tuple[str, dict[str, bytes]]) -> None:
    address, files = served
    content = bytes(range(256)) * 5000  # several chunks
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    files[f"/{name}"] = content
    download_file(f"{address}/{name}", tmp_path / name)
    assert (tmp_path / name).read_bytes() == content
    files[f"/{name}"] = content[:-1]
    with pytest.raises(OSError, match="another checksum"):
        download_file(f"{address}/{name}", tmp_path / "other.pth")
    with pytest.raises(OSError, match="404"):
        download_file(f"{address}/nothing-12345678.pth", tmp_path / "other.pth")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_server_that_does_not_answer_costs_the_time_to_connect_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(OSError, match=r"no answer from 127\.0\.0\.1 within 0\.3 s|timed out"):
            download_file(f"http://127.0.0.1:{silent.getsockname()[1]}/x-12345678.pth", tmp_path / "x.pth")


def test_a_look_up_that_hangs_costs_the_time_to_connect_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver has time-outs of its own, of half a minute and more."""
    over = threading.Event()
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(HANGS) and [])
    with pytest.raises(OSError, match=r"no answer from weights\.invalid within 0\.3 s"):
        download_file("http://weights.invalid/x-12345678.pth", tmp_path / "x.pth")
    over.set()


def test_a_download_that_drags_on_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: tuple[str, dict[str, bytes]]
) -> None:
    address, files = served
    files["/x-12345678.pth"] = b"x" * 2_000_000
    monkeypatch.setattr(module, "DOWNLOAD_SECONDS", -1)
    with pytest.raises(OSError, match="the download took more than"):
        download_file(f"{address}/x-12345678.pth", tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []
