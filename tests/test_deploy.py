"""Dockerfile and docker-compose.yml: what must be in them, without a Docker to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from neat_backend.serve import GRACE_SECONDS
from neat_backend.settings import Settings

ROOT = Path(__file__).parents[1]
DEMO_ONLY = {"neat-demo-token-change-me", "neat-demo-change-me"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def interpolated(value: Any) -> str:
    """What compose makes of `${NAME:-default}` when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


class TestCompose:
    def test_label_studio_may_call_private_addresses(self, compose: dict[str, Any]) -> None:
        env = compose["services"]["label-studio"]["environment"]
        assert (env["SSRF_PROTECTION_ENABLED"], env["ML_BLOCK_LOCAL_IP"]) == ("false", "false")

    def test_both_know_the_same_token_which_is_switched_on(self, compose: dict[str, Any]) -> None:
        label_studio = compose["services"]["label-studio"]["environment"]
        backend = compose["services"]["neat-backend"]["environment"]
        assert label_studio["LABEL_STUDIO_USER_TOKEN"] == backend["LABEL_STUDIO_API_KEY"]
        assert label_studio["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"
        assert 5 < len(interpolated(backend["LABEL_STUDIO_API_KEY"])) <= 40  # what Label Studio's column holds

    def test_no_secret_but_the_demo_ones_which_can_be_replaced(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            for name, value in service["environment"].items():
                if re.search("TOKEN|KEY|PASS|SECRET", name) and value not in ("true", "false"):
                    assert value.startswith("${"), name
                    assert interpolated(value) in {"", *DEMO_ONLY}, name

    def test_the_demo_is_for_this_machine_alone(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])

    def test_the_backend_finds_label_studio_by_its_name(self, compose: dict[str, Any]) -> None:
        services = compose["services"]
        assert services["neat-backend"]["environment"]["LABEL_STUDIO_URL"] == "http://label-studio:8080"
        assert services["neat-backend"]["networks"] == services["label-studio"]["networks"]
        assert set(services["label-studio"]["networks"]) <= set(compose["networks"])

    def test_both_are_checked_and_the_backend_waits(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            assert "/health" in service["healthcheck"]["test"][-1]
        waits = compose["services"]["neat-backend"]["depends_on"]
        assert waits == {"label-studio": {"condition": "service_healthy"}}

    def test_data_is_kept_in_volumes(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            names = [volume.partition(":")[0] for volume in service["volumes"]]
            assert names
            assert set(names) <= set(compose["volumes"])

    def test_nobody_is_root_or_privileged(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            assert str(service.get("user", "")).partition(":")[0] not in ("root", "0")
            assert not service.get("privileged")
        assert compose["services"]["neat-backend"]["cap_drop"] == ["ALL"]

    def test_there_is_time_to_stop_cleanly(self, compose: dict[str, Any]) -> None:
        assert int(compose["services"]["neat-backend"]["stop_grace_period"].rstrip("s")) > GRACE_SECONDS

    def test_the_backends_settings_are_real_ones_and_need_no_download(self, compose: dict[str, Any]) -> None:
        env = {name: interpolated(value) for name, value in compose["services"]["neat-backend"]["environment"].items()}
        assert set(env) <= set(Settings.titles().values())
        assert Settings.from_env(env).encoder == "efficientnet_lite0"

    def test_images_are_pinned(self, compose: dict[str, Any]) -> None:
        assert compose["services"]["label-studio"]["image"] == "heartexlabs/label-studio:1.23.2"


class TestDockerfile:
    def test_bases_are_pinned(self, dockerfile: str) -> None:
        bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
        assert bases
        assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases)

    def test_the_process_is_not_root(self, dockerfile: str) -> None:
        (user,) = re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)
        assert user.partition(":")[0] not in ("root", "0")
        assert dockerfile.index("USER") < dockerfile.index("CMD [")

    def test_installs_from_the_lock_and_keeps_no_caches(self, dockerfile: str) -> None:
        assert "requirements.lock" in dockerfile
        for line in dockerfile.replace("\\\n", " ").splitlines():
            if "pip install" in line:
                assert "--no-cache" in line
            assert "apt-get install" not in line or "rm -rf /var/lib/apt/lists" in line

    def test_is_checked_on_health(self, dockerfile: str) -> None:
        assert re.search(r"HEALTHCHECK .*\n?.*/health", dockerfile)

    def test_what_it_copies_is_there_and_let_through(self, dockerfile: str) -> None:
        let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied: set[str] = set()
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
            copied |= set(sources.split())
        assert copied == let_through
        for name in copied:
            assert (ROOT / name).exists(), name

    def test_the_health_check_is_python_that_compiles(self, dockerfile: str) -> None:
        code = re.search(r'HEALTHCHECK[^\[]*\["python", "-c", "(.*)"\]', dockerfile)
        assert code is not None
        compile(code[1].replace('\\"', '"'), "healthcheck", "exec")
