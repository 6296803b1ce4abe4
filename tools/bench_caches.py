"""Caches, dropped before a cold piece of work, so that it really reads from disk or from the servers.

What cannot be dropped is said in words, to stand beside the figures. One thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tools import mounts
from tools.faults import DROP_CACHES

PAGE_CACHE = Path("/proc/sys/vm/drop_caches")
EVERYTHING = "3\n"


class Caches:
    """The caches between a benchmark and the disks under some directories.

    Args:
        directories: absolute paths.
        page_cache: the file that drops the kernel's caches: proc_sys_vm(5).
    """

    def __init__(self, directories: Sequence[Path], page_cache: Path = PAGE_CACHE) -> None:
        self._page_cache = page_cache
        self._kinds = {directory: mounts.mount_of(directory) for directory in directories}
        self._may_drop = self._try()

    def settle(self) -> None:
        """Have the kernel write out what is dirty, so that no work pays for what another has left behind."""
        os.sync()

    def drop(self, directory: Path) -> None:
        """Drop the kernel's caches, and those of the mount that `directory` lies on if it is quorumfs.

        Raises:
            OSError: the mount refuses.
        """
        if self._may_drop:
            self._page_cache.write_text(EVERYTHING)
        if self.is_quorumfs(directory):
            os.setxattr(directory, DROP_CACHES, b"")

    def is_quorumfs(self, directory: Path) -> bool:
        """Tell whether a directory lies on a mount of quorumfs."""
        mount = self._kinds[directory]
        return mount is not None and mount.type == mounts.TYPE

    def notes(self) -> tuple[str, ...]:
        """Return what is dropped before cold work and what is not, in words."""
        kernel = (
            "Before cold rows the kernel's page, name and inode caches are dropped."
            if self._may_drop
            else "The kernel's caches are NOT dropped before cold rows, which are not cold therefore: "
            f"{self._page_cache} cannot be written (be root)."
        )
        found = [kernel]
        if any(self.is_quorumfs(directory) for directory in self._kinds):
            found.append(
                "A mount of quorumfs then also forgets its own caches (user.quorumfs.drop_caches), so that "
                "a cold read is a vote of the servers."
            )
        if any(mount is not None and not self.is_quorumfs(place) for place, mount in self._kinds.items()):
            found.append(
                "What other FUSE file systems cache in their own processes cannot be dropped from here."
            )
        return tuple(found)

    def _try(self) -> bool:
        try:
            self._page_cache.write_text(EVERYTHING)
        except OSError:
            return False
        return True
