"""What every strategy and every hybrid of it keeps, whatever the state of the labelling."""

from __future__ import annotations

import pytest

from neat_backend.errors import SettingsError
from neat_backend.strategies import STRATEGIES, strategy
from neat_backend.testing import StrategyContract


class TestStrategies(StrategyContract):
    names = STRATEGIES


@pytest.mark.parametrize("wrong", ["neatest", "hybrid:", "hybrid:hybrid:neat", ""])
def test_an_unknown_name_is_refused_with_those_there_are(wrong: str) -> None:
    with pytest.raises(SettingsError, match="neat_passive"):
        strategy(wrong)
