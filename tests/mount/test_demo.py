"""The demo, played for real: every step as promised, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.demo import MARKERS
from tools.mounts import mounts

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
@pytest.mark.usefixtures("fuse_device")
def test_the_demo_keeps_every_promise_and_leaves_nothing_behind(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("".join(("before\n", *MARKERS, "after\n")))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--readme", str(readme)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "$ cat mnt/a.txt\ncat: mnt/a.txt: Input/output error\n" in readme.read_text()
    assert list(scratch.iterdir()) == []
    assert not [mount for mount in mounts() if mount.place.is_relative_to(scratch)]
