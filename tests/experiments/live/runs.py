"""Runs of the live protocol, by function and by command."""

from __future__ import annotations

from typer.testing import CliRunner

from neat_backend import cli
from neat_backend.experiments import results
from neat_backend.experiments.checkpoints import Run, RunFolder
from neat_backend.experiments.live_loop import run_labels
from neat_backend.experiments.protocols import LiveProtocol

PROTOCOL = LiveProtocol("squares", 3, "colour", start=2, labels=35, batch=10, k=3)
KNOWN = (0, 2, 3)


def go(live, folder, order="live", protocol=PROTOCOL, seed=0, **more):
    return run_labels(protocol, live, RunFolder(folder, Run(order, seed, KNOWN)), **more)


def without_times(run):
    return {key: value for key, value in run.items() if key != "seconds"}


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
