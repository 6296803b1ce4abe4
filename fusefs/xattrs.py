"""Extended attributes by inode number, xattr(7): those that the server keeps, and two of the mount itself.

Knows neither errno nor the binding; raises errors of wire.errors. Safe in any thread.
"""

from __future__ import annotations

from collections.abc import Callable

from fusefs.births import Births
from fusefs.cache import CAPABILITY, NameCache
from fusefs.handles import OpenInodes
from fusefs.ports import NamespacePort
from wire.errors import InvalidArgument, NoAttribute, NotFound, NotPermitted, NotSupported, StaleFile

LAST_ERROR = b"user.quorumfs.last_error"
"""A virtual extended attribute: why the last failed call on an open file failed (empty: none did)."""
DROP_CACHES = b"user.quorumfs.drop_caches"
"""Setting this one, on any file, has the mount forget all that it caches: the next reads are votes, and the
next look-ups ask the metadata server."""
LABEL = b"security.selinux"
_HAS_NONE = "what is removed, and no regular file, has none"
ATTRIBUTE_SPACES = (b"user", b"trusted", b"security")


class ExtendedAttributes:
    """The extended attributes of a mount's inodes.

    Args:
        namespace: where they are kept.
        cache: knows which inodes have none of the space `security`.
        births: files that the server may not know yet.
        opens: tells of what is open here why a call on it failed.
        verify: makes sure that an inode is what a walker's names lead to. Raises StaleFile.
        may_be_open: tells of one that the server does not know whether it may be open here, and removed.
        forget: has the mount forget all that it caches.
    """

    def __init__(
        self,
        namespace: NamespacePort,
        cache: NameCache,
        births: Births,
        opens: OpenInodes,
        verify: Callable[[int, int], None],
        may_be_open: Callable[[int], bool],
        forget: Callable[[], None],
    ) -> None:
        self._namespace, self._cache, self._births = namespace, cache, births
        self._opens, self._verify, self._may_be_open, self._forget = opens, verify, may_be_open, forget

    def get(self, ino: int, name: bytes, walker: int = 0) -> bytes:
        """Return a value. Raises NoAttribute, NotSupported, InvalidArgument, StaleFile."""
        _check(name)
        if name != LAST_ERROR:
            return self._get(ino, name, walker)
        inode = self._opens.get(ino)
        if inode is None or inode.last_error is None:
            raise NoAttribute("no call on this file has failed since it was opened")
        return inode.last_error.message.encode(errors="surrogateescape")

    def _get(self, ino: int, name: bytes, walker: int) -> bytes:
        # The kernel asks for the capability before each write, and `ls -l` for the label of each file; unless
        # it is told once that there are none here, as network file systems do.
        if self._cache.lacks(ino, name):
            raise NotSupported("no labels") if name == LABEL else NoAttribute("no security attributes")
        self._verify(ino, walker)
        self._births.settle(ino)
        token = self._cache.asking()
        try:
            return self._namespace.get_xattr(ino, name)
        except NoAttribute:
            if name == CAPABILITY:
                self._cache.learn_plain(token, ino, all_of_them=False)
            if name == LABEL:
                raise NotSupported("no labels") from None
            raise
        except StaleFile:
            if not self._may_be_open(ino):
                raise
            raise NoAttribute(_HAS_NONE) from None

    def list(self, ino: int, walker: int = 0) -> list[bytes]:
        """Return the names of those that the server keeps. Raises StaleFile."""
        self._verify(ino, walker)
        self._births.settle(ino)
        try:
            return self._namespace.list_xattrs(ino)
        except StaleFile:
            if not self._may_be_open(ino):
                raise
            return []

    def set(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Set one, as setxattr(2). Raises NotPermitted, NotSupported, InvalidArgument, NotFound."""
        _check(name)
        if name == LAST_ERROR:
            raise NotPermitted("this attribute is told by the mount and cannot be set")
        if name == DROP_CACHES:
            self._forget()
            return
        self._births.settle(ino)
        try:
            self._namespace.set_xattr(ino, name, value, flags)
        except StaleFile:
            if not self._may_be_open(ino):
                raise
            raise NotFound("what is removed, and no regular file, keeps none") from None
        self._cache.changed(inodes=(ino,))

    def remove(self, ino: int, name: bytes) -> None:
        """Remove one. Raises NoAttribute, NotSupported, InvalidArgument."""
        _check(name)
        self._births.settle(ino)
        try:
            self._namespace.remove_xattr(ino, name)
        except StaleFile:
            if not self._may_be_open(ino):
                raise
            raise NoAttribute(_HAS_NONE) from None
        self._cache.changed(inodes=(ino,))


def _check(name: bytes) -> None:
    # Not system: who could store an access control list there would take it to be in force.
    space, dot, rest = name.partition(b".")
    if not dot or space not in ATTRIBUTE_SPACES:
        raise NotSupported("only attributes named user.*, trusted.* and security.* are kept")
    if not rest:
        raise InvalidArgument("an extended attribute has a name after the dot")
