"""What the labelling page offers, ticks and stores for unusual choices is what is read, and what is published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neat_backend.demo.backend import is_ranked
from neat_backend.demo.label_studio import Annotator, LabelStudioServer, choices_result
from neat_backend.errors import LabelStudioError
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.label_config import LabelConfig, parse, resolve
from neat_backend.labelstudio.publisher import Prediction, Publisher
from neat_backend.records import SEVERAL, Label
from tests.e2e.chromium import log_in
from tests.e2e.loop import Labelling, Standing, write_digits

VERSION = "neat-r000001"
# In one look, as the page is built anew while it loads; its own switches have no text.
TICKED = """() => {
    const boxes = [...document.querySelectorAll('label:has(input:checked)')];
    const texts = boxes.map(box => box.innerText.trim()).filter(text => text);
    return texts.length && texts;
}"""


def config(choices: str, attributes: str = "") -> str:
    return (
        f'<View><Image name="image" value="$image"/><Choices name="class" toName="image" {attributes}>{choices}'
        "</Choices></View>"
    )


TREE = (
    '<Choice value="even"><Choice value="two"/><Choice value="four" alias="4"/></Choice>'
    '<Choice value="left"><Choice value="nine"/></Choice><Choice value="ten "/>'
    '<Choice value="neither" invalid="true"/>'
)
NESTED = config(TREE, 'allowNested="true"')
HEADINGS = config(TREE)
BLANKS = config(
    '<Choice value="dog "/><Choice value="&#160;cat&#160;"/><Choice value="a\tb"/><Choice value="c&#9;"/>'
    '<Choice value="none" invalid="true"/>'
)


@pytest.fixture(scope="module")
def context(browser: Any, label_studio: LabelStudioServer) -> Iterator[Any]:
    """Somebody who is logged in."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    log_in(page, label_studio, "/projects")
    yield context
    context.close()


class Person:
    """A project with tasks, and somebody at its labelling page."""

    def __init__(self, context: Any, server: LabelStudioServer, annotator: Annotator, xml: str, folder: Path) -> None:
        self.client = LabelStudioClient(server.url, server.token)
        self.config: LabelConfig = parse(xml, ())
        self.project = annotator.create_project("unusual choices", xml)
        self.tasks = annotator.upload_images(self.project, [path for path, _ in write_digits(folder, 10)])
        self.page, self.url = context.new_page(), server.url

    def close(self) -> None:
        self.page.close()
        self.client.close()

    def publish(self, names: list[str]) -> None:
        """A prediction of each of the names, for the first tasks."""
        sent = [Prediction(task, 0.5, name) for task, name in zip(self.tasks, names, strict=False)]
        publisher = Publisher(self.client, self.project, self.config)
        assert publisher.import_revision(VERSION, sent).accepted == len(names)
        publisher.switch(VERSION)

    def open(self, task: int) -> None:
        self.page.goto(f"{self.url}/projects/{self.project}/data?task={task}")
        self.page.locator("input[type=radio], input[type=checkbox]").first.wait_for()
        self.page.wait_for_function("[...document.images].some(image => image.naturalWidth === 64)")

    def ticked(self) -> list[str]:
        """What is written beside the boxes with a tick, without the number of its key; waits for one."""
        texts = self.page.wait_for_function(TICKED).json_value()
        return [text.split("[")[0].strip() for text in texts]

    def click(self, text: str) -> None:
        self.page.locator("label", has_text=text).first.click()

    def submit(self) -> None:
        with self.page.expect_response(lambda response: "/annotations" in response.url and response.status == 201):
            self.page.get_by_test_id("bottombar-submit-button").click()

    def label(self, task: int) -> Label:
        """Of the task, by its annotations as they are read."""
        (answers,) = self.client.annotations(self.project, [task])
        return resolve(task, answers, self.config)


