"""What a local cluster's state means for its user: healthy or not, why, what to do.

The processes' states come from the operating system, the quorum's view from the mediator's status; either
can be missing. It must not start or stop anything. Judging is pure; asking is apart.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tools.backup import when
from tools.cluster import LocalCluster, ProcessStatus
from tools.locate import as_typed, typed
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.errors import QuorumfsError
from wire.methods.common import CommonMethods
from wire.quorum import Quorum

STATUS_SECONDS = 3.0
WRITABLE_SECONDS = 10.0
ALL_SEEN_SECONDS = 2.0
LOOK_SECONDS = 0.03
PAUSE_SECONDS = 0.5
"""Between two looks for a cluster that may start minutes later."""

Word = Literal["healthy", "degraded", "down"]
EXIT_STATUS: dict[Word, int] = {"healthy": 0, "degraded": 1, "down": 3}


FAILURES_TOLD = 3
"""A copy of the metadata that fails is tried again each minute; one failure may be that of a restart."""


class Health(NamedTuple):
    """A cluster's health in one word, whether it can be written to (or why not), and what to do."""

    word: Word
    writable: bool
    reason: str
    advice: list[str]


def assess(
    quorum: Quorum,
    processes: Sequence[ProcessStatus],
    mediator: dict[str, Any] | None,
    metaserver: dict[str, Any] | None = None,
    state: Path | None = None,
) -> Health:
    """Judge a cluster.

    Args:
        quorum: its thresholds.
        processes: its servers and mounts.
        mediator: the mediator's own status, or None if it does not answer.
        metaserver: the metadata server's own status, likewise.
        state: the --state that commands need to find the cluster.
    """
    servers = [process for process in processes if not process.name.startswith("mount-")]
    if all(server.state == "down" for server in servers):
        start = f"start the cluster with: {typed('up', state)}"
        if any(server.elsewhere for server in servers):
            start = "start each server on its own machine: see `quorumfs serve --help`"
        return Health("down", False, "nothing is running", [start])
    advice = [line for process in processes for line in _advice(process, state)]
    advice += _damage_advice(metaserver, state) + _older_advice(metaserver, state)
    if mediator is None:
        lacking = next((s for s in servers if s.name == "mediator" and s.state != "running"), None)
        reason = f"the mediator is {lacking.state}" if lacking else "the mediator does not answer"
        restart = typed("fault restart mediator", state)
        advice = advice or [f"look into the mediator's log, or restart it with: {restart}"]
        return Health("degraded", False, reason, advice)
    advice += _copies_advice(mediator) + _disk_advice(mediator, state) + _room_advice(mediator)
    refusals = (_metaserver_down(mediator), mediator["no_room"], _changes_refused(metaserver))
    refusal = next(filter(None, refusals), "")
    writable, reason = bool(mediator["writable"]) and not refusal, str(mediator["reason"]) or refusal
    if not writable and not reason:
        reason = f"fewer than Qw={quorum.write} data servers are up"
    links = [mediator["metaserver"], *mediator["servers"]]
    whole = writable and not advice and all(link["state"] == "up" for link in links)
    word: Word = "healthy" if whole else "degraded"
    return Health(word, writable, as_typed(reason, state), [as_typed(line, state) for line in advice])


def _advice(process: ProcessStatus, state: Path | None) -> list[str]:
    word = process.name.removeprefix("data-")
    if process.state == "running":
        return []
    if process.name.startswith("mount-"):
        again = typed(f"up {shlex.quote(process.address)}", state)
        return [f"the mount on {process.address} has ended; mount it again with: {again}"]
    if process.state == "paused":
        return [f"{process.name} is paused; let it go on with: {typed(f'fault resume {word}', state)}"]
    if process.elsewhere:
        kind, _, number = process.name.replace("metaserver", "meta").partition("-")
        serve = typed(f"serve {kind} --number {number}" if number else f"serve {kind}", None)
        return [f"{process.name} is down; start it on its own machine with: {serve}"]
    restart, up = typed(f"fault restart {word}", state), typed("up", state)
    return [f"{process.name} is down; start it with: {restart} (or all: {up})"]


