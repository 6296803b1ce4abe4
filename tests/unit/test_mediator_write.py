"""Writing by quorum over in-memory servers: refused, failed, carried out, re-sent."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mediator.service import Service
from tests.unit.mediator_fakes import VOTE_SECONDS, World, commit_of, run, world
from wire.digest import block_digest
from wire.errors import (
    DeadlineExceeded,
    DigestMismatch,
    InternalError,
    InvalidArgument,
    Unavailable,
    WriteFailed,
    WriteRefused,
)
from wire.messages import Birth, Identity, Ticket

TICKET = Ticket(1, 0, 1)
BIRTH = Birth(1, b"a", 0o644, 0, 0)
DATA = b"new bytes"


async def put(w: World, data: bytes = DATA, durable: bool = False) -> bytes:
    record = w.new_record(data)
    w.meta.uncommitted.add(record.block)
    await w.mediator.write_path.put_block(record.block, record.digest, data, durable)
    return record.block


def holders_of(w: World, block: bytes) -> list[int]:
    return [number for number, server in w.data.items() if block in server.held]


def test_a_put_reaches_all_servers() -> None:
    async def scenario() -> None:
        async with world() as w:
            assert holders_of(w, await put(w)) == [1, 2, 3, 4, 5]

    run(scenario())


def test_writes_are_refused_beforehand_without_a_quorum() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[2].down = w.data[4].down = True
            await w.mediator.health.first_look()
            records = [w.new_record(DATA)]
            attempts: list[Any] = [
                w.mediator.write_path.check_writable(),
                put(w),
                w.mediator.write_path.write_file(TICKET, 7, commit_of(records), [DATA]),
            ]
            for attempt in attempts:
                with pytest.raises(WriteRefused) as caught:
                    await attempt
                assert "3 of 5 data servers are up, Qw=5 are needed" in caught.value.message
                assert "2 (127.0.0.1:8002: connection refused)" in caught.value.message
                assert "quorumfs up" in caught.value.message
                assert caught.value.detail == {"down": [2, 4], "needed": 5}
            assert not w.meta.commits
            assert not any("put" in server.calls for server in w.data.values())

    run(scenario())


def test_a_server_that_is_back_ends_the_refusals_at_once() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[2].down = True
            with pytest.raises(WriteFailed):
                await put(w)
            with pytest.raises(WriteRefused):
                await put(w)
            w.data[2].down = False
            await put(w)

    run(scenario())


def test_a_quorum_lost_on_the_way_says_who_answered_what() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[3].fail_next["put"] = [InternalError("the disk fails")]
            with pytest.raises(WriteFailed) as caught:
                await put(w)
            assert caught.value.detail["answers"]["3"] == "the disk fails"
            assert "not server 3: the disk fails" in caught.value.message

    run(scenario())


def test_a_paused_server_fails_a_full_quorum_at_the_deadline() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[3].paused = True
            begun = time.monotonic()
            with pytest.raises(WriteFailed):
                await put(w)
            assert VOTE_SECONDS * 0.9 < time.monotonic() - begun < VOTE_SECONDS * 2
            w.data[3].paused = False

    run(scenario())


def test_a_smaller_quorum_does_not_wait_and_the_rest_is_made_up_for() -> None:
    async def scenario() -> None:
        async with world(5, 3, 3) as w:
            w.data[3].paused = True
            w.data[4].fail_next["put"] = [InternalError("fails for a moment")]
            begun = time.monotonic()
            record = w.new_record(DATA)
            await w.mediator.write_path.write_file(TICKET, 7, commit_of([record]), [DATA])
            assert time.monotonic() - begun < VOTE_SECONDS / 2
            w.data[3].paused = False
            await w.settle()
            assert holders_of(w, record.block) == [1, 2, 3, 4, 5]

    run(scenario())


def test_a_server_that_was_left_out_takes_the_place_of_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was down when the put began, or so many puts behind that the quorum could do without it."""
    monkeypatch.setattr("mediator.write_path.MOST_BEHIND", 1)

    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            w.data[3].down = True
            await w.mediator.health.first_look()
            w.data[2].down, w.data[3].down = True, False  # and nobody has noticed yet
            assert holders_of(w, await put(w)) == [1, 3]
            w.data[2].down = False
            await w.look()
            w.data[3].delay_seconds = VOTE_SECONDS / 2
            await put(w)
            w.data[2].fail_next["put"] = [InternalError("its disk fails")] * 2
            block = await put(w)
            assert holders_of(w, block) == [1, 3]

    run(scenario())


