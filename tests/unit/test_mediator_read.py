"""Reading by vote over in-memory servers: outcomes, what is repaired, what is left alone, and how fast."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from mediator.latency import STAY
from mediator.vote import Prediction, predict_read
from tests.support import take_seed
from tests.unit.mediator_fakes import VOTE_SECONDS, run, world
from wire.digest import PIECE_BYTES, piece_digests
from wire.errors import DeadlineExceeded, InvalidArgument, ReadRefused, Unavailable
from wire.messages import SMALL_BLOCK_BYTES, BlockRecord, FileMap, MappedExtent


async def check_pattern(read: int, pattern: str, data: bytes) -> None:
    """Apply faults, read, and check outcome, bytes, repair and quarantine against the model."""
    async with world(len(pattern), read, len(pattern)) as w:
        record = w.commit(data)
        for number, letter in enumerate(pattern, 1):
            w.fault(record, letter, number)
        await w.mediator.health.recheck()
        before = {number: dict(server.held) for number, server in w.data.items()}
        corrupt = pattern.count("C") + pattern.count("L")
        expected = predict_read(
            w.mediator.quorum, crashed=pattern.count("D"), corrupt=corrupt, missing=pattern.count("M")
        )
        try:
            assert await w.read(record) == data
            assert expected is Prediction.RIGHT, pattern
        except ReadRefused as error:
            assert expected is Prediction.REFUSED, (pattern, error.message)
            assert error.detail["needed"] == read
            await w.settle()
            assert {number: server.held for number, server in w.data.items()} == before
            return
        await w.settle()
        for number, letter in enumerate(pattern, 1):
            server = w.data[number]
            assert letter == "D" or server.is_good(record), (pattern, number)
            losers = [before[number][record.block][1]] if letter in "CL" else []
            assert [copy for _, copy, _ in server.quarantine] == losers


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_every_pattern_of_small_clusters(servers: int) -> None:
    async def scenario() -> None:
        for pattern in itertools.combinations_with_replacement("GCLMD", servers):
            for read in range(1, servers + 1):
                await check_pattern(read, "".join(pattern), b"1234")

    run(scenario())


def test_liars_never_hit_the_right_bytes_by_chance() -> None:
    run(check_pattern(3, "LGGGLL", b"L"))


def test_random_patterns_of_larger_clusters() -> None:
    seed = take_seed()
    chance = random.Random(seed)

    async def scenario() -> None:
        for _ in range(150):
            servers = chance.randint(4, 6)
            pattern = "".join(chance.choice("GGGCLMD") for _ in range(servers))
            data = chance.randbytes(chance.choice([1, 1000, PIECE_BYTES, 3 * PIECE_BYTES + 5]))
            await check_pattern(chance.randint(1, servers), pattern, data)

    run(scenario())


def test_the_same_wrong_bytes_on_all_servers_are_refused() -> None:
    async def scenario() -> None:
        for read in range(1, 6):
            await check_pattern(read, "LLLLL", b"1234")
            await check_pattern(read, "LLLLG", b"1234")

    run(scenario())


def test_pieces_of_a_block() -> None:
    async def scenario() -> None:
        async with world() as w:
            data = random.Random(3).randbytes(4 * PIECE_BYTES + 10)
            record = w.commit(data)
            w.data[1].damage(record.block)  # in the last piece
            w.data[2].damage(record.block)
            w.data[3].damage(record.block)
            for first, count in ((0, 1), (1, 2), (3, 1), (0, 4)):
                expected = data[first * PIECE_BYTES : (first + count) * PIECE_BYTES]
                for _ in range(5):
                    assert await w.read(record, first, count) == expected
            with pytest.raises(ReadRefused):
                await w.read(record, 4, 1)
            for first, count in ((-1, 1), (5, 1), (0, -1)):
                with pytest.raises(InvalidArgument):
                    await w.read(record, first, count)

    run(scenario())


def test_a_replica_that_only_reads_of_some_pieces_find_corrupt_is_replaced() -> None:
    """Its bytes are right, but not the digests recorded of them: a vote on the whole block calls it good."""

    async def scenario() -> None:
        async with world() as w:
            data = random.Random(4).randbytes(4 * PIECE_BYTES)
            record = w.commit(data)
            w.data[2].lie(record.block)
            lie = w.data[2].held[record.block]
            w.data[2].held[record.block] = lie[0], data, lie[2]
            await w.mediator.repairs.repair(record.block)
            assert not w.data[2].is_good(record)
            assert await w.read(record, 0, 1) == data[:PIECE_BYTES]
            await w.settle()
            assert w.data[2].is_good(record)
            assert w.data[2].held[record.block][2] == piece_digests(data)

    run(scenario())


def test_a_refusal_says_who_voted_what() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for number in (1, 2, 3):
                w.data[number].damage(record.block)
            with pytest.raises(ReadRefused) as caught:
                await w.read(record)
            said = "2 of 5 replicas are good, Qr=3 are needed; 3 corrupt (servers 1, 2, 3)"
            assert caught.value.message == said
            assert caught.value.detail == {
                "block": record.block.hex(),
                "votes": {"1": "corrupt", "2": "corrupt", "3": "corrupt", "4": "good", "5": "good"},
                "good": 2,
                "needed": 3,
                "reason": "quorum",
            }

    run(scenario())


def test_a_slow_byte_server_is_hedged_and_slow_voters_are_not_waited_for() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit(bytes(100_000))
            for slow in range(1, 6):
                w.data[slow].paused = True
                begun = time.monotonic()
                for _ in range(5):
                    assert await w.read(record) == bytes(100_000)
                assert time.monotonic() - begun < VOTE_SECONDS
                w.data[slow].paused = False
                await w.settle()

    run(scenario())


@pytest.mark.parametrize(("servers", "read", "write", "slow"), [(5, 1, 5, 4), (5, 2, 4, 3), (7, 3, 5, 4)])
def test_a_read_waits_for_no_second_server_that_is_slow(
    servers: int, read: int, write: int, slow: int
) -> None:
    """Who was asked in the place of a slow server might be a slow one too, and was waited for."""

    async def scenario() -> None:
        for chosen in itertools.combinations(range(1, servers + 1), slow):
            async with world(servers, read, write) as w:
                record = w.commit()
                for number in chosen:
                    w.data[number].paused = True
                begun = time.monotonic()
                for _ in range(2):
                    assert await w.read(record) == b"1234"
                assert time.monotonic() - begun < VOTE_SECONDS
                for number in chosen:
                    w.data[number].paused = False
                await w.settle()

    run(scenario())


def test_a_hopeless_read_is_refused_before_the_deadline() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for number in (1, 2, 3):
                w.data[number].damage(record.block)
            w.data[4].paused = w.data[5].paused = True
            begun = time.monotonic()
            with pytest.raises(ReadRefused) as caught:
                await w.read(record)
            assert time.monotonic() - begun < VOTE_SECONDS / 2
            assert "2 still to vote (servers 4, 5)" in caught.value.message
            w.data[4].paused = w.data[5].paused = False

    run(scenario())


def test_a_paused_majority_is_refused_at_the_deadline() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for number in (1, 2, 3):
                w.data[number].paused = True
            begun = time.monotonic()
            with pytest.raises(ReadRefused, match=r"3 down \(servers 1, 2, 3\)"):
                await w.read(record)
            assert VOTE_SECONDS * 0.9 < time.monotonic() - begun < VOTE_SECONDS * 3

    run(scenario())


def test_a_server_that_is_back_counts_at_once() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for number in (1, 2, 3):
                w.data[number].down = True
            with pytest.raises(ReadRefused):
                await w.read(record)
            w.data[2].down = False
            assert await w.read(record) == b"1234"

    run(scenario())


def test_superseded_blocks_are_told_from_refused_ones() -> None:
    async def scenario() -> None:
        async with world() as w:
            gone, changed, refused = w.commit(b"gone"), w.commit(b"changed"), w.commit(b"refused")
            w.meta.supersede(gone.block)
            for server in w.data.values():
                server.delete([gone.block])
                server.damage(refused.block)
            other = BlockRecord(changed.block, 7, gone.digest)
            lost = w.commit(b"lost")
            for server in w.data.values():
                server.delete([lost.block])
            reasons = {gone: "superseded", other: "superseded", refused: "quorum", lost: "quorum"}
            for record, reason in reasons.items():
                with pytest.raises(ReadRefused) as caught:
                    await w.read(record)
                assert caught.value.detail["reason"] == reason
            w.meta.down = True
            for record, reason in ((gone, "superseded"), (refused, "quorum")):
                with pytest.raises(ReadRefused) as caught:
                    await w.read(record)
                assert caught.value.detail["reason"] == reason

    run(scenario())


def test_a_superseded_block_is_not_filled_again() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.meta.supersede(record.block)
            for number in (1, 2, 3, 4):
                w.data[number].delete([record.block])
            with pytest.raises(ReadRefused) as caught:
                await w.read(record)
            assert caught.value.detail["reason"] == "superseded"
            await w.settle()
            assert [record.block in server.held for server in w.data.values()] == [False] * 4 + [True]

    run(scenario())


def test_repairs_never_trust_the_witness_of_a_client() -> None:
    """A client that claims another witness makes no good copy lose a vote."""

    async def scenario() -> None:
        async with world(5, 1) as w:
            record = w.commit()
            w.data[5].lie(record.block)
            lie, told, _ = w.data[5].held[record.block]
            # It gets what it asked for; but no other replica is "repaired" to that.
            assert await w.read(lie) == told != b"1234"
            await w.settle()
            assert all(server.is_good(record) for server in w.data.values())
            assert [len(server.quarantine) for server in w.data.values()] == [0, 0, 0, 0, 1]

    run(scenario())


def test_replicas_filled_to_the_committed_witness_do_not_count_for_another_one() -> None:
    async def scenario(liar: int) -> None:
        async with world() as w:
            record = w.commit()
            w.data[liar].lie(record.block)
            lie = BlockRecord(record.block, 4, w.data[liar].held[record.block][0].digest)
            for number in {2, 3, 4, 5} - {liar}:
                w.data[number].delete([record.block])
            with pytest.raises(ReadRefused) as caught:
                await w.read(lie)
            assert caught.value.detail["reason"] == "superseded"
            assert await w.read(record) == b"1234"

    for liar in (2, 3, 4, 5):  # one of them is the server that is asked for the bytes
        run(scenario(liar))


def test_filling_needs_the_metadata_server_but_plain_reads_do_not() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.meta.down = True
            assert await w.read(record) == b"1234"
            for number in (1, 2, 3):
                w.data[number].delete([record.block])
            with pytest.raises(Unavailable):
                await w.read(record)
            w.meta.down = False
            assert await w.read(record) == b"1234"

    run(scenario())


def test_what_reads_reveal_while_the_metadata_server_is_away_is_repaired_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each such read had a line in the log instead, and the replica stayed as it was until another read."""

    async def scenario() -> None:
        async with world() as w:
            corrupt, missing = w.commit(b"1234"), w.commit(b"5678")
            w.meta.down = True
            await w.mediator.health.run_once(w.mediator.health.metaserver)
            w.data[2].damage(corrupt.block)
            w.data[2].delete([missing.block])
            for _ in range(10):
                assert (await w.read(corrupt), await w.read(missing)) == (b"1234", b"5678")
            await w.settle()
            assert "repair of block" not in caplog.text
            w.meta.down = False
            await w.look()
            for record in (corrupt, missing):
                assert w.data[2].digest(record.block, 0, 0) == record.digest

    run(scenario())


