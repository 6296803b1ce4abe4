"""A command ends with its status and one line of error at most, whatever its output and whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import ROOT, run_command
from tools import cli, lifecycle
from tools.cluster import LocalCluster
from tools.processes import ClusterError, interruptible
from wire.config import ConfigError


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A directory with a cluster in it that was never started; whatever runs in the end is ended."""
    LocalCluster.create(tmp_path / "ü", servers=1, read_quorum=1, write_quorum=1)
    yield tmp_path
    for name in ("ü", ".quorumfs"):
        with suppress(ConfigError):
            LocalCluster.open(tmp_path / name).close()


def shell(here: Path, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `quorumfs WORDS` as "$@" in a shell script."""
    command = ["sh", "-c", script, "sh", sys.executable, "-P", "-m", "tools.cli", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=here, env=env, capture_output=True, timeout=60, check=False)


def test_closed_output(here: Path) -> None:
    for script in ('"$@" >&-', '"$@" >&- 2>&-'):
        done = shell(here, script, "config", "--state", "ü")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("words", [["df", "--json"], ["fsck"], ["config"], ["status"]])
def test_a_reader_that_went_away_is_no_failure(here: Path, words: list[str]) -> None:
    with LocalCluster.open(here / "ü") as cluster:
        cluster.start()
        reader, writer = os.pipe()
        os.close(reader)
        try:
            command = [sys.executable, "-P", "-m", "tools.cli", *words, "--state", str(here / "ü")]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, check=False)
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")


def test_output_to_a_full_disk(here: Path) -> None:
    for words in (["config", "--state", "ü"], ["up", "--help"]):
        done = shell(here, '"$@" >/dev/full', *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
        assert b"No space left" in done.stderr


def test_output_in_an_encoding_that_lacks_a_character(here: Path) -> None:
    done = shell(here, '"$@"', "config", "--state", "ü", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xfc" in done.stdout


def test_output_in_the_c_locale(here: Path) -> None:
    """Names are printed as the bytes that they are, whether Python knew them as such or not."""
    done = shell(here, '"$@"', "config", "--state", "ü", LC_ALL="C", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "ü".encode() in done.stdout
    script = "from tools import cli; cli._prepare_output(); print('\\xfc', '\\udcc3\\udcbc')"
    done = shell(here, f'"$1" -P -c "{script}"', LC_ALL="C", PYTHONUTF8="0")
    assert (done.stdout, done.stderr) == ("ü ü\n".encode(), b"")


@pytest.mark.usefixtures("heeded_endings")
def test_a_command_that_is_ended_while_it_is_loaded() -> None:
    """It showed where in the imports it was."""
    script = (
        "import os, signal, sys\n"
        "class Ctrl_C:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'wire.config':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Ctrl_C())\n"
        "sys.argv[1:] = ['--version']\n"
        "from tools.command import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, b"", b"")


def test_the_log_that_an_error_names_is_there(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fuse_device: None
) -> None:
    """A new cluster that does not start is taken back with its logs."""
    started = LocalCluster.start

    def fail(cluster: LocalCluster) -> list[str]:
        started(cluster)
        raise ClusterError(f"data-1 ended at its start; see {cluster.log_file('data-1')}")

    monkeypatch.setattr(LocalCluster, "start", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    monkeypatch.chdir(here)
    assert cli.main(["up", "--servers", "1", "--state", "new"]) == 1
    named = Path(capsys.readouterr().err.split("see ")[1].strip())
    assert not (here / "new").exists()
    assert named.parent.parent == here
    assert "ready" in named.read_text()


def test_what_the_operating_system_refuses_is_told_in_one_line(here: Path) -> None:
    (here / "ü" / "lock").unlink()
    (here / "ü" / "lock").mkdir()
    for words, said in (
        (["down", "--state", "ü"], "lock: Is a directory"),
        (["up", "--state", "x" * 300], "too long"),
    ):
        done = run_command(here, *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
        assert said in done.stderr


@pytest.mark.usefixtures("heeded_endings")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_up_that_is_ended_takes_all_back(
    here: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, fuse_device: None
) -> None:
    """However often: the second one comes while it stops what it has started."""
    stop, ended = LocalCluster.stop, []

    def end(cluster: LocalCluster) -> None:
        assert cluster.state("data-1") == "running"
        signal.raise_signal(number)

    def end_again(cluster: LocalCluster, *names: str) -> list[str]:
        signal.raise_signal(number)
        ended.append(names)
        return stop(cluster, *names)

    before = signal.getsignal(number)
    monkeypatch.setattr(lifecycle, "await_writable", end)
    monkeypatch.setattr(LocalCluster, "stop", end_again)
    monkeypatch.chdir(here)
    assert cli.main(["up", "--servers", "1"]) == 128 + signal.SIGINT
    assert [path.name for path in here.iterdir()] == ["ü"]
    assert len(ended) == 1
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As below nohup, where work goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
