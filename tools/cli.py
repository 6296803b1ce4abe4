"""The command line `quorumfs`: parses, finds the command's module, and turns errors into one line.

Each command's module has add_parser(subparsers), which sets `run` to a function from the parsed arguments
to the exit status. Exit status: 0 done, 1 it did not work, 2 it cannot work as asked; `status` has its own.
It must not do any work itself.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tools.processes import ClusterError, interruptible
from wire.config import ConfigError
from wire.errors import DeadlineExceeded, QuorumfsError, Unavailable

MODULES = {
    "up": "tools.lifecycle",
    "down": "tools.lifecycle",
    "status": "tools.status",
    "mount": "tools.lifecycle",
    "umount": "tools.lifecycle",
    "serve": "tools.lifecycle",
    "fault": "tools.faults",
    "explain": "tools.explain",
    "replica": "tools.replica",
    "refill": "tools.refill",
    "scrub": "tools.scrub",
    "quarantine": "tools.quarantine",
    "ledger": "tools.ledger",
    "df": "tools.df",
    "fsck": "tools.fsck",
    "backup": "tools.backup",
    "restore": "tools.restore",
    "rebuild": "tools.rebuild",
    "evaluate": "tools.evaluate",
    "bench": "tools.bench",
    "record": "tools.record",
    "check-history": "tools.check_history",
    "config": "tools.settings",
}
"""Which module has which command. Only that of the command given is imported, so that all start fast."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write a message, or raise OSError, of which newer Pythons say nothing here."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        print(f"quorumfs: {message}; see: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = argparse.Namespace()
    _prepare_output()
    try:
        with interruptible():
            parsed = build_parser(words).parse_args(words)
            status: int = parsed.run(parsed)
            sys.stdout.flush()
            return status
    except ConfigError as error:
        return _fail(str(error), 2, parsed)
    except ClusterError as error:
        return _fail(str(error), 1, parsed)
    except (Unavailable, DeadlineExceeded) as error:
        return _fail(f"{error.message}; see which server is down with: `quorumfs status`", 1, parsed)
    except QuorumfsError as error:
        return _fail(error.message, 1, parsed)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader went away, as `head` does: nothing is wrong, and nothing more can be printed.
        _drop_output()
        return 0
    except OSError as error:
        # Of a disk or the operating system, where no command knows better what to say.
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        status = _fail(f"{where}{error.strerror or error}; mend that, then try again", 1, parsed)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return status


def build_parser(words: Sequence[str]) -> Parser:
    """Build the parser with the modules that `words` need: the command's own, or all of them."""
    parser = Parser(
        prog="quorumfs", description="A file system whose every read is a vote of N data servers."
    )
    parser.add_argument("--version", action="version", version=f"quorumfs {_version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = next((word for word in words if not word.startswith("-")), None)
    wanted = [MODULES[command]] if command in MODULES else list(dict.fromkeys(MODULES.values()))
    if words[:1] == ["--version"]:
        wanted = []
    for name in wanted:
        importlib.import_module(name).add_parser(subparsers)
    return parser


def _prepare_output() -> None:
    """Have printing fail neither where a stream was closed nor where its encoding lacks a character.

    With LC_ALL=C that may be all but ASCII, and names may be such text or bytes: both are printed as bytes.
    """
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        elif isinstance(stream, TextIOWrapper) and stream.errors == "surrogateescape" and _is_ascii(stream):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _is_ascii(stream: TextIO) -> bool:
    return codecs.lookup(stream.encoding).name == "ascii"


def _drop_output() -> None:
    """Throw away what was not printed, which Python would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int, parsed: argparse.Namespace) -> int:
    from tools.locate import as_typed  # not before: all commands start fast

    message = as_typed(message, getattr(parsed, "state", None))
    print(f"quorumfs: {' '.join(message.split())}", file=sys.stderr)
    return status


def _version() -> str:
    try:
        return version("quorumfs")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    raise SystemExit(main())
