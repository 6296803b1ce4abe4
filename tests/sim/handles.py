"""Files that a simulated client has open for a moment. One greenlet at a time for each slot of a place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.twins import LibraryPlace
from wire.errors import NotFound, StaleFile
from wire.messages import ROOT_INODE

MOST_BYTES = 1 << 23
"""No file of a simulated client is longer."""


@contextmanager
def opened(place: LibraryPlace, slot: int, path: str, flags: int) -> Iterator[None]:
    """Have a file open in a slot; it is closed whatever happens."""
    place.open(slot, path, flags)
    try:
        yield
    finally:
        place.close(slot)


def replace_file(place: LibraryPlace, slot: int, path: str, content: bytes, *, sync: bool) -> None:
    """Give a file new contents, and make it if it is not there; with `sync`, durably."""
    with opened(place, slot, path, os.O_CREAT | os.O_TRUNC | os.O_RDWR):
        place.pwrite(slot, 0, content)
        if sync:
            place.fsync(slot)


def remove_named(place: LibraryPlace, homes: list[str], begin: str) -> None:
    """Remove the files in some directories whose names begin so."""
    for home in homes:
        for name in place.list(home):
            if name.startswith(begin):
                place.unlink(f"{home}/{name}")


def read_if_there(place: LibraryPlace, slot: int, path: str) -> bytes | None:
    """Return the contents of a file; None if there is none."""
    try:
        place.open(slot, path, os.O_RDONLY)
    except (NotFound, FileNotFoundError):
        return None
    try:
        return place.pread(slot, 0, MOST_BYTES)
    finally:
        place.close(slot)


def open_now(place: LibraryPlace, slot: int, name: str, flags: int) -> None:
    """Open or create a file of the root as the kernel does: what has the name now, not what had it lately."""
    filesystem, walker = place.filesystem, 100 + slot
    for is_last in (False, True):
        try:
            found = filesystem.names.lookup(ROOT_INODE, name.encode(), walker)
        except NotFound:
            place.open(slot, name, flags | os.O_CREAT)
            return
        try:
            place.slots[slot], _ = filesystem.open(found.ino, flags, walker)
        except StaleFile:
            if is_last:
                raise
        else:
            return
