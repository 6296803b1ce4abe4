"""What breaks things: rounds of one or two drawn faults, each begun, kept for a while and ended.

The same seed draws the same faults of the same parts for the same times. Nothing here may destroy what the
promises do not cover: bytes are damaged on the same N-Qr data servers only, and a server is wiped only
when all servers have all blocks. One thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.chaos.cluster import TOLERATED, ChaosCluster
from tests.chaos.metadata import MetadataDamage
from tests.chaos.timeline import Timeline
from tools.processes import ClusterError
from tools.whole import check_running
from wire.errors import QuorumfsError

KEPT_SECONDS = (0.5, 7.0)
QUIET_SECONDS = (1.0, 4.0)
STUTTER_SECONDS = 0.05
WHOLE_SECONDS = 20.0
LOOK_SECONDS = 0.5
DAMAGES = (1, 12)
METADATA, RESTORE, KILL_MOUNT, WIPE = "metadata", "restore", "kill mount", "wipe"
KILL_ALL, PAUSE_MOUNT, VISIT = "kill all", "pause mount", "visit"
ALONE = (METADATA, RESTORE, KILL_ALL)
"""What comes of these is known only if nothing else is in its way."""
PAGE = 4096


class Fault(NamedTuple):
    """A kind of fault, the parts it meets, how to begin and to end it."""

    kind: str
    target: str
    begin: Callable[[], object]
    end: Callable[[], object]
    during: Callable[[float], object] = time.sleep
    """Passes the time while it is kept."""


Kinds = dict[str, tuple[int, Callable[[], Fault]]]
"""How often each kind is drawn, beside the others, and what draws one."""


class UnknownKind(ValueError):
    """A kind of fault that is not staged here."""


class Nemesis:
    """Draws faults and stages them on a cluster; `kinds` leaves only some in, `more` adds some."""

    def __init__(
        self,
        cluster: ChaosCluster,
        mountpoints: list[Path],
        seed: int,
        timeline: Timeline,
        kinds: list[str],
        more: Callable[[random.Random, list[str]], Kinds] | None = None,
    ) -> None:
        self._cluster, self._network = cluster, cluster.network
        self._mountpoints = mountpoints
        self._dice = random.Random(f"{seed} nemesis")
        self._timeline = timeline
        self.found: list[str] = []
        """What did not go as it must when the metadata server's files were damaged, or on a visit."""
        self._data = [name for name in cluster.server_names if name.startswith("data-")]
        self._damaged = self._dice.sample(self._data, TOLERATED)
        self._kinds: Kinds = {
            "kill": (6, self._kill),
            "pause": (4, self._pause),
            "slow": (2, self._slow),
            WIPE: (2, self._wipe),
            "corrupt": (4, self._corrupt),
            "fill": (2, self._fill),
            "cut off": (3, self._cut_off),
            "one way": (3, self._one_way),
            "reset": (2, self._reset),
            KILL_MOUNT: (1, self._kill_mount),
            METADATA: (3, self._damage_metadata),
            RESTORE: (1, self._restore_metadata),
        }
        if more is not None:
            self._kinds |= more(self._dice, self.found)
        if unknown := sorted(set(kinds) - set(self._kinds)):
            raise UnknownKind(f"no such faults: {', '.join(unknown)}; there are {', '.join(self._kinds)}")
        self._kinds = {kind: self._kinds[kind] for kind in kinds or self._kinds}

    def go_on(self, until: float, tell: Callable[[], object]) -> None:
        """Stage rounds until a time of the monotonic clock; `tell` is called after each."""
        while time.monotonic() < until:
            with self.round(self._draw()) as passing:
                passing(self._dice.uniform(*KEPT_SECONDS))
            time.sleep(self._dice.uniform(*QUIET_SECONDS))
            tell()

    @contextmanager
    def round(self, faults: list[Fault]) -> Iterator[Callable[[float], object]]:
        """Begin faults, and end them with the block; yields what passes the time in it."""
        begun = []
        try:
            for fault in faults:
                self._timeline(fault.kind, target=fault.target)
                begun.append(fault)
                if fault.begin() is False:
                    self._timeline("skipped", fault=fault.kind, target=fault.target)
                    begun.pop()
            yield next((fault.during for fault in begun if fault.kind == "slow"), time.sleep)
        finally:
            self._dice.shuffle(begun)
            for fault in sorted(begun, key=_turn):
                fault.end()
                self._timeline("ended", fault=fault.kind, target=fault.target)

    def end_all(self) -> None:
        """Have everything run again: what is stopped, down, cut off or full."""
        for name in self._cluster.server_names:
            if self._cluster.state(name) == "paused":
                self._cluster.resume(name)
        self._network.heal()
        for disk in ("small-data", "small-meta"):
            self._cluster.free_disk(disk)
        started = self._cluster.start()
        self._timeline("all ended", started=started)

    # What there is

    def _draw(self) -> list[Fault]:
        count = self._dice.choice((1, 1, 2))
        faults: list[Fault] = []
        for _ in range(count):
            kinds = list(self._kinds)
            weights = [self._kinds[kind][0] for kind in kinds]
            fault = self._kinds[self._dice.choices(kinds, weights)[0]][1]()
            if all(fault.target != other.target for other in faults):
                faults.append(fault)
        if alone := [fault for fault in faults if fault.kind in ALONE]:
            return alone[:1]
        if any(fault.kind == KILL_MOUNT for fault in faults):  # a visitor would take its name
            faults = [fault for fault in faults if fault.kind != VISIT]
        # A wipe waits until all is whole, and would make the other fault last so long.
        return sorted(faults, key=lambda fault: fault.kind != WIPE)

    def _server(self) -> str:
        return self._dice.choice([*self._data, "mediator", "metaserver"])

    def _kill(self) -> Fault:
        name = self._server()
        return Fault("kill", name, lambda: self._cluster.kill(name), lambda: self._start(name))

    def _start(self, *names: str) -> None:
        """Start servers again. What comes before their start in the network and on the disk is in its way."""
        self._cluster.start(*names, deadline_seconds=40.0)

    def _pause(self) -> Fault:
        name = self._server()
        return Fault("pause", name, lambda: self._cluster.pause(name), lambda: self._cluster.resume(name))

    def _slow(self) -> Fault:
        name = self._server()

        def stutter(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                self._cluster.pause(name)
                time.sleep(STUTTER_SECONDS)
                self._cluster.resume(name)
                time.sleep(STUTTER_SECONDS / 10)

        return Fault("slow", name, lambda: None, lambda: self._cluster.resume(name), stutter)

    def _wipe(self) -> Fault:
        name = self._dice.choice(self._data)

        def begin() -> bool:
            if not self._await_whole():
                return False
            self._cluster.kill(name)
            self._cluster.wipe(name)
            return True

        return Fault(WIPE, name, begin, lambda: self._start(name))

    def _await_whole(self) -> bool:
        """Wait until every server has every block; tell whether that was so in time."""
        end = time.monotonic() + WHOLE_SECONDS
        while time.monotonic() < end:
            try:
                if not check_running(self._cluster.config).findings:
                    return True
            except (QuorumfsError, ClusterError):
                pass
            time.sleep(LOOK_SECONDS)
        return False

    def _corrupt(self) -> Fault:
        name = self._dice.choice(self._damaged)
        seed, count = self._dice.random(), self._dice.randint(*DAMAGES)
        return Fault(
            "corrupt",
            name,
            lambda: damage(self._cluster.data_directory(name) / "segments", random.Random(seed), count),
            lambda: None,
        )

    def _damage_metadata(self) -> Fault:
        damage = self._metadata_damage()
        return self._damaging(METADATA, self._dice.choice((damage.beside, damage.log)))

    def _restore_metadata(self) -> Fault:
        return self._damaging(RESTORE, self._metadata_damage().restore)

    def _metadata_damage(self) -> MetadataDamage:
        backup = self._cluster.directory / "metadata-backup"
        return MetadataDamage(self._cluster, self._dice.random(), backup)

    def _damaging(self, kind: str, how: Callable[[], tuple[str, list[str]]]) -> Fault:
        def begin() -> None:
            told, found = how()
            self._timeline("damaged", how=how.__name__, told=told)
            self.found += found

        return Fault(kind, "metaserver", begin, lambda: self._start("metaserver", "mediator"))

    def _fill(self) -> Fault:
        disk = self._dice.choice(["small-data", "small-data", "small-meta"])
        return Fault(
            "fill", disk, lambda: self._cluster.fill_disk(disk), lambda: self._cluster.free_disk(disk)
        )

    def _cut_off(self) -> Fault:
        name = self._dice.choice(self._network.names)
        others = [other for other in self._network.names if other != name]
        pairs = [pair for other in others for pair in ((name, other), (other, name))]
        return Fault("cut off", name, lambda: self._drop(pairs), lambda: self._pass_on(pairs))

    def _one_way(self) -> Fault:
        source, target = self._pair()
        pairs = [(source, target)]
        text = f"{source} to {target}"
        return Fault("one way", text, lambda: self._drop(pairs), lambda: self._pass_on(pairs))

    def _reset(self) -> Fault:
        source, target = self._pair()
        text = f"{source} and {target}"
        return Fault("reset", text, lambda: self._network.reset(source, target), lambda: None)

    def _pair(self) -> tuple[str, str]:
        """Draw two parts that talk with each other, in either order: the mediator is one of them."""
        other = self._dice.choice([name for name in self._network.names if name != "mediator"])
        pair = ("mediator", other)
        return pair if self._dice.random() < 0.5 else (pair[1], pair[0])

    def _drop(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self._network.drop(*pair)

    def _pass_on(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self._network.pass_on(*pair)

    def _kill_mount(self) -> Fault:
        index = self._dice.randrange(len(self._mountpoints))
        place = self._mountpoints[index]
        name = f"mount-{index + 1}"

        def mount_again() -> None:
            self._cluster.unmount(name, force=True)
            made = self._cluster.mount(place, deadline_seconds=60.0)
            assert made == name, f"{made} in the place of {name}"

        return Fault(KILL_MOUNT, name, lambda: self._cluster.kill(name), mount_again)


def _turn(fault: Fault) -> int:
    """Tell when a fault is ended, among those of a round: those of no matter at one, in any order."""
    # A blank server does not begin on a full disk. Who mounts is told at once that no mediator is there.
    return {WIPE: 1, KILL_MOUNT: 2}.get(fault.kind, 0)


def damage(segments: Path, dice: random.Random, count: int) -> int:
    """Flip bits, or write zeros over pages, in a data server's segments; return how many places were hit.

    Only pages with something in them are hit: the others are not written yet.
    """
    done = 0
    paths = sorted(path for path in segments.glob("*.seg") if path.stat().st_size)
    for _ in range(count * 20 if paths else 0):
        path = dice.choice(paths)
        with path.open("r+b", buffering=0) as file:
            place = dice.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)
            if byte in (b"", b"\0"):
                continue
            if dice.random() < 0.8:
                file.seek(place)
                file.write(bytes([byte[0] ^ 1 << dice.randrange(8)]))
            else:
                file.seek(place - place % PAGE)
                file.write(bytes(PAGE))
        done += 1
        if done == count:
            break
    return done
