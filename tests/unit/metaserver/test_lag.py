"""Who lacks which block: noted with a commit, gone with the block, fewest replicas first."""

from __future__ import annotations

import random

import pytest

from metaserver.lag import REACHED_SECONDS
from tests.support import take_seed
from tests.unit.metaserver.harness import Harness
from wire.errors import InvalidArgument
from wire.messages import AttributeChanges, BlockRecord, Commit, Extent, Lag, LagCount


def commit(meta: Harness, ino: int, record: BlockRecord, *lacking: int) -> None:
    new = Commit(
        0, [Extent(0, record.length, record.block, 0)], record.length, [record], AttributeChanges(), False
    )
    meta.wait(meta.service.commit(meta.ticket(), ino, new, [Lag(record.block, list(lacking))]))


def test_a_commit_tells_who_lags_and_only_then_there_are_rows(meta: Harness) -> None:
    first, second = meta.create(1, b"a").ino, meta.create(1, b"b").ino
    held = meta.write(first, 0, 10)
    assert meta.service.lag_counts() == []
    one, two = meta.new_block(100), meta.new_block(200)
    commit(meta, first, one, 4)
    commit(meta, second, two, 4, 5)
    assert meta.service.lag_counts() == [LagCount(4, 2, 300), LagCount(5, 1, 200)]
    assert meta.service.lagging(4, 10) == [two, one], "what fewer servers have comes first"
    assert meta.service.lagging(4, 1) == [two]
    assert meta.service.lacking_servers([one.block, two.block, bytes(16)]) == [1, 2, 0]
    assert meta.service.lagging(1, 10) == []
    meta.service.clear_lag(4, [two.block, held.block])
    assert meta.service.lagging(4, 10) == [one]
    meta.restart()
    assert meta.service.lag_counts() == [LagCount(4, 1, 100), LagCount(5, 1, 200)]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_what_cannot_be_filled_is_passed(meta: Harness, limit: int) -> None:
    records = [meta.new_block(100) for _ in range(9)]
    for number, record in enumerate(records):
        commit(meta, meta.create(1, b"%d" % number).ino, record, 1, *([2, 3, 4][: number % 3]))
    listed = meta.service.lagging(1, 100)
    seen: list[BlockRecord] = []
    while page := meta.service.lagging(1, limit, seen[-1].block if seen else b""):
        seen += page
    assert seen == listed
    assert meta.service.lagging(1, 100) == listed, "they come again"
    meta.service.clear_lag(1, [listed[3].block])
    assert meta.service.lagging(1, 100, listed[2].block) == listed[4:]
    meta.wait(meta.service.note_lag([Lag(listed[-1].block, [2, 3, 4, 5])]))
    assert meta.service.lagging(1, 100, listed[2].block) == listed[4:-1], "it was passed by then"
    for record in (listed[0], listed[-1]):
        for number in range(1, 6):
            meta.service.clear_lag(number, [record.block])
        assert meta.service.lagging(1, 100, record.block) == []


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_what_lags_comes_page_by_page_in_order_of_danger(meta: Harness, limit: int) -> None:
    seed = take_seed()
    chance = random.Random(seed)
    lacking = {}
    for number in range(60):
        record = meta.new_block(100)
        lacking[record.block] = {1, *chance.sample(range(2, 5), chance.randrange(4))}
        commit(meta, meta.create(1, b"%d" % number).ino, record, *lacking[record.block])
    left = set(lacking)
    while left:
        page = [record.block for record in meta.service.lagging(1, limit)]
        assert page == sorted(left, key=lambda block: (-len(lacking[block]), block))[:limit]
        filled = chance.sample(page, chance.randrange(1, len(page) + 1))  # the others come again
        meta.service.clear_lag(1, filled)
        left.difference_update(filled)


