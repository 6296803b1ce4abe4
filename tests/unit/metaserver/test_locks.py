"""Locks at the metadata server: sessions that end, restarts with and without a reclaim, calls sent twice."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from metaserver import locks
from metaserver.__main__ import offered
from metaserver.service import WAIT_SECONDS
from tests.unit.metaserver.harness import LEASE_SECONDS, Harness
from wire.client import Client
from wire.config import Encoding
from wire.errors import (
    Deadlock,
    GracePeriod,
    InvalidArgument,
    NoLocks,
    SequenceError,
    SessionUnknown,
    StaleEpoch,
    StaleFile,
    WouldBlock,
)
from wire.locks import LAST
from wire.messages import FileLock, Ticket
from wire.methods import BookkeepingMethods, NamespaceMethods
from wire.server_msgpack import MOST_CALLS_IN_FLIGHT

WHOLE = FileLock(0, False, 7, 0, LAST, True, 42)


@pytest.fixture
def lock(meta: Harness) -> FileLock:
    """An exclusive lock of a whole file."""
    return WHOLE._replace(ino=meta.create(1, b"a", open_it=True).ino)


def test_what_a_grant_and_a_holder_tell(meta: Harness, lock: FileLock) -> None:
    other = meta.open_session()
    grant = meta.set_lock(meta.ticket(), lock)
    assert grant == (meta.sessions.epoch, meta.service.getattr(lock.ino))
    assert meta.service.get_lock(meta.session, lock) is None
    found = meta.service.get_lock(other, lock._replace(start=5, last=6))
    assert found == (meta.session, "test", lock)
    (row,) = meta.service.status()["locks"]
    assert (row["ino"], row["kind"], row["session"], row["pid"]) == (lock.ino, "fcntl", meta.session, 42)
    assert meta.unlock(meta.ticket(), lock) == meta.sessions.epoch
    assert meta.service.get_lock(other, lock) is None


@pytest.mark.parametrize("slot", [-1, 1024, 2**62])
def test_answers_are_kept_for_so_many_slots_only(meta: Harness, lock: FileLock, slot: int) -> None:
    """Each takes memory until its session ends."""
    ticket = Ticket(meta.session, slot, 1)
    with pytest.raises(InvalidArgument, match="slot"):
        meta.set_lock(ticket, lock)
    with pytest.raises(InvalidArgument, match="slot"):
        meta.unlock(ticket, lock)


def test_late_copies_of_before_a_restart_change_nothing(meta: Harness, lock: FileLock) -> None:
    """What was answered is forgotten with the restart: only their epoch tells that they were carried out."""
    other = meta.open_session()
    locking, unlocking, again = meta.ticket(), meta.ticket(), meta.ticket()
    meta.set_lock(locking, lock)
    meta.unlock(unlocking, lock)
    meta.set_lock(again, lock)
    earlier = meta.sessions.epoch
    meta.restart()
    meta.reclaim(meta.session, [lock.ino], [lock])
    meta.reclaim(other, [])
    with pytest.raises(StaleEpoch):
        meta.service.unlock(unlocking, lock, earlier)
    with pytest.raises(WouldBlock):
        meta.set_lock(meta.ticket(other), lock)
    meta.unlock(meta.ticket(), lock)
    with pytest.raises(StaleEpoch):
        meta.service.set_lock(locking, lock, earlier)
    meta.set_lock(meta.ticket(other), lock)


def test_a_late_reclaim_of_before_another_restart_takes_nothing(meta: Harness, lock: FileLock) -> None:
    other = meta.open_session()
    meta.set_lock(meta.ticket(), lock)
    meta.restart()
    earlier = meta.sessions.epoch
    meta.reclaim(other, [])
    meta.reclaim(meta.session, [lock.ino], [lock])
    meta.unlock(meta.ticket(), lock)
    meta.restart()
    meta.reclaim(other, [])
    with pytest.raises(StaleEpoch):
        meta.service.reclaim(meta.session, earlier, [lock.ino], [lock])
    meta.reclaim(meta.session, [lock.ino], [])
    meta.set_lock(meta.ticket(other), lock)


def test_what_cannot_be(meta: Harness, lock: FileLock) -> None:
    for start, last in [(-1, 0), (5, 4)]:
        with pytest.raises(InvalidArgument):
            meta.set_lock(meta.ticket(), lock._replace(start=start, last=last))
    with pytest.raises(StaleFile):
        meta.set_lock(meta.ticket(), lock._replace(ino=99))
    with pytest.raises(SessionUnknown):
        meta.set_lock(Ticket(99, 0, 1), lock)
    with pytest.raises(SessionUnknown):
        meta.wait(meta.service.wait_lock(99, lock))


def test_a_session_has_a_bounded_number_of_locks(
    meta: Harness, lock: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCKS_A_SESSION_MAX", 3)
    other = lock._replace(ino=meta.create(1, b"b", open_it=True).ino, start=0, last=9)
    meta.set_lock(meta.ticket(), lock)
    for range_ in (other, other._replace(start=20, last=29)):
        meta.set_lock(meta.ticket(), range_)
    ticket = meta.ticket()
    for _ in range(2):  # also when it is sent again
        with pytest.raises(NoLocks):
            meta.set_lock(ticket, other._replace(start=40, last=49))
    with pytest.raises(NoLocks):
        meta.unlock(meta.ticket(), lock._replace(start=5, last=5))  # which would leave two of it
    meta.set_lock(meta.ticket(), other._replace(start=10, last=19))  # one with those beside it
    meta.restart()
    meta.reclaim(meta.session, [lock.ino, other.ino], [lock, other._replace(last=29)])
    meta.unlock(meta.ticket(), lock._replace(start=5, last=5))
    with pytest.raises(NoLocks):
        meta.set_lock(meta.ticket(), other._replace(start=40, last=49))
    meta.unlock(meta.ticket(), lock)
    meta.set_lock(meta.ticket(), other._replace(start=40, last=49))
    another = meta.open_session()
    for start in (60, 70, 80):
        meta.set_lock(meta.ticket(another), other._replace(start=start, last=start))


def test_a_flock_that_cannot_change_its_mode_is_lost(meta: Harness, lock: FileLock) -> None:
    shared = lock._replace(flock=True, exclusive=False)
    other = meta.open_session()
    for session in (meta.session, other):
        meta.set_lock(meta.ticket(session), shared)
    with pytest.raises(WouldBlock):
        meta.set_lock(meta.ticket(), shared._replace(exclusive=True))
    meta.set_lock(meta.ticket(other), shared._replace(exclusive=True))


@pytest.mark.parametrize("how", ["close", "expiry"])
def test_locks_end_with_their_session(meta: Harness, lock: FileLock, how: str) -> None:
    other = meta.open_session()
    meta.set_lock(meta.ticket(other), lock)
    if how == "close":
        meta.service.close_session(other)
    else:
        meta.seconds += LEASE_SECONDS / 2
        meta.service.renew(meta.session)
        meta.seconds += LEASE_SECONDS / 2 + 1
        meta.wait(meta.service.reaper.run_once())
    meta.set_lock(meta.ticket(), lock)


def test_after_a_restart_nothing_is_granted_before_all_have_reclaimed(meta: Harness, lock: FileLock) -> None:
    other = meta.open_session()
    meta.set_lock(meta.ticket(), lock)
    meta.restart()
    meta.reclaim(other, [])
    with pytest.raises(GracePeriod):
        meta.set_lock(meta.ticket(other), lock._replace(flock=True))
    with pytest.raises(GracePeriod):
        meta.service.get_lock(other, lock)
    meta.reclaim(meta.session, [lock.ino], [lock])
    meta.set_lock(meta.ticket(other), lock._replace(flock=True))
    with pytest.raises(WouldBlock):
        meta.set_lock(meta.ticket(other), lock)
    meta.unlock(meta.ticket(), lock)
    meta.reclaim(meta.session, [lock.ino], [lock])
    meta.set_lock(meta.ticket(other), lock)


def test_after_a_restart_those_who_do_not_come_back_hold_up_nobody_for_ever(
    meta: Harness, lock: FileLock
) -> None:
    dead = meta.open_session()
    meta.set_lock(meta.ticket(dead), lock)
    meta.restart()
    meta.reclaim(meta.session, [lock.ino])
    meta.seconds += LEASE_SECONDS / 2
    meta.service.renew(meta.session)
    meta.seconds += LEASE_SECONDS / 2 + 1
    meta.wait(meta.service.reaper.run_once())
    meta.set_lock(meta.ticket(), lock)
    with pytest.raises(SessionUnknown):
        meta.reclaim(dead, [], [lock])


@pytest.mark.parametrize("freed", [False, True])
def test_who_reclaims_too_late_must_begin_anew(meta: Harness, lock: FileLock, freed: bool) -> None:
    """Also if nobody holds the lock any more: somebody had it meanwhile."""
    late = meta.open_session()
    meta.set_lock(meta.ticket(late), lock)
    meta.restart()
    meta.reclaim(meta.session, [lock.ino])
    for _ in range(3):  # it lives, and says nothing of its locks
        meta.service.renew(late)
        meta.service.renew(meta.session)
        meta.seconds += LEASE_SECONDS / 2 + 1
        meta.wait(meta.service.reaper.run_once())
    meta.set_lock(meta.ticket(), lock)
    if freed:
        meta.unlock(meta.ticket(), lock)
    with pytest.raises(SessionUnknown):
        meta.reclaim(late, [], [lock])


def test_calls_sent_twice(meta: Harness, lock: FileLock) -> None:
    other = meta.open_session()
    granted, refused, freed = Ticket(meta.session, 3, 1), Ticket(other, 3, 1), Ticket(meta.session, 4, 1)
    meta.set_lock(granted, lock)
    with pytest.raises(WouldBlock):
        meta.set_lock(refused, lock)
    meta.unlock(freed, lock)
    meta.set_lock(granted, lock)
    with pytest.raises(WouldBlock):
        meta.set_lock(refused, lock)
    assert meta.service.get_lock(other, lock) is None, "a late copy changes nothing"
    meta.set_lock(Ticket(meta.session, 3, 2), lock)
    with pytest.raises(SequenceError):
        meta.set_lock(granted, lock)


def test_a_lock_that_was_settled_is_not_taken(meta: Harness, lock: FileLock) -> None:
    late = Ticket(meta.session, 3, 1)
    meta.service.settle(Ticket(meta.session, 3, 2))
    with pytest.raises(SequenceError):
        meta.set_lock(late, lock)
    meta.set_lock(Ticket(meta.open_session(), 3, 1), lock)


def test_waiting(meta: Harness, lock: FileLock) -> None:
    other = meta.open_session()

    async def play() -> None:
        await meta.service.wait_lock(other, lock)
        meta.set_lock(meta.ticket(), lock)
        waiting = asyncio.create_task(meta.service.wait_lock(other, lock))
        await asyncio.sleep(0)
        meta.unlock(meta.ticket(), lock._replace(start=10))
        await asyncio.sleep(0)
        assert not waiting.done()
        meta.unlock(meta.ticket(), lock)
        await asyncio.wait_for(waiting, 1)

    meta.wait(play())


@pytest.mark.parametrize(("rpc", "waiters"), [("msgpack", 2 * MOST_CALLS_IN_FLIGHT), ("xml", 100)])
def test_those_who_wait_keep_nobody_else_waiting(
    meta: Harness, lock: FileLock, rpc: Encoding, waiters: int
) -> None:
    """One client has the calls of all mounts that use a mediator, those that wait for locks too."""
    other = meta.open_session()
    meta.set_lock(meta.ticket(), lock)

    async def play() -> None:
        server = offered(meta.service, request_seconds=10.0)
        client = Client(await server.start("127.0.0.1:0"), rpc)
        owners = range(waiters)
        calls = [client.call(20, NamespaceMethods.wait_lock, other, lock._replace(owner=k)) for k in owners]
        waiting = asyncio.gather(*calls)
        await client.call(WAIT_SECONDS / 2, BookkeepingMethods.renew, meta.session)
        unlocking = NamespaceMethods.unlock, meta.ticket(), lock, meta.sessions.epoch
        await client.call(WAIT_SECONDS / 2, *unlocking)
        await asyncio.wait_for(waiting, WAIT_SECONDS / 2)
        await client.close()
        await server.drain()

    meta.wait(play())


def test_of_many_who_wait_for_one_holder_none_looks_at_the_others(
    meta: Harness, lock: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("the holder waits for nobody: there can be no circle")

    other = meta.open_session()
    meta.set_lock(meta.ticket(), lock)
    monkeypatch.setattr(locks, "closes_a_circle", never)

    async def play() -> None:
        calls = [meta.service.wait_lock(other, lock._replace(owner=owner)) for owner in range(300)]
        waiting = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0)
        meta.unlock(meta.ticket(), lock)
        await asyncio.gather(*waiting)

    meta.wait(play())


async def until_granted(meta: Harness, session: int, lock: FileLock) -> None:
    """Wait for a lock as a mount does."""
    while True:
        await meta.service.wait_lock(session, lock)
        with suppress(WouldBlock):
            meta.set_lock(meta.ticket(session), lock)
            return


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_circle_of_waiters(meta: Harness, lock: FileLock, count: int) -> None:
    sessions = [meta.session, *(meta.open_session() for _ in range(count - 1))]
    locks = [lock._replace(start=byte, last=byte) for byte in range(count)]

    async def play() -> None:
        for session, own in zip(sessions, locks, strict=True):
            meta.set_lock(meta.ticket(session), own)
        wanted = [*locks[1:], locks[0]]
        waiting = [
            asyncio.create_task(until_granted(meta, *each)) for each in zip(sessions, wanted, strict=True)
        ]
        (refused,), _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(refused.exception(), Deadlock)
        at = waiting.index(refused)
        for _ in range(1, count):  # the others get theirs, one after the other
            meta.service.close_session(sessions[at])
            at -= 1
            await waiting[at]

    meta.wait(play())


def test_who_was_interrupted_is_in_no_circle(meta: Harness, lock: FileLock) -> None:
    """Nobody tells that he waits no more: he does not come again."""
    other = meta.open_session()
    first, second = lock._replace(last=0), lock._replace(start=1, last=1)

    async def play() -> None:
        meta.set_lock(meta.ticket(), first)
        meta.set_lock(meta.ticket(other), second)
        interrupted = asyncio.create_task(meta.service.wait_lock(meta.session, second))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(until_granted(meta, other, first))
        await interrupted
        meta.unlock(meta.ticket(), first)
        await waiting

    meta.wait(play())


def test_after_a_restart_a_session_unlocks_only_what_it_has_reclaimed(meta: Harness, lock: FileLock) -> None:
    """Else a reclaim that comes after the unlock would leave a lock behind."""
    meta.set_lock(meta.ticket(), lock)
    meta.restart()
    with pytest.raises(GracePeriod):
        meta.unlock(meta.ticket(), lock)
    meta.reclaim(meta.session, [lock.ino], [lock])
    meta.unlock(meta.ticket(), lock)
    assert meta.service.status()["locks"] == []


def test_sessions_that_a_database_put_back_does_not_know_may_hold_locks_for_a_lease(
    meta: Harness, lock: FileLock
) -> None:
    meta.stop()
    with meta.changing() as connection:
        connection.execute("DELETE FROM slots")
        connection.execute("DELETE FROM sessions")
        connection.execute("INSERT INTO restorations VALUES (0)")
    meta.start()
    meta.session = meta.open_session()
    with pytest.raises(GracePeriod):
        meta.set_lock(meta.ticket(), lock)
    assert meta.sessions.may_be_open(lock.ino)
    assert meta.sessions.held() is None
    meta.seconds += LEASE_SECONDS
    meta.service.renew(meta.session)
    meta.set_lock(meta.ticket(), lock)
    assert not meta.sessions.may_be_open(lock.ino)
