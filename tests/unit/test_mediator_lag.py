"""Lag: what a commit tells of it, and how a server that returns is healed from it, over in-memory servers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mediator import manifest
from mediator.inventories import must_compare
from mediator.lag import MOST_PUTS
from mediator.pace import Pace, next_start
from mediator.progress import RefillProgress
from mediator.turns import AT_ONCE, Turns
from tests.unit.mediator_fakes import VOTE_SECONDS, World, commit_of, run, world
from wire.digest import block_digest
from wire.errors import InternalError, NoSpace, SequenceError
from wire.messages import BlockRecord, LagCount, Ticket
from wire.msgpack_long import LONGEST_ARRAY


async def write(w: World, data: bytes, sequence: int) -> BlockRecord:
    record = w.new_record(data)
    await w.mediator.write_path.write_file(Ticket(1, 0, sequence), 7, commit_of([record]), [data])
    return record


async def expect_told_and_healed(w: World, record: BlockRecord) -> None:
    """The put to server 5, which is paused, fails: that is told, and the replica made once it goes on."""
    async with asyncio.timeout(10):
        while record.block not in w.meta.lag.get(5, ()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    w.data[5].paused = False
    await w.settle()
    assert w.data[5].is_good(record)


def test_with_all_servers_up_nothing_is_told_of_lag() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            before = len(w.meta.calls)
            await write(w, b"content", 1)
            await w.settle()
            assert w.meta.calls[before:] == ["commit"]
            assert not w.meta.lag

    run(scenario())


def test_what_servers_that_are_down_lack_is_told_and_healed_without_inventories() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            kept = [w.commit(bytes([n])) for n in range(100)]
            w.data[4].down = w.data[5].down = True
            await w.mediator.health.first_look()
            written = [await write(w, b"late" + bytes([n]), n) for n in range(10)]
            assert w.meta.lag == {number: {r.block for r in written} for number in (4, 5)}
            for fake in (w.meta, *w.data.values()):
                fake.calls.clear()
            w.data[4].down = w.data[5].down = False
            await w.look()
            assert all(w.data[number].is_good(r) for number in (4, 5) for r in kept + written)
            assert not any(w.meta.lag.values())
            assert "blocks" not in w.meta.calls, "it is asked for them page by page, if they are compared"
            assert w.data[4].calls.count("repair") == len(written)
            progress = w.mediator.refills.progress(w.mediator.health.servers[3])
            assert progress is not None
            assert (progress["done"], progress["total"], progress["failed"]) == (10, 10, 0)

    run(scenario())


def store_copies(w: World) -> None:
    """Put a copy of the metadata of three blocks on each server, as another mediator did."""
    for part in range(3):
        data = bytes([part])
        for server in w.data.values():
            server.put(manifest.block_of(1, part), block_digest(data), data, False)


def test_copies_of_the_metadata_are_no_reason_to_compare_inventories() -> None:
    """Of a mediator that was started just now, too."""

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.commit()
            store_copies(w)
            w.meta.calls.clear()
            w.data[1].epoch += 1
            await w.look()
            assert "counts" in w.meta.calls
            assert "blocks" not in w.meta.calls

    run(scenario())


def test_copies_of_the_metadata_do_not_stand_for_blocks_that_a_server_has_lost() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            record = w.commit()
            store_copies(w)
            w.mediator.copies.blocks = 3
            del w.data[1].held[record.block]
            w.data[1].epoch += 1
            await w.look()
            assert w.data[1].is_good(record)

    run(scenario())


def test_what_lags_and_is_of_the_newest_is_left_to_do_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    note = RefillProgress.found

    def noting(progress: RefillProgress, blocks: int, size: int) -> None:
        found.append((blocks, size))
        note(progress, blocks, size)

    monkeypatch.setattr(RefillProgress, "found", noting)

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.data[5].down = True
            await w.mediator.health.first_look()
            written = [await write(w, b"late" + bytes([n]), n) for n in range(10)]
            del w.data[4].held[written[0].block]
            found.clear()
            w.data[5].down = False
            w.data[4].epoch += 1
            await w.look()
            assert sorted(each for each in found if each[0]) == [(1, 5), (10, 50)]
            assert all(w.data[number].is_good(r) for number in (4, 5) for r in written)

    run(scenario())


def test_what_a_blank_server_lacks_is_told_before_it_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int, int]] = []
    note = RefillProgress.found

    def noting(progress: RefillProgress, blocks: int, size: int) -> None:
        found.append((blocks, size, progress.comparisons_left))
        note(progress, blocks, size)

    monkeypatch.setattr(RefillProgress, "found", noting)

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            records = [w.commit(bytes([n]) * 100 * n) for n in range(1, 30)]
            size, server = sum(record.length for record in records), w.mediator.health.servers[4]
            w.data[5].held.clear()
            w.meta.lag[5] = {record.block for record in records[:5]}
            found.clear()
            w.mediator.refills.heal(5)
            await w.settle()
            assert found[0] == (29, size, 2), "what lags, and what inventories will tell"
            found.clear()
            w.mediator.refills.begin(server, whole=True)
            await w.settle()
            assert found == [(0, 0, 1), (24, size - 1500, 1), (0, 0, 1), (0, 0, 1)]
            progress = w.mediator.refills.progress(server)
            assert progress is not None
            assert (progress["compared"], progress["gone_through"], progress["to_compare"]) == (2, 29, 29)

    run(scenario())


def test_a_put_that_fails_after_the_commit_is_told_then() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.data[5].paused = True
            record = await write(w, b"content", 1)
            assert not w.meta.lag
            await expect_told_and_healed(w, record)
            assert not any(w.meta.lag.values())

    run(scenario())


def test_a_put_that_fails_after_the_call_came_once_more_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The late copy puts the block again, and commits nothing (seed 351 of the simulation)."""

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.data[5].paused = True
            record = await write(w, b"content", 1)

            def refuse(*_: object, **__: object) -> None:
                raise SequenceError("a late copy of an older call")

            with monkeypatch.context() as late:
                late.setattr(w.meta, "commit", refuse)
                with pytest.raises(SequenceError):
                    await w.mediator.write_path.write_file(
                        Ticket(1, 0, 1), 7, commit_of([record]), [b"content"]
                    )
            await expect_told_and_healed(w, record)

    run(scenario())


