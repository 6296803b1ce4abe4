"""The commands that make, start and stop what runs: up, down, mount, umount, serve.

Whatever cannot work is refused before anything is started; what one call started, it stops again when it
fails. One command at a time changes a state directory (LocalCluster.lock).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from dataserver.segment import segment_paths
from metaserver.directory import DATABASE_NAME, RESTORED_NAME
from tools import mounts
from tools.cluster import SUPERVISE, LocalCluster
from tools.health import ask_mediator, ask_metaserver, await_answer, await_metadata, await_writable
from tools.locate import DEFAULT_STATE, add_state_option, as_typed, find_cluster, find_directory, typed
from tools.output import add_json_option, nice_path, print_json
from tools.processes import ClusterError, python_command, python_environment
from tools.state_directory import CONFIG_NAME
from wire.config import ClusterConfig, ConfigError, load
from wire.directories import IDENTITY_NAME
from wire.hints import how_to_start

DEFAULT_MOUNTPOINT = Path("mnt")
DEFAULT_SERVERS = 5
MOST_SECONDS = 86400.0
"""Nobody waits longer for a cluster."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add up, down, mount, umount and serve."""
    up = subparsers.add_parser(
        "up", help="start a local cluster and mount it; what dies stays down until the next up"
    )
    up.add_argument("mountpoint", nargs="?", type=Path, help="where to mount it (default: ./mnt)")
    up.add_argument("--servers", type=int, metavar="N", help="data servers (default: 5)")
    up.add_argument("--mediators", type=int, metavar="K", help="mediators side by side (default: 1)")
    up.add_argument(
        "--read-quorum", type=int, metavar="QR", help="replicas that vouch for a read (default: 3)"
    )
    up.add_argument("--write-quorum", type=int, metavar="QW", help="replicas that hold a write (default: N)")
    up.add_argument("--rpc", choices=["msgpack", "xml"], help="what the parts speak (default: msgpack)")
    up.add_argument(
        "--begin-empty",
        action="store_true",
        help="where the metadata is gone, begin without any file; blocks of data servers are kept",
    )
    _finish(up, run_up)
    down = subparsers.add_parser("down", help="unmount the cluster and stop its servers; the files stay")
    down.add_argument("--force", action="store_true", help="also while files on the mount are in use")
    _finish(down, run_down)
    mount = subparsers.add_parser("mount", help="mount a running cluster, also at a second place")
    mount.add_argument("mountpoint", nargs="?", type=Path, default=DEFAULT_MOUNTPOINT)
    mount.add_argument(
        "--no-supervise", action="store_true", help="do not mount it again if its process dies (as up does)"
    )
    mount.add_argument("--read-only", action="store_true", help="refuse all changes made through this mount")
    mount.add_argument("--no-exec", action="store_true", help="refuse to run programs from this mount")
    mount.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait so long at most until the metadata server can be reached, as after a boot",
    )
    _finish(mount, run_mount)
    umount = subparsers.add_parser("umount", help="unmount; the servers go on")
    umount.add_argument("mountpoint", nargs="?", type=Path, help="which (default: all of the cluster)")
    umount.add_argument("--force", action="store_true", help="also while files on the mount are in use")
    _finish(umount, run_umount)
    serve = subparsers.add_parser("serve", help="run one server in the foreground")
    serve.add_argument("kind", choices=["mediator", "meta", "data"])
    serve.add_argument("--config", type=Path, metavar="FILE", help="the cluster's configuration file")
    serve.add_argument("--number", type=int, metavar="K", help="which data server, 1 to N, or mediator")
    serve.add_argument("--lab", action="store_true", help="offer the fault methods (data server only)")
    add_state_option(serve)
    serve.set_defaults(run=run_serve)


def _finish(parser: argparse.ArgumentParser, run: Any) -> None:
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run_up(arguments: argparse.Namespace) -> int:
    """Make the cluster if it is new, start what is down, mount it if it is not mounted.

    Returns 1 if it is there without a data server that could not be started.
    """
    directory = (find_directory(arguments.state) or DEFAULT_STATE).resolve()
    mounts.check_fuse()
    with ExitStack() as undo:
        is_new = not (directory / CONFIG_NAME).exists()
        cluster = _create(directory, arguments) if is_new else LocalCluster.open(directory)
        undo.enter_context(cluster.lock())
        if is_new:
            undo.push(partial(_discard, cluster))
        _check_options(arguments, cluster)
        places = _live_mounts(cluster)
        wanted = _wanted_place(arguments.mountpoint, places, undo)
        if not arguments.begin_empty and cluster.state("metaserver") == "down":
            refuse_lost_metadata(cluster.config, arguments.state)
        if down := [name for name in cluster.server_names if cluster.state(name) == "down"]:
            undo.callback(cluster.stop, *down)  # before an interrupt can come between
        started, failed = (cluster.start(), {}) if is_new else cluster.start_enough()
        for name in cluster.server_names:
            if cluster.state(name) == "paused":
                cluster.resume(name)
        quorum = cluster.config.quorum
        if quorum.servers - len(failed) >= quorum.write:
            await_writable(cluster)
        else:
            await_answer(cluster)
        if wanted is not None:
            cluster.mount(wanted)
        given = arguments.mountpoint
        place = wanted or (places[0] if given is None else mounts.place_of(given))
        # From here on nothing is taken back: the lock alone is let go.
        undo.pop_all()
    _print_up(arguments, cluster, place, started, failed)
    return int(bool(failed))


