"""The rules of POSIX for names, as a client of the service sees them."""

from __future__ import annotations

import os
import stat

import pytest

from metaserver import rules, store
from tests.unit.metaserver.harness import DIRECTORY, FILE, LINK, Harness
from wire.errors import (
    AlreadyExists,
    AttributeTooLong,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    StaleFile,
    TooManyLinks,
)
from wire.messages import AttributeChanges, Birth, Commit

NOREPLACE, EXCHANGE = 1, 2


def test_the_root(meta: Harness) -> None:
    root = meta.service.getattr(1)
    assert (root.mode, root.nlink, root.uid, root.gid) == (DIRECTORY, 2, os.geteuid(), os.getegid())


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_create(meta: Harness, kind: int) -> None:
    made = meta.create(1, b"x", kind | 0o640, uid=5, gid=6, rdev=259)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    assert made[1:9] == (kind | 0o640, 1, 5, 6, 259 if device else 0, 0, 0, made.ctime_ns)
    assert meta.look_up(b"x") == made
    root = meta.service.getattr(1)
    assert root.mtime_ns == root.ctime_ns == made.mtime_ns


@pytest.mark.parametrize("mode", [-1, FILE | 2**16, FILE | 2**40, -(2**63), 2**63 - 1])
def test_what_is_no_mode_is_refused(meta: Harness, mode: int) -> None:
    with pytest.raises(InvalidArgument):
        meta.create(1, b"x", mode)
    ino = meta.service.reserve_inodes(meta.session, 1)
    empty = Commit(None, [], 0, [], AttributeChanges(), durable=False)
    with pytest.raises(InvalidArgument):
        meta.service.commit(meta.ticket(), ino, empty, None, Birth(1, b"x", mode, 0, 0))
    assert meta.names(1) == []


def test_directories_count_their_subdirectories(meta: Harness) -> None:
    one = meta.create(1, b"one", DIRECTORY)
    meta.create(one.ino, b"two", DIRECTORY)
    meta.create(one.ino, b"file")
    assert meta.service.getattr(1).nlink == 3
    assert meta.service.getattr(one.ino).nlink == 3
    meta.service.rmdir(meta.ticket(), one.ino, b"two")
    assert meta.service.getattr(one.ino).nlink == 2


def test_symbolic_links(meta: Harness) -> None:
    link = meta.create(1, b"link", LINK, target=b"a/\xff")
    assert link.size == 3
    assert meta.service.read_link(link.ino) == b"a/\xff"
    with pytest.raises(InvalidArgument):
        meta.service.read_link(1)
    with pytest.raises(NotADirectory):
        meta.service.resolve(1, [b"link", b"x"])
    for target, error in ((b"", NotFound), (b"x" * 4096, NameTooLong), (b"a\0b", InvalidArgument)):
        with pytest.raises(error):
            meta.create(1, b"other", LINK, target=target)
    assert meta.create(1, b"long", LINK, target=b"x" * 4095).size == 4095


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"", InvalidArgument),
        (b".", InvalidArgument),
        (b"..", InvalidArgument),
        (b"a/b", InvalidArgument),
        (b"a\0b", InvalidArgument),
        (b"x" * 256, NameTooLong),
    ],
)
def test_names_that_cannot_be(meta: Harness, name: bytes, error: type[Exception]) -> None:
    there = meta.create(1, b"there")
    for attempt in (
        lambda: meta.create(1, name),
        lambda: meta.service.link(meta.ticket(), there.ino, 1, name),
        lambda: meta.rename(1, b"there", 1, name),
        lambda: meta.rename(1, name, 1, b"new"),
        lambda: meta.unlink(1, name),
    ):
        with pytest.raises(error):
            attempt()
    assert meta.names(1) == [b"there"]


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        (0o644, {}),
        (0o170000, {}),
        (FILE | 2**40, {}),
        (FILE, {"uid": -1}),
        (FILE, {"gid": 2**32 - 1}),
        (FILE, {"target": b"x"}),
        (stat.S_IFCHR, {"rdev": 2**64}),
    ],
)
def test_inodes_that_cannot_be(meta: Harness, mode: int, values: dict) -> None:
    with pytest.raises(InvalidArgument):
        meta.create(1, b"x", mode, **values)


