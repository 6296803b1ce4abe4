"""`quorumfs check-history`: says which promise a recorded history breaks, and at which calls.

It only reads the file, and judges nothing itself. One thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tools.history.check import check, words
from tools.history.linear import Finding
from tools.history.record import HistoryError, parse
from tools.history.timeline import render
from wire.config import ConfigError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("check-history", help="check what clients saw, recorded in a file")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--html", type=Path, metavar="OUT", help="draw what broke, or all if it is little")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Return 0 if the history keeps the promises, 1 if not, 2 if that cannot be told."""
    try:
        with parsed.file.open(encoding="utf-8") as lines:
            history = parse(lines)
        findings = check(history.calls)
        if parsed.html is not None:
            parsed.html.write_text(render(parsed.file.name, history, findings), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; name another file") from None
    except (UnicodeDecodeError, HistoryError) as error:
        raise ConfigError(f"{parsed.file}: {error}") from error
    if parsed.json:
        print(json.dumps([_plain(finding) for finding in findings]))
    else:
        print("\n".join(map(words, findings)) or f"{len(history.calls)} calls keep the promises")
    return max((1 if finding.promise else 2 for finding in findings), key=lambda s: (s == 1, s), default=0)


def _plain(finding: Finding) -> dict[str, Any]:
    return {**finding._asdict(), "calls": [call._asdict() for call in finding.calls]}
