"""The contract that the strategies of neat-backend are tested by."""

from neat_backend.testing import StrategyContract


class TestSmallestMargin(StrategyContract):
    names = ("smallest_margin",)
