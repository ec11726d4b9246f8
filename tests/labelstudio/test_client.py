"""The client, the fetcher and the publisher against a real Label Studio."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.errors import (
    ImageError,
    LabelStudioError,
    LabelStudioRefused,
    NotFoundInLabelStudio,
    PredictionsRejected,
)
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.images import ImageFetcher, decode
from neat_backend.labelstudio.inspection import takes_webhooks
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import Imported, Prediction, Publisher
from tests.labelstudio.server import CONFIG, add_tasks

LABELS = LabelConfig("class", "image", "image", ("dog", "cat"), ("invalid",))


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def all_annotations(client: LabelStudioClient, project: int, tasks=None, **options):
    return [annotation for page in client.annotations(project, tasks, **options) for annotation in page]


# --- tokens


@pytest.fixture(scope="module")
def personal_token(person: Annotator) -> str:
    """A user has only one, and sees it only when it is made."""
    return str(person.call("POST", "/api/token/")["token"])


def test_both_kinds_of_token_work_and_are_renewed(label_studio: LabelStudioServer, personal_token: str):
    assert LabelStudioClient(label_studio.url, label_studio.token).whoami() == label_studio.username
    client = LabelStudioClient(label_studio.url + "/", personal_token)
    assert client.whoami() == label_studio.username
    assert client.transport.sdk._client_wrapper.get_headers()["Authorization"].startswith("Bearer ")
    # an access token that the server finds too old is exchanged for a new one
    tokens = client.transport.sdk._client_wrapper._tokens_client
    tokens._access_token = tokens._access_token[:-4] + "AAAA"
    assert client.whoami() == label_studio.username


def test_a_wrong_token_says_which_setting_to_mend(label_studio: LabelStudioServer):
    for key in ("0" * 40, "", " "):
        with pytest.raises(LabelStudioRefused, match="LABEL_STUDIO_API_KEY"):
            LabelStudioClient(label_studio.url, key).whoami()


def test_legacy_tokens_that_are_switched_off_are_refused(label_studio: LabelStudioServer, personal_token: str):
    personal = LabelStudioClient(label_studio.url, personal_token)
    off = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False, "api_token_ttl_days": 10}
    personal.transport.send("POST", "/api/jwt/settings", off)
    try:
        with pytest.raises(LabelStudioRefused, match="legacy"):
            LabelStudioClient(label_studio.url, label_studio.token).whoami()
        assert personal.whoami() == label_studio.username
    finally:
        personal.transport.send("POST", "/api/jwt/settings", {**off, "legacy_api_tokens_enabled": True})


# --- reading


def test_no_annotation_that_label_studio_takes_by_import_ends_the_reading(client, person, project):
    def result(*choices, **more):
        return {
            "from_name": "class",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": list(choices)},
            **more,
        }

    read = {  # what is imported, and what it is read as
        "choices is a text": ([result(value={"choices": "dog"})], {"class": None}),
        "a number among the choices": ([result("dog", 1)], {"class": None}),
        "value is null": ([result(value=None)], {"class": None}),
        "no value": ([{"from_name": "class", "to_name": "image", "type": "choices"}], {"class": None}),
        "from_name is null": ([result("dog", from_name=None)], {"": None}),
        "a result that is a text": (["dog"], {"": None}),
        "a result that is a list": ([[]], {"": None}),
        "the same choice twice": ([result("dog"), result("dog")], {"class": ("dog", "dog")}),
        "blanks": ([result("dog ")], {"class": ("dog ",)}),
        "a path": ([result(["pets", "dog"])], {"class": (("pets", "dog"),)}),
    }
    tasks = [{"data": {"image": name}, "annotations": [{"result": odd}]} for name, (odd, _) in read.items()]
    person.import_tasks(project, tasks)
    pages = [list(page) for page in client.tasks(project, "image")]
    names = {task.id: task.image for page in pages for task in page}
    found = {names[answer.task]: answer for answer in all_annotations(client, project)}
    assert {name: answer.choices for name, answer in found.items()} == {name: odd for name, (_, odd) in read.items()}
    assert all(answer.ground_truth for answer in found.values())  # Label Studio says so of whatever is imported
    (changed,) = client.changed_tasks(project, "image", datetime(2020, 1, 1, tzinfo=timezone.utc))
    assert {answer.id for answer in changed[1]} == {answer.id for answer in found.values()}


def test_tasks_come_by_id_page_by_page(client, person, project):
    ids = add_tasks(person, project, 25)
    pages = list(client.tasks(project, "image", page_size=10))
    assert [len(page) for page in pages] == [10, 10, 5]
    tasks = [task for page in pages for task in page]
    assert [task.id for task in tasks] == ids
    assert tasks[3].image == "/data/upload/3.png"
    assert not any(task.has_annotations for task in tasks)


def test_changed_tasks_are_those_whose_data_or_annotations_changed_since(client, person, project):
    ids = add_tasks(person, project, 6)
    person.annotate(ids[0], "dog")
    person.annotate(ids[1], "dog")
    time.sleep(1.1)  # Label Studio gives its time to the second
    since = client.now()
    time.sleep(1.1)
    changed, deleted = (all_annotations(client, project, [task])[0].id for task in ids[:2])
    result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]
    person.call("PATCH", f"/api/annotations/{changed}/", {"result": result})
    person.call("DELETE", f"/api/annotations/{deleted}/")
    person.call("PATCH", f"/api/tasks/{ids[2]}/", {"data": {"image": "/data/upload/other.png"}})
    person.annotate(ids[3], "dog")
    pages = list(client.changed_tasks(project, "image", since, page_size=3))
    assert [task.id for tasks, _ in pages for task in tasks] == ids[:4]
    assert {task.id: task.image for tasks, _ in pages for task in tasks}[ids[2]] == "/data/upload/other.png"
    answers = {answer.task: answer.choices["class"] for _, found in pages for answer in found}
    assert answers == {ids[0]: ("cat",), ids[3]: ("dog",)}
    assert list(client.changed_tasks(project, "image", client.now() + timedelta(hours=1))) == []
    assert [number for page in client.task_ids(project, page_size=4) for number in page] == ids


def test_tasks_that_go_and_come_between_pages_shift_nothing(client, person, project):
    ids = add_tasks(person, project, 30)
    pages = client.tasks(project, "image", page_size=10)
    seen = [task.id for task in next(pages)]
    person.delete_tasks(project, ids[:5])
    new = add_tasks(person, project, 3)
    seen += [task.id for page in pages for task in page]
    assert seen == ids + new


def test_annotations_and_skips_are_read_without_the_rest(client, person, project):
    ids = add_tasks(person, project, 8)
    first = person.annotate(ids[0], "dog")
    skip = person.skip(ids[1])
    second = person.annotate(ids[2], "dog")
    third = person.annotate(ids[2], "cat", ground_truth=True)
    found = {annotation.id: annotation for annotation in all_annotations(client, project, page_size=2)}
    assert set(found) == {first, skip, second, third}
    assert found[first].choices == {"class": ("dog",)}
    assert found[first].annotator is not None
    assert found[skip].was_cancelled
    assert found[third].ground_truth
    assert [found[number].task for number in (first, skip, second, third)] == [ids[0], ids[1], ids[2], ids[2]]
    assert {task.id for page in client.tasks(project, "image") for task in page if task.has_annotations} == set(ids[:3])
    assert [a.id for a in all_annotations(client, project, [ids[1], ids[5]])] == [skip]
    assert sorted(a.id for a in all_annotations(client, project, ids)) == sorted(found)
    person.delete_annotation(first)
    assert {a.id for a in all_annotations(client, project)} == {skip, second, third}


def test_annotations_that_come_with_an_import_or_from_predictions(client, person, project):
    result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]
    (imported,) = person.import_tasks(project, [{"data": {"image": "x"}, "annotations": [{"result": result}]}])
    (found,) = all_annotations(client, project)
    assert (found.task, found.choices) == (imported, {"class": ("cat",)})
    (other,) = add_tasks(person, project, 1)
    client.import_predictions(project, [{"task": other, "result": result, "score": 0.5, "model_version": "v"}])
    person._action(project, "predictions_to_annotations", [other])
    assert {a.task for a in all_annotations(client, project)} == {imported, other}


def test_the_project_and_its_counts(client, person, project):
    ids = add_tasks(person, project, 4)
    person.annotate(ids[0], "dog")
    person.skip(ids[1])
    info = client.project(project)
    assert (info.id, info.label_config, info.sampling, info.model_version) == (
        project,
        CONFIG,
        "Sequential sampling",
        "",
    )
    assert (info.task_count, info.annotation_count, info.skipped_count) == (4, 1, 1)
    client.set_sampling(project, "Uncertainty sampling")
    assert client.project(project).sampling == "Uncertainty sampling"


def test_what_is_gone_is_not_found(client, person, project):
    ids = add_tasks(person, project, 205)
    person.delete_tasks(project, ids[:1])
    assert client.existing_tasks(project, ids) == set(ids[1:])
    assert client.existing_tasks(project, []) == set()
    for ask in (client.project, lambda n: list(client.tasks(n, "image")), lambda n: list(client.annotations(n))):
        with pytest.raises(NotFoundInLabelStudio):
            ask(10**6)


def test_many_threads_share_a_client(client, person, project):
    add_tasks(person, project, 20)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: sum(map(len, client.tasks(project, "image", 7))), range(16)))
    assert counts == [20] * 16


# --- predictions


def test_import_switch_serve_and_delete(client, person, project):
    ids = add_tasks(person, project, 6)
    client.set_sampling(project, "Uncertainty sampling")
    publisher = Publisher(client, project, LABELS)
    scores = {task: 0.9 - 0.1 * place for place, task in enumerate(ids)}
    done = publisher.import_revision("neat-r000001", [Prediction(task, scores[task], "dog") for task in ids])
    assert done == Imported(6)
    publisher.switch("neat-r000001")
    assert client.project(project).model_version == "neat-r000001"
    assert person.next_task(project) == ids[-1]
    # it stays that annotator's until it is answered, whatever is published meanwhile
    person.annotate(ids[-1], "dog")
    assert client.prediction_count(project, "neat-r000001") == 6
    assert client.tasks_with_prediction(project, "neat-r000001", ids[2:4]) == set(ids[2:4])
    assert client.tasks_with_prediction(project, "neat-r000002", ids) == set()
    publisher.import_revision("neat-r000002", [Prediction(ids[0], 0.0, "cat")])
    publisher.switch("neat-r000002")
    assert person.next_task(project) == ids[0]
    assert publisher.delete_some(["neat-r000001"]) == "neat-r000001"
    assert client.prediction_count(project, "neat-r000001") == 0
    assert client.prediction_count(project, "neat-r000002") == 1
    assert client.project(project).model_version == "neat-r000002"


def test_what_label_studio_does_with_what_it_refuses(client, person, project):
    ids = add_tasks(person, project, 3)

    def prediction(task, score=0.5, choice="dog"):
        result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}]
        return {"task": task, "score": score, "model_version": "v", "result": result}

    assert client.import_predictions(project, [prediction(ids[0]), prediction(ids[1], score=1.5)]) == 1
    assert client.import_predictions(project, [prediction(ids[0]), prediction(ids[1], choice="wolf")]) == 1
    with pytest.raises(PredictionsRejected):
        client.import_predictions(project, [prediction(ids[2]), prediction(10**9)])
    assert client.tasks_with_prediction(project, "v", ids) == {ids[0]}
    with pytest.raises(LabelStudioError, match="model_version"):
        client.set_model_version(project, "never-imported")


def test_the_publisher_gets_everything_in_that_can_be(client, person, project):
    ids = add_tasks(person, project, 5)
    person.delete_tasks(project, ids[4:])
    given = [Prediction(ids[0], 0.1, "dog"), Prediction(ids[1], 0.2, "wolf"), Prediction(ids[2], 0.3)]
    done = Publisher(client, project, LABELS).import_revision("v1", [*given, Prediction(ids[4], 0.4, "dog")])
    assert done == Imported(3, (ids[4],))
    landed = {item["task"]: item for item in person.predictions(project)}
    assert len(person.predictions(project)) == 3
    assert [bool(landed[task]["result"]) for task in ids[:3]] == [True, False, False]


def test_a_large_version_is_taken_apart_and_small_ones_go_first(client, person, project):
    ids = add_tasks(person, project, 115)
    publisher = Publisher(client, project, LABELS)
    for name, tasks in (("large", ids), ("small", ids[:1]), ("new", ids[:1])):
        publisher.import_revision(name, [Prediction(task, 0.5) for task in tasks])
    assert publisher.delete_some(["large", "small"]) == "small"
    assert client.model_versions(project) == {"large": 115, "new": 1}
    assert publisher.delete_some(["large"]) is None
    assert client.model_versions(project) == {"large": 105, "new": 1}
    assert publisher.delete_some(["large"]) is None
    assert publisher.delete_some(["large"]) == "large"
    assert [item["model_version"] for item in person.predictions(project)] == ["new"]


# --- setting up


def test_a_webhook_gets_its_headers(client, person, project):
    url = "http://127.0.0.1:9/neat/webhook"
    secret = {"Authorization": "Basic bmVhdDpzZWNyZXQ="}
    # as Label Studio makes it when a backend is connected: without headers
    person.call("POST", "/api/webhooks/", {"project": project, "url": url})
    person.call("POST", "/api/webhooks/", {"project": project, "url": "http://127.0.0.1:9/other"})
    assert client.ensure_webhook(project, url, {}) == "present"
    # another host's webhook gets no credentials of ours, and Label Studio takes no URL whose host has no dot
    assert client.ensure_webhook(project, "http://neat:9090/neat/webhook", secret) == "refused"
    assert not any(hook["headers"] for hook in person.call("GET", f"/api/webhooks/?project={project}"))
    assert client.ensure_webhook(project, url, secret) == "repaired"
    assert client.ensure_webhook(project, url, secret) == "present"
    hooks = {hook["url"]: hook for hook in person.call("GET", f"/api/webhooks/?project={project}")}
    assert hooks[url]["headers"] == secret
    assert hooks["http://127.0.0.1:9/other"]["headers"] == {}
    person.call("PATCH", f"/api/webhooks/{hooks[url]['id']}/", {"is_active": False})
    assert client.ensure_webhook(project, url, secret) == "repaired"
    assert client.ensure_webhook(project, "http://127.0.0.1:9/third", secret) == "created"
    urls = [hook["url"] for hook in person.call("GET", f"/api/webhooks/?project={project}")]
    assert sorted(urls) == sorted([*hooks, "http://127.0.0.1:9/third"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "neat-backend.internal",
        "neat.svc.cluster.local",
        "ü.example",
        "a.xn--p1ai",
        "neat-backend",
        "neat_backend.internal",
        "neat.c0m",
        "127.1",
        "2130706433",
        "-a.example",
        "a..example",
        "a.b.",
    ],
)
def test_an_address_that_label_studio_takes_no_webhook_for_is_known(client, person, project, host):
    made = client.ensure_webhook(project, f"http://{host}:9/webhook", {})
    assert made == ("created" if takes_webhooks(f"http://{host}:9/webhook") else "refused")


# --- images


def fetcher(client: LabelStudioClient, max_bytes: int = 100_000) -> ImageFetcher:
    return ImageFetcher(client, max_bytes, 10_000, sleep=lambda seconds: None)


def test_an_upload(client, person, project, tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    (task,) = person.upload_images(project, [tmp_path / "a.png"])
    ((found,),) = client.tasks(project, "image")
    assert found.image.startswith("/data/upload/")
    assert fetcher(client).load(task, found.image).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ImageError, match="larger than 50 bytes"):
        fetcher(client, 50).fetch(task, found.image)


def test_a_local_file(client, person, project, label_studio):
    folder = label_studio.document_root / "pets"
    folder.mkdir()
    (folder / "a b.png").write_bytes(png("blue"))
    ref = "/data/local-files/?d=pets/a b.png"
    with pytest.raises(ImageError, match="404"):
        fetcher(client).fetch(1, ref)
    person.add_local_files(project, folder)
    assert fetcher(client).load(1, ref).getpixel((0, 0)) == (0, 0, 255)
    assert fetcher(client).load(1, label_studio.url + ref).getpixel((0, 0)) == (0, 0, 255)
    # Nothing outside of the document root, nor of the folder that is connected.
    for place in (label_studio.document_root.parent, label_studio.document_root):
        (place / "secret.png").write_bytes(png("black"))
    for path in (
        "../secret.png",
        "secret.png",
        "pets/../secret.png",
        "pets/../../secret.png",
        "pets/..%2f..%2fsecret.png",
        "%2e%2e/secret.png",
        "pets/%252e%252e/%252e%252e/secret.png",
        "pets\\..\\..\\secret.png",
        "//etc/passwd",
        "/etc/passwd",
        str(label_studio.document_root.parent / "secret.png"),
        "pets/%00",
        "",
    ):
        with pytest.raises(ImageError):
            fetcher(client).fetch(1, f"/data/local-files/?d={path}")


class Elsewhere:
    """Another server: images by http, and just enough of S3 for Label Studio to take it as a storage."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.redirect_to = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, dict(self.headers)))
                path = self.path.partition("?")[0]
                if path == "/redirect":
                    return self.answer(302, b"", location=outer.redirect_to)
                if path.endswith(".png"):
                    return self.answer(200, png("lime"), kind="image/png")
                if path in ("/bucket", "/bucket/"):
                    listing = b"<ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount><Contents><Key>a.png</Key>"
                    return self.answer(200, listing + b"<Size>1</Size></Contents></ListBucketResult>", kind="text/xml")
                return self.answer(503 if path == "/busy" else 404, b"")

            do_HEAD = do_GET

            def answer(self, status: int, body: bytes, kind: str = "text/plain", location: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    place = Elsewhere()
    yield place
    place.server.shutdown()
    place.server.server_close()


def test_an_image_on_another_server_never_sees_the_token(client, elsewhere, label_studio):
    assert decode(fetcher(client).fetch(1, elsewhere.url + "/a.png"), 100).getpixel((0, 0)) == (0, 255, 0)
    elsewhere.redirect_to = "/b.png"
    assert fetcher(client).load(1, elsewhere.url + "/redirect").size == (6, 4)
    for _, headers in elsewhere.requests:
        assert "authorization" not in {name.lower() for name in headers}
        assert label_studio.token not in str(headers)
    elsewhere.redirect_to = "file:///etc/hostname"
    with pytest.raises(ImageError):
        fetcher(client).fetch(1, elsewhere.url + "/redirect")
    elsewhere.redirect_to = elsewhere.url + "/redirect"
    with pytest.raises(ImageError, match="too often"):
        fetcher(client).fetch(1, elsewhere.url + "/redirect")
    with pytest.raises(ImageError) as caught:
        fetcher(client).fetch(1, elsewhere.url + "/busy")
    assert caught.value.transient
    assert sum(path == "/busy" for path, _ in elsewhere.requests) == 3
    with pytest.raises(ImageError) as caught:
        fetcher(client).fetch(1, elsewhere.url + "/gone")
    assert not caught.value.transient


@pytest.mark.parametrize("presigned", [True, False])
def test_a_cloud_file_goes_through_label_studio(client, person, project, elsewhere, presigned, label_studio):
    ((task,), ref) = person.import_tasks(project, [{"data": {"image": "s3://bucket/a.png"}}]), "s3://bucket/a.png"
    with pytest.raises(ImageError, match="connect that s3 storage"):
        fetcher(client).fetch(task, ref)
    storage = {
        "project": project,
        "bucket": "bucket",
        "s3_endpoint": elsewhere.url,
        "aws_access_key_id": "id",
        "aws_secret_access_key": "secret",
        "region_name": "us-east-1",
        "presign": presigned,
        "use_blob_urls": True,
    }
    person.call("POST", "/api/storages/s3/", storage)
    ((found,),) = client.tasks(project, "image")
    assert found.image == ref
    assert fetcher(client).load(task, ref).getpixel((0, 0)) == (0, 255, 0)
    assert label_studio.token not in str(elsewhere.requests)


def test_a_file_that_is_gone(client, tmp_path: Path):
    with pytest.raises(ImageError):
        fetcher(client).fetch(1, "/data/upload/1/gone.png")
