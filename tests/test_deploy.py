"""Dockerfile, compose file, manifests, dashboard and alerts: what must be in them, without an engine to try."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from neat_backend.cli.supervisor import GRACE_SECONDS
from neat_backend.errors import SettingsError
from neat_backend.labelstudio.inspection import takes_webhooks
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.web import exposure
from neat_backend.web.app import create_app
from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]
DEMO_ONLY = {"neat-demo-token-change-me", "neat-demo-change-me"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def ours(compose: dict[str, Any]) -> dict[str, Any]:
    """The services that run this backend, the web first."""
    return {name: service for name, service in compose["services"].items() if name.startswith("neat-")}


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


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
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))

    def test_it_asks_for_credentials_from_the_first_run_on(self, compose: dict[str, Any]) -> None:
        for service in ours(compose).values():
            assert interpolated(service["environment"]["BASIC_AUTH_USER"])
            assert interpolated(service["environment"]["BASIC_AUTH_PASS"]) in DEMO_ONLY

    def test_web_and_workers_share_database_and_folder(self, compose: dict[str, Any]) -> None:
        services = ours(compose)
        assert [service["command"] for service in services.values()] == [
            ["neat-backend", "web"],
            ["neat-backend", "worker"],
            ["neat-backend", "worker"],
        ]
        shared = {
            (s["environment"]["DATABASE_URL"], tuple(s["volumes"]), tuple(s["networks"])) for s in services.values()
        }
        assert len(shared) == 1
        password = compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]
        assert next(iter(shared))[0] == "postgresql://neat@postgres:5432/neat"
        assert {service["environment"]["DATABASE_PASSWORD"] for service in services.values()} == {password}

    def test_only_the_gpus_worker_waits_for_its_profile(self, compose: dict[str, Any]) -> None:
        assert {name: s["profiles"] for name, s in compose["services"].items() if "profiles" in s} == {
            "neat-worker-gpu": ["gpu"]
        }

    def test_a_label_studio_outside_can_be_named(self, compose: dict[str, Any]) -> None:
        for service in ours(compose).values():
            assert service["environment"]["LABEL_STUDIO_URL"].startswith("${LABEL_STUDIO_URL:-")
            assert service["extra_hosts"] == ["host.docker.internal:host-gateway"]

    def test_follows_the_schema_of_compose_files(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def test_the_backend_finds_label_studio_by_its_name(self, compose: dict[str, Any]) -> None:
        for service in ours(compose).values():
            assert interpolated(service["environment"]["LABEL_STUDIO_URL"]) == "http://label-studio:8080"
            assert set(service["networks"]) == set(compose["services"]["label-studio"]["networks"])
            assert set(service["networks"]) <= set(compose["networks"])

    def test_label_studio_takes_webhooks_for_every_address_that_is_documented(self, compose: dict[str, Any]) -> None:
        (aliases,) = [network["aliases"] for network in compose["services"]["neat-backend"]["networks"].values()]
        named: set[str] = set()
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.yml"), *ROOT.glob("deploy/*/*.y*ml")]:
            found = set(re.findall(r"connect `?(http://[\w.:-]*\w)", path.read_text(), re.IGNORECASE))
            assert all(map(takes_webhooks, found)), path
            named |= found
        assert {f"http://{alias}:9090" for alias in aliases} < named
        assert "http://neat-backend.NAMESPACE.svc.cluster.local:9090" in named

    def test_all_are_checked_and_the_backend_waits_for_the_database(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            assert service["healthcheck"]["test"][0] == "CMD"
        for service in ours(compose).values():
            assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}

    def test_data_is_kept_in_volumes(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            names = [volume.partition(":")[0] for volume in service["volumes"]]
            assert names
            assert set(names) <= set(compose["volumes"])

    def test_nobody_is_root_or_privileged(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            assert str(service.get("user", "")).partition(":")[0] not in ("root", "0")
            assert not service.get("privileged")
        for service in ours(compose).values():
            assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)

    def test_the_image_is_built_once_and_never_pulled(self, compose: dict[str, Any]) -> None:
        assert [name for name, service in compose["services"].items() if "build" in service] == ["neat-backend"]
        assert {(service["image"], service["pull_policy"]) for service in ours(compose).values()} == {
            ("${COMPOSE_PROJECT_NAME:-neat-backend}:latest", "never")
        }

    def test_two_clones_share_nothing(self, compose: dict[str, Any]) -> None:
        """What has a name of its own is one thing for the whole machine, whatever the clone."""
        for kind in ("networks", "volumes"):
            assert not any((made or {}).get("name") for made in compose[kind].values())
        assert not any("container_name" in service for service in compose["services"].values())
        assert all(service["image"].startswith("${COMPOSE_PROJECT_NAME") for service in ours(compose).values())

    def test_health_checks_leave_a_slow_machine_its_time(self, compose: dict[str, Any]) -> None:
        """A first start took 5 minutes under load; a check of its own takes the seconds that Python needs to start."""
        for service in compose["services"].values():
            check = service["healthcheck"]
            assert seconds(check["start_period"]) >= 600
            assert seconds(check["timeout"]) >= 20
            inner = re.search(r"timeout=(\d+)", " ".join(check["test"]))
            assert inner is None or 10 <= int(inner[1]) < seconds(check["timeout"])

    def test_git_keeps_no_secret(self) -> None:
        """Where the compose file and the manuals have people put them."""
        done = subprocess.run(
            ["git", "check-ignore", "--no-index", ".env", "secrets/postgres-password", "backups/monday/manifest.json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert len(done.stdout.splitlines()) == 3, done.stderr
        assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"

    def test_how_to_change_every_secret_is_said(self, compose: dict[str, Any]) -> None:
        _, _, section = (ROOT / "docs/docker.md").read_text().partition("## Changing a secret")
        rows = "".join(line for line in section.splitlines() if line.startswith("| `"))
        used = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker-compose.yml").read_text()))
        secret = {name for name in used if re.search("PASS|KEY|USER", name)}
        assert len(secret) == 6
        assert secret == set(re.findall(r"`([A-Z_]+)`", rows)) & used

    def test_there_is_time_to_stop_cleanly(self, compose: dict[str, Any]) -> None:
        for service in ours(compose).values():
            assert int(service["stop_grace_period"].rstrip("s")) > GRACE_SECONDS

    def test_the_backends_settings_are_real_ones_and_need_no_download(self, compose: dict[str, Any]) -> None:
        env = {name: interpolated(value) for name, value in compose["services"]["neat-backend"]["environment"].items()}
        assert set(env) <= set(Settings.titles().values())
        assert Settings.from_env(env).encoder == "efficientnet_lite0"

    def test_images_are_pinned(self, compose: dict[str, Any]) -> None:
        assert compose["services"]["label-studio"]["image"] == "heartexlabs/label-studio:1.23.2"
        assert re.fullmatch(r"postgres:\d+\.\d+-\w+", compose["services"]["postgres"]["image"])


class TestComposeWithSecretsInFiles:
    @pytest.fixture
    def added(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/secrets.yml").read_text())
        return loaded

    def test_follows_the_schema(self) -> None:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "check_jsonschema",
                "--builtin-schema",
                "vendor.compose-spec",
                "deploy/compose/secrets.yml",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def test_every_secret_comes_from_a_file_and_none_from_a_variable(
        self, compose: dict[str, Any], added: dict[str, Any], tmp_path: Path
    ) -> None:
        assert set(ours(added)) == set(ours(compose))
        for name, service in ours(added).items():
            env = {**compose["services"][name]["environment"], **service["environment"]}
            env = {variable: interpolated(value) for variable, value in env.items()}
            for variable, path in list(env.items()):
                if variable.endswith("_FILE"):
                    secret = path.removeprefix("/run/secrets/")
                    assert secret in service["secrets"]
                    assert secret in added["secrets"]
                    (tmp_path / secret).write_text("from the file")
                    env[variable] = str(tmp_path / secret)
            settings = Settings.from_env(env)
            for field in ("label_studio_api_key", "basic_auth_pass", "database_password"):
                assert getattr(settings, field).get_secret_value() == "from the file"

    def test_the_database_gets_its_password_from_the_same_file(self, added: dict[str, Any]) -> None:
        postgres = added["services"]["postgres"]
        assert postgres["environment"]["POSTGRES_PASSWORD"] == ""
        assert postgres["environment"]["POSTGRES_PASSWORD_FILE"].removeprefix("/run/secrets/") in postgres["secrets"]


class TestDockerfile:
    def test_bases_are_pinned(self, dockerfile: str) -> None:
        assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE}"}
        assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-\w+$", dockerfile, re.MULTILINE)

    def test_the_process_is_not_root(self, dockerfile: str) -> None:
        (user,) = re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)
        assert user.partition(":")[0] not in ("root", "0")
        assert dockerfile.index("USER") < dockerfile.index("CMD [")

    def test_it_serves_other_containers_and_only_with_credentials(
        self, dockerfile: str, compose: dict[str, Any]
    ) -> None:
        (host,) = re.findall(r"^\s+HOST=(\S+)", dockerfile, re.MULTILINE)
        with pytest.raises(SettingsError, match="BASIC_AUTH_USER"):
            exposure.check(Settings.from_env({"HOST": host}), exposure.addresses_of(host))
        manifests = yaml.safe_load_all((ROOT / "deploy/kubernetes/neat-backend.yaml").read_text())
        (config,) = (manifest["data"] for manifest in manifests if manifest["kind"] == "ConfigMap")
        ways = [{**config, "BASIC_AUTH_PASS": "secret"}]
        ways += [
            {name: interpolated(value) for name, value in one["environment"].items()} for one in ours(compose).values()
        ]
        for env in ways:
            exposure.check(Settings.from_env({"HOST": host, **env}), exposure.addresses_of(host))

    def test_installs_from_the_lock_and_keeps_no_caches(self, dockerfile: str) -> None:
        assert "requirements-runtime.lock" in dockerfile
        for line in dockerfile.replace("\\\n", " ").splitlines():
            if "pip install" in line:
                assert "--no-cache" in line
            assert "apt-get install" not in line or "rm -rf /var/lib/apt/lists" in line

    def test_the_lock_of_what_runs_is_part_of_the_lock_of_all(self) -> None:
        def pins(name: str) -> set[str]:
            return set(re.findall(r"^[a-z0-9].*?==[^ \n]+", (ROOT / name).read_text(), re.MULTILINE))

        runtime = pins("requirements-runtime.lock")
        assert runtime < pins("requirements.lock")
        wanted = re.findall(
            r'^    "([\w-]+)>=', (ROOT / "pyproject.toml").read_text().partition("]\n\n[")[0], re.MULTILINE
        )
        names = {pin.partition("==")[0] for pin in runtime}
        assert {name.lower().replace("_", "-") for name in wanted} <= names, "make lock"
        assert not {"pytest", "mypy", "ruff", "playwright"} & {pin.partition("==")[0] for pin in runtime}

    def test_the_webs_variant_leaves_out_what_the_web_never_loads_and_nothing_that_it_needs(
        self, dockerfile: str
    ) -> None:
        (pattern,) = re.findall(r"grep -vE '(\^\(nvidia\|cuda\|faiss\)[^']+)'", dockerfile)
        lines = (ROOT / "requirements-runtime.lock").read_text().splitlines()
        kept = {line.partition("==")[0] for line in lines if not re.match(pattern, line)}
        gone = {line.partition("==")[0] for line in lines} - kept
        assert {"torch", "torchvision", "faiss-gpu", "faiss-cpu", "numba", "scikit-learn", "triton"} <= gone
        assert {name for name in kept if name.startswith(("nvidia", "cuda"))} == set()
        needed = {"flask", "gunicorn", "sqlalchemy", "alembic", "psycopg", "psycopg-binary", "pydantic", "pillow"}
        assert needed | {"numpy", "httpx", "typer", "prometheus-client", "label-studio-sdk"} <= kept

    def test_needs_no_front_end_from_a_registry(self, dockerfile: str) -> None:
        assert not re.search(r"^#\s*syntax\s*=", dockerfile, re.MULTILINE | re.IGNORECASE)

    def test_every_module_is_compiled(self, dockerfile: str) -> None:
        """A read-only root keeps no bytecode, so each start would compile thousands of modules."""
        build, run = dockerfile.replace("\\\n", " ").split("\nFROM ${BASE}\n")
        assert "--compile-bytecode" in next(line for line in build.splitlines() if "-r all.lock" in line)
        assert re.search(r"compileall .*site-packages/neat_backend", build)
        assert re.search(r'compileall .*get_path\("stdlib"\)', run)

    def test_no_mount_hides_weights_that_were_built_in(self, dockerfile: str, compose: dict[str, Any]) -> None:
        (place,) = re.findall(r"^COPY --from=build (\S*weights) \1$", dockerfile, re.MULTILINE)
        (volumes,) = re.findall(r"^VOLUME (.+)$", dockerfile, re.MULTILINE)
        manifests = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/neat-backend.yaml").read_text()))
        mounted = set(json.loads(volumes))
        mounted |= {volume.split(":")[1] for service in ours(compose).values() for volume in service["volumes"]}
        for pod in (m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"):
            mounted |= {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert not any(Path(place).is_relative_to(mount) for mount in mounted)
        for name in ("HF_HOME", "TORCH_HOME"):
            assert f"{name}={place}" in dockerfile.partition("\nFROM ${BASE}\n")[0]
            # nothing built in: a volume
            assert f"{name}=${{WEIGHTS_OF:+{Path(place).parent}}}/weights" in dockerfile

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


class TestKubernetes:
    @pytest.fixture
    def manifests(self) -> list[dict[str, Any]]:
        return list(yaml.safe_load_all((ROOT / "deploy/kubernetes/neat-backend.yaml").read_text()))

    def test_they_follow_the_schemas(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "kubernetes_validate", "--strict", "deploy/kubernetes/neat-backend.yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_settings_are_real_ones_and_secrets_are_elsewhere(self, manifests: list[dict[str, Any]]) -> None:
        (config,) = (manifest["data"] for manifest in manifests if manifest["kind"] == "ConfigMap")
        assert set(config) <= set(Settings.titles().values())
        assert not {"DATABASE_URL", "LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS"} & set(config)
        assert Settings.from_env({**config, "BASIC_AUTH_PASS": "secret"}).basic_auth_user

    def test_pods_are_contained_and_have_time_to_stop(self, manifests: list[dict[str, Any]]) -> None:
        pods = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]
        assert [pod["containers"][0]["args"] for pod in pods] == [["neat-backend", "web"], ["neat-backend", "worker"]]
        for pod in pods:
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/weights", "/tmp"}
            assert pod["terminationGracePeriodSeconds"] > GRACE_SECONDS


class TestMonitoring:
    def test_the_scrape_job_has_the_credentials_that_the_web_wants(
        self, compose: dict[str, Any], tmp_path: Path
    ) -> None:
        (job,) = yaml.safe_load((ROOT / "deploy/prometheus/scrape.yaml").read_text())["scrape_configs"]
        assert f'up{{job="{job["job_name"]}"}}' in (ROOT / "deploy/prometheus/alerts.yaml").read_text()
        env = {name: interpolated(value) for name, value in compose["services"]["neat-backend"]["environment"].items()}
        settings = Settings.from_env(
            {name: env[name] for name in ("BASIC_AUTH_USER", "BASIC_AUTH_PASS")}, data_dir=tmp_path
        )
        client = create_app(settings).test_client()
        assert client.get(job["metrics_path"]).status_code == 401
        credentials = (job["basic_auth"]["username"], env["BASIC_AUTH_PASS"])
        assert client.get(job["metrics_path"], auth=credentials).status_code == 200
        assert "prometheus.io/scrape" not in (ROOT / "deploy/kubernetes/neat-backend.yaml").read_text()

    @pytest.mark.parametrize("path", ["deploy/grafana/neat-backend.json", "deploy/prometheus/alerts.yaml"])
    def test_every_metric_named_is_exported(self, path: str, tmp_path: Path) -> None:
        client = create_app(Settings.from_env({}, data_dir=tmp_path)).test_client()
        text = client.get("/metrics").text
        exported = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | set(
            re.findall(r"^(\w+)\{", text, re.MULTILINE)
        )
        named = set(re.findall(r"\bneat_\w+", (ROOT / path).read_text()))
        assert named
        assert {name.removesuffix("_bucket") for name in named} <= exported

    def test_the_alerts_states_exist(self) -> None:
        states = {value for name, value in vars(projects).items() if name.isupper() and isinstance(value, str)}
        named = set(re.findall(r'state="(\w+)"', (ROOT / "deploy/prometheus/alerts.yaml").read_text()))
        assert named
        assert named <= states

    def test_every_alert_says_what_it_is(self) -> None:
        (group,) = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
        for rule in group["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
            assert {"summary", "description"} == set(rule["annotations"])
