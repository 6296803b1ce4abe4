"""What people do in a directory, as functions that any mount must pass, and the processes to do it with."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

TREE = Path(__file__).parents[2]


def run(place: Path, script: str, seconds: float = 120) -> str:
    """Run a shell script in a directory; return what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def everyday_work(here: Path) -> None:
    """The shell's daily bread; every step checks what came before."""
    run(
        here,
        """
        echo 1234 > a.txt && test "$(cat a.txt)" = 1234 && echo 5678 >> a.txt
        test "$(wc -c < a.txt)" = 10 && test "$(tail -n 1 a.txt)" = 5678
        mkdir -p d/e && cp a.txt d/e/b && mv d f && cmp a.txt f/e/b
        ln a.txt hard && ln -s a.txt soft && test "$(readlink soft)" = a.txt && cmp soft hard
        test "$(stat -c %h a.txt)" = 2 && test "$(stat -c %i a.txt)" = "$(stat -c %i hard)"
        echo more >> hard && cmp a.txt hard && rm hard && test "$(stat -c %h a.txt)" = 1
        chmod 640 a.txt && test "$(stat -c %a a.txt)" = 640
        touch -d 2001-02-03T04:05:06.789012345Z a.txt && test "$(stat -c %.9Y a.txt)" = 981173106.789012345
        touch -m -d 2002-02-02T02:02:02Z a.txt && test "$(stat -c '%X %Y' a.txt)" = "981173106 1012615322"
        touch -a a.txt && test "$(stat -c %Y a.txt)" = 1012615322 && test "$(stat -c %X a.txt)" -gt 1700000000
        mkfifo pipe && test -p pipe && rm pipe
        truncate -s 3 a.txt && test "$(cat a.txt)" = 123
        truncate -s 10 a.txt && test "$(wc -c < a.txt)" = 10
        : > a.txt && test ! -s a.txt
        ! rmdir f 2> /dev/null && rm -r f && test ! -e f
        ls -la > /dev/null && df . > /dev/null
        """,
    )
    assert listing(here) == ["a.txt", "soft"]
    tree = here / "tree"
    run(here, f"cp -a {TREE}/wire tree && diff -r {TREE}/wire tree && rm -r tree")
    assert not tree.exists()


def large_file(here: Path, mebibytes: int) -> None:
    """Random bytes come back with the same hash, sequentially and piecewise."""
    seed = 20261121
    dice = random.Random(seed)
    written = hashlib.sha256()
    with (here / "large").open("wb") as file:
        for _ in range(mebibytes):
            data = dice.randbytes(1 << 20)
            written.update(data)
            file.write(data)
    os.setxattr(here, "user.quorumfs.drop_caches", b"")
    with (here / "large").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == written.hexdigest(), f"seed {seed}"
    (here / "large").unlink()


def names_of_all_kinds(here: Path) -> None:
    """Names are bytes: not UTF-8, 255 bytes, with spaces and newlines."""
    names = [b"\xff\xfe\x80", "grüße".encode(), b"a b\nc", b"n" * 255, b"-rf", b"\\"]
    for name in names:
        (here / os.fsdecode(name)).write_bytes(name)
    assert listing(here) == sorted(map(os.fsdecode, names))
    for name in names:
        assert (here / os.fsdecode(name)).read_bytes() == name
        (here / os.fsdecode(name)).unlink()
    assert listing(here) == []


def listing(place: Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(entry.name for entry in place.iterdir())
