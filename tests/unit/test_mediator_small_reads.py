"""Reading several small files at once, over in-memory servers: the votes, what is repaired, who is asked."""

from __future__ import annotations

import random

import pytest

from mediator.vote import Prediction, predict_read
from tests.support import take_seed
from tests.unit.mediator_fakes import World, run, world
from wire.errors import QuorumfsError, Unavailable
from wire.messages import BlockRecord, Opened, SmallReplicas


def bytes_of(files: list[Opened | None]) -> list[bytes | None]:
    return [None if file is None or file.part is None else file.part.data for file in files]


def commit_files(w: World, count: int) -> tuple[list[BlockRecord], list[bytes]]:
    """Commit small files, of one piece and of several; the inode of each is its index."""
    data = [b"file %d" % number * (200 * number + 1) for number in range(count)]
    return [w.commit(each) for each in data], data


def test_each_block_has_the_votes_of_all_by_one_call_to_each_server() -> None:
    async def scenario() -> None:
        async with world() as w:
            _, data = commit_files(w, 40)
            for server in (*w.data.values(), w.meta):
                server.calls.clear()
            files = await w.mediator.small_reads.read([*range(40), 99])
            assert bytes_of(files) == [*data, None]
            assert files[40] is None
            await w.settle()
            assert all(server.calls == ["read_small"] for server in w.data.values())
            assert w.meta.calls == ["small_files"]
            assert w.mediator.votes == 40

    run(scenario())


def test_the_bytes_come_from_all_servers() -> None:
    async def scenario() -> None:
        async with world() as w:
            commit_files(w, 40)
            shares: dict[int, int] = {}
            for number, server in w.data.items():

                def counted(
                    sent: list[bytes],
                    voted: list[bytes],
                    number: int = number,
                    honest: object = server.read_small,
                ) -> SmallReplicas:
                    shares[number] = len(sent)
                    assert len(sent) + len(voted) == 40
                    return honest(sent, voted)  # type: ignore[operator]

                server.read_small = counted  # type: ignore[method-assign]
            await w.mediator.small_reads.read(list(range(40)))
            assert sum(shares.values()) == 40
            assert min(shares.values()) >= 4

    run(scenario())


@pytest.mark.parametrize("read", range(1, 6))
def test_random_faults_bring_right_bytes_or_none_and_are_repaired(read: int) -> None:
    seed = take_seed()
    rng = random.Random(seed)

    async def scenario() -> None:
        async with world(5, read, 5, seed) as w:
            records, data = commit_files(w, 30)
            down = rng.sample(range(1, 6), rng.choice([0, 0, 1, 2]))
            for number in down:
                w.data[number].down = True
            await w.mediator.health.recheck()
            patterns = []
            for record in records:
                letters = [rng.choice("GGGGGGCLM") if n not in down else "D" for n in range(1, 6)]
                for number, letter in enumerate(letters, 1):
                    w.fault(record, letter, number)
                patterns.append("".join(letters))
            files = bytes_of(await w.mediator.small_reads.read(list(range(30))))
            await w.settle()
            for record, right, found, pattern in zip(records, data, files, patterns, strict=True):
                assert found in (right, None), pattern
                if pattern.count("G") < read:
                    assert found is None, pattern
                losers = pattern.count("C") + pattern.count("L")
                predicted = predict_read(
                    w.mediator.quorum, crashed=len(down), corrupt=losers, missing=pattern.count("M")
                )
                if predicted is Prediction.RIGHT:
                    left = [w.data[number] for number in w.data if number not in down]
                    assert all(server.is_good(record) for server in left), pattern
                    assert await w.read(record) == right

    run(scenario())


def test_a_corrupt_copy_of_who_sends_the_bytes_leaves_the_file_to_a_read_of_it_alone() -> None:
    async def scenario() -> None:
        async with world() as w:
            records, data = commit_files(w, 20)
            for record in records:
                w.fault(record, "C", 1)
            files = bytes_of(await w.mediator.small_reads.read(list(range(20))))
            assert 1 <= files.count(None) <= 8  # the share of server 1
            assert all(found in (right, None) for found, right in zip(files, data, strict=True))
            await w.settle()
            assert all(w.data[1].is_good(record) for record in records)
            assert len(w.data[1].quarantine) == 20
            assert bytes_of(await w.mediator.small_reads.read(list(range(20)))) == data

    run(scenario())


def test_a_server_that_does_not_answer_holds_up_its_share_only_and_is_asked_for_no_bytes_then() -> None:
    async def scenario() -> None:
        async with world() as w:
            commit_files(w, 30)
            w.data[2].paused = True
            counts = [
                bytes_of(await w.mediator.small_reads.read(list(range(30)))).count(None) for _ in range(5)
            ]
            assert 1 <= counts[0] <= 12
            assert counts[-1] == 0
            w.data[2].paused = False
            await w.settle()

    run(scenario())


@pytest.mark.parametrize("error", [Unavailable("gone"), QuorumfsError("no such method")])
def test_a_server_that_fails_counts_as_down(error: QuorumfsError) -> None:
    async def scenario() -> None:
        async with world() as w:
            _, data = commit_files(w, 10)
            for number in (1, 2, 3):
                w.data[number].fail_next["read_small"] = [error]
            assert bytes_of(await w.mediator.small_reads.read(list(range(10)))) == [None] * 10
            await w.settle()
            await w.mediator.health.recheck()
            assert bytes_of(await w.mediator.small_reads.read(list(range(10)))) == data

    run(scenario())


def test_too_few_answers_are_no_votes() -> None:
    async def scenario() -> None:
        async with world(read=3) as w:
            commit_files(w, 10)
            for number in (1, 2, 3):
                w.data[number].read_small = lambda sent, voted: SmallReplicas([], [])  # type: ignore[method-assign]
            assert bytes_of(await w.mediator.small_reads.read(list(range(10)))) == [None] * 10

    run(scenario())
