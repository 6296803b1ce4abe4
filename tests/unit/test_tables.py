"""The renderers: every cell is told in words, a flagged one stands out, the page loads nothing."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.unit.test_records import make_record
from tools.html_report import render_html
from tools.records import Cell, Outcome, Record, plan_cells
from tools.tables import flagged_lines, make_grids, print_tables, summary

READ_QUORUMS = (3, 2, 1)


def model(cell: Cell, read_quorum: int) -> Outcome:
    """The model of N=3, Qw=3, written down a second time."""
    if cell.operation == "write":
        return Outcome.RIGHT if cell.crashed == 0 else Outcome.REFUSED
    good = 3 - cell.crashed - cell.corrupt
    return Outcome.RIGHT if good >= read_quorum else Outcome.REFUSED


def measure_as_predicted() -> list[Record]:
    return [
        make_record(cell, model(cell, read_quorum), model(cell, read_quorum), read_quorum)
        for read_quorum in READ_QUORUMS
        for cell in plan_cells(3)
    ]


def with_outcome(records: list[Record], cell: Cell, read_quorum: int, outcome: Outcome) -> list[Record]:
    return [
        dataclasses.replace(record, outcome=outcome)
        if record.cell == cell and record.read_quorum == read_quorum
        else record
        for record in records
    ]


def printed(records: list[Record]) -> str:
    out = io.StringIO()
    print_tables(records, Console(file=out, width=100, color_system=None))
    return out.getvalue()


def test_the_fault_counts_are_the_published_table() -> None:
    grid = make_grids(measure_as_predicted())[0]
    assert grid.title == "N=3, Qw=3"
    assert grid.columns == ("0", "1", "2", "3")
    told = {row.label: [str(cell.outcome) for cell in row.cells if cell] for row in grid.rows}
    assert told == {
        "write | corrupt replicas, any Qr": ["right"] * 4,
        "write | crashed servers, any Qr": ["right", "refused", "refused", "refused"],
        "write | colluding replicas, any Qr": ["right"] * 4,
        **{
            f"read | {fault}, Qr={read_quorum}": ["right"] * (4 - read_quorum) + ["refused"] * read_quorum
            for fault in ("corrupt replicas", "crashed servers", "colluding replicas")
            for read_quorum in READ_QUORUMS
        },
    }


def test_mixed_faults_have_a_grid_of_crashed_by_corrupt() -> None:
    grids = {grid.title: grid for grid in make_grids(measure_as_predicted())}
    grid = grids["read under mixed faults, N=3, Qw=3, Qr=1"]
    assert [row.label for row in grid.rows] == ["0 crashed", "1 crashed", "2 crashed", "3 crashed"]
    assert [[cell and str(cell.outcome) for cell in row.cells] for row in grid.rows] == [
        ["right", "right", "right", "refused"],
        ["right", "right", "refused", None],
        ["right", "refused", None, None],
        ["refused", None, None, None],
    ]
    assert "write under mixed faults, N=3, Qw=3, any Qr" in grids


def test_every_measured_cell_is_drawn() -> None:
    """No record may be lost between the run and the table: each one, broken alone, shows."""
    records = measure_as_predicted()
    for position, record in enumerate(records):
        broken = list(records)
        broken[position] = dataclasses.replace(record, outcome=Outcome.WRONG)
        shown = [cell for grid in make_grids(broken) for row in grid.rows for cell in row.cells if cell]
        assert any(cell.flagged for cell in shown), record.cell
        assert re.search(r'<td class="wrong flagged"', render_html(broken)), record.cell


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.WRONG, Outcome.STALE])
def test_a_difference_is_told_in_words(outcome: Outcome) -> None:
    cell = Cell("read", 1, 0)
    records = with_outcome(measure_as_predicted(), cell, 2, outcome)
    text = printed(records)
    assert f"{outcome}, model: right" in text
    assert f"DIFFERS  N=3 Qr=2 Qw=3, read, 1 crashed: {outcome}, the model says right" in text
    assert "1 differ from the model" in summary(records)
    page = render_html(records)
    assert f">{outcome}, model: right</td>" in page
    assert "1 cells break a promise or differ from the model" in page


def test_without_a_difference_nothing_is_flagged() -> None:
    records = measure_as_predicted()
    assert flagged_lines(records) == []
    assert "DIFFERS" not in printed(records)
    assert 'flagged"' not in render_html(records).split("</dl>")[1]
    assert "Every cell is as the model says" in render_html(records)


def test_a_single_setting_names_its_quorums() -> None:
    records = [record for record in measure_as_predicted() if record.read_quorum == 2]
    assert make_grids(records)[0].rows[0].label == "write | corrupt replicas, Qr=2"


class PageChecker(HTMLParser):
    """Collects what would load something, and whether the tags are balanced."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attributes}
        if tag in {"script", "link", "img", "iframe", "object"} or names & {"src", "href", "onclick"}:
            self.outside.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_is_self_contained_and_well_formed() -> None:
    page = render_html(with_outcome(measure_as_predicted(), Cell("read", 1, 0), 2, Outcome.WRONG))
    checker = PageChecker()
    checker.feed(page)
    checker.close()
    assert checker.open == [] and checker.outside == []
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert set(checker.cells) == {"right", "refused", "wrong, model: right"}
    assert "evidence &amp; &lt;more&gt;" in page and "<more>" not in page


def test_nothing_measured_is_still_a_page() -> None:
    assert "No cell was measured" in render_html([])
