"""Every error that a part of quorumfs may tell another, in one tree.

    QuorumfsError
    |-- TransportError                 the call may or may not have been carried out
    |   |-- Unavailable                no connection, or it broke            (temporary)
    |   |-- DeadlineExceeded           no answer in time
    |   `-- Draining                   the server is stopping                (temporary)
    |-- RequestError                   the message itself is wrong
    |   |-- BadRequest, UnknownMethod, MessageTooLarge, LabOnly
    |-- SessionError
    |   |-- SessionUnknown             the session expired or never was
    |   |-- Interrupted                a mount's own: a signal ended the wait for servers that are away
    |   |-- LocksLost                  a mount's own: the file's locks went with their session
    |   |-- GracePeriod                after a restart: who holds which lock is not known yet (temporary)
    |   |-- StaleEpoch                 made for an earlier start of the metadata server, which forgot it
    |   `-- SequenceError              a late copy of an older call
    |-- NamespaceError                 what a POSIX call answers, one class an errno
    |   |-- NotFound, AlreadyExists, NotADirectory, IsADirectory, NotEmpty, NameTooLong, AccessDenied,
    |   |   NotPermitted, InvalidArgument, TooManyLinks, NoAttribute, AttributeTooLong, FileTooLarge,
    |   |   StaleFile, NotSupported, WouldBlock, CrossDevice, Busy, Deadlock, NoLocks
    |   |-- NotAlone                   a file that a lone mount had kept to itself; others have come
    |   `-- NoSpace
    |-- QuorumError
    |   |-- ReadRefused                fewer than Qr replicas are good: `detail` says who voted what
    |   |-- WriteRefused               fewer than Qw data servers are up, found out beforehand (EROFS)
    |   `-- WriteFailed                fewer than Qw data servers took the block, found out on the way
    |-- BlockError
    |   |-- BlockMissing               this data server has no such block
    |   |-- BlockDamaged               it has a record whose header cannot be trusted
    |   |-- DigestMismatch             what arrived is not what its digest says
    |   `-- BlockConflict              the id is taken by other bytes
    `-- InternalError                  a defect; the server's log has the traceback

Each class has one fault code (on the wire), one errno (for the mount), and says whether a
repeated call may succeed (`temporary`). Both directions of the wire use the table at the end.
This module must not import anything of the project. Safe in any thread.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class QuorumfsError(Exception):
    """The root. `message` is for people; `detail` is plain data (str, int, list, dict) for programs.

    `resent` is set by a client that had sent the call before, without an answer: whatever this error
    says, the earlier one may have been carried out. It does not cross the wire.
    """

    fault_code: ClassVar[int] = 1
    errno: ClassVar[int] = errno.EIO
    temporary: ClassVar[bool] = False

    def __init__(self, message: str = "", detail: dict[str, Any] | None = None) -> None:
        super().__init__(message or type(self).__name__)
        self.message = message or type(self).__name__
        self.detail: dict[str, Any] = detail or {}
        self.resent = False


class TransportError(QuorumfsError):
    fault_code = 100


class Unavailable(TransportError):
    fault_code, temporary = 101, True


class DeadlineExceeded(TransportError):
    fault_code, errno = 102, errno.ETIMEDOUT


class Draining(TransportError):
    fault_code, temporary = 103, True


class RequestError(QuorumfsError):
    fault_code, errno = 200, errno.EINVAL


class BadRequest(RequestError):
    fault_code = 201


class UnknownMethod(RequestError):
    fault_code, errno = 202, errno.ENOSYS


class MessageTooLarge(RequestError):
    fault_code, errno = 203, errno.EMSGSIZE


class LabOnly(RequestError):
    """A lab method was called on a server that was not started with --lab."""

    fault_code, errno = 204, errno.EPERM


class SessionError(QuorumfsError):
    fault_code = 300


class SessionUnknown(SessionError):
    fault_code = 301


class SequenceError(SessionError):
    fault_code = 302


class GracePeriod(SessionError):
    fault_code, errno, temporary = 303, errno.EAGAIN, True


class LocksLost(SessionError):
    fault_code = 304


class Interrupted(SessionError):
    fault_code, errno = 305, errno.EINTR


class StaleEpoch(SessionError):
    fault_code = 306


class NamespaceError(QuorumfsError):
    fault_code = 400


class NotFound(NamespaceError):
    fault_code, errno = 401, errno.ENOENT


class AlreadyExists(NamespaceError):
    fault_code, errno = 402, errno.EEXIST


class NotADirectory(NamespaceError):
    fault_code, errno = 403, errno.ENOTDIR


class IsADirectory(NamespaceError):
    fault_code, errno = 404, errno.EISDIR


class NotEmpty(NamespaceError):
    fault_code, errno = 405, errno.ENOTEMPTY


class NameTooLong(NamespaceError):
    fault_code, errno = 406, errno.ENAMETOOLONG


class AccessDenied(NamespaceError):
    fault_code, errno = 407, errno.EACCES


class NotPermitted(NamespaceError):
    fault_code, errno = 408, errno.EPERM


class InvalidArgument(NamespaceError):
    fault_code, errno = 409, errno.EINVAL


class TooManyLinks(NamespaceError):
    fault_code, errno = 410, errno.EMLINK


class NoAttribute(NamespaceError):
    fault_code, errno = 411, errno.ENODATA


class AttributeTooLong(NamespaceError):
    fault_code, errno = 412, errno.ERANGE


class FileTooLarge(NamespaceError):
    fault_code, errno = 413, errno.EFBIG


class StaleFile(NamespaceError):
    fault_code, errno = 414, errno.ESTALE


class NotSupported(NamespaceError):
    fault_code, errno = 415, errno.ENOTSUP


class WouldBlock(NamespaceError):
    fault_code, errno = 416, errno.EAGAIN


class CrossDevice(NamespaceError):
    fault_code, errno = 417, errno.EXDEV


class Busy(NamespaceError):
    fault_code, errno = 418, errno.EBUSY


class NoSpace(NamespaceError):
    fault_code, errno = 419, errno.ENOSPC


class Deadlock(NamespaceError):
    fault_code, errno = 420, errno.EDEADLK


class NoLocks(NamespaceError):
    fault_code, errno = 421, errno.ENOLCK


class NotAlone(NamespaceError):
    fault_code = 422


class QuorumError(QuorumfsError):
    fault_code = 500


class ReadRefused(QuorumError):
    fault_code = 501


class WriteRefused(QuorumError):
    fault_code, errno = 502, errno.EROFS


class WriteFailed(QuorumError):
    fault_code = 503


class BlockError(QuorumfsError):
    fault_code = 600


class BlockMissing(BlockError):
    fault_code = 601


class BlockDamaged(BlockError):
    fault_code = 602


class DigestMismatch(BlockError):
    fault_code = 603


class BlockConflict(BlockError):
    fault_code = 604


class InternalError(QuorumfsError):
    fault_code = 900


def _tree(root: type[QuorumfsError]) -> list[type[QuorumfsError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_FAULT_CODE: dict[int, type[QuorumfsError]] = {kind.fault_code: kind for kind in _tree(QuorumfsError)}


def to_fault(error: QuorumfsError) -> tuple[int, str, dict[str, Any]]:
    """Return what crosses the wire for an error: fault code, message, detail."""
    return error.fault_code, error.message, error.detail


def from_fault(fault_code: int, message: str, detail: dict[str, Any] | None = None) -> QuorumfsError:
    """Return the error that a fault stands for; an unknown code is an InternalError."""
    return BY_FAULT_CODE.get(fault_code, InternalError)(message, detail)
