"""The mount on libfuse 3's low-level interface: by inode number, each request answered exactly once.

The kernel's node numbers are our inode numbers, so that hard links share their pages and an unlinked open
file keeps its attributes. The kernel keeps names and attributes as fusefs.keeping says (not at all unless
this mount is alone), and pages as `Files.open` says. Requests come in the threads of
fusefs.operations.serving.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import nullcontext
from ctypes import byref
from functools import partial
from typing import Any

from fusefs.files import PAGE_BYTES
from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from fusefs.operations import MountOptions, errno_of
from fusefs.operations.attributes import SET_SIZE, TAKES_SET_ID, changes_of, entry_of, room_of, status_of
from fusefs.operations.directories import DirectoryRequests
from fusefs.operations.dropping import PageDrops
from fusefs.operations.handshake import shake_hands
from fusefs.operations.late import LateAnswers
from fusefs.operations.limits import limit_seconds
from fusefs.operations.locking import Waiters, lock_range, record_lock, signed
from fusefs.operations.moved import MovedDirectories
from fusefs.operations.reading_ahead import let_read_ahead
from fusefs.operations.serving import Serving
from fusefs.operations.shortening import Shortenings
from fusefs.operations.structures import Arguments, Callbacks, EntryParameters, FileInfo, Library
from fusefs.operations.xattrs import XattrRequests
from fusefs.patience import MOST_WAITING
from wire.config import ConfigError
from wire.errors import NotFound, WouldBlock
from wire.locks import LAST
from wire.messages import Attributes, FileLock

log = logging.getLogger(__name__)

THREADS = 16
"""So many requests are answered at once."""
WAITING_THREADS = THREADS + MOST_WAITING
"""So many where requests may wait for servers: some stay free, to hear of signals to those that wait."""
REQUEST_BYTES = 1024 * 1024
SMALL_REQUEST_BYTES = 64 * 1024
"""While more bytes than these are copied and hashed, another thread can take the next request."""
BACKGROUND_REQUESTS = 64

ASYNC_READ, ATOMIC_O_TRUNC, PARALLEL_DIROPS = 1 << 0, 1 << 3, 1 << 18
POSIX_LOCKS, EXPORT_SUPPORT, FLOCK_LOCKS = 1 << 1, 1 << 4, 1 << 10
AUTO_INVAL_DATA, READDIRPLUS, READDIRPLUS_AUTO, HANDLE_KILLPRIV = 1 << 12, 1 << 13, 1 << 14, 1 << 20
WANTED = (
    ASYNC_READ | ATOMIC_O_TRUNC | PARALLEL_DIROPS | POSIX_LOCKS | FLOCK_LOCKS | READDIRPLUS | EXPORT_SUPPORT
)
RENAME_EXCHANGE = 2
UNWANTED = AUTO_INVAL_DATA | READDIRPLUS_AUTO | HANDLE_KILLPRIV
"""Pages are dropped at open instead; of set-id bits fusefs.operations.handshake says more."""


def mount(filesystem: FileSystem, options: MountOptions) -> None:
    """Mount and serve until unmounted or until SIGTERM, SIGINT or SIGHUP. Raises ConfigError."""
    Mount(filesystem, options).run()


class Mount:
    """One libfuse session. The methods named as in `Callbacks` answer the kernel's requests."""

    def __init__(self, filesystem: FileSystem, options: MountOptions) -> None:
        self._fs, self._files, self._options = filesystem, filesystem.files, options
        self._keeping = filesystem.keeping
        self._library = Library()
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)
        self._waiters = Waiters(self._library, filesystem.locks, filesystem.patience)
        self._session: int | None = None
        self._pass_on: Callable[[], None] = lambda: None
        self._late = LateAnswers(self._library, self._keeping)
        self._moved = MovedDirectories(self._late.forget_name)
        self._drops = PageDrops()
        self._shortenings = Shortenings()
        self._callbacks = Callbacks()
        parts = (
            self,
            DirectoryRequests(self._library, filesystem, self._late),
            XattrRequests(self._library, filesystem),
        )
        fields: Any = Callbacks._fields_
        for name, kind in fields:
            method = next((getattr(part, name) for part in parts if hasattr(part, name)), None)
            if method is not None:
                guarded = method if name in ("init", "destroy") else self._guarded(name, method)
                setattr(self._callbacks, name, kind(guarded))

    def run(self) -> None:
        library, waits = self._library, self._fs.patience.waits
        source = f"fsname={self._options.escaped_source}"
        settings = [source, "subtype=quorumfs", "default_permissions", f"max_read={REQUEST_BYTES}"]
        settings += self._options.refused
        if self._options.allow_other:
            settings.append("allow_other")
        words = [b"quorumfs", b"-o", os.fsencode(",".join(settings))]
        arguments = Arguments(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None), 0)
        session = library.new_session(
            byref(arguments), byref(self._callbacks), ctypes.sizeof(Callbacks), None
        )
        if not session:
            raise ConfigError("libfuse refuses the mount options; its own message is above")
        serving = Serving(library, session, WAITING_THREADS if waits else THREADS)
        try:
            with serving.ended_by_signals():
                if library.mount(session, os.fsencode(self._options.mountpoint)) != 0:
                    raise ConfigError(
                        f"{self._options.mountpoint} cannot be mounted; libfuse's own message is above"
                    )
                try:
                    let_read_ahead(self._options.mountpoint, REQUEST_BYTES)
                    shake_hands(library, session)
                    self._options.ready()
                    self._serve(session, serving)
                finally:
                    library.unmount(session)
        finally:
            library.destroy_session(session)

    def _serve(self, session: int, serving: Serving) -> None:
        library = self._library
        self._session, self._pass_on = session, serving.pass_on
        self._late.session, self._moved.pass_on = session, serving.pass_on
        self._fs.patience.duty.is_of(serving)
        self._drops.drop_with(
            partial(self._drop_pages, session),
            lambda ino: self._keeping.most_seconds() and library.drop_pages(session, ino, -1, 0),
        )
        with self._drops, self._late, self._waiters:
            self._fs.drop_pages_with(self._drops)
            serving.run()

    def _drop_pages(self, session: int, ino: int) -> None:
        self._pass_on()  # the kernel may wait for pages that a request is to fill
        self._library.drop_pages(session, ino, 0, 0)

    def _guarded(self, name: str, method: Callable[..., None]) -> Callable[..., None]:
        library, patience = self._library, self._fs.patience
        most_seconds = limit_seconds(name, patience.deadlines)

        def answer(request: int, *arguments: Any) -> None:
            patience.begin(most_seconds)
            try:
                method(request, *arguments)
            except BaseException as error:
                number = errno_of(error, name)
                if number == errno.ESTALE:
                    self._fs.names.walk_anew(self._library.walker(request))
                library.reply_error(request, number)
            finally:
                patience.done()

        return self._interruptible(answer) if patience.waits else answer

    def _interruptible(self, answer: Callable[..., None]) -> Callable[..., None]:
        """Return what answers as `answer` does, and stops waiting when the request is interrupted."""
        library, patience = self._library, self._fs.patience

        def is_interrupted(request: int) -> bool:
            return bool(library.is_interrupted(request) or library.is_ending(self._session))

        def answer_patiently(request: int, *arguments: Any) -> None:
            with patience.asked(partial(is_interrupted, request)):
                answer(request, *arguments)

        return answer_patiently

    def init(self, _userdata: Any, connection: Any) -> None:
        try:
            info = connection.contents
            info.want = ((info.want | WANTED) & ~UNWANTED) & info.capable
            info.max_write = info.max_read = REQUEST_BYTES
            info.max_readahead = REQUEST_BYTES
            info.max_background, info.congestion_threshold = BACKGROUND_REQUESTS, BACKGROUND_REQUESTS * 3 // 4
        except Exception:
            log.exception("setting up the connection to the kernel failed")

    # names

    def lookup(self, request: int, parent: int, name: bytes) -> None:
        if name in (b".", b".."):
            return self._entry(request, self._fs.names.by_number(parent, name), parent, name)
        try:
            attributes = self._fs.names.lookup(parent, name, self._library.walker(request))
        except NotFound:
            if not (seconds := self._keeping.absence_seconds(parent, name)):
                raise
            entry = EntryParameters(entry_timeout=seconds)
            self._library.reply_entry(request, byref(entry))
            return self._late.check(seconds, (parent, name, 0))
        return self._entry(request, attributes, parent, name)

    def mknod(self, request: int, parent: int, name: bytes, mode: int, device: int) -> None:
        self._make(request, parent, name, mode, device)

    def mkdir(self, request: int, parent: int, name: bytes, mode: int) -> None:
        self._make(request, parent, name, stat.S_IFDIR | stat.S_IMODE(mode))

    def symlink(self, request: int, target: bytes, parent: int, name: bytes) -> None:
        self._make(request, parent, name, stat.S_IFLNK | 0o777, target=target)

    def _make(
        self, request: int, parent: int, name: bytes, mode: int, device: int = 0, target: bytes = b""
    ) -> None:
        who = self._library.context(request).contents
        made = self._fs.make(parent, name, mode, who.uid, who.gid, device, target, who.pid)
        self._entry(request, made, parent, name)

    def unlink(self, request: int, parent: int, name: bytes) -> None:
        self._fs.unlink(parent, name, self._library.walker(request))
        self._library.reply_error(request, 0)

    def rmdir(self, request: int, parent: int, name: bytes) -> None:
        self._fs.rmdir(parent, name, self._library.walker(request))
        self._library.reply_error(request, 0)

    def rename(self, request: int, parent: int, name: bytes, to: int, new_name: bytes, flags: int) -> None:
        self._fs.rename(parent, name, to, new_name, flags, self._library.walker(request))
        self._moved.renamed((parent, name), (to, new_name), exchanged=bool(flags & RENAME_EXCHANGE))
        self._library.reply_error(request, 0)

    def link(self, request: int, ino: int, parent: int, name: bytes) -> None:
        self._entry(request, self._fs.link(ino, parent, name, self._library.walker(request)), parent, name)

    def readlink(self, request: int, ino: int) -> None:
        self._library.reply_link(request, self._fs.read_link(ino, self._library.walker(request)))

    def _entry(self, request: int, attributes: Attributes, parent: int, name: bytes) -> None:
        if stat.S_ISDIR(attributes.mode) and name not in (b".", b".."):
            self._moved.found(attributes.ino, parent, name)
        self._drops.after(
            attributes.ino,
            lambda: self._answer_entry(request, entry_of(attributes), attributes, parent, name),
        )

    def _answer_entry(
        self, request: int, entry: Any, attributes: Attributes, parent: int, name: bytes
    ) -> None:
        entry.entry_timeout = self._keeping.name_seconds(parent, name, attributes)
        entry.attr_timeout = self._keeping.seconds(attributes)
        seconds = max(entry.entry_timeout, entry.attr_timeout)
        self._library.reply_entry(request, byref(entry))
        self._late.check(seconds, (parent, name, attributes.ino))

    # attributes

    def getattr(self, request: int, ino: int, _file: Any) -> None:
        self._attributes(request, self._fs.attributes.get(ino))

    def setattr(self, request: int, ino: int, new: Any, to_set: int, file: Any) -> None:
        if not file:
            self._fs.names.verify_unopened(ino, self._library.walker(request))
        shortens = to_set & SET_SIZE and not self._files.reaches_no_further(ino, new.contents.st_size)
        with self._shortenings.shortening(ino) if shortens else nullcontext():
            self._set_attributes(request, ino, new, to_set, file)

    def _set_attributes(self, request: int, ino: int, new: Any, to_set: int, file: Any) -> None:
        values = new.contents
        attributes = None
        handle = self._handles[file.contents.fh] if file else None
        if to_set & TAKES_SET_ID and (who := self._library.caller(request)).uid:
            self._fs.drop_set_id(handle.inode.base() if handle else self._fs.attributes.get(ino), who)
        if to_set & SET_SIZE:
            if handle:
                self._files.truncate(handle, values.st_size)
            else:
                attributes = self._files.truncate_unopened(ino, values.st_size)
        changes = changes_of(values, to_set, time.time_ns())
        if any(value is not None for value in changes):
            attributes = self._fs.attributes.set(ino, changes)
        attributes = attributes or self._fs.attributes.get(ino)
        if to_set & SET_SIZE:
            # No drop is waited for: it waits for writes of changed pages, which the kernel holds back until
            # it has this answer. For another size it drops them itself then.
            self._answer_attributes(request, status_of(attributes), attributes)
        else:
            self._attributes(request, attributes)

    def _attributes(self, request: int, attributes: Attributes) -> None:
        status = status_of(attributes)
        self._drops.after(attributes.ino, lambda: self._answer_attributes(request, status, attributes))

    def _answer_attributes(self, request: int, status: Any, attributes: Attributes) -> None:
        seconds = self._keeping.seconds(attributes)
        self._library.reply_attributes(request, byref(status), seconds)
        self._late.check(seconds, (0, b"", attributes.ino))

    def statfs(self, request: int, _ino: int) -> None:
        self._library.reply_room(request, byref(room_of(self._fs.usage())))

    # files

    def create(self, request: int, parent: int, name: bytes, mode: int, file: Any) -> None:
        who = self._library.context(request).contents
        info = file.contents
        attributes, handle = self._fs.create(parent, name, mode, who.uid, who.gid, info.flags, who.pid)
        info.fh = self._keep(handle)
        info.direct_io = handle.uncached = _past_pages(handle)
        entry = entry_of(attributes)
        entry.attr_timeout = self._keeping.new_seconds(attributes)
        if self._library.reply_create(request, byref(entry), file) != 0:
            self._files.release(self._handles.pop(info.fh))
        self._late.check(entry.attr_timeout, (0, b"", attributes.ino))

    def open(self, request: int, ino: int, file: Any) -> None:
        info = file.contents
        who = self._library.caller(request)
        handle, keep = self._fs.open(ino, info.flags, who.thread, who)
        info.fh, info.keep_cache = self._keep(handle), keep
        info.direct_io = handle.uncached = _past_pages(handle)
        answer = FileInfo.from_buffer_copy(info)
        self._drops.after(ino, lambda: self._opened(request, answer))

    def _opened(self, request: int, answer: FileInfo) -> None:
        if self._library.reply_open(request, byref(answer)) != 0:
            self._files.release(self._handles.pop(answer.fh))

    def _keep(self, handle: Handle) -> int:
        number = next(self._numbers)
        self._handles[number] = handle
        return number

    def read(self, request: int, ino: int, size: int, offset: int, file: Any) -> None:
        info = file.contents
        handle = self._handles[info.fh]
        if size > SMALL_REQUEST_BYTES:
            self._pass_on()
        data = _bytes_of(self._files.read(handle, offset, size))
        if len(data) < size and not handle.uncached and not info.flags & os.O_DIRECT:
            if self._shortenings.misleads(ino, offset, size, len(data)):
                self._library.reply_error(request, errno.EINTR)
                return
            if size > PAGE_BYTES and self._files.is_shortened(handle):
                # Read ahead by the kernel, which may ignore where this says that the file ends. It asks again
                # for each page that a program wants, and knows better by then.
                self._library.reply_error(request, errno.EAGAIN)
                return
        self._library.reply_bytes(request, data, len(data))

    def write(self, request: int, ino: int, address: int, size: int, offset: int, file: Any) -> None:
        if size > SMALL_REQUEST_BYTES:
            self._pass_on()
        data = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        info = file.contents
        handle = self._handles[info.fh]
        who = self._library.caller(request)
        self._fs.drop_set_id(handle.inode.base(), who)
        direct, appending = _is_direct(info), bool(info.flags & os.O_APPEND)
        thread = who.thread if appending else 0
        self._files.write(handle, offset, data, thread, direct=direct, appending=appending)
        if handle.uncached and info.flags & os.O_DSYNC:  # which is a part of O_SYNC
            self._files.fsync(handle)  # after other writes the kernel itself asks for that
        if handle.uncached or direct:
            self._drops.after(ino, lambda: self._library.reply_written(request, size))
        else:  # a drop may wait for this very write of a page
            self._library.reply_written(request, size)

    def flush(self, request: int, _ino: int, file: Any) -> None:
        info = file.contents
        handle = self._handles[info.fh]
        try:
            if handle.may_commit:
                self._files.flush(handle, self._library.context(request).contents.pid)
        finally:
            self._fs.locks.closing(handle, signed(info.lock_owner))
        self._library.reply_error(request, 0)

    def fsync(self, request: int, _ino: int, _data_only: int, file: Any) -> None:
        self._files.fsync(self._handles[file.contents.fh])
        self._library.reply_error(request, 0)

    def release(self, request: int, _ino: int, file: Any) -> None:
        self._files.release(self._handles.pop(file.contents.fh))
        self._library.reply_error(request, 0)

    def fallocate(self, request: int, _ino: int, mode: int, offset: int, length: int, file: Any) -> None:
        handle = self._handles[file.contents.fh]
        self._fs.drop_set_id(handle.inode.base(), self._library.caller(request))
        self._files.allocate(handle, mode, offset, length)
        self._library.reply_error(request, 0)

    def lseek(self, request: int, _ino: int, offset: int, whence: int, file: Any) -> None:
        found = self._files.seek(self._handles[file.contents.fh], offset, whence)
        if found is None:
            self._library.reply_error(request, errno.ENXIO)
        else:
            self._library.reply_offset(request, found)

    # locks

    def setlk(self, request: int, ino: int, file: Any, range_: Any, wait: int) -> None:
        handle, lock = self._handles[file.contents.fh], record_lock(ino, file.contents, range_.contents)
        self._lock(request, handle, lock, range_.contents.l_type == fcntl.F_UNLCK, bool(wait))

    def flock(self, request: int, ino: int, file: Any, operation: int) -> None:
        info = file.contents
        exclusive = bool(operation & fcntl.LOCK_EX)
        lock = FileLock(ino, True, signed(info.lock_owner), 0, LAST, exclusive, 0)
        unlock, wait = bool(operation & fcntl.LOCK_UN), not operation & fcntl.LOCK_NB
        self._lock(request, self._handles[info.fh], lock, unlock, wait)

    def _lock(self, request: int, handle: Handle, lock: FileLock, unlock: bool, wait: bool) -> None:
        try:
            (self._fs.locks.unset if unlock else self._fs.locks.set)(handle, lock)
        except WouldBlock:
            if not wait:
                raise
            self._waiters.begin(request, handle, lock)
        else:
            self._library.reply_error(request, 0)

    def getlk(self, request: int, ino: int, file: Any, range_: Any) -> None:
        found = self._fs.locks.holder(record_lock(ino, file.contents, range_.contents))
        self._library.reply_lock(request, byref(lock_range(found)))


def _bytes_of(data: bytes | memoryview) -> bytes:
    """Return bytes as a bytes object: the very one that they are all of, if there is one, not a copy."""
    whole = data.obj if isinstance(data, memoryview) else data
    return whole if type(whole) is bytes and len(whole) == len(data) else bytes(data)


def _is_direct(info: FileInfo) -> bool:
    """Tell whether the bytes of a write by a descriptor with O_DIRECT have passed the kernel's pages by.

    Where the kernel cannot do that (a page that it cannot drop, memory that it cannot hold on to) it puts the
    bytes in pages all the same. Then it has a page locked, for which a drop waits, and names no owner.
    """
    return bool(info.flags & os.O_DIRECT and info.lock_owner)


def _past_pages(handle: Handle) -> bool:
    """Appends go past the kernel's pages: it would take them to be where it thinks that the file ends.

    So do reads while it may take the file to be longer or shorter than it is.
    """
    return handle.appending or handle.unsettled