def test_bytes_that_arrive_broken_are_sent_once_more() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[1].fail_next["put"] = [DigestMismatch("broken on the way")]
            w.data[2].fail_next["put"] = [Unavailable("a stale connection")]
            assert holders_of(w, await put(w)) == [1, 2, 3, 4, 5]
            w.data[1].fail_next["put"] = [DigestMismatch("broken")] * 2
            with pytest.raises(WriteFailed):
                await put(w)

    run(scenario())


def test_bytes_that_do_not_match_their_digest_go_nowhere() -> None:
    async def scenario() -> None:
        async with world() as w:
            with pytest.raises(DigestMismatch):
                await w.mediator.write_path.put_block(bytes(16), block_digest(b"other"), DATA, False)
            assert not any("put" in server.calls for server in w.data.values())

    run(scenario())


def test_write_file_puts_then_commits() -> None:
    async def scenario() -> None:
        async with world() as w:
            before, now = w.new_record(b"put before"), w.new_record(DATA)
            commit = commit_of([before, now], durable=True)
            await w.mediator.write_path.write_file(TICKET, 7, commit, [DATA])
            assert w.meta.commits == [(7, commit)]
            assert holders_of(w, now.block) == [1, 2, 3, 4, 5]
            assert holders_of(w, before.block) == []

    run(scenario())


def test_a_client_that_may_tell_commits_what_all_servers_have() -> None:
    async def scenario() -> None:
        async with world() as w:
            commit = commit_of([w.new_record(DATA)])
            assert await w.mediator.write_path.write_file(TICKET, 7, commit, [DATA], BIRTH, True) is None
            assert holders_of(w, commit.blocks[0].block) == [1, 2, 3, 4, 5] and not w.meta.commits

    run(scenario())


@pytest.mark.parametrize("lack", ["down", "slow", "fails"])
def test_what_a_server_may_lack_is_committed_though_the_client_may_tell(lack: str) -> None:
    async def scenario() -> None:
        async with world(read=2, write=4) as w:
            if lack == "down":
                w.data[5].down = True
                await w.mediator.health.first_look()
            elif lack == "slow":
                w.data[5].delay_seconds = VOTE_SECONDS / 2
            else:
                w.data[5].fail_next["put"] = [InternalError("the disk fails")] * 2
            commit = commit_of([w.new_record(DATA)])
            assert await w.mediator.write_path.write_file(TICKET, 7, commit, [DATA], BIRTH, True) is not None
            assert w.meta.commits == [(7, commit)]

    run(scenario())


def test_nothing_is_committed_when_a_put_fails() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[5].fail_next["put"] = [InternalError("the disk fails")]
            records = [w.new_record(b"one"), w.new_record(b"two")]
            with pytest.raises(WriteFailed):
                await w.mediator.write_path.write_file(TICKET, 7, commit_of(records), [b"one", b"two"])
            assert not w.meta.commits

    run(scenario())


@pytest.mark.parametrize("data", [[DATA], []], ids=["with a block", "only cut"])
def test_a_commit_re_sent_after_its_answer_was_lost_gets_that_answer(data: list[bytes]) -> None:
    """It was carried out: that a server went down since must not turn it into a refusal."""

    async def scenario() -> None:
        async with world() as w:
            commit = commit_of([w.new_record(each) for each in data])
            await w.mediator.write_path.write_file(TICKET, 7, commit, data)
            w.data[1].down = True
            await w.mediator.health.first_look()
            await w.mediator.write_path.write_file(TICKET, 7, commit, data)
            assert w.meta.commits == [(7, commit)] * 2  # the metadata server tells it is the same ticket
            with pytest.raises(WriteRefused):
                await w.mediator.write_path.write_file(TICKET._replace(sequence=99), 7, commit, data)

    run(scenario())


def test_a_create_re_sent_after_its_answer_was_lost_gets_that_answer() -> None:
    async def scenario() -> None:
        async with world() as w:
            service = Service(w.mediator, Identity("mediator", "test", 0, 1))
            parameters = (1, b"a", 0o100644, 0, 0, 0, b"", False)
            made = await service.create(TICKET, *parameters)
            w.data[1].down = True
            await w.mediator.health.first_look()
            assert await service.create(TICKET, *parameters) == made
            with pytest.raises(WriteRefused):
                await service.create(TICKET._replace(sequence=99), *parameters)
            w.meta.down = True
            with pytest.raises(Unavailable):  # nobody knows: to call it refused could be wrong
                await service.create(TICKET, *parameters)

    run(scenario())


