"""Exactly once, leases, open files without names, and restarts."""

from __future__ import annotations

import stat

import pytest

from metaserver import pages, sessions
from metaserver.answers import decode, encode
from tests.unit.metaserver.harness import FILE, LEASE_SECONDS, Harness
from wire.errors import (
    AlreadyExists,
    Busy,
    InternalError,
    InvalidArgument,
    NoSpace,
    NotFound,
    SequenceError,
    SessionUnknown,
    StaleFile,
)
from wire.messages import AttributeChanges, Attributes, Commit, Ticket


def create(meta: Harness, ticket: Ticket, name: bytes, open_it: bool = False) -> Attributes:
    return meta.service.create(ticket, 1, name, FILE, 0, 0, 0, b"", open_it)


def test_answers_are_kept_faithfully() -> None:
    attributes = Attributes(*[(-1) ** n * (2**63 - 1 - n) for n in range(12)])
    assert decode(encode(attributes)) == attributes
    assert decode(encode(None)) is None


def test_a_call_sent_again_is_answered_and_not_done_again(meta: Harness) -> None:
    ticket = Ticket(meta.session, 3, 10)
    made = create(meta, ticket, b"a")
    assert create(meta, ticket, b"a") == made
    meta.restart()
    assert create(meta, ticket, b"a") == made
    remove = Ticket(meta.session, 3, 11)
    after = meta.service.unlink(remove, 1, b"a")
    assert after == meta.service.getattr(1)
    create(meta, Ticket(meta.session, 4, 1), b"a")
    assert meta.service.unlink(remove, 1, b"a") == after != meta.service.getattr(1)
    assert meta.names(1) == [b"a"]


def test_a_late_copy_of_an_older_call_is_refused(meta: Harness) -> None:
    create(meta, Ticket(meta.session, 3, 10), b"a")
    create(meta, Ticket(meta.session, 3, 20), b"b")
    with pytest.raises(SequenceError):
        create(meta, Ticket(meta.session, 3, 10), b"a")
    create(meta, Ticket(meta.session, 4, 1), b"c")
    assert meta.names(1) == [b"a", b"b", b"c"]


def test_a_call_that_was_settled_comes_too_late(meta: Harness) -> None:
    """Also if it was carried out before, and after a restart."""
    done, late = Ticket(meta.session, 3, 10), Ticket(meta.session, 4, 10)
    create(meta, done, b"a")
    for ticket in (done, late):
        meta.service.settle(ticket._replace(sequence=11))
    for restart in (False, True):
        if restart:
            meta.restart()
        for ticket in (done, late):
            with pytest.raises(SequenceError):
                create(meta, ticket, b"b")
    assert meta.names(1) == [b"a"]
    create(meta, Ticket(meta.session, 4, 12), b"b")
    with pytest.raises(SessionUnknown):
        meta.service.settle(Ticket(meta.session + 99, 0, 1))


def test_a_ticket_of_another_call_makes_no_file(meta: Harness) -> None:
    ticket, ino = meta.ticket(), meta.create(1, b"a").ino
    ticket = ticket._replace(sequence=ticket.sequence + 100)
    meta.service.set_xattr(ticket, ino, b"user.x", b"1", 0)
    with pytest.raises(SequenceError):
        meta.service.create(ticket, 1, b"b", FILE, 0, 0, 0, b"", True)
    assert meta.names(1) == [b"a"]


def test_a_call_that_failed_is_tried_anew(meta: Harness) -> None:
    ticket = Ticket(meta.session, 3, 10)
    with pytest.raises(NotFound):
        meta.service.unlink(ticket, 1, b"a")
    create(meta, Ticket(meta.session, 4, 1), b"a")
    meta.service.unlink(ticket, 1, b"a")
    assert meta.names(1) == []


def test_a_failed_call_leaves_nothing_behind(meta: Harness) -> None:
    create(meta, Ticket(meta.session, 0, 1), b"a")
    before, totals = meta.service.getattr(1), dict(meta.store.totals)
    with pytest.raises(AlreadyExists):
        create(meta, Ticket(meta.session, 0, 2), b"a", open_it=True)
    assert meta.service.getattr(1) == before
    assert meta.store.totals == totals
    assert pages.connect(meta.path).execute("SELECT count(*) FROM slots").fetchone() == (1,)