def test_numbers_beyond_64_bits_are_refused_and_do_no_harm(meta: Harness) -> None:
    with pytest.raises(InvalidArgument):
        meta.service.getattr(2**64)
    with pytest.raises(InvalidArgument):
        meta.create(2**64, b"x")
    with pytest.raises(InvalidArgument):
        meta.service.setattr(meta.ticket(), 1, AttributeChanges(atime_ns=2**64))
    assert meta.create(1, b"x").nlink == 1


def test_parents_that_cannot_be(meta: Harness) -> None:
    file = meta.create(1, b"file")
    with pytest.raises(NotADirectory):
        meta.create(file.ino, b"x")
    with pytest.raises(NotADirectory):
        meta.service.read_directory(file.ino, b"", 1)
    with pytest.raises(StaleFile):
        meta.create(12345, b"x")
    with pytest.raises(AlreadyExists):
        meta.create(1, b"file")


def test_a_removed_directory_that_is_open_refuses_new_entries(meta: Harness) -> None:
    directory = meta.create(1, b"dir", DIRECTORY, open_it=True)
    file = meta.create(1, b"file")
    meta.service.rmdir(meta.ticket(), 1, b"dir")
    for attempt in (
        lambda: meta.create(directory.ino, b"x"),
        lambda: meta.service.link(meta.ticket(), file.ino, directory.ino, b"x"),
        lambda: meta.rename(1, b"file", directory.ino, b"x"),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert meta.service.getattr(directory.ino).nlink == 0
    assert meta.names(directory.ino) == []
    meta.close_files(meta.session, [directory.ino])
    with pytest.raises(StaleFile):
        meta.service.getattr(directory.ino)


def test_set_group_id_directories_pass_on_group_and_bit(meta: Harness) -> None:
    shared = meta.create(1, b"shared", DIRECTORY | stat.S_ISGID, gid=77)
    assert meta.create(shared.ino, b"file", gid=5)[1:5] == (FILE, 1, 0, 77)
    assert meta.create(shared.ino, b"dir", DIRECTORY, gid=5)[1:5] == (DIRECTORY | stat.S_ISGID, 2, 0, 77)


def test_links(meta: Harness) -> None:
    file = meta.create(1, b"a")
    directory = meta.create(1, b"dir", DIRECTORY)
    linked = meta.service.link(meta.ticket(), file.ino, directory.ino, b"b")
    assert linked.nlink == 2
    assert linked.ctime_ns > file.ctime_ns
    assert sorted(meta.service.paths_of(file.ino, 10)) == [b"/a", b"/dir/b"]
    with pytest.raises(NotPermitted):
        meta.service.link(meta.ticket(), directory.ino, 1, b"c")
    with pytest.raises(AlreadyExists):
        meta.service.link(meta.ticket(), file.ino, directory.ino, b"b")
    meta.unlink(1, b"a")
    assert meta.service.getattr(file.ino).nlink == 1
    meta.unlink(directory.ino, b"b")
    with pytest.raises(StaleFile):
        meta.service.getattr(file.ino)


def test_a_file_without_a_name_gets_none_again(meta: Harness) -> None:
    file = meta.create(1, b"a", open_it=True)
    meta.unlink(1, b"a")
    with pytest.raises(NotFound):
        meta.service.link(meta.ticket(), file.ino, 1, b"b")


def test_too_many_links(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "LINKS_MAX", 2)
    file = meta.create(1, b"a")
    meta.service.link(meta.ticket(), file.ino, 1, b"b")
    with pytest.raises(TooManyLinks):
        meta.service.link(meta.ticket(), file.ino, 1, b"c")


def test_unlink_and_rmdir_refuse_the_other_kind(meta: Harness) -> None:
    directory = meta.create(1, b"dir", DIRECTORY)
    meta.create(directory.ino, b"file")
    with pytest.raises(IsADirectory):
        meta.unlink(1, b"dir")
    with pytest.raises(NotADirectory):
        meta.service.rmdir(meta.ticket(), directory.ino, b"file")
    with pytest.raises(NotEmpty):
        meta.service.rmdir(meta.ticket(), 1, b"dir")
    with pytest.raises(NotFound):
        meta.unlink(1, b"nothing")


def test_inode_numbers_are_never_given_again(meta: Harness) -> None:
    first = meta.create(1, b"a").ino
    meta.unlink(1, b"a")
    second = meta.create(1, b"a").ino
    with pytest.raises(AlreadyExists):
        meta.create(1, b"a")
    meta.unlink(1, b"a")
    meta.restart()
    assert first < second < meta.create(1, b"a").ino


def test_a_call_that_fails_first_after_a_start_costs_no_number_twice(meta: Harness) -> None:
    numbers = [meta.create(1, b"a").ino]
    for name in (b"b", b"c"):
        meta.restart()
        with pytest.raises(AlreadyExists):
            meta.create(1, b"a")
        numbers.append(meta.create(1, name).ino)
    assert len(set(numbers)) == 3


def test_calls_that_fail_use_up_no_numbers(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reserve none that lasts: whoever waits for a name to go would get past what is reserved."""
    monkeypatch.setattr(store, "INODES_RESERVED", 16)
    meta.restart()
    given = [meta.create(1, b"a").ino]
    for _ in range(100):
        with pytest.raises(AlreadyExists):
            meta.create(1, b"a")
    given += [meta.create(1, b"b").ino]
    meta.restart()
    given += [meta.create(1, b"%d" % number).ino for number in range(200)]
    assert len(set(given)) == len(given)


def test_rename_moves_and_counts(meta: Harness) -> None:
    one, two = meta.create(1, b"one", DIRECTORY), meta.create(1, b"two", DIRECTORY)
    inner = meta.create(one.ino, b"inner", DIRECTORY)
    meta.rename(one.ino, b"inner", two.ino, b"new")
    assert (meta.service.getattr(one.ino).nlink, meta.service.getattr(two.ino).nlink) == (2, 3)
    moved = meta.look_up(b"two", b"new")
    assert moved is not None
    assert moved.ino == inner.ino
    assert moved.ctime_ns > inner.ctime_ns
    assert meta.service.paths_of(inner.ino, 1) == [b"/two/new"]


def test_rename_replaces_like_by_like(meta: Harness) -> None:
    file, other = meta.create(1, b"file"), meta.create(1, b"other")
    directory, full = meta.create(1, b"dir", DIRECTORY), meta.create(1, b"full", DIRECTORY)
    meta.create(full.ino, b"x")
    with pytest.raises(IsADirectory):
        meta.rename(1, b"file", 1, b"dir")
    with pytest.raises(NotADirectory):
        meta.rename(1, b"dir", 1, b"file")
    with pytest.raises(NotEmpty):
        meta.rename(1, b"dir", 1, b"full")
    meta.rename(1, b"full", 1, b"dir")
    meta.rename(1, b"file", 1, b"other")
    assert meta.names(1) == [b"dir", b"other"]
    for gone in (directory, other):
        with pytest.raises(StaleFile):
            meta.service.getattr(gone.ino)
    assert meta.look_up(b"other").ino == file.ino  # type: ignore[union-attr]


def test_rename_flags(meta: Harness) -> None:
    file = meta.create(1, b"file")
    directory = meta.create(1, b"dir", DIRECTORY)
    below = meta.create(directory.ino, b"below", DIRECTORY)
    with pytest.raises(AlreadyExists):
        meta.rename(1, b"file", 1, b"dir", NOREPLACE)
    for flags in (3, 4, -1):
        with pytest.raises(InvalidArgument):
            meta.rename(1, b"file", 1, b"new", flags)
    with pytest.raises(NotFound):
        meta.rename(1, b"file", 1, b"new", EXCHANGE)
    meta.rename(1, b"file", directory.ino, b"below", EXCHANGE)
    assert meta.service.paths_of(file.ino, 1) == [b"/dir/below"]
    assert meta.service.paths_of(below.ino, 1) == [b"/file"]
    assert (meta.service.getattr(1).nlink, meta.service.getattr(directory.ino).nlink) == (4, 2)
    meta.rename(1, b"file", 1, b"new", NOREPLACE)
    assert meta.names(1) == [b"dir", b"new"]


def test_rename_onto_another_name_of_the_same_file_does_nothing(meta: Harness) -> None:
    file = meta.create(1, b"a")
    meta.service.link(meta.ticket(), file.ino, 1, b"b")
    before = meta.service.getattr(file.ino)
    for flags in (0, EXCHANGE):
        meta.rename(1, b"a", 1, b"b", flags)
        meta.rename(1, b"a", 1, b"a", flags)
    with pytest.raises(AlreadyExists):
        meta.rename(1, b"a", 1, b"b", NOREPLACE)
    assert meta.names(1) == [b"a", b"b"]
    assert meta.service.getattr(file.ino) == before


def test_a_directory_never_gets_into_its_own_subtree(meta: Harness) -> None:
    top = meta.create(1, b"top", DIRECTORY)
    middle = meta.create(top.ino, b"middle", DIRECTORY)
    meta.create(middle.ino, b"file")
    for new_parent, new_name in ((top.ino, b"x"), (middle.ino, b"x"), (middle.ino, b"file")):
        with pytest.raises(InvalidArgument):
            meta.rename(1, b"top", new_parent, new_name)
    with pytest.raises(AlreadyExists):  # what the flags forbid comes first, as on Linux
        meta.rename(1, b"top", top.ino, b"middle", NOREPLACE)
    with pytest.raises(InvalidArgument):
        meta.rename(middle.ino, b"file", 1, b"top", EXCHANGE)
    for parent, name in ((top.ino, b"middle"), (middle.ino, b"file")):
        with pytest.raises(NotEmpty):
            meta.rename(parent, name, 1, b"top")


def test_setattr(meta: Harness) -> None:
    file = meta.create(1, b"a", FILE | 0o111)
    changes = AttributeChanges(mode=0o4755, uid=1, gid=2, atime_ns=-3, mtime_ns=4)
    new = meta.service.setattr(meta.ticket(), file.ino, changes)
    assert (new.mode, new.uid, new.gid, new.atime_ns, new.mtime_ns) == (stat.S_IFREG | 0o4755, 1, 2, -3, 4)
    assert new.ctime_ns > file.ctime_ns
    assert new.version == file.version
    assert meta.service.getattr(file.ino) == new


@pytest.mark.parametrize(
    ("mode", "after"),
    [
        (stat.S_IFREG | 0o6755, stat.S_IFREG | 0o755),
        (stat.S_IFREG | 0o6745, stat.S_IFREG | 0o2745),
        (stat.S_IFDIR | 0o6755, stat.S_IFDIR | 0o6755),
        (stat.S_IFIFO | 0o6755, stat.S_IFIFO | 0o755),
    ],
)
def test_a_new_owner_does_not_inherit_set_id_bits(meta: Harness, mode: int, after: int) -> None:
    made = meta.create(1, b"a", mode)
    assert meta.service.setattr(meta.ticket(), made.ino, AttributeChanges(uid=7)).mode == after
    both = AttributeChanges(mode=0o6755, gid=7)
    assert meta.service.setattr(meta.ticket(), made.ino, both).mode == stat.S_IFMT(mode) | 0o6755


def test_directories_are_read_in_pages(meta: Harness) -> None:
    names = [*sorted(b"%03d" % number for number in range(25)), b"\xff"]
    for name in reversed(names):
        meta.create(1, name)
    read, complete, after = [], False, b""
    while not complete:
        page = meta.service.read_directory(1, after, 7)
        read += [entry.name for entry in page.entries]
        assert all(meta.look_up(entry.name) == entry.attributes for entry in page.entries)
        complete, after = page.complete, page.entries[-1].name
    assert read == names
    with pytest.raises(InvalidArgument):
        meta.service.read_directory(1, b"", 0)


def test_a_directory_knows_the_one_that_it_is_in(meta: Harness) -> None:
    above = meta.create(1, b"above", DIRECTORY)
    inner = meta.create(above.ino, b"inner", DIRECTORY)
    assert meta.service.parent(inner.ino).ino == above.ino
    assert meta.service.parent(above.ino).ino == meta.service.parent(1).ino == 1
    meta.rename(above.ino, b"inner", 1, b"inner")
    assert meta.service.parent(inner.ino).ino == 1
    with pytest.raises(NotADirectory):
        meta.service.parent(meta.create(1, b"file").ino)
    meta.service.rmdir(meta.ticket(), 1, b"inner")
    with pytest.raises(StaleFile):
        meta.service.parent(inner.ino)


def test_resolve_tells_each_step(meta: Harness) -> None:
    directory = meta.create(1, b"dir", DIRECTORY)
    file = meta.create(directory.ino, b"file")
    assert [step.ino for step in meta.service.resolve(1, [b"dir", b"file"])] == [directory.ino, file.ino]
    assert [step.ino for step in meta.service.resolve(1, [b"dir", b"no", b"x"])] == [directory.ino]
    assert meta.service.resolve(1, []) == []
    assert meta.service.resolve(1, [b".."]) == []
    with pytest.raises(NameTooLong):
        meta.service.resolve(1, [b"x" * 256])
    for names in ([], [b"x"]):
        with pytest.raises(StaleFile):
            meta.service.resolve(999, names)
    with pytest.raises(NotADirectory):
        meta.service.resolve(file.ino, [b"x"])


def test_extended_attributes(meta: Harness) -> None:
    file = meta.create(1, b"a")

    def put(name: bytes, value: bytes, flags: int = 0) -> None:
        meta.service.set_xattr(meta.ticket(), file.ino, name, value, flags)

    put(b"user.b", b"1")
    put(b"user.a", b"")
    assert meta.service.list_xattrs(file.ino) == [b"user.a", b"user.b"]
    assert meta.service.get_xattr(file.ino, b"user.a") == b""
    with pytest.raises(AlreadyExists):
        put(b"user.a", b"2", rules.XATTR_CREATE)
    with pytest.raises(NoAttribute):
        put(b"user.c", b"2", rules.XATTR_REPLACE)
    with pytest.raises(AttributeTooLong):
        put(b"user.c", b"x" * 65537)
    with pytest.raises(AttributeTooLong):
        put(b"x" * 256, b"")
    for name, flags in ((b"", 0), (b"a\0", 0), (b"user.c", 3)):
        with pytest.raises(InvalidArgument):
            put(name, b"", flags)
    put(b"user.a", b"x" * 65536, rules.XATTR_REPLACE)
    assert meta.service.getattr(file.ino).ctime_ns > file.ctime_ns
    meta.service.remove_xattr(meta.ticket(), file.ino, b"user.b")
    with pytest.raises(NoAttribute):
        meta.service.remove_xattr(meta.ticket(), file.ino, b"user.b")
    with pytest.raises(NoAttribute):
        meta.service.get_xattr(file.ino, b"user.b")
    meta.unlink(1, b"a")
    with pytest.raises(StaleFile):
        meta.service.list_xattrs(file.ino)


def test_extended_attributes_stay_listable(meta: Harness) -> None:
    file = meta.create(1, b"a")
    with pytest.raises(NoSpace):
        for number in range(1000):
            meta.service.set_xattr(meta.ticket(), file.ino, b"user." + b"%0245d" % number, b"", 0)
    assert 64_000 < sum(len(name) + 1 for name in meta.service.list_xattrs(file.ino)) <= 65_536


def test_too_many_extended_attributes_are_no_full_disk(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "XATTR_LIST_BYTES", 9)
    file = meta.create(1, b"a")
    meta.store.reserve.keep(4096)
    with pytest.raises(NoSpace, match="too many"):
        meta.service.set_xattr(meta.ticket(), file.ino, b"user.long", b"", 0)
    assert meta.store.reserve.release(), "the room that is kept for a full disk was given up"


def test_paths_of(meta: Harness) -> None:
    directory = meta.create(1, b"d", DIRECTORY)
    meta.create(directory.ino, b"e", DIRECTORY)
    assert meta.service.paths_of(1, 5) == [b"/"]
    assert meta.service.paths_of(directory.ino + 1, 5) == [b"/d/e"]
    assert meta.service.paths_of(99, 5) == []


def test_no_inode_number_is_given_again_even_if_a_power_loss_undid_its_reservation(meta: Harness) -> None:
    """A mount that still has such an inode open would write into somebody else's file."""
    meta.restart()
    meta.store.end_reading()
    meta.store.execute("PRAGMA wal_checkpoint").fetchall()  # what is durable before anything is served
    before = meta.path.read_bytes()
    given = {meta.create(1, b"%d" % number).ino for number in range(1500)}
    session = meta.session
    meta.restart(before)
    assert session == meta.session
    assert meta.create(1, b"new").ino not in given


def test_a_listing_tells_who_has_security_attributes(meta: Harness) -> None:
    plain, user, secured = (meta.create(1, name).ino for name in (b"a", b"b", b"c"))
    assert meta.service.read_directory(1, b"", 10).secured == []
    meta.service.set_xattr(meta.ticket(), user, b"user.x", b"1", 0)
    meta.service.set_xattr(meta.ticket(), user, b"trusted.x", b"1", 0)
    meta.service.set_xattr(meta.ticket(), secured, b"security.selinux", b"1", 0)
    assert meta.service.read_directory(1, b"", 10).secured == [secured]
    assert meta.service.read_directory(1, b"c", 10).secured == []
    assert plain
