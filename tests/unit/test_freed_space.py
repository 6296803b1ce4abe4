"""Space of deleted and replaced records: given back, to the right blocks, and never read as others' bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, ItemsView
from pathlib import Path
from typing import TypeVar

import pytest

from dataserver import durable, segment
from dataserver.segments import SegmentStore
from tests.unit.segment_support import (
    block_id,
    check,
    content,
    damage_payload,
    put,
    remove_index,
)
from wire.digest import Buffer, block_digest
from wire.errors import BlockMissing

T = TypeVar("T")


def test_space_comes_back_and_empty_segments_go(directory: Path, store: SegmentStore) -> None:
    put(store, *range(40))
    store.maintain()
    before = sum(file.stat().st_blocks for file in (directory / "segments").iterdir())
    store.delete([block_id(number) for number in range(35)])
    store.maintain()
    check(store, *range(35, 40))
    after = sum(file.stat().st_blocks for file in (directory / "segments").iterdir())
    assert after < before / 3
    assert store.status()["segments"] == len(list((directory / "segments").iterdir()))
    names = {file.name for file in (directory / "segments").iterdir()}
    store.delete([block_id(number) for number in range(35, 40)])
    store.maintain()
    left = {file.name for file in (directory / "segments").iterdir()}
    assert left == {max(names)}, "only the newest segment stays, so that no number is used again"


class Watched(dict[int, segment.Segment]):
    """The segments of a store; `looked` is called when all of them are about to be gone through."""

    looked: Callable[[], None]

    def items(self) -> ItemsView[int, segment.Segment]:
        self.looked()
        return super().items()


def test_a_segment_that_is_begun_while_others_are_unlinked_is_kept(store: SegmentStore) -> None:
    put(store, *range(40))
    store.delete([block_id(number) for number in range(40)])
    begun = [threading.Thread(target=put, args=(store, *numbers)) for numbers in ((41, 42), (43, 44, 45))]
    waiting = list(begun)

    def looked() -> None:
        """Let a put have the time that it needs, if it does not wait for this."""
        if waiting:
            thread = waiting.pop()
            thread.start()
            thread.join(0.2)

    store._segments = Watched(store._segments)
    store._segments.looked = looked
    store._unlink_empty()
    for thread in begun:
        thread.join()
    check(store, *range(41, 46))


def test_what_is_to_be_synced_is_only_changed_by_who_appends(store: SegmentStore) -> None:
    """A sync goes through it, and then forgets it."""

    class Guarded(set[int]):
        def add(self, number: int) -> None:
            assert store._appends.locked()
            super().add(number)

    store._unsynced = Guarded()
    put(store, 1, 2)
    store.delete([block_id(1)])
    store.maintain()
    check(store, 2)


def test_deleted_blocks_do_not_come_back_on_a_rebuild(directory: Path, store: SegmentStore) -> None:
    put(store, *range(20))
    store.delete([block_id(number) for number in range(0, 20, 2)])
    store.maintain()
    remove_index(directory)
    copy = SegmentStore(directory)
    check(copy, *range(1, 20, 2))
    copy.close()


def test_a_stale_note_of_free_space_hits_no_other_block(directory: Path) -> None:
    """Rows of `freed` that lie (with a right checksum) where another block is now are not believed."""
    store = SegmentStore(directory)
    put(store, *range(5))
    entry = store._index.get(block_id(2))
    assert entry is not None
    store._index.free(entry._replace(block=block_id(77)))
    store.maintain()
    check(store, *range(5))
    store.close()


def test_holes_can_be_punched_here(tmp_path: Path) -> None:
    """If not, the tests of freed space above test the fallback only."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 16384)
    with file.open("r+b") as opened:
        assert durable.punch_hole(opened.fileno(), 4096, 8192)
    assert file.read_bytes() == b"x" * 4096 + bytes(8192) + b"x" * 4096


def test_bytes_of_a_place_that_was_freed_meanwhile_are_not_given_out(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reads of the header and of the bytes, the block is deleted and its place freed."""
    put(store, 1)
    real = segment.Segment.look
    pending = [True]

    def look(self: segment.Segment, offset: int, length: int, use: Callable[[Buffer], T], of: int) -> T:
        if pending:
            pending.pop()
            store.delete([block_id(1)])
            store.maintain()
        return real(self, offset, length, use, of)

    monkeypatch.setattr(segment.Segment, "look", look)
    with pytest.raises(BlockMissing):
        store.get(block_id(1), 0, 0)


def test_a_moved_block_is_read_at_its_new_place(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look into the index and the read, the block is repaired and its old place freed."""
    put(store, 1, 2)
    damage_payload(store, 1)
    real = segment.Segment.look
    pending = [True]

    def look(self: segment.Segment, offset: int, length: int, use: Callable[[Buffer], T], of: int) -> T:
        if pending.pop() if pending else False:
            store.repair(block_id(1), block_digest(content(1)), content(1), "test")
            store.maintain()
        return real(self, offset, length, use, of)

    monkeypatch.setattr(segment.Segment, "look", look)
    assert store.get(block_id(1), 0, 0).data == content(1)
    pending.append(True)
    monkeypatch.setattr(store, "repair", lambda *arguments: store.delete([block_id(2)]))
    with pytest.raises(BlockMissing):
        store.get(block_id(2), 0, 0)
