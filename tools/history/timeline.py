"""A history drawn: clients, servers, messages and votes by time, around the calls that broke a promise.

One self-contained page of inline SVG. Pure; safe in any thread. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tools.history.check import words
from tools.history.linear import Finding
from tools.history.record import NEVER_NS, Call, History, Mark
from tools.html_page import html_page

CALLS_MAX, MARKS_MAX, FINDINGS_MAX = 400, 3000, 20
"""So much is drawn at most in a figure, and so many figures."""
GUTTER, WIDTH, ROW, HEAD = 150, 1400, 30, 34
TICKS = 10
MARGIN = 0.25
STYLE = """
svg { display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
.lane, .tick { stroke: var(--line); }
.ok { fill: #7fb2e5; } .fail { fill: #c9c9c9; } .unknown { fill: #f2d28b; }
rect { stroke: var(--page); } rect.apart { opacity: .35; } rect.broke { stroke: #c62828; stroke-width: 3; }
rect + text { fill: #1b1f24; pointer-events: none; }
.message { stroke: #7d8794; stroke-width: 1; opacity: .7; } .message:hover, circle:hover { stroke: #c62828; }
.fault { stroke: #c62828; stroke-dasharray: 4 3; } circle { fill: #2e7d32; } circle.bad { fill: #c62828; }
"""


def render(name: str, history: History, findings: Sequence[Finding]) -> str:
    """Return the page: a figure for each finding, or one of the whole history if there is none."""
    told = [finding for finding in findings if finding.calls]
    if told:
        parts = [_figure(history, finding) for finding in told[:FINDINGS_MAX]]
    else:
        parts = [_figure(history, None)]
    more = len(told) - FINDINGS_MAX
    verdict = f"{len(history.calls)} calls, {len(findings)} findings" if findings else (
        f"{len(history.calls)} calls keep the promises"
    )  # fmt: skip
    parts.append(f"<p>{more} more findings are not drawn.</p>" if more > 0 else "")
    return html_page(f"History {_clean(name)}", STYLE, [f"<p>{verdict}.</p>", *parts, _legend()])


def _legend() -> str:
    return (
        '<p class="faint">A bar is a call, from its start to its end: blue succeeded, grey was refused, '
        "yellow is unknown; pale: of another key; framed in red, no order explains it. A line is a message, "
        "from its sending to the answer; a circle is a vote (red: not good); a broken line is a fault. Hold "
        "the pointer on one to read it.</p>"
    )


def _figure(history: History, finding: Finding | None) -> str:
    calls, marks = _chosen(history, finding)
    title = f"<h2>{_text(words(finding))}</h2>" if finding is not None else ""
    if not calls and not marks:
        return f"{title}<p>There are no calls.</p>"
    begin = min([call.start_ns for call in calls] + [mark.time_ns for mark in marks])
    ends = [call.end_ns for call in calls if call.end_ns != NEVER_NS] + [mark.end_ns for mark in marks]
    scale = _Scale(begin, max([*ends, begin + 1, *(call.start_ns + 1 for call in calls)]))
    lanes = _lanes(calls, marks)
    height = HEAD + ROW * len(lanes) + 6
    broke = frozenset(call.line for call in finding.calls) if finding is not None else frozenset()
    key = finding.key if finding is not None else None
    left_out = len(history.calls) - len(calls)
    parts = [
        title,
        f"<p class='faint'>{left_out} of {len(history.calls)} calls are not in this figure.</p>"
        if left_out
        else "",
        f'<div class="scroll"><svg width="{GUTTER + WIDTH + 20}" height="{height}" role="img">',
        *_axis(scale, height),
        *_names(lanes),
        *(_mark(mark, scale, lanes, height) for mark in marks),
        *(_call(call, scale, lanes, call.line in broke, key) for call in calls),
        "</svg></div>",
    ]
    return "\n".join(part for part in parts if part)


class _Scale:
    """Times to places."""

    def __init__(self, begin_ns: int, end_ns: int) -> None:
        self.begin_ns, self.end_ns = begin_ns, end_ns

    def place(self, time_ns: int) -> float:
        share = (min(time_ns, self.end_ns) - self.begin_ns) / (self.end_ns - self.begin_ns)
        return round(GUTTER + max(0.0, share) * WIDTH, 2)

    def milliseconds(self, time_ns: int) -> str:
        return f"{(time_ns - self.begin_ns) / 1e6:.3f} ms"


def _chosen(history: History, finding: Finding | None) -> tuple[list[Call], list[Mark]]:
    """Return what lies around the finding, the nearest if that is much."""
    if finding is None:
        calls = history.calls[:CALLS_MAX]
        begin = min((call.start_ns for call in calls), default=0)
        end = max((call.start_ns for call in calls), default=NEVER_NS)
        if len(calls) == len(history.calls):
            begin, end = 0, NEVER_NS
        return calls, _between(history.marks, begin, end)
    first = min(call.start_ns for call in finding.calls)
    last = max(min(call.end_ns, call.start_ns + 1_000_000_000) for call in finding.calls)
    margin = max(int((last - first) * MARGIN), 20_000_000)
    by_distance = sorted(history.calls, key=lambda call: _distance(call, finding, first, last))
    whole = len(history.calls) <= CALLS_MAX
    calls = [c for c in by_distance[:CALLS_MAX] if whole or _distance(c, finding, first, last) <= margin]
    begin = 0 if whole else min([first - margin, *(call.start_ns for call in calls)])
    return sorted(calls), _between(history.marks, begin, NEVER_NS if whole else last + margin)


def _distance(call: Call, finding: Finding, first: int, last: int) -> int:
    """How far from the finding; a call of the same key counts as nearer."""
    distance = max(0, first - min(call.end_ns, last), call.start_ns - last)
    return distance // 10 if call.key == finding.key else distance


def _between(marks: Iterable[Mark], begin: int, end: int) -> list[Mark]:
    return [mark for mark in marks if begin <= mark.end_ns and mark.time_ns <= end][:MARKS_MAX]


def _lanes(calls: Iterable[Call], marks: Iterable[Mark]) -> dict[str, tuple[int, str]]:
    """Return each lane's number and label: the clients by mount, then the servers."""
    clients = dict.fromkeys(
        name for _, name in sorted({(call.mount, call.client) for call in calls})
    )  # fmt: skip
    mounts = {call.client: call.mount for call in calls}
    others = sorted(
        {name for mark in marks for name in (mark.source, mark.target) if name and name not in clients}
    )
    labels = {name: f"{name} {mounts[name]}" if mounts[name] else name for name in clients}
    return {
        name: (number, labels.get(name, name)) for number, name in enumerate([*clients, *others])
    }  # fmt: skip


def _middle(lanes: dict[str, tuple[int, str]], name: str) -> float:
    return HEAD + ROW * lanes[name][0] + ROW / 2


def _axis(scale: _Scale, height: int) -> Iterable[str]:
    step = (scale.end_ns - scale.begin_ns) / TICKS
    for number in range(TICKS + 1):
        at = int(scale.begin_ns + step * number)
        x = scale.place(at)
        yield f'<line class="tick" x1="{x}" y1="20" x2="{x}" y2="{height}"/>'
        yield f'<text x="{x}" y="14" text-anchor="middle">{scale.milliseconds(at)}</text>'


def _names(lanes: dict[str, tuple[int, str]]) -> Iterable[str]:
    for name, (_, label) in lanes.items():
        y = _middle(lanes, name)
        short = label if len(label) <= 20 else f"{label[:10]}…{label[-9:]}"
        yield f'<line class="lane" x1="{GUTTER}" y1="{y}" x2="{GUTTER + WIDTH}" y2="{y}"/>'
        yield f'<text x="4" y="{y + 4}">{_text(short)}<title>{_text(label)}</title></text>'


def _call(call: Call, scale: _Scale, lanes: dict[str, tuple[int, str]], broke: bool, key: str | None) -> str:
    x, y = scale.place(call.start_ns), _middle(lanes, call.client) - 10
    width = max(3.0, round(scale.place(call.end_ns) - x, 2))
    kinds = [call.outcome, *(["broke"] if broke else []), *(["apart"] if key not in (None, call.key) else [])]
    value = "" if call.value is None else f" {call.value}"
    ends = "never" if call.end_ns == NEVER_NS else scale.milliseconds(call.end_ns)
    title = (
        f"{call.client}: {call.operation} {call.key}{value}: {call.outcome}, "
        f"{scale.milliseconds(call.start_ns)} to {ends}, line {call.line}"
    )
    fits = int(width / 7)
    label = f"{call.operation}{value}"
    bar = (
        f'<rect class="{" ".join(kinds)}" x="{x}" y="{y}" width="{width}" height="20" rx="3">'
        f"<title>{_text(title)}</title></rect>"
    )
    return bar + (f'<text x="{x + 3}" y="{y + 14}">{_text(label[:fits])}</text>' if fits > 3 else "")


def _mark(mark: Mark, scale: _Scale, lanes: dict[str, tuple[int, str]], height: int) -> str:
    told = f"{scale.milliseconds(mark.time_ns)}: {mark.source} {mark.target} {mark.text}"
    title = f"<title>{_text(told)}</title>"
    x = scale.place(mark.time_ns)
    if mark.kind == "fault" or mark.source not in lanes:
        return f'<line class="fault" x1="{x}" y1="20" x2="{x}" y2="{height}">{title}</line>'
    y = _middle(lanes, mark.source)
    if mark.kind == "message" and mark.target in lanes:
        x2, y2 = scale.place(mark.end_ns), _middle(lanes, mark.target)
        return f'<line class="message" x1="{x}" y1="{y}" x2="{x2}" y2="{y2}">{title}</line>'
    bad = ' class="bad"' if not mark.text.startswith("good") else ""
    return f'<circle{bad} cx="{x}" cy="{y}" r="5">{title}</circle>'


def _clean(text: str) -> str:
    """Show what cannot be printed as what it is, or by one sign."""
    return "".join(
        "\\n" if c == "\n" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _text(text: str) -> str:
    short = text if len(text) <= 600 else f"{text[:300]}…{text[-250:]}"
    return escape(_clean(short))
