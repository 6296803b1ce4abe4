"""One cluster's configuration: a frozen dataclass, read from a TOML file and cross-checked once.

Whatever cannot work is refused here with a ConfigError whose message is one line that says what is
wrong and what to do. Pure but for `load`; safe in any thread.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from wire.quorum import Quorum

FORMAT_VERSION = 2
"""Raised with every change of what is kept on disk that an older release cannot read."""

LARGEST_FLOAT = 1e9
LARGEST_INT = 2**62
"""No setting is larger: whatever is made of it fits 64 bits, and each deadline comes."""

Encoding = Literal["msgpack", "xml"]
Unavailability = Literal["fail", "wait"]


class ConfigError(Exception):
    """A setting that cannot work. The message is one line for people; exit status 2."""


@dataclass(frozen=True)
class DataServerConfig:
    """One data server: its number (1..N), where it listens, its directory."""

    number: int
    listen: str
    directory: Path


@dataclass(frozen=True)
class Deadlines:
    """How long each class of call may take before it fails, in seconds (promise P7)."""

    metadata_seconds: float = 30.0
    """A namespace call of the mount, with waiting for restarted servers."""
    read_seconds: float = 30.0
    """A block read of the mount, with waiting for a restarted mediator."""
    write_seconds: float = 30.0
    """A block write or a commit of the mount, with waiting for a restarted mediator."""
    vote_seconds: float = 20.0
    """One data server's answer to the mediator; later it does not count. A disk may be busy for long."""
    silence_seconds: float = 10.0
    """A server that has answered nothing for so long, not even heartbeats, is down."""
    connect_seconds: float = 2.0
    """A connection must be established within."""
    request_seconds: float = 10.0
    """A request must have arrived whole within, on a server."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        for deadline in dataclasses.fields(self):
            _check_above_0(self, deadline.name)


@dataclass(frozen=True)
class ClusterConfig:
    """Everything that the processes of one cluster must agree about.

    Addresses are "HOST:PORT", "[IPV6]:PORT" or "unix:PATH"; port 0 picks a free port. In a file, PATH is
    relative to the file, as directories are.
    """

    cluster: str
    quorum: Quorum
    mediator_listen: str
    metaserver_listen: str
    metaserver_directory: Path
    data_servers: tuple[DataServerConfig, ...]
    more_mediators: tuple[str, ...] = ()
    """Where further mediators listen; a client uses any of them."""
    rpc: Encoding = "msgpack"
    deadlines: Deadlines = field(default_factory=Deadlines)
    unavailable: Unavailability = "fail"
    """Whether the mount's calls fail at their deadlines while servers are away, or wait, until a signal."""
    lease_seconds: float = 30.0
    """A session without heartbeats for so long is dead."""
    alone_seconds: float = 2.5
    """A mount that is the only session counts as alone for so long after each heartbeat, and another one
    waits so long to begin; 0: never."""
    garbage_grace_seconds: float = 2.0
    """Superseded blocks are deleted so long after the commit that superseded them."""
    refill_bytes_per_second: int = 0
    """A server that was away is refilled no faster; 0 bounds nothing."""
    dirty_bytes: int = 256 * 1024 * 1024
    """The most dirty and read-ahead bytes that a mount keeps in memory."""
    commit_age_seconds: float = 30.0
    """Dirty data older than this is written out."""
    reserve_bytes: int = 16 * 1024 * 1024
    """A server takes nothing new while less is free on its disk; repairs may use half of it, deleting all."""
    scrub_days: float = 7.0
    """Every replica is read and checked in the background once in so many days."""
    scrub_bytes_per_second: int = 32 * 1024 * 1024
    """Scrubbing reads no more than this on each data server, however late it is."""
    quarantine_bytes: int = 1024 * 1024 * 1024
    """The most that a data server keeps of copies that lost a vote; the oldest go first."""
    quarantine_days: float = 90.0
    """Copies that lost a vote are kept for so long."""

    metadata_copy_seconds: float = 3600.0
    """A copy of the metadata is stored on the data servers so often, if anything was changed; 0: never."""

    @property
    def mediators(self) -> tuple[str, ...]:
        """Return where all mediators listen, the first one first."""
        return (self.mediator_listen, *self.more_mediators)

    @property
    def grant_seconds(self) -> float:
        """Return how long a session counts as alone: no longer than it lives, or than others can wait."""
        return min(self.alone_seconds, self.lease_seconds / 2, self.deadlines.metadata_seconds / 2)

    def __post_init__(self) -> None:
        if not isinstance(self.cluster, str):
            raise ConfigError(f"cluster = {self.cluster!r}: it is a name, in quotes")
        _check_numbers(self)
        numbers = [server.number for server in self.data_servers]
        wanted = list(range(1, self.quorum.servers + 1))
        if any(type(number) is not int for number in numbers) or sorted(numbers) != wanted:
            raise ConfigError(
                f"data servers are numbered {numbers}: they must be 1 to N={self.quorum.servers}, each once"
            )
        listens = [*self.mediators, self.metaserver_listen, *(s.listen for s in self.data_servers)]
        for address in listens:
            check_address(address)
        fixed = [address for address in listens if not address.endswith(":0")]
        if len(set(fixed)) != len(fixed):
            twice = next(address for address in fixed if fixed.count(address) > 1)
            raise ConfigError(f"two servers listen on {twice}: give each an address of its own")
        above_0 = ("lease_seconds", "dirty_bytes", "scrub_days", "scrub_bytes_per_second", "quarantine_days")
        for name in above_0:
            _check_above_0(self, name)
        at_least_0 = (
            "commit_age_seconds",
            "garbage_grace_seconds",
            "reserve_bytes",
            "quarantine_bytes",
            "refill_bytes_per_second",
            "metadata_copy_seconds",
            "alone_seconds",
        )
        for name in at_least_0:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: choose 0 or more")
        if self.unavailable not in ("fail", "wait"):
            raise ConfigError(f'unavailable = "{self.unavailable}" is unknown: choose "fail" or "wait"')
        if self.rpc not in ("msgpack", "xml"):
            raise ConfigError(f'rpc = "{self.rpc}" is unknown: choose "msgpack" or "xml"')


