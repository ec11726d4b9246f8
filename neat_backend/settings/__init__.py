"""All settings, and the only reader of the environment and of `.env`.

The table of docs/reference/settings.md is generated from here and a test keeps the two equal. Bad values raise
`SettingsError` naming key, value and remedy.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo

from neat_backend import plugins
from neat_backend.errors import SettingsError
from neat_backend.settings.sources import ENV_FILE, FILE, Source, find, sources

# What a project may override for itself through the connection form's "extra params".
PER_PROJECT = (
    "strategy",
    "k",
    "known_rule",
    "batch_size",
    "rerank",
    "balance",
    "duplicate_similarity",
    "skip_duplicates",
    "random_share",
    "prefill",
    "invalid_choices",
    "control",
    "configure_project",
    "task_columns",
    "publish_interval_seconds",
    "publish_tail",
    "classifier",
    "epochs",
    "early_stop",
    "progressive_resizing",
    "seed",
)


def env(default: Any, variable: str, *older_names: str, **bounds: Any) -> Any:
    """A field of Settings: its default, its variable, other variables that users know, and pydantic's bounds."""
    return Field(default, validation_alias=AliasChoices(variable, *older_names), **bounds)


def _names(info: FieldInfo) -> list[str]:
    assert isinstance(info.validation_alias, AliasChoices)
    return [str(choice) for choice in info.validation_alias.choices]


