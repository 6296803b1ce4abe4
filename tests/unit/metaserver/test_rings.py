"""What a mount has changed without a call: carried out before anything is answered, and once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import metaserver.rings
from metaserver.directory import Directory
from metaserver.grants import QUIET_SECONDS, Grants
from metaserver.store import Store
from tests.unit.metaserver.harness import DIRECTORY, FILE, Harness
from tests.unit.metaserver.told import SECONDS, Told, go_on
from wire.errors import InternalError, NoSpace, StaleFile
from wire.messages import ROOT_INODE, AttributeChanges
from wire.ring import RING_BYTES, SLOTS, Change
from wire.ring_file import RingFile
from wire.ring_head import CHANGES, Head, pack_head, prefix

LOOKS: dict[str, Callable[[Harness], object]] = {
    "resolve": lambda meta: meta.service.resolve(ROOT_INODE, [b"a"]),
    "list": lambda meta: meta.service.read_directory(ROOT_INODE, b"", 10),
    "sync": lambda meta: meta.wait(meta.service.sync_metadata()),
    "renewal": lambda meta: meta.service.renew_alone(meta.session),
    "create": lambda meta: meta.create(ROOT_INODE, b"a"),
    "rename": lambda meta: meta.rename(ROOT_INODE, b"c", ROOT_INODE, b"a"),
    "commit": lambda meta: meta.commit(meta.service.resolve(ROOT_INODE, [b"c"])[0].ino),
    "status": lambda meta: meta.service.status(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_nothing_is_answered_before_it_is_carried_out(
    meta: Harness, look: Callable[[Harness], object]
) -> None:
    file, _ = meta.create(ROOT_INODE, b"a"), meta.create(ROOT_INODE, b"c")
    told = Told(meta)
    told.remove(file, b"a")
    look(meta)
    assert told.head.taken == 1
    row = meta.store.execute("SELECT 1 FROM entries WHERE ino = ?", (file.ino,)).fetchone()
    assert row is None
    told.close()


def test_its_directory_has_the_time_that_the_mount_told_its_program(meta: Harness) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    told.remove(file, b"a")
    root = meta.service.getattr(ROOT_INODE)
    assert (root.mtime_ns, root.ctime_ns) == (77_000, 77_000)
    told.close()


def test_contents_go_as_with_a_call_and_links_and_open_files_stay(meta: Harness) -> None:
    written, linked, opened = (meta.create(ROOT_INODE, name) for name in (b"w", b"l", b"o"))
    record = meta.write(written.ino, 0, 1000)
    meta.service.link(meta.ticket(), linked.ino, ROOT_INODE, b"m")
    meta.service.tell_open(meta.session, [opened.ino])
    told = Told(meta)
    for file, name in ((written, b"w"), (linked, b"l"), (opened, b"o")):
        told.remove(file, name)
    assert meta.names(ROOT_INODE) == [b"m"]
    assert meta.service.getattr(linked.ino).nlink == 1
    assert meta.service.getattr(opened.ino).nlink == 0
    with pytest.raises(StaleFile):
        meta.service.getattr(written.ino)
    meta.wait(meta.service.reaper.run_once())
    assert meta.store.execute("SELECT 1 FROM garbage WHERE block = ?", (record.block,)).fetchone()
    meta.close_files(meta.session, [opened.ino])
    told.close()


def test_a_ring_may_be_full_and_its_slots_are_used_again(meta: Harness) -> None:
    directory = meta.create(ROOT_INODE, b"d", DIRECTORY)
    files = [meta.create(directory.ino, b"%d" % number) for number in range(SLOTS + 40)]
    told = Told(meta)
    for number, file in enumerate(files):
        told.remove(file, b"%d" % number, directory.ino)
        if number == SLOTS - 1:
            assert len(meta.names(directory.ino)) == 40
    assert meta.names(directory.ino) == []
    assert told.head.taken == SLOTS + 40
    told.close()


def test_each_is_carried_out_once_over_restarts(meta: Harness) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    told.remove(file, b"a")
    assert told.head.taken == 0
    go_on(meta)
    assert meta.names(ROOT_INODE) == []
    assert told.head.taken == 1
    meta.reclaim(meta.session, [])
    again = meta.create(ROOT_INODE, b"a")
    go_on(meta)
    assert meta.look_up(b"a") is not None
    told.remove(again, b"a")  # its grant may go on, and nobody else can have begun
    assert meta.look_up(b"a") is None
    assert told.head.taken == 2
    told.close()


def test_a_kill_between_the_database_and_the_head_of_the_ring_does_no_harm(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    told.remove(file, b"a")

    def killed(ring: object, head: Head) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(RingFile, "write", killed)
        assert meta.look_up(b"a") is None
    assert told.head.taken == 0
    go_on(meta)
    meta.reclaim(meta.session, [])
    assert told.head.taken == 1
    again = meta.create(ROOT_INODE, b"a")
    assert meta.look_up(b"a") == again
    told.close()


def test_it_is_carried_out_before_others_may_come_and_what_is_late_never_is(meta: Harness) -> None:
    early, late = meta.create(ROOT_INODE, b"a"), meta.create(ROOT_INODE, b"b")
    told = Told(meta)
    told.remove(early, b"a")
    meta.seconds += SECONDS
    other = meta.open_session()
    assert told.head.term == 0 and told.head.taken == 1
    told.remove(late, b"b")
    assert meta.names(ROOT_INODE) == [b"b"]
    meta.service.close_session(other)
    meta.service.tell_open(meta.session, [], meta.sessions.asks_opens(meta.session))
    meta.seconds += QUIET_SECONDS
    term = meta.service.renew_alone(meta.session).ring_term
    assert term not in (0, told.term)
    assert meta.names(ROOT_INODE) == [b"b"]
    told.close()


def test_a_session_that_ends_has_all_of_it_carried_out_and_its_ring_removed(meta: Harness) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    told.remove(file, b"a")
    meta.service.close_session(meta.session)
    assert not told.path.exists() and told.head.term == 0
    assert meta.names(ROOT_INODE) == []
    assert not meta.store.execute("SELECT * FROM rings").fetchall()
    meta.session = meta.open_session()
    told.close()


def test_a_name_that_is_another_inodes_stays(meta: Harness, caplog: pytest.LogCaptureFixture) -> None:
    file, directory = meta.create(ROOT_INODE, b"a"), meta.create(ROOT_INODE, b"d", DIRECTORY)
    told = Told(meta)
    told.remove(file, b"a", ino=file.ino + 1)
    told.remove(directory, b"d")
    told.remove(file, b"no such name")
    assert meta.names(ROOT_INODE) == [b"a", b"d"]
    assert caplog.text.count("cannot be carried out") == 3 and told.head.taken == 3
    told.close()


def test_another_start_of_the_machine_ends_it(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    told.remove(file, b"a")
    boot = meta.path.parent / "boot_id"
    boot.write_text("1" * 36)
    monkeypatch.setattr(metaserver.rings, "BOOT_FILE", boot)
    go_on(meta)
    assert meta.look_up(b"a") is not None and not told.path.exists() and told.head.term == 0
    told.close()


def test_an_older_database_has_nothing_of_it_carried_out(meta: Harness) -> None:
    files = [meta.create(ROOT_INODE, name) for name in (b"a", b"b")]
    told = Told(meta)
    meta.store.empty_log()
    before = meta.path.read_bytes()
    told.remove(files[0], b"a")
    assert meta.look_up(b"a") is None
    told.remove(files[1], b"b")
    meta.service.rings._ring = None
    meta.restart(before)
    assert meta.names(ROOT_INODE) == [b"a", b"b"] and told.head.term == 0
    told.close()


def test_rings_of_sessions_that_are_gone_and_what_is_none_are_removed(meta: Harness) -> None:
    told = Told(meta)
    memory, begin = told.path.parent, prefix(meta.path.parent, CHANGES)
    for name, content in (("99", told.path.read_bytes()), ("x", b"x"), ("1", b"")):
        (memory / f"{begin}{name}").write_bytes(content)
    (memory / f"{begin}{meta.session + 1}").write_bytes(
        pack_head(told.head._replace(session=meta.session + 1)).ljust(RING_BYTES, b"\0")
    )
    go_on(meta)
    assert [path.name for path in memory.iterdir()] == [told.path.name]
    told.close()


def test_a_copy_of_the_directory_has_no_part_in_it(meta: Harness, tmp_path: Path) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    meta.store.empty_log()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "meta.sqlite").write_bytes(meta.path.read_bytes())
    (copy / "meta.sqlite-sums").write_bytes(meta.path.with_name("meta.sqlite-sums").read_bytes())
    told.remove(file, b"a")
    other = Harness(copy)
    assert other.look_up(b"a") is not None and told.path.exists()
    other.close()
    assert meta.look_up(b"a") is None
    told.close()


def test_a_database_begun_in_its_place_leaves_it_to_the_old_one(tmp_path: Path, meta: Harness) -> None:
    """As on a blank disk, whose directory has the number of the old one: all that ext4 makes begin with 2."""
    place, aside = tmp_path / "meta", tmp_path / "aside"

    def begun() -> Harness:
        with closing(Directory(place, "test")) as claimed:
            claimed.describe()
        return Harness(place)

    def swapped() -> None:
        """Have what is in the directory and what is aside change places; the directory stays."""
        here, there = list(place.iterdir()), list(aside.iterdir())
        moved = tmp_path / "moved"
        moved.mkdir(exist_ok=True)
        for entry in here:
            entry.rename(moved / entry.name)
        for entry in there:
            entry.rename(place / entry.name)
        for entry in moved.iterdir():
            entry.rename(aside / entry.name)

    def killed(harness: Harness) -> None:
        harness.service.rings._ring = None
        harness.stop()

    aside.mkdir()
    old = begun()
    file = old.create(ROOT_INODE, b"a")
    told = Told(old)
    told.remove(file, b"a")
    killed(old)
    swapped()
    new = begun()
    new.create(ROOT_INODE, b"b")
    assert told.path.exists()
    killed(new)
    swapped()
    old.start()
    assert old.look_up(b"a") is None
    old.close()
    told.close()


def test_another_users_file_in_its_place_is_not_used(
    meta: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Path(os.fsdecode(meta.service.rings.place(meta.session)))
    place.write_bytes(b"")
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    meta.service._grants = Grants(meta.sessions, SECONDS, 0.0, clock=lambda: meta.seconds)
    meta.seconds += QUIET_SECONDS
    assert meta.service.renew_alone(meta.session).ring_term == 0
    assert "another user's" in caplog.text


def test_while_it_cannot_be_carried_out_nothing_is_answered_and_nothing_granted(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = meta.create(ROOT_INODE, b"a")
    told = Told(meta)
    told.remove(file, b"a")

    def refuse(*_: object) -> None:
        raise InternalError("the disk failed")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_change", refuse)
        with pytest.raises(InternalError):
            meta.service.getattr(ROOT_INODE)
        renewal = meta.service.renew_alone(meta.session)
        assert (renewal.alone_ms, renewal.ring_term) == (0, 0)
    assert meta.names(ROOT_INODE) == []
    told.close()


def test_a_ring_that_cannot_be_read_has_nothing_answered(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(meta)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail)
        with pytest.raises(InternalError, match="cannot be read"):
            meta.service.getattr(ROOT_INODE)
    meta.service.getattr(ROOT_INODE)
    told.close()


def test_without_room_for_a_ring_each_change_takes_a_call(
    meta: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    meta.service._grants = Grants(meta.sessions, SECONDS, 0.0, clock=lambda: meta.seconds)
    meta.seconds += QUIET_SECONDS
    renewal = meta.service.renew_alone(meta.session)
    assert renewal.alone_ms and not renewal.ring_term
    assert "each change takes a call" in caplog.text


def test_the_server_looks_by_itself_while_names_are_removed(meta: Harness) -> None:
    files = [meta.create(ROOT_INODE, b"%d" % number) for number in range(3)]
    told = Told(meta)

    async def remove() -> None:
        meta.service.unlink(meta.ticket(), ROOT_INODE, b"0")
        for number in (1, 2):
            told.remove(files[number], b"%d" % number)
            while told.head.taken < number:  # noqa: ASYNC110  another process would look so too
                await asyncio.sleep(0.001)

    meta.wait(asyncio.wait_for(remove(), 20))
    meta.service.rings.close()
    told.close()


def test_a_file_of_any_attributes_may_go(meta: Harness) -> None:
    file = meta.create(ROOT_INODE, b"a", FILE | 0o7000)
    told = Told(meta)
    meta.service.setattr(meta.ticket(), file.ino, AttributeChanges(uid=7))
    told.remove(file, b"a")
    assert meta.look_up(b"a") is None
    told.close()


def test_a_disk_with_room_for_one_at_a_time_is_enough(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [meta.create(ROOT_INODE, b"%d" % number) for number in range(5)]
    told = Told(meta)
    for number, file in enumerate(files):
        told.remove(file, b"%d" % number)
    carry_out = meta.service.rings._carry_out

    def in_little_room(session: int, number: int, changes: list[Change]) -> None:
        if len(changes) > 1:
            raise NoSpace("the disk is full")
        carry_out(session, number, changes)

    monkeypatch.setattr(meta.service.rings, "_carry_out", in_little_room)
    assert meta.names(ROOT_INODE) == [] and told.head.taken == 5
    told.close()


def test_on_a_full_disk_removals_take_calls(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(meta)
    monkeypatch.setattr(meta.service._room, "refusal", lambda: "the disk is full")
    renewal = meta.service.renew_alone(meta.session)
    assert renewal.alone_ms and not renewal.ring_term
    told.close()


def test_a_database_that_cannot_be_read_has_no_ring_and_says_so_once(
    meta: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(session: int) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(meta.service.rings, "_find_taken", fail)
    meta.service._grants = Grants(meta.sessions, SECONDS, 0.0, clock=lambda: meta.seconds)
    meta.seconds += QUIET_SECONDS
    for _ in range(3):
        renewal = meta.service.renew_alone(meta.session)
        assert renewal.alone_ms and not renewal.ring_term
    assert caplog.text.count("each change takes a call") == 1
