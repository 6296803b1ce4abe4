"""Compaction at the metadata server: which blocks are told, and that an exchange changes no file's bytes."""

from __future__ import annotations

import pytest

from metaserver import compaction
from tests.unit.metaserver.harness import Harness
from wire import xml_codec
from wire.errors import InvalidArgument
from wire.messages import AttributeChanges, BlockRecord, Reference, SparseBlock, SparsePage

MIB = 1024 * 1024


def sparse_file(meta: Harness, name: bytes) -> tuple[int, BlockRecord]:
    """Make a file whose first block is mostly overwritten; two parts of it are left."""
    ino = meta.create(1, name).ino
    first = meta.write(ino, 0, MIB)
    meta.write(ino, 100_000, 400_000)
    meta.write(ino, 500_000, MIB - 600_000)
    meta.write(ino, MIB - 100_000, 50_000)
    return ino, first


def pass_time(meta: Harness, seconds: int) -> None:
    meta.seconds += seconds
    meta.now_ns += seconds * 10**9


def test_mostly_dead_blocks_are_told_page_by_page(meta: Harness) -> None:
    ino, first = sparse_file(meta, b"a")
    whole = meta.write(meta.create(1, b"whole").ino, 0, MIB)
    page = meta.service.sparse_blocks(b"", 100, 0)
    assert page.blocks == [(first, [(ino, 0, 100_000, 0), (ino, MIB - 50_000, 50_000, MIB - 50_000)])]
    assert page.after == whole.block
    assert meta.service.sparse_blocks(page.after, 100, 0) == (b"", [])
    found, after, pages = [], b"", 0
    while (page := meta.service.sparse_blocks(after, 1, 0)).after:
        found += page.blocks
        after, pages = page.after, pages + 1
    assert [sparse.record for sparse in found] == [first]
    assert pages == 5


def test_a_page_has_a_bounded_number_of_references(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else blocks with very many would have no answer in XML-RPC, and all behind them never be compacted."""
    most = compaction.REFERENCES_A_PAGE + compaction.REFERENCES_MOST
    largest = SparseBlock(BlockRecord(bytes(16), MIB, bytes(32)), [Reference(*[2**63 - 1] * 4)] * most)
    packed = xml_codec.pack_answer(SparsePage(bytes(16), [largest]))
    assert len(xml_codec.unpack_answer(packed)[0][1][0][1]) == most

    files = [sparse_file(meta, b"%d" % number) for number in range(5)]
    for bound, pages in ((1, 5), (3, 3), (4, 3), (100, 1)):
        monkeypatch.setattr(compaction, "REFERENCES_A_PAGE", bound)
        found, after, full = [], b"", 0
        while (page := meta.service.sparse_blocks(after, 100, 0)).after:
            found += page.blocks
            after, full = page.after, full + bool(page.blocks)
        assert [sparse.record for sparse in found] == [first for _, first in files]
        assert full == pages


def test_files_that_changed_lately_are_left_alone(meta: Harness) -> None:
    ino, _ = sparse_file(meta, b"a")
    assert not meta.service.sparse_blocks(b"", 100, 60_000).blocks
    pass_time(meta, 61)
    assert meta.service.sparse_blocks(b"", 100, 60_000).blocks
    meta.service.setattr(meta.ticket(), ino, AttributeChanges(mode=0o600))
    assert not meta.service.sparse_blocks(b"", 100, 60_000).blocks


@pytest.mark.parametrize("set_by_seconds", [10**9, -(10**9)])
def test_when_the_date_is_set_all_files_may_have_changed_lately(meta: Harness, set_by_seconds: int) -> None:
    sparse_file(meta, b"a")
    pass_time(meta, 61)
    meta.now_ns += set_by_seconds * 10**9
    assert not meta.service.sparse_blocks(b"", 100, 60_000).blocks
    pass_time(meta, 59)
    assert not meta.service.sparse_blocks(b"", 100, 60_000).blocks
    pass_time(meta, 2)
    assert meta.service.sparse_blocks(b"", 100, 60_000).blocks


def test_an_exchange_frees_the_old_block_and_nothing_else_changes(meta: Harness) -> None:
    ino, first = sparse_file(meta, b"a")
    (sparse,) = meta.service.sparse_blocks(b"", 100, 0).blocks
    before, others = meta.service.getattr(ino), meta.extents(ino)[1:4]
    new = meta.new_block(150_000)
    assert meta.service.exchange_block(meta.session, first.block, sparse.references, new)
    after = meta.service.getattr(ino)
    assert after == before._replace(version=before.version + 1)
    assert meta.extents(ino) == [
        (0, 100_000, new.block, 0),
        *others,
        (MIB - 50_000, 50_000, new.block, 100_000),
    ]
    assert meta.wait(meta.service.garbage(10, 0)) == [first.block]
    assert not meta.service.sparse_blocks(b"", 100, 0).blocks
    # The same again, or with a part overwritten since, changes nothing.
    assert not meta.service.exchange_block(
        meta.session, first.block, sparse.references, meta.new_block(150_000)
    )
    (again,) = [s for s in meta.service.witnesses([new.block]) if s]
    assert again == new


@pytest.mark.parametrize("change", ["overwritten", "cut", "removed"])
def test_an_exchange_is_given_up_when_the_file_has_changed(meta: Harness, change: str) -> None:
    ino, first = sparse_file(meta, b"a")
    (sparse,) = meta.service.sparse_blocks(b"", 100, 0).blocks
    if change == "overwritten":
        meta.write(ino, 50, 100)
    elif change == "cut":
        meta.commit(ino, cut=MIB - 10)
    else:
        meta.service.unlink(meta.ticket(), 1, b"a")
        meta.wait(meta.service.reaper.run_once())
    before = [] if change == "removed" else meta.extents(ino)
    garbage = meta.wait(meta.service.garbage(10, 0))
    new = meta.new_block(150_000)
    assert not meta.service.exchange_block(meta.session, first.block, sparse.references, new)
    assert meta.wait(meta.service.garbage(10, 0)) == garbage
    assert meta.service.witnesses([new.block]) == [None]
    if before:
        assert meta.extents(ino) == before


def test_an_exchange_for_what_cannot_be_is_refused(meta: Harness) -> None:
    ino, first = sparse_file(meta, b"a")
    (sparse,) = meta.service.sparse_blocks(b"", 100, 0).blocks
    stranger = BlockRecord((77).to_bytes(8, "big") + bytes(8), 150_000, bytes(32))
    for new, references in (
        (meta.new_block(149_999), sparse.references),
        (stranger, sparse.references),
        (meta.new_block(10), [Reference(ino, 0, 10, 0), Reference(ino, 10, 0, 0)][:1] * 2),
    ):
        with pytest.raises(InvalidArgument):
            meta.service.exchange_block(meta.session, first.block, references, new)
    assert meta.extents(ino)[0] == (0, 100_000, first.block, 0)