@pytest.mark.parametrize("slot", [-1, 1024, 2**64])
def test_slots_are_bounded(meta: Harness, slot: int) -> None:
    with pytest.raises(InvalidArgument):
        create(meta, Ticket(meta.session, slot, 1), b"a")
    with pytest.raises(InvalidArgument):
        create(meta, Ticket(meta.session, 0, 2**63), b"a")


def test_a_durable_commit_sent_again(meta: Harness) -> None:
    file = meta.create(1, b"a")
    ticket = Ticket(meta.session, 5, 1)
    commit = Commit(0, [], 10, [], AttributeChanges(), True)
    first = meta.wait(meta.service.commit(ticket, file.ino, commit))
    assert meta.wait(meta.service.commit(ticket, file.ino, commit)) == first
    assert meta.service.getattr(file.ino).version == first.version


def test_session_numbers_are_never_given_again(meta: Harness) -> None:
    one = meta.open_session()
    meta.service.close_session(one)
    meta.service.close_session(one)
    meta.restart()
    two = meta.open_session()
    assert meta.session < one < two
    with pytest.raises(SessionUnknown):
        create(meta, Ticket(one, 0, 1), b"a")


def test_a_late_copy_of_a_close_lets_go_of_nothing_that_was_opened_since(meta: Harness) -> None:
    """It was sent again, by another mediator, as no answer came; then the file was opened anew."""
    opened = [create(meta, meta.ticket(), name, open_it=True).ino for name in (b"a", b"b", b"c")]
    meta.service.close(meta.session, opened, 1)
    meta.service.open(meta.session, opened[0], False, closes=1)
    meta.service.tell_open(meta.session, [opened[1]], closes=1)
    meta.service.close(meta.session, opened, 1)
    for name in (b"a", b"b", b"c"):
        meta.unlink(1, name)
    meta.wait(meta.service.reaper.run_once())
    assert [meta.service.getattr(ino).nlink for ino in opened[:2]] == [0, 0]
    with pytest.raises(StaleFile):
        meta.service.getattr(opened[2])
    meta.restart()
    meta.service.reclaim(meta.session, meta.sessions.epoch, opened[:2], closes=1)
    meta.service.close(meta.session, opened, 1)
    meta.wait(meta.service.reaper.run_once())
    assert [meta.service.getattr(ino).nlink for ino in opened[:2]] == [0, 0]
    meta.service.close(meta.session, opened, 2)
    meta.wait(meta.service.reaper.run_once())
    for ino in opened:
        with pytest.raises(StaleFile):
            meta.service.getattr(ino)


