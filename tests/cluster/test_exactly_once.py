"""Every mutating call is carried out exactly once, whatever is killed between it and its answer.

All operations of the table run at once, each in a directory and a session of its own. A proxy catches each
one at the same point between call and answer; then a part is killed with SIGKILL, started again, and the
client sends its calls again. What is there in the end, and what was answered, is compared with a model. A
new mutating method gets one row in OPERATIONS. Locks have a test of their own (test_locks_exactly_once).
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.cluster.detour import VICTIMS, Detour, Moment, Trap
from tests.conftest import ClusterFactory
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.digest import block_digest
from wire.errors import QuorumfsError
from wire.messages import (
    ROOT_INODE,
    AttributeChanges,
    BlockRecord,
    Commit,
    Extent,
    Ticket,
)
from wire.methods import BookkeepingMethods, MediatorMethods, NamespaceMethods
from wire.table import method_of

SECONDS = 60.0
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
CONTENT = b"new content"

State = dict[str, str]
"""What a directory holds: by name, which inode it is ("old", "other", "sub" as it was prepared, else "new"),
its mode, links, size, version and extended attributes, in words."""
PREPARED: State = {
    "old": "old 100644 links 1 size 0 version 1",
    "other": "other 100644 links 1 size 0 version 1",
    "sub": "sub 040755 links 2 size 0 version 1",
}


class Place:
    """One operation's directory, and the session that works in it."""

    def __init__(self, client: BlockingClient, name: str) -> None:
        self.client = client
        self.session = client.call(SECONDS, NamespaceMethods.open_session, name).session
        self._sequence = 0
        self.directory = ROOT_INODE
        self.directory = self.make(name, DIRECTORY)
        self.inodes = {name: self.make(name, FILE) for name in ("old", "other")}
        self.inodes["sub"] = self.make("sub", DIRECTORY)

    def do(self, method: Callable[..., Any], *parameters: Any) -> Any:
        """Make a mutating call with a new ticket."""
        self._sequence += 1
        return self.client.call(SECONDS, method, Ticket(self.session, 3, self._sequence), *parameters)

    def make(self, name: str, mode: int) -> int:
        return self.do(NamespaceMethods.create, *self.create_parameters(name, mode)).ino

    def create_parameters(self, name: str, mode: int = FILE, target: bytes = b"") -> tuple[Any, ...]:
        return (self.directory, name.encode(), mode, 0, 0, 0, target, False)

    def entry(self, name: str) -> tuple[int, bytes]:
        return self.directory, name.encode()

    def commit_parameters(self, cut: int | None, content: bytes) -> tuple[Any, ...]:
        block = self.session.to_bytes(8, "big") + bytes(7) + b"\1"
        records = [BlockRecord(block, len(content), block_digest(content))] if content else []
        extents = [Extent(0, len(content), block, 0)] if content else []
        commit = Commit(cut, extents, len(content) or 7, records, AttributeChanges(), False)
        return self.inodes["old"], commit, [content] if content else []

    def state(self) -> State:
        """Return what is there."""
        page = self.client.call(SECONDS, NamespaceMethods.read_directory, self.directory, b"", 100)
        names = {ino: name for name, ino in self.inodes.items()}
        found = {}
        for name, a in page.entries:
            words = (
                f"{names.get(a.ino, 'new')} {a.mode:06o} links {a.nlink} size {a.size} version {a.version}"
            )
            for attribute in self.client.call(SECONDS, NamespaceMethods.list_xattrs, a.ino):
                words += f" {attribute.decode()}"
            found[name.decode()] = words
        return found


def cut_to(size: int) -> Commit:
    """Return a commit of a file of so many zeros."""
    return Commit(0, [], size, [], AttributeChanges(), False)


Calls = Callable[[Place], tuple[Any, ...]]


class Operation(NamedTuple):
    """A call, what it changes, and what another session does between the call and its answer."""

    method: Callable[..., Any]
    parameters: Calls
    changes: dict[str, str | None]
    meddle: Calls
    meddled: dict[str, str | None]
    """What the directory holds then, against PREPARED: the call sent again must not change it."""


