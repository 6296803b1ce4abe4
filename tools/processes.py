"""One long-lived process of a local cluster: spawned, found again later, signalled, awaited.

A process is known by its pid *and* its start time and the boot that they belong to, kept in a pid file,
and it is signalled through a pidfd: a pid that was given to another program is never signalled. Whether
it was this call or an earlier one of the command line that started it makes no difference. A process that
keeps another one running is one with it: both are signalled, and it has ended when both have, in whatever
order. It must not know what the process does. One Process object belongs to one thread.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import wire
from wire.config import ConfigError

State = Literal["running", "paused", "down"]

LOOK_SECONDS = 0.01
"""A log is looked at for the ready line so often; the end of the process is noticed at once."""

EXIT_BAD_SETTING = 2


class ClusterError(Exception):
    """Something of a local cluster did not work. The message is one line for people; exit status 1."""


@dataclass(frozen=True)
class ProcessRecord:
    """What a pid file holds.

    `place` is the mount point of a mount, else "". `keeps` is the command of another process that it keeps
    running, empty if it does not.
    """

    pid: int
    start_ticks: int
    boot: str
    command: list[str]
    place: str = ""
    keeps: list[str] = field(default_factory=list)


class Process:
    """A process by name, with its pid file and its log file.

    Args:
        is_own: tells of what a pid file holds whether it is of this process: the file may have been copied.
    """

    def __init__(
        self,
        name: str,
        pid_file: Path,
        log_file: Path,
        is_own: Callable[[ProcessRecord], bool] = lambda record: True,
    ) -> None:
        self.name = name
        self.pid_file = pid_file
        self.log_file = log_file
        self._is_own = is_own
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def record(self) -> ProcessRecord | None:
        """Return what the pid file says, or None if there is none that can be read, or it is not ours."""
        try:
            record = ProcessRecord(**json.loads(self.pid_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return record if self._is_own(record) else None

    def state(self) -> State:
        """Tell whether the process runs now; a zombie is down."""
        pid = self.pid()
        letter = "X" if pid is None else _stat(pid)[0]
        if letter in "ZX":
            return "down"
        return "paused" if letter in "Tt" else "running"

    def pid(self) -> int | None:
        """Return the process that lives, None if it is down; what it kept running, if that alone is left."""
        return next(self._living(), None)

    def _living(self) -> Iterator[int]:
        """Yield what lives: the process, and then what it keeps running."""
        record = self.record()
        if record is None or record.boot != boot_id():
            return
        letter, start_ticks = _stat(record.pid)
        if start_ticks == record.start_ticks and letter not in "ZX":
            yield record.pid
        if record.keeps:
            for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
                if command_of(pid) == record.keeps:
                    letter, start_ticks = _stat(pid)
                    if start_ticks >= record.start_ticks and letter not in "ZX":
                        yield pid

    def spawn(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        place: str = "",
        keeps: Sequence[str] = (),
    ) -> None:
        """Start the process in a session of its own and in /, with standard output and error in the log.

        Args:
            command: what to run. Paths in it are absolute.
            environment: with these variables alone.
            place: the mount point of a mount.
            keeps: the command that it runs in turn, and again whenever that dies.

        Raises:
            ClusterError: it runs already, or cannot be started.
        """
        if self.state() != "down":
            raise ClusterError(f"{self.name} runs already")
        self._child = None
        command = [*self._before_command(), *command]
        with uninterrupted():
            try:
                for file in (self.log_file, self.pid_file):
                    file.parent.mkdir(exist_ok=True)
                with self.log_file.open("ab") as log:
                    self._log_start = log.tell()
                    self._child = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=dict(environment),
                        cwd="/",  # it keeps no file system busy that it does not use
                        start_new_session=True,
                    )
                self._note(self._child.pid, command, place, keeps)
            except OSError as error:
                self._take_back()
                where = f"{os.fsdecode(error.filename)}: " if error.filename else f"{self.pid_file}: "
                raise ClusterError(
                    f"{self.name} cannot be started: {where}{error.strerror}; mend that, then try again"
                ) from None

    def _before_command(self) -> list[str]:
        """Return what is to run the command, in a place that is not this one."""
        return []

    def _note(self, pid: int, command: Sequence[str], place: str, keeps: Sequence[str]) -> None:
        """Write the pid file."""
        record = ProcessRecord(pid, _stat(pid)[1], boot_id(), list(command), place, list(keeps))
        partial = self.pid_file.with_suffix(".new")
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(self.pid_file)

    def _take_back(self) -> None:
        """End a process that was just started and that no later call would find: it has no pid file."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self.pid_file.with_suffix(".new").unlink(missing_ok=True)

    def await_ready(self, deadline_seconds: float) -> str:
        """Wait for the ready line of the process that `spawn` started, and return it.

        Raises:
            ConfigError: it ended with exit status 2; the message is its last line.
            ClusterError: it ended otherwise, or was not ready in time.
        """
        end = time.monotonic() + deadline_seconds
        while True:
            ended = self.wait(LOOK_SECONDS)
            lines = self.log_since_spawn().splitlines()
            ready = next((line for line in lines if line.startswith("ready ")), None)
            if ready is not None and not ended:
                return ready
            if ended:
                raise self._early_end(lines)
            if time.monotonic() > end:
                raise ClusterError(
                    f"{self.name} was not ready within {deadline_seconds:g} s; look into {self.log_file}"
                )

    def _early_end(self, lines: list[str]) -> Exception:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        status = self._child.wait() if self._child is not None else None
        if status == EXIT_BAD_SETTING:
            return ConfigError(f"{self.name}: {last.removeprefix('quorumfs: ')}")
        return ClusterError(f"{self.name} ended at its start (status {status}): {last}; see {self.log_file}")

    def log_since_spawn(self) -> str:
        """Return what the process has logged since `spawn` in this object."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; tell whether there was a process to send it to.

        SIGTERM goes to the process alone, if it lives, which has what it keeps running end in order.
        """
        sent = False
        for pid in self._living():
            sent |= self._send(pid, number)
            if sent and number == signal.SIGTERM:
                break
        return sent

    def _send(self, pid: int, number: int) -> bool:
        handle = self._open(pid)
        if handle is None:
            return False
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise ClusterError(
                f"{self.name} runs as {_name_of_user(pid)}; do this as that user, or as root"
            ) from None
        finally:
            os.close(handle)
        return True

    def require_permission(self) -> None:
        """Raise ClusterError if it lives and this user may not end it."""
        for pid in self._living():
            self._send(pid, 0)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended; tell whether it has."""
        end = time.monotonic() + seconds
        while (pid := self.pid()) is not None:
            if not self._await_end(pid, end - time.monotonic()):
                return False
        return True

    def _await_end(self, pid: int, seconds: float) -> bool:
        handle = self._open(pid)
        if handle is None:
            return True
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            ended = bool(poll.poll(max(0.0, seconds) * 1000))
        finally:
            os.close(handle)
        if ended and self._child is not None:
            self._child.poll()
        return ended

    def forget(self) -> None:
        """Remove the pid file of a process that is down; on a disk that is read-only by now it stays.

        It tells of no other process later. Raises OSError.
        """
        if self._child is not None:
            self._child.poll()
        if self.state() == "down":
            try:
                self.pid_file.unlink(missing_ok=True)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise

    def _open(self, pid: int) -> int | None:
        """Return a pidfd of the very process that was found living, or None if it is down by now."""
        try:
            handle = os.pidfd_open(pid)
        except (ProcessLookupError, ValueError):
            return None
        if pid not in self._living():  # looked at after opening: the handle cannot come to mean another
            os.close(handle)
            return None
        return handle


def stop_all(processes: Sequence[Process], deadline_seconds: float) -> list[str]:
    """End processes with SIGTERM, all at once, and those that do not end in time with SIGKILL.

    Returns:
        The names of those that had to be killed.
    """
    for process in processes:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
    end = time.monotonic() + deadline_seconds
    killed = []
    for process in processes:
        if not process.wait(end - time.monotonic()):
            process.signal(signal.SIGKILL)
            process.wait(deadline_seconds)
            killed.append(process.name)
        process.forget()
    return killed


def python_command(module: str) -> list[str]:
    """Return how to run a module; -P keeps the working directory from being searched for modules."""
    return [sys.executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """Return this environment, in which Python finds the packages that this process runs from."""
    given = map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    paths = [Path(wire.__file__).parent.parent, *given]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path.absolute()) for path in paths)}


ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""How people end a command: Ctrl-C, kill, and closing the terminal."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does, so that what it started is stopped.

    That happens once: a second Ctrl-C would end the stopping half-way, and leave the rest running. A signal
    that was ignored, as below nohup, stays so. Main thread only.
    """
    heeded = [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have what would end the command in this block do so after it: what was begun can be found by then.

    In another thread than the main one, which no signal interrupts, this does nothing.
    """
    came: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in ENDINGS if callable(signal.getsignal(number))]
        previous = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def boot_id() -> str:
    """Return what tells this boot of the machine from every other one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def command_of(pid: int) -> list[str]:
    """Return the words of a process's command line, none if it has ended."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def user_of(pid: int) -> int | None:
    """Return the number of the user who started a process, whatever rights it got; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    (line,) = (line for line in status.splitlines() if line.startswith("Uid:"))
    return int(line.split()[1])


def _name_of_user(pid: int) -> str:
    """Return the name of the user who started a process, or the number if it has none."""
    number = user_of(pid)
    if number is None:
        return "another user"
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _stat(pid: int) -> tuple[str, int]:
    """Return a process's state letter and its start time in clock ticks since the boot: proc(5).

    It is no zombie before its last thread has ended.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "X", -1
    letter, *fields = text.rpartition(")")[2].split()
    if letter == "Z" and _has_threads(pid):
        letter = "R"
    return letter, int(fields[18])


def _has_threads(pid: int) -> bool:
    """Tell whether other threads outlive a process's first one: they hold its files and their locks still."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False
