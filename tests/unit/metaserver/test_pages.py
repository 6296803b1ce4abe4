"""Damage in the pages of the database: every answer is right or an error, never different."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metaserver import offline, pages
from metaserver.check import check
from metaserver.page_check import PageCheck
from metaserver.pages import PAGE_BYTES
from metaserver.store import Store
from metaserver.sums import sums_file
from tests.unit.metaserver.harness import DIRECTORY, LINK, Harness
from wire.config import ConfigError
from wire.errors import InternalError
from wire.messages import Extent

Answers = dict[tuple[str, object], object]


def fill(meta: Harness) -> list[tuple[int, bytes]]:
    """Make directories, files with contents, links and attributes on some 60 pages; return all names."""
    names = []
    for number in range(6):
        directory = meta.create(1, b"directory %d" % number, DIRECTORY)
        names.append((1, b"directory %d" % number))
        for file in range(40):
            name = b"file %d " % file + b"x" * 60
            made = meta.create(directory.ino, name)
            record = meta.new_block(1000)
            meta.commit(made.ino, Extent(0, 1000, record.block, 0), blocks=[record])
            meta.service.set_xattr(meta.ticket(), made.ino, b"user.a", b"%d" % made.ino * 30, 0)
            names.append((directory.ino, name))
    meta.create(1, b"link", LINK, target=b"to" * 500)
    names.append((1, b"link"))
    return names


def walk(meta: Harness, names: list[tuple[int, bytes]]) -> Answers:
    """Ask for everything; return each answer, or None where it was an error."""
    answers: Answers = {}

    def ask(what: str, about: object, question: Callable[..., Any], *values: object) -> Any:
        try:
            answers[what, about] = question(*values)
        except InternalError:
            answers[what, about] = None
        return answers[what, about]

    service = meta.service
    for parent in {parent for parent, _ in names}:
        ask("names", parent, service.read_directory, parent, b"", 1000)
    for parent, name in names:
        found = ask("entry", (parent, name), service.resolve, parent, [name])
        if not found:
            continue
        ino = found[0].ino
        ask("attributes", ino, service.getattr, ino)
        ask("map", ino, service.file_map, ino, 0, 100)
        ask("xattrs", ino, lambda ino=ino: [(n, service.get_xattr(ino, n)) for n in service.list_xattrs(ino)])
        ask("paths", ino, service.paths_of, ino, 10)
    ask("blocks", None, service.blocks, b"", 1000)
    return answers


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[Path, bytes, list[tuple[int, bytes]], Answers]]:
    """A stopped server's database, its bytes, all names, and what it answers while all is well."""
    meta = Harness(tmp_path)
    names = fill(meta)
    right = walk(meta, names)
    meta.close()
    yield meta.path, meta.path.read_bytes(), names, right


def flip(page: bytearray, chance: random.Random) -> None:
    page[chance.randrange(PAGE_BYTES)] ^= 1 << chance.randrange(8)


def zero(page: bytearray, chance: random.Random) -> None:
    page[:] = bytes(PAGE_BYTES)


def tear(page: bytearray, chance: random.Random) -> None:
    page[512 * chance.randrange(1, 8) :] = b""
    page.extend(b"\xff" * (PAGE_BYTES - len(page)))


