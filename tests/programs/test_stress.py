"""stress-ng's file stressors, each with its own verification, two processes at a time."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

STRESSORS = [
    "access",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "dup",
    "fallocate",
    "fcntl",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "inode-flags",
    "inotify",
    "io",
    "iomix",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "rename",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
    "aio",
    "mmap",
    "readahead",
    "revio",
    "seek",
    "sendfile",
    "splice",
]
"""Its class of file systems, and others that work on files. Left out: bind-mount, binderfs, eventfd, ioprio
and procfs, which do not touch the file system that they run on; fanotify, which watches every mount of the
machine; fiemap and verity, which this file system does not have."""
SECONDS = 5
SIZES = ["--hdd-bytes", "32m", "--iomix-bytes", "32m", "--fallocate-bytes", "64m", "--aio-requests", "32"]


@pytest.mark.long
@pytest.mark.parametrize("stressor", STRESSORS)
def test_stress(here: Path, stressor: str) -> None:
    done = subprocess.run(
        [
            "stress-ng",
            f"--{stressor}",
            "2",
            "--timeout",
            str(SECONDS),
            "--verify",
            "--temp-path",
            ".",
            *SIZES,
        ],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"\b(fail|error|skipping|skipped|not supported)\b", said), said
