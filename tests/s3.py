"""An S3 on this machine: moto's server, reached by the driver of the field over HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


@contextmanager
def s3_at(address: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of an empty bucket, and the variables that lead there, which this process has too."""
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    bucket = f"neat-{secrets.token_hex(4)}"  # all of a process's servers have the same buckets
    variables = {
        "AWS_ENDPOINT_URL": f"http://{address}:{server.get_host_and_port()[1]}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "neat",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            S3FileSystem.clear_instance_cache()  # they are kept with the variables that they were made with
            S3FileSystem().mkdir(bucket)
            yield f"s3://{bucket}", variables
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()
