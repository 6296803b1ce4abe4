"""What is recorded on real mounts keeps the promises, and a spoiled recording does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import assert_whole
from tests.mount.conftest import two_mounts
from tools.cli import main
from tools.history.check import check, words
from tools.history.record import parse


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one cluster, for tests that break nothing."""
    base = tmp_path_factory.mktemp("record")
    with two_mounts(base) as places:
        yield places
    assert_whole(base)


def test_record_and_check_and_spoil(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    here, file = mounted[0] / "here", tmp_path / "history"
    here.mkdir()
    assert main(["record", "--output", str(file), "--seconds", "3", str(here)]) == 0
    assert not list(here.iterdir())
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert {event["operation"] for event in events if event["event"] == "invoke"} >= {"read", "append"}
    assert main(["check-history", str(file)]) == 0
    spoiled = next(event for event in events if event["event"] == "return" and event.get("value"))
    spoiled["value"] = "never written"
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file)]) == 1


def test_record_and_check_two_mounts(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    """Lists that both append to, renames, files written in place and by rename: no promise is broken."""
    file = tmp_path / "history"
    assert main(["record", "--output", str(file), "--seconds", "5", *map(str, mounted)]) == 0
    calls = parse(file.read_text().splitlines()).calls
    for mount in mounted:
        done = {call.operation for call in calls if call.mount == str(mount) and call.outcome == "ok"}
        assert {"append", "list", "write", "read", "replace", "rename", "look"} <= done
    findings = check(calls)
    assert not findings, "\n".join(map(words, findings))


def test_a_rename_back_of_what_another_mount_renamed(mounted: tuple[Path, Path]) -> None:
    """The first mount knows the old name still: the kernel must not take both for links of one file."""
    one, two = mounted
    (one / "a").write_text("x")
    for _ in range(3):
        assert (one / "a").stat().st_size == 1
        (two / "a").rename(two / "b")
        (one / "b").rename(one / "a")
        assert [path.name for path in two.iterdir() if path.is_file()] == ["a"]
