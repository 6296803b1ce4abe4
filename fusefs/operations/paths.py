"""The fallback mount on plain fusepy and libfuse 2: by path, 128 KiB requests, no kept pages, no fallocate.

Paths cross fusepy as Latin-1, which maps every byte to itself and back, so that any name passes. An open
file that is unlinked lives on under a hidden name, as libfuse 2 does it by default.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import stat
import time
from typing import Any

import fuse

from fusefs.callers import Caller
from fusefs.filesystem import FileSystem
from fusefs.handles import DirectoryHandle, Handle
from fusefs.operations import BLOCK_SIZE_TOLD, ROOM_UNIT_BYTES, MountOptions, errno_of
from fusefs.operations.limits import limit_seconds
from wire.config import ConfigError
from wire.messages import AttributeChanges, Attributes

log = logging.getLogger(__name__)

REQUEST_BYTES = 128 * 1024
UNCHANGED = 0xFFFFFFFF
UTIME_NOW, UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE


def mount(filesystem: FileSystem, options: MountOptions) -> None:
    """Mount and serve until unmounted or until SIGTERM, SIGINT or SIGHUP. Raises ConfigError."""
    if filesystem.patience.waits:
        log.warning('with libfuse 2 no wait could be interrupted: unavailable = "fail" is used')
        filesystem.patience.end()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    try:
        _Fuse(
            PathOperations(filesystem, options),
            os.fsencode(options.mountpoint).decode("latin-1"),
            encoding="latin-1",
            foreground=True,
            fsname=os.fsencode(options.escaped_source).decode("latin-1"),
            subtype="quorumfs",
            default_permissions=True,
            allow_other=options.allow_other,
            **dict.fromkeys(options.refused, True),
            use_ino=True,
            big_writes=True,
            max_read=REQUEST_BYTES,
            max_write=REQUEST_BYTES,
            atomic_o_trunc=True,
            attr_timeout=0,
            entry_timeout=0,
            negative_timeout=0,
        )
    except RuntimeError:
        raise ConfigError(f"{options.mountpoint} cannot be mounted; libfuse's own message is above") from None


class _Fuse(fuse.FUSE):  # type: ignore[misc]
    """fusepy's glue with our own translation of errors."""

    def _wrapper(self, function: Any, *arguments: Any) -> int:
        try:
            return function(*arguments) or 0
        except BaseException as error:
            return -errno_of(error, function.__name__)

    def create(self, path: bytes, mode: int, info: Any) -> int:
        """As fusepy has it, but with the flags: O_EXCL and O_APPEND hold against other mounts too."""
        opened = info.contents
        opened.fh = self.operations("create", path.decode(self.encoding), mode, opened.flags)
        return 0

    def utimens(self, path: bytes, times: Any) -> Any:
        """As fusepy has it, but for times that are to be now, and those that are left as they are (None)."""
        now_ns = time.time_ns()
        atime_ns = _time_of(times.contents.actime, now_ns)
        mtime_ns = _time_of(times.contents.modtime, now_ns)
        return self.operations("utimens", path.decode(self.encoding), (atime_ns, mtime_ns))


def _time_of(given: Any, now_ns: int) -> int | None:
    """Return what a struct timespec of utimensat(2) stands for; None: no change."""
    if given.tv_nsec == UTIME_OMIT:
        return None
    return now_ns if given.tv_nsec == UTIME_NOW else given.tv_sec * 1_000_000_000 + given.tv_nsec


