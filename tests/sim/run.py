"""One run of the simulation: a seed in, a verdict out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataserver.offline import locate
from dataserver.offline import read as read_directory
from mediator import manifest
from tests.sim import indexes, told
from tests.sim.actors import Actor
from tests.sim.cluster import Failure, World
from tests.sim.deletions import Deletions
from tests.sim.loop import Stuck
from tests.sim.nemesis import Nemesis
from tests.sim.shared import Shared
from tests.sim.visits import Visits
from tests.twins import LibraryPlace
from tools.whole import check_running
from wire.blocking import BlockingClient
from wire.config import DataServerConfig
from wire.errors import InvalidArgument, QuorumfsError, ReadRefused
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods, MediatorMethods
from wire.quorum import Quorum

QUORUMS = [(1, 1, 1), (3, 2, 2), (3, 2, 3), (3, 1, 3), (5, 3, 5), (5, 3, 3), (5, 2, 4), (5, 1, 5)]
QUIET_SECONDS = 240.0
PREFIX = "quorumfs-sim-"
"""What the directory of a run is called, before its process and something random."""


_worlds: list[World] = []
"""Never collected: what is dead would run its `finally` clauses."""


@dataclass(frozen=True)
class Verdict:
    """What came of a run."""

    seed: int
    problems: list[str]
    event_hash: str
    events: list[tuple[float, str, str]]
    faults: int
    steps: int
    calls: int
    failures: int
    virtual_seconds: float
    real_seconds: float
    settings: str
    history: list[str]

    @classmethod
    def of_dead(cls, seed: int) -> Verdict:
        """Return the verdict on a seed whose process died without one."""
        return cls(seed, ["its process died, or hung in real time"], "", [], 0, 0, 0, 0, 0.0, 0.0, "", [])

    @property
    def passed(self) -> bool:
        return not self.problems

    def summary(self) -> str:
        """Say in a few lines how it went."""
        first = (
            f"seed {self.seed}: {'passed' if self.passed else 'FAILED'}, events {self.event_hash} "
            f"({self.settings}; "
            f"{self.faults} faults, {self.calls} calls, {self.failures} of them failed; "
            f"{self.virtual_seconds:.0f} s in {self.real_seconds:.2f} s)"
        )
        return "\n".join([first, *(f"    {problem}" for problem in self.problems)])

    def timeline(self, *, short: bool = False) -> str:
        """Return the events, a line each; the short one is without what succeeded."""
        left_out = {"done", "ready"} if short else set()
        return "\n".join(
            f"{at:12.6f}  {what:10} {detail}" for at, what, detail in self.events if what not in left_out
        )

    def brief(self) -> Verdict:
        """Return it without its events if it passed: most are only counted, and can be played again."""
        return dataclasses.replace(self, events=[]) if self.passed else self

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, told: bytes) -> Verdict:
        found = json.loads(told)
        found["events"] = [tuple(event) for event in found["events"]]
        return cls(**found)


def sweep() -> None:
    """Remove the directories of runs that were killed."""
    for path in _place().glob(f"{PREFIX}*-*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _place() -> Path:
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_place()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(seed: int, wanted: frozenset[int] | None = None, *, tell: bool = False) -> Verdict:
    """Simulate one seed, in a process that is used for nothing else.

    Args:
        seed: draws everything.
        wanted: only these steps of the nemesis are carried out (to find which are needed).
        tell: with the whole history, messages and votes in it.
    """
    with _directory() as directory:
        return _run(seed, directory, wanted, tell)


def _run(seed: int, directory: Path, wanted: frozenset[int] | None, tell: bool) -> Verdict:
    begun = time.perf_counter()
    draw = random.Random(seed)
    quorum = Quorum(*draw.choice(QUORUMS))
    world = World(seed, directory, quorum)
    _worlds.append(world)
    deletions = Deletions(seed, world)
    shared = Shared(world)
    clients = draw.randint(2 if world.about_locks else 1, 3)
    if tell:
        shared.recorded.record_messages()
    actors = [Actor(world, number, shared) for number in range(1, clients + 1)]
    if len(actors) == 1 and not world.put_backs.happen:
        actors[0].visits = Visits(world)
        actors[0].neighbours.is_alone = True
    nemesis = Nemesis(world, actors, wanted)
    world.put_backs.frail = nemesis.frail
    seconds = draw.choice([60.0] if world.about_locks else [10.0, 30.0, 60.0])
    settings = (
        f"N={quorum.servers} Qr={quorum.read} Qw={quorum.write}, {len(world.mediators)} mediators, "
        f"{len(actors)} clients, "
        f"{seconds:g} s of faults every {nemesis.mean_seconds:g} s on average, "
        f"frail: {', '.join(nemesis.frail) or 'none'}"
    )
    world.note("settings", settings)
    try:
        _play(world, actors, nemesis, deletions, shared, seconds)
    except (Failure, Stuck) as failure:
        world.problem(str(failure))
    world.report_lost_errors()
    for problem in shared.recorded.problems():
        world.problem(problem)
    return Verdict(
        seed,
        world.problems,
        world.event_hash,
        world.events,
        nemesis.faults,
        nemesis.steps,
        sum(actor.calls for actor in actors),
        sum(actor.failures for actor in actors),
        world.loop.now,
        time.perf_counter() - begun,
        settings,
        shared.recorded.told(world.events) if tell else [],
    )


def _play(
    world: World,
    actors: list[Actor],
    nemesis: Nemesis,
    deletions: Deletions,
    shared: Shared,
    seconds: float,
) -> None:
    storage = ["meta", *nemesis.data]
    for name in storage:
        world.start(name)
    world.wait_ready(storage)
    for name in world.mediators:
        world.start(name)
    world.wait_ready(world.mediators)
    for actor in actors:
        actor.start()
    world.faults_until = world.loop.now + seconds
    while world.loop.now < world.faults_until and not world.problems:
        world.pass_time(nemesis.pause_seconds())
        nemesis.step()
        world.clocks.step(world.loop.now, world.processes)
        world.stops.step([actor.name for actor in actors])
        world.put_backs.step([actor.name for actor in actors])
    if world.problems:
        return
    world.note("quiet", "all faults end")
    nemesis.mend()
    deletions.end()
    _finish(world, actors, shared)


def _finish(world: World, actors: list[Actor], shared: Shared) -> None:
    """Let everything come to rest, then hold all of it against what was acknowledged."""
    world.run_until(lambda: all(actor.has_recovered for actor in actors), QUIET_SECONDS, "clients recover")
    for actor in actors:
        actor.stop = True
    world.run_until(lambda: all(actor.idle for actor in actors), QUIET_SECONDS, "clients end")
    world.run_until(
        lambda: not any(world.alive(actor.name) for actor in actors), QUIET_SECONDS, "clients stop"
    )
    visits = [actor.visits for actor in actors if actor.visits is not None]
    world.run_until(lambda: all(each.are_over for each in visits), QUIET_SECONDS, "visitors leave")
    if world.problems:
        return
    inspector = world.client("inspector", lambda filesystem: _inspect(world, filesystem, actors, shared))
    world.run_until(lambda: not inspector.alive, QUIET_SECONDS * 4, "the last look")


def _inspect(world: World, filesystem: Any, actors: list[Actor], shared: Shared) -> None:
    place = LibraryPlace(filesystem, "")
    if world.may_lose_all_power:
        told.remove_all(world, place)
    # Older metadata that came back may refer to blocks that no server has any more: they refill for ever.
    _wait_writable(world, ("up", "refilling") if world.put_backs.count else ("up",))
    for actor in actors:
        actor.note_power_losses()
        actor.model.certain = False
        if not (actor.look(place) and actor.look_back(place)):
            raise Failure(f"the files of {actor.name} cannot be read when all is well again")
    try:
        shared.check(place)
        shared.check_unlocked(place)
    except (QuorumfsError, OSError) as error:
        raise Failure(f"the shared files cannot be used when all is well again: {error}") from error
    _expect_refusal(world, place)
    if problem := world.put_backs.problem():
        raise Failure(problem)
    if world.put_backs.count:
        world.put_backs.let_go()
        _wait_writable(world)
    if problem := indexes.ruin_one(world):
        raise Failure(problem)
    _wait_writable(world)
    _wait_without_orphans(world)
    _wait_filled(world)
    _scrub(world)
    _wait_whole(world)
    _verify_disks(world)


def _wait_without_orphans(world: World) -> None:
    """What has no name goes with the session that had it open."""
    until = world.loop.now + world.config.lease_seconds * 4
    with contextlib.closing(BlockingClient([world.config.metaserver_listen])) as client:
        while True:
            counts = client.call(10.0, BookkeepingMethods.counts)
            if counts["inodes"] == counts["entries"] + 1:
                return
            if world.loop.now > until:
                raise Failure(f"inodes without a name are kept: {counts}")
            world.scheduler.sleep(1.0)


def _wait_writable(world: World, states: Collection[str] = ("up",)) -> None:
    """Each mediator has seen by itself that all servers are back."""
    for address in world.config.mediators:
        _wait_writable_by(world, address, states)


def _wait_writable_by(world: World, mediator: str, states: Collection[str]) -> None:
    until = world.loop.now + QUIET_SECONDS
    with contextlib.closing(BlockingClient([mediator])) as client:
        while True:
            status = client.call(10.0, CommonMethods.status)
            if all(server["state"] in states for server in status["servers"]):
                return
            if world.loop.now > until:
                raise Failure(f"not all data servers are used again: {status['servers']}")
            world.scheduler.sleep(0.5)


def _expect_refusal(world: World, place: LibraryPlace) -> None:
    """With one corrupt replica more than a quorum allows, a read is refused, whatever else answers first."""
    quorum = world.config.quorum
    content = world.rng.randbytes(200_000)
    place.open(7, "scratch", os.O_CREAT | os.O_RDWR)
    place.pwrite(7, 0, content)
    place.fsync(7)
    contents = place.filesystem.files._contents
    (block,) = {span.source.block for span in contents.whole_map(place.slots[7].inode)}
    place.close(7)
    for server in world.rng.sample(world.config.data_servers, quorum.servers - quorum.read + 1):
        replica = locate(server.directory, block)
        if replica is None:
            continue  # with Qw < N it may not be there yet
        at = replica.payload_offset + world.rng.randrange(len(content))
        with replica.path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1]))
    place.filesystem._reader.forget()
    place.open(7, "scratch", os.O_RDONLY)
    try:
        seen = place.pread(7, 0, len(content))
    except ReadRefused:
        pass
    else:
        if quorum.write == quorum.servers:
            raise Failure(
                f"a read was answered, {'right' if seen == content else 'WRONG'}, without its quorum"
            )
        if seen != content:
            raise Failure("a read was answered with wrong bytes")
    finally:
        place.close(7)
    place.unlink("scratch")


def _scrub(world: World) -> None:
    """Have every replica read and held against its witness, as `quorumfs scrub --now` does."""
    until = world.loop.now + QUIET_SECONDS
    begin = True
    with contextlib.closing(BlockingClient([world.config.mediator_listen])) as client:
        while True:
            try:
                told = client.call(30.0, MediatorMethods.scrub, 0, begin)
                begin = False
                if len(told) == len(world.disks) - 1 and all(each["state"] == "done" for each in told):
                    return
            except InvalidArgument as error:  # a server is not seen to be up yet
                told = [{"error": error.message}]
            if world.loop.now > until:
                raise Failure(f"a scrub does not end: {told}")
            world.scheduler.sleep(1.0)


def _verify_disks(world: World) -> None:
    """Read the data servers' disks themselves: no replica that is in use has other bytes."""
    inventories = {}
    for place in world.config.data_servers:
        with contextlib.closing(BlockingClient([place.listen])) as client:
            inventories[place.number] = client.call(30.0, DataMethods.inventory, b"", 4096)
    copies = manifest.complete(inventories.values(), len(inventories))
    for place in world.config.data_servers:
        # What is left of a copy that could not be completed goes with the next but one.
        held = {
            record.block
            for record in inventories[place.number]
            if not manifest.is_reserved(record.block) or manifest.copy_of(record.block) in copies
        }
        replicas = read_directory(place.directory, verify=True).replicas
        corrupt = [r.block.hex() for r in replicas if r.block in held and r.verdict == "corrupt"]
        if corrupt:
            raise Failure(f"data-{place.number} has corrupt replicas after a scrub: {corrupt}")


