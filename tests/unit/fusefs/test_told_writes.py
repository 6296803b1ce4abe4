"""A new file's first commit: told by the ring if all servers have its block, else the same call once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fusefs.new_files import attributes_of
from fusefs.remote import RemoteBlocks
from wire.config import Deadlines
from wire.errors import QuorumfsError, SessionUnknown, Unavailable
from wire.messages import AttributeChanges, Attributes, Birth, BlockRecord, Commit, Extent, Ticket
from wire.ring import Change, NewFile

BLOCK, DATA = b"b" * 16, b"data"
COMMIT = Commit(
    None,
    [Extent(0, 4, BLOCK, 0)],
    4,
    [BlockRecord(BLOCK, 4, b"d" * 32)],
    AttributeChanges(atime_ns=44, mtime_ns=55),
    durable=False,
)
EMPTY = Commit(None, [], 0, [], AttributeChanges(atime_ns=44, mtime_ns=55), durable=False)
BIRTH = Birth(1, b"a", 0o644, 7, 8)
ANSWER = Attributes(9, 0o100644, 1, 7, 8, 0, 4, 4, 1, 2, 3, 2)


class Mount:
    """Stands for the client, the session, its ring and the patience of a mount."""

    number = 1

    def __init__(self) -> None:
        self.ring = self
        self.is_alone = self.takes = True
        self.have_all = True
        self.doubts = False
        self.error: QuorumfsError | None = None
        self.calls: list[tuple[Ticket, int, bool]] = []
        """Of each call: its ticket, how many blocks came with it, and whether it may be told."""
        self.told: list[Change] = []
        self.sequence = 0
        self.renewed = False

    def mutate(self, call: Callable[[Ticket], Any]) -> Any:
        self.sequence += 1
        return call(Ticket(1, 0, self.sequence))

    def renew_after(self, dead: int) -> None:
        self.renewed = True

    def go_on(self, seconds: float) -> None: ...

    def persist(self, call: Callable[[], Any]) -> Any:
        return call()

    def call(self, seconds: float, method: Any, ticket: Ticket, *params: Any) -> Attributes | None:
        may_tell = len(params) > 4
        self.calls.append((ticket, len(params[2]), may_tell))
        if self.error is not None and not may_tell:
            raise self.error
        return None if may_tell and self.have_all else ANSWER

    def is_run(self) -> bool:
        return self.is_alone

    def tell(self, change: Change, ask: Callable[[], object]) -> bool:
        if self.doubts:
            ask()
        elif self.takes:
            self.told.append(change)
        return self.takes


FIRST = Ticket(1, 0, 1)


@pytest.fixture
def mount() -> Mount:
    return Mount()


def write(mount: Any, commit: Commit = COMMIT, birth: Birth | None = BIRTH) -> Attributes:
    payload = [DATA] if commit.blocks else []
    return RemoteBlocks(mount, mount, Deadlines(), mount).write_file(9, commit, payload, birth)


def test_what_all_servers_have_is_told_and_not_committed_by_a_call(mount: Mount) -> None:
    made = write(mount)
    assert mount.calls == [(FIRST, 1, True)]
    (told,) = mount.told
    assert isinstance(told, NewFile) and made == attributes_of(told)
    assert (told.slot, told.sequence, told.block, told.name) == (0, 1, BLOCK, b"a")


def test_an_empty_file_takes_no_call_at_all(mount: Mount) -> None:
    made = write(mount, EMPTY)
    assert not mount.calls and made == attributes_of(mount.told[0])  # type: ignore[arg-type]


def test_what_a_server_lacks_is_committed_by_the_mediator(mount: Mount) -> None:
    mount.have_all = False
    assert write(mount) == ANSWER
    assert mount.calls == [(FIRST, 1, True)] and not mount.told


def test_what_the_ring_does_not_take_is_the_same_call_without_the_bytes(mount: Mount) -> None:
    mount.takes = False
    assert write(mount) == ANSWER
    assert mount.calls == [(FIRST, 1, True), (FIRST, 0, False)]


@pytest.mark.parametrize("takes", [True, False])
def test_who_is_in_doubt_has_the_answer_of_the_same_call(mount: Mount, takes: bool) -> None:
    mount.doubts, mount.takes = True, takes
    assert write(mount) == ANSWER
    assert mount.calls == [(FIRST, 1, True), (FIRST, 0, False)]


@pytest.mark.parametrize("error", [SessionUnknown("gone"), Unavailable("nobody there")])
def test_an_error_while_in_doubt_may_mean_that_it_was_carried_out(mount: Mount, error: QuorumfsError) -> None:
    mount.doubts, mount.error = True, error
    with pytest.raises(type(error)) as raised:
        write(mount)
    assert raised.value.resent
    assert mount.renewed == isinstance(error, SessionUnknown)


def test_others_take_calls(mount: Mount) -> None:
    assert write(mount, birth=None) == ANSWER
    assert write(mount, COMMIT._replace(durable=True)) == ANSWER
    mount.is_alone = False
    assert write(mount) == ANSWER
    assert [(blocks, may_tell) for _, blocks, may_tell in mount.calls] == [(1, False)] * 3
    assert not mount.told
