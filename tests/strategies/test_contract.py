"""What every strategy and every hybrid of it keeps, whatever the state of the labelling."""

from __future__ import annotations

import pytest

from neat_backend.errors import SettingsError
from neat_backend.strategies import STRATEGIES, bual, e2oal, eaoa, eoal, strategy
from neat_backend.testing import StrategyContract


@pytest.fixture(autouse=True)
def short_trainings(monkeypatch):
    """What the contract asks for does not depend on how long a network is trained."""
    for module in (eoal, bual, eaoa, e2oal):
        monkeypatch.setattr(module, "EPOCHS", 10)


class TestStrategies(StrategyContract):
    names = STRATEGIES


@pytest.mark.parametrize("wrong", ["neatest", "hybrid:", "hybrid:hybrid:neat", ""])
def test_an_unknown_name_is_refused_with_those_there_are(wrong: str) -> None:
    with pytest.raises(SettingsError, match="neat_passive"):
        strategy(wrong)
