"""What a test needs from the machine, and what happens when the machine hasn't got it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and programs that tests start and send Ctrl-C would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No example fails because the machine was busy. Everything else is as Hypothesis has it, here and where CI is set.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# What a test needs beyond Python and this package, by its place and its fixtures. `make check` leaves these out.
OF_PATHS = {
    "labelstudio": ("e2e",),
    "process": (
        "chaos",
        "cli/test_program.py",
        "cli/test_supervisor.py",
        "faults",
        "test_bench.py",
        "test_deploy.py",
        "test_failover.py",
        "test_image.py",
        "test_secrets.py",
        "test_soak.py",
        "test_two_hosts.py",
        "test_wsgi.py",
        "web/test_exposure.py",
        "web/test_patience.py",
        "worker/test_training.py",
    ),
    "ray": ("compute/test_on_ray.py",),
    "slow": ("ranking/test_on_gpu.py", "experiments", "exports", "fuzz"),
}
OF_FIXTURES = {"browser": "browser", "label_studio": "labelstudio", "postgres_server": "postgres"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root).as_posix()
        for marker, places in OF_PATHS.items():
            if path.startswith(places):
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
