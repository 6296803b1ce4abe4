"""What the sweeps share: what is stored, the outcomes in their words, and the tables in Markdown.

Outcomes: *right*; *refused* (an error); *wrong* (other bytes, or an update that was refused and still changed
the file); *lost* (refused though at most N-Qr servers were faulted, or not healed in the end); *unsure* (an
update whose answer did not come until the deadline: an error, and the new bytes are there); *hung* (longer
than its deadlines).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tools.access import ClientAccess
from tools.cluster import LocalCluster
from tools.locate import mediator_client
from wire.config import Deadlines
from wire.errors import QuorumfsError
from wire.methods import CommonMethods

SERVERS, READ_QUORUM = 3, 2
TOLERATED = SERVERS - READ_QUORUM
COUNTS = (1, 2, 3)
OPERATIONS = ("read", "update", "refill")
DEADLINES = Deadlines(
    metadata_seconds=4.0, read_seconds=4.0, write_seconds=4.0, vote_seconds=1.5, silence_seconds=3.0
)
QUIET: dict[str, Any] = {"metadata_copy_seconds": 0.0}
"""No copies of the metadata, whose blocks would be counted with those of files."""
OLD, NEW = "old bytes " * 100, "new bytes " * 100
CONTENT = {f"file-{n}": f"file {n} ".encode() * (10 ** (n + 1)) for n in range(4)} | {"changed": NEW.encode()}
UPDATED = "file-2"
WORDS = ("wrong", "lost", "hung", "unsure", "refused", "right")
"""The worst first."""
BAD = frozenset({"wrong", "lost", "hung"})
NOT_TRIED = ""


class Cell(NamedTuple):
    """One cell of a table: row and column."""

    target: str
    fault: str
    servers: int
    operation: str


def worst(outcomes: Collection[str]) -> str:
    """Return the worst of some outcomes."""
    return next((word for word in WORDS if word in outcomes), NOT_TRIED)


def write(cluster: LocalCluster, content: Mapping[str, bytes]) -> None:
    """Write files."""
    access = ClientAccess(cluster)
    try:
        for name, data in content.items():
            access.write(name, data)
    finally:
        access.close()


def read(access: ClientAccess, name: str, data: bytes) -> str:
    """Read a file that should have these bytes; return the outcome."""
    try:
        return "right" if access.read(name) == data else "wrong"
    except FileNotFoundError:
        return "wrong"
    except OSError:
        return "refused"


def refilling(cluster: LocalCluster) -> bool:
    """Tell whether a server is being refilled, or the mediator does not answer."""
    client = mediator_client(cluster)
    try:
        servers = client.call(2.0, CommonMethods.status)["servers"]
    except QuorumfsError:
        return True
    finally:
        client.close()
    return any(server["state"] == "refilling" for server in servers)


def render(outcomes: Mapping[Cell, str], rows: str = "file") -> str:
    """Return the table in Markdown; columns without any outcome are left out."""
    tried = {(cell.operation, cell.servers) for cell in outcomes}
    operations = dict.fromkeys((*OPERATIONS, *(cell.operation for cell in outcomes)))
    counts = sorted({cell.servers for cell in outcomes})
    columns = [(name, count) for name in operations for count in counts if (name, count) in tried]
    titles = [f"{name}, {count}" if count else name for name, count in columns]
    lines = [f"| {rows} | fault | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(columns)]
    for target, fault in dict.fromkeys((cell.target, cell.fault) for cell in outcomes):
        found = [outcomes.get(Cell(target, fault, count, name), NOT_TRIED) for name, count in columns]
        lines.append(f"| {target} | {fault} | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", f"{len(outcomes)} cells: {counted(outcomes.values())}."])


def counted(outcomes: Iterable[str]) -> str:
    """Return how many there are of each outcome, in words."""
    counts = Counter(outcomes)
    shown = ["right", "refused", *(["unsure"] if counts["unsure"] else []), "wrong", "lost"]
    shown += ["hung"] if counts["hung"] else []
    return ", ".join(f"{word} {counts[word]}" for word in shown)


def put_into(page: Path, name: str, table: str) -> None:
    """Replace a table of a page, between its two marks."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    head, rest = page.read_text().split(begin)
    page.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}")
