"""Figures of live runs, their tables, intervals and presets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import SettingsError
from neat_backend.experiments import metrics
from neat_backend.experiments.checkpoints import Plan, Run, RunFolder, read_plan, write_plan
from neat_backend.experiments.live_metrics import effective_classes, longest_run, marks, seen_after, served
from neat_backend.experiments.presets import PRESETS
from neat_backend.experiments.protocols import LiveProtocol, Protocol
from tests.experiments.live.runs import invoke


class TestFigures:
    def test_effective_classes_by_hand(self):
        assert effective_classes([1, 1, 2]) == pytest.approx(0.9428, abs=1e-4)
        assert effective_classes([7, 7, 7, 7]) == pytest.approx(1)
        assert effective_classes([9, 0, 0]) == pytest.approx(1 / 3)
        assert effective_classes([0, 0]) == 0

    @given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
    def test_effective_classes_are_a_share_and_know_no_order(self, counts):
        value = effective_classes(counts)
        assert 1 / len(counts) - 1e-9 <= value <= (np.array(counts) > 0).mean() + 1e-9
        assert value == pytest.approx(effective_classes(counts[::-1]))

    def test_an_invalid_answer_ends_a_run_of_a_class(self):
        assert longest_run([0, 0, -1, 0, 1, 1, 1, -1, -1, -1, -1]) == 3
        assert longest_run([-1, -1]) == longest_run([]) == 0

    def test_labels_until_all_classes_are_seen_count_those_of_the_start(self):
        assert seen_after([1, -1, 0, 2], [], 3) == 4
        assert seen_after([1, -1, 0, 2], [2], 3) == 3
        assert seen_after([1], [0, 1, 2], 3) == 0
        assert seen_after([1, 1], [0], 3) is None

    def test_the_first_served_are_counted_by_class_the_unknown_last(self):
        assert served([0, 0, 2, -1, 2, 1], 3, first=5) == [2, 0, 2, 1]

    def test_marks_are_those_a_run_has_and_its_end(self):
        assert marks(300) == [20, 50, 100, 200, 300]
        assert marks(70) == [20, 50, 70]


def test_plans_of_earlier_versions_are_of_the_batch_protocol(tmp_path):
    write_plan(tmp_path, Plan(Protocol("digits", 2, 6, "colour"), ("random",), (0,)))
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["kind"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert read_plan(tmp_path).protocol == Protocol("digits", 2, 6, "colour")


def test_presets_have_five_draws_three_seeds_and_the_orders_of_the_issue():
    for name in ("live-cifar10", "live-cifar10-2of10", "live-fashion", "live-cifar100"):
        one = PRESETS[name]
        assert (one.protocol.choice, one.protocol.train_images, one.seeds) == ("draw:5", 12_000, (0, 1, 2))
        assert one.strategies == ("random", "paper", "former", "live")


class TestIntervals:
    """Three draws, two seeds; live is ahead of random by 1, 2 and 3 points: 2 ± 4.303/√3 = 2 ± 2.484."""

    @pytest.fixture
    def folder(self, tmp_path):
        return self.made(tmp_path / "a", [(0, 1), (2, 3), (4, 5)], (0.01, 0.02, 0.03))

    def made(self, folder, draws, ahead):
        write_plan(folder, Plan(LiveProtocol("squares", 2, "colour", labels=50), ("random", "live"), (0, 1)))
        for known, difference in zip(draws, ahead, strict=True):
            for seed in (0, 1):
                for order, accuracy in (("random", 0.5), ("live", 0.5 + difference + (0.2 if seed else -0.2))):
                    self.write(folder, Run(order, seed, known), accuracy)
        return folder

    def write(self, folder, run, accuracy):
        point = {"precision": 0.6, "effective": 0.9, "longest_run": 2, "seen": 2, "known": 38, "invalid": 20}
        points = [{"labels": n, "accuracy": accuracy, **point} for n in (20, 50)]
        codes = [0, 1, -1, 0, 1] * 10
        RunFolder(folder, run).write_live(
            {
                "order": run.strategy,
                "seed": run.seed,
                "classes": run.known,
                "start": [],
                "asked": list(range(50)),
                "codes": codes,
                "points": points,
                "all_seen_after": 2,
                "seconds": {"fit": 0.5},
            }
        )

    def rows(self, *folders, form="live", **more):
        options = [word for name, value in more.items() for word in (f"--{name}", value)]
        made = json.loads(invoke("table", *folders, "--form", form, "--json", *options))
        return {row["order"]: row for row in made["rows"]}

    def test_seeds_of_a_draw_are_averaged_before_the_interval_over_draws(self, folder):
        rows = self.rows(folder)
        assert rows["random"] == {"order": "random", "runs": "6", "50 labels": "50.0 / 60 / 0.90"}
        assert rows["live − random"]["runs"] == "3"
        assert rows["live − random"]["50 labels"].split(" / ")[0] == "+2.0 ± 2.5"
        assert metrics.paired([1, 2, 3], [0, 0, 0]).half == pytest.approx(2.484, abs=1e-3)

    def test_draws_of_several_experiments_are_taken_together(self, folder, tmp_path):
        other = self.made(tmp_path / "b", [(0, 1), (2, 3), (4, 5)], (0.04, 0.05, 0.06))
        rows = self.rows(folder, other)
        values = np.arange(1, 7)
        half = 2.5706 * values.std(ddof=1) / np.sqrt(6)
        assert rows["all: live − random"]["runs"] == "6"
        assert rows["all: live − random"]["50 labels"].startswith(f"+3.5 ± {half:.1f} ")
        assert rows["b: live − random"]["50 labels"].startswith("+5.0 ± 2.5 ")

    def test_one_reference_may_be_named(self, folder):
        assert set(self.rows(folder, against="live")) == {"random", "live", "random − live"}
        with pytest.raises(SettingsError, match="--against 'paper'"):
            self.rows(folder, against="paper")

    def test_what_an_annotator_sees_first(self, folder):
        row = self.rows(folder, form="served")["live"]
        assert (row["first 50"], row["unknown"], row["all seen after"], row["fit ms"]) == ("20 20", "10", "2", "10")
