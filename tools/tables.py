"""Evaluation records as grids, and grids as tables of text. Pure; safe in any thread.

A Grid is what every renderer draws (here for a terminal, in html_report for a browser): it holds
words, not colours. Nothing here measures, predicts or judges; records already did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.records import Cell, Corruption, Operation, Outcome, Record
from wire.quorum import Quorum

STYLES = {
    Outcome.RIGHT: "green",
    Outcome.REFUSED: "yellow",
    Outcome.WRONG: "bold white on red",
    Outcome.STALE: "bold white on magenta",
}
FLAGGED_STYLE = "bold white on red"

MEANING = {
    Outcome.RIGHT: "the last committed bytes, or a write that is really there",
    Outcome.REFUSED: "an error, and the last committed content is still whole",
    Outcome.WRONG: "bytes that were never the content: a broken promise",
    Outcome.STALE: "bytes that were superseded: a broken promise",
}

ROWS: tuple[tuple[Operation, str, str], ...] = (
    ("write", "corrupt", "corrupt replicas"),
    ("write", "crashed", "crashed servers"),
    ("write", "colluding", "colluding replicas"),
    ("read", "corrupt", "corrupt replicas"),
    ("read", "crashed", "crashed servers"),
    ("read", "colluding", "colluding replicas"),
)
"""The rows of the fault-count grid: operation, which fault is counted, its words."""


@dataclass(frozen=True)
class GridCell:
    """One measured outcome beside its prediction."""

    outcome: Outcome
    expected: Outcome
    flagged: bool
    evidence: str

    @property
    def text(self) -> str:
        """The words in the cell: the outcome, and what the model says if it differs."""
        if self.outcome == self.expected:
            return f"{self.outcome}!" if self.flagged else str(self.outcome)
        return f"{self.outcome}, model: {self.expected}"


@dataclass(frozen=True)
class GridRow:
    """A label and its cells; None where there is no such cell."""

    label: str
    cells: tuple[GridCell | None, ...]


@dataclass(frozen=True)
class Grid:
    """A table: what it is about, what its columns count, its rows."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]


def make_grids(records: Sequence[Record]) -> list[Grid]:
    """Return all grids of these records: for each N and Qw the fault counts, then the mixtures."""
    families: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        families.setdefault((record.servers, record.write_quorum), []).append(record)
    grids: list[Grid] = []
    for (servers, write_quorum), family in families.items():
        grids.append(_count_grid(servers, write_quorum, family))
        if servers > 1:
            grids.extend(_mixed_grids(servers, write_quorum, family))
    return grids


def flagged_lines(records: Sequence[Record]) -> list[str]:
    """Return one line for each record that breaks a promise or differs from the model."""
    return [
        f"N={record.servers} Qr={record.read_quorum} Qw={record.write_quorum}, {record.cell}: "
        f"{record.outcome}, the model says {record.expected}. {'; '.join(record.faults)}. {record.evidence}"
        for record in records
        if record.flagged
    ]


def summary(records: Sequence[Record]) -> str:
    """Return the evaluation in one line."""
    counts = {outcome: sum(record.outcome == outcome for record in records) for outcome in Outcome}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    differing = sum(record.outcome != record.expected for record in records)
    seconds = sum(record.duration_seconds for record in records)
    return (
        f"{len(records)} cells measured in {seconds:.0f} s of operations: {told}; "
        f"{differing} differ from the model"
    )


def _count_grid(servers: int, write_quorum: int, family: Sequence[Record]) -> Grid:
    rows: list[GridRow] = []
    for operation, fault, words in ROWS:
        wanted = [_counted_cell(operation, fault, count) for count in range(servers + 1)]
        rows.extend(_rows_by_read_quorum(f"{operation} | {words}", wanted, family))
    return Grid(
        f"N={servers}, Qw={write_quorum}", "fault count", tuple(map(str, range(servers + 1))), tuple(rows)
    )


def _counted_cell(operation: Operation, fault: str, count: int) -> Cell:
    if fault == "crashed":
        return Cell(operation, count, 0)
    corruption: Corruption = "colluding" if fault == "colluding" and count else "different"
    return Cell(operation, 0, count, corruption)


