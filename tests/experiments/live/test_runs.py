"""Runs of the live protocol."""

from __future__ import annotations

import numpy as np
import pytest

from neat_backend import strategies
from neat_backend.errors import SettingsError
from neat_backend.experiments import live_loop, live_tables, orders
from neat_backend.experiments.checkpoints import Plan, Run, RunFolder, write_plan
from neat_backend.experiments.live_loop import LiveSamples
from neat_backend.experiments.live_metrics import longest_run, seen_after
from neat_backend.experiments.presets import ALL_ORDERS
from neat_backend.experiments.splits import known_choices, labels_of_each
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.method import Method
from neat_backend.ranking.pool import Pool
from neat_backend.records import Label
from tests.experiments.live.runs import KNOWN, PROTOCOL, go, without_times
from tests.experiments.live.test_commands import part


class TestFilledIn:
    """What annotators find filled in, counted beside the run."""

    def test_each_mode_is_counted_and_none_changes_the_run(self, live, tmp_path):
        run = go(live, tmp_path)
        filled = run["filled"]
        assert set(filled) == {"agree", "vote", "classifier", "off"}
        assert filled["off"] == [0, 0]
        assert all(0 <= right <= many <= len(run["asked"]) for many, right in filled.values())
        assert filled["classifier"][0] > 0
        assert go(live, tmp_path / "random", "random")["filled"] is None

    def test_right_is_what_the_answer_says(self, live, tmp_path, monkeypatch):
        monkeypatch.setattr(orders, "filled_in", lambda ranked, mode, tested, k: str(KNOWN[0]))
        run = go(live, tmp_path)
        assert run["filled"]["agree"] == [len(run["asked"]), run["codes"].count(0)]

    def test_the_classifier_is_tested_on_known_labels_before_it_learns_them(self, live, tmp_path, monkeypatch):
        tested_values = []
        monkeypatch.setattr(orders, "filled_in", lambda ranked, mode, tested, k: tested_values.append(tested))
        run = go(live, tmp_path)
        known = [code >= 0 for code in run["codes"]]
        tests = tested_values[:: len(run["filled"])]
        assert [of for _, of in tests] == [sum(known[:at]) for at in range(len(known))]  # the start gave a classifier
        assert all(right <= of for right, of in tests)

    def test_the_table_has_a_row_for_each_mode(self, live, tmp_path):
        write_plan(tmp_path, Plan(PROTOCOL, ("live", "random"), (0,)))
        for order in ("live", "random"):
            go(live, tmp_path, order)
        rows = live_tables.prefill_table([tmp_path]).rows
        assert [row[:3] for row in rows] == [["live", mode, "1"] for mode in ("agree", "vote", "classifier", "off")]
        assert rows[-1][3:] == ["0.0 %", "-"]


class TestStart:
    def test_each_class_has_as_many_labels(self):
        codes = np.array([0, 1, 2, -1] * 10)
        found = labels_of_each(codes, 4, np.random.default_rng(0))
        assert codes[found].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert len(set(found.tolist())) == 12
        assert len(labels_of_each(codes, 0, np.random.default_rng(0))) == 0
        with pytest.raises(SettingsError, match="--start 11: a known class has 10"):
            labels_of_each(codes, 11, np.random.default_rng(0))

    def test_all_orders_start_alike_and_another_seed_does_not(self, live, tmp_path):
        runs = [go(live, tmp_path, order) for order in ALL_ORDERS]
        for run in runs[1:]:
            assert run["start"] == runs[0]["start"]
            assert run["points"][0] == runs[0]["points"][0]
        assert len({tuple(run["asked"]) for run in runs}) == len(ALL_ORDERS)
        assert go(live, tmp_path, "random", seed=1)["start"] != runs[0]["start"]

    def test_held_out_draws_are_the_rest_of_one_list(self):
        every = known_choices("draw:15", 5, 10, seed=0)
        assert known_choices("draw:5", 5, 10, seed=3) == known_choices("draw:1-5", 5, 10, seed=0) == every[:5]
        assert known_choices("draw:6-15", 5, 10, seed=0) == every[5:]
        for choice in ("draw:6-5", "draw:0-5", "draw:-5", "draw:6-", "draw:6-15-20"):
            with pytest.raises(SettingsError, match=r"--choice .*draw:A-B"):
                known_choices(choice, 5, 10, seed=0)


