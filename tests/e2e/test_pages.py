"""The commands of the how-to pages of docs/, run as they stand beside a service in use.

A real Label Studio and a project with labels and a classifier. Only the project's number, the port and the places
of files are others. What restores, forgets or migrates does so in a copy of the service's data, which nobody holds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
from PIL import Image

from neat_backend.demo.label_studio import LabelStudioServer
from neat_backend.settings import Settings
from tests.e2e.loop import Labelling, Standing
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.waiting import HANGS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "connecting.md",
    "labelling.md",
    "training.md",
    "exports.md",
    "operations.md",
    "docker.md",
    "several-hosts.md",
    "troubleshooting.md",
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CRON = re.compile(r"(?:[\d*]+ +){5}(.*)")
PROGRAMS = ("neat-backend", "python -m benchmarks", "curl", "docker", "make", "pip")
IN_A_COPY = re.compile(r"neat-backend (backup|restore|forget|migrate)\b")

NO_DOCKER = "needs Docker, and images from a registry"
INSTALLED = "was done to run the tests"
ELSEWHERE = "is run with less of everything by another test: "
NOT_RUN = {
    "NEAT_DEVICE=cuda:1 neat-backend serve": "needs two GPUs",
    "NEAT_DEVICE=cpu neat-backend serve": "is the service beside which the others run",
    "neat-backend serve": "is the service beside which the others run",
    "neat-backend web": "is what serve runs; tests/cli/test_supervisor.py",
    "neat-backend worker": "is what serve runs; tests/cli/test_supervisor.py",
    "neat-backend export": "names the command; those with arguments are run",
    "python -m benchmarks memory": ELSEWHERE + "tests/test_bench.py",
    "python -m benchmarks memory --pool 100000": ELSEWHERE + "tests/test_bench.py",
    "python -m benchmarks capacity --pools 1000,10000,100000,1000000 --dim 512": ELSEWHERE + "tests/test_bench.py",
    "neat-backend experiment run": ELSEWHERE + "tests/experiments/test_commands.py",
    "neat-backend experiment resume": ELSEWHERE + "tests/experiments/test_commands.py",
    "neat-backend experiment clusterability": ELSEWHERE + "tests/experiments/test_commands.py",
    "docker compose up": NO_DOCKER,
    "docker compose exec neat-backend neat-backend connect 1": NO_DOCKER,
    "docker compose up --scale neat-worker=3": NO_DOCKER,
    "docker compose --profile gpu up --scale neat-worker=0": NO_DOCKER,
    "docker compose -f docker-compose.yml -f deploy/compose/secrets.yml up": NO_DOCKER,
    "LABEL_STUDIO_URL=http://host.docker.internal:8080 docker compose up postgres neat-backend neat-worker": NO_DOCKER,
    "docker inspect": NO_DOCKER,
    "docker build .": NO_DOCKER,
    "docker compose build --build-arg WEIGHTS_OF=clip:ViT-B-32/openai": NO_DOCKER,
    "docker compose exec postgres psql --username neat --command '\\password'": NO_DOCKER,
    "docker compose exec label-studio label-studio reset_password --username …": NO_DOCKER,
    "docker compose up --detach": NO_DOCKER,
    "docker compose restart": NO_DOCKER,
    "docker compose down --volumes": NO_DOCKER,
    "docker build --build-arg VARIANT=web .": NO_DOCKER,
    "docker build --build-arg VARIANT=cpu --build-arg TORCH_INDEX=… .": NO_DOCKER,
    "make compose-test": NO_DOCKER,
    "make compose-test ARGS=--light": NO_DOCKER,
    "make lint": "runs before the tests",
    "make image-test": "is a test of its own, which needs buildah and debootstrap; tests/test_image.py",
    "DATABASE_URL=postgresql://…/empty python -m benchmarks failover --times 5": "takes minutes; test_failover.py",
    "pip install pyarrow": INSTALLED,
    "pip install s3fs": INSTALLED,
    "pip install gcsfs": "installs what no other test uses",
}


def blocks(page: str) -> list[str]:
    """What a reader would paste at once, and the commands in running text."""
    text = (DOCS / page).read_text()
    found = []
    for _, language, code in FENCE.findall(text):
        code = textwrap.dedent(code).replace("\\\n", " ")
        if language == "bash":
            found.append(code)
        elif language == "python":
            found.append(f"python - <<'PYTHON'\n{code}PYTHON\n")
        elif line := CRON.fullmatch(code.strip()):
            found.append(line[1].replace(r"\%", "%"))
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        is_command = re.match(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) ", code)
        if is_command and all(code not in map(command, block.splitlines()) for block in found):
            found.append(code)
    return found


def command(line: str) -> str:
    """A line of shell without its comment."""
    return re.sub(r"\s+#.*", "", line).strip()


def without_what_is_not_run(block: str) -> str:
    return "\n".join(line for line in block.splitlines() if command(line) not in NOT_RUN)


@dataclass
class Reader:
    """Somebody at a terminal of the machine on which the service runs."""

    standing: Standing
    project: int
    environment: dict[str, str]
    replaced: dict[str, str]
    folder: Path

    def follow(self, block: str) -> str:
        """Run it in a folder of its own; nothing, or what went wrong."""
        place = Path(mkdtemp(dir=self.folder))
        Image.new("RGB", (50, 40), "grey").save(place / "image.jpg")
        environment = dict(self.environment)
        if IN_A_COPY.search(block):
            environment["NEAT_DATA_DIR"] = str(shutil.copytree(self.folder / "copy", place / "data"))
        script = block
        for theirs, ours in self.replaced.items():
            script = script.replace(theirs, ours)
        script = re.sub(r"(neat-backend [a-z-]+) 3\b", rf"\1 {self.project}", script)
        # Other tests leave projects with broken images to the service.
        script = re.sub(r"neat-backend doctor\b(?! \d)", f"neat-backend doctor {self.project}", script)
        script = re.sub(r"((?:database|projects)(?:/|, ))3\b", rf"\g<1>{self.project}", script)
        # The page's own words: "into an empty database and data folder".
        script = re.sub(r"^(?=.*into an empty database)", f"NEAT_DATA_DIR={place}/empty ", script, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-euo", "pipefail"],
            input=script,
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANGS * len(block.splitlines()),
            check=False,
        )
        if "neat-backend forget" in block:  # the copy's Label Studio is ours, and the webhook is gone
            again = ["neat-backend", "sync", str(self.project), "--follow"]
            subprocess.run(again, env=self.environment, capture_output=True, timeout=HANGS, check=True)
        if done.returncode != 0:
            return f"{script}\n{done.returncode}\n{done.stdout}\n{done.stderr}"
        for target in re.findall(r"--out(?:put)? ([^\s$]+)", script):
            made = place / target
            if not (made.stat().st_size if made.is_file() else any(made.iterdir())):
                return f"{script}\n{target} is empty"
        return ""


@pytest.fixture(scope="module")
def reader(
    standing: Standing, digits: Labelling, label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory
) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "sets").mkdir()
    known = Settings.variables()
    environment = {name: value for name, value in os.environ.items() if name not in known} | standing.settings
    environment |= {
        "NEAT_DATA_DIR": str(standing.folder / "data"),
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    replaced = {
        "localhost:9090": f"127.0.0.1:{standing.backend.port}",
        "/opt/neat/bin/": "",
        "/srv/neat": str(standing.folder / "data"),
        "/srv/sets": str(folder / "sets"),
        "/srv/pictures": str(label_studio.folder / "media"),
    }
    made = Reader(standing, digits.project, environment, replaced, folder)
    run = {"env": environment, "cwd": folder, "check": True, "capture_output": True, "timeout": HANGS}
    program = [sys.executable, "-m", "neat_backend.cli"]
    subprocess.run([*program, "backup", "backup"], **run)
    run["env"] = environment | {"NEAT_DATA_DIR": str(folder / "copy")}
    subprocess.run([*program, "restore", "backup"], **run)
    return made


def test_what_is_not_run_is_on_the_pages() -> None:
    lines = {command(line) for page in PAGES for block in blocks(page) for line in block.splitlines()}
    assert set(NOT_RUN) <= lines


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_works(page: str, reader: Reader, request: pytest.FixtureRequest) -> None:
    if "postgresql://" in (DOCS / page).read_text():
        moved = f"{request.getfixturevalue('empty_postgres')} NEAT_DATA_DIR={reader.folder}/moved"
        reader.replaced = {"postgresql://neat:password@db/neat NEAT_DATA_DIR=/srv/neat": moved, **reader.replaced}
    found = blocks(page)
    todo = [rest for block in found if (rest := without_what_is_not_run(block)).strip()]
    with ThreadPoolExecutor(2) as two:
        failures = [words for words in two.map(reader.follow, todo) if words]
    assert not failures, "\n\n".join(failures)
    assert found
