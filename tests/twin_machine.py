"""Random sequences of calls, for hypothesis: the state machine that drives tests.twins."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar, Protocol

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support import take_seed
from tests.twins import XATTR_PREFIX, Twins

SOAK = int(os.environ.get("QUORUMFS_SOAK", "0"))
"""How many examples a soak plays; 0: as many as fit into `make test`."""

PIECE, BLOCK = 1 << 16, 1 << 20
EDGES = [0, 1, 7, 4095, 4096, PIECE - 1, PIECE, PIECE + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK]
PATHS = ["a", "b", "c", "d", "e", "d/a", "d/b", "d/e", "e/a", "d/e/a"]
paths = st.one_of(st.sampled_from(PATHS), st.integers(0, 9), st.integers(0, 9))
"""A path, or which one of those that exist."""
slots = st.integers(0, 3)
offsets = st.one_of(st.sampled_from(EDGES), st.integers(0, 2 * BLOCK + 100_000))
lengths = st.one_of(
    st.sampled_from([0, 1, 100, 4096, PIECE, PIECE + 1, BLOCK, BLOCK + 5000]), st.integers(0, 9000)
)
sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 2 * BLOCK))
tags = st.integers(0, 1 << 30)
names = st.sampled_from([XATTR_PREFIX + "a", XATTR_PREFIX + "b"])
ACCESS = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]
MODES = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000]
ALLOCATE = [0, 1, 3, 0x10, 0x11]
PARTS = ["mediator", "metaserver", "data-1", "data-2", "reopen"]


class Rig(Protocol):
    """What the machine needs of a test: new twins, and how to disturb what they stand on."""

    def twins(self) -> Twins: ...
    def disturb(self, twins: Twins, part: str) -> None: ...
    def forget(self, twins: Twins) -> None: ...


class TwinMachine(RuleBasedStateMachine):
    """Calls in random order; each is compared at once, and everything in the end."""

    rig: ClassVar[Rig]

    def __init__(self) -> None:
        super().__init__()
        self.twins = self.rig.twins()

    @initialize()
    def prepare(self) -> None:
        for path in ("d", "d/e", "e"):
            self.twins.call("mkdir", path)

    @rule(
        slot=slots,
        path=paths,
        access=st.sampled_from(ACCESS),
        more=st.sets(
            st.sampled_from([os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND]), max_size=3
        ),
    )
    def open(self, slot: int, path: str | int, access: int, more: set[int]) -> None:
        if os.O_EXCL in more:
            more = more | {os.O_CREAT}
        if os.O_TRUNC in more and access == os.O_RDONLY:
            more = more - {os.O_TRUNC}
        self.twins.open(slot, self._path(path), access | sum(more))

    @rule(slot=slots, path=paths)
    def open_new(self, slot: int, path: str | int) -> None:
        self.twins.open(slot, self._path(path), os.O_RDWR | os.O_CREAT)

    def _on(self, slot: int, act: Callable[[int], object]) -> None:
        """Act on an open slot: this one, or else any, or else one that is opened for it."""
        if not self.twins.open_slots:
            self.twins.open(slot, "abc"[slot % 3], os.O_RDWR | os.O_CREAT)
        if self.twins.open_slots:
            act(slot if slot in self.twins.open_slots else min(self.twins.open_slots))

    def _call(self, name: str, path: str | int, *more: object) -> None:
        """Make a call on a path."""
        self.twins.call(name, self._path(path), *more)

    def _path(self, path: str | int) -> str:
        if isinstance(path, str):
            return path
        there = [each for each in PATHS if os.path.lexists(self.twins.local.at(each))]
        return there[path % len(there)] if there else PATHS[path]

    @rule(slot=slots)
    def close(self, slot: int) -> None:
        self._on(slot, self.twins.close)

    @rule(slot=slots, offset=offsets, tag=tags, length=lengths)
    def write(self, slot: int, offset: int, tag: int, length: int) -> None:
        self._on(slot, lambda s: self.twins.write(s, offset, tag, length))

    @rule(slot=slots, offset=offsets, tag=tags, length=lengths)
    def write_again(self, slot: int, offset: int, tag: int, length: int) -> None:
        self._on(slot, lambda s: self.twins.write(s, offset, tag, length))

    @rule(slot=slots, offset=offsets, tag=tags, length=lengths, then=offsets, size=sizes)
    def write_and_look(self, slot: int, offset: int, tag: int, length: int, then: int, size: int) -> None:
        """What a program does with a file that it works in: written, cut, written, read."""

        def act(s: int) -> None:
            self.twins.write(s, offset, tag, length)
            self.twins.call("ftruncate", s, size)
            self.twins.write(s, then, tag + 1, 1000)
            self.twins.call("pread", s, 0, 4 * BLOCK)
            self.twins.call("fstat", s)

        self._on(slot, act)

    @rule(slot=slots, offset=offsets, length=lengths)
    def read(self, slot: int, offset: int, length: int) -> None:
        self._on(slot, lambda s: self.twins.call("pread", s, offset, length))

    @rule(slot=slots, size=sizes)
    def ftruncate(self, slot: int, size: int) -> None:
        self._on(slot, lambda s: self.twins.call("ftruncate", s, size))

    @rule(slot=slots, mode=st.sampled_from(ALLOCATE), offset=offsets, length=lengths)
    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        self._on(slot, lambda s: self.twins.call("fallocate", s, mode, offset, length))

    @rule(slot=slots)
    def fsync(self, slot: int) -> None:
        self._on(slot, lambda s: self.twins.call("fsync", s))

    @rule(slot=slots)
    def fstat(self, slot: int) -> None:
        self._on(slot, lambda s: self.twins.call("fstat", s))

    @rule(path=paths, size=sizes)
    def truncate(self, path: str | int, size: int) -> None:
        self._call("truncate", path, size)

    @rule(path=paths, new_path=paths, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, path: str | int, new_path: str | int, flags: int) -> None:
        self._call("rename", path, self._path(new_path), flags)

    @rule(path=paths, new_path=paths)
    def link(self, path: str | int, new_path: str | int) -> None:
        self._call("link", path, self._path(new_path))

    @rule(path=paths, leads=st.sampled_from(["nowhere", "no/where/" + "x" * 200]))
    def symlink(self, path: str | int, leads: str) -> None:
        self.twins.call("symlink", leads, self._path(path))

    @rule(path=paths)
    def readlink(self, path: str | int) -> None:
        self._call("readlink", path)

    @rule(path=paths)
    def unlink(self, path: str | int) -> None:
        self._call("unlink", path)

    @rule(path=paths)
    def mkdir(self, path: str | int) -> None:
        self._call("mkdir", path)

    @rule(path=paths)
    def rmdir(self, path: str | int) -> None:
        self._call("rmdir", path)

    @rule(path=paths, mode=st.sampled_from(MODES))
    def chmod(self, path: str | int, mode: int) -> None:
        self._call("chmod", path, mode)

    @rule(path=paths, atime_ns=st.integers(0, 2**60), mtime_ns=st.integers(0, 2**60))
    def utime(self, path: str | int, atime_ns: int, mtime_ns: int) -> None:
        self._call("utime", path, atime_ns, mtime_ns)

    @rule(path=paths, name=names, value=st.binary(max_size=200), flags=st.sampled_from([0, 0, 1, 2]))
    def setxattr(self, path: str | int, name: str, value: bytes, flags: int) -> None:
        self._call("setxattr", path, name, value, flags)

    @rule(path=paths, name=names)
    def removexattr(self, path: str | int, name: str) -> None:
        self._call("removexattr", path, name)

    @rule(path=paths)
    def lstat(self, path: str | int) -> None:
        self._call("lstat", path)

    @rule(path=paths)
    def list_(self, path: str | int) -> None:
        self._call("list", path)

    @rule()
    def compare(self) -> None:
        self.twins.compare_trees()

    @rule(part=st.sampled_from(PARTS))
    def disturb(self, part: str) -> None:
        self.twins.calls.append(f"disturb({part!r})")
        self.rig.disturb(self.twins, part)

    def teardown(self) -> None:
        try:
            self.twins.compare_trees()
            self.twins.close_all()
            self.twins.compare_trees()
        finally:
            self.rig.forget(self.twins)


def play(rig: Rig, examples: int, steps: int) -> None:
    """Play random sequences."""
    chosen = take_seed()
    machine = type("Machine", (TwinMachine,), {"rig": rig})
    run_state_machine_as_test(
        seed(chosen)(machine),
        settings=settings(
            max_examples=SOAK or examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet if not SOAK else Verbosity.normal,
        ),
    )
