"""A short campaign over everything; `make fuzz` runs the same for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.fuzz import campaign, images, label_configs, webhooks
from tests.fuzz.tally import Tally
from tests.store.conftest import POSTGRES, postgres_server

__all__ = ["postgres_server"]

SEED = 20261126


def passed(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{tally.summary()}")
    assert tally.failures == []


def test_no_request_makes_a_fault_of_ours_and_none_passes_without_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally()
    with campaign.quiet():
        campaign.fuzz_routes(tally, SEED, 8, tmp_path)
    passed(tally, capsys)
    assert {"2xx", "4xx"} <= set(tally.counts["requests with credentials"])


def test_no_webhook_that_is_accepted_is_poison_on_sqlite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    with campaign.quiet(), campaign.databases(tmp_path, None) as found:
        webhooks.fuzz(tally, SEED, 5, tmp_path, found)
    passed(tally, capsys)
    assert tally.counts["events applied, SQLite"]["applied"] >= webhooks.EVENTS_PER_STORE * 0.9


def test_nor_on_postgresql(postgres_server: sa.Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    with campaign.quiet(), campaign.databases(tmp_path, POSTGRES) as found:
        webhooks.fuzz(tally, SEED + 1, 5, tmp_path, {"PostgreSQL": found["PostgreSQL"]})
    passed(tally, capsys)


def test_label_configs_are_usable_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    label_configs.fuzz(tally, SEED, 3)
    passed(tally, capsys)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning:PIL")
def test_images_are_decoded_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    images.fuzz(tally, SEED, 5)
    passed(tally, capsys)


def test_the_campaign_sees_what_must_not_be() -> None:
    tally = Tally()
    tally.answered("requests", 500, "this")
    tally.answered("requests", 404, "that")
    assert tally.failures == ["requests: 500 for this"]
    assert "requests in all: 2, 5xx = 1; failures = 1" in tally.summary()
