"""Votes after the answer: when they are asked for, how many wait, and that all are held in the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mediator import latency, later_votes, read_path
from mediator.ballot import Ballot
from mediator.latency import STAY, choose_voters
from mediator.later_votes import AT_ONCE, LaterVotes, is_time
from tests.support import take_seed
from tests.unit.mediator_fakes import VOTE_SECONDS, run, world


def test_a_vote_is_asked_for_when_users_are_quiet_or_it_is_due() -> None:
    assert is_time(1.0, 3.0, quiet=True)
    assert not is_time(1.0, 3.0, quiet=False)
    assert is_time(3.0, 3.0, quiet=False)


def test_the_fastest_vote_first_and_those_alike_in_turn() -> None:
    alike = {1: 0.010, 2: 0.011, 4: 0.012, 5: None}
    idle = dict.fromkeys(range(1, 6), 0)
    chosen = Counter(number for turn in range(40) for number in choose_voters(alike, idle, turn * STAY, 2))
    assert chosen == {1: 20, 2: 20, 4: 20, 5: 20}
    slow = {1: 0.5, 2: 0.001, 3: 0.4, 4: 0.3}
    assert {tuple(choose_voters(slow, idle, turn, 2)) for turn in range(9)} == {(2, 4)}
    assert sorted(choose_voters(slow, idle, 3, 9)) == [1, 2, 3, 4]
    assert choose_voters({}, {}, 1, 2) == []


class Users:
    """Calls of users, and votes that are asked for and answered by hand, or at once."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.calls = 0
        self.asked: list[list[int]] = []
        self.open: list[Callable[[], None]] = []
        self.at_once = at_once
        self.later: LaterVotes[int] = LaterVotes([1, 2], lambda: self.calls, self.ask)

    def ask(self, _server: int, names: list[int], end: Callable[[], None]) -> None:
        self.asked.append(names)
        if self.at_once:
            end()
        else:
            self.open.append(end)

    def add(self, name: int, *, server: int = 1, size: int = 10) -> None:
        self.later.add(server, size, name)

    async def until(self, holds: Callable[[], bool], busy: bool = False) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.calls += busy
                await asyncio.sleep(0.001)


def test_votes_wait_for_users_and_go_out_oldest_first_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_votes, "WITHIN_SECONDS", 60.0)
    monkeypatch.setattr(later_votes, "CALL_VOTES", 2)

    async def scenario() -> None:
        users = Users()
        for name in range(9):
            users.add(name)
        assert users.later.status() == {"waiting": 9, "bytes": 90}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4 * later_votes.LOOK_SECONDS):
                await users.until(lambda: False, busy=True)
        assert users.asked == []
        await users.until(lambda: len(users.asked) == AT_ONCE)
        assert users.later.status() == {"waiting": 9, "bytes": 50}
        while users.open:
            assert len(users.open) <= AT_ONCE
            users.open.pop(0)()
        assert users.asked == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
        assert users.later.status() == {"waiting": 0, "bytes": 0}

    run(scenario())


def test_a_vote_that_is_due_goes_out_though_users_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_votes, "WITHIN_SECONDS", 0.1)

    async def scenario() -> None:
        users = Users()
        users.add(1)
        users.add(2, server=2)
        await users.until(lambda: users.asked == [[1], [2]], busy=True)

    run(scenario())


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_votes, "MOST_BYTES", 100)
    monkeypatch.setattr(later_votes, "MOST_VOTES", 20)
    monkeypatch.setattr(later_votes, "CALL_VOTES", 3)

    async def scenario() -> None:
        users = Users()
        for name in range(12):
            users.add(name)
        assert users.asked == [[0, 1, 2]]
        for name in range(100, 122):
            users.add(name, server=2, size=0)
        assert users.asked == [[0, 1, 2], [100, 101, 102]]
        assert users.later.status() == {"waiting": 34, "bytes": 90}

    run(scenario())


def test_thousands_of_votes_of_a_server_that_is_gone_end_at_once() -> None:
    async def scenario() -> None:
        users = Users(at_once=True)
        for name in range(5000):
            users.add(name)
        await users.until(lambda: not users.later.waiting)
        assert [name for names in users.asked for name in names] == list(range(5000))

    run(scenario())


def test_one_call_asks_for_votes_on_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_votes, "CALL_BYTES", 100)

    async def scenario() -> None:
        users = Users(at_once=True)
        for name, size in enumerate([40, 40, 40, 500, 60, 40, 1]):
            users.add(name, size=size)
        await users.until(lambda: not users.later.waiting)
        assert users.asked == [[0, 1], [2], [3], [4, 5], [6]]

    run(scenario())


