"""The kernel's requests about open directories, answered: opened, listed, closed. Any thread."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from fusefs.filesystem import FileSystem
from fusefs.handles import DirectoryHandle
from fusefs.operations import listing
from fusefs.operations.late import LateAnswers
from fusefs.operations.structures import Library


class DirectoryRequests:
    """The methods named as in `Callbacks` answer requests."""

    def __init__(self, library: Library, filesystem: FileSystem, late: LateAnswers) -> None:
        self._library, self._late = library, late
        self._directories, self._keeping = filesystem.directories, filesystem.keeping
        self._open: dict[int, DirectoryHandle] = {}
        self._numbers = itertools.count(1)

    def opendir(self, request: int, ino: int, file: Any) -> None:
        directory, number = self._directories.open(ino, self._library.walker(request)), next(self._numbers)
        self._open[number] = directory
        file.contents.fh = number
        if self._library.reply_open(request, file) != 0:
            del self._open[number]

    def readdir(self, request: int, ino: int, size: int, offset: int, file: Any) -> None:
        most = offset + size // listing.LEAST_BYTES
        entries = self._directories.read(self._open[file.contents.fh], offset == 0, most)
        packed = listing.pack(ino, entries, offset, size)
        self._library.reply_bytes(request, packed, len(packed))

    def readdirplus(self, request: int, ino: int, size: int, offset: int, file: Any) -> None:
        most = offset + size // listing.LEAST_PLUS_BYTES
        entries = self._directories.read(self._open[file.contents.fh], offset == 0, most)
        seconds = self._keeping.most_seconds()
        find = partial(self._keeping.find, ino) if seconds else None
        packed = listing.pack_plus(ino, entries, offset, size, seconds, find)
        self._library.reply_bytes(request, packed, len(packed))
        if seconds and not self._keeping.covers(seconds):
            later = entries[max(0, offset - 2) : most]
            self._late.check(seconds, *((ino, name, attributes.ino) for name, attributes in later))

    def releasedir(self, request: int, _ino: int, file: Any) -> None:
        del self._open[file.contents.fh]
        self._library.reply_error(request, 0)

    def fsyncdir(self, request: int, _ino: int, _data_only: int, _file: Any) -> None:
        self._directories.sync()
        self._library.reply_error(request, 0)
