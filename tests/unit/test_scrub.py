"""Scrubbing over in-memory servers: what is found, repaired and remembered, and its pace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mediator.scrub import BATCH_BLOCKS, BATCH_BYTES, ScrubPass, batches, is_due, pace
from tests.unit.mediator_fakes import World, run, world
from wire.errors import DeadlineExceeded, InternalError, InvalidArgument, NoSpace, QuorumfsError, Unavailable
from wire.messages import BlockRecord, VotedPart

WEEK = 7 * 86_400.0
MIB = 1024 * 1024


@pytest.mark.parametrize(("days", "due"), [(3.4, False), (3.6, True), (30, True), (0, False), (-1, True)])
def test_a_pass_is_due_half_a_period_after_the_last(days: float, due: bool) -> None:
    assert is_due(ScrubPass(begun_ns=1, ended_ns=10**9), int((1 + days * 86_400) * 1e9), WEEK) is due


def test_a_pass_that_runs_is_not_due() -> None:
    assert not is_due(ScrubPass(begun_ns=1), int(1e18), WEEK)


def test_the_pace_fits_half_a_period_and_the_limit() -> None:
    state = ScrubPass(begun_ns=0, total_bytes=int(WEEK / 2) * MIB)
    assert pace(state, 0, WEEK, 100 * MIB) == pytest.approx(MIB)
    state.checked_bytes = state.total_bytes // 2
    assert pace(state, 0, WEEK, 100 * MIB) == pytest.approx(MIB / 2)
    assert pace(state, int(WEEK * 0.499 * 1e9), WEEK, 100 * MIB) == 100 * MIB
    assert pace(state, int(WEEK * 1e9), WEEK, 100 * MIB) == 100 * MIB
    assert pace(state, int(-30 * 86_400 * 1e9), WEEK, 100 * MIB) == pytest.approx(MIB / 2)
    state.hurried = True
    assert pace(state, 0, WEEK, 100 * MIB) == 100 * MIB


def test_batches_are_bounded_and_lose_nothing() -> None:
    large = [BlockRecord(bytes([n]), MIB, b"") for n in range(10)]
    small = [BlockRecord(bytes([n % 256]), 1, b"") for n in range(BATCH_BLOCKS + 1)]
    for records in (large, small, []):
        parts = list(batches(records))
        assert [record for part in parts for record in part] == records
        assert all(sum(r.length for r in part) <= BATCH_BYTES for part in parts)
        assert all(0 < len(part) <= BATCH_BLOCKS for part in parts)


@pytest.mark.parametrize("kept", [None, {}, {"after": "no hex"}, {"checked": "1", "strange": 2}, [1]])
def test_what_a_data_server_kept_is_not_trusted(kept: object) -> None:
    assert ScrubPass.of(kept) == ScrubPass()


async def scrub(w: World, number: int = 0) -> list[dict[str, int]]:
    """Scrub now, to the end."""
    await w.mediator.scrub(number, True)
    for server in w.mediator.health.servers:
        while await w.mediator.scrubs._has_work(server) and number in (0, server.number):
            await w.mediator.scrubs._run_page(server)
    return await w.mediator.scrub(number, False)


def test_what_is_corrupt_or_missing_is_found_and_repaired() -> None:
    async def scenario() -> None:
        async with world() as w:
            records = [w.commit(bytes([n]) * 10) for n in range(20)]
            w.data[1].damage(records[3].block)
            w.data[1].lie(records[4].block)
            w.data[2].held.pop(records[5].block)
            found = await scrub(w)
            assert [(s["corrupt"], s["missing"], s["repaired"]) for s in found[:3]] == [
                (2, 0, 2),
                (0, 1, 1),
                (0, 0, 0),
            ]
            assert all((s["checked"], s["checked_bytes"]) == (20, 200) for s in found)
            assert all(server.is_good(record) for server in w.data.values() for record in records)
            assert w.data[3].scrub["last_full_ns"] > 0

    run(scenario())


def test_what_cannot_be_repaired_is_counted() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for server in w.data.values():
                server.damage(record.block)
            found = await scrub(w)
            assert all((s["corrupt"], s["repaired"]) == (1, 0) for s in found)

    run(scenario())


def test_what_is_found_while_the_metadata_server_is_away_is_repaired_when_it_is_back() -> None:
    """No read may meet it before the next pass, which is days away."""

    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].damage(record.block)
            w.meta.fail_next["witnesses"] = [Unavailable("connection refused")]
            server, scrubs = w.mediator.health.servers[0], w.mediator.scrubs
            while not w.data[1].scrub.get("last_full_ns"):
                await scrubs._turn(server)
            assert w.data[1].is_good(record)
            assert [w.data[1].scrub[name] for name in ("checked", "corrupt", "repaired")] == [1, 1, 1]

    run(scenario())


def test_a_server_whose_disk_is_full_to_the_last_byte_is_scrubbed_all_the_same() -> None:
    """How far its scrub is cannot be kept there."""

    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].damage(record.block)
            w.data[1].fail_next["keep_scrub"] = [NoSpace() for _ in range(100)]
            [progress] = await w.mediator.scrub(1, True)
            server, scrubs = w.mediator.health.servers[0], w.mediator.scrubs
            while progress["state"] == "running" and w.data[1].fail_next["keep_scrub"]:
                await scrubs._turn(server)
                [progress] = await w.mediator.scrub(1, False)
            assert progress["state"] == "done"
            assert w.data[1].is_good(record)

    run(scenario())


@pytest.mark.parametrize("failure", [DeadlineExceeded("no answer within 30 s"), InternalError("the index")])
def test_a_block_that_gets_no_vote_does_not_hold_up_the_others(failure: QuorumfsError) -> None:
    """As a disk tries for minutes to read a weak sector, or a page of the index is damaged."""

    async def scenario() -> None:
        async with world() as w:
            weak, *others = sorted((w.commit(bytes([n]) * 10) for n in range(9)), key=lambda r: r.block)
            w.data[1].damage(others[-1].block)
            digests = w.data[1].digests

            def slowly(parts: list[VotedPart]) -> list[bytes | None]:
                if weak.block in [part.block for part in parts]:
                    raise failure
                return digests(parts)

            w.data[1].digests = slowly  # type: ignore[method-assign]
            [progress] = await w.mediator.scrub(1, True)
            server, scrubs = w.mediator.health.servers[0], w.mediator.scrubs
            while progress["state"] == "running" and w.data[1].calls.count("digests") < 100:
                await scrubs._turn(server)
                [progress] = await w.mediator.scrub(1, False) or [progress]
            assert (progress["state"], progress["corrupt"], progress["repaired"]) == ("done", 1, 1)
            assert progress["checked"] == 8, "it does not say that it has read what it has not"

    run(scenario())


@pytest.mark.parametrize("change", [-1, 1], ids=["too few", "too many"])
def test_a_wrong_number_of_votes_does_not_hold_up_the_scrub(change: int) -> None:
    async def scenario() -> None:
        async with world() as w:
            records = [w.commit(bytes([n]) * 10) for n in range(9)]
            w.data[1].damage(records[4].block)
            digests = w.data[1].digests

            def miscounted(parts: list[VotedPart]) -> list[bytes | None]:
                return (digests(parts) * 2)[: len(parts) + change] if len(parts) > 1 else digests(parts)

            w.data[1].digests = miscounted  # type: ignore[method-assign]
            [progress] = await w.mediator.scrub(1, True)
            server, scrubs = w.mediator.health.servers[0], w.mediator.scrubs
            while progress["state"] == "running":
                await scrubs._turn(server)
                [progress] = await w.mediator.scrub(1, False) or [progress]
            assert (progress["corrupt"], progress["repaired"], progress["checked"]) == (1, 1, 9)

    run(scenario())


def test_one_server_alone() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.commit()
            await scrub(w, 2)
            asked = {n: server.calls.count("digests") for n, server in w.data.items()}
            assert asked == {1: 0, 2: 1, 3: 0, 4: 0, 5: 0}
            w.data[2].down = True
            await w.mediator.health.first_look()
            for number in (2, 9):
                with pytest.raises(InvalidArgument):
                    await w.mediator.scrub(number, True)

    run(scenario())


def test_a_pass_goes_on_where_another_mediator_left_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            records = sorted(w.commit() for _ in range(6))
            server = w.mediator.health.servers[0]
            w.data[1].scrub = {
                "begun_ns": 1,
                "after": records[3].block.hex(),
                "checked": 4,
                "total_blocks": 6,
            }
            w.data[1].damage(records[0].block)
            w.data[1].damage(records[5].block)
            w.mediator.scrubs._passes.clear()
            while await w.mediator.scrubs._has_work(server):
                await w.mediator.scrubs._run_page(server)
            assert (w.data[1].scrub["checked"], w.data[1].scrub["corrupt"]) == (6, 1)
            assert not w.data[1].is_good(records[0])

    run(scenario())


def test_a_block_that_was_deleted_meanwhile_is_no_finding() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].held.clear()
            w.meta.on_blocks = lambda: w.meta.waiting.append(record.block)
            w.meta.collectable = lambda blocks: [b for b in blocks if b in w.meta.waiting]  # type: ignore[method-assign]
            found = await scrub(w, 1)
            assert (found[0]["missing"], found[0]["repaired"]) == (0, 0)

    run(scenario())


def test_a_pass_in_a_hurry_that_begins_during_a_batch_is_not_slept_through() -> None:
    """The wake-up comes while the batch is read; the pace of the old pass would be hours."""

    async def scenario() -> None:
        async with world() as w:
            w.commit(bytes(100_000))
            server, scrubs = w.mediator.health.servers[0], w.mediator.scrubs
            assert await scrubs._has_work(server)
            read = scrubs._run_batch

            async def meanwhile(*args: Any) -> None:
                await read(*args)
                scrubs._run_batch = read  # type: ignore[method-assign]
                await scrubs.hurry(server)

            scrubs._run_batch = meanwhile  # type: ignore[method-assign]
            async with asyncio.timeout(5):
                await scrubs._run_page(server)
                while await scrubs._has_work(server):
                    await scrubs._run_page(server)

    run(scenario())


@pytest.mark.parametrize("asked", ["status", "counts", "keep_scrub"])
def test_a_server_that_comes_up_anew_while_its_state_is_looked_up_is_scrubbed_all_the_same(
    asked: str,
) -> None:
    """It may have another directory: what was known of its passes is dropped (simulated seed 271)."""

    async def scenario() -> None:
        async with world() as w:
            w.commit()
            server, scrubs = w.mediator.health.servers[0], w.mediator.scrubs
            scrubs.came_up(server)
            fake: Any = w.meta if asked == "counts" else w.data[1]
            answer = getattr(fake, asked)

            def meanwhile(*args: Any) -> Any:
                setattr(fake, asked, answer)
                scrubs.came_up(server)
                return answer(*args)

            setattr(fake, asked, meanwhile)
            assert w.data[1].scrub == {}
            while not w.data[1].scrub.get("last_full_ns"):
                if await scrubs._has_work(server):
                    await scrubs._run_page(server)
            assert getattr(fake, asked) == answer, "it did not come up meanwhile"
            assert w.data[1].scrub["checked"] == 1

    run(scenario())
