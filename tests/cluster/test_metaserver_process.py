"""The metadata server as a process, over the real wire: every method, SIGKILL, bad directories."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metaserver import pages
from metaserver.check import Finding, check
from tests.conftest import ClusterFactory
from tests.support import wait_until
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


def result_of_check(client: BlockingClient) -> dict[str, Any]:
    """Have the database checked; return what the server says at the end."""
    number = client.call(DEADLINE, BookkeepingMethods.begin_check)

    def ended() -> dict[str, Any] | None:
        said = client.call(DEADLINE, BookkeepingMethods.check_progress, number)
        return said if said["state"] != "running" else None

    return wait_until(ended, DEADLINE, "the check has ended")


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
    meta(NamespaceMethods.close, session, [made.ino], 1)
    assert meta(BookkeepingMethods.garbage, 10, 0) == [record.block]
    assert meta(BookkeepingMethods.collectable, [record.block]) == [record.block]
    meta(BookkeepingMethods.forget, [record.block])
    assert meta(BookkeepingMethods.counts)["garbage_blocks"] == 0
    last = next(tickets)
    assert meta(BookkeepingMethods.answered, Ticket(session, 7, last.sequence - 2)), "the one before failed"
    assert not meta(BookkeepingMethods.answered, last)
    said = result_of_check(client)
    assert (said["state"], said["findings"], said["done"]) == ("done", [], said["total"])
    epoch = meta(BookkeepingMethods.renew, session)
    assert epoch == meta(CommonMethods.identity).epoch
    meta(NamespaceMethods.reclaim, session, epoch, [made.ino])
    assert meta(CommonMethods.status)["counts"]["inodes"] == 2
    meta(NamespaceMethods.close_session, session)
    with pytest.raises(SessionUnknown):
        meta(BookkeepingMethods.renew, session)
    client.close()
    assert cluster.stop("metaserver") == []


class Stream:
    """One client's random stream of calls, and what every call that was acknowledged must have left behind.

    Each call is sent until it is answered. What the answers say is kept, and compared in the end.
    """

    def __init__(self, client: BlockingClient, number: int, seed: int) -> None:
        self.client = client
        self.chance = random.Random(seed)
        self.session = client.call(DEADLINE, NamespaceMethods.open_session, f"stream {number}").session
        self.sequence = 0
        self.counter = 0
        self.directory = self.create(1, b"stream %d" % number, DIRECTORY)
        self.files: dict[bytes, tuple[int, int]] = {}
        self.calls = 0

    def ticket(self) -> Ticket:
        self.sequence += 1
        return Ticket(self.session, 0, self.sequence)

    def create(self, parent: int, name: bytes, mode: int) -> int:
        ticket = self.ticket()
        return self.client.call(
            DEADLINE, NamespaceMethods.create, ticket, parent, name, mode, 0, 0, 0, b"", False
        ).ino

    def step(self) -> None:
        """Make one change; NotFound or AlreadyExists would mean that a call was done twice or lost."""
        self.calls += 1
        name = b"%d" % self.chance.randrange(12)
        if name not in self.files:
            self.files[name] = (self.create(self.directory, name, FILE), 1)
            return
        ino, version = self.files[name]
        action = self.chance.choice(["unlink", "rename", "commit", "commit"])
        if action == "unlink":
            self.client.call(DEADLINE, NamespaceMethods.unlink, self.ticket(), self.directory, name)
            del self.files[name]
        elif action == "rename":
            new = b"new %d" % self.sequence
            self.client.call(
                DEADLINE, NamespaceMethods.rename, self.ticket(), self.directory, name, self.directory, new, 1
            )
            self.files[new] = self.files.pop(name)
        else:
            self.counter += 1
            record = record_of(self.session, self.counter)
            extent = Extent(self.chance.randrange(3) * 500, 1000, record.block, 0)
            commit = Commit(
                None, [extent], extent.offset + 1000, [record], AttributeChanges(), bool(version % 5)
            )
            after = self.client.call(DEADLINE, BookkeepingMethods.commit, self.ticket(), ino, commit)
            assert after.version == version + 1, "a commit was done twice or lost"
            self.files[name] = (ino, after.version)

    def compare(self) -> None:
        """Compare the directory with what was acknowledged."""
        page = self.client.call(DEADLINE, NamespaceMethods.read_directory, self.directory, b"", 4096)
        found = {entry.name: (entry.attributes.ino, entry.attributes.version) for entry in page.entries}
        assert found == self.files


def findings(cluster: LocalCluster) -> list[Finding]:
    connection = pages.connect(cluster.directory / "meta" / "meta.sqlite", read_only=True)
    try:
        return check(connection)
    finally:
        connection.close()


@pytest.mark.damages("it commits blocks that were never put")
def test_sigkill_at_any_moment_loses_and_repeats_nothing(make_cluster: ClusterFactory) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    clients = [connect(cluster) for _ in range(3)]
    streams = [Stream(client, number, seed + number) for number, client in enumerate(clients)]
    stop = threading.Event()

    def work(stream: Stream) -> None:
        while not stop.is_set():
            stream.step()

    with ThreadPoolExecutor(len(streams)) as threads:
        running = [threads.submit(work, stream) for stream in streams]
        try:
            for _ in range(10):
                goals = [stream.calls + 5 for stream in streams]
                wait_until(
                    lambda goals=goals: all(s.calls >= goal for s, goal in zip(streams, goals, strict=True)),
                    DEADLINE,
                    "every stream goes on",
                )
                time.sleep(chance.uniform(0.0, 0.1))  # the moment is what is random here
                cluster.kill("metaserver")
                assert findings(cluster) == []
                cluster.start("metaserver")
        finally:
            stop.set()
        for future in running:
            future.result()
    for stream in streams:
        stream.compare()
    for client in clients:
        client.close()
    cluster.stop("metaserver")
    assert findings(cluster) == []


def test_a_call_is_answered_again_after_sigkill(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    client = connect(cluster)
    session = client.call(DEADLINE, NamespaceMethods.open_session, "test")
    ticket = Ticket(session.session, 0, 1)
    arguments = (ticket, 1, b"a", FILE, 0, 0, 0, b"", True)
    made = client.call(DEADLINE, NamespaceMethods.create, *arguments)
    cluster.kill("metaserver")
    cluster.start("metaserver")
    assert client.call(DEADLINE, NamespaceMethods.create, *arguments) == made
    assert client.call(DEADLINE, BookkeepingMethods.renew, session.session) > session.epoch
    client.close()


def test_an_open_file_without_a_name_survives_a_restart_and_then_goes(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1, lease_seconds=3.0)
    cluster.start("metaserver")
    client = connect(cluster)
    session = client.call(DEADLINE, NamespaceMethods.open_session, "test").session
    made = client.call(
        DEADLINE, NamespaceMethods.create, Ticket(session, 0, 1), 1, b"a", FILE, 0, 0, 0, b"", True
    )
    client.call(DEADLINE, NamespaceMethods.unlink, Ticket(session, 0, 2), 1, b"a")
    cluster.kill("metaserver")
    cluster.start("metaserver")
    epoch = client.call(DEADLINE, BookkeepingMethods.renew, session)
    client.call(DEADLINE, NamespaceMethods.reclaim, session, epoch, [made.ino])
    assert client.call(DEADLINE, NamespaceMethods.open, session, made.ino, True).attributes.nlink == 0

    def inodes() -> int:
        return client.call(DEADLINE, BookkeepingMethods.counts)["inodes"]

    assert inodes() == 2
    wait_until(lambda: inodes() == 1, 20.0, "the session ends, and the file with it")
    with pytest.raises(SessionUnknown):
        client.call(DEADLINE, BookkeepingMethods.renew, session)
    client.close()


def start_by_hand(cluster: LocalCluster) -> subprocess.CompletedProcess[str]:
    """Run the process to its end; only for starts that must be refused."""
    return subprocess.run(
        [sys.executable, "-m", "metaserver", "--config", str(cluster.config_file)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.damages("the directory cannot be used")
def test_a_directory_that_cannot_be_used_is_refused_in_one_line(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    second = start_by_hand(cluster)
    assert (second.returncode, second.stdout) == (2, "")
    assert "another metadata server uses this directory" in second.stderr
    cluster.stop("metaserver")
    directory = cluster.directory / "meta"
    description = directory / "server.json"
    ours = description.read_text()
    description.write_text(json.dumps({**json.loads(ours), "cluster": "another"}))
    foreign = start_by_hand(cluster)
    description.write_text(ours)
    (directory / "meta.sqlite").write_bytes(b"not a database" * 1000)
    damaged = start_by_hand(cluster)
    (directory / "meta.sqlite.copy").mkdir()  # it cannot be removed
    (directory / "meta.sqlite").unlink()
    (directory / "meta.sqlite-mark").unlink()
    description.unlink()
    unlucky = start_by_hand(cluster)
    for refused in (foreign, damaged, unlucky):
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.strip().splitlines()) == 1
    assert "belongs to" in foreign.stderr
    assert "damaged" in damaged.stderr
    assert "meta.sqlite.copy" in unlucky.stderr


@pytest.mark.damages("an older log is put back")
def test_an_older_log_put_back_is_refused_in_one_line(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    log = cluster.directory / "meta" / "meta.sqlite-wal"

    def make(name: bytes) -> None:
        with closing(connect(cluster)) as client:
            session = client.call(5.0, NamespaceMethods.open_session, "test").session
            client.call(
                5.0, NamespaceMethods.create, Ticket(session, 0, 1), 1, name, FILE, 0, 0, 0, b"", False
            )
            client.call(5.0, NamespaceMethods.sync_metadata)

    cluster.start("metaserver")
    make(b"first")
    cluster.kill("metaserver")
    older = log.read_bytes()
    cluster.start("metaserver")
    cluster.stop("metaserver")
    log.write_bytes(older)
    after_stop = start_by_hand(cluster)
    log.unlink()
    cluster.start("metaserver")
    make(b"second")
    cluster.kill("metaserver")
    last = log.read_bytes()
    log.write_bytes(older)
    after_kill = start_by_hand(cluster)
    for refused in (after_stop, after_kill):
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.strip().splitlines()) == 1
        assert "is not the last log of the metadata database" in refused.stderr
    assert "move it away, and start again" in after_stop.stderr
    assert "quorumfs restore" in after_kill.stderr
    log.write_bytes(last)
    cluster.start("metaserver")
    with closing(connect(cluster)) as client:
        page = client.call(5.0, NamespaceMethods.read_directory, 1, b"", 10)
    assert [entry.name for entry in page.entries] == [b"first", b"second"]
