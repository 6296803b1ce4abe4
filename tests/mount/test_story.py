"""The story of the README through a real mount, once in each encoding: write, break, restart, expect.

A file of 1 GiB comes back in MessagePack-RPC; by XML it would take minutes, so there it has 64 MiB, and the
full GiB with QUORUMFS_STORY_FULL=1 (`make story-xml`). It needs 7 GiB of room in the temporary directory.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ClusterFactory
from tests.mount.story import Story, copy_sources, forget_cached, sha256
from tests.support import wait_until

GIB = 1 << 30
BIG_BYTES = {"msgpack": GIB, "xml": GIB if os.environ.get("QUORUMFS_STORY_FULL") else GIB // 16}
AT_ONCE_SECONDS = 2.0

ONE_IN = 40
"""A copy is disturbed when one file in so many has arrived."""


XML_LATER = pytest.mark.parametrize(
    "story", ["msgpack", pytest.param("xml", marks=pytest.mark.long)], indirect=True
)
"""What the encoding matters little for is told by XML in `make story-xml` and `make test-long` only."""


@pytest.fixture(params=["msgpack", "xml"])
def story(request: pytest.FixtureRequest, make_cluster: ClusterFactory, mountpoint: Path) -> Story:
    """Five data servers, Qr=3, Qw=5, mounted; every part speaks the encoding alone."""
    cluster = make_cluster(servers=5, read_quorum=3, write_quorum=5, rpc=request.param)
    cluster.start()
    cluster.mount(mountpoint)
    return Story(cluster, mountpoint)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A real source tree."""
    place = tmp_path / "sources"
    assert copy_sources(place) > 150
    return place


# 1


def test_everyday_work(story: Story, sources: Path) -> None:
    story.expect("echo 1234 > a.txt")
    story.expect("cat a.txt", "1234\n")
    story.expect("mkdir d && ls", "a.txt\nd\n")
    story.expect(f"cp -r {sources} d/sources")
    story.expect(f"diff -r {sources} d/sources")
    story.expect("mv d/sources moved && ls d")
    story.expect(f"diff -r {sources} moved")
    story.expect("echo 5678 >> a.txt && cat a.txt", "1234\n5678\n")
    story.expect("rm -r moved d && ls", "a.txt\n")


@pytest.mark.timeout(900)
@pytest.mark.damages("it removes the data at its end, for room")
def test_a_big_file_comes_back_the_same(story: Story, tmp_path: Path) -> None:
    size = BIG_BYTES[story.cluster.config.rpc]
    original = tmp_path / "random"
    try:
        subprocess.run(f"head -c {size} /dev/urandom > {original}", shell=True, check=True)
        story.expect(f"cp {original} big && sync big", deadline_seconds=400)
        forget_cached(story.mountpoint / "big")
        story.expect("stat -c %s big", f"{size}\n")
        assert sha256(story.mountpoint / "big") == sha256(original)
    finally:
        original.unlink(missing_ok=True)
        story.cluster.close()
        for number in story.numbers:
            shutil.rmtree(story.data_directory(number))


# 2


def test_two_corrupt_replicas_are_outvoted_and_repaired(story: Story) -> None:
    story.expect("echo 1234 > a.txt")
    story.corrupt("a.txt", [1, 2], "--different")
    assert story.verdicts("a.txt") == {1: {"corrupt"}, 2: {"corrupt"}, 3: {"good"}, 4: {"good"}, 5: {"good"}}
    story.expect("cat a.txt", "1234\n")
    story.expect_all_good("a.txt")
    assert [bool(story.quarantined(number)) for number in story.numbers] == [True, True, False, False, False]


# 3


@pytest.mark.parametrize(
    ("servers", "option"),
    [([1, 2, 3], "--different"), ([1, 2, 3], "--kind=lie"), ([1, 2, 3, 4, 5], "--kind=lie")],
    ids=["three-differ", "three-collude", "five-collude"],
)
def test_too_many_corrupt_replicas_give_an_error_never_wrong_bytes(
    story: Story, servers: list[int], option: str
) -> None:
    story.expect("echo 1234 > a.txt")
    story.corrupt("a.txt", servers, option)
    good = [number for number in story.numbers if number not in servers]
    before = {number: story.stored(number) for number in good}

    story.expect_failure("cat a.txt", "Input/output error", story.cluster.config.deadlines.read_seconds)
    verdicts = story.verdicts("a.txt")
    assert verdicts == {number: {"good" if number in good else "corrupt"} for number in story.numbers}
    assert {number: story.stored(number) for number in good} == before
    assert not any(story.quarantined(number) for number in good)
    assert f"{len(good)} of 5 replicas are good" in story.quorumfs(
        "explain", str(story.mountpoint / "a.txt")
    ).out.replace("\n", " ")

    story.expect("echo anew > a.txt")
    forget_cached(story.mountpoint / "a.txt")
    story.expect("cat a.txt", "anew\n")
    story.expect_all_good("a.txt")


# 4


