"""Adding a folder's pictures to a project: uploaded, or read by Label Studio in place. Repeating adds none twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neat_backend.errors import BadRequest, LabelStudioError, LabelStudioUnavailable, NeatError
from neat_backend.labelstudio.organizer import FILES_AT_ONCE, Organizer
from neat_backend.setup.picture_folder import FILE_NAME, Picture, batches, name_of

UPLOADS, LOCAL = "uploads", "local"
STORAGES = (UPLOADS, LOCAL)
UPLOAD_BYTES = 20_000_000  # in one request
TRIES = 5  # of one upload; Label Studio on SQLite is locked now and then
PAUSE_SECONDS = 1.0  # before the second try; doubles with each
LOOK_SECONDS = 0.5
SYNCED, FAILED = ("completed", "completed_with_errors"), "failed"

Show = Callable[[str, int, int], None]  # what is done, how many of how many


def upload(client: Organizer, project: int, pictures: Sequence[Picture], show: Show) -> int:
    """Upload the pictures that the project lacks; returns their number.

    Raises LabelStudioError saying how many are there, after several tries.
    """
    missing = _missing(client, project, pictures)
    there, wanted, tries = len(pictures) - len(missing), len(missing), 0
    while missing:
        try:
            for part in batches(missing, FILES_AT_ONCE, UPLOAD_BYTES):
                show("uploading pictures", there, len(pictures))
                client.upload(project, [(picture.name, picture.path.read_bytes()) for picture in part])
                there, tries = there + len(part), 0
            break
        except LabelStudioUnavailable as error:
            tries += 1
            if tries == TRIES:
                raise LabelStudioError(
                    f"{there} of {len(pictures)} pictures are in project {project}, then: {error}. The same command"
                    " goes on there"
                ) from None
            time.sleep(PAUSE_SECONDS * 2 ** (tries - 1))
            missing = _missing(client, project, pictures)  # an upload without an answer may have succeeded
            there = len(pictures) - len(missing)
        except OSError as error:
            raise NeatError(f"a picture can't be read: {error}; {there} of {len(pictures)} are uploaded") from None
    show("uploading pictures", len(pictures), len(pictures))
    return wanted


def add_folder(client: Organizer, project: int, folder: Path, count: int, show: Show) -> int:
    """Let Label Studio read the folder's pictures in place; returns the number of new tasks.

    folder: absolute. count: how many pictures there are, for progress. Raises LabelStudioError saying what Label Studio
    needs for it.
    """
    place = str(folder)
    before = client.project(project).task_count
    storage = client.local_storages(project).get(place)
    if storage is None:
        storage = _add_storage(client, project, place)
    with ThreadPoolExecutor(1) as thread:
        syncing = thread.submit(client.sync_local_storage, storage)
        while not syncing.done():
            show("reading the folder", min(client.project(project).task_count, count), count)
            time.sleep(LOOK_SECONDS)
        syncing.result()
    while True:  # where Label Studio has a queue, it is not done yet
        state, traceback = client.local_storage_state(storage)
        if state == FAILED:
            last = traceback.strip().splitlines()[-1:] or ["without a word of why"]
            raise LabelStudioError(f"Label Studio failed to read {place}: {last[0]}")
        now = client.project(project).task_count
        show("reading the folder", min(now, count), count)
        if state in SYNCED:
            return now - before
        time.sleep(LOOK_SECONDS)


def check_storage(client: Organizer, project: int, storage: str, folder: Path, pictures: Sequence[Picture]) -> None:
    """Raise BadRequest where the project has these pictures by the other storage already: they would come twice."""
    if storage == UPLOADS and str(folder) in client.local_storages(project):
        other = LOCAL
    elif storage == LOCAL and len(_missing(client, project, pictures)) < len(pictures):
        other = UPLOADS
    else:
        return
    raise BadRequest(
        f"--storage {storage}: project {project} has pictures of {folder} by --storage {other} already; go on with"
        " that, or give another --title for a project of its own"
    )


def _missing(client: Organizer, project: int, pictures: Sequence[Picture]) -> list[Picture]:
    present = {name_of(task.image) for page in client.tasks(project, "image") for task in page}
    return [picture for picture in pictures if picture.name not in present]


def _add_storage(client: Organizer, project: int, place: str) -> int:
    try:
        return client.add_local_storage(project, place, FILE_NAME)
    except LabelStudioError as error:
        words, root = str(error), Path(place).parent
        variables = (
            "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"
            f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}"
        )
        if "does not exist" in words:
            said, remedy = "it does not see the folder", "mount it at the same path where Label Studio runs"
        elif "DOCUMENT_ROOT" in words and "SERVING_ENABLED" not in words:
            said, remedy = "the folder is not below its document root", variables
        elif "SERVING_ENABLED" in words:
            said, remedy = "it serves no local files", variables
        else:
            raise
        raise LabelStudioError(
            f"--storage local: Label Studio does not take {place}: {said}; {remedy}, or use --storage uploads ({words})"
        ) from None
