"""What the server processes have in common: the event loop, the log, the ready line, the end.

Logs are plain lines on standard error (time level name message); standard output has the ready line
only. Called once, from a package's __main__, in the main thread.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from wire.config import ConfigError
from wire.memory import keep_freed_memory
from wire.open_files import allow_open_files
from wire.server import Server

EXIT_BAD_SETTINGS = 2


def set_up_logging(level: int = logging.INFO) -> None:
    """Log plain lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a process's main coroutine to its end; return the exit status.

    0 after a clean end, 2 with one line on standard error for settings that cannot work.
    """
    set_up_logging()
    keep_freed_memory()
    allow_open_files()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except ConfigError as error:
        print(f"quorumfs: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except KeyboardInterrupt:
        return 0
    return 0


async def serve(
    server: Server, address: str, stop: asyncio.Event | None = None, ended: asyncio.Event | None = None
) -> None:
    """Listen, print the ready line "ready KIND NUMBER ADDRESS", serve until SIGTERM or SIGINT, drain.

    Args:
        server: what is served.
        address: where.
        stop: is set by these signals; of who serves several times, lest one in between is lost.
        ended: ends it too, when it is set.

    Raises:
        ConfigError: the address cannot be had.
    """
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    real_address = await server.start(address)
    if gc.get_freeze_count():  # what was served before has ended, with its connections and their memory
        gc.unfreeze()
        gc.collect()
    gc.freeze()  # what is here now stays: no collection needs to look at it again
    print_ready(server.identity.kind, server.identity.number, real_address)
    waiting = [asyncio.ensure_future(event.wait()) for event in (stop, ended) if event]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
    logging.getLogger("wire.process").info("stopping: no new calls, finishing those in flight")
    await server.drain()


def print_ready(kind: str, number: int, place: str) -> None:
    """Tell on standard output that this process serves, and where; and a service manager, if one asks."""
    print(f"ready {kind} {number} {place}", flush=True)
    try:
        _notify(b"READY=1")
    except OSError as error:
        logging.getLogger("wire.process").warning("the service manager cannot be told: %s", error)


def _notify(state: bytes) -> None:
    """Tell systemd, if it started this process as one of `Type=notify`: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state, "\0" + path[1:] if path.startswith("@") else path)
