"""A new project: options are checked first, a repeated call adds what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neat_backend.errors import BadRequest, LabelStudioError, LabelStudioUnavailable
from neat_backend.labelstudio import label_config
from neat_backend.settings import Settings
from neat_backend.setup import filling, making
from neat_backend.setup.making import Made, Plan
from tests.fake_label_studio import CONFIG, FakeLabelStudio, picture

URL = "http://localhost:9090"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures."""
    made = tmp_path / "pets"
    made.mkdir()
    for number in range(7):
        (made / f"{number}.png").write_bytes(picture(number))
    return made


@pytest.fixture
def label_studio(monkeypatch: pytest.MonkeyPatch) -> FakeLabelStudio:
    """Uploads go in parts of three, and no try is waited for."""
    monkeypatch.setattr(filling, "FILES_AT_ONCE", 3)
    monkeypatch.setattr(filling, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(filling, "LOOK_SECONDS", 0.0)
    return FakeLabelStudio()


def plan(folder: Path, **given: Any) -> Plan:
    options = {"classes": "dog, cat", "invalid": "None of these", "title": None, "storage": "uploads", **given}
    return making.plan(folder, **options)


def make(label_studio: FakeLabelStudio, todo: Plan, shown: list[tuple[Any, ...]] | None = None) -> Made:
    def show(*progress: Any) -> None:
        if shown is not None:
            shown.append(progress)

    return making.make(label_studio, Settings.from_env({}), todo, URL, show)  # type: ignore[arg-type]


def names(label_studio: FakeLabelStudio, project: int) -> list[str]:
    """Of the project's pictures, in the order of its tasks."""
    return [task["data"]["image"].rpartition("-")[2] for task in label_studio.projects[project].tasks.values()]


class TestPlan:
    def test_is_what_was_asked_for(self, folder: Path) -> None:
        made = plan(folder)
        assert (made.title, made.classes, made.invalid, made.storage) == (
            "pets",
            ("dog", "cat"),
            "None of these",
            "uploads",
        )
        assert len(made.pictures) == 7
        config = label_config.parse(made.config, ())
        assert (config.classes, config.invalid, config.image_key) == (made.classes, (made.invalid,), "image")

    def test_a_folder_is_titled_by_its_own_name(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        made = plan(Path("."))
        assert (made.title, made.folder) == ("pets", folder)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"classes": "dog,cat,dog"}, "--classes dog,cat,dog: 'dog' is named twice; name each class once"),
            ({"classes": "dog, Dog"}, "--classes dog, Dog: 'Dog' is named twice"),
            ({"classes": "dog,,cat"}, "--classes 'dog,,cat': a class has no name; write them as dog,cat"),
            ({"classes": ""}, "--classes '': a class has no name"),
            ({"classes": "dog,$cat"}, "--classes dog,$cat, --invalid None of these: the Choice '$cat' takes"),
            ({"invalid": "Cat"}, "--invalid Cat: a class is called so too"),
            ({"invalid": " "}, "--invalid is empty: name the choice"),
            ({"title": "ab"}, "--title 'ab': Label Studio takes titles of 3 to 50 characters; give one"),
            ({"title": "x" * 51}, f"--title '{'x' * 51}': Label Studio takes titles of 3 to 50"),
            ({"storage": "s3"}, "--storage s3: give uploads or local"),
        ],
    )
    def test_what_cannot_be_is_named_with_its_option(self, folder: Path, given: dict[str, str], said: str) -> None:
        with pytest.raises(BadRequest) as refused:
            plan(folder, **given)
        assert str(refused.value).startswith(said)


