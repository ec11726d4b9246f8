"""A label that somebody gave is counted, or it is said that it isn't and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from neat_backend.doctor import WARNING
from neat_backend.doctor.findings import Examination, Finding
from neat_backend.doctor.project import examine_project
from neat_backend.ranking.labels import MOST_REASONS, LabelBook
from neat_backend.records import Label, WithoutLabel, in_words
from neat_backend.service.overview import NOTHING_LEFT
from neat_backend.service.service import Service
from neat_backend.store import projects
from neat_backend.web.app import create_app
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, label_studio_of, settle

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image"><Choice value="dog"/>'
    '<Choice value="cat "/><Choice value="invalid" invalid="true"/></Choices></View>'
)


def result(*choices: Any, **more: Any) -> dict[str, Any]:
    return {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": list(choices)}, **more}


ODD = [
    [result(value={"choices": "dog"})],
    [result(1)],
    [result(value=None)],
    [{"from_name": "class", "to_name": "image", "type": "choices"}],
    [result("dog", from_name=None)],
    ["dog"],
    {},
]
ANSWERS = [  # of tasks 1, 2, …
    [result("cat ")],
    [result("dog"), result("dog")],
    [result("dog", "dog")],
    [result("cat")],
    [result("cat")],
    [result("dog", "cat ")],
    [],
    *ODD,
]
SAID = (
    "11 annotated tasks have no label: 7 with an answer that can't be read; 2 answered 'cat', which is not in the"
    " label config; 1 without a choice; 1 with several choices"
)


@pytest.fixture
def server() -> FakeLabelStudio:
    made = label_studio_of(tasks=20)
    made.change_project(PROJECT, label_config=CONFIG)
    return made


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server)) as made:
        yield made


def labels(live: LiveProject) -> dict[int, str | None]:
    return {task: None if label.invalid else label.choice for task, label in engine_of(live).labels().items()}


def events(server: FakeLabelStudio, answers: Sequence[Any]) -> list[dict[str, Any]]:
    return [server.answer(task, answer) for task, answer in enumerate(answers, 1)]


def test_odd_annotations_end_no_reading_and_are_told_of_with_their_numbers(
    server: FakeLabelStudio, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    events(server, ANSWERS)
    live = backend.live()
    settle(live)
    assert labels(live) == {1: "cat ", 2: "dog", 3: "dog"}
    assert backend.project().state == "ready"
    described = [record.getMessage() for record in caplog.records if "can't be read" in record.getMessage()]
    assert [text.split(" has ")[0] for text in described] == [
        f"project {PROJECT}: annotation {server_id} of task {task}"
        for server_id, task in zip(range(28, 35), range(8, 15), strict=True)
    ]


@pytest.mark.parametrize("lost", [False, True])
def test_odd_annotations_that_come_while_it_runs_stop_nothing(
    server: FakeLabelStudio, backend: Backend, lost: bool
) -> None:
    """Told by webhooks, or found by the comparison."""
    live = backend.live()
    settle(live)
    for body in events(server, ANSWERS):
        if not lost:
            backend.deliver(body)
    if lost:
        live.bulk.syncing.compare()
    settle(live)
    assert labels(live) == {1: "cat ", 2: "dog", 3: "dog"}
    assert Service(backend.settings, backend.database).status(PROJECT)["queue"]["set_aside"] == 0


def test_what_is_no_label_is_counted_by_reason_and_shown_with_the_answers(
    server: FakeLabelStudio, backend: Backend
) -> None:
    events(server, ANSWERS)
    server.skip(20)
    live = backend.live()
    settle(live)
    status = Service(backend.settings, backend.database).status(PROJECT)
    said = SAID.replace("11", "12") + "; 1 skipped"
    assert status["without_label"]["said"] == said
    assert status["without_label"]["tasks"] == 12
    assert {"reason": "not in config", "answer": "cat", "tasks": 2} in status["without_label"]["reasons"]
    page = create_app(backend.settings, backend.database).test_client().get(f"/projects/{PROJECT}")
    assert said.replace("'", "&#39;") in page.text
    (finding,) = [one for one in examined(backend) if one.check == "labels"]
    assert (finding.state, finding.said) == (WARNING, said)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([result("cat")], "(answered 'cat', which is not in the label config)"),
        ([result("dog", "cat ")], "(with several choices)"),
        ([result(1)], "(with an answer that can't be read)"),
    ],
)
def test_a_tasks_page_says_why_its_answer_is_no_label(
    server: FakeLabelStudio, backend: Backend, answer: Any, words: str
) -> None:
    server.answer(1, answer)
    settle(backend.live())
    service = Service(backend.settings, backend.database)
    assert any(words in reason for reason in service.explain(PROJECT, 1)["reasons"])


def examined(backend: Backend) -> list[Finding]:
    examination = Examination()
    examination.findings.append(Finding("database", "ok", ""))
    examine_project(examination, backend.settings, backend.database, backend.project())
    return examination.findings


def test_a_skip_alone_is_told_and_no_warning(server: FakeLabelStudio, backend: Backend) -> None:
    server.skip(1)
    settle(backend.live())
    described = Service(backend.settings, backend.database).status(PROJECT)["without_label"]
    assert (described["said"], described["unexpected"]) == ("1 annotated task has no label: 1 skipped", False)
    assert [one.state for one in examined(backend) if one.check == "labels"] == ["ok"]


def test_a_label_that_comes_to_count_is_told_of_no_more(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live()
    settle(live)
    service = Service(backend.settings, backend.database)
    backend.deliver(server.answer(1, [result("cat")]))
    settle(live)
    assert service.status(PROJECT)["without_label"]["said"].endswith(
        "1 answered 'cat', which is not in the label config"
    )
    backend.deliver(server.change_project(PROJECT, label_config=CONFIG.replace('"cat "', '"cat"')))
    settle(live)
    assert service.status(PROJECT)["without_label"]["said"] == ""
    backend.deliver(server.change_project(PROJECT, label_config=CONFIG))  # the class is gone again
    settle(live)
    assert service.status(PROJECT)["without_label"]["reasons"] == [
        {"reason": "not in config", "answer": "cat", "tasks": 1}
    ]


def test_the_advice_leaves_out_what_has_been_answered(server: FakeLabelStudio, backend: Backend) -> None:
    for task in range(1, 6):
        server.answer(task, [result("dog")])
    for task in range(6, 21):
        server.answer(task, [result("cat")])
    live = backend.live()
    settle(live)
    while live.insight.step():
        pass
    insight = Service(backend.settings, backend.database).insight(PROJECT)
    assert (insight["labelled"], insight["pool"], insight["next_batch"]["size"]) == (5, 0, 0)
    assert insight["verdict"] == NOTHING_LEFT
    assert insight["advice"] == ["Every image that could be read is labelled, but for 15 whose answer is no label."]
    assert sum(insight["scores"]["candidates"]) + sum(insight["scores"]["others"]) == 0


def test_imported_ground_truths_vote_and_a_later_change_of_ones_own_counts(
    server: FakeLabelStudio, backend: Backend
) -> None:
    for person, choice in enumerate(["cat ", "cat ", "dog"], 1):
        server.answer(1, [result(choice)], annotator=person, ground_truth=True)
    live = backend.live()
    settle(live)
    assert labels(live) == {1: "cat "}
    backend.deliver(server.answer(1, [result("dog")], annotator=9))  # another annotator's answer
    settle(live)
    assert labels(live) == {1: "cat "}
    backend.deliver(server.answer(1, [result("dog")], annotator=1))
    settle(live)
    assert labels(live) == {1: "dog"}


def test_nested_choices_are_published_by_their_paths(server: FakeLabelStudio, backend: Backend) -> None:
    xml = (
        '<View><Image name="image" value="$image"/><Choices name="class" toName="image" allowNested="true">'
        '<Choice value="pets"><Choice value="dog"/><Choice value="cat"/></Choice></Choices></View>'
    )
    server.change_project(PROJECT, label_config=xml)
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, label_config=xml)
    for task, path in enumerate([["pets", "dog"], ["pets", "cat"]] * 4, 1):
        server.answer(task, [result(path)])
    backend.settings = backend.settings.model_copy(update={"prefill": "classifier"})
    live = backend.live()
    settle(live)
    assert set(labels(live).values()) == {"dog", "cat"}
    (version,) = server.projects[PROJECT].predictions.values()
    values = [one["value"] for found in version.values() for one in found[0]["result"]]
    assert values
    assert all(value["choices"] == [["pets", value["class"]["choices"][0]]] for value in values)


def test_so_many_answers_that_they_are_not_told_apart_are_counted_all_the_same() -> None:
    book = LabelBook()
    for task in range(MOST_REASONS + 50):
        book.note(Label(task, set_aside="not in config", answer=f"{task:04d}"))
    found = book.reasons()
    assert sum(one.tasks for one in found) == MOST_REASONS + 50
    assert found[0] == WithoutLabel("not in config", "", 50)
    assert in_words(found).startswith("150 annotated tasks have no label: 50 with other answers that are not in")
    for task in range(MOST_REASONS + 50):
        book.note(Label(task, "dog"))
    assert (book.reasons(), book.without_label, in_words(())) == ((), {}, "")
