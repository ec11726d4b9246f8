"""Samples of a live experiment, and a finished one."""

from __future__ import annotations

import pytest

from neat_backend.experiments.live_loop import LiveSamples
from tests.experiments.live.runs import run


@pytest.fixture
def live(samples) -> LiveSamples:
    return LiveSamples(samples.features, samples.labels, samples.learner, samples.learner)


@pytest.fixture
def done(at_hand, tmp_path):
    """The folder of a live experiment with three orders and two draws."""
    run(tmp_path / "one", "--orders", "random,paper,live")
    return tmp_path / "one"