def _split_list(value: Any) -> Any:
    """Accept `a, b, c` beside a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not a JSON list: {error}") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def _hosts_only(value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host) and not _is_address(host):
            raise ValueError(f"{host!r} is no host: give names without scheme, port and path, *.example.com, or *")
    return value


def _any_case(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _known_encoder(value: str) -> str:
    """Said at the start: the encoder itself is built when the first project connects."""
    if re.fullmatch(r"clip:.+|resnet(18|34|50)|efficientnet_lite[012]", value):
        return value
    added = plugins.names(plugins.ENCODERS)
    if value.partition(":")[0] not in added:
        raise ValueError(
            "must be clip:MODEL/PRETRAINED, resnet18, resnet34, resnet50, efficientnet_lite0, _lite1 or _lite2"
            + "".join(f", or {name}" for name in added)
        )
    return value


def _known_strategy(value: str) -> str:
    if value in STRATEGIES:
        return value
    added = plugins.names(plugins.STRATEGIES)
    if value not in added:
        raise ValueError(f"must be one of {', '.join((*STRATEGIES, *added))}")
    return value


def _known_weights(value: str) -> str:
    if not re.fullmatch(r"auto|scratch|.+\.(safetensors|pt|pth|bin)", value, re.DOTALL):
        raise ValueError("must be auto, scratch, or a .safetensors, .pt, .pth or .bin file")
    return value


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", value):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return value


def _known_database(value: str) -> str:
    if value and not value.startswith(("postgresql", "postgres://", "sqlite")):
        raise ValueError("must start with postgresql:// or sqlite:///")
    return value


def _known_store(value: str) -> str:
    if not value:
        return value
    from fsspec import available_protocols

    protocol, found, rest = value.partition("://")
    if not found or not rest.strip("/"):
        raise ValueError("must be a URL with a bucket or folder, such as s3://bucket/folder")
    if protocol not in available_protocols():
        near = difflib.get_close_matches(protocol, ["s3", "gs", "gcs", "file", "abfs", "sftp"], n=1, cutoff=0.5)
        raise ValueError(f"there is no {protocol}://" + (f"; did you mean {near[0]}://?" if near else ""))
    return value.rstrip("/")


def _http_url(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


# Those that need no classifier of an experiment's own.
STRATEGIES = ("neat", "neat_plus", "neat_passive", "random", "uncertainty", "certainty", "coreset", "badge")
Strategy = Annotated[str, AfterValidator(_known_strategy)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_any_case)]
Names = Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], BeforeValidator(_split_list)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_split_list), AfterValidator(_hosts_only)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
DatabaseUrl = Annotated[str, AfterValidator(_known_database)]
ArraysUrl = Annotated[str, AfterValidator(_known_store)]
Encoder = Annotated[str, AfterValidator(_known_encoder)]
Weights = Annotated[str, AfterValidator(_known_weights)]
Device = Annotated[str, AfterValidator(_known_device)]


class Settings(BaseModel):
    """Settings of one process; `for_project` gives those of one project. The text below a field says what it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    # Label Studio
    label_studio_url: HttpUrl = env("", "LABEL_STUDIO_URL", "LABEL_STUDIO_HOST")
    """Where Label Studio is, as seen from here"""
    label_studio_api_key: SecretStr = env(SecretStr(""), "LABEL_STUDIO_API_KEY")
    """Legacy or personal access token of a user who may edit the projects"""
    configure_project: bool = env(True, "NEAT_CONFIGURE_PROJECT")
    """Set uncertainty sampling on connecting; keep the tabs “NEAT: next batch” and “NEAT: check these labels”"""
    task_columns: bool = env(False, "NEAT_TASK_COLUMNS")
    """Write inconsistency and predicted class of the tasks that come next into their data, as columns
    `neat_inconsistency` and `neat_class` of the Data Manager; and of the labels to check what the neighbours say and
    how likely they are mistakes, as `neat_neighbours` and `neat_suspicion`"""
    request_timeout_seconds: float = env(30, "NEAT_REQUEST_TIMEOUT", gt=0)
    """Seconds to wait for one answer of Label Studio"""
    reconcile_seconds: float = env(60, "NEAT_RECONCILE_SECONDS", ge=0)
    """Seconds between comparisons with Label Studio, to find what webhooks did not tell; 0 = never"""

    # this service
    host: str = env("127.0.0.1", "HOST")
    """Address to listen on: this machine alone, or 0.0.0.0 for others, who then need credentials"""
    port: int = env(9090, "PORT", ge=0, le=65535)
    """Port to listen on"""
    url: HttpUrl = env("", "NEAT_URL")
    """This backend's address as Label Studio reaches it, such as http://neat-backend.internal:9090; empty = worked out
    from HOST and PORT"""
    workers: int = env(1, "WORKERS", ge=1)
    """gunicorn worker processes"""
    threads: int = env(8, "THREADS", ge=1)
    """Threads of each gunicorn worker"""
    basic_auth_user: str = env("", "BASIC_AUTH_USER")
    """User name for basic auth; empty = none"""
    basic_auth_pass: SecretStr = env(SecretStr(""), "BASIC_AUTH_PASS")
    """Password for basic auth"""
    allow_anonymous: bool = env(False, "NEAT_ALLOW_ANONYMOUS")
    """Serve other machines without credentials; only where the network itself keeps strangers out"""
    log_level: LogLevel = env("INFO", "LOG_LEVEL")
    """DEBUG, INFO, WARNING or ERROR"""
    log_format: Literal["plain", "json"] = env("plain", "NEAT_LOG_FORMAT")
    """plain, or json: one object a line, with the ids of project, task and event"""
    predict_wait_seconds: float = env(5, "NEAT_PREDICT_WAIT", ge=0)
    """Seconds that /predict waits for a task that was not known, and a search by words for the worker"""

    # where things are kept
    data_dir: Path = env(Path("data"), "NEAT_DATA_DIR", "MODEL_DIR")
    """Folder for the database, features and models"""
    database_url: DatabaseUrl = env("", "DATABASE_URL")
    """postgresql://… for PostgreSQL; empty = SQLite in the data folder"""
    database_password: SecretStr = env(SecretStr(""), "DATABASE_PASSWORD")
    """Password of the user in `DATABASE_URL`, instead of one in the URL itself"""
    arrays_url: ArraysUrl = env("", "NEAT_ARRAYS_URL")
    """Object store for features and models, such as s3://bucket/folder (pip install s3fs) or gs://… (gcsfs), for hosts
    that share no NEAT_DATA_DIR, which is then a cache; empty = NEAT_DATA_DIR alone"""
    max_live_projects: int = env(8, "NEAT_MAX_LIVE_PROJECTS", ge=1)
    """Projects kept in memory; the least recently used leave"""
    features_memory: int = env(8_000_000_000, "NEAT_FEATURES_MEMORY", ge=0)
    """Bytes of one project's features, 3 for each value, that may lie in memory; more are in a file that is mapped"""
    scratch_dir: Path | None = env(None, "NEAT_SCRATCH_DIR")
    """Folder on a local disk for such files, which go with the process; empty = in the data folder"""

    # what computes
    compute: Literal["local", "ray"] = env("local", "NEAT_COMPUTE")
    """local = this machine; ray = embedding, training and pool inference on a Ray cluster (pip install 'ray[data]')"""
    ray_address: str = env("", "RAY_ADDRESS")
    """Ray's head node, host:port or ray://host:port; empty = a Ray of this machine's own"""
    shards: int = env(0, "NEAT_SHARDS", ge=0)
    """With Ray: actors that the pool's rows are spread over; 0 = all in the worker's memory"""

    # features
    encoder: Encoder = env("clip:ViT-B-32/openai", "NEAT_ENCODER")
    """clip:MODEL/PRETRAINED, resnet18, resnet34, resnet50, efficientnet_lite0 (needs no download), _lite1 or _lite2"""
    encoder_weights: Path | None = env(None, "NEAT_ENCODER_WEIGHTS")
    """Local file with the encoder's weights, instead of a download"""
    device: Device = env("auto", "NEAT_DEVICE")
    """auto, cpu, cuda or cuda:N"""
    encoder_backend: Literal["auto", "torch", "openvino", "openvino-bf16"] = env("auto", "NEAT_ENCODER_BACKEND")
    """What computes features: auto = what made the project's, else OpenVINO on a CPU and PyTorch on a GPU or with Ray;
    openvino-bf16 = in bfloat16: faster where the CPU has it, other neighbours"""
    encode_batch_size: int = env(32, "NEAT_ENCODE_BATCH_SIZE", ge=1)
    """Images encoded at a time"""
    downloads: int = env(8, "NEAT_DOWNLOADS", ge=1)
    """Images fetched at the same time"""
    max_image_bytes: int = env(50_000_000, "NEAT_MAX_IMAGE_BYTES", ge=1)
    """Larger image files are refused"""
    max_image_pixels: int = env(100_000_000, "NEAT_MAX_IMAGE_PIXELS", ge=1)
    """Images with more pixels are refused"""
    image_hosts: Hosts = env((), "NEAT_IMAGE_HOSTS")
    """Hosts, beside Label Studio, that images may come from, such as `minio, *.example.com`; `*` = every public
    address, as when empty; a host with a private address must be named"""

    # the method
    strategy: Strategy = env("neat", "NEAT_STRATEGY")
    """neat (paper; follows each label at once), or, with an order made in seconds beside the labels, neat_plus,
    neat_passive, random, uncertainty, certainty, coreset, badge, or one that another package adds"""
    k: int = env(10, "NEAT_K", ge=1, le=1000)
    """Neighbours looked at (K of the paper)"""
    neighbours: Literal["exact", "approximate", "auto"] = env("auto", "NEAT_NEIGHBOURS")
    """exact, approximate (a label is offered to the tasks near it only), or auto: approximate where the features exceed
    NEAT_FEATURES_MEMORY, without a GPU"""
    known_rule: Literal["all", "majority"] = env("all", "NEAT_KNOWN_RULE")
    """all = candidate when all K neighbours are known (paper); majority = when most are"""
    batch_size: int = env(50, "NEAT_BATCH_SIZE", ge=1, le=10_000)
    """Labels in a query round (B); the classifier trains after each"""
    rerank: Literal["live", "round"] = env("live", "NEAT_RERANK")
    """live = new order after every label; round = fixed batch of B (paper)"""
    balance: bool = env(True, "NEAT_BALANCE")
    """Keep the classes in balance: the class with fewest labels is asked for next (0 = the paper's order)"""
    duplicate_similarity: float = env(0.95, "NEAT_DUPLICATE_SIMILARITY", ge=0, le=1)
    """Cosine similarity of their features from which on two images count as near-duplicates; 0 = none are looked for"""
    skip_duplicates: bool = env(False, "NEAT_SKIP_DUPLICATES")
    """Of near-duplicates ask for one only: the others, and all beside one that is labelled, come last"""
    random_share: float = env(0.05, "NEAT_RANDOM_SHARE", ge=0, le=0.5)
    """Share of the tasks asked for that is drawn at random, for the dashboard's estimates; 0 = neither (paper)"""
    prefill: Literal["agree", "off", "vote", "classifier"] = env("agree", "NEAT_PREFILL")
    """Which choice an annotator finds filled in: agree = the one that classifier and nearly all neighbours agree
    on, once the classifier was right on 3 of 4 of the last labels; vote = the neighbours'; classifier = the
    classifier's; off = none"""
    invalid_choices: Names = env(
        ("invalid", "unknown", "other", "none of these", "reject"), "NEAT_INVALID_CHOICES", max_length=1000
    )
    """Choices that mean “none of my classes”, unless the label config marks one with invalid="true" """
    control: str = env("", "NEAT_CONTROL", max_length=1000)
    """Name of the Choices tag to use when a label config has several"""
    seed: int = env(0, "NEAT_SEED", ge=0, lt=2**32)
    """Seed of training and of every random choice"""

    # classifier
    classifier: Literal["auto", "resnet18", "linear"] = env("auto", "NEAT_CLASSIFIER")
    """Which classifier gives probabilities, predicted class and exported model: resnet18 (paper; trained after each
    round), linear (logistic regression on the encoder's features, refitted at each label), or auto = the one that was
    right more often on the last labels before it learnt them"""
    image_size: int = env(64, "NEAT_IMAGE_SIZE", ge=16, le=512)
    """Side in pixels of the classifier's images"""
    classifier_weights: Weights = env("auto", "NEAT_CLASSIFIER_WEIGHTS")
    """What resnet18 begins its training with: auto (ImageNet's weights, downloaded once; from scratch where they can't
    be had), scratch (paper), or a local file, .pth or .safetensors"""
    epochs: int = env(100, "NEAT_EPOCHS", ge=1, le=10_000)
    """Epochs of one training, at most"""
    early_stop: bool = env(True, "NEAT_EARLY_STOP")
    """End a training before its last epoch when its loss is flat (0 = all epochs, as in the paper)"""
    progressive_resizing: bool = env(False, "NEAT_PROGRESSIVE_RESIZING")
    """On a CPU, train on images of half the side in the first half of the epochs (0 = full side, as in the paper)"""
    holdout: float = env(0.1, "NEAT_HOLDOUT", ge=0, le=0.5)
    """Share of known labels kept to measure accuracy"""
    train_time_limit_seconds: float = env(7200, "NEAT_TRAIN_TIME_LIMIT", gt=0)
    """Seconds after which a training is stopped"""

    # publishing
    publish_interval_seconds: float = env(2, "NEAT_PUBLISH_INTERVAL", ge=0, le=86_400)
    """Shortest time between two publications of a project, in seconds"""
    publish_tail: int = env(10_000, "NEAT_PUBLISH_TAIL", ge=0, le=1_000_000)
    """Tasks after the first 2B that get a score too, once it is quiet"""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from `env` (default: the process's environment, then `.env`); `overrides` win, by field name.

        A secret is also read from the file that its variable with `_FILE` after it names, without a line end.
        Raises SettingsError naming the variable, its value and what would be accepted.
        """
        among = _sources(env)
        values: dict[str, Any] = {}
        titles, places = cls.titles(), {}
        for name, info in cls.model_fields.items():
            found = None if name in overrides else find(among, _names(info), name in cls.secret_fields())
            if found is not None:
                values[name], titles[name], places[name] = found.value, found.variable, found.place
        values.update(overrides)
        return cls._checked(values, titles, places)

    def for_project(self, extra_params: Mapping[str, Any] | None) -> Settings:
        """These settings with one project's `extra_params` on top.

        Keys are the variables' names (`NEAT_K`) or the fields' (`k`), in any case; only the fields of
        PER_PROJECT can be overridden. Raises SettingsError naming the key.
        """
        if not extra_params:
            return self
        names = {title.lower(): name for name, title in self.titles().items()}
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        for key, value in extra_params.items():
            name = names.get(str(key).lower(), str(key).lower())
            if name not in PER_PROJECT:
                allowed = ", ".join(self.titles()[n] for n in PER_PROJECT)
                raise SettingsError(f"extra_params: {_excerpt(key)} can't be set per project; these can: {allowed}")
            values[name] = value
        return self._checked(values, self.titles())

    @classmethod
    def misspelt(cls, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables that nobody reads, but that look like a setting → the setting they look like. env: as `from_env`"""
        read = cls.variables()
        found = {}
        for name in dict.fromkeys(name for source in _sources(env) for name in source.variables):
            if name.startswith("NEAT_") and name not in read:
                for near in difflib.get_close_matches(name, sorted(read), n=1, cutoff=0.85):
                    found[name] = near
        return found

    @classmethod
    def variables(cls) -> frozenset[str]:
        """Every environment variable that is read, older names and those that name a file included."""
        names = {name for info in cls.model_fields.values() for name in _names(info)} | {ENV_FILE}
        return frozenset(names | {cls.titles()[name] + FILE for name in cls.secret_fields()})

    @classmethod
    def secret_fields(cls) -> frozenset[str]:
        """The fields that can be read from a file: the secrets, and the URL that may hold one."""
        hidden = {name for name, info in cls.model_fields.items() if info.annotation is SecretStr}
        return frozenset(hidden | {"database_url"})

    @classmethod
    def titles(cls) -> dict[str, str]:
        """Field name → environment variable."""
        return {name: _names(info)[0] for name, info in cls.model_fields.items()}

    @classmethod
    def markdown(cls) -> str:
        """All settings as a table."""
        rows = ["| variable | default | per project | meaning |", "|---|---|---|---|"]
        defaults, meanings = cls.from_env({}).shown(), cls._meanings()
        for name, info in cls.model_fields.items():
            title, *older = _names(info)
            default = f"`{defaults[title]}`" if defaults[title] else ""
            meaning = meanings[name] + "".join(f" (also read: `{each}`)" for each in older)
            rows.append(f"| `{title}` | {default} | {'yes' if name in PER_PROJECT else ''} | {meaning} |")
        return "\n".join(rows)

    @classmethod
    def _meanings(cls) -> dict[str, str]:
        """Field → the text below it, read from the source only when it is needed (pydantic would at each import)."""
        (body,) = (node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef))
        return {
            field.target.id: " ".join(ast.literal_eval(text.value).split())
            for field, text in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        }

    def shown(self) -> dict[str, str]:
        """Variable → value as text, secrets hidden, those inside of URLs too."""
        return {title: _shown(getattr(self, name)) for name, title in self.titles().items()}

    @classmethod
    def _checked(
        cls, values: Mapping[str, Any], titles: Mapping[str, str], places: Mapping[str, str] | None = None
    ) -> Settings:
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            problems = []
            for item in error.errors():
                name = str(item["loc"][0]) if item["loc"] else ""
                title = titles.get(name, name)
                given = _shown(item["input"]) if _is_url(item["input"]) else item["input"]
                secret = title.endswith(("_PASS", "_KEY", "_PASSWORD")) or (
                    title == "DATABASE_URL" and not _is_url(given)
                )
                place = (places or {}).get(name, "")
                problems.append(
                    f"{title}{'' if secret else f'={_excerpt(given)}'}: {item['msg'].removeprefix('Value error, ')}"
                    + (f" (in {place})" if place else "")
                )
            raise SettingsError("; ".join(problems)) from None
        if bool(settings.basic_auth_user) != bool(settings.basic_auth_pass.get_secret_value()):
            raise SettingsError("BASIC_AUTH_USER and BASIC_AUTH_PASS go together: set both or neither")
        if settings.database_password.get_secret_value() and not re.match(
            r"(postgres|postgresql)(\+\w+)?://[^:/@?]+@", settings.database_url
        ):
            raise SettingsError(
                "DATABASE_PASSWORD needs a DATABASE_URL with a user and without a password, such as"
                " postgresql://neat@db/neat"
            )
        return settings

    @property
    def balanced(self) -> bool:
        """Whether the classes lead the order. Never with the paper's own combination, a fixed batch by ResNet-18."""
        return self.balance and not (self.rerank == "round" and self.classifier == "resnet18")

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL for SQLAlchemy, with the installed driver named."""
        if not self.database_url:
            return f"sqlite:///{self.data_dir.absolute() / 'neat.sqlite3'}"
        scheme, _, rest = self.database_url.partition("://")
        password = self.database_password.get_secret_value()
        if password:
            user, _, place = rest.partition("@")
            rest = f"{user}:{quote(password, safe='')}@{place}"
        return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else self.database_url


def _sources(env: Mapping[str, str] | None) -> list[Source]:
    return sources(os.environ) if env is None else [Source(env)]


def _excerpt(value: Any) -> str:
    try:
        return repr(value)[:200]
    except ValueError:  # a number of thousands of digits
        return "a very long number"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and "://" in value


def _shown(value: Any) -> str:
    """A value as text that may be seen by anyone."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ", ".join(value)
    if _is_url(value):
        value = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", value)
        return re.sub(r"(?i)(?<=password=)[^&]+", "***", value)
    return f"{value:g}" if isinstance(value, float) else str(value)
