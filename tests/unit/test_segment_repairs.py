"""Copies that lose a vote in a store on disk: kept, replaced, healed, and what a kill leaves of that."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dataserver.record import PAGE_BYTES, decode_head, decode_header, encode_header
from dataserver.segments import SegmentStore
from tests.unit.segment_support import (
    abandon,
    block_id,
    check,
    content,
    damage_header,
    damage_payload,
    overwrite,
    put,
)
from wire.digest import DIGEST_BYTES, PIECE_BYTES, block_digest
from wire.errors import BlockConflict


@pytest.mark.parametrize("harm", [damage_payload, damage_header])
def test_repair_keeps_the_losing_copy_as_it_was(
    directory: Path, store: SegmentStore, harm: Callable[[SegmentStore, int], None]
) -> None:
    put(store, *range(5))
    harm(store, 2)
    place, truth = store.locate(block_id(2)), content(2)
    raw = place.path.read_bytes()[place.header_offset : place.payload_offset + place.length]
    assert store.repair(block_id(2), block_digest(truth), truth, "lost 2 to 3") == "replaced"
    check(store, *range(5))
    assert store.repair(block_id(2), block_digest(truth), truth, "again") == "good"
    (kept,) = (directory / "quarantine").glob("*.raw")
    assert kept.read_bytes() == raw
    note = json.loads(kept.with_suffix(".json").read_text())
    assert note["note"] == "lost 2 to 3"
    assert note["block"] == block_id(2).hex()
    assert note["expected_digest"] == block_digest(truth).hex()
    assert (note["found_digest"] is None) == (harm is damage_header)
    assert store.status()["quarantined"] == 1
    store.maintain()
    check(store, *range(5))
    assert place.path.read_bytes()[place.header_offset :][:PAGE_BYTES] == bytes(PAGE_BYTES)


def test_repair_replaces_a_copy_whose_recorded_piece_digests_are_wrong(store: SegmentStore) -> None:
    """The vote on the whole block, computed anew, is right; those on some of its pieces are not."""
    data = random.Random(2).randbytes(3 * PIECE_BYTES)
    digest = block_digest(data)
    store.put(block_id(1), digest, data)
    place = store.locate(block_id(1))
    raw = place.path.read_bytes()
    head = decode_head(raw[:PAGE_BYTES])
    assert head is not None
    header = decode_header(raw[place.header_offset :], head.number, place.header_offset)
    assert header is not None
    overwrite(place.path, place.header_offset, encode_header(header._replace(pieces=bytes(3 * DIGEST_BYTES))))
    assert store.digest(block_id(1), 0, 0) == digest
    assert store.digest(block_id(1), 0, 1) != digest
    assert store.repair(block_id(1), digest, data, "wrong digests of pieces") == "replaced"
    assert store.digest(block_id(1), 0, 1) == digest
    assert store.repair(block_id(1), digest, data, "again") == "good"


def test_putting_a_damaged_block_again_heals_it(store: SegmentStore) -> None:
    put(store, *range(5))
    damage_payload(store, 1)
    damage_header(store, 2)
    put(store, 1, 2)
    check(store, *range(5))
    assert store.status()["quarantined"] == 2
    damage_header(store, 3)
    with pytest.raises(BlockConflict):
        store.put(block_id(3), block_digest(b"other"), b"other")


class Killed(BaseException):
    """Stands for the end of the process at this very call."""


def test_a_repair_can_be_killed_at_any_step(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each write, sync and rename of a repair the process ends; what it leaves is looked at."""
    steps, steps_left = 0, -1

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            nonlocal steps, steps_left
            if steps_left == 0:
                raise Killed
            steps, steps_left = steps + 1, steps_left - 1
            return call(*arguments, **options)

        return step

    for name in ("pwrite", "fsync", "fdatasync", "open"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(Path, "replace", watched(Path.replace))
    truth = content(3)
    attempt = 0
    while True:
        place = tmp_path / f"attempt-{attempt}"
        place.mkdir()
        steps_left = -1
        store = SegmentStore(place)
        put(store, *range(6))
        store.maintain()
        damage_payload(store, 3)
        wrong = store.get(block_id(3), 0, 0).data
        steps_left = attempt
        try:
            assert store.repair(block_id(3), block_digest(truth), truth, "test") == "replaced"
        except Killed:
            pass
        finished, steps_left = steps_left > 0, -1
        left = SegmentStore(abandon(place, tmp_path / f"left-{attempt}"))
        now = left.get(block_id(3), 0, 0).data
        kept = list((tmp_path / f"left-{attempt}" / "quarantine").glob("*.raw"))
        assert now in (truth, wrong)
        assert now == wrong or [file.read_bytes()[PAGE_BYTES:] for file in kept] == [wrong]
        left.repair(block_id(3), block_digest(truth), truth, "again")
        check(left, *range(6))
        assert left.status()["quarantined"] == 1
        left.maintain()
        check(left, *range(6))
        left.close()
        store.close()
        attempt += 1
        if finished:
            break
    assert attempt > 8
