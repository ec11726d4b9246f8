"""All runs of an experiment: loads data and features, then one run after another, or several at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend import strategies
from neat_backend.errors import NeatError
from neat_backend.experiments import datasets, orders, results
from neat_backend.experiments.checkpoints import Plan, Run, RunFolder, read_plan, write_plan
from neat_backend.experiments.datasets import Dataset
from neat_backend.experiments.features import Floats, features_of, stored, strongest
from neat_backend.experiments.linear_classifier import LinearLearner
from neat_backend.experiments.live_loop import LiveSamples, points_of, run_labels, start_of
from neat_backend.experiments.loop import FirstModels, Samples, run_rounds
from neat_backend.experiments.protocols import LiveProtocol, Protocol
from neat_backend.experiments.run_progress import Reporter
from neat_backend.experiments.splits import known_choices


@dataclass(frozen=True)
class Machine:
    """The machine of an experiment; only times may depend on it.

    cache     folder of computed features
    weights   a file with the encoder's weights, instead of a download
    """

    cache: Path
    device: str = "auto"
    weights: Path | None = None
    jobs: int = 1


def load_data(protocol: Protocol | LiveProtocol) -> Dataset:
    """The data set of a protocol, cut to size."""
    data = datasets.load(protocol.dataset, Path(protocol.data) if protocol.data else None, protocol.side)
    return data.subset(protocol.train_images, protocol.test_images)


def encode(data: Dataset, encoder_name: str, machine: Machine, report: Reporter) -> tuple[Floats, Floats, str]:
    """Features of both parts, and the encoder's key. Raises EncoderError where the encoder can't be built."""
    from neat_backend.models.encoders import build_encoder

    encoder = build_encoder(encoder_name, machine.weights, machine.device)
    features, test_features = features_of(data, encoder, machine.cache, report.images)
    return features, test_features, encoder.key


def samples_of(
    protocol: Protocol | LiveProtocol, data: Dataset, features: Floats, test_features: Floats, device: str
) -> Samples:
    """The samples with the protocol's learner."""
    labels = np.concatenate([data.labels, data.test_labels])
    live, is_linear = isinstance(protocol, LiveProtocol), protocol.classifier == "linear"
    if isinstance(protocol, Protocol) and protocol.components is not None:
        features, test_features = strongest(features, test_features, protocol.components)
    if live or is_linear:
        linear = LinearLearner(np.concatenate([features, test_features]), len(features))
    if is_linear:
        learner: Any = linear
    else:
        from neat_backend.experiments.image_files import ImageLearner

        images = np.concatenate([data.images, data.test_images])
        learner = ImageLearner(images, protocol.classifier, protocol.epochs, device)
    return LiveSamples(features, labels, learner, linear) if live else Samples(features, labels, learner)


def runs_of(plan: Plan, n_classes: int) -> list[Run]:
    """All runs. Strategies with the same seed and known classes are adjacent: they share their first classifier."""
    return [
        Run(strategy, seed, known)
        for seed in plan.seeds
        for known in known_choices(plan.protocol.choice, plan.protocol.known, n_classes, seed)
        for strategy in plan.strategies
    ]


def start(folder: Path, plan: Plan, machine: Machine, report: Reporter) -> None:
    """Do an experiment, or the rest of it, and write its results.

    Raises SettingsError for an unknown strategy or order, before anything else is done, and where the folder holds
    another experiment.
    """
    if isinstance(plan.protocol, LiveProtocol):
        orders.check(plan.strategies)
    else:
        for name in plan.strategies:
            strategies.strategy(name)
    if (folder / "plan.json").exists():
        plan = read_plan(folder).joined(plan)
    data = load_data(plan.protocol)
    runs = runs_of(plan, data.n_classes)  # raises for missing classes before anything is encoded
    if isinstance(plan.protocol, LiveProtocol):
        for run in runs:
            start_of(plan.protocol, data.labels, run)
    features, test_features, key = encode(data, plan.protocol.encoder, machine, report)
    plan = plan.with_inputs(f"{data.fingerprint} {key}")
    write_plan(folder, plan)
    steps, done = _steps(plan.protocol), [_steps_done(folder, plan.protocol, run) for run in runs]
    report.begin("steps", steps * len(runs), sum(done))
    try:
        if machine.jobs == 1:
            samples = samples_of(plan.protocol, data, features, test_features, machine.device)
            _one_by_one(folder, plan.protocol, samples, runs, report)
        else:
            _at_once(folder, plan.protocol, machine, key, runs, report)
    finally:
        results.write(folder)


