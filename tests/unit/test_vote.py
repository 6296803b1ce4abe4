"""The vote's truth tables, a random check against a dumb second implementation, and the published tables."""

from __future__ import annotations

import itertools
import random

import pytest

from mediator.vote import (
    Prediction,
    Progress,
    ReadOutcome,
    Verdict,
    describe_read,
    judge,
    predict_read,
    predict_write,
    read_outcome,
    tally,
    write_progress,
)
from tests.support import take_seed
from wire.digest import PIECE_BYTES, block_digest, piece_digests
from wire.errors import BlockDamaged, BlockMissing, DeadlineExceeded, InternalError, Unavailable
from wire.messages import BlockPart, BlockRecord
from wire.quorum import Quorum

G, C, M, D = Verdict.GOOD, Verdict.CORRUPT, Verdict.MISSING, Verdict.DOWN
LETTERS: dict[str, Verdict | None] = {"G": G, "C": C, "M": M, "D": D, ".": None}
OUTCOMES = {"answer": ReadOutcome.ANSWER, "fill": ReadOutcome.FILL, "refuse": ReadOutcome.REFUSE}
OUTCOMES["wait"] = ReadOutcome.WAIT

# One row a pattern of votes ("." has not voted yet): the outcome for Qr = 1, 2, ... N.
TRUTH = """
G      answer
C      refuse
M      refuse
D      refuse
.      wait

GG     answer answer
GC     answer refuse
GM     answer fill
GD     answer refuse
CC     refuse refuse
CM     refuse refuse
MM     refuse refuse
MD     refuse refuse
G.     answer wait
C.     wait   refuse
M.     wait   wait
..     wait   wait

GGG    answer answer answer
GGM    answer answer fill
GMM    answer fill   fill
GCM    answer fill   refuse
GCC    answer refuse refuse
GDM    answer fill   refuse
MMM    refuse refuse refuse
CMM    refuse refuse refuse
CCC    refuse refuse refuse
GM.    answer wait   wait
GC.    answer wait   refuse
CC.    wait   refuse refuse
MM.    wait   wait   wait
DM.    wait   wait   refuse

GGGG   answer answer answer answer
GGCC   answer answer refuse refuse
GGMC   answer answer fill   refuse
GMMM   answer fill   fill   fill
GDCM   answer fill   refuse refuse
MMMM   refuse refuse refuse refuse
G.DD   answer wait   refuse refuse

GGGGG  answer answer answer answer answer
GGGGC  answer answer answer answer refuse
GGGCC  answer answer answer refuse refuse
GGCCC  answer answer refuse refuse refuse
GCCCC  answer refuse refuse refuse refuse
CCCCC  refuse refuse refuse refuse refuse
GGGGD  answer answer answer answer refuse
GGGDD  answer answer answer refuse refuse
GGDDD  answer answer refuse refuse refuse
GDDDD  answer refuse refuse refuse refuse
DDDDD  refuse refuse refuse refuse refuse
GGGGM  answer answer answer answer fill
GGGMC  answer answer answer fill   refuse
GGMCC  answer answer fill   refuse refuse
GMMCC  answer fill   fill   refuse refuse
GMMMM  answer fill   fill   fill   fill
MMMMM  refuse refuse refuse refuse refuse
MMMMC  refuse refuse refuse refuse refuse
GGDDM  answer answer fill   refuse refuse
GG...  answer answer wait   wait   wait
GGCC.  answer answer wait   refuse refuse
CCC..  wait   wait   refuse refuse refuse
MMMM.  wait   wait   wait   wait   wait
"""
ROWS = [line.split() for line in TRUTH.splitlines() if line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_truth_table(row: list[str]) -> None:
    pattern, *expected = row
    assert len(expected) == len(pattern)
    for votes in set(itertools.permutations(pattern)):
        for read, outcome in enumerate(expected, 1):
            quorum = Quorum(len(pattern), read, len(pattern))
            assert read_outcome(quorum, [LETTERS[vote] for vote in votes]) is OUTCOMES[outcome], (votes, read)


def dumb_outcome(needed: int, votes: list[Verdict | None]) -> ReadOutcome:
    """Try every way in which the open votes may fall, and compare the ends."""
    if None in votes:
        at = votes.index(None)
        ends = {dumb_outcome(needed, [*votes[:at], vote, *votes[at + 1 :]]) for vote in (G, C, M, D)}
        if len(ends) == 1 and ends != {ReadOutcome.FILL}:
            return ends.pop()
        return ReadOutcome.WAIT
    good = [vote for vote in votes if vote == G]
    fillable = [vote for vote in votes if vote in (G, M)]
    if len(good) >= needed:
        return ReadOutcome.ANSWER
    return ReadOutcome.FILL if good and len(fillable) >= needed else ReadOutcome.REFUSE


def test_random_votes_against_a_dumb_implementation() -> None:
    seed = take_seed()
    chance = random.Random(seed)
    for _ in range(3000):
        servers = chance.randint(1, 6)
        read = chance.randint(1, servers)
        votes = [chance.choice([G, C, M, D, None]) for _ in range(servers)]
        quorum = Quorum(servers, read, servers)
        assert read_outcome(quorum, votes) is dumb_outcome(read, votes), (quorum, votes)


def test_a_decision_never_changes_with_further_votes() -> None:
    for servers in range(1, 5):
        for read in range(1, servers + 1):
            quorum = Quorum(servers, read, servers)
            for votes in itertools.product([G, C, M, D, None], repeat=servers):
                before = read_outcome(quorum, votes)
                if None not in votes or before is ReadOutcome.WAIT:
                    continue
                for vote in (G, C, M, D):
                    later = list(votes)
                    later[later.index(None)] = vote
                    assert read_outcome(quorum, later) is before


@pytest.mark.parametrize(
    ("needed", "yes", "pending", "progress"),
    [
        (1, 0, 0, Progress.IMPOSSIBLE),
        (1, 0, 1, Progress.PENDING),
        (1, 1, 0, Progress.REACHED),
        (3, 2, 0, Progress.IMPOSSIBLE),
        (3, 2, 1, Progress.PENDING),
        (3, 3, 2, Progress.REACHED),
        (5, 4, 1, Progress.PENDING),
        (5, 0, 4, Progress.IMPOSSIBLE),
    ],
)
def test_tally(needed: int, yes: int, pending: int, progress: Progress) -> None:
    assert tally(needed, yes, pending) is progress
    assert write_progress(Quorum(5, 5, needed), yes, pending) is progress


def test_published_tables() -> None:
    table = {
        5: "ok x  x  x  x  x",
        4: "ok ok x  x  x  x",
        3: "ok ok ok x  x  x",
        2: "ok ok ok ok x  x",
        1: "ok ok ok ok ok x",
    }
    cell = {"ok": Prediction.RIGHT, "x": Prediction.REFUSED}
    for read, row in table.items():
        quorum = Quorum(5, read, 5)
        for count, expected in enumerate(row.split()):
            assert predict_read(quorum, corrupt=count) is cell[expected]
            assert predict_read(quorum, crashed=count) is cell[expected]
            assert predict_write(quorum, corrupt=count) is Prediction.RIGHT
            assert predict_write(quorum, crashed=count) is (Prediction.REFUSED if count else Prediction.RIGHT)
    single = Quorum(1, 1, 1)
    assert [predict_read(single, corrupt=k) for k in (0, 1)] == [Prediction.RIGHT, Prediction.REFUSED]
    assert [predict_read(single, crashed=k) for k in (0, 1)] == [Prediction.RIGHT, Prediction.REFUSED]
    assert [predict_write(single, corrupt=k) for k in (0, 1)] == [Prediction.RIGHT, Prediction.RIGHT]
    assert [predict_write(single, crashed=k) for k in (0, 1)] == [Prediction.RIGHT, Prediction.REFUSED]


def test_mixed_faults_and_blank_replicas_in_the_model() -> None:
    quorum = Quorum(5, 3, 5)
    assert predict_read(quorum, crashed=1, corrupt=1) is Prediction.RIGHT
    assert predict_read(quorum, crashed=1, corrupt=2) is Prediction.REFUSED
    assert predict_read(quorum, missing=4) is Prediction.RIGHT
    assert predict_read(quorum, missing=5) is Prediction.REFUSED
    with pytest.raises(ValueError):
        predict_read(quorum, crashed=3, corrupt=3)
    with pytest.raises(ValueError):
        predict_write(quorum, crashed=6)


def part(data: bytes, first: int = 0, count: int = 0) -> BlockPart:
    end = (first + count) * PIECE_BYTES if count else len(data)
    return BlockPart(len(data), piece_digests(data), data[first * PIECE_BYTES : end])


def test_judge_digests_and_errors() -> None:
    witness = BlockRecord(bytes(16), 4, block_digest(b"1234"))
    assert judge(witness, block_digest(b"1234")) is G
    assert judge(witness, block_digest(b"1235")) is C
    assert judge(witness, b"") is C
    assert judge(witness, BlockDamaged()) is C
    assert judge(witness, BlockMissing()) is M
    for error in (Unavailable(), DeadlineExceeded(), InternalError(), TimeoutError()):
        assert judge(witness, error) is D


def test_judge_bytes() -> None:
    data = random.Random(7).randbytes(3 * PIECE_BYTES + 100)
    witness = BlockRecord(bytes(16), len(data), block_digest(data))
    assert judge(witness, part(data)) is G
    assert judge(witness, part(data, 1, 2), 1, 2) is G
    assert judge(witness, part(data, 3, 1), 3, 1) is G
    assert judge(witness, part(data, 3, 9), 3, 9) is G
    flipped = bytearray(data)
    flipped[PIECE_BYTES + 5] ^= 1
    assert judge(witness, part(bytes(flipped))) is C
    assert (
        judge(witness, part(data, 1, 1)._replace(data=bytes(flipped[PIECE_BYTES : 2 * PIECE_BYTES])), 1, 1)
        is C
    )
    assert judge(witness, part(data, 1, 1), 1, 2) is C, "verified, but too few pieces"
    assert judge(witness, part(data[:-1])) is C
    assert judge(witness, part(data)._replace(length=5)) is C
    lie = bytes(len(data))
    assert judge(witness, part(lie)) is C, "consistent in itself, but not what was committed"
    assert judge(witness, part(data)._replace(piece_digests=b"")) is G, "all of it needs no list"
    assert judge(witness, part(lie)._replace(piece_digests=b"")) is C
    assert judge(witness, part(data, 1, 1)._replace(piece_digests=b""), 1, 1) is C


def test_refusals_are_said_in_plain_words() -> None:
    said = describe_read(Quorum(5, 3, 5), {1: C, 2: C, 3: C, 4: G, 5: G})
    assert said == "2 of 5 replicas are good, Qr=3 are needed; 3 corrupt (servers 1, 2, 3)"
    said = describe_read(Quorum(3, 2, 3), {1: G, 2: M, 3: D})
    assert said == "1 of 3 replicas is good, Qr=2 are needed; 1 missing (server 2); 1 down (server 3)"
