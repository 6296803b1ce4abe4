"""Evaluation records as one self-contained page. Pure; safe in any thread.

Colour only repeats what the words in the cells say. Everything that comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tools.html_page import html_page
from tools.records import Outcome, Record
from tools.tables import MEANING, Grid, GridCell, GridRow, flagged_lines, make_grids, settings_of, summary

STYLE = """
:root { --right: #c9efd2; --refused: #fdeec0; --wrong: #b3122a; --stale: #7a1fa2; --alarm-ink: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --right: #174d2a; --refused: #55430c; --wrong: #d7263d; --stale: #9c3fc4; } }
th, td { text-align: center; }
.right { background: var(--right); } .refused { background: var(--refused); }
.wrong, .stale, .flagged { color: var(--alarm-ink); font-weight: 700; }
.wrong, .flagged { background: var(--wrong); } .stale { background: var(--stale); }
.flagged { outline: 3px solid var(--ink); outline-offset: -4px; }
dt { display: inline-block; padding: 0 .6rem; min-width: 5rem; }
dd { display: inline; margin: 0 0 0 .5rem; } dl div { margin: .3rem 0; }
"""


def render_html(records: Sequence[Record]) -> str:
    """Return the page: the verdict, the legend, every grid, and the flagged cells in words."""
    flagged = flagged_lines(records)
    verdict = (
        f"{len(flagged)} cells break a promise or differ from the model"
        if flagged
        else "Every cell is as the model says, and none is wrong or stale"
    )
    parts = [
        f"<p><strong>{escape(verdict)}.</strong></p>",
        f'<p>{escape(summary(records))}.</p>\n<p class="faint">{escape(_provenance(records))}</p>',
        _legend(),
        _flagged(flagged),
        *(_grid(grid) for grid in make_grids(records)),
    ]
    return html_page("quorumfs evaluation", STYLE, parts)


def _provenance(records: Sequence[Record]) -> str:
    if not records:
        return "No cell was measured."
    first, last = records[0], records[-1]
    settings = ", ".join(f"N={q.servers} Qr={q.read} Qw={q.write}" for q in settings_of(records))
    return (
        f"Measured on real clusters ({settings}) through the {first.access}, {first.rpc} encoding, seed "
        f"{first.seed}, version {first.version}, from {first.when} to {last.when}."
    )


def _legend() -> str:
    entries = "".join(
        f'<div><dt class="{outcome}">{outcome}</dt><dd>{escape(MEANING[outcome])}</dd></div>'
        for outcome in Outcome
    )
    flagged = '<div><dt class="flagged">a, model: b</dt><dd>measured a, but the model predicts b</dd></div>'
    return f"<h2>Legend</h2>\n<dl>{entries}{flagged}</dl>"


def _flagged(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return "<h2>Flagged cells</h2>\n<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _grid(grid: Grid) -> str:
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in grid.columns)
    rows = "\n".join(_row(row) for row in grid.rows)
    return (
        f'<div class="scroll"><table>\n<caption>{escape(grid.title)}</caption>\n'
        f'<thead><tr><th scope="col">{escape(grid.corner)}</th>{columns}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _row(row: GridRow) -> str:
    cells = "".join(_cell(cell) for cell in row.cells)
    return f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>'


def _cell(cell: GridCell | None) -> str:
    if cell is None:
        return "<td></td>"
    kind = f"{cell.outcome} flagged" if cell.flagged else str(cell.outcome)
    evidence = f' title="{escape(cell.evidence)}"' if cell.evidence else ""
    return f'<td class="{kind}"{evidence}>{escape(cell.text)}</td>'
