"""New files that a mount has told of without a call: as by the call, once, and nothing of a wrong one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fusefs.new_files import attributes_of, new_file
from metaserver.room import CHANGE_BYTES, FILE_PART
from metaserver.told import NEW_FILES_AHEAD
from tests.unit.metaserver.harness import FILE, Harness
from tests.unit.metaserver.told import Told, go_on
from wire.errors import SequenceError, StaleFile
from wire.messages import ROOT_INODE, AttributeChanges, Birth, BlockRecord, Commit, Extent, Ticket
from wire.ring import NewFile


class Mount(Told):
    """A mount that is alone and makes files, each by a ticket of slot 1."""

    def __init__(self, meta: Harness) -> None:
        super().__init__(meta)
        self.meta = meta
        self._free = iter(range(first := meta.service.reserve_inodes(meta.session, 100), first + 100))
        self._sequence = 0

    def commit(self, name: bytes, length: int = 1000) -> tuple[Ticket, int, Commit, Birth]:
        """Return what the call would be."""
        self._sequence += 1
        record = self.meta.new_block(length)
        extents = [Extent(0, length, record.block, 0)] if length else []
        times = AttributeChanges(atime_ns=33_000, mtime_ns=55_000)
        commit = Commit(None, extents, length, [record] if length else [], times, durable=False)
        ticket = Ticket(self.meta.session, 1, self._sequence)
        return ticket, next(self._free), commit, Birth(ROOT_INODE, name, FILE | 0o640, 7, 8)

    def describe(self, name: bytes, length: int = 1000) -> NewFile:
        made = new_file(*self.commit(name, length), 66_000)
        assert made is not None
        return made

    def make(self, name: bytes, length: int = 1000) -> NewFile:
        made = self.describe(name, length)
        self.tell(made)
        return made


@pytest.fixture
def mount(meta: Harness) -> Iterator[Mount]:
    told = Mount(meta)
    yield told
    told.close()


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_it_is_there_as_its_program_was_told(meta: Harness, mount: Mount, length: int) -> None:
    told = mount.make(b"a", length)
    assert meta.look_up(b"a") == attributes_of(told)
    expected = [(0, length, told.block, 0)] if length else []
    assert meta.extents(told.ino) == expected
    root = meta.service.getattr(ROOT_INODE)
    assert (root.mtime_ns, root.ctime_ns) == (66_000, 66_000)
    if length:
        assert meta.service.witnesses([told.block]) == [BlockRecord(told.block, length, told.digest)]


def test_it_is_the_same_as_by_a_call(meta: Harness, mount: Mount) -> None:
    ticket, ino, commit, birth = mount.commit(b"called")
    called = meta.wait(meta.service.commit(ticket, ino, commit, None, birth))
    told = attributes_of(mount.make(b"told"))
    assert told._replace(ctime_ns=0, ino=0) == called._replace(ctime_ns=0, ino=0)


def test_its_block_is_among_the_newest_and_it_is_open(meta: Harness, mount: Mount) -> None:
    told, empty = mount.make(b"a"), mount.make(b"b", 0)
    assert told.block in meta.service.recent_blocks().blocks
    assert len(meta.service.recent_blocks().blocks) == 1
    for name in (b"a", b"b"):
        meta.unlink(ROOT_INODE, name)
    assert meta.service.getattr(told.ino).nlink == meta.service.getattr(empty.ino).nlink == 0
    meta.close_files(meta.session, [told.ino, empty.ino])


@pytest.mark.parametrize("length", [0, 1000])
def test_one_whose_name_goes_with_the_next_change_is_open_until_it_is_closed(
    meta: Harness, mount: Mount, length: int
) -> None:
    """As a program's temporary file: both are taken in at once."""
    told = mount.make(b"a", length)
    mount.remove(attributes_of(told), b"a")
    assert meta.names(ROOT_INODE) == []
    assert meta.service.getattr(told.ino).nlink == 0
    assert meta.extents(told.ino) == ([(0, length, told.block, 0)] if length else [])
    meta.close_files(meta.session, [told.ino])
    with pytest.raises(StaleFile):
        meta.service.getattr(told.ino)


@pytest.mark.parametrize("is_open", [True, False])
def test_one_whose_name_goes_before_a_restart_is_open_if_the_mount_says_so(
    meta: Harness, mount: Mount, is_open: bool
) -> None:
    told = mount.make(b"a")
    mount.remove(attributes_of(told), b"a")
    go_on(meta)
    meta.reclaim(meta.session, [told.ino] if is_open else [])
    assert meta.names(ROOT_INODE) == []
    if is_open:
        assert meta.service.getattr(told.ino).nlink == 0
        meta.close_files(meta.session, [told.ino])
    with pytest.raises(StaleFile):
        meta.service.getattr(told.ino)


def test_a_close_that_comes_behind_it_closes_it(meta: Harness, mount: Mount) -> None:
    told = mount.make(b"a")
    meta.close_files(meta.session, [told.ino])
    assert told.ino not in meta.sessions._leases[meta.session].inodes