def test_who_lacks_a_block_is_told_if_its_commit_fails_and_was_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its transaction was done, and could not be made durable (seed 3044 of the simulation)."""

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            commit = w.meta.commit
            w.data[5].paused = True

            def fail_afterwards(*args: Any) -> None:
                commit(*args)
                raise InternalError("the metadata server's disk failed")

            with monkeypatch.context() as failing:
                failing.setattr(w.meta, "commit", fail_afterwards)
                with pytest.raises(InternalError):
                    await write(w, b"content", 1)
            (record,) = w.meta.committed.values()
            assert not w.meta.lag
            await expect_told_and_healed(w, record)

    run(scenario())


def test_what_is_to_be_told_is_bounded_while_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the disk of the metadata server is full; a message with too many is refused for ever."""
    assert MOST_PUTS <= LONGEST_ARRAY
    monkeypatch.setattr("mediator.lag.MOST_PUTS", 8)

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.data[5].down = True
            await w.mediator.health.first_look()
            w.meta.fail_next = {"commit": [NoSpace("full")] * 99, "note_lag": [NoSpace("full")] * 5}
            for sequence in range(99):
                with pytest.raises(NoSpace):
                    await write(w, b"content %d" % sequence, sequence)
            told: list[int] = []
            monkeypatch.setattr(w.meta, "note_lag", lambda lag: told.append(len(lag)))
            await w.settle()
            assert told and max(told) <= 8

    run(scenario())


def test_a_straggler_that_has_taken_the_block_is_not_sent_it_again() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.data[5].delay_seconds = VOTE_SECONDS * 0.5
            record = await write(w, b"content", 1)
            await w.settle()
            assert w.data[5].is_good(record)
            assert not w.meta.lag
            w.meta.lag[5] = {record.block}
            w.mediator.refills.heal(5)
            await w.settle()
            assert "repair" not in w.data[5].calls
            assert not any(w.meta.lag.values())

    run(scenario())


def test_the_mediator_after_a_killed_one_finds_what_was_open() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            record = await write(w, b"content", 1)
            await w.settle()
            w.data[2].delete([record.block])
            w.meta.calls.clear()
            w.mediator.refills.came_up(w.mediator.health.servers[1])
            await w.settle()
            assert w.data[2].is_good(record)
            assert "blocks" not in w.meta.calls, "it was not compared"

    run(scenario())


