"""The kernel's requests about extended attributes, answered. Any thread."""

from __future__ import annotations

import ctypes
import errno

from fusefs.filesystem import FileSystem
from fusefs.operations.structures import Library


class XattrRequests:
    """The methods named as in `Callbacks` answer requests."""

    def __init__(self, library: Library, filesystem: FileSystem) -> None:
        self._library = library
        self._xattrs, self._names = filesystem.xattrs, filesystem.names

    def getxattr(self, request: int, ino: int, name: bytes, size: int) -> None:
        self._value(request, self._xattrs.get(ino, name, self._library.walker(request)), size)

    def listxattr(self, request: int, ino: int, size: int) -> None:
        names = self._xattrs.list(ino, self._library.walker(request))
        if self._library.context(request).contents.uid != 0:
            names = [name for name in names if not name.startswith(b"trusted.")]
        self._value(request, b"".join(name + b"\0" for name in names), size)

    def _value(self, request: int, value: bytes, size: int) -> None:
        if size == 0:
            self._library.reply_length(request, len(value))
        elif len(value) > size:
            self._library.reply_error(request, errno.ERANGE)
        else:
            self._library.reply_bytes(request, value, len(value))

    def setxattr(self, request: int, ino: int, name: bytes, address: int, size: int, flags: int) -> None:
        self._names.verify_unopened(ino, self._library.walker(request))
        self._xattrs.set(ino, name, ctypes.string_at(address, size) if size else b"", flags)
        self._library.reply_error(request, 0)

    def removexattr(self, request: int, ino: int, name: bytes) -> None:
        self._names.verify_unopened(ino, self._library.walker(request))
        self._xattrs.remove(ino, name)
        self._library.reply_error(request, 0)
