"""Why a task stands where it stands: the same numbers as the engine's, without the engine."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import BadLabelConfig, ImageError, UnknownProject, UnknownTask
from neat_backend.labelstudio import images
from neat_backend.models.grid import to_grid
from neat_backend.ranking import formulas, queues, scores
from neat_backend.records import Label, Ranked
from neat_backend.service import explanation
from neat_backend.service.service import Service
from neat_backend.store import insights, projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import NOTHING_TO_CHOOSE, WITHOUT_INVALID, FakeLabelStudio, label_config
from tests.living import PROJECT, Backend, FakeTraining, engine_of, label_studio_of, settle
from tests.waiting import HANGS

KEYS = [
    "project",
    "task",
    "state",
    "label",
    "rank",
    "pool",
    "priority",
    "inconsistency",
    "max_inconsistency",
    "candidate",
    "rule",
    "k",
    "known_neighbours",
    "predicted",
    "classifier",
    "known_chance",
    "queue",
    "place",
    "drawn",
    "balance",
    "classes",
    "invalid_votes",
    "invalid_labels",
    "neighbours",
    "near_duplicates",
    "reasons",
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_RETRY_AFTER_SECONDS", ())
    monkeypatch.setattr("neat_backend.worker.steps.query_rounds.TrainingProcess", FakeTraining)
    FakeTraining.running.clear()


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of()


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, k=3)) as made:
        yield made


@pytest.fixture
def live(server: FakeLabelStudio, backend: Backend) -> LiveProject:
    server.import_tasks(PROJECT, 30)
    live = backend.live()
    settle(live)
    return live


@pytest.fixture
def service(backend: Backend) -> Service:
    return Service(backend.settings, backend.database)


def annotate(live: LiveProject, backend: Backend, server: FakeLabelStudio, labels: dict[int, str | None]) -> None:
    for task, choice in labels.items():
        backend.deliver(server.annotate(task, choice))
    settle(live)


def train(live: LiveProject) -> None:
    while not FakeTraining.running:
        assert live.rounds.step()
    FakeTraining.running.pop().succeed()
    assert live.rounds.step()
    settle(live)


def check_against_the_engine(live: LiveProject, service: Service) -> None:
    """Every number of every task, as the engine has it."""
    engine = engine_of(live)
    labels, ranking = engine.labels(), engine.ranking()
    order = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))].tolist()
    for task in engine.tasks():
        reply = service.explain(PROJECT, task)
        assert list(reply) == KEYS
        near = engine.neighbours(task)
        assert [(one["task"], one["similarity"]) for one in reply["neighbours"]] == near
        for one in reply["neighbours"]:
            assert Label(one["task"], one["label"], one["invalid"]) == labels[one["task"]]
        codes = [-1 if labels[t].invalid else engine.classes.index(labels[t].choice or "") for t, _ in near]
        row = np.array([codes + [scores.MISSING] * (engine.k - len(codes))])
        chances = [one["probability"] for one in reply["classes"]]
        given = None if None in chances else np.array([chances])
        # Probabilities are float32, and each BLAS rounds a product of one row and of many in its own way.
        expected = scores.inconsistency(row, given, len(engine.classes))[0]
        assert reply["inconsistency"] == pytest.approx(expected, abs=1e-6)
        assert reply["known_neighbours"] == scores.known_neighbours(row)[0]
        assert reply["candidate"] == scores.candidates(row, engine.rule)[0]
        assert [one["votes"] for one in reply["classes"]] == [codes.count(c) for c in range(len(engine.classes))]
        assert reply["invalid_votes"] == codes.count(-1)
        assert reply["max_inconsistency"] == pytest.approx(scores.max_inconsistency(engine.k, len(engine.classes)))
        assert reply["pool"] == engine.counts().unlabelled
        if task in labels:
            assert (reply["rank"], reply["priority"]) == (None, None)
            assert reply["state"] == ("invalid" if labels[task].invalid else "labelled")
            assert reply["label"] == labels[task].choice
        else:
            assert reply["rank"] == order.index(task)
            (ranked,) = engine.ranked([task])
            assert reply["predicted"] == ranked.predicted
            assert (reply["priority"], reply["inconsistency"]) == (ranked.priority, ranked.inconsistency)
            assert (reply["queue"], reply["place"], reply["drawn"]) == (ranked.queue, ranked.place, ranked.drawn)
            assert ranked.drawn == any("drawn at random, as 5% of the tasks" in reason for reason in reply["reasons"])
            assert reply["known_chance"] == ranked.known_chance
            check_its_balance(live, reply)
        assert not any("in a moment" in reason for reason in reply["reasons"])


def check_its_balance(live: LiveProject, reply: dict[str, Any]) -> None:
    """The formula's parts are the engine's, and make its priority."""
    engine, balance = engine_of(live), reply["balance"]
    assert engine is not None
    if not engine.balance or reply["state"] != "unlabelled" or reply["drawn"]:
        assert balance is None
        return
    counts, quality = engine.queue_labels(), engine.standing([reply["task"]])[0][0]
    queue = len(engine.classes) if balance["spread"] else engine.classes.index(reply["queue"])
    assert balance["labels"] == counts[queue]
    assert balance["quality"] == pytest.approx(quality, abs=1e-7)
    by_hand = math.sqrt(balance["quality"]) * balance["weight"]
    assert by_hand == pytest.approx(reply["priority"], abs=1e-4)
    assert any(f"= {reply['priority']:.4f}." in reason for reason in reply["reasons"])


def test_before_any_label(live: LiveProject, service: Service) -> None:
    check_against_the_engine(live, service)
    reply = service.explain(PROJECT, 5)
    assert (reply["state"], reply["label"], reply["predicted"], reply["neighbours"]) == ("unlabelled", None, None, [])
    assert [one["probability"] for one in reply["classes"]] == [None, None]
    assert any("Nothing else is labelled yet" in reason for reason in reply["reasons"])


def test_with_fewer_labels_than_neighbours(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {3: "dog", 4: "invalid"})
    check_against_the_engine(live, service)
    assert any("Only 2 of the 3" in reason for reason in service.explain(PROJECT, 5)["reasons"])


def test_every_number_is_the_engines_before_and_after_a_round(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    choices = ("dog", "cat", "dog", "invalid", "cat", "dog", "dog", None)
    annotate(live, backend, server, dict(zip(range(2, 26, 3), choices, strict=True)))
    check_against_the_engine(live, service)
    train(live)
    check_against_the_engine(live, service)
    reply = service.explain(PROJECT, 1)
    assert sum(one["probability"] for one in reply["classes"]) == pytest.approx(1)
    assert any("The linear classifier says" in reason for reason in reply["reasons"])
    assert service.explain(PROJECT, 23)["state"] == "skipped"  # the None above


def test_after_a_class_has_gone_and_another_come(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {2: "dog", 5: "cat", 9: "dog", 12: "cat", 20: "invalid"})
    train(live)
    backend.deliver(server.change_project(PROJECT, label_config=label_config("owl", "dog", "invalid")))
    settle(live)
    check_against_the_engine(live, service)
    assert [one["name"] for one in service.explain(PROJECT, 1)["classes"]] == ["owl", "dog"]


def test_a_task_that_waits_for_a_class_is_told_with_the_formula_that_gives_its_priority(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {2: "dog", 5: "cat", 8: "dog", 11: "dog", 14: "invalid"})
    rows = service.ranking(PROJECT)
    reply = service.explain(PROJECT, rows[3]["task"])
    said, balance = "\n".join(reply["reasons"]), reply["balance"]
    others = f"{reply['place']} of them come" if reply["place"] > 1 else "1 of them comes"
    others = f"{others} before it" if reply["place"] else "it is the first of them"
    assert f"waits with the tasks that are likeliest to be “{reply['queue']}”: {others}." in said
    has = {"dog": 3, "cat": 1}[reply["queue"]]
    assert f"“{reply['queue']}” has {has} label" in said
    assert f"= (1 + 1) / (1 + {has} + {reply['place']})" in said
    assert f"{balance['quality']:.3f} = {reply['known_chance']:.3f} · " in said
    assert (balance["least"], balance["least_of"]) == (1, "cat")
    assert {one["name"]: one["labels"] for one in reply["classes"]} == {"dog": 3, "cat": 1}
    assert reply["invalid_labels"] == 1


def test_a_task_that_is_to_find_a_class_is_told_so(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {2: "dog", 8: "dog"})
    spread = [row for row in service.ranking(PROJECT) if row["queue"] is None]
    assert spread
    reply = service.explain(PROJECT, spread[0]["task"])
    assert any(
        "spread over the pool, to find the classes that have no label yet (“cat”)" in one for one in reply["reasons"]
    )
    assert reply["balance"]["spread"]
    annotate(live, backend, server, {5: "cat"})
    later = service.explain(PROJECT, spread[0]["task"])
    assert later["queue"] is not None
    assert not any("spread over the pool" in one for one in later["reasons"])


@pytest.mark.parametrize(
    "fields", [{"balance": False}, {"rerank": "round", "classifier": "resnet18"}], ids=["without", "paper"]
)
def test_without_balance_the_candidates_are_told_and_no_queue(
    fields: dict[str, Any], server: FakeLabelStudio, tmp_path: Path
) -> None:
    backend = Backend(tmp_path, server, k=3, **fields)
    server.import_tasks(PROJECT, 20)
    live, service = backend.live(), Service(backend.settings, backend.database)
    annotate(live, backend, server, {2: "dog", 5: "invalid", 9: "dog", 12: "cat", 15: "invalid"})
    for row in service.ranking(PROJECT):
        reply = service.explain(PROJECT, row["task"])
        assert (reply["balance"], reply["queue"]) == (None, None)
        held = "It is held to be" if reply["candidate"] else "It is not held to be"
        assert any(one.startswith(held) for one in reply["reasons"])
        assert not any("waits with" in one or "spread over" in one for one in reply["reasons"])
    backend.close()


def test_probabilities_are_those_of_the_classifier_in_force(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, k=3, classifier="resnet18")
    server.import_tasks(PROJECT, 20)
    live, service = backend.live(), Service(backend.settings, backend.database)
    annotate(live, backend, server, {2: "dog", 5: "cat", 9: "dog", 12: "cat", 15: "invalid"})
    assert service.explain(PROJECT, 1)["classes"][0]["probability"] is None, "the linear one has a head by now"
    train(live)
    check_against_the_engine(live, service)
    reply = service.explain(PROJECT, 1)
    assert reply["classifier"] == "resnet18"
    assert any(one.startswith("The classifier says") for one in reply["reasons"])
    backend.close()


def test_snapshots_of_another_version_are_as_good_as_none(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {2: "dog", 5: "cat", 9: "dog", 15: "invalid"})
    assert service.explain(PROJECT, 1)["classes"][0]["probability"] is not None
    arrays = ProjectArrays(backend.settings.data_dir, PROJECT)
    arrays.write_snapshot("linear", {"is_there": np.array(True), "slopes": np.zeros(3)})
    arrays.write_snapshot("prequential", {"correct": np.zeros(3)})
    reply = service.explain(PROJECT, 1)
    assert reply["classes"][0]["probability"] is None
    assert service.status(PROJECT)["classifier"]["in_force"] == ""


def test_with_the_majority_rule(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, k=3, known_rule="majority")
    server.import_tasks(PROJECT, 20)
    live, service = backend.live(), Service(backend.settings, backend.database)
    annotate(live, backend, server, {2: "dog", 5: "invalid", 9: "dog", 12: "cat", 15: "invalid"})
    check_against_the_engine(live, service)
    assert service.explain(PROJECT, 1)["rule"] == "majority"
    backend.close()


def test_a_label_whose_neighbours_say_otherwise_is_worth_a_second_look(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, k=2)
    server.import_tasks(PROJECT, 8)
    for task in (1, 2, 3):  # the same picture three times
        server.files[f"/data/upload/{task}.png"] = server.files["/data/upload/4.png"]
    live, service = backend.live(), Service(backend.settings, backend.database)
    annotate(live, backend, server, {1: "dog", 2: "dog", 3: "cat"})
    assert any("second look" in reason for reason in service.explain(PROJECT, 3)["reasons"])
    assert not any("second look" in reason for reason in service.explain(PROJECT, 1)["reasons"])
    backend.close()


def test_a_failed_image_with_its_reason_and_the_remedy(
    backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    server.import_tasks(PROJECT, 6, annotated=["dog"])
    server.files["/data/upload/3.png"] = ImageError("Label Studio answered 404 for the image")
    settle(backend.live())
    reply = service.explain(PROJECT, 3)
    assert list(reply) == KEYS
    assert (reply["state"], reply["rank"], reply["priority"], reply["inconsistency"]) == ("failed", None, None, None)
    (reason,) = reply["reasons"]
    assert "answered 404" in reason
    assert f"neat-backend retry-images {PROJECT}" in reason


def test_an_image_that_is_not_encoded_yet(live: LiveProject, backend: Backend, server: FakeLabelStudio) -> None:
    backend.deliver(server.import_tasks(PROJECT, 1))
    assert live.apply.step()
    service = Service(backend.settings, backend.database)
    reply = service.explain(PROJECT, 31)
    assert (reply["state"], reply["rank"], reply["neighbours"], reply["candidate"]) == ("pending", None, [], False)
    assert any("not been encoded yet" in reason for reason in reply["reasons"])


def test_labels_that_are_newer_than_the_order_are_told(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {2: "dog", 5: "cat", 9: "dog"})
    backend.deliver(server.annotate(11, "invalid"))
    backend.deliver(server.change_annotation(next(iter(server.projects[PROJECT].annotations)), "cat"))
    assert live.apply.step()  # the store has them, what is published has not
    reply = [service.explain(PROJECT, task) for task in (1, 3, 4, 6, 7)]
    assert any("in a moment" in reason for one in reply for reason in one["reasons"])


def test_another_strategy_is_named(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, k=3, strategy="random")
    server.import_tasks(PROJECT, 8)
    live, service = backend.live(), Service(backend.settings, backend.database)
    annotate(live, backend, server, {2: "dog"})
    live.plan.step()
    live.publish.step()
    (first, *_) = service.ranking(PROJECT)
    reply = service.explain(PROJECT, first["task"])
    assert (reply["rank"], reply["priority"]) == (0, first["priority"])
    assert any("strategy random" in reason for reason in reply["reasons"])
    backend.close()


def test_ranks_are_those_of_the_ranking(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    annotate(live, backend, server, {2: "dog", 5: "cat", 9: "dog", 12: "cat", 20: "invalid"})
    for row in service.ranking(PROJECT):
        reply = service.explain(PROJECT, row["task"])
        vote, votes = row.pop("vote"), row.pop("votes")
        assert {name: reply[name] for name in row} == row
        by_class = {each["name"]: each["votes"] for each in reply["classes"]}
        if vote is not None:  # the head's tasks
            assert by_class[vote] == votes == max(by_class.values())


@pytest.mark.parametrize("task", [0, -1, 999, 2**63, 10**30])
def test_an_unknown_task_is_told(live: LiveProject, service: Service, task: int) -> None:
    with pytest.raises(UnknownTask, match=f"has no task {task} here.*neat-backend sync {PROJECT}"):
        service.explain(PROJECT, task)


def test_an_unknown_project_is_told(live: LiveProject, service: Service) -> None:
    with pytest.raises(UnknownProject, match="project 404"):
        service.explain(404, 1)


def test_a_deleted_task_is_unknown(
    live: LiveProject, backend: Backend, server: FakeLabelStudio, service: Service
) -> None:
    backend.deliver(server.delete_tasks(4))
    settle(live)
    with pytest.raises(UnknownTask):
        service.explain(PROJECT, 4)


def test_a_label_config_that_cant_be_used_is_told(live: LiveProject, backend: Backend, service: Service) -> None:
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, label_config=NOTHING_TO_CHOOSE)
    with pytest.raises(BadLabelConfig):
        service.explain(PROJECT, 4)


def test_a_single_class_and_skips_that_are_invalid(server: FakeLabelStudio, tmp_path: Path) -> None:
    server.projects[PROJECT].label_config = WITHOUT_INVALID.replace('<Choice value="cat"/>', "")
    backend = Backend(tmp_path, server, k=3)
    server.import_tasks(PROJECT, 12)
    live, service = backend.live(), Service(backend.settings, backend.database)
    annotate(live, backend, server, {2: "dog", 5: None, 9: "dog"})
    check_against_the_engine(live, service)
    assert service.explain(PROJECT, 5)["state"] == "invalid"
    backend.close()


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=6),
    st.integers(0, 100),
    st.integers(0, 50),
    st.floats(0, 1),
    st.data(),
)
def test_the_balance_is_that_of_the_core(
    counts: list[int], invalid: int, place: int, quality: float, data: st.DataObject
) -> None:
    names = [f"class {at}" for at in range(len(counts))]
    unseen = not all(counts)
    at = data.draw(st.integers(0, len(counts) - 1 + unseen))
    labels = formulas.label_counts(np.array(counts), sum(counts) + invalid)
    priority = queues.priorities(np.array([quality]), np.array([at], np.int16), np.array([place]), labels)[0]
    limit = scores.max_inconsistency(10, len(counts))
    queue = names[at] if at < len(counts) else None
    task = Ranked(1, 0, priority, quality * limit, 3, True, None, known_chance=1.0, queue=queue, place=place)
    found = explanation.balanced(task, counts, invalid, names, 10)
    assert found is not None
    assert found.spread == (queue is None)
    assert found.labels == labels[at]
    assert found.quality == pytest.approx(quality, abs=1e-5)
    assert math.sqrt(found.quality) * found.weight == pytest.approx(priority, abs=1e-5)


def test_a_task_in_no_queue_though_every_class_is_seen_is_of_an_earlier_order() -> None:
    task = Ranked(1, 0, 0.5, 1.0, 3, True, "dog", place=2)
    assert explanation.balanced(task, [3, 2], 0, ["dog", "cat"], 3) is None


def test_the_nearest_are_those_of_a_search_through_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = to_grid(rng.normal(size=(300, 16)))
    features[100:150] = features[:50]  # equals: the smaller id comes first
    ids = np.sort(rng.choice(10_000, 300, replace=False))
    arrays = ProjectArrays(tmp_path, 1)
    for start in range(0, 300, 70):  # in several files, some values replaced by later ones
        part = slice(max(start - 10, 0), start + 70)
        arrays.append("features/x", ids[part], ids[part] + 1, features[part])
    labelled = [(Label(int(task), "dog"), int(task) + (2 if task == ids[7] else 1)) for task in ids[::2]]
    found = explanation.nearest(arrays, "features/x", features[1], labelled, 20)
    similar = (features[::2].astype(np.float64) @ features[1].astype(np.float64)).astype(np.float32)
    order = np.lexsort((ids[::2], -similar))[:20]
    assert [one.task for one in found] == ids[::2][order].tolist()
    assert [one.similarity for one in found] == similar[order].tolist()
    changed = [(label, key + 1) for label, key in labelled]  # other images than the features were made from
    assert explanation.nearest(arrays, "features/x", features[1], changed, 20) == []


def test_explaining_loads_nothing_heavy_and_little_memory(
    live: LiveProject, backend: Backend, server: FakeLabelStudio
) -> None:
    annotate(live, backend, server, {2: "dog", 5: "cat", 9: "dog"})
    code = f"""
