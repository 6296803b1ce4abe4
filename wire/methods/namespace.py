"""What the metadata server offers to clients: sessions, locks, names, attributes and open files."""

from __future__ import annotations

from wire.messages import (
    AttributeChanges,
    Attributes,
    BlockRecord,
    DirectoryPage,
    FileLock,
    FileMap,
    LockGrant,
    LockHolder,
    Opened,
    SessionInfo,
    Ticket,
)


class NamespaceMethods:
    """Files and directories by inode number. The mediator offers these too, and passes them on.

    What adds names, attributes or blocks raises NoSpace while the metadata server's disk is full, and changes
    nothing then; what removes them goes on.

    Permissions are the kernel's business (default_permissions); what is checked here is what keeps
    the namespace a tree. Each mutating method is one transaction and is carried out once a Ticket.
    """

    def open_session(self, name: str) -> SessionInfo:
        """Begin a session; `name` tells people whose it is. Its number is never used again."""
        raise NotImplementedError

    def close_session(self, session: int) -> None:
        """End a session: its open files are let go, its uncommitted blocks become garbage."""
        raise NotImplementedError

    def reclaim(
        self,
        session: int,
        epoch: int,
        inodes: list[int],
        locks: list[FileLock] | None = None,
        closes: int = 0,
    ) -> None:
        """After a restart of the metadata server: say again what this session has open and locked.

        Locks are taken from the first such call after a restart only, which `epoch` names. `closes` is as in
        `open`.

        Raises:
            StaleEpoch: the server was restarted once more since.
            SessionUnknown: also when others hold the locks by now, or may have held them meanwhile; a new
                session must be begun.
            Busy: it has more open than a session may tell of.
        """
        raise NotImplementedError

    def set_lock(self, ticket: Ticket, lock: FileLock, epoch: int) -> LockGrant:
        """Grant a lock at once or not at all; it replaces what the owner holds in its range.

        Not durable: a client says it again with `reclaim` after a restart of the metadata server. The
        answers are not kept over one either: so a call is for the server of one `epoch`.

        Raises:
            StaleEpoch: the server was restarted since.
            WouldBlock: another owner's lock is there. An owner's flock of the other mode is lost then.
            GracePeriod: the server was restarted, and not all sessions have reclaimed yet.
            NoLocks: too many. StaleFile, SessionUnknown, InvalidArgument.
        """
        raise NotImplementedError

    def unlock(self, ticket: Ticket, lock: FileLock, epoch: int) -> int:
        """Give up a range of an owner's locks; return the server's epoch, which must be this one.

        Raises:
            StaleEpoch: the server was restarted since.
            GracePeriod: the server was restarted, and this session has not reclaimed yet.
            NoLocks: the range lies within a lock, and two in its place would be too many.
            SessionUnknown.
        """
        raise NotImplementedError

    def get_lock(self, session: int, lock: FileLock) -> LockHolder | None:
        """Return a lock that stands in the way of `lock`, if there is one.

        Raises:
            GracePeriod: the server was restarted, and not all sessions have reclaimed yet.
            SessionUnknown.
        """
        raise NotImplementedError

    def wait_lock(self, session: int, lock: FileLock) -> None:
        """Return as soon as a lock may be had, after two seconds at the latest. It is not granted.

        Raises:
            Deadlock: the holders wait for the one who asks (fcntl only). NoLocks, SessionUnknown.
        """
        raise NotImplementedError

    def resolve(self, start: int, names: list[bytes]) -> list[Attributes]:
        """Follow names from a directory; return the attributes of each step.

        The list is shorter than `names` when a name does not exist. Symbolic links are not followed.

        Raises:
            NotADirectory: a step before the last is no directory.
            StaleFile: `start` does not exist.
            NameTooLong.
        """
        raise NotImplementedError

    def getattr(self, ino: int) -> Attributes:
        """Return an inode's attributes. Raises StaleFile."""
        raise NotImplementedError

    def setattr(self, ticket: Ticket, ino: int, changes: AttributeChanges) -> Attributes:
        """Change attributes (not the size) and the change time. Raises StaleFile."""
        raise NotImplementedError

    def read_directory(self, ino: int, after: bytes, limit: int) -> DirectoryPage:
        """Return up to `limit` entries with names greater than `after` (b"" to begin), without . and ..

        Raises:
            StaleFile, NotADirectory.
        """
        raise NotImplementedError

    def parent(self, ino: int) -> Attributes:
        """Return the directory that a directory is in; of the root, itself.

        Raises:
            NotADirectory: it is none.
            StaleFile: it does not exist, or was removed.
        """
        raise NotImplementedError

    def read_link(self, ino: int) -> bytes:
        """Return a symbolic link's target. Raises StaleFile, InvalidArgument."""
        raise NotImplementedError

    def create(
        self,
        ticket: Ticket,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes,
        open_it: bool,
    ) -> Attributes:
        """Make a file, directory, symbolic link, FIFO, socket or device, by the type bits of `mode`.

        Args:
            ticket: makes the call repeatable.
            parent: the directory's inode number.
            name: 1 to 255 bytes, without / and NUL.
            mode: type and permission bits, the umask already taken off.
            uid: the owner.
            gid: the group; a set-group-id directory's own group wins, and directories inherit the bit.
            rdev: the device number of a device node, else 0.
            target: the target of a symbolic link, else b"".
            open_it: also count the new file as opened by the session (as `open` does).

        Raises:
            AlreadyExists, StaleFile, NotADirectory, NotFound (the parent was removed), NameTooLong,
            InvalidArgument.
        """
        raise NotImplementedError

    def reserve_inodes(self, session: int, count: int) -> int:
        """Set inode numbers aside for files that their first commit makes; return the first of them.

        They are for the asker for ever, also under a later session. Raises SessionUnknown, InvalidArgument.
        """
        raise NotImplementedError

    def link(self, ticket: Ticket, ino: int, parent: int, name: bytes) -> Attributes:
        """Give an inode that is no directory one more name.

        Raises:
            AlreadyExists, StaleFile, NotADirectory, NotPermitted (a directory), NameTooLong, NotFound,
            TooManyLinks.
        """
        raise NotImplementedError

    def unlink(self, ticket: Ticket, parent: int, name: bytes) -> Attributes:
        """Remove a name that is no directory; the inode lives while a name or an open session has it.

        Returns:
            The attributes of the directory after it.

        Raises:
            NotFound, IsADirectory, StaleFile, NotADirectory.
        """
        raise NotImplementedError

    def take_back(self, ticket: Ticket, parent: int, name: bytes, ino: int) -> None:
        """Remove the name of a file that this session made and of which nothing ever came: its writes failed.

        Does nothing if the name is another inode's by now, or that was written to, has another name, or is
        open in another session.

        Raises:
            GracePeriod: it may be open in a session that could not say so yet.
        """
        raise NotImplementedError

    def rmdir(self, ticket: Ticket, parent: int, name: bytes) -> Attributes:
        """Remove an empty directory; return the attributes of the one that it was in.

        Raises:
            NotFound, NotADirectory, NotEmpty, StaleFile.
        """
        raise NotImplementedError

    def rename(
        self, ticket: Ticket, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """Move a name atomically; flags as renameat2(2): 0, 1 (RENAME_NOREPLACE) or 2 (RENAME_EXCHANGE).

        Raises:
            NotFound, AlreadyExists, NotEmpty, IsADirectory, NotADirectory, InvalidArgument (into its own
            subtree, or unknown flags), NameTooLong, StaleFile.
        """
        raise NotImplementedError

    def get_xattr(self, ino: int, name: bytes) -> bytes:
        """Return an extended attribute's value. Raises NoAttribute, StaleFile."""
        raise NotImplementedError

    def list_xattrs(self, ino: int) -> list[bytes]:
        """Return the names of all extended attributes. Raises StaleFile."""
        raise NotImplementedError

    def set_xattr(self, ticket: Ticket, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; flags as setxattr(2): 0, 1 (XATTR_CREATE) or 2 (XATTR_REPLACE).

        Raises:
            AlreadyExists, NoAttribute, StaleFile, AttributeTooLong (over 64 KiB), InvalidArgument.
        """
        raise NotImplementedError

    def remove_xattr(self, ticket: Ticket, ino: int, name: bytes) -> None:
        """Remove an extended attribute. Raises NoAttribute, StaleFile."""
        raise NotImplementedError

    def open(
        self,
        session: int,
        ino: int,
        writing: bool,
        start: int = 0,
        names: list[bytes] | None = None,
        closes: int = 0,
    ) -> Opened:
        """Count a file as opened by the session (once, however often it opens it); return what it is now.

        With `names`, it is opened only if they lead from the directory `start` to `ino`: a client that found
        it by what it remembered has its path and its contents told by one call.

        `closes` is the number of the session's newest `close` so far: these, and late copies of them, were
        for earlier opens.

        Not durable: a client says it again with `reclaim` after a restart of the metadata server.
        The mediator refuses `writing` while fewer than Qw data servers are up.

        Raises:
            StaleFile (also if the names lead elsewhere), NotADirectory, SessionUnknown, WriteRefused.
        """
        raise NotImplementedError

    def tell_open(self, session: int, inodes: list[int], asked: int = 0, closes: int = 0) -> None:
        """Count inodes as opened by the session, which opened them without a call while it was alone.

        It does so before it removes a name; and when it was asked, by a Renewal, with that number as `asked`:
        then these are all that it has open and that the server does not know of. `closes` is as in `open`.

        Raises:
            SessionUnknown.
            Busy: it has more open than a session may tell of; nothing of this call was noted.
        """
        raise NotImplementedError

    def close(self, session: int, inodes: list[int], number: int) -> None:
        """Say that the session has no open handle of these inodes any more. Raises SessionUnknown.

        `number` grows from one such call of the session to the next. What was opened by a call that knew of
        this number stays open: this is a late copy.
        """
        raise NotImplementedError

    def file_map(self, ino: int, offset: int, limit: int) -> FileMap:
        """Return up to `limit` extents that end after `offset`. Raises StaleFile."""
        raise NotImplementedError

    def abandon_blocks(self, session: int, blocks: list[BlockRecord]) -> None:
        """Say that these blocks of the session will never be committed; they become garbage.

        Those that are committed already, or not of this session, are left alone. Raises SessionUnknown.
        """
        raise NotImplementedError

    def settle(self, ticket: Ticket) -> None:
        """Do nothing but be the newest call of a slot: older ones that are under way still are refused then.

        For who was not told what came of a call, and gives up sending it again: he may look now, or make
        another change, and no late copy undoes what he finds.
        """
        raise NotImplementedError

    def sync_metadata(self) -> None:
        """Make every change answered so far survive a power loss."""
        raise NotImplementedError
