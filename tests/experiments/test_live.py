"""The live protocol: orders asked for one label at a time, on coloured squares."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from neat_backend import cli
from neat_backend.errors import SettingsError
from neat_backend.experiments import commands, live_loop, live_tables, metrics, orders, results, runner
from neat_backend.experiments.checkpoints import Plan, Run, RunFolder, read_plan, write_plan
from neat_backend.experiments.live_loop import LiveSamples, run_labels
from neat_backend.experiments.live_metrics import effective_classes, longest_run, marks, seen_after, served
from neat_backend.experiments.presets import ALL_ORDERS, PRESETS
from neat_backend.experiments.protocols import LiveProtocol, Protocol
from neat_backend.experiments.splits import known_choices, labels_of_each
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.records import Label

PROTOCOL = LiveProtocol("squares", 3, "colour", start=2, labels=35, batch=10, k=3)
KNOWN = (0, 2, 3)


@pytest.fixture
def live(samples) -> LiveSamples:
    return LiveSamples(samples.features, samples.labels, samples.learner, samples.learner)


def go(live, folder, order="live", protocol=PROTOCOL, seed=0, **more):
    return run_labels(protocol, live, RunFolder(folder, Run(order, seed, KNOWN)), **more)


def without_times(run):
    return {key: value for key, value in run.items() if key != "seconds"}


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
        told = []
        monkeypatch.setattr(orders, "filled_in", lambda ranked, mode, tested, k: told.append(tested))
        run = go(live, tmp_path)
        known = [code >= 0 for code in run["codes"]]
        tests = told[:: len(run["filled"])]
        assert [of for _, of in tests] == [sum(known[:at]) for at in range(len(known))]  # the start gave a classifier
        assert all(right <= of for right, of in tests)

    def test_the_table_has_a_row_for_each_mode(self, live, tmp_path):
        write_plan(tmp_path, Plan(PROTOCOL, ("live", "random"), (0,)))
        for order in ("live", "random"):
            go(live, tmp_path, order)
        rows = live_tables.prefill_table([tmp_path]).rows
        assert [row[:3] for row in rows] == [["live", mode, "1"] for mode in ("agree", "vote", "classifier", "off")]
        assert rows[-1][3:] == ["0.0 %", "-"]


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
        assert len(set(run["asked"]) | set(run["start"])) == 35 + 6, "nothing is asked twice"
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
        engine = Engine(4, ["0", "2", "3"], k=3, batch_size=10, seed=0, balance=True, source="linear")
        engine.add_tasks(np.arange(n), live.features[rows])
        task_of = {int(row): task for task, row in enumerate(rows)}

        def label(row):
            name = str(live.labels[row])
            return Label(task_of[row], choice=name) if name in engine.classes else Label(task_of[row], invalid=True)

        engine.set_labels([label(row) for row in run["start"]])
        for row in run["asked"]:
            _, codes, features = engine.taught()
            for _ in engine.set_linear(fit_head(features, codes, engine.classes)):
                pass
            assert rows[engine.head(1)[0]] == row
            engine.set_labels([label(row)])

    def test_ids_of_tasks_say_nothing_of_the_order_in_the_pool(self, live):
        rows = orders.build(PROTOCOL, live, Run("live", 0, KNOWN), live_loop.Clock()).rows
        assert sorted(rows.tolist()) == list(range(200))
        assert abs(np.corrcoef(np.arange(200), rows)[0, 1]) < 0.3

    def test_the_paper_asks_b_at_a_time_and_trains_before_each(self, live, tmp_path, monkeypatch):
        asked, trained = spied(live, monkeypatch)
        run = go(live, tmp_path, "paper")
        assert asked == [10, 10, 10, 10], "the last batch is cut at 35"
        assert trained == [len(run["start"]) + sum(code >= 0 for code in run["codes"][:n]) for n in (0, 10, 20, 30)]

    def test_with_nothing_labelled_the_papers_first_batch_comes_before_the_first_round(
        self, live, tmp_path, monkeypatch
    ):
        asked, trained = spied(live, monkeypatch)
        run = go(live, tmp_path, "paper", PROTOCOL.changed(start=0))
        assert asked[0] == 10
        assert trained[0] == sum(code >= 0 for code in run["codes"][:10])

    def test_the_former_order_has_a_round_every_b_labels_those_of_the_start_counted(self, live, tmp_path, monkeypatch):
        asked, trained = spied(live, monkeypatch)
        run = go(live, tmp_path, "former")
        assert asked == [1] * 35
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
    """Lists that fill with how many were asked for at once, and with the known labels that rounds are trained on."""
    asked, trained = [], []
    answer, fit = orders.EngineOrder.next, live.learner.fit

    def counted_fit(indices, *arguments, **more):
        trained.append(len(indices))
        return fit(indices, *arguments, **more)

    def counted(order):
        asked.append(len(found := answer(order)))
        return found

    monkeypatch.setattr(orders.EngineOrder, "next", counted)
    judged = type("Judge", (), {"fit": staticmethod(fit)})()
    monkeypatch.setattr(live.learner, "fit", counted_fit)
    object.__setattr__(live, "judge", judged)
    return asked, trained


def part(live):
    from neat_backend.experiments.linear import LinearLearner

    return LinearLearner(np.concatenate([live.features[:30], live.learner.inputs(np.arange(200, 260))]), 30)


OPTIONS = [
    "--protocol",
    "live",
    "--dataset",
    "squares",
    "--known",
    "3",
    "--choice",
    "draw:2",
    "--seeds",
    "0",
    "--k",
    "3",
    "--labels",
    "20",
    "--start",
    "2",
    "--batch",
    "10",
]


def invoke(*words, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, ["experiment", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def run(folder, *more, **keywords) -> str:
    return invoke("run", *OPTIONS, "--out", folder, *more, **keywords)


def figures_of(folder):
    return {one.run: (one.rounds, one.codes) for one in results.read(folder).records}


@pytest.fixture
def done(at_hand, tmp_path):
    """The folder of a live experiment with three orders and two draws."""
    run(tmp_path / "one", "--orders", "random,paper,live")
    return tmp_path / "one"


class TestCommands:
    def test_a_run_leaves_results_for_programs_and_people(self, done, at_hand):
        found = json.loads((done / "results.json").read_text())
        assert found["kind"] == "live"
        assert found["orders"]["live"]["runs"] == 2
        assert {one["order"] for one in found["runs"]} == {"random", "paper", "live"}
        assert all(sum(one["first_50"]) == 20 for one in found["runs"])
        (ahead,) = (one for one in found["differences"] if (one["order"], one["against"]) == ("live", "random"))
        live, random = (found["orders"][name]["accuracy_20"]["mean"] for name in ("live", "random"))
        assert ahead["accuracy_20"]["mean"] == pytest.approx(live - random)
        assert ahead["accuracy_20"]["draws"] == 2
        rows = list(csv.DictReader((done / "results.csv").open()))
        assert len(rows) == 3 * 2 * 3
        assert {row["labels"] for row in rows} == {"0", "10", "20"}
        assert at_hand.seen == 260, "features are computed once"

    def test_resume_ends_as_if_it_had_not_been_stopped(self, done, tmp_path, monkeypatch):
        other = tmp_path / "other"
        real = runner.run_labels
        with monkeypatch.context() as patch:
            left = iter(range(10))

            def interrupted(protocol, samples, folder, on_point):
                def counting(number, point):
                    on_point(number, point)
                    if next(left, None) is None:
                        raise KeyboardInterrupt

                return real(protocol, samples, folder, counting)

            patch.setattr(runner, "run_labels", interrupted)
            run(other, "--orders", "random,paper,live", code=commands.INTERRUPTED)
        assert len(results.read(other).records) == 3, "whole runs count, the fourth is begun anew"
        invoke("resume", other)
        assert figures_of(other) == figures_of(done)

    def test_a_second_start_may_add_orders_and_does_nothing_again(self, done):
        before = figures_of(done)
        run(done, "--orders", "live,former")
        after = figures_of(done)
        assert read_plan(done).strategies == ("random", "paper", "live", "former")
        assert len(after) == 8
        assert {key: after[key] for key in before} == before

    def test_several_processes_find_what_one_does(self, at_hand, tmp_path):
        few = ["--dataset", "digits", "--train-images", "200", "--test-images", "50", "--orders", "random,live"]
        run(tmp_path / "one", *few)
        run(tmp_path / "two", *few, "--jobs", "2")
        assert figures_of(tmp_path / "one") == figures_of(tmp_path / "two")

    def test_a_network_may_be_trained_in_rounds(self, at_hand, tmp_path):
        run(
            tmp_path / "net",
            "--orders",
            "former,paper",
            "--classifier",
            "resnet18",
            "--epochs",
            "1",
            "--choice",
            "first",
            "--labels",
            "9",
            "--batch",
            "8",
        )
        assert len(results.read(tmp_path / "net").records) == 2

    @pytest.mark.parametrize("form", ["live", "served"])
    def test_tables_can_be_had_in_every_style(self, done, form):
        assert invoke("table", done, "--form", form, "--format", "markdown").count("| live |") == 1
        assert "live" in invoke("table", done, "--form", form)
        made = json.loads(invoke("table", done, "--form", form, "--json"))
        assert {"random", "paper", "live"} <= {row["order"] for row in made["rows"]}
        text = invoke("table", done, "--form", form, "--format", "csv")
        assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1

    def test_a_table_without_a_form_is_that_of_the_protocol(self, done, tmp_path):
        assert invoke("table", done) == invoke("table", done, "--form", "live")
        invoke(
            "run",
            "--preset",
            "digits-quick",
            "--dataset",
            "squares",
            "--known",
            "2",
            "--rounds",
            "1",
            "--strategies",
            "random",
            "--out",
            tmp_path / "batch",
        )
        with pytest.raises(SettingsError, match="batch and of the live protocol; add --form"):
            invoke("table", tmp_path)
        assert "random" in invoke("table", tmp_path, "--form", "strategies")
        assert "live − random" in invoke("table", tmp_path, "--form", "live")
        written = invoke("plot", tmp_path, "--out", tmp_path / "f").split()
        assert [path.split("/")[-1] for path in written] == ["curves.png", "curves.svg", "live.png", "live.svg"]

    def test_accuracy_by_label_is_drawn(self, done, tmp_path):
        written = invoke("plot", done, "--out", tmp_path / "f", "--strategies", "random,live").split()
        assert [path.split("/")[-1] for path in written] == ["live.png", "live.svg"]
        svg = (tmp_path / "f" / "live.svg").read_text()
        assert "live (default)" in svg
        assert "the paper" not in svg
        with pytest.raises(SettingsError, match="none of former"):
            invoke("plot", done, "--out", tmp_path / "f", "--strategies", "former")

    def test_one_experiment_for_each_value(self, at_hand, tmp_path):
        run(tmp_path / "v", "--orders", "random", "--vary", "start=0,2")
        assert [read_plan(tmp_path / "v" / f"start-{n}").protocol.start for n in (0, 2)] == [0, 2]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--orders", "live,best"], "--orders 'best'"),
            (["--orders", ","], "--orders names none"),
            (["--strategies", "neat"], "--strategies are of the batch protocol"),
            (["--protocol", "slow"], "--protocol 'slow'"),
            (["--preset", "cifar10"], "--protocol live: preset cifar10 is of the batch protocol"),
            (["--initial", "0.1"], "--initial means nothing to the live protocol"),
            (["--labels", "0"], "--labels 0"),
            (["--start", "-1"], "--start -1"),
            (["--start", "70"], "--start 70: a known class has"),
            (["--classifier", "vgg16"], "--classifier 'vgg16'"),
            (["--vary", "rounds=2"], "--vary 'rounds'"),
            (["--choice", "draw:3-2"], "draw:A-B"),
        ],
    )
    def test_bad_options_are_named(self, at_hand, tmp_path, words, message):
        with pytest.raises(SettingsError) as raised:
            run(tmp_path / "x", *words)
        assert message in str(raised.value)
        assert at_hand.seen == 0, "it is said before anything is encoded"

    def test_options_of_the_live_protocol_are_refused_elsewhere(self, at_hand, tmp_path):
        for words, message in (
            (["--orders", "live"], "--orders are of the live protocol"),
            (["--start", "4"], "--start means nothing to the batch protocol"),
        ):
            with pytest.raises(SettingsError, match=message):
                invoke("run", "--preset", "digits-quick", *words, "--out", tmp_path / "x")

    def test_a_folder_of_the_other_protocol_is_refused(self, done):
        with pytest.raises(SettingsError, match="holds a live experiment"):
            invoke("run", "--preset", "digits-quick", "--out", done)


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