def test_the_call_made_as_well_is_answered_and_not_carried_out_again(meta: Harness, mount: Mount) -> None:
    ticket, ino, commit, birth = mount.commit(b"a")
    told = new_file(ticket, ino, commit, birth, 66_000)
    assert told is not None
    mount.tell(told)
    meta.rename(ROOT_INODE, b"a", ROOT_INODE, b"moved")
    assert meta.wait(meta.service.commit(ticket, ino, commit, None, birth)) == attributes_of(told)
    assert meta.names(ROOT_INODE) == [b"moved"]
    mount.make(b"next")
    with pytest.raises(SequenceError):
        meta.service.commit(ticket, ino, commit, None, birth)
    assert meta.names(ROOT_INODE) == [b"moved", b"next"]


def test_told_of_after_the_call_it_is_not_made_again(meta: Harness, mount: Mount) -> None:
    ticket, ino, commit, birth = mount.commit(b"a")
    told = new_file(ticket, ino, commit, birth, 66_000)
    assert told is not None
    meta.wait(meta.service.commit(ticket, ino, commit, None, birth))
    meta.unlink(ROOT_INODE, b"a")
    mount.tell(told)
    assert meta.names(ROOT_INODE) == [] and mount.head.taken == 1


def test_one_that_was_made_empty_before_gets_its_contents(meta: Harness, mount: Mount) -> None:
    """The outcome of making it was unknown."""
    told = mount.describe(b"a")
    empty = Commit(None, [], 0, [], AttributeChanges(mtime_ns=44_000), durable=False)
    birth = Birth(ROOT_INODE, b"a", FILE | 0o640, 7, 8)
    meta.service.commit(meta.ticket(), told.ino, empty, None, birth)
    mount.tell(told)
    assert meta.look_up(b"a") == attributes_of(told)


def test_names_come_and_go_in_the_order_in_which_they_were_told(meta: Harness, mount: Mount) -> None:
    for _ in range(3):
        first = mount.make(b"a")
        mount.remove(attributes_of(first), b"a")
    second = mount.make(b"a", 5)
    assert meta.look_up(b"a") == attributes_of(second)


def test_all_come_over_a_restart_once(meta: Harness, mount: Mount) -> None:
    told = [mount.make(b"%d" % number) for number in range(5)]
    go_on(meta)
    assert [meta.look_up(b"%d" % number) for number in range(5)] == [attributes_of(file) for file in told]
    assert mount.head.taken == 5
    go_on(meta)
    assert len(meta.names(ROOT_INODE)) == 5
    meta.reclaim(meta.session, [])


@pytest.mark.parametrize("is_open", [True, False])
def test_over_a_restart_those_are_open_that_the_mount_says(
    meta: Harness, mount: Mount, is_open: bool
) -> None:
    told = mount.make(b"a")
    go_on(meta)
    if is_open:
        assert meta.look_up(b"a")
    meta.reclaim(meta.session, [told.ino] if is_open else [])
    meta.unlink(ROOT_INODE, b"a")
    if is_open:
        assert meta.service.getattr(told.ino).nlink == 0
        meta.close_files(meta.session, [told.ino])
    with pytest.raises(StaleFile):
        meta.service.getattr(told.ino)


def test_of_one_that_is_wrong_nothing_is_there_and_all_of_the_others(
    meta: Harness, mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    taken = meta.create(ROOT_INODE, b"taken")
    before = mount.make(b"before")
    wrong = [mount.make(b"taken"), mount.describe(b"lost")._replace(parent=999_999)]
    wrong += [mount.describe(b"foreign")._replace(block=bytes(16))]
    wrong += [mount.describe(b"twice")._replace(ino=before.ino)]
    for file in wrong[1:]:
        mount.tell(file)
    after = mount.make(b"after")
    assert meta.names(ROOT_INODE) == [b"after", b"before", b"taken"]
    assert meta.look_up(b"taken") == taken
    assert (meta.look_up(b"before"), meta.look_up(b"after")) == (attributes_of(before), attributes_of(after))
    assert meta.service.witnesses([file.block for file in wrong]) == [None] * 4
    assert caplog.text.count("cannot be carried out") == 4 and mount.head.taken == 6


def test_new_files_may_wait_while_there_is_room_for_them(
    meta: Harness, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = meta.service._room
    assert mount.head.room_until == 0, "this server keeps no reserve"
    monkeypatch.setattr(room, "_reserve_bytes", 10 * FILE_PART * CHANGE_BYTES)
    mount.make(b"a")
    assert meta.look_up(b"a") and mount.head.room_until == 11
    monkeypatch.setattr(room, "_reserve_bytes", 2**40)
    monkeypatch.setattr(room, "refusal", lambda: "")
    meta.service.renew_alone(meta.session)
    assert mount.head.room_until == 1 + NEW_FILES_AHEAD
    monkeypatch.setattr(room, "refusal", lambda: "the disk is full")
    mount.make(b"b")
    assert meta.look_up(b"b") and mount.head.room_until == 0