def test_a_late_copy_of_an_open_holds_nothing_that_was_closed_since(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file would keep its room until the session ends."""
    monkeypatch.setattr(sessions, "CLOSED_REMEMBERED", 3)
    making = Ticket(meta.session, 7, 1)
    made = create(meta, making, b"a", open_it=True)
    other = create(meta, meta.ticket(), b"b").ino
    meta.service.open(meta.session, other, False)
    meta.service.close(meta.session, [made.ino, other], 1)
    assert create(meta, making, b"a", open_it=True) == made
    meta.service.open(meta.session, other, False)
    meta.service.tell_open(meta.session, [other])
    assert meta.sessions.held() == frozenset()
    meta.service.open(meta.session, other, False, closes=1)
    assert meta.sessions.held() == {other}
    meta.service.close(meta.session, [100, 101, 102], 2)
    meta.service.open(meta.session, made.ino, False)
    assert meta.sessions.held() == {other, made.ino}, "what was closed long ago is not known any more"


def test_there_are_not_too_many_sessions(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 2)
    meta.open_session()
    with pytest.raises(Busy):
        meta.open_session()


def test_a_file_without_names_lives_while_it_is_open(meta: Harness) -> None:
    file = create(meta, meta.ticket(), b"a", open_it=True)
    other = meta.open_session()
    meta.service.open(other, file.ino, True)
    meta.service.open(other, file.ino, True)
    block = meta.write(file.ino, 0, 10).block
    meta.unlink(1, b"a")
    assert meta.service.getattr(file.ino).nlink == 0
    meta.write(file.ino, 10, 10)
    meta.close_files(meta.session, [file.ino])
    meta.wait(meta.service.reaper.run_once())
    assert meta.service.open(other, file.ino, False).attributes.size == 20
    meta.close_files(other, [file.ino])
    with pytest.raises(StaleFile):
        meta.service.open(other, file.ino, False)
    assert block in meta.wait(meta.service.garbage(10, 0))


def test_a_file_is_opened_by_the_names_that_lead_to_it_only(meta: Harness) -> None:
    make = meta.service.create
    directory = make(meta.ticket(), 1, b"d", stat.S_IFDIR | 0o755, 0, 0, 0, b"", False)
    file = make(meta.ticket(), directory.ino, b"a", FILE, 0, 0, 0, b"", False)
    assert meta.service.open(meta.session, file.ino, False, 1, [b"d", b"a"]).attributes == file
    meta.service.rename(meta.ticket(), directory.ino, b"a", directory.ino, b"b", 0)
    for names in ([b"d", b"a"], [b"d"], [b"x", b"b"]):
        with pytest.raises(StaleFile):
            meta.service.open(meta.session, file.ino, False, 1, names)


def test_an_open_file_that_is_replaced_lives_too(meta: Harness) -> None:
    file = create(meta, meta.ticket(), b"a", open_it=True)
    meta.create(1, b"b")
    meta.rename(1, b"b", 1, b"a")
    assert meta.service.getattr(file.ino).nlink == 0
    meta.service.close_session(meta.session)
    with pytest.raises(StaleFile):
        meta.service.getattr(file.ino)


def test_a_session_that_is_not_renewed_ends(meta: Harness) -> None:
    other = meta.open_session()
    file = create(meta, Ticket(other, 0, 1), b"a", open_it=True)
    meta.unlink(1, b"a")
    meta.seconds += LEASE_SECONDS * 0.8
    assert meta.service.renew(meta.session) == meta.service.identity().epoch
    meta.seconds += LEASE_SECONDS * 0.8
    meta.wait(meta.service.reaper.run_once())
    for call in (
        lambda: meta.service.renew(other),
        lambda: create(meta, Ticket(other, 0, 2), b"b"),
        lambda: meta.service.open(other, 1, False),
        lambda: meta.close_files(other, []),
        lambda: meta.reclaim(other, []),
    ):
        with pytest.raises(SessionUnknown):
            call()
    with pytest.raises(StaleFile):
        meta.service.getattr(file.ino)
    meta.service.renew(meta.session)


def test_a_server_that_did_not_run_ends_no_session(meta: Harness) -> None:
    meta.seconds += LEASE_SECONDS * 10
    meta.sessions.forgive(LEASE_SECONDS * 10)
    meta.wait(meta.service.reaper.run_once())
    meta.service.renew(meta.session)


def test_a_server_that_did_not_run_goes_on_waiting_for_what_sessions_hold(meta: Harness) -> None:
    other = meta.open_session()
    file = create(meta, Ticket(other, 0, 1), b"a", open_it=True)
    meta.unlink(1, b"a")
    meta.restart()
    meta.reclaim(meta.session, [])
    meta.service.renew(other)
    meta.seconds += 100 * LEASE_SECONDS
    meta.sessions.forgive(100 * LEASE_SECONDS)
    meta.wait(meta.service.reaper.run_once())
    meta.reclaim(other, [file.ino])
    assert meta.service.getattr(file.ino).nlink == 0


def test_a_lease_renewed_after_a_stop_is_not_longer_than_others(meta: Harness) -> None:
    """What waited while the server did not run is heard before it learns that it did not run."""
    other = meta.open_session()
    meta.seconds += LEASE_SECONDS * 10
    meta.service.renew(other)
    meta.sessions.forgive(LEASE_SECONDS * 10)
    meta.seconds += LEASE_SECONDS * 1.1
    meta.wait(meta.service.reaper.run_once())
    with pytest.raises(SessionUnknown):
        meta.service.renew(other)


def test_each_start_has_a_higher_epoch_whatever_the_date_is(meta: Harness) -> None:
    epochs = [meta.store.epoch]
    for date_ns in (5, 2**60, 7):
        meta.now_ns = date_ns
        meta.restart()
        epochs.append(meta.service.renew(meta.session))
    assert epochs == sorted(set(epochs))


def test_no_start_asks_with_the_numbers_of_another(meta: Harness) -> None:
    """A late answer to an earlier one would be taken for all that is open."""
    asked = []
    for _ in range(3):
        for _ in range(4):
            meta.sessions.ask_opens(meta.session)
            asked.append(meta.sessions.asks_opens(meta.session))
        meta.restart()
    assert len(set(asked)) == len(asked)


def test_a_mount_is_told_of_a_shorter_lease_than_it_has(meta: Harness) -> None:
    told_ms = meta.wait(meta.service.open_session("told")).lease_ms
    assert told_ms == LEASE_SECONDS * 900, "its clock may be slow by a tenth"


def test_after_a_restart_nothing_is_removed_before_all_have_reclaimed(meta: Harness) -> None:
    other = meta.open_session()
    open_file = create(meta, meta.ticket(), b"open", open_it=True)
    forgotten = create(meta, Ticket(other, 0, 1), b"forgotten", open_it=True)
    before = meta.service.identity().epoch
    for name in (b"open", b"forgotten"):
        meta.unlink(1, name)
    meta.restart()
    assert meta.service.renew(meta.session) > before
    late = create(meta, Ticket(other, 0, 2), b"late")
    meta.unlink(1, b"late")
    meta.wait(meta.service.reaper.run_once())
    meta.reclaim(meta.session, [open_file.ino])
    meta.wait(meta.service.reaper.run_once())
    for ino in (open_file.ino, forgotten.ino, late.ino):
        assert meta.service.getattr(ino).nlink == 0
    meta.reclaim(other, [])
    meta.wait(meta.service.reaper.run_once())
    for ino in (forgotten.ino, late.ino):
        with pytest.raises(StaleFile):
            meta.service.getattr(ino)
    assert meta.service.getattr(open_file.ino).nlink == 0


@pytest.mark.parametrize("renews", [True, False])
def test_a_session_that_never_reclaims_holds_nothing_up_for_ever(meta: Harness, renews: bool) -> None:
    other = meta.open_session()
    file = create(meta, Ticket(other, 0, 1), b"a", open_it=True)
    meta.unlink(1, b"a")
    meta.restart()
    meta.reclaim(meta.session, [])
    for _ in range(5):
        meta.seconds += LEASE_SECONDS * 0.5
        meta.service.renew(meta.session)
        if renews:
            meta.service.renew(other)
        meta.wait(meta.service.reaper.run_once())
    with pytest.raises(StaleFile):
        meta.service.getattr(file.ino)
    assert meta.sessions.lives(other) == renews


def test_a_create_sent_again_after_a_restart_is_open_again(meta: Harness) -> None:
    ticket = meta.ticket()
    file = create(meta, ticket, b"a", open_it=True)
    meta.restart()
    create(meta, ticket, b"a", open_it=True)
    meta.reclaim(meta.session, [])
    meta.unlink(1, b"a")
    meta.wait(meta.service.reaper.run_once())
    assert meta.service.getattr(file.ino).nlink == 0


def test_status_is_plain_data(meta: Harness) -> None:
    status = meta.service.status()
    assert status["counts"]["sessions"] == 1
    assert [each["session"] for each in status["sessions"]] == [meta.session]


def test_an_error_of_the_database_is_told_and_leaves_no_transaction(
    meta: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_session: int) -> None:
        meta.store.totals["inodes"] += 7
        meta.store.execute("INSERT INTO no_such_table VALUES (1)")

    totals = dict(meta.store.totals)
    with pytest.raises(InternalError):
        meta.store.once(meta.ticket(), fail)
    assert "the database failed" in caplog.text
    assert meta.store.totals == totals
    meta.create(1, b"a")


def test_a_full_disk_is_told_and_refuses_whole_calls(meta: Harness) -> None:
    (pages,) = meta.store.execute("PRAGMA page_count").fetchone()
    meta.store.execute(f"PRAGMA max_page_count = {pages + 1}").fetchone()
    made = 0
    with pytest.raises(NoSpace):
        for made in range(10_000):
            meta.create(1, b"%0255d" % made)
    assert len(meta.names(1)) == made
    assert meta.findings() == []
    meta.store.execute("PRAGMA max_page_count = 1000000").fetchone()
    meta.create(1, b"again")


def test_a_session_cannot_have_endless_files_open(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that no inode has cost memory until the session ended. What is known may be told again."""
    monkeypatch.setattr(sessions, "TOLD_OPEN_MAX", 10)
    meta.service.tell_open(meta.session, list(range(100, 108)))
    for _ in range(2):
        with pytest.raises(Busy, match="at most 10 open files"):
            meta.service.tell_open(meta.session, [200, 201, 202])
    with pytest.raises(Busy):
        meta.service.reclaim(meta.session, meta.service.status()["epoch"], [200, 201, 202])
    meta.service.tell_open(meta.session, [*range(100, 108), 200, 201])
    meta.service.close(meta.session, [200], 1)
    meta.service.tell_open(meta.session, [202])