GONE = None
N, M = NamespaceMethods, MediatorMethods
OPERATIONS = {
    "create": Operation(
        N.create,
        lambda p: p.create_parameters("new"),
        {"new": "new 100644 links 1 size 0 version 1"},
        lambda p: (N.unlink, *p.entry("new")),
        {},
    ),
    "mkdir": Operation(
        N.create,
        lambda p: p.create_parameters("new", DIRECTORY),
        {"new": "new 040755 links 2 size 0 version 1"},
        lambda p: (N.rmdir, *p.entry("new")),
        {},
    ),
    "symlink": Operation(
        N.create,
        lambda p: p.create_parameters("new", LINK, b"old"),
        {"new": "new 120777 links 1 size 3 version 1"},
        lambda p: (N.unlink, *p.entry("new")),
        {},
    ),
    "link": Operation(
        N.link,
        lambda p: (p.inodes["old"], *p.entry("new")),
        {
            "old": "old 100644 links 2 size 0 version 1",
            "new": "old 100644 links 2 size 0 version 1",
        },
        lambda p: (N.unlink, *p.entry("new")),
        {},
    ),
    "unlink": Operation(
        N.unlink,
        lambda p: p.entry("other"),
        {"other": GONE},
        lambda p: (N.create, *p.create_parameters("other")),
        {"other": "new 100644 links 1 size 0 version 1"},
    ),
    "rmdir": Operation(
        N.rmdir,
        lambda p: p.entry("sub"),
        {"sub": GONE},
        lambda p: (N.create, *p.create_parameters("sub", DIRECTORY)),
        {"sub": "new 040755 links 2 size 0 version 1"},
    ),
    "rename": Operation(
        N.rename,
        lambda p: (*p.entry("old"), *p.entry("new"), 0),
        {"old": GONE, "new": PREPARED["old"]},
        lambda p: (N.rename, *p.entry("new"), *p.entry("old"), 0),
        {},
    ),
    "rename over": Operation(
        N.rename,
        lambda p: (*p.entry("old"), *p.entry("other"), 0),
        {"old": GONE, "other": PREPARED["old"]},
        lambda p: (N.create, *p.create_parameters("old")),
        {"old": "new 100644 links 1 size 0 version 1", "other": PREPARED["old"]},
    ),
    "exchange": Operation(
        N.rename,
        lambda p: (*p.entry("old"), *p.entry("sub"), 2),
        {"old": PREPARED["sub"], "sub": PREPARED["old"]},
        lambda p: (N.rename, *p.entry("old"), *p.entry("sub"), 2),
        {},
    ),
    "setattr": Operation(
        N.setattr,
        lambda p: (p.inodes["old"], AttributeChanges(mode=0o600)),
        {"old": "old 100600 links 1 size 0 version 1"},
        lambda p: (N.setattr, p.inodes["old"], AttributeChanges(mode=0o604)),
        {"old": "old 100604 links 1 size 0 version 1"},
    ),
    "set_xattr": Operation(
        N.set_xattr,
        lambda p: (p.inodes["old"], b"user.a", b"1", 1),
        {"old": PREPARED["old"] + " user.a"},
        lambda p: (N.remove_xattr, p.inodes["old"], b"user.a"),
        {},
    ),
    "commit": Operation(
        M.write_file,
        lambda p: p.commit_parameters(None, CONTENT),
        {"old": f"old 100644 links 1 size {len(CONTENT)} version 2"},
        lambda p: (
            BookkeepingMethods.commit,
            p.inodes["old"],
            Commit(0, [], 0, [], AttributeChanges(), False),
        ),
        {"old": "old 100644 links 1 size 0 version 3"},
    ),
    "commit without blocks": Operation(
        M.write_file,
        lambda p: p.commit_parameters(0, b""),
        {"old": "old 100644 links 1 size 7 version 2"},
        lambda p: (
            BookkeepingMethods.commit,
            p.inodes["old"],
            Commit(0, [], 3, [], AttributeChanges(), False),
        ),
        {"old": "old 100644 links 1 size 3 version 3"},
    ),
}


