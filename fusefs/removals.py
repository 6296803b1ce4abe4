"""Which names are removed without a call: those that are known for certain.

It must not remove a name whose inode could be another one by now. Safe in any thread. See
docs/decisions/0031-changes-without-a-call.md.
"""

from __future__ import annotations

import stat
import time

from fusefs.cache import NameCache
from fusefs.ports import NamespacePort
from wire.messages import Attributes


class Removals:
    """The removals of one mount.

    Args:
        namespace: is told of them.
        cache: what is known of names.
    """

    def __init__(self, namespace: NamespacePort, cache: NameCache) -> None:
        self._namespace, self._cache = namespace, cache

    def remove(self, parent: int, name: bytes) -> Attributes | None:
        """Remove a name without a call; return what its directory is like then. None: it takes a call.

        Raises:
            QuorumfsError: nobody knows whether it is removed.
        """
        known, directory = self._cache.find(parent, name), self._cache.attributes(parent)
        if known is None or directory is None or stat.S_ISDIR(known.mode):
            return None
        if not self._cache.is_certain_name(parent, name, known.ino) or not self._cache.is_certain(directory):
            return None
        removed_ns = time.time_ns()
        if not self._namespace.remove_known(parent, name, known.ino, removed_ns):
            return None
        return directory._replace(mtime_ns=removed_ns, ctime_ns=removed_ns)