def _wait_filled(world: World) -> None:
    """Every data server gets what it lacks of the committed blocks, before anybody asks for a refill.

    But for those whose disks have lost something: who has as many blocks too many is not seen to lack any.
    """
    lossy = [p for p in world.config.data_servers if world.disks[f"data-{p.number}"].has_lost]
    until = world.loop.now + QUIET_SECONDS
    with contextlib.closing(BlockingClient([world.config.metaserver_listen])) as client:
        while True:
            _compare_inventories(world, lossy)
            committed = client.call(10.0, BookkeepingMethods.blocks, b"", 4096)
            lacking = {
                place.number: len({r.block for r in committed} - {r.block for r in _held(place)})
                for place in world.config.data_servers
            }
            if not any(lacking.values()):
                return
            if world.loop.now > until:
                raise Failure(f"data servers still lack so many blocks {QUIET_SECONDS:g} s later: {lacking}")
            world.scheduler.sleep(2.0)


def _held(place: DataServerConfig) -> list[BlockRecord]:
    with contextlib.closing(BlockingClient([place.listen])) as client:
        return client.call(10.0, DataMethods.inventory, b"", 4096)


def _compare_inventories(world: World, servers: Iterable[DataServerConfig]) -> None:
    """Have what servers lack, and orphans, looked for now, as `quorumfs refill` does."""
    with contextlib.closing(BlockingClient([world.config.mediator_listen])) as client:
        for place in servers:
            client.call(10.0, MediatorMethods.refill, place.number)


