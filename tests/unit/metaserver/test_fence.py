"""A database put back from a copy: nothing newer is deleted, and no number is given twice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from metaserver import fence, pages
from tests.unit.metaserver.harness import Harness
from wire.errors import Busy, SessionUnknown


def copied(meta: Harness) -> bytes:
    """Return the database as it is now, as bytes."""
    meta.stop()
    contents = meta.path.read_bytes()
    meta.start()
    return contents


def put_back(meta: Harness, copy: bytes, known: fence.Given = fence.NOTHING) -> fence.Fence:
    """Restart on a copy behind a fence."""
    meta.stop()
    meta.put_back(copy)
    with closing(pages.connect(meta.path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        made = fence.put_up(connection, meta.store.now_ns(), known)
    meta.start()
    return made


def test_what_is_newer_than_the_copy_is_not_collectable(meta: Harness) -> None:
    ended = meta.open_session()
    leftover = meta.new_block(session=ended)
    meta.service.close_session(ended)
    file = meta.create(1, b"a")
    superseded = meta.write(file.ino, 0, 100)
    kept = meta.write(file.ino, 0, 100)
    copy = copied(meta)
    newer_of_living = meta.write(file.ino, 0, 100)
    later = meta.open_session()
    newer = meta.new_block(session=later)
    asked = [each.block for each in (leftover, superseded, kept, newer_of_living, newer)]
    made = put_back(meta, copy)
    assert made.covers(later)
    assert made.covers(meta.session)
    assert not made.covers(ended)
    assert meta.wait(meta.service.collectable(asked)) == [leftover.block, superseded.block]
    assert meta.service.witnesses([kept.block]) == [kept]
    with meta.changing() as connection:
        assert fence.release(connection) == 3
    assert meta.wait(meta.service.collectable(asked)) == [
        each.block for each in (leftover, superseded, newer_of_living, newer)
    ]
    meta.session = meta.open_session()


def test_a_database_begun_in_the_place_of_a_lost_one_keeps_its_blocks(meta: Harness) -> None:
    file = meta.create(1, b"a")
    lost = [meta.write(file.ino, 0, 10).block, meta.new_block().block]
    meta.stop()
    meta.path.unlink()
    meta.start()
    sessions = [meta.open_session() for _ in range(3)]
    for session in sessions[1:]:
        meta.service.close_session(session)
    leftover = meta.new_block(session=sessions[1]).block
    assert meta.wait(meta.service.collectable([*lost, leftover])) == [leftover]
    assert meta.service.counts()["fenced"]
    with meta.changing() as connection:
        assert fence.release(connection) == 1
    assert meta.wait(meta.service.collectable([*lost, leftover])) == [*lost, leftover]


def test_numbers_go_on_above_all_that_were_given(meta: Harness) -> None:
    meta.now_ns = 1_800_000_000_000_000_000
    file = meta.create(1, b"a")
    meta.write(file.ino, 0, 10)
    copy = copied(meta)
    version = meta.service.getattr(file.ino).version
    given_inode = meta.create(1, b"b").ino
    meta.write(file.ino, 0, 20)
    given_session = meta.open_session()
    first = put_back(meta, copy)
    with pytest.raises(SessionUnknown):
        meta.create(1, b"c")
    meta.session = meta.open_session()
    assert meta.session == first.next_session > given_session
    assert meta.service.getattr(file.ino).version > version + 1
    inode = meta.create(1, b"c").ino
    assert inode > given_inode
    meta.now_ns += 10_000_000_000
    second = put_back(meta, copy)
    assert second.covers(meta.session), "the same copy once more gets other numbers"
    assert second.next_session > first.next_session
    meta.session = meta.open_session()
    assert meta.create(1, b"d").ino > inode


def test_numbers_go_on_above_those_that_are_known(meta: Harness) -> None:
    file = meta.create(1, b"a")
    copy = copied(meta)
    known = fence.Given(*(2**50 + number for number in range(5)))
    assert put_back(meta, copy, known).next_session == known.session + 1
    meta.session = meta.open_session()
    assert meta.service.getattr(file.ino).version == known.version + 1
    assert meta.create(1, b"b").ino > known.inode
    assert meta.store.epoch > known.epoch


def test_the_same_copy_once_more_gives_other_numbers_when_the_date_is_the_same(meta: Harness) -> None:
    file = meta.create(1, b"a")
    copy = copied(meta)
    date_ns, seen = meta.now_ns, []
    for _ in range(2):
        meta.now_ns = date_ns
        made = put_back(meta, copy)
        seen.append((made.next_session, meta.service.getattr(file.ino).version, meta.store.epoch))
    assert all(one != other for one, other in zip(*seen, strict=True))


def test_a_number_after() -> None:
    jump = fence.LEAST_JUMP
    assert fence.number_after(5, 0, jump, 0) == 5 + jump
    assert fence.number_after(5, 2**50, jump, 0) == 2**50 + 1
    assert fence.number_after(5, 2**63, jump, 0) == 5 + jump, "a number that was never given is damage"
    assert fence.number_after(5, 0, jump, 2**60) == 2**60 // 1000


def test_a_database_of_an_older_release_is_fenced_too(tmp_path: Path) -> None:
    meta = Harness(tmp_path)
    with meta.changing() as connection:
        connection.execute("DROP TABLE fences")
    meta.stop()
    with closing(pages.connect(meta.path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        made = fence.put_up(connection, 10**18)
    assert made.living == [meta.session]
    meta.start()
    meta.close()


def put_back_by_hand(meta: Harness, copy: bytes) -> None:
    """Restart on a copy that nobody fenced, before data servers were asked."""
    meta.stop()
    meta.put_back(copy)
    meta.start(compared=False)


def test_a_database_put_back_by_hand_is_found_out_by_its_milestone(meta: Harness) -> None:
    copied_at = meta.wait(meta.service.take_milestone())
    kept = meta.create(1, b"a")
    blocks = [meta.write(kept.ino, 0, 10).block]
    copy = copied(meta)
    ended = meta.open_session()
    newer = [meta.new_block(session=ended).block, meta.write(meta.create(1, b"b").ino, 0, 10).block]
    meta.service.close_session(ended)
    told = meta.wait(meta.service.take_milestone())
    assert told.database == copied_at.database
    assert told.number > copied_at.number
    known = fence.given(meta.store._connection)
    put_back_by_hand(meta, copy)
    meta.now_ns -= 500_000_000  # whatever the date is
    with pytest.raises(Busy):
        meta.wait(meta.service.take_milestone())
    assert meta.wait(meta.service.collectable([*blocks, *newer])) == [], "not before it was compared"
    found: list[int] = []
    meta.service.milestones.begin_anew = found.append
    assert not meta.service.compare_milestones([told._replace(number=copied_at.number)], enough=False)
    assert not meta.service.compare_milestones([told._replace(database="another")], enough=False)
    with pytest.raises(Busy):
        meta.service.compare_milestones([copied_at, told], enough=True)
    assert found == [told.number]
    meta.stop()
    meta.start(older_than=told.number)
    since_ns = meta.service.status()["found_older_ns"]
    assert since_ns
    meta.stop()
    meta.start()  # as where the disk failed before the first of these served
    assert meta.service.status()["found_older_ns"] == since_ns
    assert meta.service.compare_milestones([copied_at, told], enough=True) == since_ns
    with pytest.raises(SessionUnknown):
        meta.create(1, b"c")
    old_session, meta.session = meta.session, meta.open_session()
    assert meta.wait(meta.service.collectable([*blocks, *newer])) == []
    assert meta.session > max(known.session, old_session)
    assert meta.create(1, b"c").ino > known.inode
    assert meta.service.getattr(kept.ino).version > known.version
    assert meta.store.epoch > known.epoch
    assert meta.wait(meta.service.take_milestone()).number > told.number, "it is not older any more"
    with meta.changing() as connection:
        fence.release(connection)
    assert meta.wait(meta.service.collectable(newer)) == newer
    assert not meta.service.status()["found_older_ns"]


def test_it_is_said_once_however_often_it_is_compared(
    meta: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """All that a mediator does at its start waits for the comparison, and asks for one of its own."""
    told = meta.wait(meta.service.take_milestone())
    found: list[int] = []
    meta.service.milestones.begin_anew = found.append
    for further in (2, 1, 3):
        with pytest.raises(Busy):
            meta.service.compare_milestones([told._replace(number=told.number + further)], enough=True)
    assert [record.message for record in caplog.records if "an older one" in record.message] == [
        f"the metadata database is an older one: it is at milestone {told.number}, and data servers know of "
        f"{told.number + 2}; all sessions end, and nothing is deleted that it does not know"
    ]
    assert max(found) == told.number + 3


def test_a_milestone_that_no_database_gets_to_is_damage(meta: Harness) -> None:
    """No fence could go above it: the server would begin anew for ever."""
    told = meta.wait(meta.service.take_milestone())
    assert not meta.service.compare_milestones([told._replace(number=fence.NUMBER_LIMIT)], enough=True)
    meta.create(1, b"a")
    assert meta.wait(meta.service.take_milestone()).number == told.number + 1


def test_what_is_put_back_by_hand_gives_no_session_twice_though_nobody_finds_it_out(meta: Harness) -> None:
    copy = copied(meta)
    given = {meta.open_session() for _ in range(3)}
    newer = [meta.new_block(session=session).block for session in given]
    for session in given:
        meta.service.close_session(session)
    put_back_by_hand(meta, copy)
    meta.service.compare_milestones([], enough=True)
    assert not given & {meta.open_session() for _ in range(5)}
    assert meta.wait(meta.service.collectable(newer)) == []


def test_starts_without_a_session_need_no_fences_of_their_own(meta: Harness) -> None:
    def count() -> int:
        return int(meta.store.execute("SELECT count(*) FROM fences").fetchone()[0])

    meta.restart()
    before = count()
    for _ in range(3):
        meta.restart()
    assert count() == before


def test_the_milestone_grows_with_changes_only(meta: Harness) -> None:
    first = meta.wait(meta.service.take_milestone())
    assert meta.wait(meta.service.take_milestone()) == first
    meta.create(1, b"a")
    second = meta.wait(meta.service.take_milestone())
    assert second == first._replace(number=first.number + 1)
    meta.restart()
    assert meta.wait(meta.service.take_milestone()).number > second.number
