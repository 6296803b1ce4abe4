"""The simulated disks: real files in memory, and what each has not made durable yet.

`Disk.os` stands for the module `os` in the code of one simulated host. A power loss takes back, or tears,
what was written since the last sync of each file, and undoes names, new ones too, that no sync of their
directory made durable. tests.sim.sqlite_files tells it what SQLite writes by itself of the metadata database;
a data server's index must be no more than a cache, and is damaged anywhere. A process, or its machine, may
end just before any one write or sync. One thread.
"""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.sim import indexes, rings
from tests.sim.indexes import SECTOR_BYTES

TORN_BYTES = 4096
DISK_BYTES = 64 << 30
FREE_BYTES = 32 << 30


class Change(NamedTuple):
    """A change of a file that no sync has made durable: what was there before, and how long the file was."""

    offset: int
    before: bytes
    size: int
    cuts: bool = False
    """A file becomes shorter wholly or not at all."""


class Moment(NamedTuple):
    """All that a disk had when something failed."""

    files: dict[Path, bytes]
    undo: dict[str, list[Change]]
    dropped: dict[str, list[Change]]
    names: list[tuple[str, str, str | None]]
    rings: dict[Path, bytes]


class _Opened(io.FileIO):
    """A file that knows its disk, so that it can be synced by its number until it is closed."""

    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._paths, self._number = disk.paths, self.fileno()
        self._paths[self._number] = path

    def close(self) -> None:
        if not self.closed:
            self._paths.pop(self._number, None)
        super().close()