def _check_numbers(settings: ClusterConfig | Deadlines) -> None:
    """Raise ConfigError for a setting that is to be a number and is none, or one beyond all use."""
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        kinds = {"int": (int,), "float": (int, float)}.get(str(setting.type))
        if kinds is None:
            continue
        kind, most = ("a whole number", LARGEST_INT) if kinds == (int,) else ("a number", LARGEST_FLOAT)
        if type(value) not in kinds or math.isnan(value):
            raise ConfigError(f"{setting.name} = {value!r}: choose {kind}")
        if value > most:
            raise ConfigError(f"{setting.name} = {value!r}: choose {kind} up to {most:g}")


def _check_above_0(settings: ClusterConfig | Deadlines, name: str) -> None:
    if getattr(settings, name) <= 0:
        raise ConfigError(f"{name} = {getattr(settings, name)}: choose a number above 0")


def check_address(address: Any) -> None:
    """Raise ConfigError unless `address` is HOST:PORT, [IPV6]:PORT or unix:PATH."""
    if not isinstance(address, str):
        raise ConfigError(f"{address!r}: an address is text, in quotes")
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or len(path.encode()) > 107 or "\0" in path:
            raise ConfigError(
                f"{address}: a Unix socket's path has 1 to 107 bytes; choose a shorter directory"
            )
        return
    host, colon, port = address.rpartition(":")
    if not colon or not _may_be_host(host) or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address}: an address is HOST:PORT, [IPV6]:PORT or unix:PATH")


def _may_be_host(host: str) -> bool:
    """Tell whether a name can be looked up at all: not with an empty or overlong part, as in `a..b`."""
    try:
        return bool(host.encode("idna")) and "\0" not in host
    except UnicodeError:
        return False


