"""What stands for `os`, `resource`, names and the log handler of the process that runs now. One thread."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from typing import TYPE_CHECKING, Any

from tests.sim.loop import PROCESS

if TYPE_CHECKING:
    from tests.sim.cluster import World


class HostOs:
    """`os` as the process that runs now sees it: its own disk."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        process = PROCESS.get()
        disk = self._world.disks.get(process.host) if process is not None else None
        return getattr(os if disk is None else disk, name)


class NoLimits:
    """Stands for `resource`: limits are the simulation's own."""

    RLIMIT_NOFILE = 0

    def getrlimit(self, _: int) -> tuple[int, int]:
        return 1024, 1024

    def setrlimit(self, _: int, __: tuple[int, int]) -> None:
        pass


async def look_up(host: str, port: int) -> list[Any]:
    """Return the one address that every host has, which is its name."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]


class LogEvents(logging.Handler):
    """Log lines are events; a traceback is a problem, and so is a change that was answered too early."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = PROCESS.get()
        if process is not None and not process.alive:
            return  # it failed in a write: nothing of that has happened
        who = process.name if process is not None else "-"
        self._world.note("log", f"{who}: {record.levelname} {record.getMessage()}")
        if record.levelno >= logging.ERROR and "cannot be carried out" in record.getMessage():
            self._world.problem(f"{who}: {record.getMessage()}")
        if record.exc_info:
            text = "".join(traceback.format_exception(record.exc_info[1]))
            self._world.problem(f"a traceback in the log of {who}: {record.getMessage()}\n{text}")
