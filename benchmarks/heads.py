"""`python -m benchmarks heads`: how much of a publication's time in Label Studio depends on the head's size."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.first_order import fill, image
from benchmarks.processes import cpu_seconds_below
from benchmarks.publish import LABEL_CONFIG, FastImport, started
from benchmarks.report import Json, numbers, quantile, report

MOST = 1000  # predictions of one call


@dataclass
class Costs:
    """Of each publication of one size: seconds, and Label Studio's processor time."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    deletion: list[float] = field(default_factory=list)  # of it later, Label Studio's processor time


def heads(
    tasks: Annotated[int, typer.Option(min=1000, help="Of the project.")] = 10_000,
    sizes: Annotated[str, typer.Option(help="Sizes of heads; the smallest is the floor.")] = "1,10,20,50,100,200",
    repeat: Annotated[int, typer.Option(min=1, help="Publications of each size, in turn.")] = 10,
    fast_import: FastImport = False,
    as_json: Json = False,
) -> None:
    """Seconds of a bare publication: the import of so many predictions, and the switch of the model version to them.

    Against a real Label Studio on SQLite, without a backend. Processor time is Label Studio's, and gives the ratio also
    on a busy machine; that of the deletion of these predictions, when the next head is there, stands apart.

    Example: python -m benchmarks heads --tasks 1000 --repeat 3
    """
    wanted = numbers(sizes, "--sizes")
    if max(wanted) > min(tasks, MOST):
        raise typer.BadParameter(f"--sizes {sizes!r}: at most {min(tasks, MOST)}")
    found = {size: Costs() for size in sorted(wanted)}
    with tempfile.TemporaryDirectory() as name, started(Path(name) / "label-studio", fast_import) as server:
        _publish(server, tasks, found, repeat)
    floor = next(iter(found.values()))
    rows = [
        {
            "head": size,
            "p50_s": quantile(costs.seconds, 0.5),
            "p50_over_floor": quantile(costs.seconds, 0.5) / quantile(floor.seconds, 0.5),
            "processor_s": sum(costs.processor) / repeat,
            "processor_over_floor": sum(costs.processor) / sum(floor.processor),
            "deletion_processor_s": sum(costs.deletion) / repeat,
        }
        for size, costs in found.items()
    ]
    report("heads", {"tasks": tasks, "repeat": repeat, "fast_import": fast_import}, as_json, rows, of="head")


def _publish(server: Any, tasks: int, found: dict[int, Costs], repeat: int) -> None:
    from neat_backend.demo.label_studio import Annotator
    from neat_backend.labelstudio.client import LabelStudioClient

    annotator = Annotator(server.url, server.token, timeout_seconds=600)
    project = annotator.create_project(f"{tasks} tasks", LABEL_CONFIG, sampling="Uncertainty sampling")
    (first,) = annotator.import_tasks(project, [{"data": {"image": image(0)}}])
    fill(server.folder / "label_studio.sqlite3", first, tasks)
    client = LabelStudioClient(server.url, server.token, timeout_seconds=600)
    for number in range(-1, repeat):  # the first one warms up
        for size in list(found)[:: -1 if number % 2 else 1]:
            version = f"head-{size}-{number}"
            items = [
                {"task": first + at, "score": at / size, "model_version": version, "result": []} for at in range(size)
            ]
            before, began = cpu_seconds_below(server.pid), time.perf_counter()
            client.import_predictions(project, items)
            client.set_model_version(project, version)
            seconds, switched = time.perf_counter() - began, cpu_seconds_below(server.pid)
            client.delete_model_version(project, version)
            if number >= 0:
                found[size].seconds.append(seconds)
                found[size].processor.append(switched - before)
                found[size].deletion.append(cpu_seconds_below(server.pid) - switched)
