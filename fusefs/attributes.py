"""What the inodes of a mount are like, as its programs see them: with what is not committed yet.

Sizes change by writing and truncating (fusefs.files). Knows neither errno nor the binding. Raises errors of
wire.errors. Safe in any thread.
"""

from __future__ import annotations

import stat
import time
from collections import OrderedDict

from fusefs.births import Births
from fusefs.cache import NameCache, keep_newest
from fusefs.handles import OpenInodes
from fusefs.pages import PageLedger
from fusefs.ports import NamespacePort
from wire.errors import StaleFile
from wire.messages import AttributeChanges, Attributes

MOST_SPECIALS = 1024
"""So many that are no regular files, and were opened or removed here last, may be looked at once removed."""


class InodeAttributes:
    """The attributes of one mount's inodes.

    Args:
        namespace: where they are kept.
        cache: what is known of them.
        pages: is told of contents that are newer.
        births: files that the server may not know yet.
        opens: the inodes that this mount has open.
    """

    def __init__(
        self, namespace: NamespacePort, cache: NameCache, pages: PageLedger, births: Births, opens: OpenInodes
    ) -> None:
        self._namespace, self._cache, self._pages = namespace, cache, pages
        self._births, self._opens = births, opens
        self._specials: OrderedDict[int, Attributes] = OrderedDict()
        """What directories, FIFOs and others that were opened or removed here last were like."""

    def get(self, ino: int) -> Attributes:
        """Return attributes as this mount's programs see them."""
        inode = self._opens.get(ino)
        if inode is not None and inode.birth is not None:
            with inode.lock:
                return inode.view()
        attributes = self._cache.attributes(ino)
        if attributes is None:
            self._births.settle_in(ino)
            token = self._cache.asking()
            try:
                attributes = self._namespace.getattr(ino)
            except StaleFile:
                if ino not in self._specials:
                    raise
                return self._specials[ino]._replace(nlink=0)
            self._cache.learn(token, attributes)
        return self.seen(attributes)

    def set(self, ino: int, changes: AttributeChanges) -> Attributes:
        """Change attributes (not the size: that is Files.truncate)."""
        inode = self._opens.get(ino)
        if inode is not None and inode.birth is not None and self._births.change(inode, changes):
            return self.get(ino)
        self._births.settle(ino)
        if inode is None or changes.mtime_ns is None:
            return self.seen(self._change(ino, changes))
        with inode.commit_lock:  # a commit that is under way brings the time of its last write
            attributes = self._change(ino, changes)
            with inode.lock:
                inode.set_mtime(changes.mtime_ns)
        return self.seen(attributes)

    def _change(self, ino: int, changes: AttributeChanges) -> Attributes:
        token = self._cache.asking()
        try:
            attributes = self._namespace.setattr(ino, changes)
        except StaleFile:
            if (special := self._specials.get(ino)) is None:
                raise
            # It is open here, and has no name: nobody but who has it open can see what it is like.
            new = {name: value for name, value in changes._asdict().items() if value is not None}
            if changes.mode is not None:
                new["mode"] = stat.S_IFMT(special.mode) | changes.mode
            self._specials[ino] = special._replace(**new, ctime_ns=time.time_ns())
            return self._specials[ino]._replace(nlink=0)
        self._cache.set(token, attributes)
        return attributes

    def seen(self, attributes: Attributes) -> Attributes:
        """Return attributes with what this mount has not committed yet.

        An inode that is being opened learns them too: the kernel must not be told of newer contents than the
        reads of the open file will bring.
        """
        inode = self._opens.find(attributes.ino)
        if inode is None:
            return attributes
        with inode.lock:
            self._pages.changed(attributes.ino, inode.learn_attributes(attributes))
            return inode.view()

    def note_special(self, attributes: Attributes | None) -> None:
        """Keep what is to be told of what is open, or the working directory, once it is removed.

        The server knows which regular files are open, and nothing of others.
        """
        if attributes is not None and not stat.S_ISREG(attributes.mode):
            keep_newest(self._specials, attributes.ino, attributes, MOST_SPECIALS)

    def is_special(self, ino: int) -> bool:
        """Tell whether an inode is none of a regular file, and was opened or removed here lately."""
        return ino in self._specials