def test_blocks_that_come_to_lack_on_more_servers_come_first_after_a_minute(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(meta.service._lag, "_clock", lambda: now)
    records = [meta.new_block(100) for _ in range(4)]
    for number, record in enumerate(records):
        commit(meta, meta.create(1, b"%d" % number).ino, record, 1, *([2] if number == 2 else []))
    assert meta.service.lagging(1, 1) == [records[2]]
    meta.wait(meta.service.note_lag([Lag(records[0].block, [2])]))
    now += REACHED_SECONDS
    assert meta.service.lagging(1, 9) == [records[0], records[2], records[1], records[3]]


def test_a_block_that_comes_to_lag_behind_those_listed_before_is_listed_too(meta: Harness) -> None:
    first, second = (meta.new_block(100) for _ in range(2))
    commit(meta, meta.create(1, b"a").ino, first)
    commit(meta, meta.create(1, b"b").ino, second, 1)
    assert meta.service.lagging(1, 9) == [second]
    meta.service.clear_lag(1, [second.block])
    meta.wait(meta.service.note_lag([Lag(first.block, [1])]))
    assert first.block < second.block
    assert meta.service.lagging(1, 9) == [first]


def test_a_superseded_block_lags_no_more(meta: Harness) -> None:
    ino = meta.create(1, b"a").ino
    commit(meta, ino, meta.new_block(100), 3)
    commit(meta, ino, meta.new_block(100))
    assert meta.service.lag_counts() == []
    assert meta.service.counts()["lagging_replicas"] == 0


def test_a_commit_that_is_sent_again_does_not_bring_back_what_was_cleared(meta: Harness) -> None:
    ino, record, ticket = meta.create(1, b"a").ino, meta.new_block(100), meta.ticket()
    new = Commit(0, [Extent(0, 100, record.block, 0)], 100, [record], AttributeChanges(), False)
    for _ in range(2):
        meta.wait(meta.service.commit(ticket, ino, new, [Lag(record.block, [2])]))
        meta.service.clear_lag(2, [record.block])
    assert meta.service.lag_counts() == []
    repeated = meta.ticket()
    meta.wait(meta.service.commit(repeated, ino, new, [Lag(record.block, [1, 2, 3])]))
    assert meta.service.lag_counts() == [], "the record of a block that was known may be repeated"


def test_blocks_at_risk_are_those_that_too_many_lack(meta: Harness) -> None:
    assert [meta.service.blocks_at_risk(spared) for spared in (0, 2)] == [0, 0]
    inodes = [meta.create(1, b"%d" % number).ino for number in range(4)]
    blocks = [meta.new_block(100) for _ in inodes]
    for ino, block, lacking in zip(inodes, blocks, [(4,), (4, 5), (3, 4, 5), (1, 2, 3, 4, 5)], strict=True):
        commit(meta, ino, block, *lacking)
    assert [meta.service.blocks_at_risk(spared) for spared in range(6)] == [4, 3, 2, 1, 1, 0]
    meta.service.clear_lag(3, [blocks[2].block])
    assert meta.service.blocks_at_risk(2) == 1
    meta.restart()
    assert meta.service.blocks_at_risk(2) == 1
    commit(meta, inodes[3], meta.new_block(100))
    assert meta.service.blocks_at_risk(2) == 0, "a superseded block is at risk no more"
    with pytest.raises(InvalidArgument):
        meta.service.blocks_at_risk(-1)


def test_only_committed_blocks_lag(meta: Harness) -> None:
    record = meta.new_block(100)
    meta.wait(meta.service.note_lag([Lag(record.block, [1])]))
    assert meta.service.counts()["lagging_replicas"] == 0
    ino = meta.create(1, b"a").ino
    written = meta.write(ino, 0, 50)
    for _ in range(2):
        meta.wait(meta.service.note_lag([Lag(written.block, [1])]))
    assert meta.service.lag_counts() == [LagCount(1, 1, 50)]
    with pytest.raises(InvalidArgument):
        meta.wait(meta.service.note_lag([Lag(written.block, [0])]))


def test_lag_is_remembered_only_when_a_power_loss_cannot_forget_it(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mediator forgets it then: a commit that survived a power loss, and its lag that did not, stood
    for a replica that nobody missed."""
    written = meta.write(meta.create(1, b"a").ino, 0, 50)
    seen = []

    async def noted() -> None:
        seen.append(meta.service.lag_counts())

    monkeypatch.setattr(meta.log, "sync", noted)
    meta.wait(meta.service.note_lag([Lag(written.block, [1])]))
    assert seen == [[LagCount(1, 1, 50)]]


def test_the_newest_blocks_are_complete_until_a_restart_and_once_somebody_vouches(meta: Harness) -> None:
    record = meta.write(meta.create(1, b"a").ino, 0, 50)
    assert meta.service.recent_blocks() == (True, [record.block])
    meta.restart()
    assert meta.service.recent_blocks() == (False, [])
    meta.service.vouch_recent()
    assert meta.service.recent_blocks() == (True, [])
