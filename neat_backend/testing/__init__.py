"""What every strategy and every encoder keeps, as test classes to inherit; pytest is needed.

from neat_backend.testing import StrategyContract

class TestSmallestMargin(StrategyContract):
    names = ("smallest_margin",)
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("neat_backend.testing.strategies", "neat_backend.testing.encoders")

from neat_backend.testing.encoders import EncoderContract  # noqa: E402 - asserts are rewritten before the import
from neat_backend.testing.strategies import StrategyContract  # noqa: E402

__all__ = ["EncoderContract", "StrategyContract"]
