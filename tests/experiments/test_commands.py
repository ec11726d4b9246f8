"""The commands, from end to end, on coloured squares."""

from __future__ import annotations

import csv
import io
import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from neat_backend import cli
from neat_backend.errors import SettingsError
from neat_backend.experiments import commands, results, runner
from neat_backend.experiments.checkpoints import read_plan

OPTIONS = [
    "--preset",
    "digits-quick",
    "--dataset",
    "squares",
    "--known",
    "2",
    "--batch",
    "8",
    "--rounds",
    "3",
    "--k",
    "3",
    "--initial",
    "6",
]


def invoke(*words, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, ["experiment", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def run(folder, *more, **keywords) -> str:
    return invoke("run", *OPTIONS, "--out", folder, *more, **keywords)


@pytest.fixture
def done(at_hand, tmp_path):
    """The folder of an experiment with three strategies and two seeds."""
    run(tmp_path / "one", "--strategies", "random,neat,hybrid:uncertainty")
    return tmp_path / "one"


def test_a_run_leaves_results_for_programs_and_people(done, at_hand):
    found = json.loads((done / "results.json").read_text())
    assert set(found["strategies"]) == {"random", "neat", "hybrid:uncertainty"}
    assert found["strategies"]["neat"]["runs"] == 2
    assert 0 < found["strategies"]["neat"]["accuracy"]["mean"] <= 1
    rows = list(csv.DictReader((done / "results.csv").open()))
    assert len(rows) == 3 * 2 * 4
    assert {row["strategy"] for row in rows if row["round"] == "3"} == set(found["strategies"])
    assert at_hand.seen == 260, "features are computed once"


def test_a_second_start_does_nothing_again_and_may_add_strategies_and_seeds(done, monkeypatch):
    before = (done / "results.csv").read_text()
    run(done, "--strategies", "random,neat,hybrid:uncertainty")
    assert (done / "results.csv").read_text() == before
    run(done, "--strategies", "certainty", "--seeds", "2")
    plan = read_plan(done)
    assert plan.seeds == (0, 1, 2)
    assert len(results.read(done).records) == 4 * 3


def test_another_protocol_needs_another_folder(done):
    with pytest.raises(SettingsError, match="batch 8 and 9"):
        run(done, "--batch", "9")


def figures_of(folder):
    return {
        record.run: [{key: value for key, value in one.items() if key != "seconds"} for one in record.rounds]
        for record in results.read(folder).records
    }


def test_resume_ends_as_if_it_had_not_been_stopped(done, tmp_path, monkeypatch):
    other = tmp_path / "other"
    real = runner.run_rounds
    with monkeypatch.context() as patch:
        left = iter(range(6))

        def interrupted(protocol, samples, folder, on_round, first_models):
            def counting(number, figures):
                on_round(number, figures)
                if next(left, None) is None:
                    raise KeyboardInterrupt

            return real(protocol, samples, folder, counting, first_models)

        patch.setattr(runner, "run_rounds", interrupted)
        run(other, "--strategies", "random,neat,hybrid:uncertainty", code=commands.INTERRUPTED)
    assert len(results.read(other).records) < 6
    invoke("resume", other)
    assert figures_of(other) == figures_of(done)


FORMS = ("strategies", "differences", "queries", "encoders", "k", "batch", "classifiers", "timings", "price")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_table_can_be_had_in_every_style(done, form):
    for style in ("text", "markdown", "csv"):
        text = invoke("table", done, "--form", form, "--format", style)
        assert "neat" in text
    assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1


def test_differences_are_paired(done):
    text = invoke("table", done, "--against", "random", "--format", "csv")
    rows = {row["strategy"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["random"]["accuracy vs. random"] == "+0.00 ± 0.00"
    mine, theirs = (float(rows[name]["known"].split()[0]) for name in ("neat", "random"))
    assert float(rows["neat"]["known vs."].split()[0]) == pytest.approx(mine - theirs, abs=0.11)


def test_differences_over_two_experiments_count_each_draw_once(at_hand, tmp_path):
    for place, choice in (("a", "0,1;2,3"), ("b", "1,2")):
        run(tmp_path / place, "--strategies", "random,neat", "--choice", choice)
    text = invoke("table", tmp_path, "--form", "differences", "--against", "random", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["strategy minus random"], row["draws"]) == ("neat", "3")
    apart = [
        np.mean([mine.summary["area"] - theirs.summary["area"] for mine, theirs in pairs])
        for place in ("a", "b")
        for pairs in _by_draw(results.read(tmp_path / place).pairs("neat", "random"))
    ]
    assert float(row["area"].split()[0]) == pytest.approx(100 * np.mean(apart), abs=0.006)


def _by_draw(pairs):
    return [[pair for (_, known), pair in pairs.items() if known == one] for one in {known for _, known in pairs}]


def test_components_make_the_features_shorter(at_hand, tmp_path, monkeypatch):
    seen = []
    real = runner.run_rounds
    monkeypatch.setattr(
        runner, "run_rounds", lambda protocol, samples, *more: seen.append(samples) or real(protocol, samples, *more)
    )
    run(tmp_path / "x", "--strategies", "neat", "--seeds", "0", "--components", "3")
    assert seen[0].features.shape == (200, 3)


def test_one_experiment_for_each_value_makes_the_papers_tables(at_hand, tmp_path):
    run(tmp_path / "k", "--strategies", "neat", "--seeds", "0", "--vary", "k=9,3")
    text = invoke("table", tmp_path / "k", "--form", "k", "--format", "csv")
    assert [row["# of neighbours"] for row in csv.DictReader(io.StringIO(text))] == ["3", "9"]
    invoke("table", tmp_path / "k", "--form", "k", "--format", "markdown", "--out", tmp_path / "k.md")
    assert (tmp_path / "k.md").read_text().startswith("Accuracy after the last query of neat by k\n\n| dataset |")


def test_figures_are_drawn_as_png_and_svg(done, tmp_path):
    written = invoke("plot", done, "--out", tmp_path / "f", "--tsne", "neat,random", "--query", "2").split()
    assert [path.split("/")[-1] for path in written] == ["curves.png", "curves.svg", "tsne.png", "tsne.svg"]
    assert (tmp_path / "f" / "curves.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "f" / "curves.svg").read_text()
    assert "NEAT" in svg
    assert "UNCERTAINTY after detection" in svg
    invoke("plot", done, "--out", tmp_path / "f")
    assert (tmp_path / "f" / "curves.svg").read_text() == svg


def test_clusterability_compares_encoders(at_hand):
    found = json.loads(invoke("clusterability", "--dataset", "squares", "--encoders", "a,b", "--k", "5", "--json"))
    assert [row["encoder"] for row in found] == ["a", "b"]
    assert 0 <= found[0]["sigma"]["1"] <= found[0]["sigma"]["5"] <= 1
    text = invoke("clusterability", "--dataset", "squares", "--k", "5")
    assert "have 5 known neighbours" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategies", "neat,best"], "strategy 'best'"),
        (["--strategies", ","], "names none"),
        (["--seeds", "0,x"], "--seeds"),
        (["--seeds", "-1"], "--seeds"),
        (["--preset", "mnist"], "--preset 'mnist'"),
        (["--dataset", "mnist"], "--dataset 'mnist'"),
        (["--known", "6"], "has 5 classes"),
        (["--choice", "draw:99"], "there are only 10"),
        (["--batch", "0"], "--batch 0"),
        (["--components", "0"], "--components 0"),
        (["--initial", "0"], "--initial 0"),
        (["--target-precision", "60"], "--target-precision 60"),
        (["--initial", "1.5"], "--initial 1.5"),
        (["--classifier", "svm"], "--classifier 'svm'"),
        (["--rule", "some"], "--rule 'some'"),
        (["--vary", "colour=1"], "--vary 'colour'"),
        (["--vary", "k=x"], "--vary k=x"),
        (["--vary", "k"], "NAME=VALUE"),
    ],
)
def test_bad_options_are_named(at_hand, tmp_path, words, message):
    with pytest.raises(SettingsError) as raised:
        run(tmp_path / "x", *words)
    assert message in str(raised.value)


def test_folders_without_results_are_said(at_hand, tmp_path):
    with pytest.raises(SettingsError, match="no experiment in"):
        invoke("table", tmp_path)
    with pytest.raises(SettingsError, match="no experiment in"):
        invoke("resume", tmp_path)


def test_other_images_under_the_same_plan_are_refused(done, at_hand):
    at_hand.key = "colour-2"
    with pytest.raises(SettingsError, match="other images or encoder weights"):
        invoke("resume", done)


def test_without_matplotlib_the_extra_that_includes_it_is_named(done, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingsError, match=r"neat-backend\[experiments\]"):
        invoke("plot", done, "--out", tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_tsne_needs_runs_that_both_have_done(done, tmp_path):
    with pytest.raises(SettingsError, match="no seed and known classes"):
        invoke("plot", done, "--out", tmp_path / "f", "--tsne", "neat,lfosa")


def test_an_unknown_form_is_refused(done):
    with pytest.raises(SettingsError, match="--form 'pie'"):
        invoke("table", done, "--form", "pie")
    with pytest.raises(SettingsError, match="--format 'pdf'"):
        invoke("table", done, "--format", "pdf")


def test_several_processes_find_what_one_does(at_hand, tmp_path):
    """On data that other processes have too; of the encoder they need the features alone."""
    few = ["--dataset", "digits", "--train-images", "200", "--test-images", "50", "--strategies", "random,neat"]
    run(tmp_path / "one", *few)
    run(tmp_path / "two", *few, "--jobs", "2")
    assert figures_of(tmp_path / "one") == figures_of(tmp_path / "two")
