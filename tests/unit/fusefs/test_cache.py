"""What the mount remembers of names and attributes after changes of its own."""

from __future__ import annotations

from fusefs.cache import NameCache
from wire.messages import Attributes


def attributes_of(ino: int, nlink: int = 1) -> Attributes:
    return Attributes(ino, 0o100644, nlink, 0, 0, 0, 0, 0, 0, 0, 0, 1)


def test_a_known_name_that_is_removed_takes_its_inode_along_only() -> None:
    cache = NameCache()
    cache.learn_name(cache.asking(), 1, b"a", attributes_of(2))
    cache.learn_name(cache.asking(), 1, b"b", attributes_of(3))
    cache.changed(names=((1, b"a"),))
    assert cache.attributes(2) is None
    assert cache.find(1, b"b") == attributes_of(3)


def test_an_unknown_name_that_is_removed_leaves_no_links_in_doubt() -> None:
    cache = NameCache()
    cache.learn(cache.asking(), attributes_of(2))  # seen by its handle, not by its name
    cache.changed(names=((1, b"a"),))
    assert cache.attributes(2) is None


def test_a_name_known_too_long_ago_counts_as_unknown() -> None:
    now = [0.0]
    cache = NameCache(clock=lambda: now[0])
    cache.learn_name(cache.asking(), 1, b"a", attributes_of(2))
    now[0] = 5.0
    cache.learn(cache.asking(), attributes_of(3))  # which another mount may have called "a" since
    cache.changed(names=((1, b"a"),))
    assert cache.attributes(3) is None


def test_one_name_of_an_inode_is_known() -> None:
    """Another mount may have renamed it: two names of one inode are two links for the kernel."""
    cache = NameCache(most_entries=2)
    cache.learn_name(cache.asking(), 1, b"a", attributes_of(2))
    cache.learn_name(cache.asking(), 1, b"b", attributes_of(2))
    assert cache.find(1, b"a") is None and cache.find(1, b"b") == attributes_of(2)
    late = cache.asking()
    cache.changed(names=((1, b"c"),))
    cache.learn_name(cache.asking(), 1, b"b", attributes_of(2))
    cache.learn_name(late, 1, b"c", attributes_of(2))
    assert cache.find(1, b"b") is None and cache.find(1, b"c") is None
    for ino in range(3, 9):
        cache.learn_name(cache.asking(), 1, b"b", attributes_of(ino))
        cache.learn_name(cache.asking(), 1, b"%d" % ino, attributes_of(ino + 10))
        cache.changed(names=((1, b"b"),))
    assert len(cache._names) <= 2 and set(cache._name_of.values()) == set(cache._names)


def test_a_late_answer_about_newer_contents_outdates_what_is_known() -> None:
    cache = NameCache()
    late = cache.asking()
    cache.changed(inodes=(2,))
    cache.learn(cache.asking(), attributes_of(2))
    cache.learn(late, attributes_of(2))
    assert cache.attributes(2) == attributes_of(2)
    cache.learn(late, attributes_of(2)._replace(version=2))
    assert cache.attributes(2) is None