@pytest.mark.parametrize("spoil", [flip, zero, tear])
def test_a_damaged_page_is_an_error_and_never_another_answer(
    stored: tuple[Path, bytes, list[tuple[int, bytes]], Answers], spoil: Callable[..., None]
) -> None:
    path, whole, names, right = stored
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    served = refused = errors = 0
    sums = sums_file(path).read_bytes()
    for number in range(len(whole) // PAGE_BYTES):
        damaged = bytearray(whole)
        page = damaged[number * PAGE_BYTES :][:PAGE_BYTES]
        spoil(page, chance)
        damaged[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] = page
        path.write_bytes(damaged)
        sums_file(path).write_bytes(sums)
        try:
            meta = Harness(path.parent)
        except (ConfigError, InternalError):
            refused += 1
            continue
        served += 1
        found = walk(meta, names)
        meta.stop()
        for key, answer in found.items():
            assert answer is None or answer == right[key], f"page {number + 1}: {key}"
        errors += None in found.values()
    assert refused, "no damage was noticed at the start"
    print(f"{served} served, {errors} of them with errors, {refused} refused")


def test_an_older_version_of_a_page_is_an_error_and_never_another_answer(tmp_path: Path) -> None:
    """The disk acknowledged that the page was written, and dropped it."""
    meta = Harness(tmp_path)
    names = fill(meta)
    meta.stop()
    before = meta.path.read_bytes()
    meta.start()
    for parent, name in names[1:200:5]:
        found = meta.service.resolve(parent, [name])
        meta.service.set_xattr(meta.ticket(), found[0].ino, b"user.a", b"changed", 0)
        meta.create(parent, b"new " + name)
    right = walk(meta, names)
    meta.stop()
    whole, sums = meta.path.read_bytes(), sums_file(meta.path).read_bytes()
    noticed = 0
    for start in range(0, len(before), PAGE_BYTES):
        if before[start : start + PAGE_BYTES] == whole[start : start + PAGE_BYTES]:
            continue
        meta.path.write_bytes(
            whole[:start] + before[start : start + PAGE_BYTES] + whole[start + PAGE_BYTES :]
        )
        sums_file(meta.path).write_bytes(sums)
        try:
            meta.start()
        except (ConfigError, InternalError):
            noticed += 1
            continue
        answers = walk(meta, names)
        noticed += bool(meta.service.page_check.describe()["damaged"] or meta.wait(run_page_check(meta)))
        meta.stop()
        for key, answer in answers.items():
            assert answer is None or answer == right[key], f"page {start // PAGE_BYTES + 1}: {key}"
    changed = sum(
        before[start : start + PAGE_BYTES] != whole[start : start + PAGE_BYTES]
        for start in range(0, len(before), PAGE_BYTES)
    )
    assert noticed == changed > 3
    meta.path.write_bytes(whole)
    sums_file(meta.path).write_bytes(sums)
    meta.start()
    meta.stop()


async def run_page_check(meta: Harness) -> str:
    return await meta.service.page_check.run_once()


@pytest.mark.parametrize("sums_are", ["there", "gone", "damaged", "emptied"])
def test_a_crash_at_any_moment_is_not_taken_for_damage(tmp_path: Path, sums_are: str) -> None:
    """The log, and what of it is in the database already, are as a killed server leaves them."""
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    (tmp_path / "live").mkdir()
    meta = Harness(tmp_path / "live")
    names = fill(meta)
    for number in range(6):
        reader = pages.connect(meta.path, isolation_level=None)
        for step in range(chance.randrange(1, 40)):
            if step == 5:  # from here on the log cannot be moved into the database whole
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM inodes").fetchone()
            name = b"more %d %d" % (number, step)
            meta.create(1, name)
            names.append((1, name))
        kind = chance.choice(("PASSIVE", "PASSIVE", "TRUNCATE", ""))
        meta.store.end_reading()
        if kind == "TRUNCATE":
            meta.store.log_mark.retire(meta.store.execute)
        if kind:
            meta.store.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()
        right = walk(meta, names)
        crashed = tmp_path / f"crashed-{number}"
        crashed.mkdir()
        for file in meta.path.parent.glob("meta.sqlite*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, crashed)
        spoil_sums(sums_file(crashed / "meta.sqlite"), sums_are, chance)
        again = Harness(crashed)
        assert walk(again, names) == right
        assert not again.wait(run_page_check(again))
        again.close()
        reader.close()
    meta.close()


def spoil_sums(path: Path, sums_are: str, chance: random.Random) -> None:
    if sums_are == "gone":
        path.unlink()
    elif sums_are == "emptied":
        path.write_bytes(b"")
    elif sums_are == "damaged":
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1
        path.write_bytes(content)


def test_sums_for_which_there_is_no_room_are_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = Harness(tmp_path)
    fill(meta)

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as full:
        full.setattr("metaserver.sums.os.pwrite", pwrite)
        meta.store.empty_log()
    assert sums_file(meta.path).read_bytes() == b"", "nothing that is out of date is left"
    meta.create(1, b"after")
    meta.store.empty_log()
    assert len(sums_file(meta.path).read_bytes()) > PAGE_BYTES, "all is known again"
    meta.restart()
    assert not meta.wait(run_page_check(meta))
    meta.close()


def test_sums_that_were_removed_under_a_running_server_are_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or nothing would be moved out of the log any more, which would fill the disk."""
    meta = Harness(tmp_path)
    sums_file(meta.path).unlink()
    for number in range(2):
        meta.create(1, b"file %d" % number)
        meta.store.empty_log()
        assert not meta.path.with_name("meta.sqlite-wal").stat().st_size
    assert len(sums_file(meta.path).read_bytes()) > PAGE_BYTES, "all is known again"
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    meta.restart()
    assert not meta.wait(run_page_check(meta))
    meta.close()


@pytest.mark.parametrize("while_open", [True, False])
def test_a_disk_that_fails_below_the_checks_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, while_open: bool
) -> None:
    meta = Harness(tmp_path)
    fill(meta)

    def refuse(*_: object, **more: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        if while_open:
            for call in ("open", "ftruncate"):
                failing.setattr(f"metaserver.sums.os.{call}", refuse)
            for _ in range(3):
                meta.store.empty_log()
        else:
            meta.stop()
            failing.setattr(pages, "Sums", refuse)
            with pytest.raises(ConfigError, match="cannot be used"):
                Store(meta.path, "test")
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1 and "Input/output error" in told[0].getMessage()
    assert not any(record.exc_info for record in caplog.records)
    if not while_open:
        meta.start()
    meta.close()


def test_pages_damaged_under_a_running_server_are_errors(tmp_path: Path) -> None:
    meta = Harness(tmp_path)
    names = fill(meta)
    right = walk(meta, names)
    meta.store.empty_log()
    whole = meta.path.read_bytes()
    wrong: list[object] = []
    errors = 0
    with meta.path.open("r+b") as file:
        for number in range(len(whole) // PAGE_BYTES):
            at = number * PAGE_BYTES + 100 + number % 3900
            file.seek(at)
            file.write(bytes([whole[at] ^ 4]))
            file.flush()
            meta.store.execute("PRAGMA shrink_memory").fetchall()
            found = walk(meta, names)
            wrong += [key for key, answer in found.items() if answer is not None and answer != right[key]]
            errors += None in found.values()
            file.seek(at)
            file.write(bytes([whole[at]]))
            file.flush()
        meta.store.execute("PRAGMA shrink_memory").fetchall()
        assert walk(meta, names) == right
    assert not wrong
    assert errors > len(whole) // PAGE_BYTES // 2
    assert meta.service.status()["pages"]["damaged"]
    meta.close()


def test_swapped_pages_are_noticed(stored: tuple[Path, bytes, list[tuple[int, bytes]], Answers]) -> None:
    path, whole, _, _ = stored
    a, b = 5 * PAGE_BYTES, 9 * PAGE_BYTES
    first, second = whole[a : a + PAGE_BYTES], whole[b : b + PAGE_BYTES]
    path.write_bytes(whole[:a] + second + whole[a + PAGE_BYTES : b] + first + whole[b + PAGE_BYTES :])
    assert passed(path) and 6 in pages.damaged_pages(path)


def passed(path: Path) -> str:
    check = PageCheck(path)
    try:
        return asyncio.run(check.run_once())
    finally:
        check.close()


def test_the_pass_in_the_background_finds_damage_that_nobody_asked_for(
    stored: tuple[Path, bytes, list[tuple[int, bytes]], Answers],
) -> None:
    path, whole, _, _ = stored
    assert passed(path) == ""
    last = len(whole) - 2000
    path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
    assert passed(path)
    assert pages.damaged_pages(path) == [len(whole) // PAGE_BYTES]


def test_damage_met_while_the_server_is_stopped_is_told_in_one_line(
    stored: tuple[Path, bytes, list[tuple[int, bytes]], Answers],
) -> None:
    path, whole, _, _ = stored
    last = len(whole) - 2000
    path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
    number = len(whole) // PAGE_BYTES
    with (
        pytest.raises(ConfigError, match=rf"is damaged \(pages: {number}\); put it back"),
        offline.opened(path.parent, "test") as connection,
    ):
        check(connection)


def test_a_database_cut_short_is_noticed(
    stored: tuple[Path, bytes, list[tuple[int, bytes]], Answers],
) -> None:
    path, whole, _, _ = stored
    path.write_bytes(whole[: -3 * PAGE_BYTES])
    assert passed(path)


def test_a_database_of_the_first_format_is_refused_by_its_name(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "meta.sqlite")) as old:
        old.execute("CREATE TABLE t (a)")
    with pytest.raises(ConfigError, match="format 1"):
        Harness(tmp_path)


def test_a_copy_of_a_checked_database_is_checked(
    stored: tuple[Path, bytes, list[tuple[int, bytes]], Answers],
) -> None:
    path, _, _, _ = stored
    copy = path.with_name("copy")
    pages.create(copy)
    with closing(pages.connect(path)) as source, closing(pages.connect(copy)) as target:
        source.backup(target)
    assert passed(copy) == ""
    written = copy.read_bytes()
    for number in range(len(written) // PAGE_BYTES):
        page = written[number * PAGE_BYTES :][:PAGE_BYTES]
        assert page[pages.STAMPED_BYTES :] == pages.stamp(number + 1, page[: pages.STAMPED_BYTES])
