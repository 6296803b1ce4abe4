"""What goes wrong: faults drawn from the seed, bounded so that recovery must be possible.

The rule: on `frail` data servers bytes may rot, go back to what was durable, or all go; there are at most as
many as leave each committed block one good copy and each read its quorum. Every other process may be killed,
stopped, slow or cut off at any time; the metadata server's disk keeps what was made durable. One thread.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from tests.sim.actors import Actor
from tests.sim.cluster import World

END_SECONDS = 60.0
"""Whoever is asked to end, or to unmount, has done so by then, once all faults are over."""


class Nemesis:
    """Draws and carries out faults, and mends everything in the end.

    Attributes:
        wanted: the numbers of the steps that are carried out; None: all.
        steps: how many were drawn.
    """

    def __init__(self, world: World, actors: list[Actor], wanted: frozenset[int] | None = None) -> None:
        self.world, self.actors, self.wanted = world, actors, wanted
        self.steps = 0
        self.rng = self.times = random.Random(world.rng.random())
        quorum = world.config.quorum
        self.data = [f"data-{k}" for k in range(1, quorum.servers + 1)]
        self.servers = [*self.data, "meta", *world.mediators]
        most = max(0, min(quorum.servers - quorum.read, quorum.write - 1))
        self.frail = sorted(self.rng.sample(self.data, self.rng.randint(0, most)))
        self.mean_seconds = self.rng.choice([0.3, 1.0, 3.0])
        self.faults = 0
        self.swizzled: list[str] = []
        kinds: list[Callable[[], object]] = [
            self._kill_server,
            self._kill_server,
            self._kill_client,
            self._end_server,
            self._leave,
            self._pause,
            self._cut_off,
            self._slow,
            self._slow_disk,
            self._reset,
            self._lose_power,
            self._lose_metadata_power,
            self._lose_all_power,
            self._fail_in_a_write,
            self._fail_in_a_checkpoint,
            self._fail_in_a_checkpoint,
            self._rot,
            self._blank,
            self._damage_index,
            self._restart_all,
            self._fill_disk,
            self._fill_metadata_disk,
            self._fail_reads,
            self._fail_metadata_reads,
            self._fail_syncs,
            self._lie,
            self._roll_back,
            self._swizzle,
            self._exile,
        ]
        self.kinds = [kind for kind in kinds if self.rng.random() < 0.7] or kinds
        """A run has some of the kinds only: rare mixtures are met as well."""
        self.mediators_last = self.rng.random() < 0.5
        """In the end mediators begin anew, when all that lags is up: nobody sees it come up."""
        if world.about_locks:
            self.kinds, self.mean_seconds = [self._exile, self._restart_metadata], 3.0

    def pause_seconds(self) -> float:
        """Draw how long it is to the next step."""
        return self.times.expovariate(1 / self.mean_seconds)

    def step(self) -> None:
        """Do one thing, if its number is among those wanted."""
        number, state = self.steps, self.times.random()
        self.steps += 1
        self._end_exiles()
        self._come_back()
        if self.wanted is not None and number not in self.wanted:
            return
        self.rng = random.Random(state)  # so that it does not depend on the steps that were left out
        if self.rng.random() < 0.4:
            self._ease()
        else:
            self.rng.choice(self.kinds)()
        self.faults += 1

    def _ease(self) -> None:
        """End some of what is wrong now, so that clients get through."""
        self.rng.choice([self._start_some, self._start_some, self._go_on, self._heal])()

    def _note(self, what: str) -> None:
        self.world.note("fault", what)

    def _alive(self, names: list[str]) -> list[str]:
        return [name for name in names if self.world.alive(name)]

    def _kill_server(self) -> None:
        if names := self._alive(self.servers):
            self.world.kill(self.rng.choice(names))

    def _end_server(self) -> None:
        """Have one end in good order; it may still be killed on the way."""
        if names := self._alive(self.servers):
            self.world.end(self.rng.choice(names))

    def _leave(self) -> None:
        """Have a client unmount in good order, and mount again at the next step."""
        actor = self._some_client()
        self._note(f"{actor.name} is to unmount")
        actor.leaving = True

    def _come_back(self) -> None:
        for actor in self.actors:
            if not self.world.alive(actor.name):
                actor.start()

    def _restart_metadata(self) -> None:
        """It forgets who has which lock, and what it answered about them."""
        if self.world.alive("meta"):
            self.world.kill("meta")
            self.world.start("meta")

    def _start_some(self) -> None:
        for name in self.servers:
            if self.rng.random() < 0.7:
                self._start_anew(name)

    def _start_anew(self, name: str) -> None:
        """Start a server that is down, or one that must be started anew, as a sync of its disk failed."""
        disk = self.world.disks.get(name)
        if self.world.alive(name) and disk is not None and disk.sync_failed and not disk.syncs_fail:
            self.world.kill(name)
        if not self.world.alive(name):
            self.world.start(name)

    def _some_client(self) -> Actor:
        """One that holds something open or locked, if there is one and chance will have it so."""
        holding = [actor for actor in self.actors if actor.holding]
        return self.rng.choice(holding if holding and self.rng.random() < 0.6 else self.actors)

    def _exile(self) -> None:
        """Cut a client off from all mediators for longer than its lease."""
        name = self._some_client().name
        seconds = self.world.config.lease_seconds * self.rng.uniform(1.05, 1.6)
        self.world.exiles[name] = self.world.loop.now + seconds
        self._note(f"{name} is cut off for {seconds:.1f} s")
        for pair in self._ways(name):
            self.world.network.block(*pair)

    def _ways(self, name: str) -> list[tuple[str, str]]:
        return [pair for other in self.world.mediators for pair in ((name, other), (other, name))]

    def _end_exiles(self) -> None:
        over = [name for name, until in self.world.exiles.items() if until <= self.world.loop.now]
        for name in over:
            del self.world.exiles[name]
            self._note(f"{name} is no longer cut off")
            self.world.network.heal(frozenset(self.world.network.blocked) - set(self._ways(name)))

    def _kill_client(self) -> None:
        actor = self._some_client()
        self.world.kill(actor.name)
        actor.start()

    def _pause(self) -> None:
        name = self.rng.choice(self._alive(self.servers) or ["-"])
        if name != "-":
            self._note(f"stop {name}")
            self.world.processes[name].paused = True

    def _go_on(self) -> None:
        for process in list(self.world.processes.values()):
            if process.paused and process.alive:
                self._note(f"continue {process.name}")
                self.world.loop.go_on(process)

    def _hosts(self) -> list[str]:
        return [*self.servers, *(actor.name for actor in self.actors)]

    def _cut_off(self) -> None:
        a, b = self.rng.sample(self._hosts(), 2)
        self._note(f"nothing gets from {a} to {b}")
        self.world.network.block(a, b)
        if self.rng.random() < 0.6:
            self._note(f"nothing gets from {b} to {a}")
            self.world.network.block(b, a)

    def _heal(self) -> None:
        self._note("the network is whole")
        self.world.network.heal(frozenset(way for name in self.world.exiles for way in self._ways(name)))

    def _slow(self) -> None:
        host, factor = self.rng.choice(self._hosts()), self.rng.choice([10, 100, 1000])
        self._note(f"{host} is {factor} times slower")
        self.world.network.slow[host] = factor

    def _reset(self) -> None:
        host = self.rng.choice(self._hosts())
        self._note(f"reset {self.world.network.reset_some(host)} connections of {host}")

    def _lose_power(self) -> None:
        if names := self._alive([*self.frail, "meta"]):
            self.world.kill(self.rng.choice(names), power=True)

    def _lose_metadata_power(self) -> None:
        """By itself: the data servers keep what they have done since its last sync."""
        if self.world.alive("meta"):
            self.world.kill("meta", power=True)

    def _fail_in_a_write(self) -> None:
        """A kill, or a power loss where that may be, in the middle of what a server does with its disk."""
        if names := self._alive([*self.data, "meta", "meta", "meta"]):
            name = self.rng.choice(names)
            power = name in (*self.frail, "meta") and self.rng.random() < 0.7
            self._fail_in(name, self.rng.randrange(40), "", power)

    def _fail_in_a_checkpoint(self) -> None:
        """While pages are moved into the metadata database: what is there may be torn."""
        if self.world.alive("meta"):
            self._fail_in("meta", self.rng.randrange(15), "/meta.sqlite", self.rng.random() < 0.8)

    def _fail_in(self, name: str, steps: int, file: str, power: bool) -> None:
        what = "lose its power" if power else "be killed"
        self._note(f"{name} will {what} after {steps} writes or syncs{' of ' if file else ''}{file}")
        self.world.fail_in_a_write(name, steps, file, power=power)

    def _lose_all_power(self) -> None:
        """All servers at once, where everything that was written was made durable."""
        if self.world.may_lose_all_power:
            for name in self._alive(self.servers):
                self.world.kill(name, power=True)
            for name in self.servers:
                self.world.start(name)

    def _rot(self) -> None:
        if self.frail:
            host = self.rng.choice(self.frail)
            self._note(f"rot on {host}: {self.world.disks[host].rot(self.rng.randint(1, 5))}")

    def _blank(self) -> None:
        if self.frail and self.rng.random() < 0.3:
            host = self.rng.choice(self.frail)
            self.world.kill(host)
            self._note(f"{host} has a new, blank disk")
            self.world.disks[host].blank()

    def _damage_index(self) -> None:
        """Of a server that runs, or does not: it is a cache."""
        if self.frail:
            host = self.rng.choice(self.frail)
            self._note(f"the index of {host} is damaged")
            self.world.disks[host].damage_index()

    def _restart_all(self) -> None:
        if self.rng.random() < 0.3:
            names = list(self.servers)
            self.rng.shuffle(names)
            for name in names:
                self.world.kill(name)
            self.rng.shuffle(names)
            for name in names:
                self.world.start(name)

    def _fill_disk(self) -> None:
        host = self.rng.choice(self.data)
        disk = self.world.disks[host]
        disk.full, disk.refusal = not disk.full, self.rng.choice([errno.ENOSPC, errno.ENOSPC, errno.EIO])
        how = "no longer full" if not disk.full else "full" if disk.refusal == errno.ENOSPC else "broken"
        self._note(f"{host} is {how}")

    def _fill_metadata_disk(self) -> None:
        disk = self.world.disks["meta"]
        disk.full, disk.refusal = not disk.full, self.rng.choice([errno.ENOSPC, errno.ENOSPC, errno.EIO])
        disk.tells_room, left = self.rng.random() < 0.5, self.rng.choice([0, 5000, 60_000])
        disk.budget = disk.used() + left
        how = "no longer full" if not disk.full else f"full but for {left} bytes"
        self._note(f"meta is {how if disk.refusal == errno.ENOSPC or not disk.full else 'broken'}")

    def _slow_disk(self) -> None:
        host, factor = self.rng.choice([*self.data, "meta"]), self.rng.choice([10, 100, 1000])
        self._note(f"the disk of {host} is {factor} times slower")
        self.world.disks[host].slow = factor

    def _fail_reads(self) -> None:
        if self.frail:
            host = self.rng.choice(self.frail)
            self.world.disks[host].failing = not self.world.disks[host].failing
            self._note(f"reads of {host} {'fail' if self.world.disks[host].failing else 'work again'}")

    def _fail_metadata_reads(self) -> None:
        disk = self.world.disks["meta"]
        disk.failing = not disk.failing
        self._note(f"reads of meta {'fail' if disk.failing else 'work again'}")

    def _fail_syncs(self) -> None:
        """What a sync failed to write may go with the power, after a later one that did not fail too."""
        host = self.rng.choice([*self.frail, "meta"])
        disk = self.world.disks[host]
        disk.syncs_fail = not disk.syncs_fail
        self._note(f"syncs of {host} {'fail' if disk.syncs_fail else 'work again'}")

    def _lie(self) -> None:
        if self.frail:
            host = self.rng.choice(self.frail)
            self.world.disks[host].lying = not self.world.disks[host].lying
            self._note(f"{host} {'loses' if self.world.disks[host].lying else 'no longer loses'} writes")

    def _roll_back(self) -> None:
        """Put an older state of a disk back; the first time, only remember it."""
        if self.frail:
            host = self.rng.choice(self.frail)
            if self.world.alive(host):
                self.world.kill(host)
            if self.world.disks[host].roll_back():
                self._note(f"{host} has an older state of its disk")
            else:
                self.world.disks[host].snapshot()
            self.world.start(host)

    def _swizzle(self) -> None:
        """Stop the data servers one by one, and let them go on in another order."""
        names = self._alive(self.data)
        self.rng.shuffle(names)
        if not self.swizzled:
            self.swizzled = names
        if self.swizzled:
            name = self.swizzled.pop()
            process = self.world.processes[name]
            if process.alive and not process.paused:
                self._note(f"stop {name}")
                process.paused = True
            elif process.alive:
                self._note(f"continue {name}")
                self.world.loop.go_on(process)

    def mend(self) -> None:
        """End all faults and start everything that is down; what is read next is rotten once more."""
        for host in self.frail:
            self._note(f"rot on {host}: {self.world.disks[host].rot(20)}")
        for name in self.world.mediators if self.mediators_last else ():
            self.world.kill(name)
        self.world.exiles.clear()
        self.world.lost_answers = self.world.requests_twice = self.world.late_commits = 0.0
        self._heal()
        self._go_on()
        for disk in self.world.disks.values():
            disk.full = disk.failing = disk.lying = disk.syncs_fail = False
            disk.slow, disk.failure = 1.0, None
        self._await_ends()
        self._start_all([*self.data, "meta"])
        if self.mediators_last:
            self.world.pass_time(1.0)
        self._start_all(self.world.mediators)
        self.world.put_backs.give_up([actor.name for actor in self.actors])
        self.world.run_until(lambda: not self._leaving(), END_SECONDS, "clients unmount")
        self._come_back()

    def _await_ends(self) -> None:
        """Whoever was asked to end does so, and calls under way do not hold it up for ever."""
        is_ending = self.world.is_ending
        self.world.run_until(
            lambda: not any(map(is_ending, self.servers)), END_SECONDS, "servers end that were asked to"
        )

    def _leaving(self) -> list[str]:
        return [actor.name for actor in self.actors if actor.leaving and self.world.alive(actor.name)]

    def _start_all(self, names: list[str]) -> None:
        for name in names:
            self._start_anew(name)
