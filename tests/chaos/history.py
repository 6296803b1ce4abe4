"""Clients that write down what they see while faults are staged, for the checkers of tools/history.

Two processes on each mount, as `quorumfs record` has them. Files are not written in place: what a failed
write left in a mount's memory may be seen there, and be dropped.
"""

from __future__ import annotations

import json
import multiprocessing
from contextlib import ExitStack
from pathlib import Path

from tools.history.check import check, words
from tools.history.record import parse
from tools.record import work

CLIENTS = 4
STEPS_MAX = 200_000
PLACE = "history"


class HistoryClients:
    """Client processes that run for so many seconds; `base` holds their files."""

    def __init__(self, base: Path, mounts: list[Path], seconds: float, stack: ExitStack) -> None:
        (mounts[0] / PLACE).mkdir()
        self._files = [base / f"history-{number}" for number in range(CLIENTS)]
        spawn = multiprocessing.get_context("spawn")
        self._clients = []
        for number, file in enumerate(self._files):
            mount = mounts[number % len(mounts)]
            words_of_it = (mount / PLACE, f"c{number}", file, seconds, str(mount), ("write",))
            client = spawn.Process(target=work, args=words_of_it, daemon=True)
            client.start()
            stack.callback(client.kill)
            self._clients.append(client)

    def end(self, output: Path) -> list[str]:
        """Wait for them, write the history, and say which promises broke."""
        for client in self._clients:
            client.join()
        lines = [line for file in self._files if file.exists() for line in file.read_text().splitlines()]
        lines.sort(key=lambda line: int(json.loads(line)["time_ns"]))
        output.write_text("".join(f"{line}\n" for line in lines))
        died = [f"history: client {c.name} died" for c in self._clients if c.exitcode]
        return died + [f"history: {words(f)}" for f in check(parse(lines).calls, STEPS_MAX) if f.promise]
