"""Names and the walks along them: what a name leads to, and whether what a program came by still holds.

Names are answered from the cache, and asked of the server where that could be wrong (promise P8). Changes no
names; knows neither errno nor the binding. Raises errors of wire.errors. Safe in any thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fusefs.attributes import InodeAttributes
from fusefs.births import Births
from fusefs.cache import NameCache
from fusefs.grant import Grant
from fusefs.handles import OpenInodes
from fusefs.ports import NamespacePort
from fusefs.walks import Walk, Walks
from wire.errors import NameTooLong, NotADirectory, NotFound, StaleFile
from wire.messages import ROOT_INODE, Attributes

NAME_BYTES = 255


class Names:
    """The names of one mount's file system.

    Args:
        namespace: the server's names.
        cache: those that are known.
        walks: how each thread came to where it is.
        attributes: of what the names are of.
        births: files that the server may not know yet.
        opens: the inodes that this mount has open.
        grant: whether nobody else changes anything now.
    """

    def __init__(
        self,
        namespace: NamespacePort,
        cache: NameCache,
        walks: Walks,
        attributes: InodeAttributes,
        births: Births,
        opens: OpenInodes,
        grant: Grant,
    ) -> None:
        self._namespace, self._cache, self._walks = namespace, cache, walks
        self._attributes, self._births, self._opens, self._grant = attributes, births, opens, grant

    def lookup(self, parent: int, name: bytes, walker: int = 0) -> Attributes:
        """Return the attributes of a name's inode. Raises NotFound, NotADirectory, NameTooLong, StaleFile.

        `walker` is the thread that asks; its next calls rely on what it was told here.
        """
        era = self._grant.era()
        unborn = self._births.find(parent, name)
        attributes = unborn.base() if unborn is not None else self._find(parent, name, walker)
        fresh = attributes is None
        if attributes is None:
            attributes = self.ask(parent, name, walker)
        self._walks.step(walker, parent, name, attributes.ino, fresh, era)
        return self._attributes.seen(attributes)

    def by_number(self, ino: int, name: bytes) -> Attributes:
        """Return an inode of which only the number is known (`name` is b"."), or its directory (b"..").

        The kernel asks so for a handle of name_to_handle_at(2), when it has forgotten the inode itself.

        Raises:
            StaleFile: it was removed.
        """
        if name == b"..":
            return self._attributes.seen(self._namespace.parent(ino))
        found = self._attributes.get(ino)
        if not found.nlink:
            raise StaleFile(f"inode {ino} was removed")
        return found

    def _find(self, parent: int, name: bytes, walker: int) -> Attributes | None:
        """Return what is known of a name, if it is right or a later call by it can still find out otherwise.

        None can of a file that is open here, as `verify_unopened` says, nor of a symbolic link: the kernel
        asks nothing more for O_NOFOLLOW.
        """
        known = self._cache.find(parent, name)
        if known is None or self._cache.is_certain_name(parent, name, known.ino):
            return known
        is_final = stat.S_ISLNK(known.mode) or self._has_handles(known.ino)
        return None if is_final or self._walks.is_misled(walker) else known

    def _has_handles(self, ino: int) -> bool:
        inode = self._opens.find(ino)
        return inode is not None and bool(inode.handles)

    def ask(self, parent: int, name: bytes, walker: int = 0) -> Attributes:
        check_name(name)
        if self._cache.is_absent(parent, name):
            raise NotFound(os.fsdecode(name))
        token = self._cache.asking()
        found = self._look_up(walker, parent, name)
        if found is not None and self._births.settle_in(found.ino):  # its times are others now
            token = self._cache.asking()
            found = self._look_up(walker, parent, name)
        if found is None:
            self._cache.learn_absent(token, parent, name)
            raise NotFound(os.fsdecode(name))
        self._cache.learn_name(token, parent, name, found)
        return found

    def _look_up(self, walker: int, directory: int, name: bytes) -> Attributes | None:
        """Ask the server for a name, and for those by which `walker` came to its directory, if in doubt.

        Returns:
            Its inode's attributes; None if it is not there.

        Raises:
            StaleFile: those lead elsewhere by now; a new walk will find where.
            NotFound: they do, and the name is not there either. The kernel may make it then, and does not
                walk anew for StaleFile here, but for that of its next call (`verify`).
        """
        walk = self._walks.doubtful(walker, directory, self._grant.era())
        if walk is None:
            with self.telling_removed(walker, directory):
                found = self._namespace.resolve(directory, [name])
            return found[0] if found else None
        try:
            found = self._namespace.resolve(walk.start, [*walk.names, name])
        except NotADirectory:  # but what may have been meant is behind a link that is there now
            self.verify(walker, directory)
            raise
        steps, rest = found[: len(walk.names)], found[len(walk.names) :]
        try:
            self._check(walker, walk, steps)
        except StaleFile:
            if not rest:
                raise NotFound(os.fsdecode(name)) from None
            raise
        return rest[0] if rest else None

    @contextmanager
    def telling_removed(self, walker: int, *inodes: int) -> Iterator[None]:
        """Within, NotFound instead of StaleFile if all inodes were what `walker` was on the way to.

        One of them was removed since its name was followed, within the same system call: there is nothing to
        be found by walking anew, which the kernel does only once.
        """
        try:
            yield
        except StaleFile as error:
            era = self._grant.era()
            if all(ino == ROOT_INODE or self._walks.is_known(walker, ino, era) for ino in inodes):
                raise NotFound(error.message) from None
            raise

    def verify(self, walker: int, *inodes: int) -> None:
        """Make sure that the names by which `walker` came to each inode lead there. Raises StaleFile."""
        for ino in inodes:
            if (walk := self._walks.doubtful(walker, ino, self._grant.era())) is not None:
                self._check(walker, walk, self._namespace.resolve(walk.start, walk.names))

    def _check(self, walker: int, walk: Walk, found: Sequence[Attributes]) -> None:
        """Hold a walk against what its names lead to now. Raises StaleFile: that is something else."""
        if [each.ino for each in found] != walk.inodes:
            self.forget(walk)
            raise StaleFile("another mount has changed what is on the way there")
        self._walks.confirm(walker, walk)

    def verify_unopened(self, ino: int, walker: int) -> None:
        """Make sure that an inode, which a call is about by name, is what the name is of. Raises StaleFile.

        Of one that is open here nothing is known: it may be meant by its descriptor. Its names are told as
        the server says them.
        """
        if not self._has_handles(ino):
            self.verify(walker, ino)

    def walk_anew(self, walker: int) -> None:
        """Note that `walker` was told StaleFile: for a moment its names are asked of the server.

        The kernel has it walk anew then, but only once.
        """
        self._walks.mislead(walker)

    def forget(self, walk: Walk) -> None:
        parents = [walk.start, *walk.inodes[:-1]]
        self._cache.changed(names=tuple(zip(parents, walk.names, strict=True)))

    def resolve(self, path: bytes, fresh: bool = False) -> Attributes:
        """Follow a path from the root, no symbolic links; with `fresh` ask the server for all of it."""
        names = [name for name in path.split(b"/") if name]
        for name in names:
            check_name(name)
        self._births.settle()
        current, rest = ROOT_INODE, names
        attributes = None
        while rest and not fresh and (known := self._cache.find(current, rest[0])) is not None:
            attributes, current, rest = known, known.ino, rest[1:]
        if not names:
            return self._attributes.get(ROOT_INODE)
        if rest:
            token = self._cache.asking()
            found = self._namespace.resolve(current, rest)
            for name, attributes in zip(rest, found, strict=False):
                self._cache.learn_name(token, current, name, attributes)
                current = attributes.ino
            if len(found) < len(rest):
                raise NotFound(os.fsdecode(path))
        assert attributes is not None, "a path with names was followed to its end"
        return self._attributes.seen(attributes)


def check_name(name: bytes) -> None:
    """Raise NameTooLong for a name that no file system keeps."""
    if len(name) > NAME_BYTES:
        raise NameTooLong(f"a name of {len(name)} bytes: at most {NAME_BYTES}")