def test_without_a_write_quorum_files_can_be_read_and_not_written(story: Story) -> None:
    story.expect("echo 1234 > a.txt")
    story.terminate(1, 2)
    forget_cached(story.mountpoint / "a.txt")
    story.expect("cat a.txt", "1234\n")

    for command in ("echo 9012 > a.txt", "echo 9012 >> a.txt", "echo 9012 > new.txt"):
        story.expect_failure(command, "Read-only file system", AT_ONCE_SECONDS)
    for words in (("explain", str(story.mountpoint / "a.txt")), ("status",)):
        told = " ".join(story.quorumfs(*words).out.split())
        assert "3 of 5 data servers are up" in told and "Qw=5" in told, told
        assert "quorumfs" in told.partition("Qw=5")[2], f"it does not say what to do: {told}"
    forget_cached(story.mountpoint / "a.txt")
    story.expect("cat a.txt", "1234\n")
    story.expect("ls", "a.txt\n")

    story.terminate(3)
    forget_cached(story.mountpoint / "a.txt")
    story.expect_failure("cat a.txt", "Input/output error", story.cluster.config.deadlines.read_seconds + 1)

    story.restart(1, 2, 3)
    wait_until(lambda: story.shell("echo 9012 > a.txt").status == 0, 10, "writes are possible again")
    story.expect("cat a.txt", "9012\n")


def test_a_write_quorum_lost_in_mid_write_leaves_the_old_content(story: Story) -> None:
    story.expect("echo 1234 > a.txt")
    file = os.open(story.mountpoint / "a.txt", os.O_WRONLY | os.O_TRUNC)
    os.write(file, b"9012\n")
    # Not by a command: starting a process closes a copy of the descriptor, which commits what was written.
    story.cluster.kill("data-1")
    with pytest.raises(OSError):
        os.close(file)
    story.expect("cat a.txt", "1234\n")
    story.restart(1)
    wait_until(lambda: story.shell("cat a.txt").out == "1234\n", 10, "it is still the old content")
    story.expect_all_good("a.txt")


# 5


@XML_LATER
def test_a_blank_server_is_refilled_by_itself(story: Story, sources: Path) -> None:
    story.expect(f"cp -r {sources} sources && head -c 32M /dev/urandom > random")
    story.terminate(1, 2, 3)
    story.restart(1, 2)
    story.restart(3, blank=True)
    seen: list[dict[str, Any]] = []

    def refilled() -> bool:
        seen.append(next(each for each in story.status()["servers"] if each["number"] == 3))
        return seen[-1]["state"] == "up" and seen[-1]["blocks"] == seen[-1]["refill"]["total"]

    wait_until(refilled, 30, "data server 3 is up and refilled")
    underway = [each["refill"] for each in seen if each["state"] == "refilling" and each["refill"]["total"]]
    assert any(0 < refill["done"] < refill["total"] for refill in underway), seen
    story.expect_equal_inventories(10)
    story.expect(f"diff -r {sources} sources")


# 6


def arrived(place: Path) -> int:
    return sum(path.is_file() for path in place.rglob("*")) if place.exists() else 0


@XML_LATER
@pytest.mark.parametrize("name", ["mediator", "metaserver"])
def test_a_killed_server_does_not_break_a_copy(story: Story, sources: Path, name: str) -> None:
    total = arrived(sources)
    copying = story.start_shell(f"cp -r {sources} copy")
    try:
        wait_until(lambda: arrived(story.mountpoint / "copy") >= total // ONE_IN, 30, "files arrive")
        story.cluster.kill(name)
        assert copying.poll() is None, "the copy was over before the kill: a larger tree is needed"
        story.cluster.start(name)
        out, err = copying.communicate(timeout=120)
    finally:
        copying.kill()
        copying.wait()
    assert (copying.returncode, out, err) == (0, "", "")
    story.expect(f"diff -r {sources} copy", deadline_seconds=120)


# 7

WRITER = """
import random, sys
for number in range(10_000):
    with open(f"closed-{number}", "wb") as file:
        file.write(random.Random(number).randbytes(1 + number * 997 % 300_000))
    print(number, flush=True)
"""


def content(number: int) -> bytes:
    return random.Random(number).randbytes(1 + number * 997 % 300_000)


@XML_LATER
def test_after_killing_everything_every_closed_file_is_whole(story: Story, sources: Path) -> None:
    story.expect(f"cp -r {sources} sources")
    closed = kill_everything_under_a_writer(story)
    story.cluster.clear_dead_mounts()
    story.cluster.start()
    story.cluster.mount(story.mountpoint)

    story.expect(f"diff -r {sources} sources")
    for number in range(closed):
        assert (story.mountpoint / f"closed-{number}").read_bytes() == content(number), number
    last = story.mountpoint / f"closed-{closed}"
    if last.exists():  # its close() has not returned: nothing of it or all of it
        assert last.read_bytes() in (b"", content(closed))
    assert not (story.mountpoint / f"closed-{closed + 1}").exists()
    wait_until(lambda: story.shell("echo on > again.txt").status == 0, 10, "writes are possible again")


def kill_everything_under_a_writer(story: Story) -> int:
    """Kill all processes while files are written; return how many files were closed without an error."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=story.mountpoint,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert writer.stdout is not None
    try:
        for line in writer.stdout:
            if int(line) >= 20:
                break
        processes = [
            story.cluster.process(name)
            for name in (*story.cluster.mount_names(), *story.cluster.server_names)
        ]
        for process in processes:
            process.signal(signal.SIGKILL)
        assert all(process.wait(10) for process in processes), "who still dies would not be started again"
        rest = writer.stdout.read().split()
        writer.wait(30)
    finally:
        writer.kill()
        writer.wait()
    return int(rest[-1]) + 1 if rest else 21
