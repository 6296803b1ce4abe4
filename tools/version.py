"""Which version of quorumfs this is, for what is measured with it. Safe in any thread."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_version() -> str:
    """Return the release, and the commit if this is a working copy of the source."""
    try:
        release = version("quorumfs")
    except PackageNotFoundError:
        release = "unreleased"
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return release
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        commit = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return release
    return f"{release} ({commit})"
