from __future__ import annotations

import copy
import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import BadRequest
from neat_backend.labelstudio.events import (
    Setup,
    annotation_from_json,
    changes,
    image_reference,
    parse_predict,
    parse_setup,
    parse_webhook,
    pieces,
    task_from_json,
    timestamp,
)
from neat_backend.labelstudio.values import EPOCH
from neat_backend.records import RETRY_IMAGES, SYNC, Event

BODIES = {path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("webhooks/*.json")}
WEBHOOKS = sorted(name for name in BODIES if name.isupper() or name.startswith("ANNOTATION"))


def event(body):
    """As it comes out of the inbox: through JSON."""
    webhook = parse_webhook(body)
    assert webhook.known
    return Event(1, webhook.project, webhook.action, json.loads(json.dumps(webhook.payload)), EPOCH)


def changed(name):
    return changes(event(BODIES[name]), "image")


@pytest.mark.parametrize("name", WEBHOOKS)
def test_every_real_webhook_is_understood_and_trimmed(name):
    found = changes(event(BODIES[name]), "image")
    assert found.project is not None
    assert found.project.title == "probe"
    assert found.project.label_config.startswith("<View>")
    kept = json.dumps(parse_webhook(BODIES[name]).payload)
    assert len(kept) < 0.6 * len(json.dumps(BODIES[name]))
    assert "t0ken" not in kept


@pytest.mark.parametrize("name", WEBHOOKS)
def test_a_payload_that_is_trimmed_already_stays_as_it_is(name):
    once = parse_webhook(BODIES[name])
    again = parse_webhook({"action": once.action, **once.payload})
    assert again.payload == once.payload


def test_an_annotation():
    found = changed("ANNOTATION_CREATED")
    (annotation,) = found.annotations
    assert (annotation.id, annotation.task, annotation.annotator) == (1, 1, 1)
    assert annotation.choices == {"class": ("dog",)}
    assert not annotation.was_cancelled
    assert annotation.updated_at == datetime(2026, 11, 23, 7, 0, 56, 865213, tzinfo=timezone.utc)
    (task,) = found.tasks
    assert task.image == "/data/local-files/?d=0.png"
    # its annotations are in the event: nothing has to be read
    assert not task.has_annotations


def test_a_skip_is_an_annotation_that_was_cancelled():
    (annotation,) = changed("ANNOTATION_CREATED.skipped").annotations
    assert annotation.was_cancelled
    assert annotation.choices == {}


def test_bulk_annotations_come_as_lists_under_the_singular():
    found = changed("ANNOTATIONS_CREATED")
    assert [a.id for a in found.annotations] == [23, 24, 25, 26, 27, 28]
    assert [t.id for t in found.tasks] == [3, 4, 6]


def test_deletions_carry_ids_only():
    assert changed("ANNOTATIONS_DELETED").deleted_annotations == (1,)
    assert changed("TASKS_DELETED").deleted_tasks == (51,)


@pytest.mark.parametrize("shape", [{"annotation": {"id": 3}}, {"annotations": [{"id": 3}]}, {"annotations": [3]}])
def test_the_singular_deletion_is_understood_too(shape):
    body = {"action": "ANNOTATION_DELETED", "project": {"id": 1}, **shape}
    assert changes(event(body), "image").deleted_annotations == (3,)


def test_tasks_that_are_imported_with_annotations_are_marked():
    body = copy.deepcopy(BODIES["TASKS_CREATED"])
    body["tasks"][0]["total_annotations"] = 2
    body["tasks"][1]["cancelled_annotations"] = 1
    tasks = changes(event(body), "image").tasks
    assert [(task.id, task.has_annotations) for task in tasks] == [(51, True), (52, True), (53, False)]


def test_what_a_person_or_the_backend_itself_asks_for():
    assert changed("START_TRAINING").train
    for action, name in ((SYNC, "sync"), (RETRY_IMAGES, "retry_images")):
        found = changes(Event(1, 1, action, {}, EPOCH), "image")
        assert getattr(found, name)
        assert found.project is None


def test_actions_of_no_use_are_let_through():
    webhook = parse_webhook({"action": "LABEL_LINK_CREATED", "label_link": [{}], "project": {"id": 4}})
    assert (webhook.known, webhook.project) == (False, 4)
    assert parse_webhook({"action": "SOMETHING_NEW"}).project == 0