def _discard(cluster: LocalCluster, kind: object, error: BaseException | None, trace: object) -> None:
    """Take a new cluster back that does not start; logs that the error names are kept elsewhere."""
    logs = cluster.directory / "logs"
    kept: Path | None = None
    if isinstance(error, ClusterError) and str(logs) in str(error):
        kept = Path(tempfile.mkdtemp(prefix="quorumfs-logs-"))
        shutil.copytree(logs, kept, dirs_exist_ok=True)
    cluster.discard()
    if kept is not None:
        raise ClusterError(str(error).replace(str(logs), str(kept))) from None


def refuse_lost_metadata(config: ClusterConfig, state: Path | None) -> None:
    """Raise ConfigError if no file system was begun in meta/, or it is gone, and yet there are blocks.

    A metadata server that is started there begins one without any file, as on a disk that is not mounted.
    Raises OSError if it cannot be seen whether there are blocks.
    """
    place = config.metaserver_directory
    if any((place / name).exists() for name in (IDENTITY_NAME, DATABASE_NAME, RESTORED_NAME)):
        return
    for server in config.data_servers:
        if segment_paths(server.directory / "segments"):
            raise ConfigError(
                f"{place} is empty, and yet data-{server.number} has blocks: mount its disk, or bring the "
                f"metadata back with `{typed('restore FILE', state)}` or `{typed('rebuild', state)}`; to "
                f"begin without any file: {typed('up --begin-empty', state)}"
            )


def _create(directory: Path, arguments: argparse.Namespace) -> LocalCluster:
    servers = DEFAULT_SERVERS if arguments.servers is None else arguments.servers
    given = {"read_quorum": arguments.read_quorum, "write_quorum": arguments.write_quorum}
    return LocalCluster.create(
        directory,
        servers=servers,
        mediators=1 if arguments.mediators is None else arguments.mediators,
        read_quorum=servers // 2 + 1 if given["read_quorum"] is None else given["read_quorum"],
        write_quorum=servers if given["write_quorum"] is None else given["write_quorum"],
        rpc=arguments.rpc or "msgpack",
    )


def _check_options(arguments: argparse.Namespace, cluster: LocalCluster) -> None:
    """Refuse options that contradict the settings that the cluster was made with."""
    quorum = cluster.config.quorum
    for option, stored in (
        ("servers", quorum.servers),
        ("mediators", len(cluster.config.mediators)),
        ("read_quorum", quorum.read),
        ("write_quorum", quorum.write),
        ("rpc", cluster.config.rpc),
    ):
        given = getattr(arguments, option)
        if given is not None and given != stored:
            name = option.replace("_", "-")
            raise ConfigError(
                f"--{name} {given} contradicts {stored}, with which the cluster in {cluster.directory} was "
                f"made; leave --{name} out, or make another cluster with --state DIR"
            )


def _live_mounts(cluster: LocalCluster) -> list[Path]:
    """Return where the cluster is mounted, after clearing away what dead mounts left behind.

    The process of one that was unmounted by other means may still be ending.
    """
    cluster.clear_dead_mounts()
    records = [cluster.process(name).record() for name in cluster.mount_names()]
    places = [Path(record.place) for record in records if record is not None]
    return [place for place in places if mounts.mount_at(place) is not None]


def _wanted_place(given: Path | None, places: list[Path], undo: ExitStack) -> Path | None:
    """Return where to mount, checked, or None if it is mounted there (or, if none is given, anywhere)."""
    if given is None and places:
        return None  # without a look at what may be a mount whose servers are down
    place = mounts.place_of(given or DEFAULT_MOUNTPOINT)
    if place in places:
        return None
    if given is None and not place.exists() and place.parent.is_dir():
        try:
            place.mkdir()
        except OSError as error:
            raise ConfigError(f"{place}: cannot be made: {error.strerror}; name a mount point") from None
        undo.callback(place.rmdir)
    mounts.check_mountpoint(place)
    return place


