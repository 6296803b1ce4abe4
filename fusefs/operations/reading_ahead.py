"""How far the kernel reads ahead on a mount. It must not fail a mount: without the right to, nothing changes.

Where the kernel asks for 128 KiB at a time, eight requests fetch a block. Source: sysfs-class-bdi in the
kernel's Documentation/ABI, proc_pid_mountinfo(5)
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mountinfo")
SETTINGS = Path("/sys/class/bdi")


_ESCAPED = re.compile(rb"\\([0-7]{3})")


def device_of(mountpoint: bytes, mounts: Iterable[bytes]) -> str | None:
    """Return the device number, as "0:39", of what was last mounted on a place; None if nothing was.

    Args:
        mountpoint: its absolute path.
        mounts: the lines of a mountinfo file.
    """
    found = None
    for line in mounts:
        fields = line.split(b" ")
        if _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), fields[4]) == mountpoint:
            found = fields[2].decode()
    return found


def let_read_ahead(mountpoint: str, count_bytes: int) -> None:
    """Let the kernel read so far ahead. To be called when it is mounted, before a request is answered."""
    try:
        with MOUNTS.open("rb") as mounts:
            device = device_of(os.fsencode(mountpoint), mounts)
        if device is not None:
            (SETTINGS / device / "read_ahead_kb").write_text(str(count_bytes // 1024))
    except OSError as error:
        log.debug("the kernel reads ahead as far as it does by default: %s", error)
