"""Which server sends the bytes and when a second one is asked, of measured times alone."""

from __future__ import annotations

from mediator.latency import (
    HEDGE_LONGEST_SECONDS,
    HEDGE_SHORTEST_SECONDS,
    HEDGE_UNMEASURED_SECONDS,
    RECENT,
    SMALL_BYTES,
    STAY,
    TRY_EVERY,
    WINDOW,
    Window,
    choose_byte_server,
    choose_voters,
    hedge_seconds,
    size_class,
)

PIECE = 4096


def test_reads_are_small_or_large_by_the_bytes_wanted() -> None:
    assert size_class(SMALL_BYTES, 0, 0, PIECE) == "small"
    assert size_class(SMALL_BYTES + 1, 0, 0, PIECE) == "large"
    assert size_class(SMALL_BYTES * 16, 3, 1, PIECE) == "small"
    assert size_class(SMALL_BYTES * 16, 0, SMALL_BYTES // PIECE + 1, PIECE) == "large"
    assert size_class(SMALL_BYTES + PIECE, 1, 0, PIECE) == "small"
    assert size_class(10, 0, 1000, PIECE) == "small"


def test_the_median_is_recent_and_the_p95_of_the_whole_bounded_window() -> None:
    window = Window()
    assert (window.median, window.p95) == (None, None)
    for _ in range(WINDOW * 3):
        window.note(0.001)
    for _ in range(RECENT // 2 + 1):
        assert window.median == 0.001
        window.note(1.0)
    assert (window.median, window.p95) == (1.0, 0.001)
    window.note(1.0)
    assert window.p95 == 1.0  # four of 64 are more than a twentieth
    for _ in range(WINDOW):
        window.note(0.002)
    assert (window.median, window.p95) == (0.002, 0.002)


IDLE = dict.fromkeys(range(1, 6), 0)


def test_those_alike_take_turns_and_the_others_are_tried_now_and_then() -> None:
    medians = {1: 0.010, 2: 0.011, 3: 0.5, 4: 0.0155, 5: 0.017}
    chosen = [choose_byte_server(medians, IDLE, turn) for turn in range(4 * STAY)]
    assert [chosen[turn * STAY + 1] for turn in range(4)] == [1, 2, 4, 1]
    assert {chosen[TRY_EVERY], chosen[2 * TRY_EVERY]} == {3, 5}
    assert sum(number in (3, 5) for number in chosen) == 4 * STAY // TRY_EVERY
    assert choose_byte_server({3: 0.5}, IDLE, TRY_EVERY) == 3


def test_reads_stay_with_one_server_until_it_is_busy() -> None:
    alike = dict.fromkeys((1, 2, 3), 0.010)
    assert {choose_byte_server(alike, IDLE, turn) for turn in range(STAY)} == {1}
    assert {choose_byte_server(alike, IDLE, STAY + turn) for turn in range(STAY)} == {2}
    busy = {1: 0, 2: 0, 3: 0}
    for _ in range(7):
        busy[choose_byte_server(alike, busy, STAY)] += 1
    assert busy == {2: 3, 3: 2, 1: 2}


def test_who_is_not_as_fast_is_not_chosen_for_having_nothing_to_do() -> None:
    assert choose_byte_server({1: 0.010, 2: 0.5}, {1: 9, 2: 0}, 1) == 1
    assert choose_voters({1: 0.010, 2: 0.5, 3: 0.011}, {1: 9, 2: 0, 3: 8}, 1, 2) == [3, 1]


def test_an_unmeasured_server_counts_as_average() -> None:
    assert {choose_byte_server({1: None, 2: None}, IDLE, turn) for turn in (1, STAY)} == {1, 2}
    assert {choose_byte_server({1: 0.01, 2: None, 3: 0.5}, IDLE, turn) for turn in (1, STAY + 1)} == {1, 2}
    slow = {1: 0.01, 2: None, 3: 0.5, 4: 0.5}
    assert {choose_byte_server(slow, IDLE, turn) for turn in range(1, TRY_EVERY)} == {1}
    assert {choose_byte_server(slow, IDLE, turn * TRY_EVERY) for turn in range(1, 4)} == {2, 3, 4}


def test_the_second_request_follows_the_usual_p95_within_bounds() -> None:
    assert hedge_seconds([None, None]) == HEDGE_UNMEASURED_SECONDS
    assert hedge_seconds([]) == HEDGE_UNMEASURED_SECONDS
    assert hedge_seconds([0.1, 0.11, 0.12, 5.0, None]) == 0.11
    assert hedge_seconds([0.0001]) == HEDGE_SHORTEST_SECONDS
    assert hedge_seconds([9.0]) == HEDGE_LONGEST_SECONDS
