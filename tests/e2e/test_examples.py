"""The example that needs Label Studio: a bucket's images as tasks, ranked and served."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from neat_backend.demo.backend import Backend, is_ranked
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from tests.e2e.loop import CONFIG, make_backend, write_digits
from tests.examples import EXAMPLES
from tests.s3 import s3_at
from tests.waiting import HANGS


@pytest.fixture(scope="module")
def backend(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The bucket's host has a private address, as MinIO's in an own network."""
    settings = {"BASIC_AUTH_USER": "", "BASIC_AUTH_PASS": "", "NEAT_IMAGE_HOSTS": "127.0.0.1"}
    made = make_backend(label_studio, tmp_path_factory.mktemp("backend"), **settings)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("way", [(), ("--proxy",)], ids=["presigned", "proxy"])
def test_a_buckets_images_become_tasks_in_order(
    way: tuple[str, ...], backend: Backend, annotator: Annotator, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    project = annotator.create_project("a bucket", CONFIG)
    with s3_at("127.0.0.1") as (bucket, variables):
        for file, _ in write_digits(tmp_path, 8):
            S3FileSystem().put_file(str(file), f"{bucket}/pictures/{file.name}")
        S3FileSystem().pipe_file(f"{bucket}/pictures/notes.txt", b"no image")
        S3FileSystem().pipe_file(f"{bucket}/elsewhere/1.png", b"not of this prefix")
        done = subprocess.run(
            [
                sys.executable,
                str(EXAMPLES / "s3_storage.py"),
                str(project),
                bucket.removeprefix("s3://"),
                *("--endpoint", variables["AWS_ENDPOINT_URL"], "--prefix", "pictures", *way),
            ],
            env={**os.environ, "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token},
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"8 tasks of {bucket}/pictures\n"
        annotator.connect_backend(project, backend.url)
        status = backend.wait_until(project, is_ranked, HANGS)
        assert (status["tasks"]["ready"], status["tasks"]["failed"]) == (8, 0)
        assert annotator.next_task(project) == backend.ranked_first(project)