def _steps(protocol: Protocol | LiveProtocol) -> int:
    """Number of steps of one run: its rounds, or the points of its figures."""
    return len(points_of(protocol)) if isinstance(protocol, LiveProtocol) else protocol.rounds + 1


def _steps_done(folder: Path, protocol: Protocol | LiveProtocol, run: Run) -> int:
    done = RunFolder(folder, run)
    if isinstance(protocol, LiveProtocol):
        return _steps(protocol) if done.live() else 0
    return min(_steps(protocol), done.rounds_done)


def _run(
    protocol: Protocol | LiveProtocol,
    samples: Samples,
    folder: RunFolder,
    on_step: Callable[[int, dict[str, Any]], None],
    first_models: FirstModels,
) -> None:
    if isinstance(protocol, LiveProtocol):
        assert isinstance(samples, LiveSamples)
        run_labels(protocol, samples, folder, on_step)
    else:
        run_rounds(protocol, samples, folder, on_step, first_models)


def _one_by_one(
    folder: Path, protocol: Protocol | LiveProtocol, samples: Samples, runs: Sequence[Run], report: Reporter
) -> None:
    first_models = FirstModels()
    for run in runs:
        _run(
            protocol,
            samples,
            RunFolder(folder, run),
            lambda number, figures, run=run: report.step(run.name, number, figures),  # type: ignore[misc]
            first_models,
        )


class _Stopped(Exception):
    """The experiment must end; finished steps are stored."""


_here: dict[str, Any] = {}  # data loaded by a process that does runs


def _at_once(
    folder: Path,
    protocol: Protocol | LiveProtocol,
    machine: Machine,
    encoder_key: str,
    runs: Sequence[Run],
    report: Reporter,
) -> None:
    """Do runs in several processes; each loads data and features itself, and has its share of the cores."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    todo = [run for run in runs if _steps_done(folder, protocol, run) < _steps(protocol)]
    with ProcessPoolExecutor(machine.jobs, context, _load, (folder, protocol, machine, encoder_key, stop)) as pool:
        futures = {pool.submit(_do, run): run for run in todo}
        try:
            for future in as_completed(futures):
                report.steps(futures[future].name, future.result())
        except BaseException:
            stop.set()  # each process ends after its step
            pool.shutdown(cancel_futures=True)
            raise


def _load(folder: Path, protocol: Protocol | LiveProtocol, machine: Machine, encoder_key: str, stop: Any) -> None:
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    data = load_data(protocol)
    found = stored(data, encoder_key, machine.cache)
    if found is None:
        raise NeatError(f"the features in {machine.cache} have been deleted meanwhile; start again")
    samples = samples_of(protocol, data, *found, machine.device)
    threads = max(1, (os.cpu_count() or 1) // machine.jobs)
    threadpool_limits(threads)
    if protocol.classifier != "linear":
        import torch

        torch.set_num_threads(threads)
    _here.update(folder=folder, protocol=protocol, samples=samples, stop=stop, first_models=FirstModels())


def _do(run: Run) -> int:
    """Do a run; returns the number of steps done now."""
    done = 0

    def on_step(number: int, figures: Any) -> None:
        nonlocal done
        done += 1
        if _here["stop"].is_set():
            raise _Stopped

    _run(_here["protocol"], _here["samples"], RunFolder(_here["folder"], run), on_step, _here["first_models"])
    return done
