"""What a test needs from the machine, and what happens when the machine hasn't got it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it
os.environ["NEAT_ENV_FILE"] = os.devnull  # a developer's own .env is none of the tests' business
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and programs that tests start and send Ctrl-C would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No example fails because the machine was busy. Everything else is as Hypothesis has it, here and where CI is set.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# What a test needs beyond Python and this package, by the start of its path and name, and by its fixtures.
# `make check` leaves these out.
OF_PATHS = {
    "labelstudio": ("e2e",),
    "process": (
        "chaos",
        "cli/test_program.py",
        "cli/test_supervisor.py",
        "faults",
        "service/test_explanation.py::test_explaining_loads_nothing_heavy",
        "store/test_arrays.py::test_a_writer_killed",
        "store/test_arrays.py::test_processes_that",
        "store/test_database.py::test_processes_that",
        "test_bench.py",
        "test_deploy.py",
        "test_examples.py",
        "test_failover.py",
        "test_gpu_bench.py",
        "test_image.py",
        "test_logs.py::test_every_line_of_the_web_process",
        "test_model.py::TestRelease109",
        "test_packaging.py",
        "test_plugins.py",
        "test_secrets.py",
        "test_soak.py",
        "test_stopping.py",
        "test_tools.py",
        "test_two_folders.py",
        "test_two_hosts.py",
        "test_wsgi.py",
        "web/test_app.py::TestImports",
        "web/test_exposure.py",
        "web/test_patience.py",
        "worker/test_training.py",
    ),
    "ray": ("compute/test_on_ray.py",),
    # What trains networks, and what runs whole projects over hundreds of steps.
    "slow": (
        "compute/test_sharded.py",
        "experiments",
        "exports",
        "fuzz",
        "labelstudio/test_image_hosts.py",
        "models",
        "ranking/test_on_gpu.py",
        "store/test_backup.py",
        "strategies/test_mqnet.py",
        "strategies/test_query_net.py",
        "strategies/test_vae_acgan.py",
        "worker",
    ),
}
OF_FIXTURES = {"browser": "browser", "label_studio": "labelstudio", "postgres_server": "postgres"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(root).as_posix() + "::" + item.nodeid.partition("::")[2]
        for marker, starts in OF_PATHS.items():
            if name.startswith(starts):
                item.add_marker(marker)
        for fixture, marker in OF_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        if "postgresql" in item.name.partition("[")[2]:
            item.add_marker("postgres")


def need(name: str, reason: str) -> None:
    """Skip the calling test because `name` is missing — or fail it where NEAT_TEST_REQUIRE names it.

    name: one of labelstudio, postgres, browser, gpu, ray, namespaces, image. Call it once it is known to be missing.
    """
    required = {part.strip() for part in os.environ.get("NEAT_TEST_REQUIRE", "").split(",")}
    if name in required:
        pytest.fail(f"NEAT_TEST_REQUIRE names {name}, but {reason}")
    pytest.skip(f"{name}: {reason}")


class Clock:
    """A clock that stands still until the test moves it on."""

    now = 0.0  # seconds

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()