def _damage_advice(metaserver: dict[str, Any] | None, state: Path | None) -> list[str]:
    """Say what to do about a damaged metadata database, or one whose disk failed."""
    pages = (metaserver or {}).get("pages", {})
    if (why := pages.get("log_failure")) is not None:
        return [
            f"the metadata server's disk failed ({why}), and every change is refused; look after "
            f"the disk, then start it anew with: {typed('fault restart metaserver', state)}"
        ]
    if (why := (metaserver or {}).get("disk_failure")) is not None:
        return [
            f"the metadata server's disk did not take the last change ({why}); look after the disk, which "
            f"may be read-only by now, then start it anew with: {typed('fault restart metaserver', state)}"
        ]
    if why := (metaserver or {}).get("displaced"):
        return [f"every change is refused: {why}"]
    if not pages.get("damaged"):
        return []
    mend = (
        f"stop the cluster with `{typed('down', state)}`; then: {typed('restore FILE', state)}, "
        f"or {typed('rebuild --replace', state)}"
    )
    frames = ", ".join(map(str, pages.get("damaged_log_pages", [])))
    if frames:
        return [
            f"the log of the metadata database is damaged (its pages: {frames}), and every change is "
            f"refused, as it would be lost at the next start; {mend}"
        ]
    where = ", ".join(map(str, pages["damaged_pages"])) or pages["found"]
    return [
        f"the metadata database is damaged (pages: {where}), and calls that need what was stored there fail; "
        f"{mend}"
    ]


def _changes_refused(metaserver: dict[str, Any] | None) -> str:
    """Say why the metadata server takes no change, "" if it does or does not answer."""
    said = metaserver or {}
    pages = said.get("pages", {})
    if pages.get("log_failure") is not None or said.get("disk_failure") is not None:
        return "the metadata server's disk failed"
    if said.get("displaced"):
        return "a file of the metadata database was removed or replaced"
    if pages.get("damaged_log_pages"):
        return "the log of the metadata database is damaged"
    return str(said.get("no_room", ""))


def _older_advice(metaserver: dict[str, Any] | None, state: Path | None) -> list[str]:
    """Say what to do about a metadata database that was put back by hand."""
    found_ns = (metaserver or {}).get("found_older_ns", 0)
    if not found_ns:
        return []
    down, rebuild = typed("down", state), typed("rebuild --replace", state)
    return [
        f"the metadata database was an older one when it was started ({when(found_ns)}): changes since are "
        f"missing, newer blocks are kept, and no copy is stored; `{down}`, then `{rebuild}` brings back the "
        f"newest copy on the data servers; or keep what is here, as `{typed('fsck', state)}` tells of it: "
        f"{down}, then {typed('restore --release', state)}"
    ]


def _copies_advice(mediator: dict[str, Any]) -> list[str]:
    """Say why no copy of the metadata could be stored for some time."""
    copies = mediator["metadata_copies"]
    failing = mediator["writable"] and copies["failures"] >= FAILURES_TOLD
    return (
        [f"no copy of the metadata can be stored on the data servers: {copies['error']}"] if failing else []
    )


def _disk_advice(mediator: dict[str, Any], state: Path | None) -> list[str]:
    """Say which data servers take no write any more, as their disk failed to make something durable."""
    return [
        f"the disk of data-{number} failed ({why}), and it takes no more writes; look after it, "
        f"then start it anew with: {typed(f'fault restart {number}', state)}"
        for number, why in ((each["number"], each.get("disk_failure")) for each in mediator["servers"])
        if why
    ]


def _metaserver_down(mediator: dict[str, Any]) -> str:
    """Say that the mediator cannot reach the metadata server, "" if it can."""
    link = mediator["metaserver"]
    if link["state"] == "up":
        return ""
    return f"the metadata server is down ({link['error']}): files can be neither read nor written without it"


def _room_advice(mediator: dict[str, Any]) -> list[str]:
    """Say which data servers are full, and so lack what was written since."""
    return [
        f"the disk of data-{each['number']} is full; delete files, or give it a larger one: what it lacks "
        "comes to it when it has room"
        for each in mediator["servers"]
        if each.get("full")
    ]


def ask_mediator(cluster: LocalCluster, deadline_seconds: float = STATUS_SECONDS) -> dict[str, Any] | None:
    """Return the status of the first mediator that answers in time, or None."""
    for name in cluster.mediator_names:
        if (status := _ask(cluster, name, deadline_seconds)) is not None:
            return status
    return None