def changed(changes: dict[str, str | None]) -> State:
    """Return what a prepared directory holds after changes."""
    return {name: words for name, words in {**PREPARED, **changes}.items() if words is not None}


class Running(threading.Thread):
    """One operation under way; its answer, or the error, when it has ended."""

    def __init__(self, name: str, place: Place, meddled: bool) -> None:
        super().__init__(daemon=True)
        self.operation, self.place, self.meddled = OPERATIONS[name], place, meddled
        self.label = f"{name}{', meddled with' if meddled else ''}"
        self.answer: Any = None
        self.error: QuorumfsError | None = None

    def run(self) -> None:
        try:
            self.answer = self.place.do(self.operation.method, *self.operation.parameters(self.place))
        except QuorumfsError as error:
            self.error = error

    def meddle(self, stranger: Place) -> None:
        """Do with another session what may happen between a call and its answer."""
        method, *parameters = self.operation.meddle(self.place)
        stranger.do(method, *parameters)

    def judge(self, swallowed: Any) -> None:
        """Compare with the model, and the answer with the one that was swallowed."""
        self.join(SECONDS)
        assert not self.is_alive(), f"{self.label}: no answer"
        assert self.error is None, f"{self.label}: {self.error!r}"
        expected = self.operation.meddled if self.meddled else self.operation.changes
        assert self.place.state() == changed(expected), self.label
        if swallowed is not None:
            assert self.answer == method_of(self.operation.method).answer(swallowed), self.label


class Rig(Detour):
    """A client before both proxies, and one behind them."""

    def __init__(self, made: LocalCluster, stack: ExitStack) -> None:
        super().__init__(made, stack)
        self.client = self._client(self.front.address, stack)
        self.behind = self._client(self.cluster.address("metaserver"), stack)
        self.count = 0

    def _client(self, address: str, stack: ExitStack) -> BlockingClient:
        client = BlockingClient([address])
        stack.callback(client.close)
        return client

    def place(self, client: BlockingClient) -> Place:
        self.count += 1
        return Place(client, f"place {self.count}")

    def play(self, seam: str, moment: Moment, victims: tuple[str, ...]) -> None:
        """Catch all operations at a point, kill, start again, and judge."""
        proxy = {"front": self.front, "back": self.back}[seam]
        meddling = [False, True] if moment == "after" else [False]
        calls = [Running(name, self.place(self.client), m) for name in OPERATIONS for m in meddling]
        stranger = self.place(self.behind)
        proxy.trap = trap = Trap(moment, [call.place.session for call in calls])
        for call in calls:
            call.start()
        wait_until(trap.full.is_set, SECONDS, f"all calls are caught (now {len(trap.caught)})")
        for call in calls:
            if call.meddled:
                call.meddle(stranger)
        self.kill(victims, proxy)
        for call in calls:
            call.judge(trap.caught[call.place.session])


@pytest.fixture
def rig(make_cluster: ClusterFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(make_cluster(servers=1, read_quorum=1, write_quorum=1), stack)


@pytest.mark.parametrize("moment", ["before", pytest.param("sent", marks=pytest.mark.long), "after"])
@pytest.mark.parametrize("seam", ["front", "back"])
def test_killed_between_a_call_and_its_answer(rig: Rig, seam: str, moment: Moment) -> None:
    for victims in VICTIMS.values():
        rig.play(seam, moment, victims)


def test_the_write_quorum_is_lost_together_with_the_answer(rig: Rig) -> None:
    """What was carried out is answered so, although nothing could be written now."""
    names = ["create", "commit", "commit without blocks"]
    calls = [Running(name, rig.place(rig.client), False) for name in names]
    rig.front.trap = trap = Trap("after", [call.place.session for call in calls])
    for call in calls:
        call.start()
    wait_until(trap.full.is_set, SECONDS, "all calls are caught")
    rig.cluster.kill("data-1")
    rig.cluster.kill("mediator")
    rig.front.cut()
    rig.cluster.start("mediator")
    for call in calls:
        call.judge(trap.caught[call.place.session])
