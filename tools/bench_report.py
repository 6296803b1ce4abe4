"""A benchmark's results for people: tables for a terminal, and a page with the bars drawn. Pure.

Nothing here measures; everything that comes from outside is escaped. Safe in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.bench_results import Row, Run, Summary, summarize
from tools.html_page import html_page

STYLE = """
:root { --bar-0: #6b7785; --bar-1: #2f7fd1; --bar-2: #d98324;
  --bar-3: #2b9a66; --bar-4: #a252b8; --bar-5: #c4455f; }
section { margin: 1.4rem 0; } h2 { font-size: 1rem; margin: 0 0 .3rem; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .25rem .8rem;
  align-items: center; }
.bars > div { min-width: 0; } .bar { height: .9rem; min-width: 2px; border-radius: 2px; }
.figures { font-variant-numeric: tabular-nums; } td { text-align: right; }
.failed { font-weight: 700; text-decoration: underline; }
"""
COLOURS = 6


def seconds_text(seconds: float | None) -> str:
    """Return seconds with three figures that mean something."""
    if seconds is None:
        return "-"
    if seconds >= 100:
        return f"{seconds:.0f}"
    decimals = 2 if seconds >= 1 else 3 if seconds >= 0.1 else 4
    return f"{seconds:.{decimals}f}"


def times_text(times: float | None) -> str:
    """Return how many times as fast, as "0.52x"."""
    if times is None:
        return "-"
    return f"{times:.0f}x" if times >= 100 else f"{times:.1f}x" if times >= 10 else f"{times:.2f}x"


def spread_text(summary: Summary) -> str:
    """Return how far the rounds of one median lay apart."""
    return f"{seconds_text(summary.least)} to {seconds_text(summary.most)} s"


def results_table(run: Run) -> Table:
    """Return the medians and ratios as a table."""
    names = [directory.name for directory in run.directories]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("work", overflow="fold")
    for name in names:
        for column in _columns(name, names):
            table.add_column(column, justify="right")
    summaries = summarize(run)
    for row in run.rows:
        cells = [
            _styled(summary, text)
            for name, summary in summaries[row.name].items()
            for text in _cells(name, names, summary)
        ]
        table.add_row(row.words, *cells)
    return table


def print_results(run: Run, console: Console) -> None:
    """Print the table, what was done to be fair, and what failed."""
    console.print(results_table(run))
    console.print()
    for line in [*legend(run), *run.notes]:
        console.print(Text(line), soft_wrap=True)
    for line in run.failures:
        console.print(Text(f"FAILED  {line}", style="bold white on red"), soft_wrap=True)


def legend(run: Run) -> list[str]:
    """Return what the columns mean, in words."""
    first = run.directories[0].name
    rounds = run.settings["rounds"]
    of_rounds = "One round" if rounds == "1" else f"Medians of {rounds} rounds"
    lines = [f"{of_rounds}, in seconds: less is better."]
    if len(run.directories) > 1:
        lines.append(f"x {first}: how many times as fast as {first}; 2x means half of its time.")
    if len(run.directories) > 2:
        lines.append(f"x best other: how many times as fast as the best of the others, {first} left out.")
    return lines


def render_html(run: Run) -> str:
    """Return the results as one self-contained page."""
    names = [directory.name for directory in run.directories]
    summaries = summarize(run)
    places = "; ".join(f"{place.name}: {place.path} ({place.type})" for place in run.directories)
    facts = ", ".join(f"{key} {value}" for key, value in {**run.machine, **run.settings}.items())
    parts = [
        f"<p>{escape(' '.join(legend(run)))}</p>",
        f'<p class="faint">{escape(places)}.<br>{escape(facts)}.<br>Version {escape(run.version)}, '
        f"{escape(run.when)}.</p>",
        "".join(f'<p class="faint">{escape(note)}</p>' for note in run.notes),
        _failures(run.failures),
        *(_bars(row, names, summaries[row.name]) for row in run.rows),
        _table(run, names, summaries),
    ]
    return html_page("quorumfs bench", STYLE, parts)


def _columns(name: str, names: Sequence[str]) -> list[str]:
    if name == names[0]:
        return [f"{name} s"]
    return [f"{name} s", f"x {names[0]}", *(["x best other"] if len(names) > 2 else [])]


def _cells(name: str, names: Sequence[str], summary: Summary) -> list[str]:
    own = "FAILED" if summary.failures else seconds_text(summary.seconds)
    texts = [own, times_text(summary.to_first), times_text(summary.to_best)]
    return texts[: len(_columns(name, names))]


def _styled(summary: Summary, text: str) -> Text:
    return Text(text, style="bold white on red" if summary.failures and text == "FAILED" else "")


def _failures(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f'<li class="failed">{escape(line)}</li>' for line in lines)
    return f"<h2>Failed</h2>\n<ul>{items}</ul>"


def _bars(row: Row, names: Sequence[str], found: dict[str, Summary]) -> str:
    """Return one row of work: a bar for each directory, the slowest at full width."""
    slowest = max((summary.seconds or 0.0 for summary in found.values()), default=0.0)
    lines = []
    for index, name in enumerate(names):
        summary = found[name]
        width = 100 * (summary.seconds or 0.0) / slowest if slowest else 0.0
        ratios = [
            f"{times_text(times)} {escape(other)}"
            for times, other in ((summary.to_first, names[0]), (summary.to_best, "best other"))
            if times is not None
        ]
        figures = ", ".join(["failed" if summary.failures else f"{seconds_text(summary.seconds)} s", *ratios])
        lines.append(
            f'<div>{escape(name)}</div><div title="{spread_text(summary)}"><div class="bar" '
            f'style="width:{width:.2f}%;background:var(--bar-{index % COLOURS})"></div></div>'
            f'<div class="figures">{figures}</div>'
        )
    return f'<section><h2>{escape(row.words)}</h2><div class="bars">{"".join(lines)}</div></section>'


def _table(run: Run, names: Sequence[str], summaries: dict[str, dict[str, Summary]]) -> str:
    head = "".join(
        f'<th scope="col">{escape(column)}</th>' for name in names for column in _columns(name, names)
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(row.words)}</th>'
        + "".join(
            f"<td>{escape(text)}</td>"
            for name in names
            for text in _cells(name, names, summaries[row.name][name])
        )
        + "</tr>"
        for row in run.rows
    )
    return (
        f'<div class="scroll"><table><caption>All figures</caption><thead><tr><th scope="col">work</th>{head}'
        f"</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )
