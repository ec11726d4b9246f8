"""`make fuzz ARGS="--minutes 10 --seed 3"`: a long campaign, and its summary; exit code 1 when something failed."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa

from tests.fuzz import campaign
from tests.store.conftest import POSTGRES


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, help="the same seed sends the same bodies; default: another each time")
    parser.add_argument("--only", default="", choices=["", "routes", "webhooks", "label-configs", "images"])
    flags = parser.parse_args()
    seed = secrets.randbelow(2**31) if flags.seed is None else flags.seed
    print(f"seed {seed}, {flags.minutes:g} minutes", flush=True)
    url: str | None = POSTGRES
    try:
        sa.create_engine(POSTGRES, connect_args={"connect_timeout": 3}).connect().close()
    except (sa.exc.OperationalError, ModuleNotFoundError) as error:
        print(f"PostgreSQL is left out: {type(error).__name__}")
        url = None
    with tempfile.TemporaryDirectory(prefix="neat-fuzz-") as folder:
        tally = campaign.run(seed, flags.minutes * 60, Path(folder), url, flags.only)
    print(tally.summary())
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
