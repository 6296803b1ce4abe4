"""Carries out what a mount has told without a call (metaserver.rings): names removed, and new files.

Each is what the call would have been, at the time that the mount has told its program. In the event loop's
thread only. See docs/decisions/0031-changes-without-a-call.md.
"""

from __future__ import annotations

from collections.abc import Callable

from metaserver.contents import Contents
from metaserver.lag import LagList
from metaserver.namespace import Namespace
from metaserver.room import Room
from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.errors import NotFound
from wire.messages import AttributeChanges, Attributes, Birth, BlockRecord, Commit, Extent, Ticket
from wire.ring import Change, NewFile, Removal

NEW_FILES_AHEAD = 64
"""So many new files may wait at most."""


class ToldChanges:
    """The work of metaserver.rings.

    Args:
        store: the database.
        namespace: where names are removed and entered.
        contents: where new files get theirs.
        sessions: is told which files are open.
        lag: remembers the newest blocks.
        room: what new files need.
        remove_soon: called after names were removed.
    """

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        contents: Contents,
        sessions: Sessions,
        lag: LagList,
        room: Room,
        remove_soon: Callable[[], None],
    ) -> None:
        self._store, self._namespace, self._contents = store, namespace, contents
        self._sessions, self._lag, self._room = sessions, lag, room
        self._remove_soon = remove_soon

    def new_files_ahead(self) -> int:
        """Return how many new files there is certainly room for."""
        return min(NEW_FILES_AHEAD, self._room.changes_ahead())

    def carry_out(self, session: int, change: Change) -> None:
        """Carry one change out, within a transaction. Raises what the call would raise."""
        if isinstance(change, NewFile):
            ticket = Ticket(session, change.slot, change.sequence)
            self._store.once_within(ticket, self._make, change)
            self._hold(session, change.ino)  # at once: its removal may be the next
        elif not self._namespace.remove_known(change.parent, change.name, change.ino, change.removed_ns):
            raise NotFound(f"{change.name!r} is not the name of inode {change.ino}")

    def _make(self, session: int, file: NewFile) -> Attributes:
        birth = Birth(file.parent, file.name, file.mode, file.uid, file.gid)
        extents = [Extent(0, file.length, file.block, 0)] if file.length else []
        times = AttributeChanges(atime_ns=file.atime_ns, mtime_ns=file.mtime_ns)
        commit = Commit(None, extents, file.length, _blocks_of(file), times, durable=False)
        born = self._namespace.bear(session, file.ino, birth, file.told_ns)
        return self._contents.commit(session, file.ino, commit, born, file.told_ns)

    def _hold(self, session: int, ino: int) -> None:
        """Count a new file as open, in memory: if the transaction fails, the same file is made by the next.

        A session that has not reclaimed since a restart tells then which of its files are open still.
        """
        if self._sessions.has_reclaimed(session):
            self._sessions.hold(session, ino)

    def carried_out(self, session: int, changes: list[Change]) -> None:
        """Note what is kept in memory only, and does not matter to the next change."""
        for file in (change for change in changes if isinstance(change, NewFile)):
            self._lag.remember(_blocks_of(file))
        if any(isinstance(change, Removal) for change in changes):
            self._remove_soon()


def _blocks_of(file: NewFile) -> list[BlockRecord]:
    return [BlockRecord(file.block, file.length, file.digest)] if file.length else []
