"""Refills and the comparison of inventories, over in-memory servers."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from mediator.inventories import compare
from mediator.refill import IN_FLIGHT, MOST_FRUITLESS, MOST_REFUSED, PASSES_AT_ONCE
from mediator.repair import NOT_AS_RECORDED
from tests.support import take_seed
from tests.unit.mediator_fakes import run, world
from tools.refill import in_words
from wire.errors import (
    DeadlineExceeded,
    InternalError,
    NoSpace,
    QuorumfsError,
    Unavailable,
)
from wire.messages import BlockRecord, Lag


def records(ids: list[int]) -> list[BlockRecord]:
    return [BlockRecord(number.to_bytes(2, "big"), 1, b"") for number in sorted(ids)]


def test_compare_finds_every_difference_whatever_the_pages() -> None:
    seed = take_seed()
    chance = random.Random(seed)
    for _ in range(300):
        wanted = {n for n in range(60) if chance.random() < chance.choice([0.1, 0.5, 0.95])}
        held = {n for n in range(60) if chance.random() < chance.choice([0.1, 0.5, 0.95])}
        odd = {n for n in wanted & held if chance.random() < 0.1}
        ours, theirs = records(list(wanted)), records(list(held))
        theirs = [r._replace(length=2) if int.from_bytes(r.block, "big") in odd else r for r in theirs]
        lacking, differing, extra, after = [], [], [], b""
        while True:
            pages = [[r for r in side if r.block > after][: chance.randint(1, 9)] for side in (ours, theirs)]
            found = compare(pages[0], pages[1])
            lacking += [r.block for r in found.lacking]
            differing += [r.block for r in found.differing]
            extra += found.extra
            if found.cursor is None:
                break
            assert found.cursor > after
            after = found.cursor
        assert lacking == [r.block for r in records(list(wanted - held))]
        assert differing == [r.block for r in records(list(odd))]
        assert extra == [r.block for r in records(list(held - wanted))]


def test_a_blank_server_is_refilled_also_while_files_are_written() -> None:
    async def scenario() -> None:
        async with world() as w:
            kept = [w.commit(bytes([n]) * 100) for n in range(40)]
            w.data[2].damage(kept[0].block)
            w.data[5].held.clear()
            w.data[5].epoch += 1
            later = iter([w.commit, w.commit])
            w.meta.on_blocks = lambda: [make() for make in itertools.islice(later, 1)] and None
            await w.look()
            for record in w.meta.committed.values():
                assert w.data[5].is_good(record)
            assert len(w.meta.committed) == 42
            progress = w.mediator.refills.look_or_begin(w.mediator.health.servers[4])
            assert (progress["state"], progress["done"], progress["total"]) == ("done", 40, 40)
            assert (progress["bytes_done"], progress["failed"]) == (4000, 0)
            assert w.mediator.health.servers[4].state == "up"

    run(scenario())


def test_extras_are_deleted_only_if_they_may_be() -> None:
    async def scenario() -> None:
        async with world() as w:
            orphan, fresh = w.new_record(b"orphan"), w.new_record(b"fresh")
            for record, data in ((orphan, b"orphan"), (fresh, b"fresh")):
                w.data[1].put(record.block, record.digest, data, False)
            w.meta.uncommitted.add(fresh.block)
            w.data[1].epoch += 1
            await w.look()
            assert list(w.data[1].held) == [fresh.block]

    run(scenario())


def test_a_refill_goes_on_when_the_metadata_server_is_back() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[3].held.clear()
            w.data[3].epoch += 1
            w.meta.down = True
            await w.mediator.health.first_look()
            assert w.mediator.health.servers[2].state == "refilling"
            w.meta.down = False
            await w.settle()
            assert w.data[3].is_good(record)

    run(scenario())


def test_a_server_that_cannot_tell_what_it_has_is_asked_less_and_less_until_it_is_restarted() -> None:
    """A page of its index is damaged: each try goes through all blocks before that page."""

    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            del w.data[3].held[record.block]
            tell, w.data[3].calls[:] = w.data[3].inventory, []

            def fail(after: bytes, limit: int) -> list[BlockRecord]:
                raise InternalError("the index")

            w.data[3].inventory = fail  # type: ignore[method-assign]
            server = w.mediator.health.servers[2]
            w.mediator.refills.begin(server, whole=True)
            await asyncio.sleep(40)
            assert 3 <= w.data[3].calls.count("inventory") <= 6
            w.data[3].inventory = tell  # type: ignore[method-assign]
            w.data[3].epoch += 1
            async with asyncio.timeout(5):
                await w.look()
            assert w.data[3].is_good(record)

    run(scenario())


def test_a_refill_does_not_pause_for_long_when_the_metadata_server_comes_up_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 1000.0)

    async def scenario() -> None:
        async with world() as w:
            w.data[3].epoch += 1
            w.meta.down = True
            await w.mediator.health.first_look()
            server = w.mediator.health.servers[2]
            assert server.state == "refilling"
            w.meta.down = False
            await w.look()
            assert server.state == "up"

    run(scenario())


def test_a_server_that_comes_back_in_the_last_pause_of_a_refill_is_refilled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refill found nothing to fill from three times, and was about to end."""
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 1.0)

    async def scenario() -> None:
        async with world() as w:
            lost, kept = w.commit(b"lost"), w.commit(b"kept")
            for number in (1, 2, 3, 4):
                w.data[number].damage(lost.block)
            w.data[5].delete([lost.block])
            w.data[5].epoch += 1
            await w.mediator.health.first_look()
            progress = w.mediator.refills.progress
            while (progress(w.mediator.health.servers[4]) or {})["passes"] < MOST_FRUITLESS:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
            w.data[5].held.clear()
            w.data[5].epoch += 1
            await w.look()
            assert w.data[5].is_good(kept)

    run(scenario())


