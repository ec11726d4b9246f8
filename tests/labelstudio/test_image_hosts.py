"""Where images may come from, and where the API key may not go: attacks by servers that really do it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from neat_backend.errors import ImageError
from neat_backend.labelstudio import image_hosts
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.image_hosts import is_public

KEY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Answers every path with an "image", or with a redirect where one is set."""

    def __init__(self) -> None:
        self.redirects: dict[str, str] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                place = outer.redirects.get(self.path)
                body = b"image" if place is None else b""
                self.send_response(200 if place is None else 302)
                if place:
                    self.send_header("Location", place)
                self.send_header("Set-Cookie", "session=secret")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def start() -> Iterator[Callable[[], Server]]:
    started: list[Server] = []

    def one() -> Server:
        started.append(Server())
        return started[-1]

    yield one
    for each in started:
        each.server.shutdown()
        each.server.server_close()


@pytest.fixture
def home(start: Callable[[], Server]) -> Server:
    return start()


@pytest.fixture
def other(start: Callable[[], Server]) -> Server:
    return start()


def test_a_redirect_back_into_label_studio_brings_no_key(home: Server, other: Server):
    client = LabelStudioClient(home.url, KEY, image_hosts=("127.0.0.1",))
    assert client.fetch_bytes("/data/upload/own", 100) == b"image"
    other.redirects = {"/evil": f"{home.url}/data/upload/stolen"}
    client.fetch_bytes(f"{other.url}/evil", 100)
    home.redirects = {"/data/upload/start": f"{other.url}/evil", "/data/upload/moved": "/data/upload/own"}
    client.fetch_bytes("/data/upload/start", 100)
    client.fetch_bytes("/data/upload/moved", 100)
    keyed = [path for path, headers in home.seen if KEY in headers.get("authorization", "")]
    assert keyed == [f"/data/upload/{name}" for name in ("own", "start", "moved", "own")]
    stolen = [headers for path, headers in home.seen if path == "/data/upload/stolen"]
    assert len(stolen) == 2
    assert all("authorization" not in headers and "cookie" not in headers for headers in stolen)
    assert all(KEY not in str(headers) and "cookie" not in headers for _, headers in other.seen)


@pytest.mark.parametrize(
    ("path", "keyed"),
    [
        ("/data/upload/1/a.png", True),
        ("/data/local-files/?d=../../etc/passwd", True),  # Label Studio keeps to its document root: test_client.py
        ("/tasks/7/resolve/?fileuri=czM6Ly9h", True),
        ("/projects/7/presign/?fileuri=czM6Ly9h", True),
        ("/storage-data/uploaded/?filepath=a.png", True),
        ("/api/projects/1/export?exportType=JSON", False),
        ("/api/projects/1/next", False),
        ("/user/logout", False),
        ("/data/../api/projects/1/next", False),
        ("/data/%2e%2e/api/projects/1/next", False),
        ("/data/%252e%252e/api/projects/1/next", False),
        ("/data/..%5capi/projects/1/next", False),
        ("/database", False),
        ("/tasks/7/annotations/", False),
        ("//data/upload/a.png", False),
    ],
)
def test_the_key_goes_to_files_only_so_that_a_task_cannot_make_us_do_what_its_user_may(home: Server, path, keyed):
    client = LabelStudioClient(home.url, KEY)
    client.fetch_bytes(home.url + path, 100)
    (sent,) = (headers for _, headers in home.seen)
    assert (KEY in sent.get("authorization", "")) is keyed


def test_files_are_known_below_a_path_of_label_studio_too(home: Server):
    client = LabelStudioClient(f"{home.url}/studio", KEY)
    client.fetch_bytes("/data/upload/a.png", 100)
    client.fetch_bytes(f"{home.url}/data/upload/b.png", 100)
    assert [(path, KEY in headers.get("authorization", "")) for path, headers in home.seen] == [
        ("/studio/data/upload/a.png", True),
        ("/data/upload/b.png", False),
    ]


