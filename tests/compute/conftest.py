"""One Ray for all tests, small, on two cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from neat_backend.compute.cluster import Cluster, connect
from tests.conftest import need

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    try:
        import ray
    except ImportError:
        need("ray", "it is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # What is sent to Ray's processes by name is found there too: tests are not installed.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else its processes would wait for all others of the tests
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
        )
        yield connect()
        ray.shutdown()
