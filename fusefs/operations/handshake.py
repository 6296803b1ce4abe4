"""The first request of the kernel, in which it tells what it can: libfuse answers, and here more is added.

That is FUSE_HANDLE_KILLPRIV_V2: who serves takes set-id bits off a file that is written, and the kernel need
not ask before each write whether the file has a capability. libfuse before 3.17 knows nothing of it. To be
called when it is mounted, before any other thread takes requests. If the kernel cannot do it, libfuse answers
alone. Whoever looks at a mount waits until the kernel has an answer; so without one the mount fails. Source:
include/uapi/linux/fuse.h, protocol 7.33
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
from ctypes import byref
from typing import Any

from fusefs.operations.structures import Library, RequestBuffer, free, opcode_of
from wire.config import ConfigError

INIT = 26
HANDLE_KILLPRIV_V2 = 1 << 28
ANSWER_BYTES_MAX = 4096
"""Of a pipe so many are written at once, or none."""


UNMOUNTED = (errno.ENODEV, errno.ENOENT)
"""What a write to the device says if the mount, or who asked, is gone: the next request tells it too."""


class InitRequest(ctypes.Structure):
    """struct fuse_in_header, and behind it the beginning of struct fuse_init_in"""

    _fields_ = (
        ("header", ctypes.c_uint32 * 10),
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("max_readahead", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class InitAnswer(ctypes.Structure):
    """struct fuse_out_header, and behind it the beginning of struct fuse_init_out"""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("unique", ctypes.c_uint64),
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("max_readahead", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


def amended(answer: bytes) -> bytes:
    """Return libfuse's answer with the flag; as it is, if it is an error or not what is known here."""
    if len(answer) < ctypes.sizeof(InitAnswer):
        return answer
    told = bytearray(answer)
    fields = InitAnswer.from_buffer(told)
    if fields.length == len(answer):
        fields.flags |= HANDLE_KILLPRIV_V2
    return bytes(told)


def shake_hands(library: Library, session: Any) -> None:
    """Have libfuse answer the kernel's first request, and pass its answer on with what it lacks.

    Raises ConfigError if the kernel gets no answer.
    """
    buffer = RequestBuffer()
    try:
        count = -errno.EINTR
        while count == -errno.EINTR:
            count = int(library.receive(session, byref(buffer)))
        if count <= 0:
            return  # it is unmounted already: who takes the next request learns the same
        if opcode_of(buffer) == INIT and count >= ctypes.sizeof(InitRequest):
            offered = InitRequest.from_address(buffer.memory).flags
            if offered & HANDLE_KILLPRIV_V2:
                _answer_amended(library, session, buffer)
                return
        library.process(session, byref(buffer))
    finally:
        free(buffer.memory)


def _answer_amended(library: Library, session: Any, buffer: RequestBuffer) -> None:
    """Have libfuse write its answer into a pipe, in the place of the kernel's device."""
    device = library.descriptor(session)
    kernel = os.dup(device)
    told, tells = os.pipe()
    try:
        os.dup2(tells, device, inheritable=False)
        try:
            library.process(session, byref(buffer))
        finally:
            os.dup2(kernel, device, inheritable=False)
        if not select.select([told], [], [], 0)[0]:
            raise ConfigError("libfuse does not answer the kernel's first request")
        os.write(kernel, amended(os.read(told, ANSWER_BYTES_MAX)))
    except OSError as error:
        if error.errno not in UNMOUNTED:
            raise ConfigError(f"the kernel does not take the answer to its first request: {error}") from error
    finally:
        for descriptor in (kernel, told, tells):
            os.close(descriptor)