def test_what_reads_reveal_before_the_metadata_server_is_known_to_be_away_is_repaired_later() -> None:
    async def scenario() -> None:
        async with world() as w:
            corrupt, missing = w.commit(b"1234"), w.commit(b"5678")
            w.meta.down = True
            w.data[2].damage(corrupt.block)
            w.data[2].delete([missing.block])
            assert (await w.read(corrupt), await w.read(missing)) == (b"1234", b"5678")
            await w.settle()
            await w.mediator.health.run_once(w.mediator.health.metaserver)
            w.meta.down = False
            await w.look()
            for record in (corrupt, missing):
                assert w.data[2].digest(record.block, 0, 0) == record.digest

    run(scenario())


@pytest.mark.parametrize("noticed", [True, False])
def test_what_only_votes_on_parts_see_is_repaired_when_the_metadata_server_is_back(noticed: bool) -> None:
    """Recorded digests that are wrong: a vote on the whole block computes them anew, and is good."""

    async def scenario() -> None:
        async with world() as w:
            data = bytes(3 * PIECE_BYTES)
            record = w.commit(data)
            w.meta.down = True
            if noticed:
                await w.mediator.health.run_once(w.mediator.health.metaserver)
            w.data[2].lie(record.block)
            lie = w.data[2].held[record.block]
            w.data[2].held[record.block] = lie[0], data, lie[2]
            assert await w.read(record, 0, 1) == data[:PIECE_BYTES]
            await w.settle()
            await w.mediator.health.run_once(w.mediator.health.metaserver)
            w.meta.down = False
            await w.look()
            assert w.data[2].held[record.block] == (record, data, piece_digests(data))

    run(scenario())


