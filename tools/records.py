"""What an evaluation measures: cells, outcomes and append-only records. Pure; safe in any thread.

A cell is one operation under one set of faults on one cluster setting. Its outcome is decided
here from what was really read, and stands in a record beside the model's prediction. Nothing in
this module runs a server, reads a file or prints.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from wire.quorum import Quorum

RECORDS_FORMAT = 1
"""Raised with every change of the JSON document that a reader of older ones would misread."""

Operation = Literal["write", "read"]
Corruption = Literal["different", "colluding"]

PUBLISHED_SETTINGS: tuple[Quorum, ...] = (
    Quorum(1, 1, 1),
    *(Quorum(5, read, 5) for read in (5, 4, 3, 2, 1)),
)
"""The settings whose tables were published: N=1, and N=5 with Qw=5 and every Qr."""


class Outcome(StrEnum):
    """What came of an operation. Only `right` and `refused` keep the promises."""

    RIGHT = "right"
    """A read gave the last committed bytes; a write was acknowledged, and a later read gave its bytes."""
    REFUSED = "refused"
    """It failed with an error, and the last committed content is still whole."""
    WRONG = "wrong"
    """Bytes that were never the file's content, or a failed write that changed it."""
    STALE = "stale"
    """Bytes that were once the file's content and were superseded."""


@dataclass(frozen=True, order=True)
class Cell:
    """One operation under `crashed` crashed servers and `corrupt` corrupt replicas on other servers.

    With `corruption` "different" each corrupt replica is damaged in its own way; with "colluding"
    all of them hold the same wrong bytes with a matching digest of their own.
    """

    operation: Operation
    crashed: int
    corrupt: int
    corruption: Corruption = "different"

    def __str__(self) -> str:
        faults = [f"{self.crashed} crashed"] if self.crashed or not self.corrupt else []
        if self.corrupt:
            colluding = " colluding" if self.corruption == "colluding" else ""
            faults.append(f"{self.corrupt}{colluding} corrupt")
        return f"{self.operation}, {' and '.join(faults)}"


@dataclass(frozen=True)
class Record:
    """One measured cell, never changed afterwards: enough to repeat it and to draw every table."""

    when: str
    """The time of the measurement, ISO 8601 in UTC."""
    version: str
    """The release, with the commit if it is known."""
    seed: int
    access: str
    """"mount" or "client"."""
    rpc: str
    """The encoding that the parts spoke."""
    servers: int
    read_quorum: int
    write_quorum: int
    operation: Operation
    crashed: int
    corrupt: int
    corruption: Corruption
    faults: tuple[str, ...]
    """What was done to which server, in words."""
    expected: Outcome
    outcome: Outcome
    evidence: str
    duration_seconds: float

    @property
    def quorum(self) -> Quorum:
        """The setting that was measured."""
        return Quorum(self.servers, self.read_quorum, self.write_quorum)

    @property
    def cell(self) -> Cell:
        """The cell that was measured."""
        return Cell(self.operation, self.crashed, self.corrupt, self.corruption)

    @property
    def flagged(self) -> bool:
        """Whether this breaks a promise or differs from the model."""
        return self.outcome != self.expected or self.outcome in (Outcome.WRONG, Outcome.STALE)


def plan_cells(servers: int) -> list[Cell]:
    """Return every cell of a setting of N servers, those with the same crashes together.

    Corruption and crashes alone from 0 to N, colluding corruption from 1 to N, and every mixture.
    """
    operations: tuple[Operation, Operation] = ("write", "read")
    kinds: tuple[Corruption, Corruption] = ("different", "colluding")
    return [
        Cell(operation, crashed, corrupt, corruption)
        for crashed in range(servers + 1)
        for corruption in kinds
        for corrupt in range(servers - crashed + 1)
        for operation in operations
        if corruption == "different" or (corrupt and not crashed)
    ]


def classify_read(content: bytes | None, committed: Sequence[bytes]) -> Outcome:
    """Judge a read.

    Args:
        content: the bytes read, None if the read failed with an error.
        committed: every content the file ever had, the last committed one at the end.
    """
    if content is None:
        return Outcome.REFUSED
    if content == committed[-1]:
        return Outcome.RIGHT
    return Outcome.STALE if content in committed else Outcome.WRONG


def classify_write(
    acknowledged: bool, new: bytes, committed: Sequence[bytes], afterwards: bytes | None, untouched: bool
) -> Outcome:
    """Judge a write by what a read gives when all servers are up again.

    Args:
        acknowledged: whether every call of the write, close included, succeeded.
        new: the content that was written.
        committed: every content the file had before, the last committed one at the end.
        afterwards: the bytes read afterwards, None if that read failed with an error.
        untouched: whether the file's blocks and the verdicts on them are those of before the write.
            An unreadable file counts as whole only if the write has not touched it: then the
            corruption that the cell injected is why it cannot be read.
    """
    if acknowledged:
        if afterwards == new:
            return Outcome.RIGHT
        return Outcome.STALE if afterwards in committed else Outcome.WRONG
    whole = afterwards == committed[-1] or (afterwards is None and untouched)
    if whole:
        return Outcome.REFUSED
    return Outcome.STALE if afterwards in committed else Outcome.WRONG


def dumps(records: Iterable[Record]) -> str:
    """Return records as one JSON document."""
    document = {"format": RECORDS_FORMAT, "records": [dataclasses.asdict(record) for record in records]}
    return json.dumps(document, indent=1) + "\n"


def loads(text: str) -> list[Record]:
    """Return the records of a JSON document written by `dumps`.

    Raises:
        ValueError: the text is no such document.
    """
    document: Any = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != RECORDS_FORMAT:
        raise ValueError(f"not a document of evaluation records of format {RECORDS_FORMAT}")
    try:
        return [_record(fields) for fields in document["records"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a record is damaged: {error}") from None


def _record(fields: dict[str, Any]) -> Record:
    converted = {
        "faults": tuple(fields["faults"]),
        "expected": Outcome(fields["expected"]),
        "outcome": Outcome(fields["outcome"]),
    }
    return Record(**{**fields, **converted})
