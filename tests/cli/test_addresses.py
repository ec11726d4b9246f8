"""The addresses that the start and the commands name."""

from __future__ import annotations

import pytest

from neat_backend.cli import addresses
from neat_backend.settings import Settings


@pytest.mark.parametrize(
    ("host", "label_studio", "expected"),
    [
        ("127.0.0.1", "http://localhost:8080", "http://localhost:9090"),
        ("127.0.0.1", "", "http://localhost:9090"),
        ("0.0.0.0", "http://127.0.0.1:8080", "http://localhost:9090"),
        ("::", "http://[::1]:8080", "http://localhost:9090"),
        ("192.0.2.7", "https://label.example.com", "http://192.0.2.7:9090"),
        ("fd00::7", "https://label.example.com", "http://[fd00::7]:9090"),
        ("0.0.0.0", "http://no.such.host.invalid", "http://localhost:9090"),
    ],
)
def test_label_studio_is_given_an_address_that_it_reaches(host: str, label_studio: str, expected: str) -> None:
    settings = Settings.from_env({}, host=host, label_studio_url=label_studio)
    assert addresses.for_label_studio(settings) == expected


def test_on_another_machine_it_is_given_the_address_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_address_towards", lambda host: f"the way to {host}")
    settings = Settings.from_env({}, host="0.0.0.0", label_studio_url="http://ls.example.com:8080")
    assert addresses.for_label_studio(settings, 9191) == "http://the way to ls.example.com:9191"


def test_this_machine_knows_its_address_on_the_way_to_itself() -> None:
    assert addresses._address_towards("127.0.0.1") == "127.0.0.1"


def test_what_the_setting_says_comes_first() -> None:
    settings = Settings.from_env({"NEAT_URL": "http://neat.internal:9090"}, host="0.0.0.0")
    assert addresses.for_label_studio(settings, 9191) == "http://neat.internal:9090"
    assert addresses.dashboard(settings, 9191) == "http://localhost:9191/"