@pytest.mark.parametrize(
    "address",
    [
        "http://8.8.8.8@127.0.0.1:{port}/a",
        "http://a:b@localhost:{port}/a",
        "http://127.0.0.1:{port}#@8.8.8.8/a",
        "http://127.0.0.1:{port}\\@8.8.8.8/a",
        "http://LOCALHOST:{port}/a",
        "http://localhost.:{port}/a",
        "http://0177.0.0.1:{port}/a",
        "http://0x7f.1:{port}/a",
        "http://0x7f000001:{port}/a",
        "http://0:{port}/a",
        "http://①②⑦.⓪.⓪.①:{port}/a",
        "http://127。0。0。1:{port}/a",
        "http://ⓛocalhost:{port}/a",
        "http://%6cocalhost:{port}/a",
        "http://127.0.0.1%00.example.com:{port}/a",
        "http://[::ffff:7f00:1]:{port}/a",
        "http://[::127.0.0.1]:{port}/a",
        "http://[0:0:0:0:0:ffff:7f00:0001]:{port}/a",
        "http://[::1%25lo]:{port}/a",
        "http:/\\127.0.0.1:{port}/a",
        "http:///127.0.0.1:{port}/a",
        "HTTP://127.0.0.1:{port}/a",
        "http://127.0.0.1:{port}\r\nX: y/a",
        " http://127.0.0.1:{port}/a",
        "http://\t127.0.0.1:{port}/a",
    ],
)
def test_no_way_of_writing_a_private_address_gets_through(home: Server, other: Server, address: str):
    client = LabelStudioClient(home.url, KEY)
    place = address.format(port=other.port)
    with pytest.raises(ImageError) as caught:
        client.fetch_bytes(place, 100)
    assert "a:b@" not in str(caught.value)
    if place.isascii() and place.isprintable():  # what a header can carry
        home.redirects["/data/upload/elsewhere"] = place
        with contextlib.suppress(ImageError):  # some are paths of the server that redirects
            client.fetch_bytes("/data/upload/elsewhere", 100)
    assert other.seen == []


def test_redirects_to_other_schemes_and_in_circles_end(home: Server):
    client = LabelStudioClient(home.url, KEY)
    for place in ("file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/", "data:image/png;base64,AAAA", "//"):
        home.redirects["/data/upload/a"] = place
        with pytest.raises(ImageError):
            client.fetch_bytes("/data/upload/a", 100)
    home.seen.clear()
    home.redirects["/data/upload/a"] = "/data/upload/a"
    with pytest.raises(ImageError, match="too often"):
        client.fetch_bytes("/data/upload/a", 100)
    assert len(home.seen) < 10


