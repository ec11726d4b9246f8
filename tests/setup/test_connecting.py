"""Connecting a project that Label Studio has: found by id or title, checked first, connected once."""

from __future__ import annotations

from typing import Any

import pytest

from neat_backend.errors import BadLabelConfig, BadRequest, LabelStudioError, LabelStudioRefused, SettingsError
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.settings import Settings
from neat_backend.setup import access, connecting
from neat_backend.setup.connecting import Connected, find_project
from tests.fake_label_studio import NOTHING_TO_CHOOSE, WITHOUT_INVALID, FakeLabelStudio

URL = "http://localhost:9090"
HEALTH_CHECK = (
    "Label Studio answered 400 (POST /api/ml/): {'non_field_errors': [\"Can't connect to ML backend"
    " http://localhost:9090, health check failed. Make sure it is up and your firewall is properly configured."
)


@pytest.fixture
def label_studio() -> FakeLabelStudio:
    """With project 7, which nobody has connected, and 8, which is connected."""
    made = FakeLabelStudio()
    made.add_project(7).ml_backends.clear()
    made.add_project(8).title = "Birds"
    made.import_tasks(7, 3)
    return made


def connect(label_studio: FakeLabelStudio, project: int = 7, url: str = URL, **settings: Any) -> Connected:
    return connecting.connect(label_studio, Settings.from_env({}, **settings), project, url)  # type: ignore[arg-type]


class TestFindProject:
    @pytest.mark.parametrize("wanted", ["8", "Birds", "birds"])
    def test_takes_an_id_or_a_title(self, label_studio: FakeLabelStudio, wanted: str) -> None:
        assert find_project(label_studio, wanted) == 8  # type: ignore[arg-type]

    def test_a_number_may_be_a_title(self, label_studio: FakeLabelStudio) -> None:
        label_studio.projects[8].title = "2026"
        assert find_project(label_studio, "2026") == 8  # type: ignore[arg-type]

    def test_the_title_as_it_is_written_comes_first(self, label_studio: FakeLabelStudio) -> None:
        label_studio.projects[7].title = "birds"
        assert find_project(label_studio, "birds") == 7  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match=r"several projects are called 'BIRDS': give the id .* 7, 8"):
            find_project(label_studio, "BIRDS")  # type: ignore[arg-type]

    def test_where_there_is_none_it_names_those_there_are(self, label_studio: FakeLabelStudio) -> None:
        with pytest.raises(BadRequest, match=r"no project 'Cats' .* it has 7 'animals', 8 'Birds'$"):
            find_project(label_studio, "Cats")  # type: ignore[arg-type]


class TestConnect:
    def test_connects_it_and_says_what_it_is(self, label_studio: FakeLabelStudio) -> None:
        made = connect(label_studio)
        assert made == Connected(
            project=7,
            title="animals",
            connection=made.connection,
            is_new=True,
            backend_url=URL,
            tasks=3,
            control="class",
            classes=("dog", "cat"),
            invalid=("invalid",),
            unread=(),
            sampling=UNCERTAINTY,
            has_tab=True,
        )
        assert [(one.id, one.url) for one in label_studio.projects[7].ml_backends] == [(made.connection, URL)]

    def test_gives_label_studio_the_backends_credentials(self, label_studio: FakeLabelStudio) -> None:
        connect(label_studio, basic_auth_user="ann", basic_auth_pass="secret")
        assert label_studio.called("connect_backend") == [("connect_backend", 7, URL, "ann", "secret")]

    @pytest.mark.parametrize("again", [URL, f"{URL}/", "http://127.0.0.1:9090"])
    def test_a_connected_project_stays_as_it_is(self, label_studio: FakeLabelStudio, again: str) -> None:
        first = connect(label_studio)
        label_studio.change_project(7, sampling="Sequential sampling")  # by somebody's own choice
        second = connect(label_studio, url=again)
        assert (second.is_new, second.connection, second.backend_url) == (False, first.connection, URL)
        assert second.sampling == "Sequential sampling"
        assert len(label_studio.called("connect_backend")) == 1
        assert label_studio.called("repair_backend") == []

    def test_a_connection_without_an_answer_is_mended(self, label_studio: FakeLabelStudio) -> None:
        present = label_studio.connect(7, URL, k=5)
        label_studio.unreachable.add(present.id)
        made = connect(label_studio, basic_auth_user="ann", basic_auth_pass="secret")
        assert not made.is_new
        assert label_studio.called("repair_backend") == [
            ("repair_backend", 7, present.id, URL, {"k": 5}, "ann", "secret"),
        ]

    def test_another_backend_of_the_project_is_none_of_ours(self, label_studio: FakeLabelStudio) -> None:
        label_studio.connect(7, "http://localhost:9091")
        assert connect(label_studio).is_new
        assert len(label_studio.projects[7].ml_backends) == 2

    def test_a_label_config_that_does_not_fit_is_named_and_nothing_made(self, label_studio: FakeLabelStudio) -> None:
        label_studio.projects[7].label_config = NOTHING_TO_CHOOSE
        with pytest.raises(BadLabelConfig, match=r"^project 7 'animals' can't be used: .*no Choices tag.*Settings →"):
            connect(label_studio)
        label_studio.projects[7].label_config = (
            '<View><Image name="photo" value="$image"/>'
            '<Choices name="seen" toName="photo" choice="multiple"><Choice value="dog"/></Choices></View>'
        )
        with pytest.raises(BadLabelConfig, match=r"'seen': it allows several choices"):
            connect(label_studio)
        assert label_studio.called("connect_backend") == []

    def test_says_what_of_the_label_config_is_not_read(self, label_studio: FakeLabelStudio) -> None:
        label_studio.projects[7].label_config = WITHOUT_INVALID.replace(
            "</View>",
            '<RectangleLabels name="boxes" toName="image"><Label value="eye"/></RectangleLabels>'
            '<TextArea name="neat_why" toName="image"/></View>',
        )
        made = connect(label_studio)
        assert made.unread == ("RectangleLabels 'boxes'",)
        assert made.invalid == ()

    def test_a_worker_that_is_away_is_not_waited_for_for_ever(
        self, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connecting, "CONFIGURED_SECONDS", 0.0)
        monkeypatch.setattr(label_studio, "tabs", lambda project: [])
        assert not connect(label_studio).has_tab

    def test_who_configures_projects_alone_is_not_waited_for(self, label_studio: FakeLabelStudio) -> None:
        def wait() -> None:
            raise AssertionError("it waits")

        settings = Settings.from_env({}, configure_project=False)
        connecting.connect(label_studio, settings, 7, URL, wait)  # type: ignore[arg-type]


