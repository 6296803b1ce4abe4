"""A disk whose power goes: names that no sync of their directory made durable may be gone, each by itself.

A rename from one directory to another is two changes: a name that is gone here, and one that is new there.
What SQLite does by itself is not seen. One thread.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch


@dataclass
class Change:
    """A directory that was made (without `source`), or a rename; `before` is what had the name."""

    path: Path
    source: Path | None
    before: bytes | None
    unsynced: set[Path]
    """The directories whose names are not durable yet."""


class LostNames:
    """What is below a directory, and what a power loss may take of its names."""

    def __init__(self, root: Path, power_fails: Callable[[LostNames], None]) -> None:
        """Begin with all names durable; `power_fails` is called before each change, and each sync."""
        self.root = root
        self._changes: list[Change] = []
        self._power_fails = power_fails
        self._mkdir, self._rename, self._fsync = os.mkdir, os.rename, os.fsync

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what is done meanwhile; the power may fail when it is done, too."""
        with (
            patch("os.mkdir", self._make),
            patch("os.rename", self._move),
            patch("os.replace", self._move),
            patch("os.fsync", self._sync),
        ):
            yield
        self._power_fails(self)

    def _step(self) -> None:
        with patch("os.mkdir", self._mkdir), patch("os.rename", self._rename), patch("os.fsync", self._fsync):
            self._power_fails(self)

    def _make(self, path: Any, *more: Any, **options: Any) -> None:
        self._step()
        self._mkdir(path, *more, **options)
        self._changes.append(Change(Path(path), None, None, {Path(path).parent}))

    def _move(self, source: Any, target: Any, **options: Any) -> None:
        self._step()
        old, new = Path(source), Path(target)
        before = new.read_bytes() if new.is_file() else None
        self._rename(source, target, **options)
        self._changes.append(Change(new, old, before, {old.parent, new.parent}))

    def _sync(self, handle: int) -> None:
        self._step()
        self._fsync(handle)
        synced = Path(f"/proc/self/fd/{handle}").readlink()
        for change in self._changes:
            change.unsynced.discard(synced)

    @property
    def unsynced(self) -> list[Change]:
        """What is not durable."""
        return [change for change in self._changes if change.unsynced]

    def states(self, to: Path) -> Iterator[Path]:
        """Yield copies as the power may leave it: with all that is not durable lost, and each by itself."""
        for number, lost in enumerate([self.unsynced, *([change] for change in self.unsynced)]):
            copy = to / str(number)
            shutil.copytree(self.root, copy)
            for change in reversed(lost):
                self._lose(copy, change)
            yield copy
            shutil.rmtree(copy)

    def _lose(self, copy: Path, change: Change) -> None:
        path = copy / change.path.relative_to(self.root)
        if change.source is None:
            shutil.rmtree(path, ignore_errors=True)
            return
        if not path.exists():
            return  # it was moved on, and that is durable
        content = path.read_bytes()
        if change.path.parent in change.unsynced:
            path.unlink()
            if change.before is not None:
                path.write_bytes(change.before)
        if change.source.parent in change.unsynced:
            (copy / change.source.relative_to(self.root)).write_bytes(content)
