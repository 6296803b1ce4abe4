"""A cluster's processes, started, killed and cut off in the simulation: their own `__main__`s, unchanged.

`World` is one simulated world: the loop, the network, the disks, the processes, and the log of events.
One thread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import inspect
import logging
import os
import random
import sqlite3
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any

import dataserver.__main__ as data_main
import dataserver.durable
import dataserver.segment
import mediator.__main__ as mediator_main
import mediator.milestones
import mediator.refill
import metaserver.__main__ as meta_main
import metaserver.service
import wire.blocking
import wire.client_msgpack
import wire.open_files
import wire.server
from fusefs.connect import connect
from metaserver import reserve
from metaserver.pages import ADVICE
from metaserver.room import FILE_PART
from tests.sim import rings, seams, settings, sqlite_files, threads
from tests.sim.clocks import Clocks
from tests.sim.disk import Disk
from tests.sim.loop import PROCESS, Process, SimLoop
from tests.sim.network import Listening, Network
from tests.sim.put_backs import PutBacks
from tests.sim.sockets import socket_type
from tests.sim.stand_ins import HostOs, LogEvents, NoLimits, look_up
from tests.sim.stops import Stops
from wire.config import ConfigError, dumps, load
from wire.errors import QuorumfsError
from wire.quorum import Quorum

DISK_SECONDS = 0.0005
READY_SECONDS = 20.0
CALLS_WAIT = 0.15
"""In so many lives."""


class Failure(Exception):
    """A promise was broken, or something happened that must not."""


class World:
    """Everything of one run. `events` is the timeline: (virtual seconds, what, detail)."""

    def __init__(self, seed: int, directory: Path, quorum: Quorum) -> None:
        self.rng = random.Random(seed)
        self._place = f"{directory}/"
        self.loop = SimLoop(self._disk_seconds)
        asyncio.set_event_loop(self.loop)
        self.events: list[tuple[float, str, str]] = []
        self._hash = hashlib.blake2b(digest_size=8)
        self.problems: list[str] = []
        self.clocks = Clocks(seed, self.note)
        self.network = Network(self.loop, self.rng, self.note)
        self.loop.network = self.network
        self.scheduler = threads.Scheduler(self.loop, self.rng)
        self.calls_wait = random.Random(f"patience of {seed}").random() < CALLS_WAIT
        """Whether calls wait for servers that are away, however long: their deadlines come sooner then."""
        self.config = settings.configure(self.rng, directory, quorum, self.calls_wait)
        self.mediators = [address.rpartition(":")[0] for address in self.config.mediators]
        self.config_file = directory / "cluster.toml"
        self.config_file.write_text(dumps(self.config))
        self.disks = {
            "meta": Disk(directory / "meta", self.rng),
            **{f"data-{k}": Disk(directory / f"data-{k}", self.rng) for k in range(1, quorum.servers + 1)},
        }
        self.processes: dict[str, Process] = {}
        self.all_processes: list[Process] = []
        self.ready: dict[str, asyncio.Future[str]] = {}
        self.ends: dict[str, asyncio.Event] = {}
        self.power_losses = 0
        self.faults_until = 0.0
        self._with_reserve: set[str] = set()
        """The servers that had a reserve when they began last: they must start on a full disk."""
        self._unburied: list[tuple[Process, bool]] = []
        """What failed in the middle of a write a moment ago, and whether its power did."""
        self.stops = Stops(seed, self)
        self.exiles: dict[str, float] = {}
        """Clients that are cut off for longer than their lease, and until when."""
        self.sync_probability = self.rng.choice([0.05, 0.4, 1.0])
        """How often a client makes what it writes durable; always, where all may lose power at once."""
        self.may_lose_all_power = self.sync_probability == 1.0
        self.about_locks = self.rng.random() < 0.08
        """Some lives are about locks that are lost: clients want little else, and are cut off with one."""
        self.put_backs = PutBacks(seed, self)
        self.with_shared = self.about_locks or (self.rng.random() < 0.6 and not self.put_backs.happen)
        """Whether clients also change files together; their syncs hide what was not made durable."""
        self.lost_answers, self.requests_twice = self.rng.choice([(0.0, 0.0), (0.05, 0.3), (0.25, 0.6)])
        """How often a change is carried out and its answer lost, or arrives once more, later."""
        self.told: list[str] = []
        """The names of files that were made, and not durably, for visitors to see."""
        self._install()

    def _disk_seconds(self) -> float:
        process = PROCESS.get()
        disk = self.disks.get(process.host) if process is not None else None
        return DISK_SECONDS * (0.2 + self.rng.expovariate(1.0)) * (disk.slow if disk is not None else 1.0)

    def note(self, what: str, detail: str = "") -> None:
        """Write down an event; where the files really are is left out."""
        detail = detail.replace(self._place, "")
        self.events.append((self.loop.now, what, detail))
        self._hash.update(f"{self.loop.now:.9f} {what} {detail}\n".encode())

    @property
    def event_hash(self) -> str:
        return self._hash.hexdigest()

    def problem(self, text: str) -> None:
        """Write down that something is wrong; the run goes on."""
        self.note("PROBLEM", text)
        self.problems.append(text)

    # seams

    def _install(self) -> None:
        wire.server._listen = lambda address: Listening(str(address))  # type: ignore[assignment]
        wire.blocking.MsgpackSocket = socket_type(self)  # type: ignore[misc, assignment]
        for main in (data_main, mediator_main, meta_main):
            main.serve = self._serve  # type: ignore[attr-defined]
        config = load(self.config_file)  # read once, for all starts
        data_main.load = mediator_main.load = lambda _: config  # type: ignore[attr-defined]
        dataserver.durable.punch_hole = self._punch_hole
        dataserver.segment.punch_hole = self._punch_hole  # type: ignore[attr-defined]
        mediator.milestones.PERIOD_SECONDS = self.put_backs.period_seconds
        settings.change_sizes(self.rng)
        self.late_commits = 0.1 if mediator.refill.INSPECTION_SECONDS == settings.OFTEN_SECONDS else 0.0
        service = metaserver.service.MetaService
        service.commit = self._held_back(service.commit)  # type: ignore[method-assign]
        sqlite_files.install(self._disk_of)
        wire.client_msgpack.look_up = look_up  # type: ignore[attr-defined]
        wire.open_files.resource = NoLimits()  # type: ignore[attr-defined]
        seams.install(
            self.loop.time,
            self.loop.wall_clock,
            self.scheduler.sleep,
            threads.make(self.scheduler),
            HostOs(self),
            self._open_file,
            self._connect_sqlite,
            self.rng,
        )
        rings.install(self.disks["meta"].root, self.rng.randbytes(8), self.scheduler.sleep)
        root = logging.getLogger()
        root.handlers[:] = [LogEvents(self)]
        root.setLevel(logging.INFO)
        logging.getLogger("asyncio").setLevel(logging.ERROR)

    def _held_back(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        """Some commits arrive so late that the data servers' blocks are looked through before."""

        @functools.wraps(commit)
        def late(service: Any, *args: Any, **more: Any) -> Any:
            if self.rng.random() >= self.late_commits:
                return commit(service, *args, **more)
            return later(service, *args, **more)

        async def later(service: Any, *args: Any, **more: Any) -> Any:
            self.note("fault", "a commit is held back")
            await asyncio.sleep(settings.OFTEN_SECONDS * (1 + self.rng.random() / 2))
            answer = commit(service, *args, **more)
            return await answer if inspect.isawaitable(answer) else answer

        return late

    def _connect_sqlite(self, *args: Any, **more: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(*args, **more)
        process = PROCESS.get()
        if process is not None:
            process.kept.append(connection)
        return connection

    def _open_file(self, path: Any, *more: Any) -> Any:
        process = PROCESS.get()
        disk = self.disks.get(process.host) if process is not None else None
        return (open if disk is None else disk.open_file)(path, *more)

    def _punch_hole(self, handle: int, offset: int, length: int) -> bool:
        disk = self.disk_here()
        size = os.fstat(handle).st_size
        end = min(offset + length, size)
        if end > offset:
            full, disk.full = disk.full, False
            disk.pwrite(handle, bytes(end - offset), offset)
            disk.full = full
        return True

    def _disk_of(self, path: str) -> Disk | None:
        found = (disk for disk in self.disks.values() if path.startswith(f"{disk.root}/"))
        return next(found, None)

    def disk_here(self) -> Disk:
        """Return the disk of the process that runs now."""
        process = PROCESS.get()
        assert process is not None, "only a process touches a disk"
        return self.disks[process.host]

    async def _serve(
        self,
        server: Any,
        address: str,
        stop: asyncio.Event | None = None,
        ended: asyncio.Event | None = None,
    ) -> None:
        process = PROCESS.get()
        assert process is not None
        real = await server.start(address)
        self.note("ready", process.name)
        self.put_backs.note_ready(process)
        if stop is not None:
            self.ends[process.name] = stop
        if not self.ready[process.name].done():
            self.ready[process.name].set_result(real)
        waiting = [asyncio.ensure_future(e.wait()) for e in (self.ends[process.name], ended) if e]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
        if ended is not None and ended.is_set() and not self._may_begin_anew(process):
            self.problem(f"{process.name} began anew: it held its database for an older one, or damaged")
        await server.drain()

    def _may_begin_anew(self, process: Process) -> bool:
        """Tell whether a server may close and open what it has: older metadata, or a damaged index."""
        if process.name == "meta":
            return self.put_backs.note_beginning_anew(process)
        disk = self.disks[process.host]
        damaged, disk.index_damaged = disk.index_damaged, False
        return damaged

    # processes

    def spawn(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> Process:
        """Start a process on the host of its name."""
        process = Process(name, name, self.clocks.of(name))
        self.processes[name] = process
        self.all_processes.append(process)
        self.ready[name] = self.loop.create_future()
        self.ends[name] = asyncio.Event()
        context = copy_context()
        context.run(PROCESS.set, process)
        task = context.run(self.loop.create_task, main())
        # In a context of nobody: who has it started may be a process itself, and be killed before it ends.
        task.add_done_callback(lambda done: self._ended(process, done), context=Context())
        self.note("start", name)
        return process

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        process.alive = False
        for action in process.at_end:
            action()
        if process.host in self.disks:
            self.disks[process.host].failure = None  # it was to end this process in a write
        if error is None:
            self.note("end", process.name)
        else:
            self.note("end", f"{process.name}: {type(error).__name__}: {error}")
            if not self.ready[process.name].done():
                self.ready[process.name].set_exception(Failure(f"{process.name}: {error}"))
                self.ready[process.name].exception()
            if isinstance(error, ConfigError) and self._may_end(process, str(error)):
                return  # it says so, and ends: what else could it do
            self.problem(f"{process.name} ended by itself: {type(error).__name__}: {error}")

    def _may_end(self, process: Process, said: str) -> bool:
        """Tell whether a server may refuse to start for its disk; never, if it advises to put a copy back."""
        disk = self.disks.get(process.host)
        if disk is None or ADVICE in said:
            return False
        if disk.fails or disk.sync_failed:
            return True
        return disk.full and process.name not in self._with_reserve

    def start(self, name: str) -> Process:
        """Start the server process of this name."""
        if (disk := self.disks.get(name)) is not None:
            disk.sync_failed = disk.index_damaged = False
            self._with_reserve.discard(name)
            if _size_of(disk.root / reserve.NAME) >= settings.RESERVE_BYTES // FILE_PART:
                self._with_reserve.add(name)
        if name == "meta":
            return self.spawn(name, lambda: meta_main.serve_metadata(self.config, self.config_file.parent))
        if name in self.mediators:
            number = self.mediators.index(name) + 1
            return self.spawn(name, lambda: mediator_main.main(self.config_file, number))
        number = int(name.removeprefix("data-"))
        arguments = argparse.Namespace(config=self.config_file, number=number, lab=False, listen=None)
        return self.spawn(name, lambda: data_main._serve(arguments))

    def alive(self, name: str) -> bool:
        return name in self.processes and self.processes[name].alive

    def kill(self, name: str, *, power: bool = False) -> None:
        """End a process at once, as SIGKILL does; with `power`, take what its disk has not made durable."""
        process = self.processes[name]
        if process.alive:
            self._stop_for_ever(process, power)
            self._bury(process, power)

    def end(self, name: str) -> None:
        """Ask a server process to end in good order, as SIGTERM does, which kills one that only begins."""
        if not self.ready[name].done():
            self.kill(name)
            return
        self.note("stop", name)
        self.processes[name].is_ending = True
        self.ends[name].set()

    def is_ending(self, name: str) -> bool:
        """Tell whether a server was asked to end, and has not done so yet."""
        return self.alive(name) and self.processes[name].is_ending

    def fail_in_a_write(self, name: str, steps: int, file: str, *, power: bool) -> None:
        """End a server process just before one of its next writes or syncs (as `Disk.fail_in` says)."""
        process = self.processes[name]

        def fail() -> None:
            # What is running now goes on for a while; nobody hears of it, and the disk will go back.
            self._stop_for_ever(process, power)
            self._unburied.append((process, power))
            self.loop.call_soon(self._bury_all, context=Context())

        self.disks[name].fail_in(steps, file, fail)

    def _stop_for_ever(self, process: Process, power: bool) -> None:
        self.note("power loss" if power else "kill", process.name)
        process.alive = False
        process.backlog.clear()
        self.power_losses += power and process.name == "meta"

    def _bury_all(self) -> None:
        """Do what is left to do for those that failed in a write."""
        unburied, self._unburied = self._unburied, []
        for process, power in unburied:
            self._bury(process, power)

    def _bury(self, process: Process, power: bool) -> None:
        disk = self.disks.get(process.host)
        if disk is not None:
            disk.go_back(lambda: self._abandon_files(process, disk))
        for action in process.at_end:
            action()
        if power and disk is not None:
            disk.lose_power()

    def _abandon_files(self, process: Process, disk: Disk) -> None:
        """Close what the process had open."""
        for thing in process.kept:
            if isinstance(thing, sqlite3.Connection):
                thing.close()
        for handle, path in list(disk.paths.items()):
            if Path(path) == disk.root:  # its claim on the directory goes with it
                del disk.paths[handle]
                os.close(handle)
                os.open("/dev/null", os.O_RDONLY)  # nobody else may get this number

    # running

    def report_lost_errors(self) -> None:
        """Note each error that nobody asked for, of the tasks of processes that live: a log would have it."""
        for process in self.all_processes:
            for task in process.kept if process.alive else ():
                if isinstance(task, asyncio.Task) and task.done() and task._log_traceback:  # type: ignore[attr-defined]
                    text = "".join(traceback.format_exception(task.exception()))
                    self.problem(f"an error in {process.name} that nobody asked for: {task!r}\n{text}")

    def run_until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Let virtual time pass until something is so. Raises Failure after `seconds`."""
        until = self.loop.now + seconds

        async def watch() -> bool:
            while not done():
                if self.loop.now >= until:
                    return False
                await asyncio.sleep(0.05)
            return True

        in_time = self.loop.run_until_complete(watch())
        self._bury_all()
        if not in_time:
            raise Failure(f"{what}: not within {seconds:g} s")

    def pass_time(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self._bury_all()

    def wait_ready(self, names: Sequence[str]) -> None:
        self.run_until(lambda: all(self.ready[n].done() for n in names), READY_SECONDS, f"start of {names}")
        for name in names:
            self.ready[name].result()

    @contextlib.contextmanager
    def _connected(self, name: str) -> Iterator[Any]:
        """Try until the mediator answers, as a person who mounts would."""
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    yield stack.enter_context(connect(self.config, name))
                    return
                except ConfigError as error:
                    self.note("failed", f"{name} mount: {error}")
                    self.scheduler.sleep(1.0)

    def client(self, name: str, work: Callable[[Any], None]) -> Process:
        """Start a client: a process whose threads use the client library."""
        process = Process(name, name, self.clocks.of(name))
        self.processes[name] = process
        self.all_processes.append(process)

        def body() -> None:
            try:
                with self._connected(name) as filesystem:
                    work(filesystem)
            except Failure as failure:
                self.problem(str(failure))
            except QuorumfsError as error:
                self.problem(f"{name} ended: {type(error).__name__}: {error}")
            except Exception as error:
                self.problem(f"{name} ended: {''.join(traceback.format_exception(error))}")
            finally:
                process.alive = False

        context = copy_context()
        context.run(PROCESS.set, process)
        context.run(self.scheduler.start, body)
        return process


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
