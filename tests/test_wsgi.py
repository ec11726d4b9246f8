"""`_wsgi.py`: label-studio-ml's flags, and the app for gunicorn."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from neat_backend.errors import SettingsError
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[1]


@pytest.fixture
def wsgi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The module, imported as gunicorn does; its app uses a folder of the test's."""
    monkeypatch.setenv("NEAT_DATA_DIR", str(tmp_path / "data"))
    # Other tests' Ray listens in this process; `tests/web/test_exposure.py` has real servers that listen for others.
    monkeypatch.setattr("neat_backend.web.exposure.listened_at", list)
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop("_wsgi", None)
    import _wsgi

    yield _wsgi
    sys.modules.pop("_wsgi", None)


def test_has_the_app_for_gunicorn(wsgi) -> None:  # type: ignore[no-untyped-def]
    assert wsgi.app.test_client().get("/health").status_code == 200


class TestFlags:
    def test_are_those_of_label_studio_ml(self, wsgi) -> None:  # type: ignore[no-untyped-def]
        flags = (
            "-p 9191 --host 127.0.0.1 -d --model-dir /models --check "
            "--basic-auth-user ann --basic-auth-pass secret --kwargs NEAT_K=5 batch_size=20 rerank=round"
        )
        settings = wsgi.settings_of(wsgi.arguments(flags.split()))
        assert (settings.port, settings.host, settings.log_level) == (9191, "127.0.0.1", "DEBUG")
        assert settings.data_dir == Path("/models")
        assert (settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()) == ("ann", "secret")
        assert (settings.k, settings.batch_size, settings.rerank) == (5, 20, "round")

    def test_none_leaves_the_environment_in_force(
        self,
        wsgi,  # type: ignore[no-untyped-def]
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("PORT", "9292")
        settings = wsgi.settings_of(wsgi.arguments([]))
        assert (settings.port, settings.data_dir) == (9292, tmp_path / "data")

    @pytest.mark.parametrize(
        ("flags", "key"), [("--kwargs colour=red", "colour"), ("--kwargs k", "KEY=VAL"), ("--kwargs k=none", "NEAT_K")]
    )
    def test_a_wrong_setting_is_named(self, wsgi, flags: str, key: str) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(SettingsError, match=key):
            wsgi.settings_of(wsgi.arguments(flags.split()))


def test_tests_written_for_label_studio_mls_own_file_find_their_server(wsgi, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from model import NeatModel

    assert wsgi.init_app(model_class=NeatModel, model_dir=str(tmp_path)).test_client().get("/health").status_code == 200


def test_a_wrong_setting_ends_it_in_plain_words() -> None:
    done = subprocess.run(
        [sys.executable, "_wsgi.py", "--kwargs", "NEAT_K=0"], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 2
    assert "NEAT_K" in done.stderr
    assert "Traceback" not in done.stderr


def test_label_studio_ml_start_runs_it(tmp_path: Path) -> None:
    bin_dir = Path(sys.executable).parent
    command = [str(bin_dir / "label-studio-ml"), "start", str(ROOT), "-p", "0", "--host", "127.0.0.1"]
    command += ["--model-dir", str(tmp_path / "models"), "--log-level", "INFO", "--check"]
    env = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "NEAT_ENCODER": "efficientnet_lite0"}
    output = tmp_path / "output"
    with open(output, "w") as file:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=file, stderr=file, start_new_session=True)
    try:
        until(lambda: "listening on " in output.read_text(), output.read_text)
        (url,) = re.findall(r"listening on (http://\S+:\d+)", output.read_text())
        with urllib.request.urlopen(f"{url}/health", timeout=HANGS) as health:
            assert '"UP"' in health.read().decode()
        assert "are in order" in output.read_text()
        assert (tmp_path / "models" / "neat.sqlite3").exists()
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(timeout=HANGS)
    assert "stopping web and worker" in output.read_text()