def edited(name, path, value):
    body = copy.deepcopy(BODIES[name])
    *parents, last = path
    place = body
    for part in parents:
        place = place[part]
    place[last] = value
    return body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], ""),
        ({}, "action"),
        ({"action": 3}, "action"),
        ({"action": "TASKS_CREATED"}, "tasks"),
        ({"action": "PROJECT_UPDATED"}, "project.id"),
        ({"action": "PROJECT_UPDATED", "project": {"id": True}}, "project.id"),
        (edited("ANNOTATION_CREATED", ["annotation", "task"], "1"), "annotation.task"),
        (edited("ANNOTATION_CREATED", ["annotation", "completed_by"], "me"), "annotation.completed_by"),
        (edited("ANNOTATION_CREATED", ["annotation", "was_cancelled"], "no"), "annotation.was_cancelled"),
        (edited("ANNOTATION_CREATED", ["annotation", "updated_at"], "yesterday"), "annotation.updated_at"),
        (edited("ANNOTATIONS_CREATED", ["annotation", 2, "id"], 0), "annotation[2].id"),
        (edited("TASKS_CREATED", ["tasks", 1, "data"], "x"), "tasks[1].data"),
        (edited("TASKS_DELETED", ["tasks", 0], {}), "tasks[0].id"),
        (edited("PROJECT_UPDATED", ["project", "label_config"], 3), "project.label_config"),
    ],
)
def test_a_bad_body_names_its_field(body, field):
    with pytest.raises(BadRequest) as caught:
        parse_webhook(body)
    assert caught.value.field == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


@given(st.data())
def test_whatever_is_in_a_body_it_is_understood_or_a_bad_request(data):
    name = data.draw(st.sampled_from(WEBHOOKS))
    path = data.draw(st.sampled_from([place for place in _places(BODIES[name]) if place]))
    body = edited(name, list(path), data.draw(JSON))
    try:
        webhook = parse_webhook(body)
    except BadRequest:
        return
    changes(Event(1, webhook.project, webhook.action, webhook.payload, EPOCH), "image")


def test_setup():
    found = parse_setup(BODIES["setup"])
    assert found.project == 1
    assert found.hostname == "http://localhost:8080"
    assert found.schema.startswith("<View>")
    assert found.extra_params == {}
    assert parse_setup({"project": 7}) == Setup(7, "", "", "", {})


@pytest.mark.parametrize(("given_params", "params"), [({"k": 5}, {"k": 5}), ('{"k": 5}', {"k": 5}), ("", {})])
def test_extra_params_are_json_or_text_of_json(given_params, params):
    assert parse_setup({"project": "7.12", "extra_params": given_params}).extra_params == params


@pytest.mark.parametrize("params", ["k=5", [1], "[1]", 3])
def test_extra_params_that_are_no_object_are_refused(params):
    with pytest.raises(BadRequest) as caught:
        parse_setup({"project": "7.12", "extra_params": params})
    assert caught.value.field == "extra_params"


def test_predict():
    found = parse_predict(BODIES["predict"])
    assert (found.project, found.tasks[0]["id"]) == (1, 27)
    bare = parse_predict({"tasks": [{"data": {"image": "a"}}]})
    assert (bare.project, bare.tasks[0]["id"]) == (0, None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "tasks"),
        ({"tasks": [1]}, "tasks[0]"),
        ({"tasks": [{}]}, "tasks[0].data"),
        ({"tasks": [{"id": "x", "data": {}}]}, "tasks[0].id"),
        ({"tasks": [], "project": "x"}, "project"),
    ],
)
def test_a_bad_predict_names_its_field(body, field):
    with pytest.raises(BadRequest) as caught:
        parse_predict(body)
    assert caught.value.field == field


def test_times():
    noon = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
    for text in ("2026-01-02T12:00:00Z", "2026-01-02T14:00:00+02:00", "2026-01-02T12:00:00", "2026-01-02T12:00:00.0Z"):
        assert timestamp(text, "t") == noon
        assert timestamp(text, "t").utcoffset().total_seconds() == 0
    assert timestamp(None, "t") == EPOCH
    for bad in (3, "0001-01-01T00:00:00+23:00"):
        with pytest.raises(BadRequest):
            timestamp(bad, "t")


def test_where_the_image_is():
    data = {"image": "a", "photo": {"urls": ["b", "c"]}, "x.y": "d", "n": 3, "blank": " "}
    assert image_reference(data, "image") == "a"
    assert image_reference(data, "photo.urls[1]") == "c"
    assert image_reference(data, "x.y") == "d"
    for key in ("none", "photo.urls[7]", "photo.urls[²]", f"photo.urls[{'9' * 5000}]", "image.url", "n.x"):
        assert image_reference(data, key) is None
    for key in ("n", "photo", "empty", "null"):
        assert image_reference({**data, "empty": "", "null": None}, key) == ""
    assert image_reference({"$undefined$": "e"}, "image") == "e"
    assert image_reference({"$undefined$": "e", "image": None}, "image") == "e"


def test_an_annotator_comes_as_a_number_as_an_object_or_not_at_all():
    for given_by, annotator in ((5, 5), ({"id": 5, "email": "x"}, 5), (None, None)):
        found = annotation_from_json({"id": 1, "task": 2, "completed_by": given_by, "result": []})
        assert found.annotator == annotator


