"""The summary of a run: good or not, and as a table for people and for docs/reliability.md. Pure."""

from __future__ import annotations

from typing import Any


def is_good(summary: dict[str, Any]) -> bool:
    """Tell whether nothing was lost, wrong or late, and everything was whole in the end."""
    return not any(summary[name] for name in ("lost", "wrong", "late", "not_whole"))


def render(summary: dict[str, Any]) -> str:
    """Return the table in Markdown, and what was found below it."""
    longest = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in summary["longest_seconds"].items())
    rows = [
        ("seed, minutes, mounts", f"{summary['seed']}, {summary['minutes']:g}, {summary['mounts']}"),
        ("faults", f"{sum(summary['faults'].values())} ({_counts(summary['faults'])})"),
        ("work acknowledged", _counts(summary["done"])),
        ("changes told without a call", str(summary["told"])),
        ("calls", f"{sum(summary['calls'].values())} ({_counts(summary['calls'])})"),
        ("calls that failed", f"{sum(summary['failed'].values())} ({_counts(summary['failed'])})"),
        ("longest call", longest),
        ("calls over their deadline", str(len(summary["late"]))),
        ("bytes checked", f"{summary['bytes_checked']:,}"),
        ("lost", str(len(summary["lost"]))),
        ("wrong", str(len(summary["wrong"]))),
        ("not whole in the end", str(len(summary["not_whole"]))),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    for name in ("lost", "wrong", "late", "not_whole"):
        lines += [f"{name}: {text}" for text in summary[name]]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
