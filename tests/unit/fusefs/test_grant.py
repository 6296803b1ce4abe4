"""What a mount that is alone may rely on: eras, gaps, doubts; and what its cache makes of them."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from fusefs.cache import NameCache
from fusefs.grant import Grant, is_certain
from fusefs.walks import Walks
from tests.unit.fusefs.test_cache import attributes_of
from wire.errors import (
    DeadlineExceeded,
    NotFound,
    QuorumfsError,
    SessionUnknown,
    Unavailable,
    WriteRefused,
)
from wire.http_answer import result_of
from wire.methods import NamespaceMethods
from wire.table import method_of

DIRECTORY = attributes_of(9)._replace(mode=0o040755)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def grant(clock: Clock) -> Grant:
    return Grant(clock)


@pytest.fixture
def cache(clock: Clock, grant: Grant) -> NameCache:
    return NameCache(grant, clock=clock)


def test_it_is_counted_from_before_the_question(clock: Clock, grant: Grant) -> None:
    clock.now = 102.0  # the answer took two seconds
    grant.extend(100.0, 2.5)
    assert grant.seconds_left() == pytest.approx(0.5)
    clock.now = 102.6
    assert grant.era() == 0


def test_an_answer_that_comes_too_late_grants_nothing(clock: Clock, grant: Grant) -> None:
    clock.now = 103.0
    grant.extend(100.0, 2.5)
    assert grant.era() == 0


def test_an_era_goes_on_without_a_gap_only(clock: Clock, grant: Grant) -> None:
    grant.extend(100.0, 2.5)
    first = grant.era()
    clock.now = 102.0
    grant.extend(102.0, 2.5)
    assert grant.era() == first
    clock.now = 105.0
    grant.extend(104.4, 2.5)  # asked before its end, answered after it
    assert grant.era() not in (0, first)


def test_the_word_that_others_may_be_there_ends_it_at_once(clock: Clock, grant: Grant) -> None:
    grant.extend(100.0, 2.5)
    grant.extend(100.5, 0.0)
    assert grant.era() == 0


def test_a_change_of_unknown_outcome_is_waited_for(clock: Clock, grant: Grant) -> None:
    grant.extend(100.0, 2.5)
    grant.doubt()
    grant.extend(101.0, 2.5)
    assert grant.era() == 0
    grant.trust()
    assert grant.era() == 0, "what was learnt before may have changed"
    grant.extend(101.0, 2.5)
    assert grant.era() != 0


def test_which_failures_leave_nothing_under_way() -> None:
    assert is_certain(NotFound()) and is_certain(WriteRefused())
    resent = NotFound()
    resent.resent = True
    for error in (resent, Unavailable(), DeadlineExceeded(), SessionUnknown(), KeyboardInterrupt()):
        assert not is_certain(error)


@pytest.mark.parametrize(
    "take",
    [
        lambda: method_of(NamespaceMethods.unlink).answer("removed"),
        lambda: result_of("unlink", 200, None, b"<html>"),
        lambda: result_of("unlink", 500, None, b"it broke"),
    ],
    ids=["another type", "no XML-RPC", "another status"],
)
def test_an_answer_that_cannot_be_read_tells_not_that_nothing_was_done(take: Callable[[], object]) -> None:
    with pytest.raises(QuorumfsError) as failed:
        take()
    assert not is_certain(failed.value)
    assert failed.value.errno == errno.EIO


def test_what_is_learnt_alone_holds_as_long_as_that_goes_on(
    clock: Clock, grant: Grant, cache: NameCache
) -> None:
    grant.extend(100.0, 2.5)
    cache.learn_name(cache.asking(), 1, b"a", attributes_of(2))
    for _ in range(5):
        clock.now += 2.0
        grant.extend(clock.now, 2.5)
    assert cache.find(1, b"a") == attributes_of(2)
    clock.now += 3.0
    assert cache.find(1, b"a") is None
    grant.extend(clock.now, 2.5)
    assert cache.find(1, b"a") is None, "learnt before the gap"


def test_what_was_asked_before_the_era_is_not_of_it(clock: Clock, grant: Grant, cache: NameCache) -> None:
    asked = cache.asking()
    grant.extend(100.0, 2.5)
    cache.learn_name(asked, 1, b"a", attributes_of(2))
    cache.learn_whole(asked, 1)
    clock.now += 2.0
    assert cache.find(1, b"a") is None
    assert not cache.is_absent(1, b"b")


def test_a_whole_listing_tells_what_is_not_there(grant: Grant, cache: NameCache) -> None:
    grant.extend(100.0, 2.5)
    asked = cache.asking()
    cache.learn_name(asked, 1, b"a", attributes_of(2))
    cache.learn_whole(asked, 1)
    assert cache.is_absent(1, b"b") and not cache.is_absent(1, b"a")
    cache.made(cache.asking(), 1, b"b", attributes_of(3), new=True)
    assert not cache.is_absent(1, b"b")
    cache.removed(cache.asking(), 1, b"b", attributes_of(1))
    assert cache.is_absent(1, b"b")
    cache.changed(names=((1, b"a"),))  # with an outcome that is not known
    assert not cache.is_absent(1, b"a") and not cache.is_absent(1, b"c")


def test_a_listing_during_a_change_is_not_whole(grant: Grant, cache: NameCache) -> None:
    grant.extend(100.0, 2.5)
    asked = cache.asking()
    cache.made(cache.asking(), 1, b"b", attributes_of(3), new=True)
    cache.learn_whole(asked, 1)
    assert not cache.is_absent(1, b"c")


def test_a_listing_longer_than_the_cache_is_not_whole(clock: Clock, grant: Grant) -> None:
    cache = NameCache(grant, most_entries=3, clock=clock)
    grant.extend(100.0, 2.5)
    asked = cache.asking()
    for ino in range(2, 7):
        cache.learn_name(asked, 1, b"%d" % ino, attributes_of(ino))
    cache.learn_whole(asked, 1)
    assert not cache.is_absent(1, b"2")


def test_absence_is_known_alone_only(clock: Clock, grant: Grant, cache: NameCache) -> None:
    cache.learn_absent(cache.asking(), 1, b"a")
    assert not cache.is_absent(1, b"a")
    grant.extend(100.0, 2.5)
    cache.learn_absent(cache.asking(), 1, b"a")
    assert cache.is_absent(1, b"a")
    clock.now += 2.6
    assert not cache.is_absent(1, b"a")


def test_a_directory_that_was_made_alone_is_known_to_be_empty(grant: Grant, cache: NameCache) -> None:
    grant.extend(100.0, 2.5)
    cache.made(cache.asking(), 1, b"d", DIRECTORY, new=True)
    assert cache.is_absent(9, b"x")
    cache.made(cache.asking(), 9, b"x", attributes_of(10), new=True)
    assert not cache.is_absent(9, b"x") and cache.is_absent(9, b"y")


def test_of_two_changes_at_once_nobody_knows_the_last(grant: Grant, cache: NameCache) -> None:
    grant.extend(100.0, 2.5)
    first, second = cache.asking(), cache.asking()
    cache.set(second, attributes_of(2, nlink=2))
    cache.set(first, attributes_of(2, nlink=1))
    assert cache.attributes(2) is None
    made, removed = cache.asking(), cache.asking()
    cache.removed(removed, 1, b"a", attributes_of(1))
    cache.made(made, 1, b"a", attributes_of(5), new=True)
    assert cache.find(1, b"a") is None and not cache.is_absent(1, b"a")


def test_a_walk_through_what_is_known_is_right_in_its_era_only() -> None:
    walks = Walks()
    for era, now, right in ((1, 1, True), (1, 2, False), (1, 0, False), (0, 1, False)):
        walks.step(7, 1, b"a", 2, fresh=False, era=era)
        walks.step(7, 2, b"b", 3, fresh=True, era=now)
        walk = walks.take(7, 3)
        assert walk is not None and walk.is_right(now) == right
    walks.step(7, 1, b"a", 2, fresh=False, era=1)
    walks.step(7, 2, b"b", 3, fresh=False, era=2)
    walk = walks.take(7, 3)
    assert walk is not None and not walk.is_right(2)


def test_hard_links_are_known_together_while_alone(clock: Clock, grant: Grant, cache: NameCache) -> None:
    grant.extend(100.0, 2.5)
    asked = cache.asking()
    for name in (b"a", b"b"):
        cache.learn_name(asked, 1, name, attributes_of(2, nlink=2))
    cache.learn_whole(asked, 1)
    assert cache.number(1, b"a") == cache.number(1, b"b") == 2
    assert not cache.is_absent(1, b"a")
    clock.now += 0.5
    grant.end()
    assert cache.number(1, b"a") is None and cache.number(1, b"b") is None
    cache.learn_name(cache.asking(), 1, b"c", attributes_of(2, nlink=2))
    cache.learn_name(cache.asking(), 1, b"d", attributes_of(2, nlink=2))
    assert cache.number(1, b"c") is None and cache.number(1, b"d") == 2
