"""All checks of a history. Pure; safe in any thread."""

from __future__ import annotations

from collections.abc import Sequence

from tools.history.appends import check_appends
from tools.history.chains import check_chains
from tools.history.linear import STEPS, Finding
from tools.history.record import Call
from tools.history.registers import check_registers
from tools.history.sums import check_sums


def check(calls: Sequence[Call], steps: int = STEPS) -> list[Finding]:
    """Return which promises broke, and at which calls; at most one finding a key and kind of key.

    `steps` bounds each search.
    """
    return [
        *check_registers(calls, steps),
        *check_chains(calls, steps),
        *check_appends(calls),
        *check_sums(calls),
    ]


def words(finding: Finding) -> str:
    """Say a finding in a line."""
    if not finding.promise:
        return f"{finding.key}: too many calls at once to tell"
    calls = "; ".join(f"line {c.line} {c.client} {c.operation} {_shown(c.value)}" for c in finding.calls)
    return f"{finding.promise} broke at {finding.key}: no order of the calls explains {calls}"


def _shown(value: str | None) -> str:
    text = "nothing" if value is None else value.replace("\n", "\\n")
    return text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}"