class TestUploads:
    def test_every_picture_becomes_a_task_of_a_connected_project(
        self, label_studio: FakeLabelStudio, folder: Path
    ) -> None:
        shown: list[tuple[Any, ...]] = []
        todo = plan(folder, title="Dogs and cats")
        made = make(label_studio, todo, shown)
        project = made.connected.project
        there = label_studio.projects[project]
        assert (made.is_new, made.added, made.connected.tasks) == (True, 7, 7)
        assert (there.title, there.label_config) == ("Dogs and cats", todo.config)
        assert [one.url for one in there.ml_backends] == [URL]
        assert names(label_studio, project) == [f"{number}.png" for number in range(7)]
        assert shown == [("uploading pictures", done, 7) for done in (0, 3, 6, 7)]

    def test_twice_makes_nothing_twice(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        first = make(label_studio, plan(folder))
        again = make(label_studio, plan(folder))
        assert (again.is_new, again.added, again.connected.tasks) == (False, 0, 7)
        assert again.connected.project == first.connected.project
        assert len(label_studio.projects) == 1
        assert len(label_studio.called("upload")) == 3

    def test_after_a_break_the_rest_comes(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        label_studio.fail_after["upload"] = (1, KeyboardInterrupt())  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            make(label_studio, plan(folder))
        made = make(label_studio, plan(folder))
        assert (made.is_new, made.added, made.connected.tasks) == (False, 4, 7)
        assert sorted(names(label_studio, made.connected.project)) == [f"{number}.png" for number in range(7)]

    def test_an_upload_that_fails_is_tried_again_without_what_came_in(
        self, label_studio: FakeLabelStudio, folder: Path
    ) -> None:
        label_studio.fail_after["upload, landed"] = (1, LabelStudioUnavailable("Label Studio took too long"))
        made = make(label_studio, plan(folder))
        assert (made.added, made.connected.tasks) == (7, 7)

    def test_a_label_studio_that_stays_away_ends_it_with_the_count(
        self, label_studio: FakeLabelStudio, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uploads = iter(range(100))

        def upload(project: int, files: Any) -> None:
            if next(uploads):
                raise LabelStudioUnavailable("Label Studio answered 500: database is locked")
            FakeLabelStudio.upload(label_studio, project, files)

        monkeypatch.setattr(label_studio, "upload", upload)
        with pytest.raises(
            LabelStudioError, match=r"^3 of 7 pictures are in project \d+, then: .* locked.*goes on there"
        ):
            make(label_studio, plan(folder))
        assert next(uploads) == 1 + filling.TRIES

    def test_a_picture_that_cannot_be_read_is_named(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        todo = plan(folder)
        (folder / "5.png").unlink()
        with pytest.raises(Exception, match=r"a picture can't be read: .*5\.png'; 3 of 7 are uploaded"):
            make(label_studio, todo)

    def test_a_project_of_that_title_with_other_choices_stays_as_it_is(
        self, label_studio: FakeLabelStudio, folder: Path
    ) -> None:
        label_studio.add_project(7, CONFIG).title = "pets"
        with pytest.raises(BadRequest, match=r"^--title pets: .*project 7 .*other choices.*neat-backend connect 7"):
            make(label_studio, plan(folder))
        assert not label_studio.projects[7].tasks
        assert make(label_studio, plan(folder, title="Other pets")).is_new

    def test_without_a_connection_no_picture_is_uploaded(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        label_studio.fail_after["connect_backend"] = (0, LabelStudioError("Can't resolve hostname"))
        with pytest.raises(LabelStudioError, match="give --url"):
            make(label_studio, plan(folder))
        assert label_studio.called("upload") == []
        made = make(label_studio, plan(folder))
        assert (made.is_new, made.added) == (False, 7)


class TestLocal:
    def test_label_studio_reads_the_folder_once(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        made = make(label_studio, plan(folder, storage="local"))
        assert (made.added, made.connected.tasks) == (7, 7)
        (folder / "8.png").write_bytes(picture(8))
        again = make(label_studio, plan(folder, storage="local"))
        assert (again.added, again.connected.tasks) == (1, 8)
        assert len(label_studio.called("add_local_storage")) == 1

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ('Absolute local path "/x" does not exist', "it does not see the folder; mount it at the same path"),
            (
                'must be a subdirectory of LOCAL_FILES_DOCUMENT_ROOT="/srv"',
                "not below its document root; start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"
                " LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, or use --storage uploads",
            ),
            (
                "LOCAL_FILES_SERVING_ENABLED is disabled by default",
                "it serves no local files; start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true",
            ),
        ],
    )
    def test_what_label_studio_needs_for_it_is_said(
        self, label_studio: FakeLabelStudio, folder: Path, words: str, said: str
    ) -> None:
        label_studio.fail_after["add_local_storage"] = (0, LabelStudioError(f"Label Studio answered 400: {words}"))
        with pytest.raises(LabelStudioError) as refused:
            make(label_studio, plan(folder, storage="local"))
        assert str(refused.value).startswith(f"--storage local: Label Studio does not take {folder}: ")
        assert said.format(root=folder.parent) in str(refused.value)

    def test_a_sync_that_fails_says_why(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        label_studio.storage_state = ("failed", "Traceback\nPermissionError: denied\n")
        with pytest.raises(LabelStudioError, match=rf"failed to read {folder}: PermissionError: denied"):
            make(label_studio, plan(folder, storage="local"))

    @pytest.mark.parametrize(("first", "then"), [("uploads", "local"), ("local", "uploads")])
    def test_the_same_pictures_do_not_come_by_both_ways(
        self, label_studio: FakeLabelStudio, folder: Path, first: str, then: str
    ) -> None:
        make(label_studio, plan(folder, storage=first))
        with pytest.raises(
            BadRequest, match=rf"^--storage {then}: project \d+ has pictures of .* by --storage {first} "
        ):
            make(label_studio, plan(folder, storage=then))