def test_an_inspection_is_no_refill_until_it_finds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a cluster must not be told as degraded every ten minutes though nothing lacks."""
    monkeypatch.setattr("mediator.refill.INSPECTION_SECONDS", 1.0)

    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            servers, states = w.mediator.health.servers, list[str]()
            w.meta.on_blocks = lambda: states.extend(server.state for server in servers)
            inspections = asyncio.create_task(w.mediator.refills.inspect_forever())
            await asyncio.sleep(1.5)
            assert states and set(states) == {"up"}
            w.data[2].delete([record.block])
            repair, mended = w.data[2].repair, list[str]()

            def note_state(*params: Any) -> str:
                mended.append(servers[1].state)
                return repair(*params)

            w.data[2].repair = note_state  # type: ignore[method-assign]
            await asyncio.sleep(1.0)
            inspections.cancel()
            await w.settle()
            assert (mended, servers[1].state) == (["refilling"], "up")
            assert w.data[2].is_good(record)

    run(scenario())


def test_a_block_without_a_good_replica_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world() as w:
            lost, kept = w.commit(b"lost"), w.commit(b"kept")
            for number in (1, 2, 3, 4):
                w.data[number].damage(lost.block)
            w.data[5].held.clear()
            w.data[5].epoch += 1
            await w.look()
            assert w.data[5].is_good(kept)
            progress = w.mediator.refills.look_or_begin(w.mediator.health.servers[4])
            assert (progress["state"], progress["failed"]) == ("failed", 1)

    run(scenario())


def test_a_refill_whose_server_went_down_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world() as w:
            server = w.mediator.health.servers[4]

            def go_down(*_parameters: object) -> None:
                server.note_failure(Unavailable("Connection refused"))
                raise Unavailable("Connection refused")

            for lacks in (True, False):
                server.mark_up()
                w.commit()
                w.data[5].held.clear()
                monkeypatch.setattr(w.data[5], "repair" if lacks else "inventory", go_down)
                w.mediator.refills.begin(server, whole=True)
                await w.settle()
                progress = w.mediator.refills.progress(server)
                assert progress is not None
                assert (progress["state"], bool(progress["failed"])) == ("failed", lacks)
                assert "data server 5 is down: Connection refused" in in_words(progress)
                assert "too few" not in in_words(progress)

    run(scenario())


@pytest.mark.parametrize("refusal", [NoSpace(), InternalError("the disk failed"), DeadlineExceeded("slow")])
@pytest.mark.parametrize("lags", [True, False])
def test_a_server_that_refuses_all_blocks_is_not_sent_each_of_them(
    refusal: QuorumfsError, lags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too small, or takes no writes any more: the others' disks would be read for nothing."""
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world() as w:
            kept = [w.commit(bytes([n % 256, n // 256])) for n in range(700)]
            w.data[5].held.clear()
            if lags:
                w.meta.note_lag([Lag(record.block, [5]) for record in kept])
            w.data[5].fail_next["repair"] = [refusal] * 100_000
            server = w.mediator.health.servers[4]
            w.mediator.refills.begin(server, whole=True)
            await w.settle()
            progress = w.mediator.refills.progress(server)
            assert progress is not None
            assert progress["failed"] >= len(kept), "what it lacks is counted all the same"
            assert "too few" not in in_words(progress), "it is the server that lacks them"
            tried = MOST_REFUSED + IN_FLIGHT
            assert w.data[5].calls.count("repair") <= progress["passes"] * tried
            assert sum(other.calls.count("get") for other in w.data.values()) <= progress["passes"] * tried
            w.data[5].fail_next.clear()
            w.mediator.refills.begin(server, whole=True)
            await w.settle()
            assert all(w.data[5].is_good(record) for record in kept)

    run(scenario())


def test_blocks_that_a_server_takes_are_filled_beside_those_that_it_refuses() -> None:
    async def scenario() -> None:
        async with world() as w:
            kept = [w.commit(bytes([n])) for n in range(200)]
            w.data[5].held.clear()
            take, asked = w.data[5].repair, itertools.count()

            def take_every_second(block: bytes, digest: bytes, data: bytes, note: str) -> str:
                if next(asked) % 2:
                    raise NoSpace
                return take(block, digest, data, note)

            w.data[5].repair = take_every_second  # type: ignore[method-assign]
            w.mediator.refills.begin(w.mediator.health.servers[4], whole=True)
            await w.settle()
            assert all(w.data[5].is_good(record) for record in kept)

    run(scenario())


def test_a_refill_has_repaired_the_corruption_that_it_meets() -> None:
    async def scenario() -> None:
        async with world() as w:
            kept = [w.commit(bytes([n])) for n in range(8)]
            for record in kept:
                w.data[1].damage(record.block)
            w.data[5].held.clear()
            w.data[5].epoch += 1
            await w.look()
            assert all(w.data[5].is_good(record) for record in kept)
            assert w.data[1].quarantine
            assert sum(w.data[1].is_good(record) for record in kept) == len(w.data[1].quarantine)

    run(scenario())


def test_corruption_found_while_too_few_can_vouch_is_repaired_when_they_can() -> None:
    """As a scrub finds it; no read may meet it for weeks."""

    async def scenario() -> None:
        async with world(3, read=2, write=2) as w:
            record = w.commit()
            w.data[1].damage(record.block)
            w.data[2].down = True
            await w.look()
            repaired = await w.mediator.repairs.repair(record.block)
            assert not repaired.replaced, "what a read refuses is not settled behind the reader's back"
            w.data[2].down = False
            await w.look()
            assert w.data[1].is_good(record)

    run(scenario())


def test_corruption_found_on_a_full_server_is_repaired_when_it_has_room() -> None:
    async def scenario() -> None:
        async with world(3, read=2, write=2) as w:
            record = w.commit()
            w.data[1].damage(record.block)
            w.data[1].fail_next["repair"] = [NoSpace()]
            assert not (await w.mediator.repairs.repair(record.block)).replaced
            await w.mediator.room.look()
            await w.settle()
            assert w.data[1].is_good(record)

    run(scenario())


def test_what_waits_for_servers_to_be_repaired_is_bounded_and_goes_when_it_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mediator.repair.MOST_UNSETTLED", 5)

    async def scenario() -> None:
        async with world(3, read=2, write=2) as w:
            records = [w.commit(bytes([n])) for n in range(9)]
            w.data[2].down = True
            await w.look()
            for record in records:
                w.data[1].damage(record.block)
                await w.mediator.repairs.repair(record.block)
            w.meta.supersede(records[-1].block)
            w.data[2].down = False
            await w.look()
            assert [w.data[1].is_good(record) for record in records].count(True) == 4
            assert not w.mediator.repairs._unsettled

    run(scenario())


def test_a_replica_whose_bytes_are_right_but_not_its_record_is_replaced_and_the_refill_ends() -> None:
    """A vote on the whole block calls it good, and its server would tell wrongly of it for ever."""

    async def scenario() -> None:
        async with world() as w:
            record = w.commit(b"truth")
            w.data[2].held[record.block] = record._replace(digest=bytes(32)), b"truth", b""
            server = w.mediator.health.servers[1]
            w.mediator.refills.begin(server, whole=True)
            await w.settle()
            assert w.data[2].is_good(record)
            assert w.data[2].quarantine == [(record.block, b"truth", NOT_AS_RECORDED)]
            progress = w.mediator.refills.look_or_begin(server)
            assert (progress["state"], progress["done"], progress["failed"]) == ("done", 1, 0)

    run(scenario())


def test_a_refill_of_a_server_that_tells_wrongly_of_what_it_has_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            told = [record._replace(digest=bytes(32))]
            monkeypatch.setattr(w.data[2], "inventory", lambda after, limit: [] if after else told)
            server = w.mediator.health.servers[1]
            w.mediator.refills.begin(server, whole=True)
            await w.settle()
            assert w.data[2].is_good(record)
            assert not w.data[2].quarantine
            progress = w.mediator.refills.look_or_begin(server)
            assert (progress["state"], progress["passes"]) == ("failed", MOST_FRUITLESS)

    run(scenario())


def test_an_inventory_that_does_not_move_on_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world(1, 1, 1) as w:
            w.commit()
            inventory = w.data[1].inventory
            monkeypatch.setattr(w.data[1], "inventory", lambda after, limit: inventory(b"", limit))
            refills, server = w.mediator.refills, w.mediator.health.servers[0]
            refills.begin(server, whole=True)
            await asyncio.sleep(0.05)
            assert "does not move on" in refills.look_or_begin(server)["error"]

    run(scenario())


def test_a_server_that_denies_what_it_has_is_not_compared_without_a_pause() -> None:
    async def scenario() -> None:
        async with world(3, 2, 3) as w:
            w.commit()
            asked = []
            w.data[3].inventory = lambda after, limit: asked.append(after) or []  # type: ignore[assignment,func-returns-value]
            server = w.mediator.health.servers[2]
            w.mediator.refills.begin(server, whole=True)
            await asyncio.sleep(0.5)
            assert 1 < asked.count(b"") <= 2 * PASSES_AT_ONCE

    run(scenario())


def test_blocks_without_a_source_hold_up_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.PAGE", 4)

    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            records = [w.commit(bytes([n])) for n in range(20)]
            lost = sorted(records)[:9]
            for record in lost:
                w.data[2].damage(record.block)  # it is there, and no source
                w.data[1].delete([record.block])
            for record in records:
                w.data[3].delete([record.block])
            w.meta.note_lag([Lag(record.block, [3]) for record in records])
            w.meta.note_lag([Lag(record.block, [1]) for record in lost])
            w.mediator.refills.heal(3)
            await asyncio.sleep(1.0)
            kept = [record for record in records if w.data[3].is_good(record)]
            assert sorted(kept) == sorted(set(records) - set(lost))
            assert w.meta.lag[3] == {record.block for record in lost}

    run(scenario())


def test_a_refill_goes_on_when_the_server_tells_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.refill.RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        async with world() as w:
            records = [w.commit(bytes([n])) for n in range(9)]
            w.data[1].delete([record.block for record in records])
            w.data[1].epoch += 1
            status, asked = w.data[1].status, []

            def late() -> dict[str, Any]:
                asked.append(1)
                return {} if len(asked) < 4 else status()

            w.data[1].status = late  # type: ignore[method-assign]
            await w.look()
            assert len(asked) > 3
            assert all(w.data[1].is_good(record) for record in records)

    run(scenario())
