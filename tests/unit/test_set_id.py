"""What a change of a file takes off its mode, and who is in a group."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest

from fusefs.callers import Caller, groups_of
from wire.attribute_rules import without_set_id

NO_SUCH_THREAD = 2**22 + 1
"""Beyond the largest thread number that Linux gives out."""


@pytest.mark.parametrize(
    ("mode", "of_a_member", "of_another"),
    [
        (0o6755, 0o755, 0o755),
        (0o6745, 0o2745, 0o745),
        (0o2644, 0o2644, 0o644),
        (0o4711, 0o711, 0o711),
        (0o644, 0o644, 0o644),
    ],
)
@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO])
def test_what_a_change_takes_off(kind: int, mode: int, of_a_member: int, of_another: int) -> None:
    assert without_set_id(kind | mode) == kind | of_a_member
    assert without_set_id(kind | mode, in_group=False) == kind | of_another


def test_a_directory_keeps_all() -> None:
    assert without_set_id(stat.S_IFDIR | 0o6745, in_group=False) == stat.S_IFDIR | 0o6745


def test_the_groups_of_a_thread() -> None:
    assert groups_of(os.getpid()) == set(os.getgroups())
    assert groups_of(NO_SUCH_THREAD) == set()


def test_who_is_in_a_group() -> None:
    with subprocess.Popen(["sleep", "60"], extra_groups=[7, 9] if os.geteuid() == 0 else None) as program:
        who = Caller(5, 6, program.pid)
        more = groups_of(program.pid)
        assert [who.is_in(gid) for gid in (5, 6, *more)] == [5 in more, True, *[True] * len(more)]
        program.kill()
    assert Caller(5, 6, NO_SUCH_THREAD).is_in(6)
    assert not Caller(5, 6, NO_SUCH_THREAD).is_in(7)
