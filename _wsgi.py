"""The backend where label-studio-ml's users look for it.

`gunicorn _wsgi:app` gets the web alone (run `neat-backend worker` beside it). As a script, which is what
`label-studio-ml start DIR` runs, it takes that command's flags and starts web and worker together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from neat_backend.errors import NeatError, SettingsError
from neat_backend.settings import Settings


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of label-studio-ml's own `_wsgi.py`, of its lines 1.0 and 2."""
    parser = argparse.ArgumentParser(description="NEAT backend for Label Studio", allow_abbrev=False)
    parser.add_argument("-p", "--port", type=int, help="port to listen on (PORT)")
    parser.add_argument("--host", help="address to listen on (HOST)")
    parser.add_argument("--kwargs", "--with", metavar="KEY=VAL", nargs="+", default=[], help="any other settings")
    parser.add_argument("-d", "--debug", action="store_true", help="the same as --log-level DEBUG")
    parser.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="(LOG_LEVEL)")
    parser.add_argument("--model-dir", help="folder for the database, features and models (NEAT_DATA_DIR)")
    parser.add_argument("--check", action="store_true", help="build the app once before starting")
    parser.add_argument("--basic-auth-user", help="(BASIC_AUTH_USER)")
    parser.add_argument("--basic-auth-pass", help="(BASIC_AUTH_PASS)")
    return parser.parse_args(argv)


def settings_of(flags: argparse.Namespace) -> Settings:
    """The environment's settings with the flags on top. Raises SettingsError naming the key."""
    given: dict[str, Any] = {
        "port": flags.port,
        "host": flags.host,
        "log_level": "DEBUG" if flags.debug else flags.log_level,
        "data_dir": flags.model_dir,
        "basic_auth_user": flags.basic_auth_user,
        "basic_auth_pass": flags.basic_auth_pass,
    }
    fields = {name: name for name in Settings.model_fields}
    fields |= {title.lower(): name for name, title in Settings.titles().items()}
    for pair in flags.kwargs:
        key, equals, value = pair.partition("=")
        if not equals or key.lower() not in fields:
            raise SettingsError(f"--kwargs {pair}: give KEY=VAL with the name of a setting, such as NEAT_K=10")
        given[fields[key.lower()]] = value
    return Settings.from_env(**{name: value for name, value in given.items() if value is not None})


def init_app(*args: Any, **kwargs: Any) -> Any:
    """label-studio-ml's own server around a model, where tests written for its `_wsgi.py` look for it."""
    from label_studio_ml.api import init_app  # imports torch

    return init_app(*args, **kwargs)


def main(argv: Sequence[str] | None = None) -> int:
    """Start web and worker; returns the exit code."""
    from neat_backend.cli import set_up_logging
    from neat_backend.cli.supervisor import serve
    from neat_backend.web.app import create_app

    flags = arguments(argv)
    try:
        settings = settings_of(flags)
        set_up_logging(settings)
        if flags.check:
            create_app(settings)
            print("The settings, the database and the app are in order.")
        return serve(settings)
    except NeatError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
else:
    from neat_backend.web.app import create_app

    app = create_app()
