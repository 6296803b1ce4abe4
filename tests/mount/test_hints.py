"""What a command says to do can be typed as it is: with the --state that it had, and paths quoted."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import run_command
from tools.cluster import LocalCluster
from wire.config import ConfigError

STATE = "my state"
PLACE = "my files"


@pytest.fixture
def here(tmp_path: Path, fuse_device: None) -> Iterator[Path]:
    """A directory to type commands in; the cluster in it is ended."""
    yield tmp_path
    with suppress(ConfigError):
        LocalCluster.open(tmp_path / STATE).close()


def said(here: Path, words: str) -> str:
    """Type a command that cannot work; return its one line."""
    done = run_command(here, *shlex.split(words), "--state", STATE)
    assert done.returncode in (1, 2), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_hints_can_be_typed_as_they_are(here: Path) -> None:
    up = ["up", PLACE, "--state", STATE, "--servers", "3"]
    refused = run_command(here, *up).stderr
    assert f"mkdir '{here / PLACE}'" in refused
    (here / PLACE).mkdir()
    assert run_command(here, *up).returncode == 0
    typed = f"--state '{STATE}'"
    for words, hint in (
        ("quarantine purge", f"quarantine list {typed}"),
        ("quarantine show none", f"quarantine list {typed}"),
        (f"explain '{here / PLACE}/no/none'", f"ls '{here / PLACE}/no'"),
        ("fault restart mount-1", f"up '{here / PLACE}' {typed}"),
        (f"explain '{here / PLACE}/{'n' * 256}'", f"status {typed}"),
    ):
        assert hint in said(here, words)
    cluster = LocalCluster.open(here / STATE)
    for name in ("data-2", "mount-1"):
        cluster.kill(name)
    for action in ("pause", "resume"):
        assert f"fault restart 2 {typed}" in said(here, f"fault {action} 2")
        assert f"up '{here / PLACE}' {typed}" in said(here, f"fault {action} mount-1")
    cluster.pause("metaserver")
    try:
        silent = said(here, "fsck")
        assert f"fault resume metaserver {typed}" in silent
        assert f"down {typed}" in silent
    finally:
        cluster.process("metaserver").signal(signal.SIGCONT)


def test_what_servers_say_to_do_can_be_typed_as_it_is(here: Path) -> None:
    """They do not know how they were found; the command that shows what they say does."""
    (here / PLACE).mkdir()
    assert run_command(here, "up", PLACE, "--state", STATE, "--servers", "3").returncode == 0
    (here / PLACE / "file").touch()
    assert run_command(here, "fault", "terminate", "1", "--state", STATE).returncode == 0
    with pytest.raises(OSError):
        (here / PLACE / "file").write_text("refused")
    for words in (["status"], ["explain", f"{PLACE}/file"]):
        told = run_command(here, *words, "--state", STATE).stdout
        assert told.count(f"`quorumfs up --state '{STATE}'`") == 2, told  # why not now, and why not then
        assert "`quorumfs up`" not in told
    assert (
        f"`quorumfs up --state '{STATE} 2'` makes one"
        in run_command(here, "status", "--state", f"{STATE} 2").stderr
    )


def test_a_state_directory_too_deep_for_a_database_is_told(here: Path) -> None:
    deep = here.joinpath(*["d" * 100] * 6)
    done = run_command(here, "up", "--servers", "1", "--state", str(deep))
    assert done.returncode == 2
    assert "bytes long, and a database can have 504 at most; choose a shorter one" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(here.rglob("meta")) == []
