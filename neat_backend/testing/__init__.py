"""Contracts of strategies and encoders as test classes to inherit; pytest is needed.

from neat_backend.testing import StrategyContract

class TestSmallestMargin(StrategyContract):
    names = ("smallest_margin",)
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("neat_backend.testing.strategies", "neat_backend.testing.encoder_contract")

from neat_backend.testing.encoder_contract import EncoderContract  # noqa: E402 - asserts are rewritten before the import
from neat_backend.testing.strategies import StrategyContract  # noqa: E402

__all__ = ["EncoderContract", "StrategyContract"]