def test_a_server_that_returns_blank_while_it_is_refilled_is_looked_at_again() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            record, server = w.commit(), w.mediator.health.servers[4]
            status, lost = w.data[5].status, []

            def lose_all_afterwards() -> dict[str, Any]:
                said = status()
                if not lost:
                    lost.append(w.data[5].held.clear())
                    w.mediator.refills.came_up(server)
                return said

            w.data[5].status = lose_all_afterwards  # type: ignore[method-assign]
            w.mediator.refills.came_up(server)
            await w.settle()
            assert lost
            assert w.data[5].is_good(record)

    run(scenario())


def test_a_block_that_another_mediator_put_lags_everywhere_until_it_is_looked_for() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            record = w.new_record(b"content")
            for number in (1, 2, 3):
                w.data[number].put(record.block, record.digest, b"content", False)
            await w.mediator.write_path.write_file(Ticket(1, 0, 1), 7, commit_of([record]), [])
            assert [number for number, lag in w.meta.lag.items() if lag] == [1, 2, 3, 4, 5]
            await w.settle()
            assert all(server.is_good(record) for server in w.data.values())
            assert w.meta.lag_counts() == []

    run(scenario())


def test_what_most_servers_lack_comes_first_whatever_server_is_refilled_first() -> None:
    async def scenario() -> None:
        async with world(5, 3, 5) as w:
            spared = [w.commit(b"one lacks it %d" % n) for n in range(80)]
            risky = [w.commit(b"two lack it %d" % n) for n in range(40)]
            for number, records in ((3, spared), (4, risky), (5, risky)):
                for record in records:
                    w.data[number].delete([record.block])
                w.meta.lag[number] = {record.block for record in records}
            filled: list[bytes] = []
            for number in (3, 4, 5):
                fake = w.data[number]
                monkey, fake.delay_seconds = fake.repair, 0.002

                def repair(block: bytes, *values: Any, usual: Any = monkey) -> str:
                    filled.append(block)
                    return str(usual(block, *values))

                fake.repair = repair  # type: ignore[method-assign]
            for number in (3, 4, 5):
                w.mediator.refills.heal(number)
            await w.settle()
            assert len(filled) == 160
            last = max(place for place, block in enumerate(filled) if block in {r.block for r in risky})
            # All 80 replicas of what two servers lack come first, but for turns that were given before.
            assert last < 80 + 2 * AT_ONCE

    run(scenario())


def test_turns_go_to_the_most_dangerous_and_come_back_when_given_up() -> None:
    async def scenario() -> None:
        turns, order = Turns(Pace(0), at_once=1), []

        async def work(danger: int, size: int) -> None:
            async with turns.turn(danger, size):
                order.append((danger, size))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number, danger in enumerate((1, 3, 2, 3)):
                group.create_task(work(danger, number))
            given_up = group.create_task(work(9, 9))
            await asyncio.sleep(0)
            given_up.cancel()
        assert order == [(3, 1), (3, 3), (2, 2), (1, 0)]
        async with turns.turn(0, 0):
            pass

    asyncio.run(scenario())


def test_what_cannot_be_filled_lags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            refusal = InternalError("the disk fails")
            w.data[5].fail_next = {"put": [refusal], "repair": [refusal] * 20}
            record = await write(w, b"content", 1)
            await w.settle()
            assert w.meta.lag_counts() == [LagCount(5, 1, 7)]
            w.data[5].fail_next.clear()
            w.mediator.refills.heal(5)
            await w.settle()
            assert w.data[5].is_good(record)
            assert w.meta.lag_counts() == []

    run(scenario())


@pytest.mark.parametrize(
    ("held", "committed", "lagging", "garbage", "due"),
    [
        (10, 10, 0, 0, False),
        (0, 10, 0, 0, True),
        (7, 10, 3, 0, False),
        (6, 10, 3, 0, True),
        (12, 10, 0, 2, False),
        (13, 10, 0, 2, True),
    ],
)
def test_when_inventories_must_be_compared(
    held: int, committed: int, lagging: int, garbage: int, due: bool
) -> None:
    assert must_compare(held, committed, lagging, garbage) == due


def test_a_rate_spreads_the_beginnings() -> None:
    assert next_start(5.0, 0.0, 100, 0) == (5.0, 5.0)
    now, free_at, begun = 5.0, 0.0, []
    for _ in range(3):
        begin, free_at = next_start(now, free_at, 100, 1000)
        begun.append(begin)
    assert begun == pytest.approx([5.0, 5.1, 5.2])