def test_a_block_that_becomes_garbage_during_its_repair_is_not_left_behind() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].delete([record.block])
            w.data[2].delay_seconds = w.data[3].delay_seconds = 0.05
            repair = asyncio.ensure_future(w.mediator.repairs.repair(record.block))
            await asyncio.sleep(0.02)
            w.meta.supersede(record.block)
            w.meta.forget([record.block])
            await repair
            assert record.block not in w.data[1].held

    run(scenario())


def test_a_byte_server_that_fails_late_is_replaced() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for server in w.data.values():
                server.fail_next["get"] = [DeadlineExceeded("late"), Unavailable("broke")]
            w.data[4].fail_next.clear()
            for _ in range(3):
                assert await w.read(record) == b"1234"

    run(scenario())


def test_repairs_of_one_block_are_done_once_at_a_time() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].damage(record.block)
            await asyncio.gather(*(w.read(record) for _ in range(20)))
            await w.settle()
            assert w.data[1].calls.count("repair") == 1
            counts = w.mediator.repairs.status()
            assert (counts["done"], counts["quarantined"], counts["in_flight"]) == (1, 1, 0)

    run(scenario())


def test_reads_are_measured_and_silence_counts_as_the_deadline() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            w.data[1].paused = True
            for _ in range(10):
                await w.read(record)
            await asyncio.sleep(VOTE_SECONDS)
            await w.settle()
            first, second, *_ = w.mediator.health.servers
            assert first.reads["small"].median == VOTE_SECONDS
            assert second.reads["small"].median is not None and second.reads["small"].median < VOTE_SECONDS
            assert second.reads["large"].median is None
            w.data[1].paused = False

    run(scenario())


