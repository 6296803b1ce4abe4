"""Which parts of the log are read ahead, and that the kernel has them then, and the database."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metaserver.read_ahead import AHEAD_BYTES, PIECE_BYTES, LogAhead, pieces, read_database_ahead
from tests.support import wait_until
from tests.unit.metaserver.harness import Harness


@pytest.mark.parametrize("position", [0, 1, PIECE_BYTES, 3 * AHEAD_BYTES + 5])
@pytest.mark.parametrize("size", [0, 100, PIECE_BYTES + 1, AHEAD_BYTES, 5 * AHEAD_BYTES])
def test_pieces_are_the_beginning_and_what_follows(position: int, size: int) -> None:
    found: list[int] = []
    for start, length in pieces(position, size):
        assert 0 < length <= PIECE_BYTES
        found += (start, start + length)
    assert found == sorted(found), "none of it twice"
    covered = sum(end - start for start, end in zip(found[::2], found[1::2], strict=True))
    first = min(position, AHEAD_BYTES, size)
    assert covered == first + max(0, min(size - position, AHEAD_BYTES))


def is_in_memory(file: Path) -> bool:
    """Tell whether the kernel has all of a file."""
    with file.open("rb") as opened:
        size = file.stat().st_size
        try:
            return os.preadv(opened.fileno(), [bytearray(size)], 0, os.RWF_NOWAIT) == size
        except BlockingIOError:
            return False


def forget(file: Path) -> None:
    """Have the kernel forget what it has of a file; skip the test where it cannot, or does not tell."""
    with file.open("rb") as opened:
        os.fdatasync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        if is_in_memory(file):
            pytest.skip("this file system has all in memory")
    except OSError:
        pytest.skip("this file system does not tell what is in memory")


def test_what_the_kernel_forgot_of_the_log_is_read_again(tmp_path: Path) -> None:
    meta = Harness(tmp_path)
    log = Path(f"{meta.path}-wal")
    for number in range(100):
        meta.create(1, b"%d" % number)
    ahead = LogAhead(meta.path, meta.store.log_mark)
    forget(log)
    ahead.look()
    wait_until(lambda: is_in_memory(log), 5.0, "the log is in memory")
    ahead.close()
    meta.close()


def test_the_whole_database_is_read_at_once(tmp_path: Path) -> None:
    database = tmp_path / "meta.sqlite"
    database.write_bytes(os.urandom(5 * PIECE_BYTES + 4096))
    forget(database)
    read_database_ahead(database)
    wait_until(lambda: is_in_memory(database), 5.0, "the database is in memory")