class TestRun:
    @pytest.mark.parametrize("order", ALL_ORDERS)
    def test_the_same_run_twice_gives_the_same(self, live, tmp_path, order):
        assert without_times(go(live, tmp_path / "a", order)) == without_times(go(live, tmp_path / "b", order))

    @pytest.mark.parametrize("order", ALL_ORDERS)
    def test_what_is_written_is_what_was_asked_and_answered(self, live, tmp_path, order):
        run = go(live, tmp_path, order)
        assert RunFolder(tmp_path, Run(order, 0, KNOWN)).live() == run
        truth = [KNOWN.index(label) if label in KNOWN else -1 for label in live.labels[run["asked"]].tolist()]
        assert run["codes"] == truth
        assert len(set(run["asked"]) | set(run["start"])) == 35 + 6, "no sample is queried twice"
        assert [point["labels"] for point in run["points"]] == [0, 10, 20, 30, 35]
        last = run["points"][-1]
        assert last["precision"] == pytest.approx(np.mean(np.array(truth) >= 0))
        assert (last["known"], last["invalid"]) == (6 + sum(code >= 0 for code in truth), truth.count(-1))
        assert last["longest_run"] == longest_run(truth)
        assert 0 < last["accuracy"] <= 1

    def test_with_nothing_labelled_there_is_no_accuracy_before_two_classes(self, live, tmp_path):
        run = go(live, tmp_path, protocol=PROTOCOL.changed(start=0))
        first = run["points"][0]
        assert (first["accuracy"], first["precision"], first["effective"], first["seen"]) == (None, None, 0, 0)
        assert run["points"][-1]["accuracy"] is not None
        assert run["all_seen_after"] == seen_after(run["codes"], [], 3)

    def test_live_is_what_the_engine_says_after_each_label(self, live, tmp_path):
        run = go(live, tmp_path)
        n, rows = 200, orders.build(PROTOCOL, live, Run("live", 0, KNOWN), live_loop.Clock()).rows
        engine = Engine(4, ["0", "2", "3"], Method(k=3, batch_size=10, seed=0, balance=True), source="linear")
        engine.add_tasks(np.arange(n), live.features[rows])
        task_of = {int(row): task for task, row in enumerate(rows)}

        def label(row):
            name = str(live.labels[row])
            return Label(task_of[row], choice=name) if name in engine.classes else Label(task_of[row], invalid=True)

        engine.set_labels([label(row) for row in run["start"]])
        for row in run["asked"]:
            _, codes, features = engine.training_data()
            for _ in engine.set_linear(fit_head(features, codes, engine.classes)):
                pass
            assert rows[engine.head(1)[0]] == row
            engine.set_labels([label(row)])

    def test_neat_plus_is_asked_for_a_plan_after_each_label(self, live, tmp_path, monkeypatch):
        seen: list[Pool] = []
        plain = strategies.strategy("neat_plus")

        def spy(pool, size, rng):
            seen.append(pool)
            return plain(pool, size, rng)

        monkeypatch.setattr(strategies, "following", lambda name: spy)
        run = go(live, tmp_path, "neat_plus")
        assert run["asked"] == go(live, tmp_path / "kept", "neat_plus")["asked"], "nothing kept changes the order"
        assert [len(pool.labelled) for pool in seen[:35]] == list(range(6, 41))
        assert [len(pool.past) for pool in seen[:35]] == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 5
        assert sorted(seen[34].past[0].answers.tolist()) == sorted(run["codes"][:10])

    def test_ids_of_tasks_say_nothing_of_the_order_in_the_pool(self, live):
        rows = orders.build(PROTOCOL, live, Run("live", 0, KNOWN), live_loop.Clock()).rows
        assert sorted(rows.tolist()) == list(range(200))
        assert abs(np.corrcoef(np.arange(200), rows)[0, 1]) < 0.3

    def test_the_paper_asks_b_at_a_time_and_trains_before_each(self, live, tmp_path, monkeypatch):
        sizes, trained = spied(live, monkeypatch)
        run = go(live, tmp_path, "paper")
        assert sizes == [10, 10, 10, 10], "the last batch is cut at 35"
        assert trained == [len(run["start"]) + sum(code >= 0 for code in run["codes"][:n]) for n in (0, 10, 20, 30)]

    def test_with_nothing_labelled_the_papers_first_batch_comes_before_the_first_round(
        self, live, tmp_path, monkeypatch
    ):
        sizes, trained = spied(live, monkeypatch)
        run = go(live, tmp_path, "paper", PROTOCOL.changed(start=0))
        assert sizes[0] == 10
        assert trained[0] == sum(code >= 0 for code in run["codes"][:10])

    def test_the_former_order_has_a_round_every_b_labels_those_of_the_start_counted(self, live, tmp_path, monkeypatch):
        sizes, trained = spied(live, monkeypatch)
        run = go(live, tmp_path, "former")
        assert sizes == [1] * 35
        known = np.cumsum([0, *(code >= 0 for code in run["codes"])]) + 6
        assert trained == [known[n] for n in (4, 14, 24, 34)]

    @pytest.mark.parametrize(
        ("order", "balance", "source"),
        [("live", True, "linear"), ("unbalanced", False, "linear"), ("former", False, "resnet18")],
    )
    def test_an_order_is_an_engine_with_these_settings(self, live, order, balance, source):
        engine = orders.build(PROTOCOL, live, Run(order, 5, KNOWN), live_loop.Clock()).engine
        assert (engine.balance, engine.source, engine.k, engine.batch_size, engine.seed) == (balance, source, 3, 10, 5)

    @pytest.mark.parametrize("order", ["random", "live", "paper"])
    def test_a_pool_that_runs_out_ends_the_run(self, live, tmp_path, order):
        few = LiveSamples(
            live.features[:30], np.concatenate([live.labels[:30], live.labels[200:]]), part(live), part(live)
        )
        run = go(few, tmp_path, order, PROTOCOL.changed(labels=60))
        assert sorted(run["asked"] + run["start"]) == list(range(30))
        assert run["points"][-1]["labels"] == 24

    def test_seconds_are_those_of_the_phases(self, live, tmp_path):
        assert set(go(live, tmp_path)["seconds"]) == {"fit", "apply", "order", "testing"}
        assert set(go(live, tmp_path, "former")["seconds"]) == {"order", "round", "testing"}
        assert set(go(live, tmp_path, "random")["seconds"]) == {"testing"}


def spied(live, monkeypatch):
    """Lists that collect the sizes of queries, and the known labels that rounds are trained on."""
    sizes, trained = [], []
    answer, fit = orders.EngineOrder.next, live.learner.fit

    def counted_fit(indices, *arguments, **more):
        trained.append(len(indices))
        return fit(indices, *arguments, **more)

    def counted(order):
        sizes.append(len(found := answer(order)))
        return found

    monkeypatch.setattr(orders.EngineOrder, "next", counted)
    judged = type("Judge", (), {"fit": staticmethod(fit)})()
    monkeypatch.setattr(live.learner, "fit", counted_fit)
    object.__setattr__(live, "judge", judged)
    return sizes, trained
