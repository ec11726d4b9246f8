"""What setting a project up asks of Label Studio: a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.demo.ports import free_port
from neat_backend.errors import LabelStudioError
from neat_backend.labelstudio.organizer import Organizer
from neat_backend.settings import Settings
from neat_backend.setup import connecting
from tests.labelstudio.server import CONFIG
from tests.labelstudio.test_connections import Heard


@pytest.fixture
def organizer(label_studio: LabelStudioServer) -> Iterator[Organizer]:
    made = Organizer(label_studio.url, label_studio.token)
    yield made
    made.close()


@pytest.fixture
def project(person: Annotator) -> Iterator[int]:
    made = person.create_project("pictures to connect", CONFIG)
    yield made
    person.delete_project(made)


def test_projects_are_known_by_their_titles(organizer: Organizer, project: int) -> None:
    assert organizer.project_titles()[project] == "pictures to connect"


def test_a_backend_is_connected_once_and_mended_when_it_does_not_answer(organizer: Organizer, project: int) -> None:
    heard = Heard()
    settings = Settings.from_env({}, configure_project=False)
    try:
        made = connecting.connect(organizer, settings, project, heard.url)
        again = connecting.connect(organizer, settings, project, heard.url)
    finally:
        heard.close()
    assert (made.is_new, again.is_new, again.connection) == (True, False, made.connection)
    assert [backend.url for backend in organizer.ml_backends(project)] == [heard.url]
    with pytest.raises(LabelStudioError, match=r"is not connected: no backend answers at .*neat-backend serve"):
        connecting.connect(organizer, settings, project, heard.url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:{port}", "no backend answers at http://127.0.0.1:.*neat-backend serve"),
        ("http://no.such.host.invalid:{port}", "no backend answers at|does not find the host no.such.host.invalid"),
    ],
)
def test_a_backend_that_does_not_answer_is_refused_in_our_words(
    organizer: Organizer, project: int, url: str, said: str
) -> None:
    with pytest.raises(LabelStudioError, match=rf"'pictures to connect' is not connected: .*({said})"):
        connecting.connect(organizer, Settings.from_env({}), project, url.format(port=free_port()))
    assert organizer.ml_backends(project) == []
