"""A new labelling project: made with the recommended label config, connected, filled with a folder's pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neat_backend.errors import BadLabelConfig, BadRequest
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.organizer import Organizer
from neat_backend.labelstudio.recommended import recommended_config
from neat_backend.settings import Settings
from neat_backend.setup import connecting, filling
from neat_backend.setup.connecting import Connected
from neat_backend.setup.picture_folder import Picture, find_pictures

SHORTEST_TITLE, LONGEST_TITLE = 3, 50  # Label Studio's own limits


@dataclass(frozen=True)
class Plan:
    """A checked plan of a project."""

    folder: Path  # absolute
    pictures: tuple[Picture, ...]
    left_out: str  # in words, files of the folder that are no pictures
    title: str
    classes: tuple[str, ...]
    invalid: str
    config: str  # the label config
    storage: str


@dataclass(frozen=True)
class Made:
    """The result of `make`."""

    connected: Connected
    is_new: bool  # the project was made now
    added: int  # pictures that became tasks now


def plan(folder: Path, classes: str, invalid: str, title: str | None, storage: str) -> Plan:
    """Check the options before anything is made.

    classes: names separated by commas. title: None = the folder's name. Raises BadRequest naming the option.
    """
    if storage not in filling.STORAGES:
        raise BadRequest(f"--storage {storage}: give {' or '.join(filling.STORAGES)}")
    folder = Path(os.path.abspath(folder))  # links stay: Label Studio compares paths as they are written
    names = _names(classes, invalid)
    named = folder.name if title is None else title.strip()
    if not SHORTEST_TITLE <= len(named) <= LONGEST_TITLE:
        raise BadRequest(
            f"--title {named!r}: Label Studio takes titles of {SHORTEST_TITLE} to {LONGEST_TITLE} characters; give one"
            + (" (this is the folder's name)" if title is None else "")
        )
    try:
        config = recommended_config(names, invalid.strip())
    except BadLabelConfig as error:
        raise BadRequest(f"--classes {classes}, --invalid {invalid}: {error}") from None
    pictures, left_out = find_pictures(folder)
    return Plan(folder, tuple(pictures), left_out, named, names, invalid.strip(), config, storage)


def make(client: Organizer, settings: Settings, todo: Plan, url: str, show: Callable[..., None]) -> Made:
    """Make the project, or continue with the one of this title and these classes from an earlier call.

    url: this backend's, as Label Studio reaches it. show: progress, see `filling.Show`; the counts may be left out.
    Raises BadRequest where this title belongs to another project, LabelStudioError, after which a call may continue.
    """
    number = _existing(client, todo)
    is_new = number is None
    if number is None:
        number = client.create_project(todo.title, todo.config)
    else:
        filling.check_storage(client, number, todo.storage, todo.folder, todo.pictures)
    # Before the pictures: errors of the connection show at once, and pictures are encoded as they arrive.
    connecting.connect(client, settings, number, url, lambda: show("waiting for the worker"))
    if todo.storage == filling.UPLOADS:
        added = filling.upload(client, number, todo.pictures, show)
    else:
        added = filling.add_folder(client, number, todo.folder, len(todo.pictures), show)
    return Made(connecting.connect(client, settings, number, url), is_new, added)


def _names(classes: str, invalid: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in classes.split(","))
    if not all(names):
        raise BadRequest(f"--classes {classes!r}: a class has no name; write them as dog,cat")
    if not invalid.strip():
        raise BadRequest("--invalid is empty: name the choice for pictures of none of the classes")
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise BadRequest(f"--classes {classes}: {name!r} is named twice; name each class once")
        seen.add(name.casefold())
    if invalid.strip().casefold() in seen:
        raise BadRequest(
            f"--invalid {invalid}: a class is called so too; give the choice for none of them another name"
        )
    return names


def _existing(client: Organizer, todo: Plan) -> int | None:
    """The project of this title that has these classes. Raises BadRequest where there is another one of that title."""
    found = [number for number, title in client.project_titles().items() if title == todo.title]
    for number in found:
        if _choices(client.project(number).label_config) == (todo.classes, (todo.invalid,)):
            return number
    if found:
        raise BadRequest(
            f"--title {todo.title}: Label Studio has project {found[0]} of this title, with other choices; give another"
            f" title, or connect that one: neat-backend connect {found[0]}"
        )
    return None


def _choices(xml: str) -> tuple[Sequence[str], Sequence[str]]:
    try:
        config = label_config.parse(xml, ())
    except BadLabelConfig:
        return (), ()
    return config.classes, config.invalid
