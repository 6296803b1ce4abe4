"""Keeps a mount there: when its process dies, the dead mount is taken away and the cluster mounted anew.

It serves nothing and knows no file: it starts the mount as a child process and waits. A clean end of the
child (unmounted, SIGTERM) is its own end too. Main thread only.
"""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from wire.process import EXIT_BAD_SETTINGS

log = logging.getLogger(__name__)

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 10.0
STEADY_SECONDS = 60.0
"""A mount that lived for so long is mounted anew without delay."""
UNMOUNT_SECONDS = 10.0


def supervise(command: Sequence[str], mountpoint: Path) -> int:
    """Run a mount, again whenever it dies; return the exit status of its clean end.

    Args:
        command: mounts in the foreground.
        mountpoint: where; freed, also while it is in use, before the command is run again.
    """
    stopping, children = threading.Event(), list[subprocess.Popen[bytes]]()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        for child in children:
            child.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    pause_seconds, again = FIRST_SECONDS, False
    while True:
        begun = time.monotonic()
        children[:] = [subprocess.Popen(command, start_new_session=True)]
        if stopping.is_set():
            children[0].terminate()
        status = children[0].wait()
        if status == 0 or stopping.is_set() or (status == EXIT_BAD_SETTINGS and not again):
            return max(0, status)
        if time.monotonic() - begun > STEADY_SECONDS:
            pause_seconds = FIRST_SECONDS
        log.warning("the mount of %s died (status %d); mounting it again", mountpoint, status)
        _free(mountpoint)
        stopping.wait(pause_seconds)
        if stopping.is_set():
            return 0
        pause_seconds, again = min(2 * pause_seconds, LONGEST_SECONDS), True


def _free(mountpoint: Path) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"
    try:
        subprocess.run(
            [program, "-u", "-z", str(mountpoint)], capture_output=True, timeout=UNMOUNT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s is not freed: %s", mountpoint, error)
