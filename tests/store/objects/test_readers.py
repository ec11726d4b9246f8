"""Hosts that read a project which a worker elsewhere owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neat_backend.errors import StoreError
from neat_backend.store.objects import LARGE, SMALL
from tests.store.objects.hosts import Host, put_by


class TestReaders:
    def test_have_what_is_listed_and_only_what_they_ask_for(self, hosts: Callable[[str], Host]) -> None:
        a, web = hosts("a"), hosts("web")
        keeper = a.take()
        for number in range(3):
            a.arrays.write_snapshot("head", {"n": np.array(number)})
            put_by(a, [number], 0.5)
            keeper.keep()
            web.objects.fetch(1, *SMALL)
            assert int((web.arrays.read_snapshot("head") or {})["n"]) == number
        assert web.held() == {}
        web.objects.fetch(1, "features")
        assert web.objects.is_fetched(1, *SMALL, "features")
        assert web.held() == a.held()

    def test_change_nothing_where_the_owner_is_at_home(self, hosts: Callable[[str], Host]) -> None:
        a = hosts("a")
        keeper = a.take()
        a.arrays.write_snapshot("head", {"n": np.array(1)})
        keeper.keep()
        a.arrays.write_snapshot("head", {"n": np.array(2)})
        put_by(a, [1], 0.5)
        hosts("a").objects.fetch(1, *SMALL, *LARGE)
        assert int((a.arrays.read_snapshot("head") or {})["n"]) == 2
        assert a.held() == {1: [0.5]}

    def test_follow_when_their_own_worker_has_lost_the_project(self, hosts: Callable[[str], Host]) -> None:
        a, b = hosts("a"), hosts("b")
        keeper = a.take()
        a.arrays.write_snapshot("head", {"n": np.array(1)})
        put_by(a, [1, 2], 0.5)
        keeper.keep()
        web = hosts("a").objects
        web.fetch(1, *SMALL)
        keeper = b.take()
        b.arrays.write_snapshot("head", {"n": np.array(2)})
        put_by(b, [2], 2.5)
        keeper.keep()
        web.fetch(1, *SMALL)
        assert int((a.arrays.read_snapshot("head") or {})["n"]) == 2
        web.fetch(1, "features")
        assert a.held() == {1: [0.5], 2: [2.5]}

    def test_do_not_take_what_their_own_worker_left_for_what_is_listed(self, hosts: Callable[[str], Host]) -> None:
        a, b = hosts("a"), hosts("b")
        keeper = b.take()
        b.arrays.write_snapshot("head", {"n": np.array(1)})
        keeper.keep()
        web = hosts("a").objects
        web.fetch(1, *SMALL)
        a.take()
        a.arrays.write_snapshot("head", {"n": np.array(9)})  # and it dies before it has listed that
        b.take()
        web.fetch(1, *SMALL)
        assert int((a.arrays.read_snapshot("head") or {})["n"]) == 1

    def test_go_on_with_what_they_have_when_the_store_is_away(
        self, hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        a, web = hosts("a"), hosts("web")
        keeper = a.take()
        a.arrays.write_snapshot("head", {"n": np.array(1)})
        keeper.keep()
        web.objects.fetch(1, *SMALL)
        a.arrays.write_snapshot("tabs", {"n": np.array(1)})
        keeper.keep()

        def away(*_: Any, **__: Any) -> None:
            raise TimeoutError("timed out")

        monkeypatch.setattr(web.objects._fs, "get_file", away)
        for _ in range(3):
            web.objects.fetch(1, *SMALL)
        assert int((web.arrays.read_snapshot("head") or {})["n"]) == 1
        assert len([one for one in caplog.records if "timed out" in one.getMessage()]) == 1
        with pytest.raises(StoreError, match="timed out"):
            web.objects.fetch_all(1, *SMALL)

    def test_find_nothing_listed_where_nobody_has_kept_anything(self, hosts: Callable[[str], Host]) -> None:
        web = hosts("web")
        put_by(web, [1], 0.5)  # from before the object store was set
        web.objects.fetch_all(1, *SMALL, *LARGE)
        assert web.held() == {1: [0.5]}
