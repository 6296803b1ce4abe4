"""How commands print: tables and colours for people on a terminal, JSON for programs."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table

from wire.config import ConfigError

PATHS_SHOWN = 20
WIDEST = 1000
COLOURS = {
    "good": "green",
    "running": "green",
    "right": "green",
    "up": "green",
    "healthy": "green",
    "corrupt": "red",
    "wrong": "bold red",
    "down": "red",
    "refused": "red",
    "missing": "yellow",
    "paused": "yellow",
    "degraded": "yellow",
    "stale": "bold red",
}


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the --json option."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, for which a reader that goes away is no failure."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(wide: int = 400) -> Console:
    """Return where people's output goes, `wide` columns if it is no terminal; colours only on one."""
    width = None if sys.stdout.isatty() else wide
    return _Screen(highlight=False, soft_wrap=False, width=width, emoji=False)


def print_json(data: Any) -> None:
    """Print plain data as JSON; bytes as text, with what is no UTF-8 kept as surrogates escaped."""
    print(json.dumps(data, indent=2, default=_plain))


def coloured(word: str) -> str:
    """Return a word of the glossary in its colour (markup of rich)."""
    colour = COLOURS.get(word)
    return f"[{colour}]{word}[/{colour}]" if colour else word


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """Return a plain table of markup cells."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


class FittingTable:
    """A table that leaves columns out where the terminal is too narrow for all, rather than fold them.

    Args:
        columns: their names.
        rows: cells of markup.
        spare: the columns to leave out, the least needed first.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> None:
        self._columns, self._rows, self._spare = columns, rows, spare

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterator[Table]:
        for count in range(len(self._spare) + 1):
            shown = [n for n, name in enumerate(self._columns) if name not in self._spare[:count]]
            made = table([self._columns[n] for n in shown], [[row[n] for n in shown] for row in self._rows])
            if Measurement.get(screen, options.update_width(WIDEST), made).maximum <= options.max_width:
                break
        yield made


def command_name() -> str:
    """Return how this user would type `quorumfs` again: as itself if it is on the PATH, else by its place."""
    found = shutil.which("quorumfs")
    here = Path(sys.argv[0])
    if found is not None or here.name != "quorumfs":
        return "quorumfs"
    return shlex.quote(nice_path(here.absolute()))


def nice_path(path: Path) -> str:
    """Return a path relative to the working directory if it lies in it."""
    working = Path.cwd()
    return str(path.relative_to(working)) if path.is_relative_to(working) else str(path)


def print_paths(paths: Sequence[bytes]) -> None:
    """Print the first of many paths in the file system."""
    for path in paths[:PATHS_SHOWN]:
        print(f"  {path.decode(errors='backslashreplace')}")
    if len(paths) > PATHS_SHOWN:
        print(f"  and {len(paths) - PATHS_SHOWN} more; see them all with --json")


def check_writable(file: Path | None) -> None:
    """Refuse a file that cannot be written before minutes of measuring, not after; leave none that is new."""
    if file is None:
        return
    try:
        existed = file.exists() or file.is_symlink()
        with file.open("ab"):
            pass
        if not existed:
            file.unlink()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}; name another file") from None


def bytes_text(count: int) -> str:
    """Return a number of bytes as people read it, as "1.5 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