@pytest.mark.parametrize("mode", [-1, 0o100644 | 2**40, 2**63 - 1])
def test_what_is_no_mode_is_left_to_the_metadata_server(mode: int) -> None:
    async def scenario() -> None:
        async with world() as w:
            service = Service(w.mediator, Identity("mediator", "test", 0, 1))
            w.meta.fail_next["create"] = [InvalidArgument()]
            with pytest.raises(InvalidArgument):
                await service.create(TICKET, 1, b"a", mode, 0, 0, 0, b"", False)

    run(scenario())


def test_sync_fills_what_a_server_that_came_back_lacks() -> None:
    async def scenario() -> None:
        async with world() as w:
            records = [w.commit(b"1"), w.commit(b"2"), w.commit(b"3")]
            w.data[1].delete([records[0].block])
            w.data[2].delete([records[1].block])
            await w.mediator.write_path.sync_blocks([record.block for record in records])
            assert all(server.is_good(record) for server in w.data.values() for record in records)

    run(scenario())


def test_sync_fills_blocks_that_are_not_committed_yet() -> None:
    """A server was restarted while a file was written, and another one is when it is synced."""

    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            w.data[3].down = True
            await w.look()
            blocks = [await put(w, bytes([number])) for number in range(20)]
            w.data[3].down = False
            await w.look()
            w.data[1].down = True
            await w.look()
            await w.mediator.write_path.sync_blocks(blocks)
            assert all(holders_of(w, block) == [1, 2, 3] for block in blocks)
            for block in (blocks[1], blocks[2]):
                w.data[3].delete([block])
            w.data[2].damage(blocks[2])
            await w.mediator.write_path.sync_blocks(blocks[:2])
            with pytest.raises(WriteFailed):
                await w.mediator.write_path.sync_blocks(blocks)
            assert holders_of(w, blocks[2]) == [1, 2], "wrong bytes are not spread"
            w.meta.uncommitted.remove(blocks[1])
            w.data[3].delete([blocks[1]])
            with pytest.raises(WriteFailed):
                await w.mediator.write_path.sync_blocks(blocks[:2])
            assert holders_of(w, blocks[1]) == [1, 2], "what is garbage by now is not brought back"

    run(scenario())


def test_sync_needs_a_write_quorum_for_each_block_not_the_same_one_for_all() -> None:
    """Servers that were restarted one after the other during a write lack different blocks of it."""

    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            blocks = []
            for number in w.data:
                w.data[number].fail_next["put"] = [InternalError("it stops")]
                blocks.append(await put(w))
                await w.settle()
                assert number not in holders_of(w, blocks[-1])
            await w.mediator.write_path.sync_blocks(blocks)
            assert not any(server.calls.count("repair") for server in w.data.values())
            w.data[1].down = True
            w.data[2].fail_next["repair"] = [InternalError("its disk fails")] * 20
            await w.look()
            with pytest.raises(WriteFailed) as caught:
                await w.mediator.write_path.sync_blocks(blocks)
            assert caught.value.detail["answers"]["2"] == "lacks some of the blocks"

    run(scenario())


def test_sync_needs_a_write_quorum_that_holds_all_blocks() -> None:
    async def scenario() -> None:
        async with world(5, 2, 4) as w:
            blocks = [await put(w), await put(w)]
            await w.settle()
            await w.mediator.write_path.sync_blocks(blocks)
            w.data[1].held.clear()
            w.data[1].fail_next["repair"] = [InternalError("its disk fails")] * 20
            w.data[2].fail_next["sync"] = [Unavailable("a stale connection")]
            await w.mediator.write_path.sync_blocks(blocks)
            w.data[2].fail_next["sync"] = [DeadlineExceeded("a slow disk")] * 2
            with pytest.raises(WriteFailed) as caught:
                await w.mediator.write_path.sync_blocks(blocks)
            answers = caught.value.detail["answers"]
            assert (answers["1"], answers["2"]) == ("lacks some of the blocks", "a slow disk")

    run(scenario())
