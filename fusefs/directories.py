"""Directories: opening them, reading their entries, and making changes of names durable.

Knows neither errno nor the binding. Raises errors of wire.errors. Safe in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusefs.ahead import FilesAhead
from fusefs.attributes import InodeAttributes
from fusefs.births import Births
from fusefs.cache import NameCache
from fusefs.handles import DirectoryHandle
from fusefs.names import Names
from fusefs.ports import NamespacePort
from wire.errors import StaleFile
from wire.messages import Entry

DIRECTORY_RUN = 1000


class Directories:
    """The directories of one mount's file system.

    Args:
        namespace: the server's names.
        cache: learns what is listed.
        names: make sure that a path leads to what is opened.
        attributes: of the directories.
        births: files that the server may not know yet.
        ahead: may read the files that were listed.
    """

    def __init__(
        self,
        namespace: NamespacePort,
        cache: NameCache,
        names: Names,
        attributes: InodeAttributes,
        births: Births,
        ahead: FilesAhead,
    ) -> None:
        self._namespace, self._cache, self._names = namespace, cache, names
        self._attributes, self._births, self._ahead = attributes, births, ahead

    def open(self, ino: int, walker: int = 0) -> DirectoryHandle:
        """Open a directory; as FileSystem.open, only if the path of `walker` leads there."""
        self._names.verify(walker, ino)
        self._attributes.note_special(self._cache.attributes(ino))
        return DirectoryHandle(ino)

    def read(self, handle: DirectoryHandle, restart: bool, count: int | None = None) -> Sequence[Entry]:
        """Return the entries of a directory, without . and .., that were read of it since reading began.

        They are asked for as they are needed, in the order of names, so that what is learnt of each is fresh
        when it is used, however many there are. One that is there all the while is read once.

        Args:
            handle: of the directory.
            restart: read them anew, as after rewinddir(3).
            count: read so many at least, if there are; None: all.
        """
        if handle.began is None or restart:
            self._births.settle()
            handle.begin(self._cache.asking())
        while not handle.is_complete and (count is None or len(handle.entries) < count):
            self._read_on(handle)
        return handle.entries

    def _read_on(self, handle: DirectoryHandle) -> None:
        asked = self._cache.asking()
        ino, last = handle.ino, handle.entries[-1].name if handle.entries else b""
        try:
            page = self._namespace.read_directory(ino, last, DIRECTORY_RUN)
        except StaleFile:  # it was removed since it was opened, and was empty then
            handle.is_complete = True
            return
        for entry in page.entries:
            self._cache.learn_name(asked, ino, entry.name, entry.attributes)
            if entry.attributes.ino not in page.secured:
                self._cache.learn_plain(asked, entry.attributes.ino, all_of_them=True)
        handle.entries += page.entries
        handle.is_complete = page.complete or not page.entries
        if page.complete and handle.began is not None:
            self._cache.learn_whole(handle.began, ino)
        if handle.is_complete:
            self._ahead.listed(ino, handle.entries)

    def sync(self) -> None:
        """Make every change of names so far survive a power loss."""
        self._births.settle(*self._births.waiting())
        self._namespace.sync_metadata()
