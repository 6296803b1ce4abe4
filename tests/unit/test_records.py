"""How an evaluation judges what was measured: truth tables, and the records' way through JSON."""

from __future__ import annotations

import pytest

from tools.records import (
    PUBLISHED_SETTINGS,
    Cell,
    Outcome,
    Record,
    classify_read,
    classify_write,
    dumps,
    loads,
    plan_cells,
)

OLDER, LAST, NEW, OTHER = b"older", b"last", b"new", b"never written"
COMMITTED = [OLDER, LAST]


def make_record(cell: Cell, outcome: Outcome, expected: Outcome, read_quorum: int = 2) -> Record:
    return Record(
        when="2024-01-01T00:00:00+00:00",
        version="0.1.0",
        seed=7,
        access="mount",
        rpc="msgpack",
        servers=3,
        read_quorum=read_quorum,
        write_quorum=3,
        operation=cell.operation,
        crashed=cell.crashed,
        corrupt=cell.corrupt,
        corruption=cell.corruption,
        faults=("data-1 crashed",),
        expected=expected,
        outcome=outcome,
        evidence="evidence & <more>",
        duration_seconds=0.5,
    )


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (LAST, Outcome.RIGHT),
        (OLDER, Outcome.STALE),
        (OTHER, Outcome.WRONG),
        (b"", Outcome.WRONG),
        (LAST[:-1], Outcome.WRONG),
        (None, Outcome.REFUSED),
    ],
)
def test_a_read_is_judged_by_the_bytes_that_it_gave(content: bytes | None, outcome: Outcome) -> None:
    assert classify_read(content, COMMITTED) == outcome


def test_a_content_committed_again_is_right_not_stale() -> None:
    assert classify_read(LAST, [LAST, OLDER, LAST]) == Outcome.RIGHT


@pytest.mark.parametrize(
    ("acknowledged", "afterwards", "untouched", "outcome"),
    [
        (True, NEW, False, Outcome.RIGHT),
        (True, LAST, False, Outcome.STALE),  # acknowledged, and lost
        (True, LAST, True, Outcome.STALE),
        (True, OTHER, False, Outcome.WRONG),
        (True, None, False, Outcome.WRONG),  # acknowledged, and unreadable with all servers up
        (False, LAST, True, Outcome.REFUSED),
        (False, LAST, False, Outcome.REFUSED),
        (False, None, True, Outcome.REFUSED),  # the injected corruption hides it, not the write
        (False, None, False, Outcome.WRONG),  # the failed write made it unreadable
        (False, NEW, False, Outcome.WRONG),  # failed, and yet visible
        (False, b"", False, Outcome.WRONG),  # emptied by a failed `echo > f`
        (False, OLDER, False, Outcome.STALE),
    ],
)
def test_a_write_is_judged_by_what_is_there_afterwards(
    acknowledged: bool, afterwards: bytes | None, untouched: bool, outcome: Outcome
) -> None:
    assert classify_write(acknowledged, NEW, COMMITTED, afterwards, untouched) == outcome


def test_the_published_settings() -> None:
    assert [(q.servers, q.read, q.write) for q in PUBLISHED_SETTINGS] == [
        (1, 1, 1),
        (5, 5, 5),
        (5, 4, 5),
        (5, 3, 5),
        (5, 2, 5),
        (5, 1, 5),
    ]


@pytest.mark.parametrize("servers", [1, 2, 3, 5, 7])
def test_a_plan_has_every_cell_once(servers: int) -> None:
    cells = plan_cells(servers)
    assert len(set(cells)) == len(cells)
    assert all(cell.crashed + cell.corrupt <= servers for cell in cells)
    for operation in ("write", "read"):
        for count in range(servers + 1):
            assert Cell(operation, count, 0) in cells
            assert Cell(operation, 0, count) in cells
            assert count == 0 or Cell(operation, 0, count, "colluding") in cells
        mixed = [cell for cell in cells if cell.operation == operation and cell.crashed and cell.corrupt]
        assert len(mixed) == servers * (servers - 1) // 2
    assert [cell.crashed for cell in cells] == sorted(cell.crashed for cell in cells)


def test_a_record_is_flagged_when_it_differs_or_breaks_a_promise() -> None:
    cell = Cell("read", 1, 0)
    flagged = {
        (outcome, expected): make_record(cell, outcome, expected).flagged
        for outcome in Outcome
        for expected in Outcome
    }
    unflagged = {pair for pair, is_flagged in flagged.items() if not is_flagged}
    assert unflagged == {(Outcome.RIGHT, Outcome.RIGHT), (Outcome.REFUSED, Outcome.REFUSED)}


def test_records_pass_through_json_unchanged() -> None:
    records = [make_record(cell, Outcome.RIGHT, Outcome.REFUSED) for cell in plan_cells(3)]
    assert loads(dumps(records)) == records


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0, "records": []}', '{"format": 1, "records": [{}]}'])
def test_another_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (Cell("read", 0, 0), "read, 0 crashed"),
        (Cell("read", 2, 0), "read, 2 crashed"),
        (Cell("write", 0, 3), "write, 3 corrupt"),
        (Cell("write", 0, 3, "colluding"), "write, 3 colluding corrupt"),
        (Cell("read", 1, 2), "read, 1 crashed and 2 corrupt"),
    ],
)
def test_a_cell_in_words(cell: Cell, words: str) -> None:
    assert str(cell) == words
