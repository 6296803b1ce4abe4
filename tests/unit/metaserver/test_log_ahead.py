"""Which parts of the log are read ahead, and that the kernel has them then."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaserver.log_ahead import AHEAD_BYTES, LogAhead, pieces
from tests.support import wait_until
from tests.unit.metaserver.harness import Harness
from tests.unit.page_cache import forget, is_in_memory
from wire.read_ahead import PIECE_BYTES


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