def _print_up(
    arguments: argparse.Namespace,
    cluster: LocalCluster,
    place: Path,
    started: list[str],
    failed: dict[str, Exception],
) -> None:
    quorum = cluster.config.quorum
    for name, error in failed.items():
        why = as_typed(str(error).removeprefix(f"{name}: "), arguments.state)
        print(f"quorumfs: {name} is not up, and the others go on without it: {why}", file=sys.stderr)
    if arguments.json:
        return print_json(
            {
                "mountpoint": place,
                "state_directory": cluster.directory,
                "started": started,
                "not_up": {name: str(error) for name, error in failed.items()},
                "N": quorum.servers,
                "Qr": quorum.read,
                "Qw": quorum.write,
            }
        )
    state, mount = arguments.state, shlex.quote(nice_path(place))
    bearable = ",".join(map(str, range(1, max(1, min(2, quorum.servers - quorum.read)) + 1)))
    numbers = f"N={quorum.servers} data servers, Qr={quorum.read}, Qw={quorum.write}"
    print(f"quorumfs is mounted on {place}: {numbers}.")
    print("Three things to try:")
    print(f"  echo 1234 > {mount}/a.txt; cat {mount}/a.txt")
    corrupt = typed(f"fault corrupt {mount}/a.txt --servers {bearable}", state)
    print(f"  {corrupt}; cat {mount}/a.txt; {typed(f'explain {mount}/a.txt', state)}")
    print(f"  {typed(f'fault terminate {min(3, quorum.servers)}', state)}; {typed('status', state)}")
    return None


def run_down(arguments: argparse.Namespace) -> int:
    """Unmount everything and stop all servers. A mount in use is an error, and everything goes on."""
    cluster = find_cluster(arguments.state)
    with cluster.lock():
        for name in cluster.mounts_inside_out():
            cluster.unmount(name, force=arguments.force)
        running = [name for name in cluster.server_names if cluster.state(name) != "down"]
        killed = cluster.stop(*running) if running else []
    if not running and (ask_mediator(cluster) or ask_metaserver(cluster)):
        raise ClusterError(
            f"its servers run, but not from {cluster.directory}; end them where they were started"
        )
    if arguments.json:
        print_json({"stopped": running, "killed": killed, "state_directory": cluster.directory})
    elif running:
        command = typed("up", arguments.state)
        print(f"stopped; the files are kept in {cluster.directory}, and `{command}` brings them back")
    else:
        print(f"nothing was running; the files are kept in {cluster.directory}")
    return 0


def run_mount(arguments: argparse.Namespace) -> int:
    """Mount a running cluster at one more place, beside a parent that mounts it again should it die."""
    cluster = find_cluster(arguments.state)
    place = mounts.place_of(arguments.mountpoint)
    waiting = f"quorumfs: waiting for the metadata server, {arguments.wait:g} s at most"
    await_metadata(cluster, arguments.wait, lambda: print(waiting, file=sys.stderr, flush=True))
    with cluster.lock():
        if ask_mediator(cluster) is None and _all_down(cluster, cluster.mediator_names):
            start = as_typed(how_to_start(cluster.config), arguments.state)
            raise ConfigError(f"the mediator is down; {start}")
        if place in _live_mounts(cluster):
            raise ConfigError(f"{arguments.mountpoint}: the cluster is mounted there already")
        options = [] if arguments.no_supervise else [SUPERVISE]
        options += ["--refuse", "ro"] * arguments.read_only + ["--refuse", "noexec"] * arguments.no_exec
        name = cluster.mount(arguments.mountpoint, *options)
    if arguments.json:
        print_json({"name": name, "mountpoint": place})
    else:
        print(f"mounted on {place}")
    return 0


def _seconds(text: str) -> float:
    found = float(text)
    if not 0 <= found <= MOST_SECONDS:
        raise ValueError(text)
    return found


def _all_down(cluster: LocalCluster, names: Sequence[str]) -> bool:
    return all(cluster.state(name) == "down" for name in names)


def run_umount(arguments: argparse.Namespace) -> int:
    """Unmount one place or all; what was written is committed first."""
    place = None if arguments.mountpoint is None else mounts.place_of(arguments.mountpoint)
    cluster = find_cluster(arguments.state, place)
    wanted = None if place is None else str(place)
    done = []
    with cluster.lock():
        for name in cluster.mounts_inside_out():
            record = cluster.process(name).record()
            if record is not None and wanted in (None, record.place):
                cluster.unmount(name, force=arguments.force)
                done.append(record.place)
    if wanted is not None and not done:
        see = typed("status", arguments.state)
        raise ConfigError(f"{arguments.mountpoint}: this cluster is not mounted there; see: {see}")
    if arguments.json:
        print_json({"unmounted": done})
    else:
        print("\n".join(f"unmounted {place}" for place in done) or "nothing was mounted")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """Become one server: replaces this process, so that signals reach the server itself."""
    file = arguments.config or find_cluster(arguments.state).config_file
    config = load(file)
    if arguments.kind == "meta":
        refuse_lost_metadata(config, arguments.state)
    module = {"mediator": "mediator", "meta": "metaserver", "data": "dataserver"}[arguments.kind]
    words = [*python_command(module), "--config", str(file)]
    if arguments.kind == "data":
        if arguments.number is None:
            raise ConfigError(f"which data server? name it with --number 1 to {config.quorum.servers}")
        words += ["--number", str(arguments.number), *(["--lab"] if arguments.lab else [])]
    elif arguments.lab or (arguments.number is not None and arguments.kind == "meta"):
        raise ConfigError(f"--number and --lab are for others; leave them out for {arguments.kind}")
    elif arguments.number is not None:
        words += ["--number", str(arguments.number)]
    sys.stdout.flush()
    os.execve(words[0], words, python_environment())
