"""Which stored copy of the metadata is chosen, whatever becomes of its replicas."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mediator import manifest
from mediator.manifest import Manifest
from metaserver import copies
from metaserver.check import snapshot
from metaserver.store import Store
from tools.holders import Holder
from tools.processes import ClusterError
from tools.rebuild import candidates, choose, last_session
from wire.digest import BLOCK_BYTES, block_digest
from wire.messages import BlockRecord

Blocks = dict[bytes, bytes]


@pytest.fixture
def database(tmp_path: Path) -> bytes:
    """A copy of more than one block."""
    place = tmp_path / "meta.sqlite"
    with closing(Store(place, "test")) as store:
        store.change(
            store.executemany,
            "INSERT INTO xattrs VALUES (1, ?, zeroblob(60000))",
            [(b"%d" % number,) for number in range(40)],
        )
        with closing(snapshot(place)) as source:
            copies.write(source, tmp_path / "copy", 5)
    found = (tmp_path / "copy").read_bytes()
    assert len(found) > 2 * BLOCK_BYTES
    return found


def blocks_of(copy: int, database: bytes, cluster: str = "test") -> Blocks:
    """Return the blocks of a stored copy."""
    parts = [database[at : at + BLOCK_BYTES] for at in range(0, len(database), BLOCK_BYTES)]
    told = Manifest(cluster, "mine", copy, len(database), list(map(block_digest, parts)))
    found = {manifest.block_of(copy, number): part for number, part in enumerate(parts, start=1)}
    return {**found, manifest.block_of(copy, 0): manifest.encode(told)}


def holder(number: int, blocks: Blocks, spoil: Callable[[bytes], bool] = lambda block: False) -> Holder:
    """A server with these blocks; of those to be spoilt the bytes are not what its records say."""
    records = {block: BlockRecord(block, len(data), block_digest(data)) for block, data in blocks.items()}

    def fetch(block: bytes) -> bytes:
        return bytes(len(blocks[block])) if spoil(block) else blocks[block]

    return Holder(number, records, fetch)


def chosen(holders: list[Holder], tmp_path: Path, enough: int = 2) -> int:
    """Return the copy that is chosen; it is whole then."""
    target = tmp_path / "fetched"
    found, inspected = choose("test", holders, enough, target, copies.unwatched)
    assert inspected.findings == []
    return found.copy


def test_each_part_comes_from_any_server_that_has_it_right(database: bytes, tmp_path: Path) -> None:
    blocks = blocks_of(9, database)
    holders = [
        holder(1, blocks, spoil=lambda block: block == manifest.block_of(9, 1)),
        holder(2, blocks, spoil=lambda block: block == manifest.block_of(9, 2)),
        holder(3, {}),
    ]
    assert chosen(holders, tmp_path) == 9
    assert (tmp_path / "fetched").read_bytes() == database


def test_an_older_copy_is_taken_where_the_newest_is_not_whole(database: bytes, tmp_path: Path) -> None:
    older, newer = blocks_of(9, database), blocks_of(10, database)
    missing = {block: data for block, data in newer.items() if block != manifest.block_of(10, 2)}
    assert chosen([holder(k, older | missing) for k in (1, 2, 3)], tmp_path) == 9
    damaged = blocks_of(11, database[:5000] + b"\1" + database[5001:])
    assert chosen([holder(k, older | damaged) for k in (1, 2, 3)], tmp_path) == 9
    foreign = blocks_of(12, database, cluster="other")
    assert chosen([holder(k, older | foreign) for k in (1, 2, 3)], tmp_path) == 9


def test_what_fewer_servers_say_is_no_copy(database: bytes, tmp_path: Path) -> None:
    true, invented = blocks_of(9, database), blocks_of(99, database)
    holders = [holder(1, true), holder(2, true), holder(3, true | invented)]
    assert chosen(holders, tmp_path) == 9
    assert chosen(holders, tmp_path, enough=1) == 99
    lies = true | {manifest.block_of(9, 0): manifest.encode(Manifest("test", "mine", 9, 0, []))}
    assert [
        c.agreeing for c in candidates("test", [holder(1, true), holder(2, true), holder(3, lies)], 2)
    ] == [2]
    with pytest.raises(ClusterError, match="none is known to 2 of the 3"):
        chosen([holder(1, true), holder(2, {}), holder(3, {})], tmp_path)
    with pytest.raises(ClusterError):
        chosen([], tmp_path)


def test_the_last_session_is_that_of_any_block_but_damage() -> None:
    def block(session: int) -> bytes:
        return session.to_bytes(8, "big") + bytes(8)

    holders = [holder(1, {block(7): b"a"}), holder(2, {block(2**63): b"b", block(3): b"c"})]
    assert last_session(holders) == 7
    assert last_session([]) == 0
