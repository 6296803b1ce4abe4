"""A mount's end of a ring, as the metadata server's tests need it. One thread."""

from __future__ import annotations

import os
from pathlib import Path

from metaserver.grants import QUIET_SECONDS, Grants
from tests.unit.metaserver.harness import Harness
from wire.messages import ROOT_INODE, Attributes
from wire.ring import Change, Entry, Removal, pack_entry, slot_offset
from wire.ring_head import HEAD_READ_BYTES, Head, unpack_head

SECONDS = 2.5


class Told:
    """A mount's end: it has the file open, as it was when it came to be alone."""

    def __init__(self, meta: Harness) -> None:
        self._meta = meta
        meta.service._grants = Grants(meta.sessions, SECONDS, 0.0, clock=lambda: meta.seconds)
        meta.seconds += QUIET_SECONDS
        self.term = meta.service.renew_alone(meta.session).ring_term
        assert self.term
        self.path = Path(os.fsdecode(meta.service.rings.place(meta.session)))
        self._file = self.path.open("r+b", buffering=0)
        self.number = self.head.taken

    @property
    def head(self) -> Head:
        head = unpack_head(os.pread(self._file.fileno(), HEAD_READ_BYTES, 0))
        assert head is not None
        return head

    def remove(self, file: Attributes, name: bytes, parent: int = ROOT_INODE, *, ino: int = 0) -> None:
        self.tell(Removal(parent, ino or file.ino, 77_000, name))

    def tell(self, change: Change) -> None:
        self.number += 1
        packed = pack_entry(Entry(self.number, self.term, change))
        os.pwrite(self._file.fileno(), packed, slot_offset(self.number))

    def close(self) -> None:
        self._file.close()


def go_on(meta: Harness) -> None:
    """Begin a life of the server as after a kill: what was open is open."""
    meta.service.rings._ring = None
    meta.restart()
