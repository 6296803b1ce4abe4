"""The mount's end of the ring: what it tells, when it does not, and whom it asks when it may be too late."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import fusefs.ring
from fusefs.grant import Grant
from fusefs.ring import ChangeRing
from tests.unit.fusefs.test_grant import Clock
from wire.errors import Unavailable
from wire.ring import RING_BYTES, SLOTS, Change, NewFile, Removal, slot_offset, unpack_entry
from wire.ring_head import Head, pack_head

SESSION, TERM = 7, 99
HEAD = Head(b"0" * 36, SESSION, TERM, 3, 5)
FILE = NewFile(0, 9, 5, 1, 0o644, 0, 0, 4096, 1232, 1233, 1234, b"b" * 16, b"d" * 32, b"new")


class Ring:
    """A ring's file, as the server sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(RING_BYTES))
        self.say(HEAD)

    def say(self, head: Head) -> None:
        with self.path.open("r+b") as file:
            file.write(pack_head(head))

    def told(self, number: int) -> Change | None:
        entry = unpack_entry(self.path.read_bytes()[slot_offset(number) :], number, TERM)
        return entry and entry.change


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Ring:
    return Ring(tmp_path / "ring")


@pytest.fixture
def ring(clock: Clock, file: Ring) -> ChangeRing:
    grant = Grant(clock)
    made = ChangeRing(grant)
    made.move(os.fsencode(file.path), SESSION)
    made.expect(TERM)
    grant.extend(clock.now, 2.5)
    return made


def no_question() -> None:
    raise AssertionError("there is nothing to be asked")


def tell(ring: ChangeRing, name: bytes = b"a", ask: Callable[[], object] = no_question) -> bool:
    return ring.tell(Removal(1, 5, 1234, name), ask)


def test_what_is_removed_is_told_one_after_the_other(ring: ChangeRing, file: Ring) -> None:
    assert tell(ring) and tell(ring, b"b")
    assert file.told(4) == Removal(1, 5, 1234, b"a")
    assert file.told(5) == Removal(1, 5, 1234, b"b")


def test_nothing_is_told_by_a_mount_that_is_not_alone(ring: ChangeRing, file: Ring, clock: Clock) -> None:
    clock.now += 3
    assert not tell(ring)
    assert file.told(4) is None


@pytest.mark.parametrize("head", [HEAD._replace(term=TERM + 1), HEAD._replace(session=SESSION + 1)])
def test_another_ring_is_not_used(ring: ChangeRing, file: Ring, head: Head) -> None:
    ring.expect(0)
    file.say(head)
    ring.expect(TERM)
    assert not tell(ring)
    file.say(HEAD)
    ring.expect(TERM)
    assert tell(ring), "the next answer has it looked at again"


@pytest.mark.parametrize("put", ["nothing", "directory", "fifo", "link", "garbage"])
def test_what_is_no_ring_is_not_used(ring: ChangeRing, file: Ring, put: str) -> None:
    ring.expect(0)
    aside = file.path.rename(file.path.with_name("aside"))
    if put == "directory":
        file.path.mkdir()
    elif put == "fifo":
        os.mkfifo(file.path)
    elif put == "link":
        file.path.symlink_to(aside)
    elif put == "garbage":
        file.path.write_bytes(b"?" * RING_BYTES)
    ring.expect(TERM)
    assert not tell(ring)


def test_a_ring_that_the_server_has_ended_is_not_used(ring: ChangeRing, file: Ring) -> None:
    file.say(HEAD._replace(term=0))
    assert not tell(ring)
    assert file.told(4) is None


def test_a_full_ring_takes_calls_until_the_server_has_carried_some_out(ring: ChangeRing, file: Ring) -> None:
    for number in range(SLOTS):
        assert tell(ring, b"%d" % number)
    assert not tell(ring)
    file.say(HEAD._replace(taken=4))
    assert tell(ring, b"more") and not tell(ring)
    assert file.told(4) is None and file.told(4 + SLOTS) == Removal(1, 5, 1234, b"more")


