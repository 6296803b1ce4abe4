"""A whole cluster on this machine: its state directory, its server processes, its mounts.

The state directory holds everything, so that any later call finds the cluster again:

    cluster.toml        the configuration that all servers read (wire.config)
    meta/ data-1/ ...   the servers' own directories
    logs/NAME.log       what each process printed
    run/NAME.json       its pid file
    lock                held while a command changes what runs

It must not know what the servers do. What dies stays down until it is started again. A LocalCluster
belongs to one thread; several processes may use the same state directory (take `lock`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dataserver.directory import empty
from dataserver.durable import write_file
from tools import mounts
from tools.addresses import check_address, is_elsewhere
from tools.processes import (
    LOOK_SECONDS,
    ClusterError,
    Process,
    ProcessRecord,
    State,
    python_command,
    python_environment,
    stop_all,
)
from tools.state_directory import (
    CONFIG_NAME,
    locked,
    new_configuration,
    refuse_strangers,
    remove_contents,
)
from wire.config import ClusterConfig, ConfigError, DataServerConfig, Encoding, dumps, load
from wire.directories import make_directory
from wire.quorum import Quorum

READY_SECONDS = 20.0
STOP_SECONDS = 10.0
SUPERVISE = "--supervise"
"""With this option, fusefs runs itself without it, and again whenever that dies."""


class ProcessStatus(NamedTuple):
    """How one process of the cluster is. `address` is a server's address or a mount's mount point.

    `elsewhere`: it does not run here, and its address is another machine's.
    """

    name: str
    state: State
    pid: int | None
    address: str
    elsewhere: bool = False


class LocalCluster:
    """The servers "metaserver", "data-1" to "data-N", "mediator" (and
    "mediator-2" and so on), and mounts "mount-1" and so on.

    As a context manager it ends everything at the exit, mounts first, whatever state it is in.
    """

    def __init__(self, directory: Path, config: ClusterConfig) -> None:
        self.directory = directory
        self.config = config
        self.config_file = directory / CONFIG_NAME
        self._processes: dict[str, Process] = {}
        self._made_directory = False

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        servers: int = 5,
        mediators: int = 1,
        read_quorum: int = 3,
        write_quorum: int = 5,
        rpc: Encoding = "msgpack",
        **settings: Any,
    ) -> LocalCluster:
        """Make the state directory of a new cluster, with free ports. Nothing is started.

        Args:
            directory: must not exist, or be empty.
            mediators: so many side by side.
            servers: N; `read_quorum` is Qr and `write_quorum` Qw.
            rpc: the encoding that the parts use among themselves.
            settings: other fields of ClusterConfig, as `lease_seconds` or `deadlines`.

        Raises:
            ConfigError: a setting that cannot work, or a directory that has something else in it.
        """
        directory = directory.resolve()
        try:
            quorum = Quorum(servers, read_quorum, write_quorum)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        try:
            made = not directory.exists()
            refuse_strangers(directory)
            config = new_configuration(directory, quorum, mediators, rpc, settings)
            make_directory(directory)
            with locked(directory):
                refuse_strangers(directory)
                cluster = cls(directory, config)
                cluster._made_directory = made
                cluster._write()
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be made: {error.strerror}") from None
        return cluster

    def _write(self) -> None:
        """Fill the directory of a new cluster: all of it, or nothing stays.

        The configuration comes first: what is killed after it has made a cluster, before it nothing.
        """
        try:
            write_file(self.config_file, dumps(self.config, self.directory).encode())
            for name in ("meta", *(f"data-{s.number}" for s in self.config.data_servers)):
                (self.directory / name).mkdir(exist_ok=True)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove all of a cluster that was just made: its directory too, unless that was there before."""
        remove_contents(self.directory)
        if self._made_directory:
            self.directory.rmdir()

    @classmethod
    def open(cls, directory: Path) -> LocalCluster:
        """Find an existing cluster again. Raises ConfigError."""
        directory = directory.resolve()
        return cls(directory, load(directory / CONFIG_NAME))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all mounts, in use or not, then all servers."""
        with ExitStack() as stack:
            stack.callback(self.stop)
            for name in self.server_names:
                self.process(name).signal(signal.SIGCONT)
            for name in self.mount_names():
                stack.callback(self.unmount, name, force=True)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other commands from changing what runs in the meantime.

        Raises:
            ClusterError: another command holds the lock.
        """
        return locked(self.directory)

    # What there is

    @property
    def mediator_names(self) -> list[str]:
        """The names of all mediators: "mediator", "mediator-2" and so on."""
        more = range(2, len(self.config.mediators) + 1)
        return ["mediator", *(f"mediator-{number}" for number in more)]

    @property
    def server_names(self) -> list[str]:
        """The names of all servers, in the order in which people read them."""
        return [*self.mediator_names, "metaserver", *(f"data-{s.number}" for s in self.config.data_servers)]

    def mount_names(self) -> list[str]:
        """Return the names of the mounts that were made and not unmounted."""
        names = sorted(file.stem for file in (self.directory / "run").glob("mount-*.json"))
        return [name for name in names if self.process(name).record() is not None]

    def mounts_inside_out(self) -> list[str]:
        """Return the names of the mounts in an order in which they can be unmounted: one on another first.

        Before all stand those in use, so that what refuses to go does so while all others are still there.
        """
        records = {name: self.process(name).record() for name in self.mount_names()}
        places = {name: Path(record.place) for name, record in records.items() if record}
        return sorted(places, key=lambda name: (not mounts.users_of(places[name]), -len(places[name].parts)))

    def address(self, name: str) -> str:
        """Return where a server listens."""
        if name in self.mediator_names:
            return self.config.mediators[self.mediator_names.index(name)]
        if name == "metaserver":
            return self.config.metaserver_listen
        return self._data_server(name).listen

    def log_file(self, name: str) -> Path:
        """Return where a process logs to."""
        return self.directory / "logs" / f"{name}.log"

    def process(self, name: str) -> Process:
        """Return the process of that name, up or down. Raises ConfigError if there is no such name."""
        if name not in self.server_names and not name.startswith("mount-"):
            raise ConfigError(f"there is no {name} in this cluster; choose of {', '.join(self.server_names)}")
        if name not in self._processes:
            pid_file = self.directory / "run" / f"{name}.json"
            self._processes[name] = Process(name, pid_file, self.log_file(name), self._is_own_process)
        return self._processes[name]

    def state(self, name: str) -> State:
        """Tell whether a process is running, paused or down now."""
        return self.process(name).state()

    def status(self) -> list[ProcessStatus]:
        """Tell how each server and each mount is now; asks the operating system only."""
        found = []
        for name in [*self.server_names, *self.mount_names()]:
            process = self.process(name)
            record = process.record()
            if name in self.server_names:
                address, state = self.address(name), process.state()
                elsewhere = state == "down" and is_elsewhere(address)
                found.append(ProcessStatus(name, state, process.pid(), address, elsewhere))
            elif record is not None:
                found.append(ProcessStatus(name, process.state(), process.pid(), record.place))
        return found

    # Servers

    def start(self, *names: str, deadline_seconds: float = READY_SECONDS) -> list[str]:
        """Start servers that are down (without names: all), all at once, and wait until each is ready.

        Returns:
            The names of those that this call started.

        Raises:
            ConfigError, ClusterError: one could not be started; then none of this call is left running.
        """
        started, failed = self._start(names or self.server_names, deadline_seconds)
        if failed:
            self._kill_all(started)
            raise next(iter(failed.values()))
        return started

    def start_enough(self, deadline_seconds: float = READY_SECONDS) -> tuple[list[str], dict[str, Exception]]:
        """Start all servers that are down, and do without data servers that cannot start: Qr are enough.

        Returns:
            The names of those that this call started, and for each data server that is not ready, why not;
            one that only takes its time is left at it.

        Raises:
            ConfigError, ClusterError: as `start`, for any other server, or when fewer than Qr would be up.
        """
        started, failed = self._start(self.server_names, deadline_seconds)
        ready = [s for s in self.config.data_servers if f"data-{s.number}" not in failed]
        others = [error for name, error in failed.items() if not name.startswith("data-")]
        if others or len(ready) < self.config.quorum.read:
            self._kill_all(started)
            raise next(iter(others or failed.values()))
        for name in failed:
            self.process(name).forget()
        return [name for name in started if self.state(name) != "down"], failed

    def _start(self, names: Sequence[str], deadline_seconds: float) -> tuple[list[str], dict[str, Exception]]:
        """Start those that are down; return whom this call spawned, and who is not ready for what reason.

        Raises:
            ConfigError: an address is taken. Nothing was started then.
        """
        down = [name for name in names if self.state(name) == "down"]
        for name in down:
            self._check_address(name)
        end = time.monotonic() + deadline_seconds
        failed: dict[str, Exception] = {}
        try:
            for name in down:
                self.process(name).spawn(self._command(name), python_environment())
            for name in down:
                try:
                    self.process(name).await_ready(max(0.0, end - time.monotonic()))
                except (ConfigError, ClusterError) as error:
                    failed[name] = error
        except BaseException:
            self._kill_all(down)  # of which an interrupt may have come right after the last one's start
            raise
        return down, failed

    def _check_address(self, name: str) -> None:
        """Return when a server can listen here. A cluster whose servers start elsewhere does not look."""
        check_address(name, self.address(name), self.config_file)

    def stop(self, *names: str, deadline_seconds: float = STOP_SECONDS) -> list[str]:
        """Drain and end servers (without names: all). Returns those that had to be killed."""
        return stop_all([self.process(name) for name in names or self.server_names], deadline_seconds)

    def kill(self, name: str) -> None:
        """End a process at once with SIGKILL, as a crash would, and wait until it has ended.

        Raises:
            ConfigError: it is down as far as is known here, and may run elsewhere, or be run by others.
        """
        if name in self.server_names and self.state(name) == "down":
            try:
                self._check_address(name)
            except ConfigError:
                raise ConfigError(
                    f"{name}, at {self.address(name)}, was not started from {self.directory}; "
                    "end it where it was started"
                ) from None
        self._kill_all([name])

    def pause(self, name: str) -> None:
        """Stop a process with SIGSTOP: it keeps its connections and answers nothing."""
        self._signal_running(name, signal.SIGSTOP)
        while self.state(name) == "running":
            time.sleep(LOOK_SECONDS)

    def resume(self, name: str) -> None:
        """Let a paused process go on."""
        self._signal_running(name, signal.SIGCONT)

    def restart(self, name: str, *, blank: bool = False) -> None:
        """Stop a server if it is up, and start it; with `blank`, on an emptied directory.

        Raises:
            ConfigError: `blank` for another than a data server: that would lose what exists once only.
            ConfigError: nor a directory that is not this data server's, or that another process serves.
            ClusterError: its directory cannot be emptied; it stays down.
        """
        self.address(name)  # a mount has none: it is not ended only to be found so
        if blank and not name.startswith("data-"):
            raise ConfigError(f"{name} cannot be started blank: only data servers have copies elsewhere")
        self.stop(name)
        if blank:
            self._empty(name)
        self.start(name)

    # Mounts

    def mount(
        self, mountpoint: Path, *options: str, deadline_seconds: float = READY_SECONDS, **environment: str
    ) -> str:
        """Mount the cluster on an existing empty directory; `options` and `environment` are for fusefs.

        Returns:
            The mount's name, as "mount-1".

        Raises:
            ConfigError: nothing can be mounted there.
            ClusterError: the mount did not come up.
        """
        mountpoint = mounts.place_of(mountpoint)
        self.clear_dead_mounts()
        mounts.check_fuse()
        mounts.check_mountpoint(mountpoint)
        taken = self.mount_names()
        name = next(f"mount-{k}" for k in range(1, len(taken) + 2) if f"mount-{k}" not in taken)
        command = [*python_command("fusefs"), "--config", str(self.config_file), *options, str(mountpoint)]
        served_by = [word for word in command if word != SUPERVISE]
        keeps = served_by if SUPERVISE in options else []
        process = self.process(name)
        try:
            process.spawn(command, {**python_environment(), **environment}, str(mountpoint), keeps)
            process.await_ready(deadline_seconds)
        except BaseException:
            self.unmount(name, force=True)
            raise
        return name

    def unmount(self, name: str, *, force: bool = False) -> None:
        """Unmount, and wait until everything written is committed and the process has ended.

        Args:
            name: as `mount` returned it.
            force: also while it is in use, or when its process does not end by itself.

        Raises:
            ClusterError: it is in use, or another user's, or its process does not end; it stays mounted or
                goes on then.
        """
        process = self.process(name)
        process.require_permission()
        record = process.record()
        place = Path(record.place) if record is not None else None
        if force:
            process.signal(signal.SIGCONT)
        if place is not None and self._has_mounted(place):
            _unmount(place, force)
        elif not force:
            mounts.refuse_elsewhere(name, process.pid(), place)
        if not process.wait(STOP_SECONDS if force else mounts.UNMOUNT_SECONDS):
            if not force:
                raise ClusterError(
                    f"{name} is unmounted but still writes; try again when it has ended, or use --force"
                )
            stop_all([process], STOP_SECONDS)
            if place is not None and self._has_mounted(place):
                mounts.unmount(place, lazy=True)
        process.forget()

    def clear_dead_mounts(self) -> None:
        """Unmount what mounts that died have left behind."""
        for name in self.mount_names():
            if self.state(name) == "down":
                self.unmount(name, force=True)

    # How

    def _has_mounted(self, place: Path) -> bool:
        """Tell whether this cluster is mounted there, or was by a process that died: not another by now."""
        mount = mounts.mount_at(place)
        if mount is None or mount.type != mounts.TYPE:
            return False
        file = mounts.config_of_mount(place)
        return file is None or self._is_own(file)

    def _is_own_process(self, record: ProcessRecord) -> bool:
        """Tell whether a pid file is not one that was copied here with another cluster's directory."""
        words = record.command
        return "--config" not in words or self._is_own(Path(words[words.index("--config") + 1]))

    def _is_own(self, config_file: Path) -> bool:
        """Tell whether a process with that configuration is this cluster's; its directory may have moved."""
        try:
            return config_file.parent.samefile(self.directory)
        except OSError:
            return True

    def _data_server(self, name: str) -> DataServerConfig:
        number = name.removeprefix("data-")
        for server in self.config.data_servers:
            if str(server.number) == number:
                return server
        raise ConfigError(f"there is no {name} in this cluster; choose of {', '.join(self.server_names)}")

    def _command(self, name: str) -> list[str]:
        config = ["--config", str(self.config_file)]
        if name.startswith("data-"):
            number = self._data_server(name).number
            return [*python_command("dataserver"), *config, "--number", str(number), "--lab"]
        if name in self.mediator_names:
            number = self.mediator_names.index(name) + 1
            return [*python_command("mediator"), *config, "--number", str(number)]
        return [*python_command(name), *config]

    def _empty(self, name: str) -> None:
        place = self._data_server(name)
        try:
            empty(place.directory, self.config.cluster, place.number)
        except OSError as error:
            raise ClusterError(
                f"{place.directory} of {name} cannot be emptied, and {name} is down: {error}"
            ) from None

    def _kill_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.process(name).signal(signal.SIGKILL)
        for name in names:
            if not self.process(name).wait(STOP_SECONDS):
                raise ClusterError(f"{name} did not end within {STOP_SECONDS:g} s of a SIGKILL")
            if not name.startswith("mount-"):
                self.process(name).forget()

    def _signal_running(self, name: str, number: signal.Signals) -> None:
        if not self.process(name).signal(number):
            raise ClusterError(f"{name} is down")


def _unmount(place: Path, force: bool) -> None:
    try:
        mounts.unmount(place)
    except ClusterError:
        if not force:
            raise
        with suppress(ClusterError):
            mounts.unmount(place, lazy=True)
