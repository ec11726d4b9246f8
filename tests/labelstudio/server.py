"""One real Label Studio for the whole test session, whichever folder's tests ask for it first."""

from __future__ import annotations

from pathlib import Path

from neat_backend.demo.label_studio import Annotator, LabelStudioServer, find_label_studio
from tests.conftest import need
from tests.waiting import HANGS

_running: list[LabelStudioServer] = []

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">'
    '<Choice value="dog"/><Choice value="cat"/><Choice value="invalid"/></Choices></View>'
)


def shared_label_studio(folder: Path) -> LabelStudioServer:
    """The session's server; started in `folder` at the first call. Skips the test where it isn't installed."""
    if find_label_studio() is None:
        need("labelstudio", "neither NEAT_LABEL_STUDIO nor .label-studio/venv names a Label Studio")
    if not _running:
        server = LabelStudioServer(folder, timeout_seconds=4 * HANGS)  # it takes half a minute of one core
        server.start()
        _running.append(server)
    return _running[0]


def stop_label_studio() -> None:
    while _running:
        _running.pop().stop()


def add_tasks(person: Annotator, project: int, count: int) -> list[int]:
    return person.import_tasks(project, [{"data": {"image": f"/data/upload/{n}.png"}} for n in range(count)])