class PathOperations:
    """What fusepy calls: the name of an operation and its arguments."""

    use_ns = True
    flag_utime_omit_ok = 1
    """Without it libfuse does nothing, and says so to nobody, where only one of the times is set."""

    def __init__(self, filesystem: FileSystem, options: MountOptions) -> None:
        self._fs, self._files, self._options = filesystem, filesystem.files, options
        self._handles: dict[int, Handle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._numbers = itertools.count(1)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        patience = self._fs.patience
        patience.begin(limit_seconds(operation, patience.deadlines))
        try:
            return getattr(self, operation)(*arguments)
        finally:
            patience.done()

    def init(self, _path: str) -> None:
        self._options.ready()

    # names

    def _ino(self, path: str) -> int:
        return self._fs.names.resolve(path.encode("latin-1")).ino

    def _place(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.encode("latin-1").rpartition(b"/")
        return self._fs.names.resolve(directory).ino, name

    def mknod(self, path: str, mode: int, device: int) -> None:
        self._make(path, mode, device=device)

    def mkdir(self, path: str, mode: int) -> None:
        self._make(path, stat.S_IFDIR | stat.S_IMODE(mode))

    def symlink(self, path: str, target: str) -> None:
        self._make(path, stat.S_IFLNK | 0o777, target=target.encode("latin-1"))

    def _make(self, path: str, mode: int, device: int = 0, target: bytes = b"") -> None:
        uid, gid, _ = fuse.fuse_get_context()
        self._fs.make(*self._place(path), mode, uid, gid, device, target)

    def unlink(self, path: str) -> None:
        self._fs.unlink(*self._place(path))

    def rmdir(self, path: str) -> None:
        self._fs.rmdir(*self._place(path))

    def rename(self, old: str, new: str) -> None:
        self._fs.rename(*self._place(old), *self._place(new))

    def link(self, path: str, source: str) -> None:
        self._fs.link(self._ino(source), *self._place(path))

    def readlink(self, path: str) -> str:
        return self._fs.read_link(self._ino(path)).decode("latin-1")

    # attributes

    def getattr(self, path: str | None, number: int | None = None) -> dict[str, int]:
        if number is not None and number in self._handles:
            return _status(self._fs.attributes.get(self._handles[number].inode.ino))
        assert path is not None, "libfuse gives a path where it gives no handle"
        return _status(self._fs.names.resolve(path.encode("latin-1")))

    def chmod(self, path: str, mode: int) -> None:
        self._fs.attributes.set(self._ino(path), AttributeChanges(mode=stat.S_IMODE(mode)))

    def chown(self, path: str, uid: int, gid: int) -> None:
        changes = AttributeChanges(
            uid=None if uid in (-1, UNCHANGED) else uid, gid=None if gid in (-1, UNCHANGED) else gid
        )
        self._fs.attributes.set(self._ino(path), changes)

    def utimens(self, path: str, times: tuple[int | None, int | None]) -> None:
        self._fs.attributes.set(self._ino(path), AttributeChanges(atime_ns=times[0], mtime_ns=times[1]))

    def truncate(self, path: str | None, size: int, number: int | None = None) -> None:
        if number is not None:
            self._files.truncate(self._handles[number], size)
        else:
            assert path is not None, "libfuse gives a path where it gives no handle"
            self._files.truncate_unopened(self._ino(path), size)

    def statfs(self, _path: str) -> dict[str, int]:
        usage = self._fs.usage()
        free = usage.free_bytes // ROOM_UNIT_BYTES
        return {
            "f_bsize": ROOM_UNIT_BYTES,
            "f_frsize": ROOM_UNIT_BYTES,
            "f_blocks": usage.total_bytes // ROOM_UNIT_BYTES,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": usage.files,
            "f_ffree": usage.free_files,
            "f_favail": usage.free_files,
            "f_namemax": 255,
        }

    # files

    def create(self, path: str, mode: int, flags: int) -> int:
        uid, gid, _ = fuse.fuse_get_context()
        _, handle = self._fs.create(*self._place(path), mode, uid, gid, flags)
        return self._keep(handle)

    def open(self, path: str, flags: int) -> int:
        ino = self._fs.names.resolve(path.encode("latin-1"), fresh=True).ino
        return self._keep(self._fs.open(ino, flags, who=Caller(*fuse.fuse_get_context()))[0])

    def _keep(self, handle: Handle) -> int:
        number = next(self._numbers)
        self._handles[number] = handle
        return number

    def read(self, _path: str | None, size: int, offset: int, number: int) -> bytes:
        return bytes(self._files.read(self._handles[number], offset, size))

    def write(self, _path: str | None, data: bytes, offset: int, number: int) -> int:
        handle = self._handles[number]
        self._fs.drop_set_id(handle.inode.base(), Caller(*fuse.fuse_get_context()))
        self._files.write(handle, offset, memoryview(data))
        return len(data)

    def flush(self, _path: str | None, number: int) -> None:
        self._files.flush(self._handles[number])

    def fsync(self, _path: str | None, _data_only: int, number: int) -> None:
        self._files.fsync(self._handles[number])

    def release(self, _path: str | None, number: int) -> None:
        self._files.release(self._handles.pop(number))

    # directories

    def opendir(self, path: str) -> int:
        number = next(self._numbers)
        self._directories[number] = self._fs.directories.open(self._ino(path))
        return number

    def readdir(self, _path: str | None, number: int) -> list[tuple[str, dict[str, int] | None, int]]:
        entries = self._fs.directories.read(self._directories[number], restart=True)
        listed: list[tuple[str, dict[str, int] | None, int]] = [(".", None, 0), ("..", None, 0)]
        for name, attributes in entries:
            kind = {"st_ino": attributes.ino, "st_mode": attributes.mode}
            listed.append((name.decode("latin-1"), kind, 0))
        return listed

    def releasedir(self, _path: str | None, number: int) -> None:
        del self._directories[number]

    def fsyncdir(self, _path: str | None, _data_only: int, _number: int) -> None:
        self._fs.directories.sync()

    # extended attributes

    def getxattr(self, path: str, name: str) -> bytes:
        return self._fs.xattrs.get(self._ino(path), name.encode("latin-1"))

    def listxattr(self, path: str) -> list[str]:
        return [name.decode("latin-1") for name in self._fs.xattrs.list(self._ino(path))]

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        self._fs.xattrs.set(self._ino(path), name.encode("latin-1"), value, flags)

    def removexattr(self, path: str, name: str) -> None:
        self._fs.xattrs.remove(self._ino(path), name.encode("latin-1"))


def _status(attributes: Attributes) -> dict[str, int]:
    return {
        "st_ino": attributes.ino,
        "st_mode": attributes.mode,
        "st_nlink": attributes.nlink,
        "st_uid": attributes.uid,
        "st_gid": attributes.gid,
        "st_rdev": attributes.rdev,
        "st_size": attributes.size,
        "st_blksize": BLOCK_SIZE_TOLD,
        "st_blocks": -(-attributes.allocated_bytes // 512),
        "st_atime": attributes.atime_ns,
        "st_mtime": attributes.mtime_ns,
        "st_ctime": attributes.ctime_ns,
    }
