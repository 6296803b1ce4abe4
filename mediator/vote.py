"""The vote: what answers mean, when a quorum is decided, and what the model predicts.

Pure: no I/O, no clock; answers in, verdicts and outcomes out. It must not know servers, only their
answers. Safe in any thread. Source of the quorum rule: D. K. Gifford, Weighted voting for replicated
data, SOSP 1979; that a replica is held against a recorded digest (the witness) instead of against the
majority is docs/decisions/0004-who-counts-in-a-vote.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, StrEnum

from wire.digest import PIECE_BYTES, part_matches, piece_count
from wire.errors import BlockDamaged, BlockMissing
from wire.messages import BlockPart, BlockRecord
from wire.quorum import Quorum


class Verdict(StrEnum):
    """A vote held against the witness."""

    GOOD = "good"
    CORRUPT = "corrupt"
    MISSING = "missing"
    DOWN = "down"


class Progress(Enum):
    """How far a fan-out is from its quorum; it stops early both ways."""

    PENDING = "pending"
    REACHED = "reached"
    IMPOSSIBLE = "impossible"


class ReadOutcome(StrEnum):
    """What a read does with the verdicts so far."""

    WAIT = "wait"
    ANSWER = "answer"
    FILL = "fill"
    """Fill the missing replicas, count them, and decide again."""
    REFUSE = "refuse"


class Prediction(StrEnum):
    """What the model expects of one cell of the evaluation tables; it never expects wrong or stale bytes."""

    RIGHT = "right"
    REFUSED = "refused"


def judge(
    witness: BlockRecord, answer: bytes | BlockPart | BaseException, first_piece: int = 0, pieces: int = 0
) -> Verdict:
    """Hold one data server's answer against the witness.

    Args:
        witness: the block as it was committed.
        answer: a digest vote, pieces of the block, or the error that came instead.
        first_piece: the first of the pieces that were asked for.
        pieces: how many were asked for; 0 means all from `first_piece` on.
    """
    if isinstance(answer, BlockMissing):
        return Verdict.MISSING
    if isinstance(answer, BlockDamaged):
        return Verdict.CORRUPT
    if isinstance(answer, BaseException):
        return Verdict.DOWN
    if isinstance(answer, BlockPart):
        right = _part_is_right(witness, answer, first_piece, pieces)
    else:
        right = answer == witness.digest
    return Verdict.GOOD if right else Verdict.CORRUPT


def _part_is_right(witness: BlockRecord, part: BlockPart, first_piece: int, pieces: int) -> bool:
    """Tell whether these are all the pieces asked for: verified bytes, but too few of them, are wrong."""
    return (
        part.length == witness.length
        and len(part.data) == part_bytes(witness.length, first_piece, pieces)
        and part_matches(witness.digest, witness.length, first_piece, part.piece_digests, part.data)
    )


def part_bytes(length: int, first_piece: int, pieces: int) -> int:
    """Return how many bytes these pieces of a block of `length` bytes have; 0 means all that follow."""
    last = first_piece + pieces if pieces else piece_count(length)
    return max(0, min(length, last * PIECE_BYTES) - first_piece * PIECE_BYTES)


def tally(needed: int, yes: int, pending: int) -> Progress:
    """Tell whether `needed` yes-votes are there, may still come, or cannot come any more."""
    if yes >= needed:
        return Progress.REACHED
    return Progress.PENDING if yes + pending >= needed else Progress.IMPOSSIBLE


def read_outcome(quorum: Quorum, verdicts: Collection[Verdict | None]) -> ReadOutcome:
    """Decide a read from the verdicts of all N replicas, None for those that have not voted yet.

    | situation | outcome |
    |---|---|
    | good >= Qr | ANSWER |
    | good < Qr, good >= 1, good + missing >= Qr | FILL the missing, then count them |
    | no further vote can bring that about | REFUSE |

    FILL waits for the last vote, since a late good one makes it unnecessary. A corrupt replica never counts.
    """
    votes = list(verdicts)
    good = votes.count(Verdict.GOOD)
    if good >= quorum.read:
        return ReadOutcome.ANSWER
    missing, pending = votes.count(Verdict.MISSING), votes.count(None)
    if not good + pending or tally(quorum.read, good + missing, pending) is Progress.IMPOSSIBLE:
        return ReadOutcome.REFUSE
    return ReadOutcome.WAIT if pending else ReadOutcome.FILL


def may_fill(quorum: Quorum, verdicts: Collection[Verdict | None]) -> bool:
    """Tell whether a read is decided once the missing replicas are filled, whoever is still to vote."""
    votes = list(verdicts)
    good, missing = votes.count(Verdict.GOOD), votes.count(Verdict.MISSING)
    return 0 < good < quorum.read <= good + missing


def write_progress(quorum: Quorum, stored: int, pending: int) -> Progress:
    """Decide a write from how many data servers hold the block and how many may still answer."""
    return tally(quorum.write, stored, pending)


def predict_read(quorum: Quorum, *, crashed: int = 0, corrupt: int = 0, missing: int = 0) -> Prediction:
    """Predict a read of a block that all N held, after these faults on replicas of their own each.

    Raises:
        ValueError: more faults than replicas.
    """
    good = quorum.servers - crashed - corrupt - missing
    if min(good, crashed, corrupt, missing) < 0:
        raise ValueError(f"{crashed} crashed, {corrupt} corrupt and {missing} missing of {quorum.servers}")
    faulty = [Verdict.CORRUPT] * corrupt + [Verdict.MISSING] * missing + [Verdict.DOWN] * crashed
    outcome = read_outcome(quorum, [Verdict.GOOD] * good + faulty)
    return Prediction.REFUSED if outcome is ReadOutcome.REFUSE else Prediction.RIGHT


def predict_write(quorum: Quorum, *, crashed: int = 0, corrupt: int = 0) -> Prediction:
    """Predict a write with so many servers crashed. Corrupt replicas do not matter: it makes new blocks.

    Raises:
        ValueError: more faults than servers.
    """
    if min(crashed, corrupt) < 0 or crashed + corrupt > quorum.servers:
        raise ValueError(f"{crashed} crashed and {corrupt} corrupt of {quorum.servers}")
    reached = write_progress(quorum, quorum.servers - crashed, pending=0) is Progress.REACHED
    return Prediction.RIGHT if reached else Prediction.REFUSED


def describe_read(quorum: Quorum, verdicts: Mapping[int, Verdict | None]) -> str:
    """Say in plain words how a read stands, as "2 of 5 replicas are good, Qr=3 are needed; 3 corrupt ..."."""
    good = sum(verdict is Verdict.GOOD for verdict in verdicts.values())
    said = f"{good} of {quorum.servers} replicas {'is' if good == 1 else 'are'} good, "
    said += f"Qr={quorum.read} {'is' if quorum.read == 1 else 'are'} needed"
    for kind in (Verdict.CORRUPT, Verdict.MISSING, Verdict.DOWN, None):
        if numbers := sorted(number for number, verdict in verdicts.items() if verdict is kind):
            said += f"; {len(numbers)} {kind or 'still to vote'} ({servers_in_words(numbers)})"
    return said


def servers_in_words(numbers: Collection[int]) -> str:
    """Return "server 3" or "servers 1, 2, 3"."""
    return f"server{'s' if len(numbers) > 1 else ''} {', '.join(map(str, sorted(numbers)))}"