class Disk:
    """One host's directory, and what a power loss would do to it."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        self.paths: dict[int, str] = {}
        self.boots = 0
        """How often its machine was started again."""
        self.undo: dict[str, list[Change]] = {}
        """Of each file what no sync made durable, the oldest first."""
        self.dropped: dict[str, list[Change]] = {}
        """What a sync failed to make durable: it can be read, and no later sync writes it."""
        self.names: list[tuple[str, str, str | None]] = []
        """What is not durable: (create, mkdir, rename or unlink, path, where the old file is kept)."""
        self.full = False
        self.refusal = errno.ENOSPC
        """What writes that need room are refused with while it is full."""
        self.budget: int | None = None
        """So many bytes there is room for while it is full; None: for none."""
        self.tells_room = False
        """Whether it says that it is full before a write is refused."""
        self.slow = 1.0
        """So many times longer its jobs take."""
        self.failing = False
        """Reads fail with EIO."""
        self.syncs_fail = False
        """Syncs that have something to write fail with EIO, each other one."""
        self.sync_failed = False
        """One has, since the process that uses it began."""
        self.lying = False
        """Some writes are lost or go to another place, and nobody is told."""
        self.index_damaged = False
        """A data server's index was, since the process that uses it began."""
        self.has_lost = False
        """Something that was written was lost, perhaps."""
        self.failure: Callable[[], None] | None = None
        """Called when what `fail_in` announced happens: the disk has kept then what it had."""
        self._moment: Moment | None = None
        self._steps_left = 0
        self._fails_at = ""
        self._kept = 0
        self._old: dict[Path, bytes] = {}
        self._made: dict[str, int] = {}
        """The inodes of files that SQLite made."""

    @property
    def fails(self) -> bool:
        """Whether it is plain that something is wrong with it now, other than that it is full."""
        return self.failing or self.syncs_fail or (self.full and self.refusal != errno.ENOSPC)

    @property
    def takes_all(self) -> bool:
        """Whether nothing stands in the way of any write."""
        return not (self.full or self.fails or self.sync_failed)

    # failing in the middle of something

    def fail_in(self, steps: int, file: str, failure: Callable[[], None]) -> None:
        """Keep what there is just before one of the next writes or syncs, and call `failure` then.

        Args:
            steps: so many writes and syncs are done before.
            file: only those of files whose names end so count.
        """
        self._steps_left, self._fails_at, self.failure = steps, file, failure

    def step(self, path: str) -> None:
        """A file is about to be written or synced."""
        if self.failure is None or not path.endswith(self._fails_at):
            return
        if self._steps_left:
            self._steps_left -= 1
            return
        failure, self.failure = self.failure, None
        self._moment = self._now("*")
        failure()

    def _now(self, names: str) -> Moment:
        undo, dropped = (
            {path: list(changes) for path, changes in each.items()} for each in (self.undo, self.dropped)
        )
        return Moment(self._read(names), undo, dropped, list(self.names), rings.kept(self.root))

    def _read(self, names: str) -> dict[Path, bytes]:
        """Return the files of such names, but for the memory that SQLite shares."""
        return {
            path: path.read_bytes()
            for path in self.root.rglob(names)
            if path.is_file() and not path.name.endswith("-shm")
        }

    def go_back(self, end: Callable[[], None]) -> None:
        """Have everything as it is now, or was when it failed, whatever `end` does to the files."""
        moment, self._moment, self.failure = self._moment, None, None
        names = "*" if moment else "*.sqlite*"
        moment = moment or self._now(names)
        end()
        for file in self.root.rglob(names):
            if file.is_file():
                file.unlink()
        rings.go_back(moment.rings)
        for file, content in moment.files.items():
            file.write_bytes(content)
            if str(file) in self._made:  # it is the same file
                self._made[str(file)] = file.stat().st_ino
        self.undo, self.dropped, self.names = moment.undo, moment.dropped, moment.names

    # what stands for os

    def open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR  # what is overwritten is read first, to be undone
        is_new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        handle = os.open(path, flags & ~os.O_DIRECT, mode, **more)
        self.paths[handle] = os.fsdecode(path)
        if is_new:
            self.names.append(("create", os.fspath(path), None))
        return handle

    def mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        os.mkdir(path, mode, **more)  # noqa: PTH102  it stands for this very function
        self.names.append(("mkdir", os.fspath(path), None))

    def close(self, handle: int) -> None:
        self.paths.pop(handle, None)
        os.close(handle)

    def open_file(self, path: Any, mode: str = "r", *more: Any) -> Any:
        """Stand for io.open: what is written before the first sync is kept or lost as a whole."""
        if (boot := rings.boot_file(path, self.boots)) is not None:
            return boot
        kind = mode.replace("b", "").replace("t", "")
        if kind == "r" or "+" in kind:
            return open(path, mode, *more)  # noqa: PTH123  it stands for this very function
        name, is_new = os.fspath(path), not os.path.lexists(path)
        before = b"" if is_new else Path(path).read_bytes()
        raw = _Opened(self, name, kind)
        if is_new:
            self.names.append(("create", name, None))
        kept = len(before) if kind == "a" else 0
        self.note(name, kept, before[kept:], len(before))
        file = io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, *more[1:])

    def _note_write(self, handle: int, offset: int, length: int, *, grows: bool = True) -> None:
        path = self.paths.get(handle)
        if path is None:
            return
        size = os.fstat(handle).st_size
        if grows:
            self.require_room(max(0, offset + length - size))
        before = os.pread(handle, length, offset) if offset < size else b""
        self.note(path, offset, before + bytes(length - len(before)), size, cuts=not grows)

    def require_room(self, growth: int) -> None:
        """Raise OSError if a file cannot be written, so that it grows by so many bytes."""
        if self.full and (
            self.refusal != errno.ENOSPC
            or self.budget is None
            or (growth and self.used() + growth > self.budget)
        ):
            raise OSError(self.refusal, os.strerror(self.refusal))

    def note_new(self, path: str) -> None:
        """An empty file is written that something else may have made: its name is new, unless it is known."""
        number = os.stat(path).st_ino  # noqa: PTH116  for each write of SQLite
        if self._made.get(path) != number:
            self._made[path] = number
            self.names.append(("create", path, None))

    def used(self) -> int:
        """Return how many bytes its files have, but for the memory that SQLite shares."""
        files = (path for path in self.root.rglob("*") if not path.name.endswith("-shm"))
        return sum(path.stat().st_size for path in files if path.is_file())

    def posix_fallocate(self, handle: int, offset: int, length: int) -> None:
        size = os.fstat(handle).st_size
        if offset + length > size:
            self.require_room(offset + length - size)
            self.note(self.paths[handle], size, b"", size)
            os.ftruncate(handle, offset + length)

    def note(self, path: str, offset: int, before: bytes, size: int, *, cuts: bool = False) -> None:
        """A file of this size is about to be changed where it has `before`, or cut off there."""
        self.step(path)
        self.undo.setdefault(path, []).append(Change(offset, before, size, cuts))

    def _lie(self, handle: int, offset: int, length: int) -> int | None:
        """Return where a write really goes: None if nowhere."""
        if not self.lying or handle not in self.paths or self.rng.random() < 0.7:
            return offset
        self.has_lost = True
        size = os.fstat(handle).st_size
        pages = size // TORN_BYTES
        return self.rng.randrange(1, pages) * TORN_BYTES if pages > 1 and self.rng.random() < 0.5 else None

    def pwrite(self, handle: int, data: Any, offset: int) -> int:
        return self.pwritev(handle, [data], offset)

    def pwritev(self, handle: int, buffers: Any, offset: int, flags: int = 0) -> int:
        length = sum(len(memoryview(b).cast("B")) for b in buffers)
        place = self._lie(handle, offset, length)
        self._note_write(handle, offset if place is None else place, length)
        if place is None:
            if offset + length > os.fstat(handle).st_size:
                os.ftruncate(handle, offset + length)
            return length
        written = os.pwritev(handle, buffers, place)
        if flags & (os.RWF_DSYNC | os.RWF_SYNC):
            self.fdatasync(handle)
        return written

    def _fail_reads(self, handle: int, offset: int) -> None:
        """A file's first page, which is written just before it is read, is still in memory."""
        if offset and self.fails_to_read(self.paths.get(handle)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fails_to_read(self, path: str | None) -> bool:
        """Tell whether a read of a file fails now; that of the memory that SQLite shares never does."""
        return self.failing and path is not None and not path.endswith("-shm") and self.rng.random() < 0.5

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        self._fail_reads(handle, offset)
        return os.pread(handle, length, offset)

    def preadv(self, handle: int, buffers: Any, offset: int, *flags: int) -> int:
        self._fail_reads(handle, offset)
        return os.preadv(handle, buffers, offset, *flags)

    def ftruncate(self, handle: int, length: int) -> None:
        size = os.fstat(handle).st_size
        if length < size:
            self._note_write(handle, length, size - length, grows=False)
        else:
            self._note_write(handle, size, 0)
        os.ftruncate(handle, length)

    def fdatasync(self, handle: int) -> None:
        path = self.paths.get(handle, "")
        if not Path(path).is_dir():
            self.sync(path)
            return
        self.step(path)
        names = [name for name in self.names if str(Path(name[1]).parent) != path]
        if self.syncs_fail and len(names) < len(self.names) and self.rng.random() < 0.5:
            self.sync_failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.names = names

    fsync = fdatasync

    def sync(self, path: str) -> None:
        """Make a file durable, but for what an earlier sync failed to write. Raises OSError."""
        self.step(path)
        if self.syncs_fail and path in self.undo and self.rng.random() < 0.5:
            self.sync_failed = True
            lost = (change for change in self.undo.pop(path) if not change.cuts)
            self.dropped.setdefault(path, []).extend(lost)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        written = self.undo.pop(path, [])
        if path in self.dropped:
            self.dropped[path] = [left for change in self.dropped[path] for left in _without(change, written)]

    def unlink(self, path: Any, **more: Any) -> None:
        self._keep("unlink", os.fspath(path), os.unlink, path, **more)

    remove = unlink

    def rename(self, source: Any, target: Any, **more: Any) -> None:
        self._keep("rename", os.fspath(target), os.rename, source, target, **more)

    def replace(self, source: Any, target: Any, **more: Any) -> None:
        self._keep("rename", os.fspath(target), os.replace, source, target, **more)

    def _keep(self, what: str, path: str, do: Any, *args: Any, **more: Any) -> None:
        kept = None
        self.step(path)
        if path.startswith(str(self.root)) and Path(path).is_file():
            self._kept += 1
            kept = str(self.root.parent / f"kept-{self.root.name}-{self._kept}")
            os.link(path, kept)
        do(*args, **more)
        if path.startswith(str(self.root)):
            self.names.append((what, path, kept))
            for changes in (self.undo, self.dropped):
                changes.pop(path, None)
                if what == "rename" and (moved := changes.pop(os.fspath(args[0]), None)):
                    changes[path] = moved

    def statvfs(self, _: Any) -> os.statvfs_result:
        """Tell of a large disk: how much room this machine has in memory is no part of a life."""
        free_bytes = FREE_BYTES
        if self.full and self.tells_room and self.budget is not None:
            free_bytes = max(0, self.budget - self.used())
        blocks, free, names, length = DISK_BYTES // TORN_BYTES, free_bytes // TORN_BYTES, 1 << 24, 255
        return os.statvfs_result((TORN_BYTES, TORN_BYTES, blocks, free, free, names, names, names, 0, length))

    fstatvfs = statvfs

    def disk_usage(self, _: Any) -> types.SimpleNamespace:
        """Stand for shutil's."""
        return types.SimpleNamespace(total=DISK_BYTES, used=DISK_BYTES - FREE_BYTES, free=FREE_BYTES)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # what happens to it

    def lose_power(self) -> None:
        """Take back what is not durable, wholly, in part, or not at all. All processes must be dead."""
        self.boots += 1
        rings.end_all(self.root)
        self.has_lost |= bool(self.undo or self.dropped or self.names)
        for path in {**self.dropped, **self.undo}:
            if Path(path).exists():
                undo = self.undo.get(path, [])
                size = undo[0].size if undo else Path(path).stat().st_size
                self._tear(path, _clipped(self.dropped.get(path, []), size) + undo)
        self.undo.clear()
        self.dropped.clear()
        keep = self.rng.randrange(len(self.names) + 1)  # a journal keeps the names' changes in order
        for what, path, kept in reversed(self.names[keep:]):
            if what == "mkdir":
                shutil.rmtree(path, ignore_errors=True)
            elif what != "unlink" or kept is not None:  # what has the name since goes as well
                Path(path).unlink(missing_ok=True)
            if kept is not None:
                os.link(kept, path)
        self.names.clear()
        if self.budget is not None:  # the room of a file goes to nobody while its removal may be undone
            self.budget = max(self.budget, self.used())
        for index in list(self.root.rglob("index.sqlite")):
            harm = self.rng.choice(("none", "removed", "damaged", "damaged"))
            if harm == "removed":
                for file in index.parent.glob(f"{index.name}*"):
                    file.unlink()
            elif harm == "damaged":
                indexes.damage(index, self.rng)

    def damage_index(self) -> None:
        """Damage a data server's index, which is a cache, while the server runs perhaps."""
        for index in list(self.root.rglob("index.sqlite")):
            self.index_damaged = True
            indexes.damage(index, self.rng)

    def _tear(self, path: str, changes: list[Change]) -> None:
        style = self.rng.choice(("all lost", "none lost", "each by itself"))
        if style == "none lost":
            return
        torn_bytes = SECTOR_BYTES if ".sqlite" in path else TORN_BYTES
        with Path(path).open("r+b") as file:
            for offset, before, size, cuts in reversed(changes):
                if style == "all lost":
                    file.seek(offset)
                    file.write(before)
                    file.truncate(size)
                    continue
                piece_bytes = max(1, len(before)) if cuts else torn_bytes
                for start in range(0, len(before), piece_bytes):
                    if self.rng.random() < 0.5:
                        file.seek(offset + start)
                        file.write(before[start : start + piece_bytes])

    def rot(self, count: int) -> list[str]:
        """Flip some bytes of the segments; return where."""
        self.has_lost, done = True, []
        segments = sorted(p for p in self.root.rglob("*.seg") if p.stat().st_size > 8192)
        for _ in range(count if segments else 0):
            path = self.rng.choice(segments)
            offset = self.rng.randrange(4096, path.stat().st_size)
            with path.open("r+b") as file:
                file.seek(offset)
                old = file.read(1)
                file.seek(offset)
                file.write(bytes([old[0] ^ (1 << self.rng.randrange(8))]))
            done.append(f"{path.name}+{offset}")
        return done

    def snapshot(self) -> None:
        """Remember all files as they are, for `roll_back`."""
        self._old = {
            path.relative_to(self.root): path.read_bytes() for path in self.root.rglob("*") if path.is_file()
        }

    def roll_back(self) -> bool:
        """Put all files back as they were at the snapshot, if there was one, and return that."""
        if not self._old:
            return False
        self.blank()
        self.has_lost = True
        for path, content in self._old.items():
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            self._made[str(file)] = file.stat().st_ino  # its name is durable
        return True

    def blank(self) -> None:
        """Empty it, as if it had been replaced."""
        shutil.rmtree(self.root)
        self.root.mkdir()
        self.undo.clear()
        self.dropped.clear()
        self.names.clear()
        self._made.clear()


def _without(change: Change, written: list[Change]) -> list[Change]:
    """Return what is left of a change when others were made durable over it."""
    begin = change.offset
    pieces = [(begin, begin + len(change.before))]
    for start, end in ((other.offset, other.offset + len(other.before)) for other in written):
        halves = (half for low, high in pieces for half in ((low, min(high, start)), (max(low, end), high)))
        pieces = [(low, high) for low, high in halves if low < high]
    return [
        change._replace(offset=low, before=change.before[low - begin : high - begin]) for low, high in pieces
    ]


def _clipped(changes: list[Change], size: int) -> list[Change]:
    """Return what of some changes is within a file of this size, none of which gave it its size."""
    return [
        change._replace(before=change.before[: size - change.offset], size=size)
        for change in changes
        if change.offset < size
    ]