def load(path: Path) -> ClusterConfig:
    """Read and check a configuration file; relative directories are relative to the file.

    Raises:
        ConfigError: the file is missing, is no TOML, or holds a setting that cannot work.
    """
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; `quorumfs up` makes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return parse(raw, path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _advice(version: Any) -> str:
    """Return what to do about a configuration of another format."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        return "it is no configuration of quorumfs"
    return f"use the {'newer' if version > FORMAT_VERSION else 'older'} release that wrote it"


def parse(raw: dict[str, Any], base: Path) -> ClusterConfig:
    """Build the configuration from a parsed TOML document. Raises ConfigError."""
    raw = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    if "format" not in raw:
        raise ConfigError(f"the setting 'format' is missing: begin the file with: format = {FORMAT_VERSION}")
    if (version := raw.pop("format")) != FORMAT_VERSION:
        raise ConfigError(
            f"format = {version!r}: this release reads format {FORMAT_VERSION} only; {_advice(version)}"
        )
    try:
        quorum = _table(raw.pop("quorum"), "[quorum]", {"N", "Qr", "Qw"})
        metaserver = _table(raw.pop("metaserver"), "[metaserver]", {"listen", "directory"})
        mediator = _table(raw.pop("mediator"), "[mediator]", {"listen", "more"})
        servers = [
            _table(server, "dataserver", {"number", "listen", "directory"})
            for server in raw.pop("dataserver")
        ]
        deadlines = _table(raw.pop("deadlines", {}), "[deadlines]", _names(Deadlines))
        _table(raw, "the file", PLAIN)
        more = mediator.get("more", [])
        if not isinstance(more, list) or not all(isinstance(address, str) for address in more):
            raise ConfigError("more of [mediator] is a list of addresses")
        return ClusterConfig(
            cluster=raw.pop("cluster"),
            quorum=Quorum(quorum["N"], quorum["Qr"], quorum["Qw"]),
            mediator_listen=_address(mediator["listen"], base),
            more_mediators=tuple(_address(address, base) for address in more),
            metaserver_listen=_address(metaserver["listen"], base),
            metaserver_directory=_directory(metaserver["directory"], base),
            data_servers=tuple(
                DataServerConfig(
                    server["number"],
                    _address(server["listen"], base),
                    _directory(server["directory"], base),
                )
                for server in servers
            ),
            deadlines=Deadlines(**deadlines),
            **raw,
        )
    except KeyError as error:
        raise ConfigError(f"the setting {error} is missing") from None
    except TypeError as error:
        raise ConfigError(f"ill-typed setting: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _names(kind: type[ClusterConfig | Deadlines]) -> set[str]:
    return {setting.name for setting in dataclasses.fields(kind)}


PLAIN = _names(ClusterConfig) - {
    "quorum",
    "mediator_listen",
    "more_mediators",
    "metaserver_listen",
    "metaserver_directory",
    "data_servers",
    "deadlines",
}
"""The settings that stand in the file as they are called, above all tables."""


def _table(found: Any, where: str, known: set[str]) -> dict[str, Any]:
    """Return a table all of whose settings are known: one in the wrong place would be ignored silently."""
    if not isinstance(found, dict):
        raise ConfigError(f"{where} = {found!r}: it is a table, with the settings {', '.join(sorted(known))}")
    if unknown := sorted(found.keys() - known):
        advice = f"it has {', '.join(sorted(known))}"
        if unknown[0] in PLAIN:
            advice = "it belongs above the first table, like [quorum]"
        raise ConfigError(f"unknown setting {unknown[0]!r} in {where}: {advice}")
    return found


def _directory(found: Any, base: Path) -> Path:
    if not isinstance(found, str):
        raise ConfigError(f"directory = {found!r}: it is a path, in quotes")
    return base / found


def _address(found: Any, base: Path) -> Any:
    """Return an address; the path of a Unix socket is relative to the file, as directories are."""
    if isinstance(found, str) and found.startswith("unix:") and found != "unix:":
        return f"unix:{base / found.removeprefix('unix:')}"
    return found


def dumps(config: ClusterConfig, base: Path | None = None) -> str:
    """Return a configuration as TOML, directories relative to `base` where they lie in it."""

    def place(directory: Path) -> str:
        if base is not None and directory.is_relative_to(base):
            return str(directory.relative_to(base))
        return str(directory)

    return tomli_w.dumps(
        {
            "format": FORMAT_VERSION,
            **{name: getattr(config, name) for name in sorted(PLAIN)},
            "quorum": {"N": config.quorum.servers, "Qr": config.quorum.read, "Qw": config.quorum.write},
            "mediator": {
                "listen": config.mediator_listen,
                **({"more": list(config.more_mediators)} if config.more_mediators else {}),
            },
            "metaserver": {
                "listen": config.metaserver_listen,
                "directory": place(config.metaserver_directory),
            },
            "dataserver": [
                {"number": s.number, "listen": s.listen, "directory": place(s.directory)}
                for s in config.data_servers
            ],
            "deadlines": dataclasses.asdict(config.deadlines),
        }
    )