def test_votes_on_several_blocks_are_one_call_and_each_counts() -> None:
    async def scenario() -> None:
        async with world(read=1) as w:
            records = [w.commit(bytes([number]) * 100_000) for number in range(10)]
            third = w.data[3]
            later = []
            for number, record in enumerate(records):
                third.calls.clear()
                await w.read(record, 6 - number % 2, 2)  # the last of seven pieces is damaged below
                if not third.calls:
                    later.append(record)
            assert later == records, "one after the other they stay with one server"
            for server in w.data.values():
                server.calls.clear()
            third.damage(later[2].block)
            third.delete([later[5].block])
            await w.settle()
            assert third.calls.count("digests") == 1
            asked = [server.calls.count("digests") for server in w.data.values()]
            assert asked == [0, 1, 1, 1, 1], "the first one sent the bytes"
            assert all(third.is_good(record) for record in records)
            assert [block for block, _, _ in third.quarantine] == [later[2].block]

    run(scenario())


def test_a_server_that_answers_other_votes_than_it_was_asked_for_has_not_voted() -> None:
    async def scenario() -> None:
        async with world(read=1) as w:
            records = [w.commit(bytes([number]) * 1000) for number in range(5)]
            w.data[3].digests = lambda parts: [None] * (len(parts) - 1)  # type: ignore[method-assign]
            for record in records:
                await w.read(record)
            await w.settle()
            assert w.mediator.repairs.status()["done"] == 0

    run(scenario())


def test_a_read_asks_as_many_as_it_needs_and_the_others_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "STAY", 1)

    async def scenario() -> None:
        for read in (1, 2, 3, 4, 5):
            async with world(read=read) as w:
                record = w.commit(bytes(100_000))
                asked = Counter[int]()
                for _ in range(20):
                    for server in w.data.values():
                        server.calls.clear()
                    assert await w.read(record) == bytes(100_000)
                    now = [n for n, server in w.data.items() if server.calls]
                    assert len(now) == read
                    asked.update(now)
                    await w.settle()
                    assert all(len(server.calls) == 1 for server in w.data.values())
                assert asked == dict.fromkeys(w.data, 4 * read)

    run(scenario())


def test_a_read_asks_all_at_once_where_too_many_votes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_votes, "MOST_VOTES", 0)

    async def scenario() -> None:
        async with world(read=2) as w:
            record = w.commit(bytes(100_000))
            for server in w.data.values():
                server.calls.clear()
            assert await w.read(record) == bytes(100_000)
            await w.settle()
            assert all(len(server.calls) == 1 for server in w.data.values())

    run(scenario())


def test_bytes_that_come_after_the_answer_are_not_kept_with_the_votes_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ballots: list[Ballot] = []

    def note(*arguments: Any) -> Ballot:
        ballots.append(Ballot(*arguments))
        return ballots[-1]

    monkeypatch.setattr(read_path, "Ballot", note)

    async def scenario() -> None:
        async with world(read=1) as w:
            record = w.commit(bytes(100_000))
            for server in w.data.values():
                server.delay_seconds = 0.1  # so that another one is asked for the bytes, too
            assert await w.read(record) == bytes(100_000)
            await w.settle()
            (ballot,) = ballots
            assert len(ballot.asked_for_bytes) == 2
            assert ballot.part is None

    run(scenario())


def test_a_bad_replica_is_found_by_one_read_wherever_it_is() -> None:
    seed = take_seed()
    chance = random.Random(seed)

    async def scenario() -> None:
        async with world() as w:
            for turn in range(30):
                record = w.commit(chance.randbytes(5000))
                bad = chance.sample(range(1, 6), chance.randint(1, 2))
                letters = [chance.choice("CLM") for _ in bad]
                for number, letter in zip(bad, letters, strict=True):
                    w.fault(record, letter, number)
                await w.read(record)
                await w.settle()
                assert all(server.is_good(record) for server in w.data.values()), (turn, bad, letters)

    run(scenario())


def test_a_silent_voter_delays_few_reads() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for _ in range(20):
                await w.read(record)
            await w.settle()
            w.data[3].paused = True
            loop = asyncio.get_running_loop()
            slow = 0
            for _ in range(40):
                begun = loop.time()
                await w.read(record)
                slow += loop.time() - begun > 0.015
            # It sends the bytes of each fifth read, as before; as a voter it would delay 16 more.
            assert slow <= 8 + 8, "it was asked first again and again"
            w.data[3].paused = False

    run(scenario())


def test_votes_that_wait_for_a_server_that_goes_down_end_and_what_the_others_said_is_repaired() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].damage(record.block)
            for _ in range(5):
                await w.read(record)
            for server in w.mediator.health.servers:
                if server.number == 2:
                    server.mark_down("gone")
            async with asyncio.timeout(VOTE_SECONDS * 10):
                await w.settle()
            assert w.data[1].is_good(record)
            assert w.mediator.read_path.later_votes.status() == {"waiting": 0, "bytes": 0}

    run(scenario())
