"""The metadata server as a process, over the real wire: every method, SIGKILL, bad directories."""

from __future__ import annotations

import pytest

from tests.conftest import ClusterFactory
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.errors import NotFound, SessionUnknown
from wire.messages import AttributeChanges, BlockRecord, Commit, Extent, Ticket
from wire.methods import BookkeepingMethods, CommonMethods, NamespaceMethods

DEADLINE = 10.0
FILE = 0o100644
DIRECTORY = 0o040755


def connect(cluster: LocalCluster, rpc: str = "msgpack") -> BlockingClient:
    return BlockingClient([cluster.address("metaserver")], rpc)  # type: ignore[arg-type]


def record_of(session: int, counter: int, length: int = 1000) -> BlockRecord:
    block = session.to_bytes(8, "big") + counter.to_bytes(8, "big")
    return BlockRecord(block, length, bytes([counter % 256]) * 32)


@pytest.mark.parametrize("rpc", ["msgpack", "xml"])
def test_every_method_over_the_wire(make_cluster: ClusterFactory, rpc: str) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    client = connect(cluster, rpc)

    def meta(method, *args):  # type: ignore[no-untyped-def]
        return client.call(DEADLINE, method, *args)

    assert meta(CommonMethods.identity).kind == "metaserver"
    session = meta(NamespaceMethods.open_session, "test").session
    tickets = (Ticket(session, 7, sequence) for sequence in range(1, 100))
    made = meta(NamespaceMethods.create, next(tickets), 1, b"\xff\xfe name", FILE, 1, 2, 0, b"", True)
    assert meta(NamespaceMethods.resolve, 1, [b"\xff\xfe name"]) == [made]
    assert meta(NamespaceMethods.getattr, made.ino) == made
    record = record_of(session, 1)
    commit = Commit(0, [Extent(5, 1000, record.block, 0)], 2**62, [record], AttributeChanges(), True)
    written = meta(BookkeepingMethods.commit, next(tickets), made.ino, commit)
    assert (written.size, written.allocated_bytes, written.version) == (2**62, 1000, 2)
    opened = meta(NamespaceMethods.open, session, made.ino, True)
    assert opened.attributes == written
    assert opened.map == meta(NamespaceMethods.file_map, made.ino, 0, 10)
    assert opened.map.extents[0].digest == record.digest
    assert meta(BookkeepingMethods.witnesses, [record.block, b"?" * 16]) == [record, None]
    assert meta(BookkeepingMethods.blocks, b"", 10) == [record]
    assert meta(BookkeepingMethods.files_of_block, record.block) == [made.ino]
    assert meta(BookkeepingMethods.paths_of, made.ino, 5) == [b"/\xff\xfe name"]
    changed = meta(NamespaceMethods.setattr, next(tickets), made.ino, AttributeChanges(mode=0o600))
    assert changed.mode == 0o100600
    meta(NamespaceMethods.set_xattr, next(tickets), made.ino, b"user.a", b"\0\xff", 0)
    assert meta(NamespaceMethods.list_xattrs, made.ino) == [b"user.a"]
    assert meta(NamespaceMethods.get_xattr, made.ino, b"user.a") == b"\0\xff"
    meta(NamespaceMethods.remove_xattr, next(tickets), made.ino, b"user.a")
    link = meta(NamespaceMethods.create, next(tickets), 1, b"link", 0o120777, 0, 0, 0, b"to", False)
    assert meta(NamespaceMethods.read_link, link.ino) == b"to"
    directory = meta(NamespaceMethods.create, next(tickets), 1, b"dir", DIRECTORY, 0, 0, 0, b"", False)
    assert meta(NamespaceMethods.link, next(tickets), made.ino, directory.ino, b"second").nlink == 2
    meta(NamespaceMethods.rename, next(tickets), directory.ino, b"second", 1, b"third", 0)
    page = meta(NamespaceMethods.read_directory, 1, b"", 2)
    assert [entry.name for entry in page.entries] == [b"dir", b"link"]
    assert not page.complete
    meta(NamespaceMethods.rmdir, next(tickets), 1, b"dir")
    for name in (b"third", b"\xff\xfe name"):
        meta(NamespaceMethods.unlink, next(tickets), 1, name)
    with pytest.raises(NotFound):
        meta(NamespaceMethods.unlink, next(tickets), 1, b"third")
    assert meta(NamespaceMethods.getattr, made.ino).nlink == 0
    meta(NamespaceMethods.sync_metadata)
    meta(NamespaceMethods.close, session, [made.ino])
    assert meta(BookkeepingMethods.garbage, 10, 0) == [record.block]
    assert meta(BookkeepingMethods.collectable, [record.block]) == [record.block]
    meta(BookkeepingMethods.forget, [record.block])
    assert meta(BookkeepingMethods.counts)["garbage_blocks"] == 0
    epoch = meta(BookkeepingMethods.renew, session)
    assert epoch == meta(CommonMethods.identity).epoch
    meta(NamespaceMethods.reclaim, session, [made.ino])
    assert meta(CommonMethods.status)["counts"]["inodes"] == 2
    meta(NamespaceMethods.close_session, session)
    with pytest.raises(SessionUnknown):
        meta(BookkeepingMethods.renew, session)
    client.close()
    assert cluster.stop("metaserver") == []
