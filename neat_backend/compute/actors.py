"""The shards of an engine as Ray actors, spread over the machines of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from neat_backend.compute.cluster import plain_errors
from neat_backend.compute.shards import Shard
from neat_backend.errors import ShardsLost


class RayShards:
    """Shards as actors; they end when this object is deleted."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def __len__(self) -> int:
        return len(self._actors)

    def begin(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> Callable[[], dict[int, Any]]:
        refs = {number: getattr(self._actors[number], method).remote(*given) for number, given in args.items()}

        def finish() -> dict[int, Any]:
            try:
                with plain_errors("the engine"):
                    return dict(zip(refs, ray.get(list(refs.values())), strict=True))
            except Exception as error:
                if isinstance(error.__cause__, RayActorError):
                    raise ShardsLost(f"a shard of the engine is gone, all are made anew: {error}") from error
                raise

        return finish


def start_shards(
    n: int,
    dim: int,
    classes: Sequence[str],
    settings: Mapping[str, Any],
    *,
    gpu: bool = False,
    kind: type[Shard] = Shard,
) -> RayShards:
    """n actors with a part of an engine each, on different machines where there are several.

    gpu: each keeps its rows on a GPU of its own. kind: the actors' class.
    """
    own = {**settings, "device": "cuda" if gpu else "cpu"}
    # Reserve no core for them: they work for milliseconds after a label.
    options = {"num_cpus": 0, "num_gpus": 1 if gpu else 0, "scheduling_strategy": "SPREAD"}
    actor = ray.remote(**options)(kind)  # type: ignore[call-overload]
    return RayShards([actor.remote(dim, tuple(classes), own) for _ in range(n)])
