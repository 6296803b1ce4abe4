"""Processes are found again by pid and start time, and only they are signalled."""

from __future__ import annotations

import errno
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until
from tools import processes
from tools.processes import ClusterError, Process, boot_id, stop_all
from wire.config import ConfigError

SLEEP = "import signal; print('ready', flush=True); print('ready toy 0 here', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP

LEADERLESS = """
import ctypes, os, platform, threading
from pathlib import Path

def rest() -> None:
    print('ready toy 0 here', flush=True)
    with open('NAME') as fifo:
        fifo.read()
    os._exit(0)

threading.Thread(target=rest).start()
ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)  # exit of this thread
"""
"""Its first thread ends at once; another one goes on until something is written to a FIFO."""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    toy = Process("toy", tmp_path / "toy.json", tmp_path / "toy.log")
    yield toy
    toy.signal(signal.SIGKILL)
    toy.wait(5)


def spawn(process: Process, script: str) -> None:
    process.spawn([sys.executable, "-c", script], os.environ)


def test_a_process_is_found_again_by_another_object(process: Process) -> None:
    spawn(process, SLEEP)
    assert process.await_ready(10) == "ready toy 0 here"
    again = Process("toy", process.pid_file, process.log_file)
    assert again.state() == "running"
    assert again.signal(signal.SIGSTOP)
    wait_until(lambda: process.state() == "paused", 5, "the process is paused")
    assert stop_all([again], 5) == []
    assert process.state() == "down"
    assert not process.pid_file.exists()


def test_what_ignores_sigterm_is_killed(process: Process) -> None:
    spawn(process, STUBBORN)
    process.await_ready(10)
    assert stop_all([process], 0.3) == ["toy"]
    assert process.state() == "down"


def test_a_process_has_ended_when_all_of_its_threads_have(process: Process, tmp_path: Path) -> None:
    """Killed while another thread waited for a disk, a data server held its directory for a moment more."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    spawn(process, LEADERLESS.replace("NAME", str(fifo)))
    process.await_ready(10)
    pid = process.pid()
    wait_until(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text(), 10, "its first thread has ended")
    assert process.state() == "running"
    assert not process.wait(0)
    fifo.write_text("end")
    assert process.wait(10)
    assert process.state() == "down"


def test_a_reused_pid_is_never_signalled(process: Process) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.DEVNULL) as bystander:
        record = {"pid": bystander.pid, "start_ticks": 1, "boot": boot_id(), "command": [], "place": ""}
        process.pid_file.write_text(json.dumps(record))
        assert process.state() == "down"
        assert not process.signal(signal.SIGKILL)
        assert process.wait(0)
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_torn_pid_file_means_down(process: Process, content: str) -> None:
    process.pid_file.write_text(content)
    assert process.state() == "down"


def test_an_early_end_with_status_2_is_a_bad_setting(process: Process) -> None:
    spawn(process, "import sys; sys.exit(2 if print('it is wrong; do this', file=sys.stderr) else 2)")
    with pytest.raises(ConfigError, match="it is wrong; do this"):
        process.await_ready(10)


def test_an_early_end_shows_the_last_line_of_this_run(process: Process) -> None:
    process.log_file.write_text("ready toy 0 long ago\n")
    spawn(process, "raise SystemExit('gone')")
    with pytest.raises(ClusterError, match=r"status 1.*gone"):
        process.await_ready(10)


def test_not_ready_in_time(process: Process) -> None:
    spawn(process, "import signal; signal.pause()")
    with pytest.raises(ClusterError, match="not ready within"):
        process.await_ready(0.1)


def test_a_running_process_is_not_started_twice(process: Process) -> None:
    spawn(process, SLEEP)
    with pytest.raises(ClusterError, match="runs already"):
        spawn(process, SLEEP)


def test_what_no_pid_file_can_tell_of_is_not_left_running(process: Process) -> None:
    """As when the disk is full: no later call would find it, and its address would be taken for good."""
    process.pid_file.with_suffix(".new").symlink_to("/dev/full")
    before = children_of(os.getpid())
    with pytest.raises(ClusterError, match="No space left"):
        spawn(process, SLEEP)
    assert process.state() == "down"
    assert children_of(os.getpid()) == before


def test_an_interrupt_while_a_process_is_started_comes_when_it_can_be_found(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its start and its pid file nobody but the interrupted call knows of it."""

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *words: object, **options: object) -> None:
            super().__init__(*words, **options)  # type: ignore[call-overload]
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(processes.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), processes.interruptible():
        spawn(process, SLEEP)
    assert process.state() == "running"


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_process_of_another_user_is_told_to_be(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    process.require_permission()
    spawn(process, SLEEP)
    process.require_permission()
    with monkeypatch.context() as patched:
        patched.setattr(signal, "pidfd_send_signal", refuse)
        user = pwd.getpwuid(os.getuid()).pw_name
        with pytest.raises(ClusterError, match=f"toy runs as {user}; do this as that user"):
            process.signal(signal.SIGTERM)
        with pytest.raises(ClusterError, match="toy runs as"):
            process.require_permission()
    assert process.state() == "running"


def test_a_pid_file_that_is_anothers_means_down(process: Process) -> None:
    spawn(process, SLEEP)
    copied = Process("toy", process.pid_file, process.log_file, lambda record: False)
    assert copied.state() == "down"
    assert not copied.signal(signal.SIGKILL)
    assert copied.record() is None
    assert process.state() == "running"