def _mixed_grids(servers: int, write_quorum: int, family: Sequence[Record]) -> list[Grid]:
    grids: list[Grid] = []
    operations: tuple[Operation, Operation] = ("write", "read")
    columns = tuple(f"{corrupt} corrupt" for corrupt in range(servers + 1))
    for operation in operations:
        made: dict[tuple[GridRow, ...], list[int]] = {}
        for read_quorum, cells in _by_read_quorum(family).items():
            rows = tuple(
                GridRow(
                    f"{crashed} crashed",
                    tuple(cells.get(Cell(operation, crashed, corrupt)) for corrupt in range(servers + 1)),
                )
                for crashed in range(servers + 1)
            )
            made.setdefault(_without_evidence(rows), []).append(read_quorum)
        for rows, read_quorums in made.items():
            setting = f"N={servers}, Qw={write_quorum}, {_quorum_words(read_quorums, family)}"
            grids.append(Grid(f"{operation} under mixed faults, {setting}", operation, columns, rows))
    return grids


def _rows_by_read_quorum(label: str, wanted: Sequence[Cell], family: Sequence[Record]) -> list[GridRow]:
    """Return one row for each read quorum, settings with the same outcomes in one row."""
    merged: dict[tuple[GridCell | None, ...], list[int]] = {}
    for read_quorum, cells in _by_read_quorum(family).items():
        row = _without_evidence((GridRow("", tuple(cells.get(cell) for cell in wanted)),))[0]
        if any(cell is not None for cell in row.cells):
            merged.setdefault(row.cells, []).append(read_quorum)
    return [GridRow(f"{label}, {_quorum_words(read, family)}", row) for row, read in merged.items()]


def _by_read_quorum(family: Sequence[Record]) -> dict[int, dict[Cell, GridCell]]:
    found: dict[int, dict[Cell, GridCell]] = {}
    for record in family:
        cells = found.setdefault(record.read_quorum, {})
        held = cells.get(record.cell)
        if held is None or record.flagged or not held.flagged:
            cells[record.cell] = GridCell(record.outcome, record.expected, record.flagged, record.evidence)
    return found


def _without_evidence(rows: Sequence[GridRow]) -> tuple[GridRow, ...]:
    """Return rows comparable by outcome: evidence stays only with flagged cells."""
    return tuple(
        GridRow(
            row.label,
            tuple(
                cell
                and GridCell(cell.outcome, cell.expected, cell.flagged, cell.evidence if cell.flagged else "")
                for cell in row.cells
            ),
        )
        for row in rows
    )


def _quorum_words(read_quorums: Sequence[int], family: Sequence[Record]) -> str:
    every = {record.read_quorum for record in family}
    if len(every) > 1 and set(read_quorums) == every:
        return "any Qr"
    return "Qr=" + ",".join(map(str, read_quorums))


def to_table(grid: Grid) -> Table:
    """Return a grid as a rich table."""
    table = Table(title=grid.title, title_justify="left", title_style="bold")
    table.add_column(grid.corner)
    for column in grid.columns:
        table.add_column(column, justify="center")
    for row in grid.rows:
        table.add_row(row.label, *(_cell_text(cell) for cell in row.cells))
    return table


def _cell_text(cell: GridCell | None) -> Text:
    if cell is None:
        return Text("")
    return Text(cell.text, style=FLAGGED_STYLE if cell.flagged else STYLES[cell.outcome])


def print_tables(records: Sequence[Record], console: Console) -> None:
    """Print all tables, every flagged record in words, and the summary."""
    for grid in make_grids(records):
        console.print(to_table(grid))
        console.print()
    for line in flagged_lines(records):
        console.print(Text(f"DIFFERS  {line}", style=FLAGGED_STYLE), soft_wrap=True)
    console.print(summary(records), soft_wrap=True, highlight=False)


def settings_of(records: Sequence[Record]) -> list[Quorum]:
    """Return the settings of these records, each once, in the order they were measured."""
    return list(dict.fromkeys(record.quorum for record in records))
