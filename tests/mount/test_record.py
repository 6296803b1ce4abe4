"""What is recorded on a real mount keeps the promises, and a spoiled recording does not."""

from __future__ import annotations

import json
from pathlib import Path

from tools.cli import main


def test_record_and_check_and_spoil(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "history"
    assert main(["record", "--output", str(file), "--seconds", "3", str(here)]) == 0
    assert not list(here.iterdir())
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert {event["operation"] for event in events if event["event"] == "invoke"} >= {"read", "append"}
    assert main(["check-history", str(file)]) == 0
    spoiled = next(event for event in events if event["event"] == "return" and event.get("value"))
    spoiled["value"] = "never written"
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file)]) == 1
