"""Reasons that a prediction carries, through a real Label Studio."""

from __future__ import annotations

from neat_backend.demo.label_studio import Annotator
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.events import annotation_from_json
from neat_backend.labelstudio.label_config import parse, resolve
from neat_backend.labelstudio.publisher import Imported, Prediction, Publisher

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">'
    '<Choice value="dog"/><Choice value="cat"/><Choice value="invalid"/></Choices>'
    '<TextArea name="neat_why" toName="image" editable="false" maxSubmissions="0" rows="1"/></View>'
)


def test_label_studio_keeps_them_and_an_annotation_made_from_them_is_read_by_its_choice(
    client: LabelStudioClient, person: Annotator
) -> None:
    project = person.create_project("with reasons", CONFIG)
    ids = person.import_tasks(project, [{"data": {"image": f"/data/upload/{n}.png"}} for n in range(2)])
    config = parse(CONFIG, ("invalid",))
    sent = [Prediction(ids[0], 0.1, "dog", "because"), Prediction(ids[1], 0.2, None, "although")]
    assert Publisher(client, project, config).import_revision("v", sent) == Imported(2)
    kept = {one["task"]: one["result"] for one in person.predictions(project)}
    assert [one["value"] for one in kept[ids[0]]] == [{"choices": ["dog"]}, {"text": ["because"]}]
    assert [one["value"] for one in kept[ids[1]]] == [{"text": ["although"]}]
    person.call("POST", f"/api/tasks/{ids[0]}/annotations/", {"result": kept[ids[0]]})
    (answer,) = person.call("GET", f"/api/tasks/{ids[0]}/annotations/")
    assert resolve(ids[0], [annotation_from_json(answer)], config).choice == "dog"
    person.delete_project(project)
