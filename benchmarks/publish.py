"""`python -m benchmarks publish`: from an annotation to the new order being served, against a real Label Studio."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import processes
from benchmarks.processes import ENCODER
from benchmarks.report import Json, numbers, progress, quantile, report
from benchmarks.samples import feature_chunks
from neat_backend.errors import NeatError

THUMBNAIL_SIDE = 16  # pixels; no training takes place, so they are not used
LABELLED_BEFORE = 20  # tasks imported with an annotation: with fewer than K labels no order means anything
AT_ONCE = 2000  # tasks in one import
NOISE_SECONDS = 0.02
CLASSES = ("one", "two", "three", "four")
INVALID = "Not one of these"
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">'
    + "".join(f'<Choice value="{name}"/>' for name in CLASSES)
    + f'<Choice value="{INVALID}" invalid="true"/></Choices></View>'
)


FastImport = Annotated[
    bool, typer.Option("--fast-import", help="Start Label Studio with its feature flag for imports (label-studio.md).")
]


@dataclass(frozen=True)
class Waits:
    """Seconds of each label that changed the head, until the new one was served; of Label Studio's own part."""

    total: list[float]
    theirs: list[float]
    unchanged: int  # labels that left the head as it was: nothing had to be published
    within: float  # mean seconds from a webhook's arrival to its being served, less those of Label Studio's calls


def publish(
    tasks: Annotated[str, typer.Option(help="Sizes of projects.")] = "1000,10000",
    labels: Annotated[int, typer.Option(min=1, help="Annotations to time in each.")] = 20,
    pause: Annotated[
        float, typer.Option(min=0, help="Seconds between them. Below NEAT_PUBLISH_INTERVAL, that is waited for too.")
    ] = 2.5,
    fast_import: FastImport = False,
    as_json: Json = False,
) -> None:
    """Seconds from an annotation to the new order being served, against a real Label Studio on SQLite.

    Features are made up and put into the store beforehand, so nothing is encoded; all else is as in use, from
    Label Studio's webhook to the switch of the model version. Label Studio's own part is measured in turn with
    it, in a second project of that size without a backend: after an annotation, the bare import of 2B predictions
    and the switch to them. `ours` is the difference of each pair.

    Example: python -m benchmarks publish --tasks 300 --labels 5
    """
    from neat_backend.models.encoders import build_encoder
    from neat_backend.settings import Settings

    sizes = numbers(tasks, "--tasks", least=100)
    defaults = Settings.from_env({})
    if min(sizes) < LABELLED_BEFORE + labels + 2 * defaults.batch_size:
        raise typer.BadParameter(f"a project of {min(sizes)} tasks is too small for {labels} labels")
    network = build_encoder(ENCODER, device="cpu")
    key, dim = network.key, network.dim
    del network
    rows = []
    with tempfile.TemporaryDirectory() as name, started(Path(name) / "label-studio", fast_import) as server:
        for size in sizes:
            progress.print(f"a project of {size:,} tasks …")
            waits = _measure(server, Path(name) / f"backend-{size}", size, labels, pause, key, dim, defaults.batch_size)
            rows.append(_row(size, waits))
    first, last = rows[0], rows[-1]
    report(
        "publish",
        {
            "labels": labels,
            "pause_seconds": pause,
            "publish_interval_seconds": defaults.publish_interval_seconds,
            "head": 2 * defaults.batch_size,
            "fast_import": fast_import,
            "features": "made up, stored beforehand; nothing is encoded",
            "largest_over_smallest_p50": last["p50_s"] / first["p50_s"],
            "largest_over_smallest_p95": last["p95_s"] / first["p95_s"],
            "largest_over_smallest_ours_p50": _ratio(last["ours_p50_s"], first["ours_p50_s"]),
            "largest_over_smallest_ours_p95": _ratio(last["ours_p95_s"], first["ours_p95_s"]),
            "largest_over_smallest_within_backend": last["within_backend_mean_s"] / first["within_backend_mean_s"],
            "aim": "p95 at most 3 s at 10,000 tasks, ours at most 1.3 times that at 1,000",
        },
        as_json,
        rows,
        of="tasks",
    )


def started(folder: Path, fast_import: bool) -> Any:
    """A Label Studio to enter, with its feature flag for imports or without it."""
    from neat_backend.demo.label_studio import LabelStudioServer
    from neat_backend.labelstudio.importing import FLAG

    server = LabelStudioServer(folder)
    if fast_import:
        server.variables[FLAG] = "true"
    return server


def _ratio(large: float, small: float) -> float | None:
    """None where ours is lost in the noise of Label Studio's own part: a ratio would mean nothing."""
    return large / small if small > NOISE_SECONDS else None


def _row(size: int, waits: Waits) -> dict[str, Any]:
    row: dict[str, Any] = {"tasks": size, "published": len(waits.total), "head_unchanged": waits.unchanged}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        ours = [total - theirs for total, theirs in zip(waits.total, waits.theirs, strict=True)]
        row |= {
            f"{name}_s": quantile(waits.total, share),
            f"label_studio_{name}_s": quantile(waits.theirs, share),
            f"ours_{name}_s": quantile(ours, share),
        }
    return row | {
        "total_over_label_studio_p50": row["p50_s"] / row["label_studio_p50_s"],
        "within_backend_mean_s": waits.within,
    }