def test_a_redirect_to_nowhere_is_the_servers_fault(home: Server):
    home.redirects["/data/upload/a"] = ""
    client = LabelStudioClient(home.url, KEY)
    with pytest.raises(ImageError, match="Label Studio answered 302 for the image"):
        client.fetch_bytes("/data/upload/a", 100)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_us(part: str):
    """Each wait is short, so that no time-out of a single one ends it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        over = threading.Event()

        def drip() -> None:
            caller = server.accept()[0]
            with caller, contextlib.suppress(OSError):
                caller.recv(1000)
                caller.sendall(b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 90000\r\n\r\n" if part == "body" else b""))
                while not over.wait(0.1):
                    caller.sendall(b"a")

        threading.Thread(target=drip, daemon=True).start()
        client = LabelStudioClient("http://127.0.0.1:1", KEY, timeout_seconds=0.4, image_hosts=("127.0.0.1",))
        with pytest.raises(ImageError, match="too long"):
            client.fetch_bytes(f"http://127.0.0.1:{port}/a", 100_000)
        over.set()


def test_a_private_address_is_not_even_connected_to(home: Server, other: Server):
    client = LabelStudioClient(home.url, KEY)
    names = (f"127.0.0.1:{other.port}", f"localhost:{other.port}", f"2130706433:{other.port}", f"127.1:{other.port}")
    for place in (*names, f"[::ffff:127.0.0.1]:{other.port}", f"[::1]:{other.port}", "169.254.169.254", "10.0.0.1"):
        with pytest.raises(ImageError, match="NEAT_IMAGE_HOSTS") as caught:
            client.fetch_bytes(f"http://{place}/latest/meta-data", 100)
        assert not caught.value.transient
        home.redirects["/data/upload/start"] = f"http://{place}/latest/meta-data"
        with pytest.raises(ImageError, match="NEAT_IMAGE_HOSTS"):
            client.fetch_bytes("/data/upload/start", 100)
    assert other.seen == []
    assert client.fetch_bytes("/data/upload/own", 100) == b"image"


def test_a_named_host_may_be_private_and_its_redirects_are_looked_at_again(home: Server, other: Server):
    client = LabelStudioClient(home.url, KEY, image_hosts=("LOCALHOST",))
    place = f"http://localhost:{other.port}"
    assert client.fetch_bytes(f"{place}/a", 100) == b"image"
    assert other.seen[0][1]["host"] == f"localhost:{other.port}"
    other.redirects = {"/b": f"http://127.0.0.1:{other.port}/inner"}
    with pytest.raises(ImageError, match="NEAT_IMAGE_HOSTS"):
        client.fetch_bytes(f"{place}/b", 100)
    assert [path for path, _ in other.seen] == ["/a", "/b"]


@pytest.mark.parametrize(
    ("allowed", "host", "works"),
    [
        (("*.images.test",), "a.images.test", True),
        (("*.images.test",), "images.test", False),
        (("*.images.test",), "evilimages.test", False),
        (("*",), "a.images.test", False),
        (("*", "a.images.test"), "a.images.test", True),
        (("a.images.test",), "b.images.test", False),
        ((), "a.images.test", False),
    ],
)
def test_names_and_wildcards(home: Server, other: Server, monkeypatch, allowed, host, works):
    names(monkeypatch, lambda look_up: ["127.0.0.1"])
    client = LabelStudioClient(home.url, KEY, image_hosts=allowed)
    if works:
        assert client.fetch_bytes(f"http://{host}:{other.port}/a", 100) == b"image"
    else:
        with pytest.raises(ImageError, match="NEAT_IMAGE_HOSTS"):
            client.fetch_bytes(f"http://{host}:{other.port}/a", 100)
        assert other.seen == []


def test_a_name_that_changes_its_meaning_after_the_check_leads_nowhere(home: Server, other: Server, monkeypatch):
    """DNS rebinding: public when looked at, private ever after. One loopback address plays the public one."""
    look_ups = names(monkeypatch, lambda look_up: ["127.0.0.2"] if look_up == 1 else ["127.0.0.1"])
    monkeypatch.setattr(image_hosts, "is_public", lambda address: address == "127.0.0.2")
    client = LabelStudioClient(home.url, KEY)
    with pytest.raises(ImageError):  # nothing listens at the address that was checked
        client.fetch_bytes(f"http://rebinding.test:{other.port}/a", 100)
    assert len(look_ups) == 1
    with pytest.raises(ImageError, match="private"):
        client.fetch_bytes(f"http://rebinding.test:{other.port}/a", 100)
    assert other.seen == []


def test_one_private_address_among_public_ones_is_enough_to_refuse(home: Server, other: Server, monkeypatch):
    names(monkeypatch, lambda look_up: ["8.8.8.8", "127.0.0.1"])
    with pytest.raises(ImageError, match="private"):
        LabelStudioClient(home.url, KEY).fetch_bytes(f"http://mixed.test:{other.port}/a", 100)
    assert other.seen == []


def test_a_proxy_is_not_asked_for_a_private_address(home: Server, other: Server, monkeypatch):
    monkeypatch.setenv("http_proxy", other.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    client = LabelStudioClient(home.url, KEY)
    for place in ("10.0.0.1", "localhost"):
        with pytest.raises(ImageError, match="NEAT_IMAGE_HOSTS"):
            client.fetch_bytes(f"http://{place}/a", 100)
    assert other.seen == []
    assert client.fetch_bytes("http://8.8.8.8/a", 100) == b"image"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("2002:808:808::1", True),
        *(
            (address, False)
            for address in (
                "127.0.0.1",
                "0.0.0.0",
                "10.1.2.3",
                "172.16.0.1",
                "192.168.1.1",
                "100.64.0.1",
                "169.254.169.254",
                "168.63.129.16",
                "224.0.0.1",
                "255.255.255.255",
                "::",
                "::1",
                "fe80::1%eth0",
                "fd00:ec2::254",
                "ff02::1",
                "::ffff:10.0.0.1",
                "64:ff9b::a9fe:a9fe",
                "2002:7f00:1::",
                "64:ff9b:1::808:808",
                "64:ff9b:1::a9fe:a9fe",
                "::8.8.8.8",
                "::127.0.0.1",
                "::ffff:0:8.8.8.8",
                "::ffff:0:a00:1",
                "fec0::1",
                "3fff::1",
                "2001:db8::1",
                "5f00::1",
                "100::1",
                "4000::1",
            )
        ),
    ],
)
def test_which_addresses_are_public(address: str, public: bool):
    assert is_public(address) is public


def names(monkeypatch, answer: Callable[[int], list[str]]) -> list[str]:
    """Let names under `.test` resolve to what `answer` says for the nth look-up; the look-ups made."""
    made: list[str] = []
    real = socket.getaddrinfo

    def resolve(host, port, *rest, **more):
        if not str(host).endswith(".test"):
            return real(host, port, *rest, **more)
        made.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answer(len(made))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return made
