"""The demo's judgement: a step that does not keep its promise is told, and the README gets the transcript."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo import (
    MARKERS,
    STORY,
    BrokenPromiseError,
    Chapter,
    Done,
    Step,
    broken_promise,
    play,
    readme_with,
)
from wire.config import ConfigError


@pytest.mark.parametrize(
    ("step", "done", "broken"),
    [
        (Step("c"), Done("anything\n", 0, 1), ""),
        (Step("c"), Done("", 1, 1), "exit status 1"),
        (Step("c", fails=True), Done("", 1, 1), ""),
        (Step("c", fails=True), Done("", 0, 1), "exit status 0"),
        (Step("c", "right\n"), Done("right\n", 0, 1), ""),
        (Step("c", "right\n"), Done("right", 0, 1), "should have printed"),
        (Step("c", ""), Done("wrong\n", 0, 1), "should have printed"),
        (Step("c", tells=("a", "b")), Done("b a", 0, 1), ""),
        (Step("c", tells=("a", "b")), Done("a", 0, 1), "should have told 'b'"),
        (Step("c", omits=("a",)), Done("b", 0, 1), ""),
        (Step("c", omits=("b", "a")), Done("a", 0, 1), "should not have told 'a'"),
        (Step("c", within_seconds=2), Done("", 0, 1.9), ""),
        (Step("c", within_seconds=2), Done("", 0, 2.1), "it took 2.1 s"),
    ],
)
def test_promises(step: Step, done: Done, broken: str) -> None:
    told = broken_promise(step, done)
    assert broken in told and bool(told) == bool(broken)


def test_a_transcript_has_the_commands_and_what_they_printed(tmp_path: Path) -> None:
    story = [Chapter("First", (Step("echo one; echo two", "one\ntwo\n"), Step("false", fails=True)))]
    assert list(play(tmp_path, story)) == ["# First", "$ echo one; echo two", "one", "two", "$ false", ""]


def test_the_story_ends_at_the_first_broken_promise(tmp_path: Path) -> None:
    story = [Chapter("First", (Step("echo wrong", "right\n"), Step("touch reached")))]
    seen = []
    with pytest.raises(BrokenPromiseError, match="echo wrong: it should have printed"):
        for line in play(tmp_path, story):
            seen.append(line)
    assert seen == ["# First", "$ echo wrong", "wrong"]
    assert not (tmp_path / "reached").exists()


def test_a_step_may_come_true_a_little_later(tmp_path: Path) -> None:
    command = "if [ -e marker ]; then echo healed; else touch marker; echo ill; fi"
    story = [Chapter("First", (Step(command, "healed\n", retry_seconds=30),))]
    title, shown, waited, printed, _ = play(tmp_path, story)
    assert (title, shown, printed) == ("# First", f"$ {command}", "healed")
    assert waited.startswith("# (after ")


def test_the_transcript_replaces_the_old_one_between_the_markers() -> None:
    begin, end = MARKERS
    text = f"before\n{begin}old\n{end}after\n"
    once = readme_with(text, "$ new\n\n")
    assert once == f"before\n{begin}```console\n$ new\n```\n{end}after\n"
    assert readme_with(once, "$ new") == once


@pytest.mark.parametrize("text", ["", MARKERS[0], MARKERS[1] + MARKERS[0], 2 * (MARKERS[0] + MARKERS[1])])
def test_a_readme_without_a_place_for_it_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        readme_with(text, "$ new")


def test_every_step_of_the_story_promises_something() -> None:
    for chapter in STORY:
        for step in chapter.steps:
            assert step.output is not None or step.tells, step.command
