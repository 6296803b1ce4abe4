"""The FUSE adapters: the only place that imports a binding and speaks errno.

`lowlevel` drives libfuse 3 by inode number; `paths` is the fallback for libfuse 2, by path, with fewer
features. Both are thin: they translate, and decide nothing.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fusefs.filesystem import FileSystem
from wire.config import ConfigError
from wire.errors import QuorumError, QuorumfsError

log = logging.getLogger(__name__)

Binding = Literal["mfusepy", "fusepy"]

BLOCK_SIZE_TOLD = 128 * 1024
"""st_blksize: the size of the requests that programs with buffers of their own should make."""
ROOM_UNIT_BYTES = 4096


@dataclass(frozen=True)
class MountOptions:
    """How to mount.

    Attributes:
        mountpoint: an absolute path.
        source: what df(1) and findmnt(8) show of what is mounted.
        allow_other: whether users other than the one who mounts may use it.
        refused: what the kernel refuses, in words of mount(8): "ro" all changes, "noexec" to run programs.
        ready: called once, when the mount answers.
    """

    mountpoint: str
    source: str
    allow_other: bool
    refused: tuple[str, ...]
    ready: Callable[[], None]

    @property
    def escaped_source(self) -> str:
        """The source as libfuse wants it among its options, which it parts at commas."""
        return re.sub(r"[\\,]", r"\\\g<0>", self.source)


def errno_of(error: BaseException, operation: str) -> int:
    """Turn any error into the errno that the kernel is told: the one place where this is done."""
    if isinstance(error, QuorumError):
        log.warning("%s refused: %s", operation, error)
        return error.errno
    if isinstance(error, QuorumfsError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    log.error("%s failed unexpectedly", operation, exc_info=error)
    return errno.EIO


def serve(filesystem: FileSystem, options: MountOptions, binding: Binding | None) -> None:
    """Mount, and answer the kernel until the file system is unmounted or a signal ends it.

    Args:
        filesystem: what to mount.
        options: how to mount it.
        binding: None takes libfuse 3 if it can be loaded, else libfuse 2.

    Raises:
        ConfigError: the binding cannot be loaded, or the kernel or libfuse refuses the mount.
    """
    _load(binding)(filesystem, options)


Mounter = Callable[[FileSystem, MountOptions], None]


def _load(binding: Binding | None) -> Mounter:
    try:
        return _load_fusepy() if binding == "fusepy" else _load_mfusepy()
    except (ImportError, OSError, AttributeError) as error:
        if binding is not None:
            package = "libfuse2 and fusepy" if binding == "fusepy" else "fuse3 and mfusepy"
            raise ConfigError(f"{binding} cannot be loaded ({error}); install {package}") from None
        first = error
    try:
        mounter = _load_fusepy()
    except (ImportError, OSError, AttributeError):
        raise ConfigError(
            f"libfuse 3 cannot be loaded ({first}); install it with: apt-get install fuse3"
        ) from None
    log.warning("libfuse 3 cannot be loaded (%s); using libfuse 2 with fewer features", first)
    return mounter


def _load_mfusepy() -> Mounter:
    from fusefs.operations import lowlevel

    return lowlevel.mount


def _load_fusepy() -> Mounter:
    from fusefs.operations import paths

    return paths.mount
