"""The metadata server after a power loss: what a sync covered is there, the rest is whole or absent.

A disk may have done any of the writes since the last sync, in any order, sector by sector. Files of the
directory are put together so, and opened again.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from metaserver.frames import FRAME_BYTES, LOG_HEADER_BYTES
from metaserver.log_mark import mark_file
from metaserver.store import Store
from metaserver.sums import sums_file
from tests.unit.metaserver.harness import Harness
from tests.unit.metaserver.torn import Disk, after_power_loss, any_order, change, is_whole, nothing, torn
from wire.config import ConfigError

ROUNDS = 25


@pytest.mark.parametrize("disk", [any_order, torn, nothing])
def test_all_that_was_synced_is_there_and_the_rest_is_whole_or_absent(tmp_path: Path, disk: Disk) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    (tmp_path / "live").mkdir()
    meta = Harness(tmp_path / "live")
    log = meta.path.with_name("meta.sqlite-wal")
    done: list[bytes] = []
    lost = 0
    for number in range(ROUNDS):
        for _ in range(chance.randrange(1, 5)):
            done.append(b"file %d" % len(done))
            change(meta, done[-1])
        meta.wait(meta.log.sync())
        durable = len(done)
        synced = log.read_bytes()
        mark = mark_file(meta.path).read_bytes()
        for _ in range(chance.randrange(1, 5)):
            done.append(b"file %d" % len(done))
            change(meta, done[-1])
        crashed = tmp_path / f"crashed-{number}"
        crashed.mkdir()
        shutil.copy(meta.path, crashed)
        if chance.random() < 0.8:
            mark_file(crashed / meta.path.name).write_bytes(mark)
        (crashed / log.name).write_bytes(after_power_loss(chance, synced, log.read_bytes(), disk))
        again = Harness(crashed)
        whole = [is_whole(again, name) for name in done]
        assert all(whole[:durable]), f"round {number}: a durable file is gone"
        present = whole[durable:]
        assert present == sorted(present, reverse=True), f"round {number}: a later file without an earlier"
        lost += present.count(False)
        again.close()  # checks every invariant
        shutil.rmtree(crashed)
        if chance.random() < 0.3:  # the log starts over: older frames lie behind the new ones
            meta.store.end_reading()
            meta.store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    assert lost, "no write was ever dropped: the test tests nothing"
    meta.close()


def test_a_log_that_lost_what_was_durable_is_refused(tmp_path: Path) -> None:
    """SQLite would take the damaged frame for the end that a crash left, and forget all commits behind it."""
    (tmp_path / "live").mkdir()
    meta = Harness(tmp_path / "live")
    log = meta.path.with_name("meta.sqlite-wal")
    for number in range(10):
        change(meta, b"file %d" % number)
    meta.wait(meta.log.sync())
    durable = log.stat().st_size
    for number in range(10, 20):
        change(meta, b"file %d" % number)
    whole = log.read_bytes()
    frames = range(LOG_HEADER_BYTES, len(whole) - FRAME_BYTES + 1, 9 * FRAME_BYTES)
    started = refused = 0
    for start in frames:
        crashed = tmp_path / f"crashed-{start}"
        crashed.mkdir()
        for file in (meta.path, mark_file(meta.path), sums_file(meta.path)):
            shutil.copy(file, crashed)
        (crashed / log.name).write_bytes(whole[: start + 100] + b"\xff" + whole[start + 101 :])
        try:
            again = Harness(crashed)
        except ConfigError as error:
            assert "of its last pages" in str(error)
            assert "quorumfs restore" in str(error)
            refused += 1
            assert start < durable
            with pytest.raises(ConfigError, match="of its last pages"):
                Store(crashed / meta.path.name, "test", complete=True)
            continue
        assert start >= durable
        assert all(is_whole(again, b"file %d" % number) for number in range(10))
        started += 1
        again.close()
        shutil.rmtree(crashed)
    assert started > 2 < refused
    meta.close()
