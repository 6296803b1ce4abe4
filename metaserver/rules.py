"""POSIX rules of the namespace that need no database. Pure; safe in any thread.

Sources: POSIX.1-2017, and Linux's rename(2), chown(2), xattr(7), path_resolution(7).
"""

from __future__ import annotations

import stat

from wire.attribute_rules import IDS
from wire.errors import (
    AlreadyExists,
    AttributeTooLong,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from wire.messages import LARGEST_MODE, Attributes

NAME_BYTES = 255
TARGET_BYTES = 4095
LINKS_MAX = 65000
XATTR_NAME_BYTES = 255
XATTR_VALUE_BYTES = 64 * 1024
XATTR_LIST_BYTES = 64 * 1024
"""Linux cannot list more: each name counts with its closing NUL."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_CREATE = 1
XATTR_REPLACE = 2

_TYPE_BITS = 0o170000
_TYPES = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)


def check_name(name: bytes) -> None:
    """Refuse what cannot be the name of an entry. Raises InvalidArgument, NameTooLong."""
    if len(name) > NAME_BYTES:
        raise NameTooLong(f"a name has at most {NAME_BYTES} bytes")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidArgument(f"{name!r} cannot be a name")


def check_new_inode(mode: int, uid: int, gid: int, rdev: int, target: bytes) -> None:
    """Refuse what cannot be created. Raises InvalidArgument, NameTooLong, NotFound (an empty target)."""
    kind = mode & _TYPE_BITS
    if kind not in _TYPES or not 0 <= mode <= LARGEST_MODE:
        raise InvalidArgument(f"mode {mode:o} has no known file type")
    if not (0 <= uid < IDS and 0 <= gid < IDS and 0 <= rdev < 2**63):
        raise InvalidArgument("an owner, group or device number is out of range")
    if kind != stat.S_IFLNK:
        if target:
            raise InvalidArgument("only a symbolic link has a target")
    elif not target:
        raise NotFound("a symbolic link's target cannot be empty")
    elif len(target) > TARGET_BYTES:
        raise NameTooLong(f"a symbolic link's target has at most {TARGET_BYTES} bytes")
    elif b"\0" in target:
        raise InvalidArgument("a symbolic link's target cannot contain NUL")


def of_a_file(mode: int) -> int:
    """Return a mode with the type of a regular file, whatever type it had; what was no mode is still none."""
    return mode & ~_TYPE_BITS | stat.S_IFREG


def inherited(parent_mode: int, parent_gid: int, mode: int, gid: int) -> tuple[int, int]:
    """Return mode and group of a new inode.

    A set-group-id directory passes its group on, and the bit to its directories.
    """
    if not parent_mode & stat.S_ISGID:
        return mode, gid
    return (mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode), parent_gid


def check_rename_flags(flags: int) -> None:
    """Refuse flags of renameat2(2) that are unknown or exclude each other. Raises InvalidArgument."""
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise InvalidArgument(f"rename flags {flags} are unknown")


def check_rename_target(exists: bool, flags: int) -> None:
    """Refuse a rename that its flags forbid, before all other checks, as Linux does.

    Raises:
        AlreadyExists: RENAME_NOREPLACE, and the new name is taken.
        NotFound: RENAME_EXCHANGE, and there is nothing to exchange with.
    """
    if flags == RENAME_NOREPLACE and exists:
        raise AlreadyExists()
    if flags == RENAME_EXCHANGE and not exists:
        raise NotFound("there is nothing to exchange with")


def check_replaced(source: Attributes, target: Attributes, target_empty: bool) -> None:
    """Refuse a rename over an existing name where POSIX does.

    Raises:
        IsADirectory, NotADirectory: only like replaces like.
        NotEmpty: a directory with entries.
    """
    if source.ino == target.ino:
        return
    if stat.S_ISDIR(target.mode):
        if not stat.S_ISDIR(source.mode):
            raise IsADirectory()
        if not target_empty:
            raise NotEmpty()
    elif stat.S_ISDIR(source.mode):
        raise NotADirectory()


def check_xattr(name: bytes, value: bytes, flags: int) -> None:
    """Refuse what cannot be an extended attribute. Raises InvalidArgument, AttributeTooLong."""
    if not name or b"\0" in name or flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise InvalidArgument("an extended attribute's name or flags are wrong")
    if len(name) > XATTR_NAME_BYTES:
        raise AttributeTooLong(f"an extended attribute's name has at most {XATTR_NAME_BYTES} bytes")
    if len(value) > XATTR_VALUE_BYTES:
        raise AttributeTooLong(f"an extended attribute has at most {XATTR_VALUE_BYTES} bytes")
