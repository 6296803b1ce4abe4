"""Grants: who is told to be alone, and who waits for how long. The clock is turned by hand."""

from __future__ import annotations

import asyncio
import time

from metaserver.fence import put_up, release
from metaserver.grants import QUIET_SECONDS, Grants
from tests.unit.metaserver.harness import LEASE_SECONDS, Harness

SECONDS = 2.5


def grants_of(meta: Harness, before_seconds: float = 0.0) -> Grants:
    grants = Grants(meta.sessions, SECONDS, before_seconds, clock=lambda: meta.seconds)
    meta.service._grants = grants
    return grants


def alone_ms(meta: Harness, session: int | None = None) -> int:
    return meta.service.renew_alone(session or meta.session).alone_ms


def joins_within(meta: Harness, seconds: float) -> bool:
    """Begin a session while the clock goes on by so many seconds at most; tell whether it began."""

    async def join() -> bool:
        task = asyncio.create_task(meta.service.open_session("another"))
        end = meta.seconds + seconds
        while meta.sessions.count() < 2 and meta.seconds < end:
            meta.seconds += 0.1
            meta.service._grants._all_ended.set()  # the real waiting is by the loop's clock
            for _ in range(5):
                await asyncio.sleep(0)
        if meta.sessions.count() < 2:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return not task.cancelled()

    return meta.wait(join())


def test_a_session_is_granted_when_it_was_alone_for_a_while(meta: Harness) -> None:
    grants_of(meta)
    assert alone_ms(meta) == 0
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta) == SECONDS * 900, "a tenth less than it has, as its clock may be slow"


def test_of_two_sessions_none_is_granted(meta: Harness) -> None:
    grants_of(meta)
    other = meta.open_session()
    meta.seconds += QUIET_SECONDS * 2
    assert alone_ms(meta) == alone_ms(meta, other) == 0
    meta.service.close_session(other)
    assert alone_ms(meta) == 0
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta) > 0


def test_a_second_session_waits_for_the_end_of_the_grant_and_no_longer(meta: Harness) -> None:
    grants_of(meta)
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta)
    granted_at = meta.seconds
    assert not joins_within(meta, SECONDS - 0.3)
    meta.seconds = granted_at
    assert joins_within(meta, SECONDS + 0.2)
    assert meta.seconds >= granted_at + SECONDS


def test_while_one_waits_nothing_is_granted(meta: Harness) -> None:
    grants = grants_of(meta)
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta)

    async def join() -> int:
        task = asyncio.create_task(meta.service.open_session("another"))
        await asyncio.sleep(0.01)
        told = alone_ms(meta)
        meta.seconds += SECONDS
        grants._all_ended.set()
        await task
        return told

    assert meta.wait(join()) == 0


def test_the_wait_ends_with_the_session_that_was_granted(meta: Harness) -> None:
    grants_of(meta)
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta)

    async def join() -> None:
        task = asyncio.create_task(meta.service.open_session("another"))
        await asyncio.sleep(0.01)
        assert not task.done()
        meta.service.close_session(meta.session)
        await asyncio.wait_for(task, 5)

    before = time.monotonic()
    meta.wait(join())
    assert time.monotonic() - before < SECONDS / 2


def test_after_a_restart_what_was_granted_before_is_waited_for(meta: Harness) -> None:
    meta.restart()
    grants_of(meta, SECONDS)
    began_at = meta.seconds
    assert joins_within(meta, SECONDS + 0.2)
    assert meta.seconds >= began_at + SECONDS


def test_after_a_restart_nothing_is_granted_before_all_have_reclaimed(meta: Harness) -> None:
    meta.restart()
    grants_of(meta, SECONDS)
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta) == 0
    meta.reclaim(meta.session, [])
    assert alone_ms(meta) > 0


def test_a_database_that_was_put_back_is_known_as_such(meta: Harness) -> None:
    assert not meta.store.was_put_back
    with meta.changing() as connection:
        put_up(connection, meta.now_ns)
        release(connection)
    for _ in range(2):
        meta.now_ns += int(LEASE_SECONDS * 1e9)  # whatever the date is, and however often it is started
        meta.restart()
        assert meta.store.was_put_back
        meta.wait(meta.service.reaper.run_once())
    meta.seconds += LEASE_SECONDS
    meta.wait(meta.service.reaper.run_once())
    assert not meta.store.was_put_back
    meta.restart()
    assert not meta.store.was_put_back


def test_a_plain_renewal_grants_nothing(meta: Harness) -> None:
    grants = grants_of(meta)
    meta.seconds += min(QUIET_SECONDS, LEASE_SECONDS / 2)
    meta.service.renew(meta.session)
    assert grants.describe() == 0.0


def exists(meta: Harness, ino: int) -> bool:
    """Tell whether an inode is still in the database, once what may be removed was removed."""
    meta.wait(meta.service.reaper.remove_orphans())
    return bool(meta.store.execute("SELECT 1 FROM inodes WHERE ino = ?", (ino,)).fetchone())


def test_what_was_opened_without_a_call_lives_until_the_session_has_told_it(meta: Harness) -> None:
    grants_of(meta)
    kept, gone = (meta.create(1, name).ino for name in (b"kept", b"gone"))
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta)
    assert joins_within(meta, SECONDS + 0.2)
    other = max(meta.sessions._leases)
    asked = meta.service.renew_alone(meta.session).asks_opens
    assert asked
    assert meta.service.renew_alone(other).asks_opens == 0
    for name in (b"kept", b"gone"):
        meta.service.unlink(meta.ticket(other), 1, name)
    assert exists(meta, kept)
    assert exists(meta, gone)
    meta.service.tell_open(meta.session, [kept], asked - 1)  # a late answer to an earlier question
    meta.service.tell_open(meta.session, [kept])
    assert exists(meta, gone)
    meta.service.tell_open(meta.session, [kept], asked)
    assert meta.service.renew_alone(meta.session).asks_opens == 0
    assert exists(meta, kept)
    assert not exists(meta, gone)
    assert meta.service.getattr(kept).nlink == 0
    meta.close_files(meta.session, [kept])
    assert not exists(meta, kept)


def test_who_was_asked_and_does_not_tell_is_granted_nothing_until_it_has(meta: Harness) -> None:
    grants_of(meta)
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta)
    assert joins_within(meta, SECONDS + 0.2)
    meta.service.close_session(max(meta.sessions._leases))
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta) == 0
    meta.service.tell_open(meta.session, [], meta.sessions.asks_opens(meta.session))
    assert alone_ms(meta) > 0


def test_who_was_asked_and_ends_has_nothing_open(meta: Harness) -> None:
    grants_of(meta)
    ino = meta.create(1, b"a").ino
    meta.seconds += QUIET_SECONDS
    assert alone_ms(meta)
    assert joins_within(meta, SECONDS + 0.2)
    other = max(meta.sessions._leases)
    meta.service.unlink(meta.ticket(other), 1, b"a")
    assert exists(meta, ino)
    meta.service.close_session(meta.session)
    assert not exists(meta, ino)
