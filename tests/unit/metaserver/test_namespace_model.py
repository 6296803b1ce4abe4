"""Random namespace calls, against a second implementation that is plain dictionaries.

The model knows the rules in its own words; both must agree on every answer and every error, and on the
whole tree after each step.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.metaserver.harness import DIRECTORY, FILE, Harness
from wire.errors import QuorumfsError

NAMES = st.sampled_from([b"a", b"b", b"c"])
PICK = st.integers(0, 11)


@dataclass
class Node:
    """A file (entries is None) or a directory of the model."""

    entries: dict[bytes, Node] | None = None
    links: int = 0
    held: bool = False
    ino: int = 0
    data: bytes = b""

    @property
    def is_directory(self) -> bool:
        return self.entries is not None


@dataclass
class Model:
    """The second implementation. Each method returns the name of the error, or None."""

    root: Node = field(default_factory=lambda: Node({}, links=1, ino=1))

    def below(self, node: Node) -> list[Node]:
        found = [node]
        for child in (node.entries or {}).values():
            found += self.below(child)
        return found

    def refuses_entry(self, parent: Node, name: bytes) -> str | None:
        if not parent.is_directory:
            return "NotADirectory"
        if parent is not self.root and not parent.links:
            return "NotFound"
        return "AlreadyExists" if name in parent.entries else None

    def add(self, parent: Node, name: bytes, node: Node) -> str | None:
        if error := self.refuses_entry(parent, name):
            return error
        parent.entries[name] = node
        node.links += 1
        return None

    def link(self, node: Node, parent: Node, name: bytes) -> str | None:
        if node.is_directory:
            return "NotPermitted"
        return "NotFound" if not node.links else self.add(parent, name, node)

    def remove(self, parent: Node, name: bytes, want_directory: bool) -> str | None:
        if not parent.is_directory:
            return "NotADirectory"
        node = parent.entries.get(name)
        if node is None:
            return "NotFound"
        if want_directory != node.is_directory:
            return "NotADirectory" if want_directory else "IsADirectory"
        if node.entries:
            return "NotEmpty"
        self._drop(parent, name)
        return None

    def _drop(self, parent: Node, name: bytes) -> None:
        parent.entries.pop(name).links -= 1

    def rename(self, old: Node, name: bytes, new: Node, new_name: bytes, flags: int) -> str | None:
        if not old.is_directory or not new.is_directory:
            return "NotADirectory"
        if new is not self.root and not new.links:
            return "NotFound"
        source, target = old.entries.get(name), new.entries.get(new_name)
        if source is None:
            return "NotFound"
        if flags == 1 and target is not None:
            return "AlreadyExists"
        if flags == 2 and target is None:
            return "NotFound"
        if source.is_directory and new in self.below(source):
            return "InvalidArgument"
        if flags == 2:
            return self._exchange(old, name, new, new_name)
        if target is not None:
            if target is source:
                return None
            if target.is_directory and old in self.below(target):
                return "NotEmpty"
            if target.is_directory and not source.is_directory:
                return "IsADirectory"
            if target.entries:
                return "NotEmpty"
            if source.is_directory and not target.is_directory:
                return "NotADirectory"
            self._drop(new, new_name)
        new.entries[new_name] = old.entries.pop(name)
        return None

    def _exchange(self, old: Node, name: bytes, new: Node, new_name: bytes) -> str | None:
        source, target = old.entries[name], new.entries[new_name]
        if target.is_directory and old in self.below(target):
            return "InvalidArgument"
        old.entries[name], new.entries[new_name] = target, source
        return None


class NamespaceMachine(RuleBasedStateMachine):
    """Random calls on nodes that exist, or are open without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.meta = Harness(Path(self.directory.name))
        self.model = Model()
        self.nodes = [self.model.root]

    def teardown(self) -> None:
        self.meta.close()
        self.directory.cleanup()

    def node(self, pick: int) -> Node:
        alive = [each for each in self.nodes if each.links or each.held]
        return alive[pick % len(alive)]

    def agree(self, expected: str | None, call: object, *args: object) -> object:
        """Make the call; it must end as the model says."""
        try:
            answer = call(*args)  # type: ignore[operator]
        except QuorumfsError as error:
            assert type(error).__name__ == expected
            return None
        assert expected is None
        return answer

    @rule(parent=PICK, name=NAMES, directory=st.booleans(), held=st.booleans())
    def create(self, parent: int, name: bytes, directory: bool, held: bool) -> None:
        into = self.node(parent)
        node = Node({} if directory else None, held=held)
        expected = self.model.add(into, name, node)
        mode = DIRECTORY if directory else FILE
        made = self.agree(expected, lambda: self.meta.create(into.ino, name, mode, open_it=held))
        if made is not None:
            node.ino = made.ino  # type: ignore[attr-defined]
            self.nodes.append(node)

    @rule(node=PICK, parent=PICK, name=NAMES)
    def link(self, node: int, parent: int, name: bytes) -> None:
        named, into = self.node(node), self.node(parent)
        expected = self.model.link(named, into, name)
        self.agree(expected, self.meta.service.link, self.meta.ticket(), named.ino, into.ino, name)

    @rule(parent=PICK, name=NAMES, directory=st.booleans())
    def remove(self, parent: int, name: bytes, directory: bool) -> None:
        where = self.node(parent)
        expected = self.model.remove(where, name, directory)
        call = self.meta.service.rmdir if directory else self.meta.service.unlink
        self.agree(expected, call, self.meta.ticket(), where.ino, name)

    @rule(old=PICK, name=NAMES, new=PICK, new_name=NAMES, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int) -> None:
        before, after = self.node(old), self.node(new)
        expected = self.model.rename(before, name, after, new_name, flags)
        self.agree(expected, self.meta.rename, before.ino, name, after.ino, new_name, flags)

    @rule(node=PICK)
    def let_go(self, node: int) -> None:
        held = self.node(node)
        held.held = False
        self.meta.close_files(self.meta.session, [held.ino])

    @rule()
    def restart(self) -> None:
        self.meta.restart()
        self.meta.reclaim(self.meta.session, [each.ino for each in self.nodes if each.held])
        self.meta.wait(self.meta.service.reaper.run_once())

    @invariant()
    def same_tree(self) -> None:
        for node in self.nodes:
            if not (node.links or node.held):
                self.agree("StaleFile", self.meta.service.getattr, node.ino)
                continue
            shown = self.meta.service.getattr(node.ino)
            if not node.is_directory:
                assert shown.nlink == node.links
                continue
            children = node.entries or {}
            subdirectories = sum(child.is_directory for child in children.values())
            assert shown.nlink == (2 + subdirectories if node.links else 0)
            page = self.meta.service.read_directory(node.ino, b"", 100)
            assert {entry.name: entry.attributes.ino for entry in page.entries} == {
                name: child.ino for name, child in children.items()
            }

    @precondition(lambda self: len(self.nodes) % 5 == 0)
    @invariant()
    def all_rules_hold(self) -> None:
        assert self.meta.findings() == []


TestNamespace = NamespaceMachine.TestCase
TestNamespace.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