class TestRefused:
    """Label Studio's words, as the real one says them, and ours."""

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("URL resolves to a reserved network address (block: 127.0.0.0/8)", "ML_BLOCK_LOCAL_IP=false"),
            ("Can't resolve hostname neat.internal", "does not find the host localhost; give --url"),
            ("Able to connect to ML Server, but authentication parameters were either not", "which are not set"),
            (HEALTH_CHECK, r"no backend answers at http://localhost:9090; start it with `neat-backend serve`"),
            ("but it doesn't look like a valid ML backend. Reason: 400", "refuses the project; its log says why"),
        ],
    )
    def test_is_said_with_its_remedy(
        self, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
    ) -> None:
        monkeypatch.setattr(connecting, "is_up", lambda url: False)
        label_studio.fail_after["connect_backend"] = (0, LabelStudioError(words))
        with pytest.raises(LabelStudioError, match=rf"^project 7 'animals' is not connected: .*{expected}"):
            connect(label_studio)

    def test_a_backend_that_answers_here_needs_another_address(
        self, label_studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connecting, "is_up", lambda url: True)
        label_studio.fail_after["connect_backend"] = (0, LabelStudioError(HEALTH_CHECK))
        with pytest.raises(LabelStudioError, match=r"does not reach the backend at .*, which answers from here.*--url"):
            connect(label_studio)

    def test_what_has_another_reason_is_said_as_it_is(self, label_studio: FakeLabelStudio) -> None:
        label_studio.fail_after["connect_backend"] = (0, LabelStudioRefused("no rights"))
        with pytest.raises(LabelStudioRefused, match=r"^no rights$"):
            connect(label_studio)


class TestAccess:
    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({}, "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY must be set"),
            ({"label_studio_url": "http://localhost:8080"}, "LABEL_STUDIO_API_KEY must be set"),
            ({"label_studio_api_key": "a key"}, "LABEL_STUDIO_URL must be set"),
        ],
    )
    def test_what_is_not_set_is_named(self, given: dict[str, str], named: str) -> None:
        with pytest.raises(SettingsError, match=rf"^{named}, in the environment or in \.env"):
            access.open_client(Settings.from_env({}, **given))

    @pytest.mark.parametrize("url", ["localhost:9090", "neat.internal", "http://", "ftp://neat.internal"])
    def test_what_is_no_address_is_named(self, url: str) -> None:
        with pytest.raises(SettingsError, match=r"^--url .*: give the backend's address with http:// or https://"):
            access.check_backend_url(url)

    @pytest.mark.parametrize("url", ["http://neat-backend:9090", "http://neat_backend.internal:9090"])
    def test_a_host_that_gets_no_webhooks_is_refused(self, url: str) -> None:
        with pytest.raises(SettingsError, match=rf"^--url {url}: .*no webhooks.*http://neat-backend\.internal:9090"):
            access.check_backend_url(url)

    @pytest.mark.parametrize("url", ["http://localhost:9090", "https://10.0.0.7", "http://neat-backend.internal:9090"])
    def test_others_are_taken(self, url: str) -> None:
        access.check_backend_url(url)
