"""Settings: every variable is read under its name, bad values are named, secrets stay hidden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from neat_backend.errors import SettingsError
from neat_backend.settings import PER_PROJECT, Settings
from tests.waiting import HANGS

# Variable → a value that is not its default, and what it is read as.
GIVEN: dict[str, tuple[str, Any]] = {
    "LABEL_STUDIO_URL": ("https://label.example.com/studio/", "https://label.example.com/studio"),
    "LABEL_STUDIO_API_KEY": ("a key", SecretStr("a key")),
    "NEAT_CONFIGURE_PROJECT": ("0", False),
    "NEAT_REQUEST_TIMEOUT": ("12.5", 12.5),
    "NEAT_TASK_COLUMNS": ("1", True),
    "NEAT_RECONCILE_SECONDS": ("0", 0),
    "HOST": ("0.0.0.0", "0.0.0.0"),
    "PORT": ("9191", 9191),
    "NEAT_URL": ("http://neat.internal:9090/", "http://neat.internal:9090"),
    "WORKERS": ("2", 2),
    "THREADS": ("3", 3),
    "BASIC_AUTH_USER": ("ann", "ann"),
    "BASIC_AUTH_PASS": ("a password", SecretStr("a password")),
    "NEAT_ALLOW_ANONYMOUS": ("1", True),
    "LOG_LEVEL": ("DEBUG", "DEBUG"),
    "NEAT_LOG_FORMAT": ("json", "json"),
    "NEAT_PREDICT_WAIT": ("0.5", 0.5),
    "NEAT_DATA_DIR": ("/srv/neat", Path("/srv/neat")),
    "DATABASE_URL": ("postgresql://ann:secret@db/neat", "postgresql://ann:secret@db/neat"),
    "DATABASE_PASSWORD": ("a password", SecretStr("a password")),
    "NEAT_ARRAYS_URL": ("s3://bucket/neat/", "s3://bucket/neat"),
    "NEAT_MAX_LIVE_PROJECTS": ("4", 4),
    "NEAT_FEATURES_MEMORY": ("1000", 1000),
    "NEAT_SCRATCH_DIR": ("/scratch", Path("/scratch")),
    "NEAT_COMPUTE": ("ray", "ray"),
    "RAY_ADDRESS": ("ray://head:10001", "ray://head:10001"),
    "NEAT_SHARDS": ("4", 4),
    "NEAT_ENCODER": ("resnet18", "resnet18"),
    "NEAT_ENCODER_WEIGHTS": ("/srv/weights.pt", Path("/srv/weights.pt")),
    "NEAT_DEVICE": ("cpu", "cpu"),
    "NEAT_ENCODER_BACKEND": ("torch", "torch"),
    "NEAT_ENCODE_BATCH_SIZE": ("5", 5),
    "NEAT_DOWNLOADS": ("6", 6),
    "NEAT_MAX_IMAGE_BYTES": ("1000", 1000),
    "NEAT_MAX_IMAGE_PIXELS": ("2000", 2000),
    "NEAT_IMAGE_HOSTS": ("minio, *.example.com, ::1", ("minio", "*.example.com", "::1")),
    "NEAT_STRATEGY": ("neat_plus", "neat_plus"),
    "NEAT_K": ("7", 7),
    "NEAT_NEIGHBOURS": ("exact", "exact"),
    "NEAT_KNOWN_RULE": ("majority", "majority"),
    "NEAT_BATCH_SIZE": ("20", 20),
    "NEAT_RERANK": ("round", "round"),
    "NEAT_BALANCE": ("0", False),
    "NEAT_PREFILL": ("vote", "vote"),
    "NEAT_DUPLICATE_SIMILARITY": ("0.9", 0.9),
    "NEAT_SKIP_DUPLICATES": ("1", True),
    "NEAT_RANDOM_SHARE": ("0.2", 0.2),
    "NEAT_INVALID_CHOICES": ("junk, no dog ,", ("junk", "no dog")),
    "NEAT_CONTROL": ("species", "species"),
    "NEAT_SEED": ("3", 3),
    "NEAT_CLASSIFIER": ("linear", "linear"),
    "NEAT_IMAGE_SIZE": ("32", 32),
    "NEAT_CLASSIFIER_WEIGHTS": ("/srv/resnet18.pth", "/srv/resnet18.pth"),
    "NEAT_EPOCHS": ("9", 9),
    "NEAT_EARLY_STOP": ("0", False),
    "NEAT_PROGRESSIVE_RESIZING": ("1", True),
    "NEAT_HOLDOUT": ("0.2", 0.2),
    "NEAT_TRAIN_TIME_LIMIT": ("60", 60),
    "NEAT_PUBLISH_INTERVAL": ("0.1", 0.1),
    "NEAT_PUBLISH_TAIL": ("0", 0),
}
SECRET = "hunter2-x9"
PARTNER = {
    "BASIC_AUTH_USER": {"BASIC_AUTH_PASS": "p"},
    "BASIC_AUTH_PASS": {"BASIC_AUTH_USER": "u"},
    "DATABASE_PASSWORD": {"DATABASE_URL": "postgresql://ann@db/neat"},
}


class TestFromEnv:
    def test_the_table_of_this_test_names_every_setting(self) -> None:
        assert set(GIVEN) == set(Settings.titles().values())

    @pytest.mark.parametrize("variable", GIVEN)
    def test_each_variable_sets_its_field_and_no_other(self, variable: str) -> None:
        text, expected = GIVEN[variable]
        others = PARTNER.get(variable, {})
        names = {title: name for name, title in Settings.titles().items()}
        before, after = Settings.from_env({}), Settings.from_env({variable: text, **others})
        assert getattr(after, names[variable]) == expected
        assert getattr(before, names[variable]) != expected
        changed = {name for name in names.values() if getattr(before, name) != getattr(after, name)}
        assert changed == {names[variable], *(names[other] for other in others)}

    def test_an_empty_variable_is_as_good_as_none(self) -> None:
        assert Settings.from_env(dict.fromkeys(GIVEN, "")) == Settings.from_env({})

    def test_the_processs_environment_is_read_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEAT_K", "17")
        assert Settings.from_env().k == 17

    def test_the_log_level_may_be_in_any_case(self) -> None:
        assert Settings.from_env({"LOG_LEVEL": "debug"}).log_level == "DEBUG"

    @pytest.mark.parametrize("name", ["clip:ViT-B-32/openai", "resnet34", "resnet50", "efficientnet_lite0"])
    def test_every_encoder_is_taken(self, name: str) -> None:
        assert Settings.from_env({"NEAT_ENCODER": name}).encoder == name

    def test_what_looks_like_a_setting_but_is_none_is_found(self) -> None:
        env = dict.fromkeys(
            [*GIVEN, "NEAT_BATCHSIZE", "NEAT_KNOWNRULE", "NEAT_BACKEND_SERVICE_HOST", "NEAT_LABEL_STUDIO"]
        )
        assert Settings.misspelt(env) == {  # type: ignore[arg-type]
            "NEAT_BATCHSIZE": "NEAT_BATCH_SIZE",
            "NEAT_KNOWNRULE": "NEAT_KNOWN_RULE",
        }

    def test_overrides_win(self) -> None:
        assert Settings.from_env({"NEAT_K": "17"}, k=3).k == 3

    @pytest.mark.parametrize(("older", "name"), [("LABEL_STUDIO_HOST", "label_studio_url"), ("MODEL_DIR", "data_dir")])
    def test_names_that_users_know_are_taken_too_after_our_own(self, older: str, name: str) -> None:
        title = Settings.titles()[name]
        text, expected = GIVEN[title]
        assert getattr(Settings.from_env({older: text}), name) == expected
        assert getattr(Settings.from_env({older: "http://other", title: text}), name) == expected

    @pytest.mark.parametrize("text", ['["one", "two, three"]', ' ["one", "two, three"]'])
    def test_invalid_choices_may_be_a_json_list(self, text: str) -> None:
        expected = ("one", "two, three")
        assert Settings.from_env({"NEAT_INVALID_CHOICES": text}).invalid_choices == expected
        assert Settings.from_env({}, invalid_choices=text).invalid_choices == expected
        assert Settings.from_env({}).for_project({"invalid_choices": text}).invalid_choices == expected


class TestBadValues:
    @pytest.mark.parametrize(
        ("variable", "text", "remedy"),
        [
            ("NEAT_K", "0", "greater than or equal to 1"),
            ("NEAT_K", "ten", "valid integer"),
            ("NEAT_KNOWN_RULE", "most", "'all' or 'majority'"),
            ("NEAT_RERANK", "never", "'live' or 'round'"),
            ("NEAT_CLASSIFIER", "vgg16", "'auto', 'resnet18' or 'linear'"),
            ("NEAT_CONFIGURE_PROJECT", "perhaps", "valid boolean"),
            ("NEAT_HOLDOUT", "0.9", "less than or equal to 0.5"),
            ("NEAT_REQUEST_TIMEOUT", "0", "greater than 0"),
            ("NEAT_REQUEST_TIMEOUT", "inf", "finite number"),
            ("NEAT_RECONCILE_SECONDS", "nan", "number"),
            ("NEAT_INVALID_CHOICES", "[dog", "JSON list"),
            ("NEAT_SEED", str(2**32), "less than 4294967296"),
            ("NEAT_ENCODER", "clipp", "must be clip:MODEL/PRETRAINED"),
            ("NEAT_CLASSIFIER_WEIGHTS", "imagenet", "must be auto, scratch, or a .safetensors"),
            ("NEAT_DEVICE", "gpu", "must be auto, cpu, cuda or cuda:N"),
            ("PORT", "65536", "less than or equal to 65535"),
            ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
            ("LABEL_STUDIO_URL", "label.example.com", "must start with http:// or https://"),
            ("LABEL_STUDIO_HOST", "label.example.com", "must start with http:// or https://"),
            ("DATABASE_URL", "mysql://db/neat", "must start with postgresql:// or sqlite:///"),
        ],
    )
    def test_name_the_variable_its_value_and_what_would_do(self, variable: str, text: str, remedy: str) -> None:
        with pytest.raises(SettingsError) as raised:
            Settings.from_env({variable: text})
        message = str(raised.value)
        assert message.startswith(f"{variable}={text!r}: ")
        assert remedy in message
        assert "pydantic" not in message

    def test_all_of_them_are_named_at_once(self) -> None:
        with pytest.raises(SettingsError, match=r"NEAT_K='0': .*; NEAT_EPOCHS='x': "):
            Settings.from_env({"NEAT_K": "0", "NEAT_EPOCHS": "x"})

    @pytest.mark.parametrize("alone", ["BASIC_AUTH_USER", "BASIC_AUTH_PASS"])
    def test_half_of_basic_auth_is_refused(self, alone: str) -> None:
        with pytest.raises(SettingsError, match="BASIC_AUTH_USER and BASIC_AUTH_PASS go together") as raised:
            Settings.from_env({alone: SECRET})
        assert SECRET not in str(raised.value)

    def test_an_unknown_field_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="neighbors"):
            Settings.from_env({}, neighbors=3)


class TestSecrets:
    ENV = {  # noqa: RUF012
        "LABEL_STUDIO_API_KEY": SECRET,
        "BASIC_AUTH_USER": "ann",
        "BASIC_AUTH_PASS": SECRET,
        "DATABASE_URL": f"postgresql://ann:{SECRET}@db:5432/neat",
        "LABEL_STUDIO_URL": f"https://ann:{SECRET}@label.example.com",
    }

    def test_are_in_nothing_that_is_shown(self) -> None:
        shown = Settings.from_env(self.ENV).shown()
        assert SECRET not in str(shown)
        assert shown["DATABASE_URL"] == "postgresql://ann:***@db:5432/neat"
        assert shown["LABEL_STUDIO_URL"] == "https://ann:***@label.example.com"
        assert shown["LABEL_STUDIO_API_KEY"]  # that there is one may be seen

    @pytest.mark.parametrize(
        "url", [f"mysql://ann:{SECRET}@db/x", f"mysql://ann:{SECRET}@/x@db/y?password={SECRET}", f"ann:{SECRET}@db"]
    )
    def test_are_in_no_error(self, url: str) -> None:
        with pytest.raises(SettingsError, match=r"DATABASE_URL.*: must start with") as raised:
            Settings.from_env({**self.ENV, "DATABASE_URL": url, "NEAT_K": "0"})
        assert SECRET not in str(raised.value)

    def test_that_are_no_text_are_in_no_error_either(self) -> None:
        with pytest.raises(SettingsError, match="LABEL_STUDIO_API_KEY") as raised:
            Settings.from_env({}, label_studio_api_key=[SECRET])
        assert SECRET not in str(raised.value)

    def test_are_not_in_the_representation(self) -> None:
        settings = Settings.from_env({"LABEL_STUDIO_API_KEY": SECRET})
        assert SECRET not in repr(settings) + str(settings)


class TestSecretsInFiles:
    """`NAME_FILE` names a file with the secret, as Docker and Kubernetes mount them."""

    VARIABLES = sorted(Settings.titles()[name] for name in Settings.secret_fields())

    def test_every_secret_can_be_in_one(self) -> None:
        assert {"LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS", "DATABASE_URL", "DATABASE_PASSWORD"} <= set(self.VARIABLES)

    @pytest.mark.parametrize("variable", VARIABLES)
    def test_each_is_read_without_the_line_end(self, variable: str, tmp_path: Path) -> None:
        text, expected = GIVEN[variable]
        (tmp_path / "secret").write_text(f"{text}\n")
        names = {title: name for name, title in Settings.titles().items()}
        found = Settings.from_env({f"{variable}_FILE": str(tmp_path / "secret"), **PARTNER.get(variable, {})})
        assert getattr(found, names[variable]) == expected

    @pytest.mark.parametrize("variable", VARIABLES)
    def test_both_ways_at_once_are_refused(self, variable: str, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(SECRET)
        env = {variable: GIVEN[variable][0], f"{variable}_FILE": str(tmp_path / "secret")}
        with pytest.raises(SettingsError, match=f"{variable} and {variable}_FILE are both set"):
            Settings.from_env({**PARTNER.get(variable, {}), **env})

    @pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
    def test_a_file_without_a_secret_is_named(self, content: bytes | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "secret").write_bytes(content)
        with pytest.raises(SettingsError, match=r"LABEL_STUDIO_API_KEY_FILE=.*secret"):
            Settings.from_env({"LABEL_STUDIO_API_KEY_FILE": str(tmp_path / "secret")})

    def test_a_bad_value_from_a_file_is_not_shown(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(f"mysql:{SECRET}")
        with pytest.raises(SettingsError, match="DATABASE_URL: must start with") as raised:
            Settings.from_env({"DATABASE_URL_FILE": str(tmp_path / "secret")})
        assert SECRET not in str(raised.value)

    def test_what_is_no_secret_has_no_file(self) -> None:
        assert "NEAT_K_FILE" not in Settings.variables()


class TestDatabasePassword:
    def test_becomes_part_of_the_url_whatever_is_in_it(self) -> None:
        env = {"DATABASE_URL": "postgresql://ann@db:5432/neat", "DATABASE_PASSWORD": "p@s:s/w%rd"}
        settings = Settings.from_env(env)
        assert settings.sqlalchemy_url == "postgresql+psycopg://ann:p%40s%3As%2Fw%25rd@db:5432/neat"
        assert "p@s" not in str(settings.shown())

    @pytest.mark.parametrize(
        "url", ["", "sqlite:///x", "postgresql://db/neat", "postgresql://ann:other@db/neat", "postgresql:///x?user=a@b"]
    )
    def test_without_a_place_for_it_is_refused(self, url: str) -> None:
        with pytest.raises(SettingsError, match="DATABASE_PASSWORD needs a DATABASE_URL with a user"):
            Settings.from_env({"DATABASE_URL": url, "DATABASE_PASSWORD": SECRET})


class TestForProject:
    def test_no_extra_params_change_nothing(self) -> None:
        settings = Settings.from_env({})
        assert settings.for_project({}) is settings
        assert settings.for_project(None) is settings

    @pytest.mark.parametrize("key", ["NEAT_K", "neat_k", "k", "K"])
    def test_a_setting_goes_by_its_variable_or_its_field_in_any_case(self, key: str) -> None:
        assert Settings.from_env({"NEAT_K": "4"}).for_project({key: 5}).k == 5

    def test_the_rest_stays_as_the_environment_has_it(self) -> None:
        settings = Settings.from_env({"NEAT_EPOCHS": "9", "LABEL_STUDIO_API_KEY": SECRET})
        changed = settings.for_project({"batch_size": 20, "invalid_choices": ["junk"]})
        assert (changed.batch_size, changed.invalid_choices, changed.epochs) == (20, ("junk",), 9)
        assert changed.label_studio_api_key == settings.label_studio_api_key
        assert settings.batch_size == 50

    @pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - set(PER_PROJECT)))
    def test_what_concerns_every_project_is_refused(self, name: str) -> None:
        for key in (name, Settings.titles()[name]):
            refused = f"'{key}' can't be set per project; these can: NEAT_STRATEGY,"
            with pytest.raises(SettingsError, match=refused) as raised:
                Settings.from_env({}).for_project({key: SECRET})
            assert SECRET not in str(raised.value)

    @pytest.mark.parametrize("name", PER_PROJECT)
    def test_what_a_project_may_set_is_a_field(self, name: str) -> None:
        assert name in Settings.model_fields

    @pytest.mark.parametrize("name", PER_PROJECT)
    @pytest.mark.parametrize(
        "value", [10**18, 10**4400, 1e300, "x" * 2000, ["x"] * 2000], ids=lambda value: str(type(value))
    )
    def test_no_value_is_without_bounds(self, name: str, value: Any) -> None:
        """Whoever may connect the backend types these; a batch of 10**18 tasks would stop the project."""
        with pytest.raises(SettingsError, match=f"^{Settings.titles()[name]}=") as raised:
            Settings.from_env({}).for_project({name: value})
        assert len(str(raised.value)) < 1000

    @pytest.mark.parametrize("params", [{"k": 0}, {"k": None}, {"k": [1]}, {"rerank": "never"}, {"epochs": 2.5}])
    def test_a_bad_value_is_named(self, params: dict[str, Any]) -> None:
        (name,) = params
        with pytest.raises(SettingsError, match=f"^{Settings.titles()[name]}="):
            Settings.from_env({}).for_project(params)

    def test_an_unknown_key_is_named(self) -> None:
        with pytest.raises(SettingsError, match="can't be set per project") as raised:
            Settings.from_env({}).for_project({"n" * 100_000: 3})
        assert len(str(raised.value)) < 1000
        with pytest.raises(SettingsError, match="'neighbours' can't be set per project"):
            Settings.from_env({}).for_project({"neighbours": 3})


class TestDatabase:
    def test_sqlite_in_the_data_folder_unless_told_otherwise(self, tmp_path: Path) -> None:
        url = Settings.from_env({"NEAT_DATA_DIR": str(tmp_path)}).sqlalchemy_url
        assert url == f"sqlite:///{tmp_path / 'neat.sqlite3'}"

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
    def test_postgresql_by_its_installed_driver(self, scheme: str) -> None:
        url = Settings.from_env({"DATABASE_URL": f"{scheme}://ann:pw@db/neat"}).sqlalchemy_url
        assert url == "postgresql+psycopg://ann:pw@db/neat"

    @pytest.mark.parametrize("url", ["postgresql+psycopg://db/neat", "sqlite:////srv/neat.sqlite3"])
    def test_what_names_its_driver_stays(self, url: str) -> None:
        assert Settings.from_env({"DATABASE_URL": url}).sqlalchemy_url == url


class TestEnvFile:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The working directory, with an environment that sets nothing."""
        for name in Settings.variables():
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_env_of_the_working_directory_is_read(self, folder: Path) -> None:
        (folder / ".env").write_text(
            "\ufeff# ours\nNEAT_K=17\nexport NEAT_SEED = 3  # as before\nLABEL_STUDIO_API_KEY='a # key ${HOME}'\n"
        )
        settings = Settings.from_env()
        assert (settings.k, settings.seed) == (17, 3)
        assert settings.label_studio_api_key.get_secret_value() == "a # key ${HOME}"

    def test_the_environment_wins_and_an_argument_wins_over_both(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / ".env").write_text("NEAT_K=17\nNEAT_SEED=3\nPORT=9191\n")
        monkeypatch.setenv("NEAT_K", "5")
        monkeypatch.setenv("NEAT_SEED", "")
        settings = Settings.from_env(port=9292)
        assert (settings.k, settings.seed, settings.port) == (5, 3, 9292)

    def test_the_environment_wins_under_every_name_of_the_setting(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret = folder / "secret"
        secret.write_text("of a file\n")
        (folder / ".env").write_text("LABEL_STUDIO_URL=http://file\nLABEL_STUDIO_API_KEY=of .env\n")
        monkeypatch.setenv("LABEL_STUDIO_HOST", "http://environment")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY_FILE", str(secret))
        settings = Settings.from_env()
        assert settings.label_studio_url == "http://environment"
        assert settings.label_studio_api_key.get_secret_value() == "of a file"

    def test_another_file_is_read_in_its_place(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / ".env").write_text("NEAT_K=17\nNEAT_SEED=3\n")
        (folder / "prod.env").write_text("NEAT_K=5\n")
        monkeypatch.setenv("NEAT_ENV_FILE", "prod.env")
        settings = Settings.from_env()
        assert (settings.k, settings.seed) == (5, 0)

    def test_it_is_not_read_where_an_environment_is_given(self, folder: Path) -> None:
        (folder / ".env").write_text("NEAT_K=17\n")
        assert Settings.from_env({}).k == 10

    def test_a_folder_of_that_name_is_none(self, folder: Path) -> None:
        (folder / ".env").mkdir()
        assert Settings.from_env() == Settings.from_env({})

    def test_what_looks_like_a_setting_but_is_none_is_found(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / ".env").write_text("NEAT_BATCHSIZE=20\nNEAT_K=5\n")
        monkeypatch.setenv("NEAT_KNOWNRULE", "all")
        assert Settings.misspelt() == {"NEAT_KNOWNRULE": "NEAT_KNOWN_RULE", "NEAT_BATCHSIZE": "NEAT_BATCH_SIZE"}

    def test_a_bad_value_is_named_with_its_file(self, folder: Path) -> None:
        (folder / ".env").write_text("NEAT_K=ten\n")
        with pytest.raises(SettingsError, match=r"^NEAT_K='ten': .*valid integer.* \(in \.env\)$"):
            Settings.from_env()

    def test_a_line_that_is_no_setting_is_named(self, folder: Path) -> None:
        (folder / ".env").write_text("NEAT_K=10\nLABEL_STUDIO_URL http://ls\n")
        with pytest.raises(SettingsError, match=r"^\.env, line 2: write NAME=VALUE$"):
            Settings.from_env()

    @pytest.mark.parametrize("content", [None, b"NEAT_K=\xff\n"])
    def test_a_file_that_is_named_and_cannot_be_read_is_an_error(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
    ) -> None:
        if content is not None:
            (folder / "prod.env").write_bytes(content)
        monkeypatch.setenv("NEAT_ENV_FILE", "prod.env")
        with pytest.raises(SettingsError, match=r"^prod\.env can't be read .*--env-file and NEAT_ENV_FILE"):
            Settings.from_env()

    def test_the_parser_is_loaded_only_where_there_is_a_file(self, folder: Path) -> None:
        code = "import sys, neat_backend.settings as s; s.Settings.from_env(); print('dotenv' in sys.modules)"

        def loaded() -> str:
            words = [sys.executable, "-c", code]
            return subprocess.run(words, capture_output=True, text=True, timeout=HANGS, check=True).stdout.strip()

        assert loaded() == "False"
        (folder / ".env").write_text("NEAT_K=5\n")
        assert loaded() == "True"
