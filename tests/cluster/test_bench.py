"""A tiny benchmark of a local directory and of real clusters, as people run it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tools.bench_work
from tests.conftest import ClusterFactory
from tests.support import run_command
from tools import mounts
from tools.bench_curves import CURVES
from tools.bench_work import ROWS
from tools.cli import main

TINY = ("--scale", "0.01", "--rounds", "2")


def test_all_rows_on_a_directory_and_on_a_mount(
    tmp_path: Path, make_cluster: ClusterFactory, mountpoint: Path
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3)
    cluster.start()
    cluster.mount(mountpoint)
    files = ("--json", "figures.json", "--html", "page.html")
    done = run_command(tmp_path, "bench", f"local={local}", f"q={mountpoint}", *TINY, *files)
    assert (done.returncode, done.stderr) == (0, ""), done
    document = json.loads((tmp_path / "figures.json").read_text())
    assert [row["name"] for row in document["rows"]] == [row.name for row in ROWS]
    assert [place["type"] for place in document["directories"]][1] == "fuse.quorumfs"
    assert len(document["measurements"]) == len(ROWS) * 2 * 2
    assert all(measured["seconds"] > 0 and not measured["failure"] for measured in document["measurements"])
    assert all(found["q"]["to_first"] > 0 for found in document["summaries"].values())
    assert "x local" in done.stdout and "user.quorumfs.drop_caches" in done.stdout
    assert "read it, caches dropped" in (tmp_path / "page.html").read_text()
    assert not list(local.iterdir()) and not list(mountpoint.iterdir())


def test_figures_that_cannot_be_written_are_shown_all_the_same(tmp_path: Path) -> None:
    words = (f"local={tmp_path}", "--scale", "0.01", "--rounds", "1", "--only", "write")
    done = run_command(tmp_path, "bench", *words, "--json", "/dev/full")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
    assert "No space left" in done.stderr
    assert "local s" in done.stdout


def test_a_fresh_cluster_is_made_and_removed(tmp_path: Path, fuse_device: None) -> None:
    work = tmp_path / "work"
    work.mkdir()
    words = ("--cluster", str(work), "--scale", "0.01", "--rounds", "1", "--only", "write,read-cold,delete")
    done = run_command(tmp_path, "bench", f"local={work}", *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "quorumfs s" in done.stdout
    assert not list(work.iterdir())
    assert not [mount for mount in mounts.mounts() if mount.place.is_relative_to(work)]


def test_micro_rows_name_every_layer(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    words = ("bench", "--micro", "--cluster", str(work), "--scale", "0.01", "--json", "figures.json")
    done = run_command(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    timings = json.loads((tmp_path / "figures.json").read_text())["timings"]
    layers = [layer for layer, _ in itertools.groupby(timing["layer"] for timing in timings)]
    assert layers == ["wire", "data server", "mediator", "metadata server"]
    assert len({(timing["layer"], timing["words"]) for timing in timings}) == len(timings) == 26
    assert all(0 < timing["median_us"] <= timing["p99_us"] and timing["calls"] > 0 for timing in timings)
    assert "xml, 1 MiB there and back" in done.stdout and "voted read of 16 KiB" in done.stdout
    assert not list(work.iterdir())


def draw_curves(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """Draw curves of little work; return the points."""
    work, pictures = tmp_path / "work", tmp_path / "pictures"
    work.mkdir()
    pictures.mkdir()
    small = ("--scale", "0.05", "--rounds", "1", "--max-size", "0.0625", "--max-entries", "100")
    places = ("bench", "--curves", str(pictures), "--cluster", str(work), "--json", "figures.json")
    done = run_command(tmp_path, *places, *small, "--max-files", "20", *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    points: list[dict[str, Any]] = json.loads((tmp_path / "figures.json").read_text())["points"]
    assert {file.stem for file in pictures.iterdir()} == {point["curve"] for point in points}
    assert all(point["value"] > 0 for point in points)
    assert not list(work.iterdir())
    return points


@pytest.mark.long
def test_curves_are_drawn(tmp_path: Path, fuse_device: None) -> None:
    points = draw_curves(tmp_path, "--only", "sizes,damage,files")
    assert {point["x"] for point in points if point["curve"] == "sizes"} == {1024, 4096, 16384, 65536}
    assert {point["series"] for point in points if point["curve"] == "damage"} == {
        "refill, a MiB",
        "scrub, a MiB",
    }


@pytest.mark.long
def test_all_curves_are_drawn(tmp_path: Path, fuse_device: None) -> None:
    points = draw_curves(tmp_path)
    assert {point["curve"] for point in points} == {*CURVES}
    assert {point["x"] for point in points if point["curve"] == "quorums"} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("spoil", [lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: data[:-1]])
def test_wrong_bytes_fail_loudly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[bytes], bytes],
) -> None:
    real = os.pread
    monkeypatch.setattr(tools.bench_work.os, "pread", lambda *where: spoil(real(*where)))
    file = tmp_path / "figures.json"
    assert main(["bench", str(tmp_path), "--scale", "0.01", "--rounds", "1", "--json", str(file)]) == 1
    assert "WRONG BYTES" in capsys.readouterr().out
    failed = [
        measured["row"] for measured in json.loads(file.read_text())["measurements"] if measured["failure"]
    ]
    assert failed == ["random-read"]


def test_a_directory_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, full = tmp_path / "good", tmp_path / "full"
    good.mkdir()
    full.mkdir()
    real = tools.bench_work.write_all

    def write(file: int, data: memoryview) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().is_relative_to(full):
            raise OSError(28, "No space left on device")
        real(file, data)

    monkeypatch.setattr(tools.bench_work, "write_all", write)
    words = [
        "bench",
        f"full={full}",
        f"good={good}",
        "--scale",
        "0.01",
        "--rounds",
        "1",
        "--only",
        "append,list",
    ]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "FAILED  full, append, round 1: [Errno 28] No space left on device" in out
    assert "FAILED" in out.splitlines()[1]
    assert not list(full.iterdir())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "nothing to measure"),
        ((".", "--only", "x"), "there is no row"),
        ((".", "--json", "/no/x"), "written"),
        ((".", "--micro"), "works on fresh clusters"),
        (("--curves", ".", "--only", "x"), "there is no curve"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    done = run_command(tmp_path, "bench", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert reason in done.stderr and done.stderr.count("\n") == 1, done.stderr
