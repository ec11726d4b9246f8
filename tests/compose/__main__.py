"""`make compose-test`: docker-compose.yml on the Docker engine that DOCKER_HOST names, or on one made for it.

make compose-test                                     the file as it is, with the image that its Dockerfile makes
make compose-test ARGS=--light                        with the image of the web; the workers take this environment's
                                                      libraries (minutes and gigabytes less)
make compose-test ARGS="--engine /srv/docker"         Debian 12, root, 25 GB there: an engine and base images of its own
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tests.compose.checks import Checks, in_words
from tests.compose.engine import Engine
from tests.compose.running import follow
from tests.compose.stack import IMAGE, ROOT, Stack, light

BEGAN = time.monotonic()


def main() -> int:
    options = _options()
    engine = Engine(Path(options.engine), say) if options.engine else None
    try:
        if engine:
            engine.start()
        return _test(options, os.environ | (engine.env if engine else {}))
    finally:
        if engine and not options.keep_engine:
            engine.stop()


def say(words: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {words}", file=sys.stderr, flush=True)


def _test(options: argparse.Namespace, env: dict[str, str]) -> int:
    folder = Path(options.folder or tempfile.mkdtemp(prefix="neat-compose-"))
    folder.mkdir(parents=True, exist_ok=True)
    overlay = None
    if options.light:
        say("image of the web")
        words = ["docker", "build", "--build-arg", "VARIANT=web", "--tag", IMAGE, "."]
        follow(words, folder / "compose.log", env=env, folder=ROOT)
        overlay = light(folder, Path(sysconfig.get_paths()["purelib"]).resolve())
    stack = Stack(env, folder, overlay)
    try:
        figures = Checks(stack, folder, say).run()
    except BaseException:
        with suppress(AssertionError, subprocess.SubprocessError):
            (folder / "containers.log").write_text(stack.output_of("logs", "--no-color", "--timestamps"))
        say(f"logs are in {folder}")
        raise
    finally:
        if not options.keep:
            with suppress(AssertionError):
                stack.run("down", "--volumes")
    figures.image = stack.docker("image", "ls", "--format", "{{.Size}}", IMAGE)
    print(json.dumps(asdict(figures), indent=1) if options.json else in_words(figures))
    if not options.folder:
        shutil.rmtree(folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make compose-test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--light", action="store_true", help="see above")
    parser.add_argument("--engine", help="folder of an engine of its own; see above")
    parser.add_argument("--keep-engine", action="store_true", help="let it run for the next time")
    parser.add_argument("--keep", action="store_true", help="leave the services running")
    parser.add_argument("--folder", help="for logs and images, kept; default: a temporary one, kept if it fails")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