import sys
from pathlib import Path
from neat_backend.settings import Settings
from neat_backend.web.app import create_app
app = create_app(Settings.from_env({{}}, data_dir=Path({str(backend.settings.data_dir)!r}), k=3))
answer = app.test_client().get("/api/projects/{PROJECT}/tasks/1/explanation")
assert answer.status_code == 200 and len(answer.json["neighbours"]) == 3, answer.json
assert not {{"torch", "numba", "faiss", "scipy"}} & set(sys.modules)
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 1024  # KiB, at the most that it ever was


def test_a_repeat_of_a_labelled_task_is_told_and_shows_its_group(server: FakeLabelStudio, tmp_path: Path) -> None:
    server.import_tasks(PROJECT, 6)
    with closing(Backend(tmp_path, server, k=2, skip_duplicates=True)) as backend:
        live, service = backend.live(), Service(backend.settings, backend.database)
        settle(live)
        insights.write_duplicates(
            live.context.arrays, insights.Duplicates(np.array([2, 5]), np.array([2, 2]), "features/fake", 0.95)
        )
        live.duplicates.load()
        annotate(live, backend, server, {2: "dog"})
        repeat, other = service.explain(PROJECT, 5), service.explain(PROJECT, 1)
    assert (repeat["rank"], repeat["pool"], repeat["near_duplicates"], repeat["balance"]) == (4, 5, [2], None)
    assert any("near-duplicate" in said for said in repeat["reasons"])
    assert other["near_duplicates"] == []
    assert not any("near-duplicate" in said for said in other["reasons"])
