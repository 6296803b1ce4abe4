"""What clients do to shared files and were told, written down as a history for the checkers of tools/history.

A list that all append to, a register written in place, and a file that is renamed again and again. Each life
of a client is a mount of its own. What a power loss may undo is not judged: registers and chains are other
files after each, and a call that one interrupts is unknown. One greenlet of a client acts at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import mediator.read_path
import wire.client_msgpack
from tests.sim.cluster import World
from tests.sim.loop import PROCESS
from tests.twins import LibraryPlace
from tools.history.check import check, words
from tools.history.record import READS, parse
from wire.errors import AlreadyExists, NotFound, QuorumfsError

NAMES = ["a", "b", "c"]
VALUE_BYTES = 24
LIST_BYTES_MAX = 1 << 22
STEPS_MAX = 50_000
"""A life's search is given up after so many steps: it is one of thousands."""
FAULTS = ("fault", "kill", "power loss", "start", "quiet", "PROBLEM")
NOT_DONE = {"rename": NotFound, "place": AlreadyExists}
"""Answers that say that nothing was done."""


class Recorded:
    """The history of a run: JSON lines in the order of time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines: list[str] = []
        self._number = 0

    def say(self, event: str, **more: Any) -> None:
        """Write down an event, now."""
        self.lines.append(json.dumps({"event": event, "time_ns": self._now_ns(), **more}))

    def _now_ns(self) -> int:
        return int(self.world.loop.now * 1e9)

    def next_value(self, client: str) -> str:
        """Return a value that is never used again."""
        self._number += 1
        return f"{client} {self._number}".ljust(VALUE_BYTES, ".").replace(" ", "-")

    def call(
        self, client: str, operation: str, key: str, value: str | None, act: Callable[[], str | None]
    ) -> bool:
        """Carry out a call and write it down; return whether it succeeded."""
        losses = self.world.power_losses
        more = {} if operation in READS else {"value": value}
        self.say("invoke", client=client, mount=client, operation=operation, key=key, **more)
        outcome, seen = "unknown", None
        try:
            seen = act()
            if losses == self.world.power_losses:
                outcome = "ok"
        except NOT_DONE.get(operation, ()):  # type: ignore[misc]
            outcome = "fail"
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{client} {operation} {key}: {type(error).__name__}: {error}")
        self.say("return", client=client, outcome=outcome, value=seen)
        return outcome == "ok"

    def told(self, events: list[tuple[float, str, str]]) -> list[str]:
        """Return all lines, the faults among them, in the order of time."""
        faults = [
            json.dumps({"event": "fault", "time_ns": int(at * 1e9), "text": f"{what} {detail}"})
            for at, what, detail in events
            if what in FAULTS
        ]
        # Sorting keeps the order of what happened at one moment.
        return sorted([*self.lines, *faults], key=lambda line: int(json.loads(line)["time_ns"]))

    def problems(self) -> list[str]:
        """Say which promises broke."""
        findings = check(parse(self.lines).calls, STEPS_MAX)
        return [f"history: {words(finding)}" for finding in findings if finding.promise]

    def record_messages(self) -> None:
        """Write down messages and votes too, from now on."""

        def begin(link: Any, deadline_seconds: float, request: Any, then: Any) -> None:
            process, sent_ns = PROCESS.get(), self._now_ns()
            source, target = "-" if process is None else process.name, str(link._address).rpartition(":")[0]

            def answered(answer: Any) -> None:
                how = f": {type(answer).__name__}" if isinstance(answer, QuorumfsError) else ""
                line = {"event": "message", "time_ns": sent_ns, "end_ns": self._now_ns()}
                self.lines.append(
                    json.dumps({**line, "source": source, "target": target, "text": f"{request.name}{how}"})
                )
                then(answer)

            old_begin(link, deadline_seconds, request, answered)

        link_type, vote_type = wire.client_msgpack.MsgpackLink, mediator.read_path.Ballot
        old_begin = link_type.begin
        link_type.begin = begin  # type: ignore[method-assign]
        for name in ("voted", "_sent"):
            setattr(vote_type, name, self._telling_votes(getattr(vote_type, name)))

    def _telling_votes(self, take: Any) -> Any:
        def told(vote: Any, number: int, *answer: Any) -> None:
            take(vote, number, *answer)
            verdict, block = vote.verdicts[number], vote.witness.block.hex()
            text = f"{'' if verdict is None else verdict.name.lower()} {block}"
            self.say("vote", source=f"data-{number}", text=text)

        return told


class Deeds:
    """What one life of a client does to the shared files.

    After a change of its own that failed it does not look until one succeeds: what failed may still be seen
    on its own mount, and be dropped then.
    """

    def __init__(self, recorded: Recorded, client: str, place: LibraryPlace, rng: Any) -> None:
        self._recorded, self._client, self._place, self._rng = recorded, client, place, rng
        self._doubtful: set[str] = set()

    def do_one(self) -> None:
        """Do what chance will have."""
        age = self._recorded.world.power_losses
        self._rng.choice([self._write, self._read, self._list, self._rename, self._rename, self._look])(age)

    def _call(self, operation: str, key: str, value: str | None, act: Callable[[], str | None]) -> None:
        if operation not in READS:
            self._doubtful.add(key)
        elif key in self._doubtful:
            return
        if self._recorded.call(self._client, operation, key, value, act):
            self._doubtful.discard(key)

    def append(self, record: bytes, act: Callable[[], None]) -> None:
        """Carry out an append to the log, and write it down."""
        self._call("append", "log", record.decode(), act)  # type: ignore[arg-type]

    def _list(self, _: int) -> None:
        self._call("list", "log", None, lambda: self._content("log") or "")

    def _write(self, age: int) -> None:
        path, value = f"register-{age}", self._recorded.next_value(self._client)

        def act() -> None:
            self._place.open(11, path, os.O_CREAT | os.O_RDWR)
            try:
                self._place.pwrite(11, 0, value.encode())
                if self._rng.random() < 0.3 or self._recorded.world.may_lose_all_power:
                    self._place.fsync(11)
            finally:
                self._place.close(11)

        self._call("write", path, value, act)  # type: ignore[arg-type]

    def _read(self, age: int) -> None:
        self._call("read", f"register-{age}", None, lambda: self._content(f"register-{age}") or None)

    def _rename(self, age: int) -> None:
        key, names = f"chain-{age}", self._rng.sample(NAMES, 2)
        act = lambda: self._place.rename(f"{key}/{names[0]}", f"{key}/{names[1]}", 0)  # noqa: E731
        if self._there(key) or self._there(key) is None:
            self._call("rename", key, " ".join(names), act)  # type: ignore[arg-type, func-returns-value]
        else:
            self._make_chain(key)

    def _make_chain(self, key: str) -> None:
        content = self._recorded.next_value(self._client)

        def act() -> None:
            self._place.mkdir(key)  # only who makes the directory makes the file
            self._place.open(11, content, os.O_CREAT | os.O_RDWR)
            try:
                self._place.pwrite(11, 0, content.encode())
                self._place.fsync(11)
            finally:
                self._place.close(11)
            self._place.rename(content, f"{key}/a", 0)

        self._call("place", key, f"a {content}", act)  # type: ignore[arg-type]

    def _look(self, age: int) -> None:
        name = self._rng.choice(NAMES)

        def act() -> str:
            content = self._content(f"chain-{age}/{name}")
            return name if content is None else f"{name} {content}"

        self._call("look", f"chain-{age}", None, act)

    def _there(self, path: str) -> bool | None:
        try:
            self._place.filesystem.names.resolve(path.encode(), fresh=True)
        except NotFound:
            return False
        except (QuorumfsError, OSError):
            return None
        return True

    def _content(self, path: str) -> str | None:
        """Open what has the name now at the server, as open(2) does, and read it."""
        filesystem = self._place.filesystem
        try:
            found = filesystem.names.resolve(path.encode(), fresh=True)
        except NotFound:
            return None
        self._place.slots[11], _ = filesystem.files.open(found.ino, os.O_RDONLY)
        try:
            return self._place.pread(11, 0, LIST_BYTES_MAX).decode(errors="replace")
        finally:
            with contextlib.suppress(QuorumfsError):
                self._place.close(11)
