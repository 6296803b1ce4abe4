"""The same calls to two places that must answer alike: a local directory, and quorumfs by either way in.

`OsPlace` makes system calls below a directory: the local one, or one on a mount. `LibraryPlace` calls the
client library, and does what the kernel would do before it (walking, modes of open, refusals). A call's
outcome is its value, or the name of its errno. `Twins` makes each call on both, and compares.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from wire.errors import NotFound, QuorumfsError
from wire.messages import ROOT_INODE, AttributeChanges, Attributes

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
READ_BYTES = 1 << 20
XATTR_PREFIX = "user.twin."


def pattern(tag: int, length: int) -> bytes:
    """Return bytes that tell where they belong."""
    return random.Random(tag).randbytes(length)


class Place(Protocol):
    """What both places do. Paths are relative; `slot` numbers an open file of this place."""

    def open(self, slot: int, path: str, flags: int) -> None: ...
    def close(self, slot: int) -> None: ...
    def pwrite(self, slot: int, offset: int, data: bytes) -> int: ...
    def pread(self, slot: int, offset: int, length: int) -> bytes: ...
    def ftruncate(self, slot: int, size: int) -> None: ...
    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None: ...
    def fsync(self, slot: int) -> None: ...
    def fstat(self, slot: int) -> dict[str, int]: ...
    def truncate(self, path: str, size: int) -> None: ...
    def rename(self, path: str, new_path: str, flags: int) -> None: ...
    def link(self, path: str, new_path: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def readlink(self, path: str) -> str: ...
    def unlink(self, path: str) -> None: ...
    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]: ...
    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None: ...
    def removexattr(self, path: str, name: str) -> None: ...
    def xattrs(self, path: str) -> dict[str, bytes]: ...
    def lstat(self, path: str) -> dict[str, int]: ...
    def list(self, path: str) -> list[str]: ...


def shown(mode: int, nlink: int, uid: int, gid: int, size: int, ino: int) -> dict[str, int]:
    """Return what two places must show alike of a file; `ino` is compared by who shares it."""
    size = 0 if stat.S_ISDIR(mode) else size
    return {"mode": mode, "nlink": nlink, "uid": uid, "gid": gid, "size": size, "ino": ino}


def checked(result: int) -> None:
    """Raise OSError for the result of a call of the C library."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class OsPlace:
    """Below a directory, by system calls."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.slots: dict[int, int] = {}

    def at(self, path: str) -> str:
        return str(self.base / path)

    def open(self, slot: int, path: str, flags: int) -> None:
        descriptor = os.open(self.at(path), flags | os.O_NOFOLLOW, 0o644)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, path)
        self.slots[slot] = descriptor

    def close(self, slot: int) -> None:
        os.close(self.slots.pop(slot))

    def pwrite(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.slots[slot], data, offset)

    def pread(self, slot: int, offset: int, length: int) -> bytes:
        return os.pread(self.slots[slot], length, offset)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.slots[slot], size)

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        arguments = (ctypes.c_long(offset), ctypes.c_long(length))
        checked(LIBC.fallocate(self.slots[slot], mode, *arguments))

    def fsync(self, slot: int) -> None:
        os.fsync(self.slots[slot])

    def fstat(self, slot: int) -> dict[str, int]:
        return self._shown(os.fstat(self.slots[slot]))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def rename(self, path: str, new_path: str, flags: int) -> None:
        names = (os.fsencode(self.at(path)), AT_FDCWD, os.fsencode(self.at(new_path)))
        checked(LIBC.renameat2(AT_FDCWD, *names, flags))

    def link(self, path: str, new_path: str) -> None:
        os.link(self.at(path), self.at(new_path), follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        Path(self.at(path)).symlink_to(target)

    def readlink(self, path: str) -> str:
        return str(Path(self.at(path)).readlink())

    def unlink(self, path: str) -> None:
        Path(self.at(path)).unlink()

    def mkdir(self, path: str) -> None:
        Path(self.at(path)).mkdir(0o755)

    def rmdir(self, path: str) -> None:
        Path(self.at(path)).rmdir()

    def chmod(self, path: str, mode: int) -> None:
        Path(self.at(path)).chmod(mode)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
        os.utime(self.at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        found = os.lstat(self.at(path))
        return found.st_atime_ns, found.st_mtime_ns

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def xattrs(self, path: str) -> dict[str, bytes]:
        names = os.listxattr(self.at(path), follow_symlinks=False)
        mine = sorted(name for name in names if name.startswith(XATTR_PREFIX))
        return {name: os.getxattr(self.at(path), name, follow_symlinks=False) for name in mine}

    def lstat(self, path: str) -> dict[str, int]:
        return self._shown(os.lstat(self.at(path)))

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(self.at(path)))  # noqa: PTH208  the names alone, as readdir(3) tells them

    def _shown(self, found: os.stat_result) -> dict[str, int]:
        return shown(found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size, found.st_ino)


class LibraryPlace:
    """Below a directory of the client library. Symbolic links are taken to lead nowhere."""

    def __init__(self, filesystem: FileSystem, base: str) -> None:
        self.filesystem = filesystem
        self.base = base
        self.slots: dict[int, Handle] = {}

    def _step(self, parent: Attributes, name: str) -> Attributes:
        if stat.S_ISLNK(parent.mode):
            raise FileNotFoundError(errno.ENOENT, name)
        if not stat.S_ISDIR(parent.mode):
            raise NotADirectoryError(errno.ENOTDIR, name)
        return self.filesystem.names.lookup(parent.ino, name.encode())

    def _find(self, path: str) -> Attributes:
        found = self.filesystem.attributes.get(ROOT_INODE)
        for name in f"{self.base}/{path}".split("/"):
            found = self._step(found, name) if name not in ("", ".") else found
        return found

    def _parent(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.rpartition("/")
        found = self._find(directory)
        if stat.S_ISLNK(found.mode):
            raise FileNotFoundError(errno.ENOENT, path)
        if not stat.S_ISDIR(found.mode):
            raise NotADirectoryError(errno.ENOTDIR, path)
        return found.ino, name.encode()

    def _there(self, path: str) -> Attributes | None:
        try:
            return self._step(self.filesystem.attributes.get(self._parent(path)[0]), path.rpartition("/")[2])
        except NotFound:
            return None

    def _followed(self, path: str) -> Attributes:
        found = self._find(path)
        if stat.S_ISLNK(found.mode):
            raise FileNotFoundError(errno.ENOENT, path)
        return found

    def open(self, slot: int, path: str, flags: int) -> None:
        found = self._there(path)
        if found is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, path)
            _, handle = self.filesystem.create(*self._parent(path), 0o644, os.geteuid(), os.getegid(), flags)
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, path)
        elif stat.S_ISLNK(found.mode):
            raise OSError(errno.ELOOP, path)
        elif stat.S_ISDIR(found.mode):
            raise IsADirectoryError(errno.EISDIR, path)
        else:
            handle, _ = self.filesystem.files.open(found.ino, flags)
        self.slots[slot] = handle

    def close(self, slot: int) -> None:
        handle = self.slots.pop(slot)
        try:
            self.filesystem.files.flush(handle)
        finally:
            self.filesystem.files.release(handle)

    def _writing(self, slot: int, number: int = errno.EBADF) -> Handle:
        handle = self.slots[slot]
        if not handle.writing:
            raise OSError(number, "not open for writing")
        return handle

    def pwrite(self, slot: int, offset: int, data: bytes) -> int:
        handle = self._writing(slot)
        if data:
            self.filesystem.files.write(handle, offset, memoryview(data))
        return len(data)

    def pread(self, slot: int, offset: int, length: int) -> bytes:
        handle, parts = self.slots[slot], bytearray()
        if not handle.reading:
            raise OSError(errno.EBADF, "not open for reading")
        while len(parts) < length:
            part = self.filesystem.files.read(handle, offset + len(parts), length - len(parts))
            if not part:
                break
            parts += part
        return bytes(parts)

    def ftruncate(self, slot: int, size: int) -> None:
        self.filesystem.files.truncate(self._writing(slot, errno.EINVAL), size)

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        if length <= 0:
            raise OSError(errno.EINVAL, "nothing to allocate")
        self.filesystem.files.allocate(self._writing(slot), mode, offset, length)

    def fsync(self, slot: int) -> None:
        self.filesystem.files.fsync(self.slots[slot])

    def fstat(self, slot: int) -> dict[str, int]:
        return self._shown(self.filesystem.attributes.get(self.slots[slot].inode.ino))

    def truncate(self, path: str, size: int) -> None:
        found = self._followed(path)
        if stat.S_ISDIR(found.mode):
            raise IsADirectoryError(errno.EISDIR, path)
        self.filesystem.files.truncate_unopened(found.ino, size)

    def rename(self, path: str, new_path: str, flags: int) -> None:
        self.filesystem.rename(*self._parent(path), *self._parent(new_path), flags)

    def link(self, path: str, new_path: str) -> None:
        found = self._find(path)
        if self._there(new_path) is not None:
            raise FileExistsError(errno.EEXIST, new_path)
        self.filesystem.link(found.ino, *self._parent(new_path))

    def symlink(self, target: str, path: str) -> None:
        self._make(path, stat.S_IFLNK | 0o777, target.encode())

    def _make(self, path: str, mode: int, target: bytes = b"") -> None:
        owner = os.geteuid(), os.getegid()
        self.filesystem.make(*self._parent(path), mode, *owner, target=target)

    def readlink(self, path: str) -> str:
        return self.filesystem.read_link(self._find(path).ino).decode()

    def unlink(self, path: str) -> None:
        parent, name = self._parent(path)
        self.filesystem.names.lookup(parent, name)  # as the kernel does before
        self.filesystem.attributes.get(parent)
        self.filesystem.unlink(parent, name)

    def mkdir(self, path: str) -> None:
        self._make(path, stat.S_IFDIR | 0o755)

    def rmdir(self, path: str) -> None:
        self.filesystem.rmdir(*self._parent(path))

    def chmod(self, path: str, mode: int) -> None:
        self.filesystem.attributes.set(self._followed(path).ino, AttributeChanges(mode=mode))

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
        changes = AttributeChanges(atime_ns=atime_ns, mtime_ns=mtime_ns)
        self.filesystem.attributes.set(self._find(path).ino, changes)
        found = self._find(path)
        return found.atime_ns, found.mtime_ns

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        self.filesystem.xattrs.set(self._with_attributes(path), name.encode(), value, flags)

    def removexattr(self, path: str, name: str) -> None:
        self.filesystem.xattrs.remove(self._with_attributes(path), name.encode())

    def _with_attributes(self, path: str) -> int:
        found = self._find(path)
        if stat.S_ISLNK(found.mode):
            raise PermissionError(errno.EPERM, path)
        return found.ino

    def xattrs(self, path: str) -> dict[str, bytes]:
        ino = self._find(path).ino
        names = sorted(name.decode() for name in self.filesystem.xattrs.list(ino))
        return {name: bytes(self.filesystem.xattrs.get(ino, name.encode())) for name in names}

    def lstat(self, path: str) -> dict[str, int]:
        return self._shown(self._find(path))

    def list(self, path: str) -> list[str]:
        found = self._find(path)
        if stat.S_ISLNK(found.mode):
            raise FileNotFoundError(errno.ENOENT, path)
        if not stat.S_ISDIR(found.mode):
            raise NotADirectoryError(errno.ENOTDIR, path)
        handle = self.filesystem.directories.open(found.ino)
        return sorted(entry.name.decode() for entry in self.filesystem.directories.read(handle, True))

    def _shown(self, found: Attributes) -> dict[str, int]:
        return shown(found.mode, found.nlink, found.uid, found.gid, found.size, found.ino)


def outcome(call: Callable[[], Any]) -> Any:
    """Return a call's value, or the name of its errno."""
    try:
        return call()
    except QuorumfsError as error:
        return errno.errorcode[error.errno]
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def plain(value: Any) -> Any:
    """Return an outcome without what may differ between two places, and short enough to be read."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key != "ino"}
    if isinstance(value, bytes) and len(value) > 64:
        return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:12]}"
    return value


class Twins:
    """Makes each call in both places and compares; keeps what was called, to be played again."""

    def __init__(self, local: OsPlace, remote: Place) -> None:
        self.local, self.remote = local, remote
        self.open_slots: set[int] = set()
        self.calls: list[str] = []

    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call in both places; return the local outcome."""
        self.calls.append(f"{name}({', '.join(repr(plain(each)) for each in arguments)})")
        mine = outcome(lambda: getattr(self.local, name)(*arguments))
        theirs = outcome(lambda: getattr(self.remote, name)(*arguments))
        self._compare(mine, theirs)
        return mine

    def _compare(self, mine: Any, theirs: Any) -> None:
        if plain(mine) != plain(theirs):
            at = ""
            if isinstance(mine, bytes) and isinstance(theirs, bytes):
                pairs = zip(mine, theirs, strict=False)
                first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
                at = f" (first at byte {first})"
            history = "\n    ".join(self.calls)
            raise AssertionError(f"local: {plain(mine)}\nquorumfs: {plain(theirs)}{at}\nafter\n    {history}")

    def open(self, slot: int, path: str, flags: int) -> None:
        if slot in self.open_slots:
            self.close(slot)
        if self.call("open", slot, path, flags) is None:
            self.open_slots.add(slot)

    def close(self, slot: int) -> None:
        self.open_slots.discard(slot)
        self.call("close", slot)

    def close_all(self) -> None:
        for slot in sorted(self.open_slots):
            self.close(slot)

    def write(self, slot: int, offset: int, tag: int, length: int) -> None:
        self.calls.append(f"# the next writes pattern({tag}, {length})")
        self.call("pwrite", slot, offset, pattern(tag, length))

    def compare_trees(self, remote: Place | None = None) -> None:
        """Compare everything: names, contents, attributes, and which names share an inode."""
        self.calls.append("compare_trees()")
        self._compare(tree(self.local), tree(remote or self.remote))


def contents(place: Place, path: str) -> bytes:
    """Return a file's bytes, by a slot of its own."""
    place.open(-1, path, os.O_RDONLY)
    try:
        size, data = place.fstat(-1)["size"], bytearray()
        while part := place.pread(-1, len(data), READ_BYTES):
            data += part
        assert len(data) == size, f"{path}: {len(data)} bytes read, {size} told"
        return bytes(data)
    finally:
        place.close(-1)


def tree(place: Place) -> dict[str, Any]:
    """Return everything that is in a place, by path."""
    found: dict[str, Any] = {}
    owners: dict[int, str] = {}
    waiting = ["."]
    while waiting:
        path = waiting.pop()
        shown_here = place.lstat(path)
        mode = shown_here["mode"]
        told: dict[str, Any] = {**shown_here, "same as": owners.setdefault(shown_here["ino"], path)}
        if stat.S_ISDIR(mode):
            told["names"] = names = place.list(path)
            waiting += [f"{path}/{name}" for name in reversed(names)]
        elif stat.S_ISLNK(mode):
            told["target"] = place.readlink(path)
        else:
            told["contents"] = contents(place, path)
        if not stat.S_ISLNK(mode):
            told["xattrs"] = place.xattrs(path)
        found[path] = told
    return found
