"""`python -m benchmarks scale`: a Ray cluster of 1, 2, 4 machines, on work that waits as long as a GPU would compute.

Each machine is a Ray node of its own on this one (`ray.cluster_utils`), with one core to hand out, so that what
moves between them goes the way it goes between real ones. What waits takes no core: that is why more machines than
there are cores here can be measured, and what is measured is Ray and this program's use of it, not a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import Json, numbers, progress, report

BATCH = 16


def scale(
    workers: Annotated[str, typer.Option(help="Ray nodes, one after the other, such as 1,2,4.")] = "1,2,4",
    images: Annotated[int, typer.Option(min=BATCH, help="Images to embed and to classify.")] = 1024,
    rows: Annotated[int, typer.Option(min=200, help="Tasks in the engine.")] = 20_000,
    image_ms: Annotated[
        float, typer.Option(min=0, help="What a GPU is taken to need for an image, in milliseconds.")
    ] = 10.0,
    row_us: Annotated[
        float, typer.Option(min=0, help="What it is taken to need for a row of the pool at a label, in microseconds.")
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Embedding, pool inference and re-ranking on Ray clusters of several sizes, results compared with the local ones.

    The work waits as long as a GPU would compute. `…_equal` says whether every feature, every probability, every
    neighbour and the whole ranking are, bit for bit, what this process alone gives.

    Example: python -m benchmarks scale --workers 1,2,4 --json
    """
    if importlib.util.find_spec("ray") is None:
        raise typer.BadParameter("Ray is not installed; pip install 'ray[data]'")
    sizes = numbers(workers, "--workers")
    found = []
    with tempfile.TemporaryDirectory() as folder, _processes_start_fast(Path(folder) / "bytecode"):
        from benchmarks.waiting import Results, nodes

        home = Path(folder)
        progress.print("here, without waiting …")
        expected = Results.local(images, rows, home / "local")
        for n in sizes:
            progress.print(f"{n} Ray {'node' if n == 1 else 'nodes'} …")
            with nodes(n) as compute:
                found.append({"workers": n, **expected.compare(compute, n, image_ms, row_us, home / str(n))})
    first = found[0]
    for row in found:
        for name in ("embed", "classify"):
            row[f"{name}_speedup"] = row[f"{name}_images_per_second"] / first[f"{name}_images_per_second"]
        row["label_speedup"] = first["label_ms"] / row["label_ms"]
    equal = all(value for row in found for name, value in row.items() if name.endswith("_equal"))
    figures = {"images": images, "rows": rows, "image_ms": image_ms, "row_us": row_us, "all_equal": equal}
    report("scale", figures, as_json, found, of="workers")


@contextmanager
def _processes_start_fast(bytecode: Path) -> Iterator[None]:
    """Each of Ray's processes imports PyTorch and Ray Data for itself, and the work waits until they have.

    Ray makes them yield to all else on the machine (niceness 15): on a busy one, they'd take minutes for it. Where
    PYTHONDONTWRITEBYTECODE is set, what this process compiles goes to the folder `bytecode`, for them to find.
    """
    own = {"RAY_worker_niceness": "0"}
    writes_none, prefix = sys.dont_write_bytecode, sys.pycache_prefix
    if writes_none:
        own |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bytecode)}
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(bytecode)
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        sys.dont_write_bytecode, sys.pycache_prefix = writes_none, prefix
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
