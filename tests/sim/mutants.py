"""Bugs put in on purpose, one at a time: each a plausible slip that the simulation must find.

A mutant changes a function of the running code, in a process of its own. What it changes must be there: a
mutant whose target has gone fails loudly, so that the list stays true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.sim import bugs, changes, metadata_bugs, ring_bugs


class Mutant(NamedTuple):
    """A bug: its name says what the code does wrong."""

    name: str
    put_in: Callable[[], None]


def stumbles(problem: str) -> bool:
    """Tell whether a problem is a bug's own mistake: it does not fit the code that it changes any more."""
    return any(
        f'File "{module.__file__}"' in problem for module in (bugs, changes, metadata_bugs, ring_bugs)
    ) and any(f"\n{kind}: " in problem for kind in ("AttributeError", "TypeError", "NameError"))


MUTANTS = [
    Mutant(function.__name__.replace("_", " "), function)
    for function in (
        bugs.vote_counts_corrupt,
        bugs.votes_are_recorded_digests,
        bugs.vote_on_the_first_piece_only,
        bugs.repair_takes_any_bytes,
        bugs.commit_before_qw_acknowledged,
        bugs.put_acknowledged_before_it_is_synced,
        metadata_bugs.commit_acknowledged_before_it_is_synced,
        metadata_bugs.database_not_synced_before_its_log_is_begun_over,
        metadata_bugs.garbage_told_before_it_is_durable,
        bugs.fsync_of_an_unchanged_file_does_nothing,
        bugs.directory_not_synced,
        metadata_bugs.name_of_the_log_not_synced,
        bugs.description_named_before_it_is_synced,
        bugs.returned_server_not_refilled,
        bugs.lag_forgotten_at_a_mediator_restart,
        bugs.refill_skips_blocks_written_meanwhile,
        bugs.inventory_loses_an_entry_of_each_page,
        metadata_bugs.collection_races_a_commit,
        metadata_bugs.call_sent_again_is_done_twice,
        metadata_bugs.late_call_is_carried_out,
        metadata_bugs.lock_kept_after_its_session,
        bugs.waits_end_at_the_deadline,
        bugs.lost_locks_go_unnoticed,
        bugs.only_locked_files_fail_with_their_session,
        bugs.damaged_index_is_never_built_anew,
        bugs.truncation_not_atomic,
        bugs.close_hides_a_failed_commit,
        bugs.quarantined_copy_served,
        metadata_bugs.expired_session_keeps_its_open_files,
        metadata_bugs.second_session_does_not_wait_for_the_grant,
        metadata_bugs.epoch_is_the_date_of_a_start,
        metadata_bugs.late_copies_of_lock_calls_are_carried_out_after_a_restart,
        metadata_bugs.late_close_lets_go_of_what_was_opened_since,
        metadata_bugs.older_database_is_not_found_out,
        metadata_bugs.failed_sync_of_the_log_is_told_once,
        metadata_bugs.log_not_written_again_at_a_start,
        metadata_bugs.unreadable_frame_of_the_log_is_taken_for_damage,
        metadata_bugs.reserve_is_not_given_up,
        bugs.name_removed_before_the_server_knows_who_has_it_open,
        metadata_bugs.file_is_born_though_others_came,
        bugs.bytes_fetched_ahead_are_used_for_any_version,
        ring_bugs.removals_are_taken_in_when_there_is_time,
        ring_bugs.removal_is_answered_though_the_grant_is_over,
        ring_bugs.removals_are_told_again_after_a_restart,
        ring_bugs.rings_are_forgotten_at_a_start,
        ring_bugs.new_files_are_open_when_all_changes_are_taken_in,
        ring_bugs.given_blocks_are_taken_in_when_there_is_time,
        ring_bugs.given_blocks_are_forgotten_at_a_start,
        ring_bugs.blocks_are_given_to_servers_that_are_gone,
    )
]
