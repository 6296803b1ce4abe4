"""`python -m fusefs --config FILE MOUNTPOINT`: mount a cluster, in the foreground, until it is unmounted.

Parses and wires; no logic of its own. Exit status 0 after a clean unmount (fusermount3 -u, SIGTERM,
SIGINT), 2 with one line on standard error for settings that cannot work.
"""

from __future__ import annotations

import argparse
import errno
import gc
import getpass
import logging
import os
import shlex
import socket
import sys
from functools import partial
from pathlib import Path

from fusefs.connect import connect
from fusefs.operations import Binding, MountOptions, serve
from fusefs.supervisor import supervise
from wire.config import ClusterConfig, ConfigError, load
from wire.memory import give_back_unneeded_memory, keep_freed_memory
from wire.open_files import allow_open_files
from wire.process import EXIT_BAD_SETTINGS, print_ready, set_up_logging

DEVICE = Path("/dev/fuse")
FUSE_SETTINGS = Path("/etc/fuse.conf")


def main() -> int:
    """Mount and serve; return the exit status."""
    options = _parse()
    set_up_logging()
    keep_freed_memory()
    allow_open_files()
    if options.log is not None:
        _log_to(options.log)
    if options.supervise:
        words = [word for word in sys.argv[1:] if word != "--supervise"]
        return supervise([sys.executable, "-P", "-m", "fusefs", *words], options.mountpoint.absolute())
    try:
        config = load(options.config)
        mountpoint = check_mountpoint(options.mountpoint)
        check_device()
        run(config, options.config.absolute().parent, mountpoint, tuple(options.refuse), options.binding)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    return 0


def run(
    config: ClusterConfig,
    directory: Path,
    mountpoint: Path,
    refused: tuple[str, ...],
    binding: Binding | None,
) -> None:
    """Connect, mount, and serve until unmounted; `directory` has the configuration. Raises ConfigError."""
    name = f"mount {mountpoint} of {getpass.getuser()} on {socket.gethostname()} (pid {os.getpid()})"
    give_back_unneeded_memory()
    with connect(config, name) as filesystem:
        ready = partial(_tell_ready, mountpoint)
        options = MountOptions(str(mountpoint), str(directory), others_allowed(), refused, ready)
        serve(filesystem, options, binding)


def _tell_ready(mountpoint: Path) -> None:
    gc.freeze()  # what is here now stays: no collection needs to look at it again
    print_ready("mount", 0, str(mountpoint))


def check_mountpoint(mountpoint: Path) -> Path:
    """Return the absolute path of a place where something can be mounted, or raise ConfigError."""
    try:
        place = mountpoint.resolve(strict=True)
        empty = next(place.iterdir(), None) is None
    except FileNotFoundError:
        make = f"mkdir -p {shlex.quote(str(mountpoint))}"
        raise ConfigError(f"{mountpoint}: no such directory; make it with: {make}") from None
    except NotADirectoryError:
        raise ConfigError(f"{mountpoint}: not a directory; choose an empty directory") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            free = f"fusermount3 -u -z {shlex.quote(str(mountpoint))}"
            raise ConfigError(f"{mountpoint}: a dead mount is there; free it with: {free}") from None
        raise ConfigError(f"{mountpoint}: cannot be used as a mount point: {error.strerror}") from None
    if place.is_mount():
        raise ConfigError(f"{place}: something is mounted there already; unmount it or choose another place")
    if not empty:
        raise ConfigError(f"{place}: not empty; choose an empty directory, so that nothing is hidden")
    return place


def check_device() -> None:
    """Raise ConfigError unless this user may open /dev/fuse."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        raise ConfigError(
            f"{DEVICE}: {error.strerror}; load the kernel module with: modprobe fuse "
            "(in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN)"
        ) from None


def others_allowed() -> bool:
    """Tell whether users other than this one may be let in: as root, or if fuse.conf says so."""
    if os.geteuid() == 0:
        return True
    try:
        lines = FUSE_SETTINGS.read_text().splitlines()
    except OSError:
        return False
    return "user_allow_other" in (line.strip() for line in lines)


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fusefs", description="Mount a quorumfs cluster.")
    parser.add_argument("--config", type=Path, required=True, help="the cluster's configuration file")
    parser.add_argument(
        "--supervise", action="store_true", help="mount it again whenever the process that serves it dies"
    )
    parser.add_argument(
        "--binding", choices=("mfusepy", "fusepy"), help="default: mfusepy if it can be loaded"
    )
    parser.add_argument(
        "--refuse",
        action="append",
        choices=("ro", "noexec"),
        default=[],
        help="have the kernel refuse all changes (ro), or to run programs (noexec)",
    )
    parser.add_argument("--log", type=Path, help="also log to this file")
    parser.add_argument("mountpoint", type=Path, help="an empty directory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