@pytest.fixture
def person(
    context: Any, label_studio: LabelStudioServer, annotator: Annotator, request: Any, tmp_path: Path
) -> Iterator[Person]:
    made = Person(context, label_studio, annotator, request.param, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("person", "shown"),
    [
        (NESTED, {"two": "two", "4": "four", "ten ": "ten"}),
        (HEADINGS, {"even": "even", "left": "left", "ten ": "ten"}),
        (BLANKS, {"dog ": "dog", "\xa0cat\xa0": "cat", "a b": "a b", "c\t": "c"}),
    ],
    ids=["nested", "headings", "blanks"],
    indirect=["person"],
)
def test_a_published_prediction_ticks_its_choice_and_the_answer_counts_as_it(
    person: Person, shown: dict[str, str]
) -> None:
    person.publish(list(shown))
    for task, (name, text) in zip(person.tasks, shown.items(), strict=False):
        person.open(task)
        assert person.ticked() == [text]
        person.submit()
        assert person.label(task) == Label(task, name)


@pytest.mark.parametrize("person", [NESTED], ids=["nested"], indirect=True)
@pytest.mark.parametrize(
    ("clicked", "label"),
    [
        ("two", Label(0, "two")),
        ("nine", Label(0, "nine")),
        ("left", Label(0, "nine")),
        ("ten", Label(0, "ten ")),
        ("neither", Label(0, invalid=True)),
        ("even", Label(0, set_aside=SEVERAL)),
    ],
)
def test_a_click_on_a_nested_choice_is_the_label_that_it_looks_like(person: Person, clicked: str, label: Label) -> None:
    task = person.tasks[0]
    person.open(task)
    person.click(clicked)
    person.submit()
    found = person.label(task)
    assert (found.choice, found.invalid, found.set_aside) == (label.choice, label.invalid, label.set_aside)


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (config('<Choice value="two"/>', 'value="$options"'), 'value="$options"'),
        (config('<Choice value="a" alias="x"/><Choice value="junk" alias="x" invalid="true"/>'), "'x'"),
        (config('<Choice value="a"/><Choice value="b" invalid="yes"/>'), 'invalid="yes"'),
        (
            '<View><Repeater on="$images" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$images[{{idx}}].url"/>'
            '<Choices name="c_{{idx}}" toName="page_{{idx}}"><Choice value="a"/></Choices></Repeater></View>',
            "Repeater",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_when_it_is_connected(
    annotator: Annotator, standing: Standing, xml: str, words: str
) -> None:
    project = annotator.create_project("cannot work", xml)
    with pytest.raises(LabelStudioError):
        annotator.connect_backend(project, standing.backend.url)
    status = standing.backend.status(project)
    assert status["state"] == "blocked"
    assert words in status["detail"]


def test_imported_answers_are_counted_or_said_not_to_be(
    annotator: Annotator, standing: Standing, context: Any, tmp_path: Path
) -> None:
    there = Labelling(annotator, tmp_path, 12, "imported answers")
    listed = annotator.call("GET", f"/api/tasks?project={there.project}&page_size=100&fields=task_only")["tasks"]
    people = [annotator.call("GET", "/api/current-user/whoami")["id"]]
    for name in ("second", "third"):
        person = {"email": f"{name}@example.com", "username": name, "password": "a pass-word"}
        people.append(annotator.call("POST", "/api/users/", person)["id"])
    odd = [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": "one"}}]
    answers: list[list[dict[str, Any]]] = [
        [
            {"completed_by": person, "result": choices_result(name)}
            for person, name in zip(people, ("one", "one", "two"), strict=True)
        ],
        [{"result": choices_result("zero") * 2}],
        [{"result": choices_result("zero ")}],
        [{"result": choices_result("zero ")}],
        [{"result": odd}],
    ]
    images = [task["data"] for task in listed]
    made = annotator.import_tasks(
        there.project, [{"data": data, "annotations": some} for data, some in zip(images, answers, strict=False)]
    )
    annotator.connect_backend(there.project, standing.backend.url)
    status = standing.backend.wait_until(there.project, is_ranked)
    said = (
        "3 annotated tasks have no label: 2 answered 'zero ', which is not in the label config; 1 with an answer that"
        " can't be read"
    )
    assert (status["labelled"]["known"], status["without_label"]["said"]) == (2, said)
    page = context.new_page()
    page.goto(f"{standing.backend.url}/projects/{there.project}")
    assert page.locator("#without-label").inner_text() == said
    page.goto(f"{standing.backend.url}/projects/{there.project}/tasks/{made[0]}")
    assert "“one”" in page.locator("#verdict").inner_text()
    page.close()
