"""libfuse 3 as ctypes sees it: the library, and the structures of the low-level interface.

mfusepy brings the library and the structures that both interfaces share, right for each libfuse version.
Source: include/fuse_lowlevel.h of libfuse 3. Importing this module raises OSError or ImportError where
there is no libfuse 3.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_int, c_short, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any

from fusefs.callers import Caller

LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3")


def _find_library() -> str:
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise OSError("there is no libfuse3.so.3")


# mfusepy would take libfuse 2 where both are installed.
_GIVEN = os.environ.get("FUSE_LIBRARY_PATH")
os.environ["FUSE_LIBRARY_PATH"] = _GIVEN or _find_library()

import mfusepy  # noqa: E402

if _GIVEN is None:  # what this process starts chooses for itself
    del os.environ["FUSE_LIBRARY_PATH"]
if mfusepy.fuse_version_major != 3:
    raise ImportError(f"mfusepy was told by FUSE_LIBRARY_PATH to use libfuse {mfusepy.fuse_version_major}")

FileInfo: Any = mfusepy.fuse_file_info
ConnectionInfo: Any = mfusepy.fuse_conn_info
Stat: Any = mfusepy.c_stat
StatVfs: Any = mfusepy.c_statvfs
VERSION: tuple[int, int] = (mfusepy.fuse_version_major, mfusepy.fuse_version_minor)


class EntryParameters(ctypes.Structure):
    """struct fuse_entry_param"""

    _fields_ = (
        ("ino", c_uint64),
        ("generation", c_uint64),
        ("attr", Stat),
        ("attr_timeout", c_double),
        ("entry_timeout", c_double),
    )


class Context(ctypes.Structure):
    """struct fuse_ctx"""

    _fields_ = (("uid", c_uint), ("gid", c_uint), ("pid", c_int), ("umask", c_uint))


class Arguments(ctypes.Structure):
    """struct fuse_args"""

    _fields_ = (("argc", c_int), ("argv", POINTER(c_char_p)), ("allocated", c_int))


class RequestBuffer(ctypes.Structure):
    """struct fuse_buf, and room behind it for what newer releases add to its end."""

    _fields_ = (
        ("size", c_size_t),
        ("flags", c_int),
        ("memory", c_void_p),
        ("descriptor", c_int),
        ("position", mfusepy.c_off_t),
        ("reserved", c_size_t * 8),
    )


class RequestHead(ctypes.Structure):
    """The beginning of struct fuse_in_header"""

    _fields_ = (("length", c_uint32), ("opcode", c_uint32))


def opcode_of(buffer: RequestBuffer) -> int:
    """Return what a request that was received asks for; 0 if it was not received into memory."""
    if buffer.flags or buffer.size < ctypes.sizeof(RequestHead):
        return 0
    return int(RequestHead.from_address(buffer.memory).opcode)


class LockRange(ctypes.Structure):
    """struct flock, with 64-bit offsets"""

    _fields_ = (
        ("l_type", c_short),
        ("l_whence", c_short),
        ("l_start", mfusepy.c_off_t),
        ("l_len", mfusepy.c_off_t),
        ("l_pid", c_int),
    )


Interrupted = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
"""fuse_interrupt_func_t"""

_FILE = POINTER(FileInfo)
_OFFSET = mfusepy.c_off_t
_INODE = c_uint64
_MODE = mfusepy.c_mode_t


def _callback(*parameters: Any) -> Any:
    return ctypes.CFUNCTYPE(None, *parameters)


def _request(*parameters: Any) -> Any:
    return _callback(c_void_p, *parameters)


class Callbacks(ctypes.Structure):
    """struct fuse_lowlevel_ops, in its order. What stays null is answered by libfuse (mostly ENOSYS)."""

    _fields_ = (
        ("init", _callback(c_void_p, POINTER(ConnectionInfo))),
        ("destroy", _callback(c_void_p)),
        ("lookup", _request(_INODE, c_char_p)),
        ("forget", _request(_INODE, c_uint64)),
        ("getattr", _request(_INODE, _FILE)),
        ("setattr", _request(_INODE, POINTER(Stat), c_int, _FILE)),
        ("readlink", _request(_INODE)),
        ("mknod", _request(_INODE, c_char_p, _MODE, mfusepy.c_dev_t)),
        ("mkdir", _request(_INODE, c_char_p, _MODE)),
        ("unlink", _request(_INODE, c_char_p)),
        ("rmdir", _request(_INODE, c_char_p)),
        ("symlink", _request(c_char_p, _INODE, c_char_p)),
        ("rename", _request(_INODE, c_char_p, _INODE, c_char_p, c_uint)),
        ("link", _request(_INODE, _INODE, c_char_p)),
        ("open", _request(_INODE, _FILE)),
        ("read", _request(_INODE, c_size_t, _OFFSET, _FILE)),
        ("write", _request(_INODE, c_void_p, c_size_t, _OFFSET, _FILE)),
        ("flush", _request(_INODE, _FILE)),
        ("release", _request(_INODE, _FILE)),
        ("fsync", _request(_INODE, c_int, _FILE)),
        ("opendir", _request(_INODE, _FILE)),
        ("readdir", _request(_INODE, c_size_t, _OFFSET, _FILE)),
        ("releasedir", _request(_INODE, _FILE)),
        ("fsyncdir", _request(_INODE, c_int, _FILE)),
        ("statfs", _request(_INODE)),
        ("setxattr", _request(_INODE, c_char_p, c_void_p, c_size_t, c_int)),
        ("getxattr", _request(_INODE, c_char_p, c_size_t)),
        ("listxattr", _request(_INODE, c_size_t)),
        ("removexattr", _request(_INODE, c_char_p)),
        ("access", c_void_p),
        ("create", _request(_INODE, c_char_p, _MODE, _FILE)),
        ("getlk", _request(_INODE, _FILE, POINTER(LockRange))),
        ("setlk", _request(_INODE, _FILE, POINTER(LockRange), c_int)),
        ("bmap", c_void_p),
        ("ioctl", c_void_p),
        ("poll", c_void_p),
        ("write_buf", c_void_p),
        ("retrieve_reply", c_void_p),
        ("forget_multi", c_void_p),
        ("flock", _request(_INODE, _FILE, c_int)),
        ("fallocate", _request(_INODE, c_int, _OFFSET, _OFFSET, _FILE)),
        ("readdirplus", _request(_INODE, c_size_t, _OFFSET, _FILE)),
        ("copy_file_range", c_void_p),
        ("lseek", _request(_INODE, _OFFSET, c_int, _FILE)),
    )


class Library:
    """The functions of libfuse that the mount calls, with their signatures."""

    def __init__(self) -> None:
        request, error = c_void_p, c_int
        self.reply_error = _function("fuse_reply_err", error, request, c_int)
        self.reply_entry = _function("fuse_reply_entry", error, request, POINTER(EntryParameters))
        self.reply_create = _function(
            "fuse_reply_create", error, request, POINTER(EntryParameters), POINTER(FileInfo)
        )
        self.reply_attributes = _function("fuse_reply_attr", error, request, POINTER(Stat), c_double)
        self.reply_link = _function("fuse_reply_readlink", error, request, c_char_p)
        self.reply_open = _function("fuse_reply_open", error, request, POINTER(FileInfo))
        self.reply_written = _function("fuse_reply_write", error, request, c_size_t)
        self.reply_bytes = _function("fuse_reply_buf", error, request, c_char_p, c_size_t)
        self.reply_room = _function("fuse_reply_statfs", error, request, POINTER(StatVfs))
        self.reply_length = _function("fuse_reply_xattr", error, request, c_size_t)
        self.reply_offset = _function("fuse_reply_lseek", error, request, _OFFSET)
        self.reply_lock = _function("fuse_reply_lock", error, request, POINTER(LockRange))
        self.on_interrupt = _function("fuse_req_interrupt_func", None, request, Interrupted, c_void_p)
        self.context = _function("fuse_req_ctx", POINTER(Context), request)
        self.new_session = _function(
            "fuse_session_new", c_void_p, POINTER(Arguments), POINTER(Callbacks), c_size_t, c_void_p
        )
        self.mount = _function("fuse_session_mount", error, c_void_p, c_char_p)
        self.unmount = _function("fuse_session_unmount", None, c_void_p)
        self.destroy_session = _function("fuse_session_destroy", None, c_void_p)
        self.drop_pages = _function(
            "fuse_lowlevel_notify_inval_inode", error, c_void_p, _INODE, _OFFSET, _OFFSET
        )
        self.drop_entry = _function(
            "fuse_lowlevel_notify_inval_entry", error, c_void_p, _INODE, c_char_p, c_size_t
        )
        self.is_interrupted = _function("fuse_req_interrupted", error, request)
        self.is_ending = _function("fuse_session_exited", error, c_void_p)
        self.receive = _function("fuse_session_receive_buf", error, c_void_p, POINTER(RequestBuffer))
        self.process = _function("fuse_session_process_buf", None, c_void_p, POINTER(RequestBuffer))
        self.descriptor = _function("fuse_session_fd", c_int, c_void_p)
        self.exit = _function("fuse_session_exit", None, c_void_p)

    def walker(self, request: int) -> int:
        """Return which thread a request is of: it came by the names that it looked up."""
        return int(self.context(request).contents.pid)

    def caller(self, request: int) -> Caller:
        """Return who makes a request."""
        who = self.context(request).contents
        return Caller(who.uid, who.gid, who.pid)


def _function(name: str, result: Any, *parameters: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *parameters)(_address(name))


def _address(name: str) -> int:
    """Return a function's address, also of one that newer releases keep for older programs only."""
    library = mfusepy._libfuse
    try:
        return ctypes.cast(getattr(library, name), c_void_p).value or 0
    except AttributeError:
        find = ctypes.CDLL(None).dlvsym
        find.restype, find.argtypes = c_void_p, (c_void_p, c_char_p, c_char_p)
        address = find(library._handle, name.encode(), b"FUSE_3.0")
        if not address:
            raise
        return int(address)


free = ctypes.CFUNCTYPE(None, c_void_p)(("free", ctypes.CDLL(None)))
"""free(3), for what libfuse allocated."""