def choices(*picked, **more):
    return {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": list(picked)}, **more}


@pytest.mark.parametrize(
    ("result", "read"),
    [
        ([choices(["pets", "dog"], ["cat"])], {"class": (("pets", "dog"), "cat")}),
        ([choices("dog "), choices("dog ")], {"class": ("dog ", "dog ")}),
        ([{"from_name": "class", "type": "textarea", "value": {"text": ["a"]}}], {}),
        (None, {}),
        # what can be imported, though no page of Label Studio stores it
        ({}, {"": None}),
        ("dog", {"": None}),
        (["dog", choices("cat")], {"": None, "class": ("cat",)}),
        ([choices("dog", from_name=None)], {"": None}),
        ([choices("dog", from_name=["class"])], {"": None}),
        ([choices(value={"choices": "dog"})], {"class": None}),
        ([choices(value={"choices": None})], {"class": None}),
        ([choices(value={"choices": {"dog": 1}})], {"class": None}),
        ([choices(value=None)], {"class": None}),
        ([choices(value=["dog"])], {"class": None}),
        ([choices(value={})], {"class": None}),
        ([{"from_name": "class", "type": "choices"}], {"class": None}),
        ([choices("dog", 1)], {"class": None}),
        ([choices(["pets", 1])], {"class": None}),
        ([choices([])], {"class": None}),
        ([choices([["pets", "dog"]])], {"class": None}),
        ([choices("dog"), choices(1)], {"class": None}),
        ([choices(1), choices("dog")], {"class": None}),
        ([choices("dog"), choices(1, from_name="other")], {"class": ("dog",), "other": None}),
    ],
)
def test_an_odd_result_is_unreadable_and_ends_nothing(result, read):
    annotation = {"id": 1, "task": 2, "result": result}
    assert annotation_from_json(annotation).choices == read
    parsed = changes(event({"action": "ANNOTATION_CREATED", "annotation": annotation, "project": {"id": 1}}), "image")
    assert parsed.annotations[0].choices == read


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda some: (
            st.lists(some)
            | st.dictionaries(
                st.sampled_from(["from_name", "type", "value", "choices", "x"]), some | st.just("choices")
            )
        ),
    )
)
def test_whatever_comes_as_a_result_is_read_alike_from_the_api_and_from_a_webhook(result):
    annotation = {"id": 1, "task": 2, "result": result}
    parsed = changes(event({"action": "ANNOTATION_CREATED", "annotation": annotation, "project": {"id": 1}}), "image")
    assert parsed.annotations[0].choices == annotation_from_json(annotation).choices


@pytest.mark.parametrize("data", [None, [], "x.png", 3, {"image": 5}, {"image": {"a": 1}}])
def test_a_task_with_odd_data_has_no_image(data):
    assert not task_from_json({"id": 1, "data": data}, "image").image


@pytest.mark.parametrize("key", ["photos[²]", "photos[" + "9" * 5000 + "]"])
def test_a_number_that_is_none_finds_no_image(key):
    assert image_reference({"photos": ["a.png"]}, key) is None


def test_a_task_without_an_image_is_still_a_task():
    task = task_from_json({"id": 1, "data": {"text": "x"}}, "image")
    assert (task.image, task.updated_at, task.has_annotations) == (None, EPOCH, False)


def test_the_web_process_gets_nothing_heavy_with_it():
    code = (
        "import sys; from neat_backend.labelstudio import events, label_config;"
        "print([m for m in ('httpx', 'label_studio_sdk', 'torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("action", "name"),
    [
        ("TASKS_DELETED", "tasks"),
        ("ANNOTATIONS_DELETED", "annotations"),
        ("TASKS_CREATED", "tasks"),
        ("ANNOTATIONS_CREATED", "annotation"),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 4, 5, 13])
def test_a_large_webhook_is_taken_in_in_pieces_that_say_the_same(action: str, name: str, count: int) -> None:
    body = copy.deepcopy(BODIES[action])
    body[name] = [{**body[name][0], "id": 100 + number} for number in range(count)]
    whole = parse_webhook(body).payload
    parts = pieces(whole, size=4)
    assert all(len(value) <= 4 for part in parts for value in part.values() if isinstance(value, list))
    for key, value in whole.items():
        parsed = [part[key] for part in parts if key in part]
        assert ([one for part in parsed for one in part] if isinstance(value, list) else parsed[0]) == value
    there = [changes(Event(1, 1, action, part, EPOCH), "image") for part in parts]
    at_once = changes(Event(1, 1, action, whole, EPOCH), "image")
    for field in ("tasks", "deleted_tasks", "annotations", "deleted_annotations"):
        assert [item for one in there for item in getattr(one, field)] == [*getattr(at_once, field)]
    assert there[0].project == at_once.project