def test_bytes_come_from_servers_in_turn() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            for _ in range(5 * STAY):
                await w.read(record)
            sent = [server.calls.count("get") for server in w.data.values()]
            assert sum(sent) == 5 * STAY and min(sent) >= STAY // 2, sent


def test_bytes_read_at_once_come_from_several_servers() -> None:
    async def scenario() -> None:
        async with world() as w:
            record = w.commit()
            await asyncio.gather(*(w.read(record) for _ in range(10)))
            sent = [server.calls.count("get") for server in w.data.values()]
            assert sum(sent) == 10 and max(sent) <= 3, sent
            await w.settle()
            assert not any(server.open_calls for server in w.mediator.health.servers)

    run(scenario())


def test_the_only_small_block_comes_with_open_after_a_vote_of_all_and_nothing_else_does() -> None:
    async def scenario() -> None:
        async with world(read=3) as w:
            record = w.commit(b"small")
            extent = MappedExtent(0, 5, record.block, 0, 5, record.digest)
            whole = FileMap(1, 5, [extent], True)
            read_small = w.mediator.read_path.read_small
            part = await read_small(whole)
            assert part is not None and part.data == b"small"
            await w.settle()
            assert w.mediator.read_path.votes == 1
            assert await read_small(FileMap(1, 5, [], True)) is None
            assert await read_small(whole._replace(extents=[extent, extent._replace(offset=5)])) is None
            assert await read_small(whole._replace(complete=False)) is None
            large = extent._replace(block_length=SMALL_BLOCK_BYTES + 1)
            assert await read_small(whole._replace(extents=[large])) is None
            assert w.mediator.read_path.votes == 1
            for number in (1, 2, 3):
                w.fault(record, "C", number)
            assert await read_small(whole) is None

    run(scenario())
