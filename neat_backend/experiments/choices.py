"""Drawing the samples that strategies chose in one query, from an experiment's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neat_backend.errors import SettingsError
from neat_backend.experiments import figures, results
from neat_backend.experiments.checkpoints import RunFolder
from neat_backend.experiments.run_progress import Reporter
from neat_backend.experiments.runner import Machine, encode, load_data
from neat_backend.experiments.splits import codes_of, stream


def draw_choices(
    folder: Path, strategies: Sequence[str], query: int, seed: int | None, out: Path, machine: Machine
) -> list[Path]:
    """t-SNE with the samples that each strategy chose, for a seed and known classes that all have finished.

    Raises SettingsError where there is none such.
    """
    experiment = results.read(folder)
    done = [
        {(one.run.seed, one.run.known): one.run for one in experiment.of(name) if _fits(one, seed, query)}
        for name in strategies
    ]
    common = [key for key in done[0] if all(key in runs for runs in done)]
    if not common:
        raise SettingsError(f"--tsne: no seed and known classes with query {query} of all of {', '.join(strategies)}")
    pair = common[0]
    chosen = {
        name: [past for past, _ in RunFolder(folder, runs[pair]).queries()][query - 1].indices
        for name, runs in zip(strategies, done, strict=True)
    }
    data = load_data(experiment.plan.protocol)
    with Reporter() as report:
        features, _, _ = encode(data, experiment.plan.protocol.encoder, machine, report)
    return figures.choices(experiment, features, codes_of(data.labels, pair[1]), chosen, query, out, stream("t-SNE"))


def _fits(record: results.Record, seed: int | None, query: int) -> bool:
    return (seed is None or record.run.seed == seed) and len(record.rounds) > query