def _measure(
    server: Any, folder: Path, size: int, labels: int, pause: float, encoder_key: str, dim: int, batch_size: int
) -> Waits:
    """One project: made, connected, labelled, and then published to without the backend."""
    from neat_backend.demo.backend import is_ranked, labelled
    from neat_backend.demo.label_studio import Annotator, choices_result
    from neat_backend.store import measures

    rng = np.random.default_rng(0)
    annotator = Annotator(server.url, server.token, timeout_seconds=600)
    choices = [*CLASSES, INVALID]
    pictures = [{"data": {"image": f"/data/local-files/?d=bench/{number}.png"}} for number in range(size)]
    answered = [
        {**picture, "annotations": [{"result": choices_result(choices[number % len(choices)])}]}
        for number, picture in enumerate(pictures[:LABELLED_BEFORE])
    ]
    items: list[dict[str, Any]] = [*answered, *pictures[LABELLED_BEFORE:]]
    project, ids = make_project(annotator, f"{size} tasks", items)
    bare = _Bare(server, annotator, *make_project(annotator, f"{size} tasks without a backend", items), 2 * batch_size)
    refs = [picture["data"]["image"] for picture in pictures]
    store(folder / "data", project, ids, refs, encoder_key, dim, rng)
    backend = processes.backend(server, folder, NEAT_IMAGE_SIZE=str(THUMBNAIL_SIDE))
    try:
        backend.start()
        annotator.connect_backend(project, backend.url)
        backend.wait_until(project, is_ranked, every_seconds=0.25)
        status = backend.status(project)
        count, version = labelled(status), status["model_version"]
        total: list[float] = []
        theirs: list[float] = []
        before_labels = _measured(folder / "data", project)
        for number in range(labels):
            time.sleep(pause)
            task = annotator.next_task(project)
            assert task is not None
            annotator.annotate(task, choices[rng.integers(len(choices))])
            wanted, began = count + number + 1, time.perf_counter()
            status = backend.wait_until(
                project,
                lambda now, wanted=wanted: labelled(now) >= wanted and now["caught_up"],  # type: ignore[misc]
            )
            seconds = time.perf_counter() - began
            before, version = version, status["model_version"]
            if version != before:
                total.append(seconds)
                theirs.append(bare.publish())
        time.sleep(2 * measures.SAVE_SECONDS)  # then all has been written down
        within = _within(before_labels, _measured(folder / "data", project))
    finally:
        backend.stop()
    if not total:
        raise NeatError(f"none of {labels} labels changed what is served; time more of them")
    return Waits(total, theirs, labels - len(total), within)


def _measured(data_dir: Path, project: int) -> Any:
    from neat_backend.store import measures
    from neat_backend.store.arrays import ProjectArrays

    return measures.read(ProjectArrays(data_dir, project)).histograms


def _within(before: Any, after: Any) -> float:
    """Mean seconds of a label in the backend itself: until it is served, less the mean of the publications' calls."""
    from neat_backend.store import measures

    means = []
    for name in (measures.SERVE, measures.PUBLISH):
        seconds = after[name].sum_seconds - before[name].sum_seconds
        means.append(seconds / max(int(after[name].counts.sum() - before[name].counts.sum()), 1))
    return means[0] - means[1]


def make_project(annotator: Any, title: str, items: Sequence[dict[str, Any]]) -> tuple[int, list[int]]:
    """A project of these tasks; its id and theirs."""
    project = annotator.create_project(title, LABEL_CONFIG, sampling="Uncertainty sampling")
    ids: list[int] = []
    for start in range(0, len(items), AT_ONCE):
        ids += annotator.import_tasks(project, items[start : start + AT_ONCE])
    return project, ids


def store(
    data_dir: Path,
    project: int,
    ids: Sequence[int],
    refs: Sequence[str],
    encoder_key: str,
    dim: int,
    rng: np.random.Generator,
) -> None:
    """Put made-up features and pictures into the backend's store, as if these images had been encoded before."""
    from neat_backend.store.arrays import ProjectArrays, image_key
    from neat_backend.store.kinds import features_kind, thumbnails_kind

    arrays = ProjectArrays(data_dir, project)
    keys = np.array([image_key(ref) for ref in refs], np.int64)
    start = 0
    for features in feature_chunks(rng, len(ids), dim, rows=5_000):
        part = slice(start, start + len(features))
        blank = np.zeros((len(features), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)
        arrays.append(features_kind(encoder_key), np.array(ids[part], np.int64), keys[part], features)
        arrays.append(thumbnails_kind(THUMBNAIL_SIDE), np.array(ids[part], np.int64), keys[part], blank)
        start = part.stop


class _Bare:
    """A project without a backend, into which a head is imported as a publication would do it."""

    def __init__(self, server: Any, annotator: Any, project: int, tasks: Sequence[int], head: int) -> None:
        from neat_backend.labelstudio.client import LabelStudioClient

        self._client = LabelStudioClient(server.url, server.token, timeout_seconds=120)
        self._annotator, self._project, self._tasks, self._head = annotator, project, list(tasks), head
        self._times = 0

    def publish(self) -> float:
        """Seconds from an annotation's being answered until predictions are imported and switched to."""
        self._times += 1
        version = f"bench-{self._times:06d}"
        self._annotator.annotate(self._tasks.pop(), INVALID)
        items = [
            {"task": task, "score": place / self._head, "model_version": version, "result": []}
            for place, task in enumerate(self._tasks[-self._head :])
        ]
        began = time.perf_counter()
        self._client.import_predictions(self._project, items)
        self._client.set_model_version(self._project, version)
        return time.perf_counter() - began
