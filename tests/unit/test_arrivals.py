"""Which connections a server reads on, and which wait, by what its requests take of memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from wire import arrivals
from wire.arrivals import CALL_BYTES, MOST_HELD_BYTES, SHORT_BYTES, Arrivals, call_bytes

MIB = 1024 * 1024


class Peer:
    """A connection that notes what it was told."""

    def __init__(self) -> None:
        self.told = 0
        self.ended = asyncio.Event()
        self.more = False

    def read_on(self) -> None:
        self.told += 1

    def has_more(self) -> bool:
        return self.more

    def abort(self, reason: str) -> None:
        self.ended.set()


def run(scenario: Callable[[Arrivals], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        await scenario(Arrivals())

    asyncio.run(within())


def test_the_oldest_goes_on_when_the_one_before_it_is_done() -> None:
    """It waited behind others that were to wait for it: nobody was read any more."""

    async def scenario(found: Arrivals) -> None:
        first, second, third = Peer(), Peer(), Peer()
        assert found.admit(first, MOST_HELD_BYTES - 2 * MIB)
        assert found.admit(second, MIB)
        assert found.admit(third, MIB)
        assert not found.admit(third, 40 * MIB)
        assert not found.admit(second, 40 * MIB)
        found.admit(first, 0)
        found.hold(MOST_HELD_BYTES - 2 * MIB)
        await asyncio.sleep(0)
        assert second.told == 0  # what is carried out ends by itself
        found.hold(2 * MIB - MOST_HELD_BYTES)
        await asyncio.sleep(0)
        assert second.told == 1
        assert found.admit(second, 40 * MIB)
        assert third.told == 0

    run(scenario)


def test_no_request_is_read_beside_those_that_are_carried_out_and_have_the_room() -> None:
    async def scenario(found: Arrivals) -> None:
        peers = [Peer() for _ in range(100)]
        carried_out = 0
        for peer in peers:
            if found.admit(peer, 12 * MIB):
                found.admit(peer, 0)
                found.hold(12 * MIB)
                carried_out += 12 * MIB
        assert 0 < carried_out <= MOST_HELD_BYTES

    run(scenario)


def test_one_that_is_longer_than_the_room_is_read_when_nothing_else_is_here() -> None:
    async def scenario(found: Arrivals) -> None:
        assert found.admit(Peer(), 2 * MOST_HELD_BYTES)

    run(scenario)


def test_a_short_one_is_always_read_but_not_beside_calls_of_its_own() -> None:
    async def scenario(found: Arrivals) -> None:
        peer = Peer()
        found.hold(MOST_HELD_BYTES)
        assert found.is_full
        assert found.admit(peer, SHORT_BYTES)
        assert not found.admit_more(peer)
        found.hold(-1)
        await asyncio.sleep(0)
        assert peer.told == 1
        assert found.admit_more(peer)

    run(scenario)


def test_who_wait_are_told_in_their_order() -> None:
    async def scenario(found: Arrivals) -> None:
        order: list[int] = []
        found.hold(MOST_HELD_BYTES)
        for number in range(3):
            peer = Peer()
            peer.read_on = lambda number=number: order.append(number)  # type: ignore[method-assign]
            assert not found.admit_more(peer)
        found.hold(-MIB)
        await asyncio.sleep(0)
        assert order == [0, 1, 2]

    run(scenario)


def test_only_so_many_calls_wait_for_others_without_being_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_WAITING_CALLS", 2)
    found = Arrivals()
    assert found.begin_waiting()
    assert found.begin_waiting()
    assert not found.begin_waiting()
    found.end_waiting()
    assert found.begin_waiting()


def test_who_stalls_is_closed_but_not_when_the_server_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "STALLED_SECONDS", 0.02)

    async def scenario(found: Arrivals) -> None:
        stalled, unread, waits = Peer(), Peer(), Peer()
        unread.more = True
        assert found.admit(stalled, MOST_HELD_BYTES // 2)
        assert found.admit(unread, MOST_HELD_BYTES // 2)
        assert not found.admit(waits, MIB)
        async with asyncio.timeout(10):
            await stalled.ended.wait()
        assert not unread.ended.is_set()
        assert not waits.ended.is_set()

    run(scenario)


def test_a_call_counts_with_all_its_values() -> None:
    assert call_bytes(100, [b"x" * 90]) == CALL_BYTES + 100
    assert call_bytes(MIB, [b"x" * MIB]) < CALL_BYTES + MIB + 1024
    assert call_bytes(60_000, [[[]] * 60_000]) > 60_000 * 50
