"""Where the variables of settings come from: the environment, a file `.env`, and files that hold a secret each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neat_backend.errors import SettingsError

FILE = "_FILE"  # after a secret's variable: the variable that names a file with it
ENV_FILE = "NEAT_ENV_FILE"  # names the file with variables; os.devnull = none
DEFAULT_ENV_FILE = Path(".env")  # of the working directory


@dataclass(frozen=True)
class Source:
    """Variables, and for messages where they are from; "" = the environment."""

    variables: Mapping[str, str]
    place: str = ""


@dataclass(frozen=True)
class Given:
    """The value of a field, with the variable that it was found under."""

    variable: str
    value: str
    place: str


def sources(env: Mapping[str, str]) -> list[Source]:
    """The environment, then the file of variables where there is one. Raises SettingsError naming file and line."""
    path = env_file(env)
    return [Source(env)] if path is None else [Source(env), Source(read_env_file(path), str(path))]


def env_file(env: Mapping[str, str]) -> Path | None:
    """The file that ENV_FILE names, else `.env` where that is a file."""
    named = env.get(ENV_FILE, "")
    if named == os.devnull:
        return None
    if named:
        return Path(named)
    return DEFAULT_ENV_FILE if DEFAULT_ENV_FILE.is_file() else None


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of lines NAME=VALUE, values as they stand: ${NAME} is not replaced.

    Raises SettingsError naming the file, and the line that can't be read.
    """
    from dotenv.parser import parse_stream

    found = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for binding in parse_stream(file):
                if binding.error:
                    raise SettingsError(f"{path}, line {binding.original.line}: write NAME=VALUE")
                if binding.key is not None and binding.value is not None:
                    found[binding.key] = binding.value
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} can't be read ({_reason(error)}); --env-file and {ENV_FILE} name it") from None
    return found


def find(among: Sequence[Source], names: Sequence[str], secret: bool) -> Given | None:
    """What the first source says that knows the field under any of its names, the preferred name first.

    secret: the source may also name a file with the value. Raises SettingsError where it does both.
    """
    for source in among:
        key = next((name for name in names if source.variables.get(name, "")), None)
        file = f"{names[0]}{FILE}"
        path = source.variables.get(file, "") if secret else ""
        if path and key:
            raise SettingsError(f"{key} and {file} are both set: keep one of them")
        if path:
            return Given(names[0], _read_secret(file, path), source.place)
        if key:
            return Given(key, source.variables[key], source.place)
    return None


def _read_secret(variable: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{variable}={path!r} can't be read: {_reason(error)}") from None
    if not text:
        raise SettingsError(f"{variable}={path!r}: the file is empty")
    return text


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "is not text in UTF-8"
