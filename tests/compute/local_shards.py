"""Shards in one process, to compare a sharded engine with a single one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neat_backend.compute.shards import Shard


class LocalShards:
    """As `actors.RayShards`, without Ray."""

    def __init__(self, n: int, dim: int, classes: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._shards = [Shard(dim, classes, settings) for _ in range(n)]

    def __len__(self) -> int:
        return len(self._shards)

    def begin(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> Callable[[], dict[int, Any]]:
        found = {number: getattr(self._shards[number], method)(*given) for number, given in args.items()}
        return lambda: found
