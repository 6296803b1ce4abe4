"""Garbage collection, over in-memory servers."""

from __future__ import annotations

import pytest

from mediator.collect import FEWEST, MOST, Deletions, next_limit
from tests.unit.mediator_fakes import run, world


def test_garbage_is_forgotten_only_when_all_servers_have_deleted_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            blocks = [w.commit(bytes([n])).block for n in range(5)]
            for block in blocks[:3]:
                w.meta.supersede(block)
            w.data[4].down = True
            await w.mediator.health.first_look()
            assert await w.mediator.collector.run_once() == 0
            assert await w.mediator.collector.run_once() == 0
            assert [server.calls.count("delete") for server in w.data.values()] == [1, 1, 1, 0, 1]
            assert [len(server.held) for server in w.data.values()] == [2, 2, 2, 5, 2]
            assert w.mediator.collector.status() == {"forgotten": 0, "waiting": 3}
            w.data[4].down = False
            w.data[4].epoch += 1
            await w.look()
            assert await w.mediator.collector.run_once() == 3
            assert [sorted(server.held) for server in w.data.values()] == [sorted(blocks[3:])] * 5
            assert w.meta.waiting == []

    run(scenario())


def test_a_server_that_is_down_does_not_keep_garbage_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is: only the newest page is remembered, and all is told anew when it is back."""
    monkeypatch.setattr("mediator.collect.FEWEST", 4)
    monkeypatch.setattr("mediator.collect.MOST", 4)

    async def scenario() -> None:
        async with world() as w:
            collector = w.mediator.collector
            blocks = [w.commit(bytes([n])).block for n in range(14)]
            w.data[4].down = True
            await w.mediator.health.first_look()
            for block in blocks[:13]:
                w.meta.supersede(block)
            for _ in range(8):
                assert await collector.run_once() == 0
            w.meta.supersede(blocks[13])
            for _ in range(2):
                assert await collector.run_once() == 0
            assert [len(server.held) for server in w.data.values()] == [0, 0, 0, 14, 0]
            assert collector.status()["waiting"] <= 8
            w.data[4].down = False
            await w.look()
            for _ in range(8):
                await collector.run_once()
            assert not w.data[4].held
            assert w.meta.waiting == []

    run(scenario())


def test_deletions() -> None:
    deletions = Deletions([1, 2])
    deletions.note([b"a", b"b"], 1)
    assert deletions.to_delete([b"a", b"b", b"c"], 1) == [b"c"]
    assert deletions.finished([b"a", b"b"]) == []
    deletions.note([b"a"], 2)
    assert deletions.finished([b"a", b"b"]) == [b"a"]
    deletions.restarted(1)
    assert deletions.to_delete([b"a"], 1) == [b"a"]
    assert deletions.finished([b"a"]) == []
    deletions.keep_only([b"b"])
    assert len(deletions) == 1


def test_the_garbage_page_grows_only_while_it_is_stuck() -> None:
    assert next_limit(FEWEST, FEWEST, news=0) == 2 * FEWEST
    assert next_limit(FEWEST, FEWEST, news=5) == FEWEST
    assert next_limit(MOST, MOST, news=0) == MOST
    assert next_limit(4 * FEWEST, 10, news=0) == 2 * FEWEST
    assert next_limit(FEWEST, 0, news=0) == FEWEST
