"""`python -m tests.chaos.load NUMBER SEED OWN OTHER JOURNAL`: all kinds of work on two mounts, or one.

Answers in lines of JSON: {"ready"}; a line on standard input, and the work stops: {"stopped"}; another
line, when nothing is broken any more, and everything is checked by both mounts: the figures. One thread for
each kind of work.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from tests.chaos.appends import AppendWork
from tests.chaos.calls import Calls
from tests.chaos.counter import CounterWork
from tests.chaos.database import DatabaseWork
from tests.chaos.files import FileWork
from tests.chaos.names import NamesWork
from tests.chaos.renames import RenameWork
from tests.chaos.work import Work

KINDS = (FileWork, AppendWork, RenameWork, CounterWork, DatabaseWork)
AFTER_FAILURE_SECONDS = 0.2
CHECK_SECONDS = 60.0
PACE_SECONDS = 0.01
PLACE = "load"
TURN_SECONDS = 3.0
"""On a mount that is alone names are worked on without the rest for so long, and then all for so long."""


def main() -> int:
    """Work as told on the command line."""
    number, seed = int(sys.argv[1]), int(sys.argv[2])
    # A directory below the mount point: without the mount it is not there, and nothing is written beside it.
    mounts = [Path(word) / PLACE for word in sys.argv[3:5]]
    journal = Path(sys.argv[5])
    calls, stopping = Calls(), threading.Event()
    works: list[Work] = [kind(mounts, number, seed, calls) for kind in KINDS]
    works.append(NamesWork(mounts, number, seed, calls, journal))
    threads = [threading.Thread(target=go_on, args=(work, calls, stopping), daemon=True) for work in works]
    say({"ready": number})
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stopping.set()
    for thread in threads:
        thread.join()
    say({"stopped": number})
    sys.stdin.readline()
    for mount in mounts:
        os.setxattr(mount, "user.quorumfs.drop_caches", b"")
    for work in works:
        check(work, calls)
    granted = next(work.granted for work in works if isinstance(work, CounterWork))
    say({**calls.plain(), "granted": granted})
    return 0


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def has_turn(work: Work, now: float) -> bool:
    """Tell whether it is this work's turn; the clock is the same for all processes.

    While a call that changes names is under way a mount tells nothing without one. So as soon as the metadata
    server is away, and other work waits for it, rings would be of no use.
    """
    return work.own != work.other or isinstance(work, NamesWork) or now % (2 * TURN_SECONDS) < TURN_SECONDS


def go_on(work: Work, calls: Calls, stopping: threading.Event) -> None:
    """Do one piece of work after the other."""
    while not stopping.is_set():
        try:
            if has_turn(work, time.monotonic()):
                work.step()
            stopping.wait(PACE_SECONDS)
        except OSError:
            stopping.wait(AFTER_FAILURE_SECONDS)
        except Exception:
            calls.is_wrong(f"{work.name}: the load itself failed: {traceback.format_exc()}")
            return


def check(work: Work, calls: Calls) -> None:
    """Check everything; a call may fail for a while yet (a lock of a mount that was killed), not for ever."""
    end = time.monotonic() + CHECK_SECONDS
    while True:
        try:
            return work.check()
        except OSError as error:
            if time.monotonic() > end:
                return calls.is_lost(f"{work.name}: cannot be read when nothing is broken: {error}")
            time.sleep(AFTER_FAILURE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
