"""Live experiments by command."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from neat_backend.errors import SettingsError
from neat_backend.experiments import commands, results, runner
from neat_backend.experiments.checkpoints import read_plan
from tests.experiments.live.runs import figures_of, invoke, run


def part(live):
    from neat_backend.experiments.linear_classifier import LinearLearner

    return LinearLearner(np.concatenate([live.features[:30], live.learner.inputs(np.arange(200, 260))]), 30)


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
