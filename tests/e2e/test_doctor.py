"""`neat-backend doctor` on a real Label Studio: a healthy set-up, and the ways in which set-ups are broken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neat_backend import doctor
from neat_backend.cli import app
from neat_backend.demo.backend import Backend, is_ranked
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.demo.ports import free_port
from neat_backend.doctor import FAILED, OK, SKIPPED, WARNING, Finding, examine, exit_code
from neat_backend.settings import Settings
from tests.e2e import doctor_page
from tests.e2e.loop import SETTINGS, Labelling, make_backend

MORE = {"NEAT_RECONCILE_SECONDS": "3600"}  # so that the worker doesn't mend what we break


@dataclass
class SetUp:
    backend: Backend
    labelling: Labelling
    server: LabelStudioServer
    env: dict[str, str]

    @property
    def project(self) -> int:
        return self.labelling.project

    def diagnose(self, page: str = "", **changed: str) -> dict[str, Finding]:
        """What the command finds, and prints. page: the title that its output has on the page about it."""
        found: list[Finding] = []

        def noted(*arguments: object, **named: object) -> list[Finding]:
            found.extend(examine(*arguments, **named))  # type: ignore[arg-type]
            return found

        env = {name: None for name in os.environ if name in Settings.variables()} | {**self.env, **changed}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(doctor, "examine", noted)
            done = CliRunner().invoke(app, ["doctor"], env=env)
        assert done.exit_code == exit_code(found), done.output
        assert all(one.remedy and "\n" not in one.remedy for one in found if one.state in (FAILED, WARNING))
        assert not any(secret in done.output for secret in (self.server.token, SETTINGS["BASIC_AUTH_PASS"]))
        if page:
            doctor_page.check(page, done.stdout, done.exit_code, self.names)
        return {one.check: one for one in found}

    @property
    def names(self) -> dict[str, str]:
        """What the page calls otherwise: the temporary folder, and numbers that another run would give otherwise."""
        return {
            re.escape(str(Path(self.env["NEAT_DATA_DIR"]).parent)): "/srv/neat",
            rf"\bproject {self.project}\b": "project 1",
            rf"(?<=projects: ){self.project}\b": "1",
            rf"(?<=sync ){self.project}\b": "1",
            rf"(?<=retry-images ){self.project}\b": "1",
            rf"\btask {min(self.labelling.truth)}\b": "task 1",
        }


@pytest.fixture(scope="module")
def there(
    label_studio: LabelStudioServer, annotator: Annotator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SetUp]:
    folder = tmp_path_factory.mktemp("doctor")
    place = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "NEAT_DATA_DIR": str(folder / "data"),
    }
    backend = make_backend(label_studio, folder, **MORE)
    backend.start()
    labelling = Labelling(annotator, folder / "images", 8, "for the doctor")
    annotator.connect_backend(labelling.project, backend.url, user="neat", password=SETTINGS["BASIC_AUTH_PASS"])
    backend.wait_until(labelling.project, is_ranked)
    yield SetUp(backend, labelling, label_studio, {**SETTINGS, **MORE, **place})
    if backend.is_running:
        backend.stop()


def states(found: dict[str, Finding], *wanted: str) -> set[str]:
    return {name for name, finding in found.items() if finding.state in wanted}


def test_a_healthy_set_up_passes_every_check_and_stays_as_it_was(there: SetUp) -> None:
    address = f"/api/projects/{there.project}/"
    before = there.labelling.annotator.call("GET", address)
    found = there.diagnose("Healthy")
    assert {one.state for one in found.values()} == {OK}, found
    assert "legacy token of" in found["token"].said
    assert "in the inbox" in found["webhook arrives"].said
    assert there.labelling.annotator.call("GET", address) == before


def test_the_backend_says_at_its_start_where_it_is_and_who_answers_at_label_studios_address(there: SetUp) -> None:
    log, url = there.backend.log_file.read_text(), there.env["LABEL_STUDIO_URL"]
    assert f"listening on {there.backend.url}, for Label Studio at {url};" in log
    assert re.search(rf"Label Studio at {re.escape(url)}: version [\d.]+, legacy token of \S+@", log)


def test_the_page_shows_no_output_that_is_not_held_to_the_command() -> None:
    source = Path(__file__).read_text()
    assert [title for title in doctor_page.titles() if f'"{title}"' not in source] == []
    assert len(doctor_page.titles()) >= 6


def test_a_wrong_token_is_named_and_what_needs_it_is_skipped(there: SetUp) -> None:
    found = there.diagnose("A wrong token", LABEL_STUDIO_API_KEY="0" * 40)
    assert states(found, FAILED) == {"token"}
    assert "LABEL_STUDIO_API_KEY" in found["token"].remedy
    assert {"rights", "webhook", "webhook arrives", "image", "score column"} <= states(found, SKIPPED)
    assert exit_code(list(found.values())) == 1


def test_a_label_studio_that_is_down_is_named(there: SetUp) -> None:
    found = there.diagnose("Label Studio is down", LABEL_STUDIO_URL=f"http://127.0.0.1:{free_port()}")
    assert states(found, FAILED) == {"Label Studio"}
    assert "token" in states(found, SKIPPED)


def test_something_else_at_label_studios_address_is_named(there: SetUp) -> None:
    found = there.diagnose(LABEL_STUDIO_URL=there.backend.url)
    assert found["Label Studio"].state == FAILED
    assert "something else than Label Studio answers" in found["Label Studio"].said


def test_a_webhook_without_its_secret_is_named(there: SetUp) -> None:
    annotator = there.labelling.annotator
    (hook,) = annotator.call("GET", f"/api/webhooks/?project={there.project}")
    for headers in ({}, {"Authorization": "Basic bmVhdDphIHNlY3JldA=="}):
        annotator.call("PATCH", f"/api/webhooks/{hook['id']}/", {"headers": headers})
        found = there.diagnose("The webhook does not carry its secret")
    annotator.call("PATCH", f"/api/webhooks/{hook['id']}/", {"headers": hook["headers"]})
    assert states(found, FAILED) == {"webhook"}
    assert "secret" in found["webhook"].said
    assert states(found, SKIPPED) == {"webhook arrives", "SSRF variables"}


def test_a_setting_that_cannot_be_used_stops_all_that_rests_on_it(there: SetUp) -> None:
    found = there.diagnose("A setting that can't be used", NEAT_K="ten")
    assert states(found, FAILED) == {"settings"}
    assert "NEAT_K" in found["settings"].said
    assert states(found, OK, WARNING) == set()


def test_a_data_folder_that_cannot_be_written_to_is_named(there: SetUp) -> None:
    database = f"sqlite:///{there.env['NEAT_DATA_DIR']}/neat.sqlite3"
    found = there.diagnose("The data folder can't be written to", NEAT_DATA_DIR="/dev/null/data", DATABASE_URL=database)
    assert states(found, FAILED) == {"data folder"}
    assert "NEAT_DATA_DIR" in found["data folder"].remedy
    assert states(found, SKIPPED) == {"disk space", "webhook", "webhook arrives", "SSRF variables"}


def test_an_object_store_that_cannot_be_written_to_is_named(there: SetUp, tmp_path: Path) -> None:
    found = there.diagnose(NEAT_ARRAYS_URL="file:///dev/null/arrays")
    assert states(found, FAILED) == {"object store"}
    assert "NEAT_ARRAYS_URL" in found["object store"].said
    assert there.diagnose(NEAT_ARRAYS_URL=f"file://{tmp_path}/arrays")["object store"].state == OK


def test_encoder_weights_that_are_not_there_are_named(there: SetUp) -> None:
    found = there.diagnose(NEAT_ENCODER_WEIGHTS="/nowhere/weights.pth")
    assert states(found, FAILED) == {"encoder weights"}


def test_a_project_that_is_not_connected_is_named(there: SetUp) -> None:
    found = {one.check: one for one in examine(there.env, 10**6)}
    assert states(found, FAILED) == {"projects"}


def test_an_image_that_is_gone_is_named(there: SetUp) -> None:
    first = min(there.labelling.truth)
    url = there.labelling.annotator.call("GET", f"/api/tasks/{first}/")["data"]["image"]
    (file,) = there.server.folder.rglob(Path(url).name)
    hidden = file.with_suffix(".hidden")
    file.rename(hidden)
    try:
        found = there.diagnose("An image is missing")
    finally:
        hidden.rename(file)
    assert states(found, FAILED) == {"image"}
    assert found["image"].said.startswith(f"task {first}: Label Studio answered ")


def test_a_webhook_that_was_deleted_is_named_and_the_remedy_works(there: SetUp) -> None:
    annotator = there.labelling.annotator
    (hook,) = annotator.call("GET", f"/api/webhooks/?project={there.project}")
    annotator.call("DELETE", f"/api/webhooks/{hook['id']}/")
    found = there.diagnose("The webhook was deleted")
    assert states(found, FAILED) == {"webhook"}
    assert "neat-backend sync" in found["webhook"].remedy
    was = there.backend.status(there.project)["synced_at"]
    there.backend.ask(f"/api/projects/{there.project}/sync", "POST")
    there.backend.wait_until(there.project, lambda now: is_ranked(now, was))
    assert states(there.diagnose(), FAILED) == set()


def test_another_sampling_is_a_warning(there: SetUp) -> None:
    there.labelling.annotator.update_project(there.project, sampling="Sequential sampling")
    found = there.diagnose("Another sampling")
    there.labelling.annotator.update_project(there.project, sampling="Uncertainty sampling")
    assert states(found, FAILED) == set()
    assert found["sampling"].state == WARNING
    assert exit_code([found["settings"], found["sampling"]]) == 3


def test_a_backend_that_does_not_run_and_another_version_are_named(there: SetUp) -> None:
    """The last one: it stops the backend."""
    annotator = there.labelling.annotator
    there.backend.wait_until(there.project, is_ranked)
    there.backend.stop()
    prediction = {"task": min(there.labelling.truth), "result": [], "score": 0.5, "model_version": "another"}
    annotator.call("POST", f"/api/projects/{there.project}/import/predictions", [prediction])
    annotator.update_project(there.project, model_version="another")
    found = there.diagnose("Neither worker nor web process runs, and another version is shown")
    assert states(found, FAILED) == {"worker", "webhook arrives", "score column"}
    assert "another" in found["score column"].said
    assert found["SSRF variables"].state == WARNING  # a private address: they may be the reason