def ask_metaserver(cluster: LocalCluster, deadline_seconds: float = STATUS_SECONDS) -> dict[str, Any] | None:
    """Return the metadata server's own status, or None if it does not answer in time."""
    return _ask(cluster, "metaserver", deadline_seconds)


def look(
    cluster: LocalCluster, mediator: dict[str, Any] | None, metaserver: dict[str, Any] | None
) -> list[ProcessStatus]:
    """Return how each process is; one that was started elsewhere, as by `serve`, runs if it answers.

    Args:
        cluster: whose state directory knows only what was started from it.
        mediator: the status of a mediator, or None if none answers.
        metaserver: the metadata server's own status, likewise.
    """
    links = [] if mediator is None else mediator["servers"]
    elsewhere = {f"data-{link['number']}" for link in links if link["state"] != "down"}
    if metaserver is not None:
        elsewhere.add("metaserver")
    if mediator is not None:
        elsewhere |= {name for name in cluster.mediator_names if _answers_elsewhere(cluster, name)}
    found = cluster.status()
    return [p._replace(state="running") if p.state == "down" and p.name in elsewhere else p for p in found]


def _answers_elsewhere(cluster: LocalCluster, name: str) -> bool:
    return cluster.state(name) == "down" and _ask(cluster, name, STATUS_SECONDS) is not None


def _ask(cluster: LocalCluster, name: str, deadline_seconds: float) -> dict[str, Any] | None:
    state = cluster.state(name)
    if state == "paused":
        return None
    client = BlockingClient([cluster.address(name)], cluster.config.rpc)
    try:
        if state == "down":  # here; whoever answers must be of this cluster
            identity = client.call_once(deadline_seconds, CommonMethods.identity)
            if identity.cluster != cluster.config.cluster:
                return None
        status: dict[str, Any] = client.call_once(deadline_seconds, CommonMethods.status)
        return status
    except QuorumfsError:
        return None
    finally:
        client.close()


def await_writable(cluster: LocalCluster, deadline_seconds: float = WRITABLE_SECONDS) -> None:
    """Wait until the mediator has seen enough data servers to write, and a moment for the others that run.

    Raises:
        ClusterError: it has not in time; the message has its reason.
    """
    _await(cluster, deadline_seconds, lambda status: bool(status["writable"]), "not writable")


def await_answer(cluster: LocalCluster, deadline_seconds: float = WRITABLE_SECONDS) -> None:
    """Wait until the mediator answers, and a moment until it has seen all data servers that run.

    Raises:
        ClusterError: it does not in time.
    """
    _await(cluster, deadline_seconds, lambda status: True, "no answer")


def await_metadata(cluster: LocalCluster, seconds: float, begin: Callable[[], object]) -> None:
    """Return when a mediator reaches the metadata server, as a mount needs it, or after so many seconds.

    Args:
        cluster: which may be starting still, on other machines too.
        seconds: 0 looks for nothing.
        begin: is called if it is not there at once.
    """
    end = time.monotonic() + seconds
    if not seconds or _has_metadata(ask_mediator(cluster)):
        return
    begin()
    while (left := end - time.monotonic()) > 0 and not _has_metadata(ask_mediator(cluster)):
        time.sleep(min(left, PAUSE_SECONDS))


def _has_metadata(mediator: dict[str, Any] | None) -> bool:
    return mediator is not None and mediator["metaserver"]["state"] == "up"


def _await(
    cluster: LocalCluster,
    deadline_seconds: float,
    is_enough: Callable[[dict[str, Any]], bool],
    failure: str,
) -> None:
    end = time.monotonic() + deadline_seconds
    all_by = min(end, time.monotonic() + ALL_SEEN_SECONDS)
    reason = "the mediator does not answer"
    while time.monotonic() < end:
        status = ask_mediator(cluster)
        if (
            status is not None
            and is_enough(status)
            and (time.monotonic() > all_by or _sees_all(cluster, status))
        ):
            return
        reason = reason if status is None else str(status["reason"])
        time.sleep(LOOK_SECONDS)
    raise ClusterError(f"{failure} within {deadline_seconds:g} s: {reason}")


def _sees_all(cluster: LocalCluster, status: dict[str, Any]) -> bool:
    """Tell whether the mediator has reached every data server whose process runs."""
    return all(
        link["state"] != "down" or cluster.state(f"data-{link['number']}") != "running"
        for link in status["servers"]
    )
