"""The frame of every page that the tools write: one self-contained file. Pure; safe in any thread.

A page loads nothing and runs nothing: no script, no font, no image, no address. It can be read in light
and dark.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --line: #c8ced6; --faint: #5b6470; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e6e9ed; --line: #3a424c; --faint: #9aa4b0; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1.25rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { border: 1px solid var(--line); padding: .3rem .7rem; white-space: nowrap; }
th[scope=row] { text-align: left; font-weight: 400; }
.faint { color: var(--faint); }
"""


def html_page(title: str, style: str, parts: Iterable[str]) -> str:
    """Return a page.

    Args:
        title: plain text.
        style: what the page's own style sheet adds.
        parts: pieces of HTML, with what comes from outside escaped already; empty ones are left out.
    """
    frame = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escape(title)}</h1>",
        *(part for part in parts if part),
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(frame)
