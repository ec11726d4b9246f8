"""Similar images: the near-duplicates that the worker found, and the images nearest to given features.

Plain NumPy, so that the web process can run it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.repeats import Groups
from neat_backend.store import insights
from neat_backend.store.arrays import ProjectArrays


def groups(arrays: ProjectArrays) -> Groups:
    """The groups of near-duplicates; none before the search for them."""
    found = insights.read_duplicates(arrays)
    return Groups.none() if found is None else Groups(found.tasks, found.groups)


def nearest(
    arrays: ProjectArrays, kind: str, feature: NDArray[np.floating], limit: int, without: int = 0
) -> list[dict[str, Any]]:
    """The tasks whose features are nearest to `feature` [dim], nearest first, ties to the smaller id, with labels.

    kind: of the features' arrays. without: a task to leave out. `label` is a class or None; `invalid` is a flag.
    """
    states = insights.read_states(arrays)
    if states is None:
        return []
    similarity = np.full(len(states.ids), -np.inf)
    for part in arrays.some(kind, states.ids):
        similarity[np.searchsorted(states.ids, part.ids)] = part.values.astype(np.float64) @ feature.astype(np.float64)
    similarity[states.ids == without] = -np.inf
    best = np.lexsort((states.ids, -similarity))[:limit]
    codes = states.codes.tolist()
    return [
        {
            "task": int(states.ids[at]),
            "similarity": float(similarity[at]),
            "label": states.classes[codes[at]] if codes[at] >= 0 else None,
            "invalid": codes[at] == insights.INVALID,
        }
        for at in best.tolist()
        if similarity[at] > -np.inf
    ]


def near_duplicates(arrays: ProjectArrays) -> dict[str, Any]:
    """The number of near-duplicates, whether one of each group is queried, and a sentence ("" = none); JSON-ready."""
    found, of = insights.read_duplicates(arrays), groups(arrays)
    skipped = found is not None and found.skipped
    counts = {"tasks": len(of.tasks), "groups": of.count, "skipped": skipped}
    return counts | {"said": _said(len(of.tasks), of.count, skipped)}


def _said(tasks: int, count: int, skipped: bool) -> str:
    if not tasks:
        return ""
    said = f"{tasks:,} images are near-duplicates, in {count:,} group{'' if count == 1 else 's'}"
    if skipped:
        return f"{said}; one of each group is queried, the others come last."
    return f"{said}. With NEAT_SKIP_DUPLICATES=1, one of each group is queried."