def test_new_files_are_told_as_long_as_the_server_has_room(ring: ChangeRing, file: Ring) -> None:
    assert ring.tell(FILE, no_question)
    assert tell(ring)
    assert not ring.tell(FILE, no_question)
    assert tell(ring, b"b"), "what is removed needs no room"
    assert [file.told(number) for number in (4, 5)] == [FILE, Removal(1, 5, 1234, b"a")]
    file.say(HEAD._replace(taken=6, room_until=7))
    assert ring.tell(FILE, no_question) and not ring.tell(FILE, no_question)
    assert file.told(7) == FILE


def test_only_what_follows_another_change_soon_is_of_a_run(
    ring: ChangeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not ring.is_run()
    monkeypatch.setattr(fusefs.ring, "RUN_SECONDS", 1e6)
    assert ring.is_run()
    monkeypatch.setattr(fusefs.ring, "RUN_SECONDS", 0.0)
    assert not ring.is_run()
    monkeypatch.setattr(fusefs.ring, "RUN_SECONDS", 1e6)
    ring.expect(0)
    assert not ring.is_run(), "there is no ring"


def test_while_calls_change_names_removals_take_calls_too(ring: ChangeRing) -> None:
    with ring.changing():
        with ring.changing():
            assert not tell(ring)
        assert not tell(ring)
    assert tell(ring)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        clock.now += 3
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.usefixtures("stopped")
def test_what_may_be_too_late_is_told_if_the_server_says_so(ring: ChangeRing, file: Ring) -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        file.say(HEAD._replace(taken=4))

    assert tell(ring, ask=ask) and asked


@pytest.mark.usefixtures("stopped")
def test_what_was_too_late_takes_a_call_and_so_does_all_of_that_term(
    ring: ChangeRing, file: Ring, clock: Clock
) -> None:
    assert not tell(ring, ask=lambda: None)
    ring.expect(TERM)
    ring._grant.extend(clock.now, 9.0)
    assert not tell(ring, b"b")
    file.say(HEAD._replace(term=TERM + 1))
    ring.expect(TERM + 1)
    assert tell(ring, b"b"), "another term has another beginning"


@pytest.mark.usefixtures("stopped")
def test_what_nobody_can_tell_is_an_error_and_ends_the_term_here(
    ring: ChangeRing, clock: Clock, file: Ring
) -> None:
    def ask() -> None:
        raise Unavailable("nobody there")

    with pytest.raises(Unavailable):
        tell(ring, ask=ask)
    ring.expect(TERM)
    ring._grant.extend(clock.now, 9.0)
    assert not tell(ring, b"b"), "the server may be reading that slot"
    assert file.told(4) == Removal(1, 5, 1234, b"a")


def test_what_waits_is_not_written_over_after_a_while_without_a_ring(ring: ChangeRing, file: Ring) -> None:
    assert tell(ring) and tell(ring, b"b")
    ring.expect(0)
    assert not tell(ring, b"c")
    ring.expect(TERM)
    assert tell(ring, b"d")
    told = [file.told(number) for number in (4, 5, 6)]
    assert [removal and removal.name for removal in told] == [b"a", b"b", b"d"]


@pytest.mark.usefixtures("stopped")
def test_while_the_server_is_asked_heartbeats_and_others_go_on(ring: ChangeRing, clock: Clock) -> None:
    def ask() -> None:
        ring._grant.extend(clock.now, 9.0)
        others = threading.Thread(target=go_on)
        others.start()
        others.join(20)
        assert not others.is_alive()

    def go_on() -> None:
        assert not tell(ring, b"other")
        ring.expect(TERM)
        with ring.changing():
            pass

    assert not tell(ring, ask=ask)


def test_a_write_that_fails_takes_a_call_and_so_do_all_then(
    ring: ChangeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: 5)
        assert not tell(ring)
    assert not tell(ring)


def test_a_new_session_has_another_ring(ring: ChangeRing, file: Ring, tmp_path: Path, clock: Clock) -> None:
    other = Ring(tmp_path / "other")
    other.say(HEAD._replace(session=8, term=TERM, taken=0))
    ring.move(os.fsencode(other.path), 8)
    assert not tell(ring)
    ring.expect(TERM)
    ring._grant.extend(clock.now, 9.0)
    assert tell(ring) and other.told(1) is not None and file.told(4) is None
    ring.close()
    assert not tell(ring)