def _wait_whole(world: World) -> None:
    """All replicas become equal, and nothing is left that nobody needs."""
    until = world.loop.now + QUIET_SECONDS
    while True:
        _compare_inventories(world, world.config.data_servers)
        try:
            report = check_running(world.config)
            wrong = [f"{f.check} {f.row}" for f in report.findings] + _leftovers(world, report.blocks)
        except QuorumfsError as error:
            wrong = [f"fsck: {error}"]
        if not wrong:
            return
        if world.loop.now > until:
            raise Failure(f"not whole {QUIET_SECONDS:g} s after the last fault: {wrong[:5]}")
        world.scheduler.sleep(2.0)


def _leftovers(world: World, blocks: int) -> list[str]:
    """Tell which data servers have other blocks than those committed and the copies of the metadata."""
    found = []
    of_copies: list[list[BlockRecord]] = []
    for place in world.config.data_servers:
        held = _held(place)
        of_copies.append([record for record in held if manifest.is_reserved(record.block)])
        count = len(held) - len(of_copies[-1])
        if count != blocks:
            found.append(f"data-{place.number} has {count} blocks, {blocks} are committed")
    if world.config.metadata_copy_seconds:
        found += _wrong_copies(world, of_copies)
    return found


def _wrong_copies(world: World, held: list[list[BlockRecord]]) -> list[str]:
    """Tell what is wrong with the copies of the metadata: one or two are whole on all servers."""
    copies = manifest.complete(held, len(held))
    with contextlib.closing(BlockingClient([world.config.data_servers[0].listen])) as client:
        for copy in copies:
            part = client.call(10.0, DataMethods.get, manifest.block_of(copy, 0), 0, 0)
            lacking = [manifest.lacks_parts(copy, bytes(part.data), [records]) for records in held]
            if any(lacking):
                return [f"the copy {copy} of the metadata is not whole everywhere"]
    numbers = {manifest.copy_of(record.block) for records in held for record in records}
    if len(copies) == manifest.COPIES_KEPT:
        return [f"{len(numbers)} copies of the metadata are kept"] if len(numbers) > len(copies) else []
    return [] if len(copies) == 1 else [f"{len(copies)} copies of the metadata are complete"]
