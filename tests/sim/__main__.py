"""`python -m tests.sim`: simulate many seeds, each in a process of its own, on all cores.

python -m tests.sim --seeds 1000 [--first K]   play so many; exit status 1 if one failed
python -m tests.sim --replay SEED [--history FILE]   play one again and print its timeline
python -m tests.sim --shrink SEED              find the fewest faults with which it still fails
python -m tests.sim --mutants [NAME ...]       put bugs in on purpose, and count the seeds that find each
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.run import Verdict

MEMORY_KEPT_BYTES = str(256 * 1024 * 1024)
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # sets of names are gone through in one order, in every process
    "MALLOC_MMAP_THRESHOLD_": MEMORY_KEPT_BYTES,  # to have memory anew from the kernel for each
    "MALLOC_TRIM_THRESHOLD_": MEMORY_KEPT_BYTES,  # segment that is read takes a fifth of the time
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate a whole cluster.")
    parser.add_argument("--seeds", type=int, default=100, help="how many to play (for a mutant: at most)")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many at once")
    parser.add_argument("--replay", type=int, metavar="SEED", help="print one seed's timeline")
    parser.add_argument("--only", help="with --replay: carry out these faults only, as 3,17,40")
    parser.add_argument("--history", metavar="FILE", help="with --replay: write what clients saw there")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="find the fewest faults that fail")
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="all of them if none is named")
    arguments = parser.parse_args()
    if not os.environ.items() >= ENVIRONMENT.items():
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.only, arguments.history)
    if arguments.shrink is not None:
        return shrink(arguments.shrink)
    if arguments.mutants is not None:
        return mutants(arguments.mutants, seeds, arguments.jobs)
    return simulate(seeds, arguments.jobs)


def simulate(seeds: Iterable[int], jobs: int) -> int:
    """Play all seeds; report those that fail, and what a minute buys."""
    from tests.sim.children import play_all
    from tests.sim.run import run
    from tools.progress import progress_bar

    seeds = list(seeds)
    begun, failed, virtual_seconds, faults = time.monotonic(), [], 0.0, 0
    with progress_bar(len(seeds), "seeds", len(seeds) / jobs) as bar:
        for verdict in play_all(seeds, lambda seed: run(seed).brief(), jobs):
            virtual_seconds += verdict.virtual_seconds
            faults += verdict.faults
            if not verdict.passed:
                failed.append(verdict.seed)
                print(verdict.summary(), flush=True)
            bar.advance(1 / jobs, 1)
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{len(seeds)} seeds in {minutes:.1f} min, {len(failed)} failed: "
        f"{virtual_seconds / 3600:.1f} simulated hours and {faults} faults "
        f"({virtual_seconds / 3600 / minutes:.1f} hours, {faults / minutes:.0f} faults a minute)"
    )
    if failed:
        print(f"look at one with: python -m tests.sim --shrink {failed[0]}")
    return 1 if failed else 0


def replay(seed: int, only: str | None, history: str | None) -> int:
    """Play one seed and print every event; write a history for `quorumfs check-history` if wanted."""
    from tests.sim.children import play_all
    from tests.sim.run import run

    wanted = None if only is None else frozenset(int(number) for number in only.split(",") if number)
    verdict = next(play_all([seed], lambda each: run(each, wanted, tell=history is not None), 1))
    if history is not None:
        Path(history).write_text("".join(f"{line}\n" for line in verdict.history))
    print(verdict.timeline())
    print(verdict.summary())
    return 0 if verdict.passed else 1


def shrink(seed: int) -> int:
    """Leave out faults as long as the seed still fails; print the timeline of what is left."""
    from tests.sim.children import play_all
    from tests.sim.run import run

    def play(wanted: frozenset[int]) -> Verdict:
        return next(play_all([seed], lambda each: run(each, wanted), 1))

    verdict = next(play_all([seed], run, 1))
    if verdict.passed:
        print(verdict.summary())
        return 0
    needed = list(range(verdict.steps))
    size = max(1, len(needed) // 2)
    while size:
        start = 0
        while start < len(needed):
            fewer = frozenset(needed[:start] + needed[start + size :])
            tried = play(fewer)
            if tried.passed:
                start += size
            else:
                needed, verdict = sorted(fewer), tried
                print(f"still fails with {len(needed)} faults", file=sys.stderr)
        size //= 2
    print(verdict.timeline(short=True))
    print(verdict.summary())
    only = ",".join(map(str, needed))
    print(f"{len(needed)} faults are needed: python -m tests.sim --replay {seed} --only '{only}'")
    return 1


def mutants(names: list[str], seeds: Iterable[int], jobs: int) -> int:
    """Play seeds with each bug until one fails; exit status 1 if a bug is not what is found by any."""
    from tests.sim.children import play_all
    from tests.sim.mutants import MUTANTS
    from tests.sim.run import Verdict, run

    missed = False
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue

        def play(seed: int, put_in: object = mutant.put_in) -> Verdict:
            assert callable(put_in)
            try:
                put_in()
            except Exception:
                return dataclasses.replace(Verdict.of_dead(seed), problems=[traceback.format_exc()])
            return run(seed).brief()

        tried, found = 0, None
        verdicts = play_all(seeds, play, jobs)
        for verdict in verdicts:
            tried += 1
            if not verdict.passed:
                found = verdict
                break
        verdicts.close()
        without = next(play_all([found.seed], lambda seed: run(seed).brief(), 1)) if found else None
        is_found, told = judge(tried, found, without)
        missed |= not is_found
        print(f"{mutant.name:45} {told}", flush=True)
        if found is not None:
            print(f"    {found.problems[0].splitlines()[0][:150]}")
    return 1 if missed else 0


def judge(tried: int, found: Verdict | None, without: Verdict | None) -> tuple[bool, str]:
    """Return whether a bug is found, and what to say.

    Args:
        tried: how many seeds were played with it.
        found: what came of the one that failed, if one did.
        without: what comes of the same seed without the bug.
    """
    from tests.sim.mutants import stumbles

    if found is None:
        return False, f"NOT FOUND by {tried} seeds"
    if any(map(stumbles, found.problems)):
        return False, "DOES NOT FIT the code any more"
    if without is None or not without.passed:
        return False, f"NOT FOUND: seed {found.seed} fails without it, too"
    return True, f"found by the {tried}th seed, {found.seed}, which passes without it"


if __name__ == "__main__":
    sys.exit(main())
